"""Batch norm folded into the convolution before it: the same function in eval mode, in fewer operations."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold(model: nn.Module, images: Tensor, tolerance: float = 1e-3) -> nn.Module:
    """A copy of `model` in eval mode, with each batch norm folded into the convolution registered before it. That is
    the order of computation in ResNets, but not in every network: where the logits of `images` (float [N, C, H, W])
    change by more than `tolerance` of the largest (our choice), the copy is left unfolded. (torch.fx would find the
    pairs in any network, but while it traces one it patches all networks of the process, also those that other threads
    train.)"""
    plain = copy.deepcopy(model).eval()
    folded = copy.deepcopy(plain)
    modules = list(folded.named_modules())
    for (name, conv), (after, norm) in zip(modules, modules[1:]):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.out_channels == norm.num_features:
            folded.set_submodule(name, fuse_conv_bn_eval(conv, norm))
            folded.set_submodule(after, nn.Identity())
    with (
        torch.no_grad(),
        torch.autocast(images.device.type, enabled=False),
        torch.backends.cudnn.flags(True, allow_tf32=False),  # which GPUs use unless told, and rounds by more than this
    ):
        right, found = plain(images), folded(images)
    same = (found - right).abs().max() <= tolerance * right.abs().max().clamp_min(1)
    return folded if same else plain  # NaN is not the same
