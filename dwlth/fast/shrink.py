"""Channels that a mask has killed, removed: a smaller network of dense kernels that computes the same.

A channel that nothing reads can go. A channel that nothing is written to holds one number everywhere, and what it adds
to the channels that read it goes into their biases. At the border of a padded convolution that number meets zeros, so
there it is no bias: such constants become one channel of ones, and the weights that read it are their sums.
"""

import copy

import torch
from torch import Tensor, nn

from dwlth.errors import DwlthError
from dwlth.fast.folding import fold
from dwlth.models import Classifier

Space = list[tuple[list[tuple[nn.Conv2d, nn.Module]], nn.Module | None]]
"""Channels with one numbering, which a residual connection shares with all blocks of its stage: in the order of
computation, the convolutions (each with its batch norm) whose sum is added and goes through ReLU, or who reads it."""


def shrink(model: Classifier, images: Tensor) -> Classifier:
    """A copy of a sparse network in eval mode, batch norm folded, without its dead channels: the same logits but for
    rounding. What is left is 0 where it was 0. A space of dead channels alone keeps one.

    Args:
        model: one of `dwlth.models.NETWORKS`, its pruned weights 0.
        images: a few, float [N, C, H, W] in [0, 1], to see that the folding is right.

    Raises:
        DwlthError: where batch norm cannot be folded.
    """
    small = fold(model, images)
    if any(isinstance(module, nn.BatchNorm2d) for module in small.modules()):
        raise DwlthError("shrink: batch norm does not follow the convolutions of this network, so no channel is known")
    return _without(small, _merge)


def shrink_for_training(model: Classifier) -> Classifier:
    """A copy of a sparse network without the channels that nothing reads, directly or through others like it: they get
    no gradient, so trained with its mask it ends where the whole one does, but for rounding. Channels that nothing is
    written to stay: in training each is a bias, which is learnt."""
    return _without(copy.deepcopy(model), lambda space: None)


def channels(model: Classifier) -> int:
    """How many there are: those that a residual connection joins count once."""
    return sum(space[0][0][0][0].out_channels for space in _spaces(model.net))


@torch.no_grad()
def _without(model: Classifier, merge) -> Classifier:
    found, last = _spaces(model.net), 0
    while last != (last := channels(model)):  # what is cut may have been the last reader of another
        for space in found:
            merge(space)
            _cut(space)
    return model.to(memory_format=torch.channels_last)


def _spaces(net: nn.Module) -> list[Space]:
    stream: Space = [([(net.conv1, net.bn1)], None)]
    found = [stream]
    for block in (block for name, stage in net.named_children() if name.startswith("layer") for block in stage):
        names = [name for name in ("1", "2", "3") if hasattr(block, f"conv{name}")]
        *inner, last = [(getattr(block, f"conv{name}"), getattr(block, f"bn{name}")) for name in names]
        stream.append(([], inner[0][0]))
        found += [[([pair], None), ([], reader)] for pair, (reader, _) in zip(inner, [*inner[1:], last])]
        if block.downsample is None:
            stream.append(([last], None))
        else:
            stream.append(([], block.downsample[0]))
            stream = [([last, tuple(block.downsample)], None)]
            found.append(stream)
    stream.append(([], net.fc))
    return found


def _merge(space: Space) -> None:
    """Let nobody read the channels that nothing is written to, but one channel of ones, and only if need be."""
    writers = [conv for pairs, _ in space for conv, _ in pairs]
    constant = ~torch.stack([conv.weight.flatten(1).any(1) for conv in writers]).any(0)
    if not constant.any():
        return
    value, ones = torch.zeros_like(writers[0].bias), int(constant.nonzero()[0])
    for pairs, reader in space:
        if reader is None:
            value = sum((conv.bias for conv, _ in pairs), value).relu()
            continue
        added = torch.einsum("oc...,c->o...", reader.weight[:, constant], value[constant])
        reader.weight[:, constant] = 0
        if isinstance(reader, nn.Linear) or reader.padding == (0, 0):
            reader.bias += added.flatten(1).sum(1) if added.ndim > 1 else added
        else:
            reader.weight[:, ones] = added
    for conv in writers:
        conv.bias[constant] = 0
    writers[0].bias[ones] = 1


def _cut(space: Space) -> None:
    """Remove the channels that nobody reads."""
    keep = torch.stack([reader.weight.transpose(0, 1).flatten(1).any(1) for _, reader in space if reader]).any(0)
    if keep.all():
        return
    if not keep.any():  # a layer of no channels is no layer
        keep[0] = True
        for conv in (conv for pairs, _ in space for conv, _ in pairs):
            conv.weight.zero_()
    count = int(keep.sum())
    for pairs, reader in space:
        for conv, norm in pairs:
            for module in (conv, norm):
                for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                    if tensor.ndim:
                        _put(module, name, tensor[keep])
            conv.out_channels = count
            if isinstance(norm, nn.BatchNorm2d):
                norm.num_features = count
        if reader is not None:
            _put(reader, "weight", reader.weight[:, keep])
            setattr(reader, "in_features" if isinstance(reader, nn.Linear) else "in_channels", count)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, nn.Parameter(tensor) if name in module._parameters else tensor)
