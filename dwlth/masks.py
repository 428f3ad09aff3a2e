"""Masks: which convolution weights of a network survive."""

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dwlth.errors import DwlthError


class Mask(dict[str, Tensor]):
    """For each convolution weight by its name in the network, a bool tensor of its shape: True where it survives.

    Only `Conv2d` weights are ever pruned, all of them (stem and downsample convolutions too), never the head, the
    biases or batch norm: the paper's choice.

    Raises:
        DwlthError: for an empty mask or a tensor that is not bool.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__(tensors)
        if not self:
            raise DwlthError("a mask needs at least one convolution")
        for name, tensor in self.items():
            if tensor.dtype != torch.bool:
                raise DwlthError(f"mask of {name} is {tensor.dtype}, not bool")

    @property
    def kept(self) -> int:
        """Number of surviving weights."""
        return sum(int(tensor.sum()) for tensor in self.values())

    @property
    def total(self) -> int:
        """Number of weights the mask speaks about."""
        return sum(tensor.numel() for tensor in self.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are pruned, in [0, 1]."""
        return 1 - self.kept / self.total

    def apply_(self, net: nn.Module) -> Callable[[], None]:
        """Zero the pruned weights of `net` in place; returns a function that does so again, cheaply.

        Raises:
            DwlthError: where the convolutions of `net` differ from the mask's in name or shape.
        """
        weights = prunable(net)
        if weights.keys() != self.keys():
            odd = min(weights.keys() ^ self.keys())
            raise DwlthError(f"mask and network differ: {odd} is in one and not in the other")
        for name, weight in weights.items():
            if weight.shape != self[name].shape:
                raise DwlthError(
                    f"mask and network differ at {name}: the mask has {list(self[name].shape)}, "
                    f"the network {list(weight.shape)}"
                )
        tensors = list(weights.values())
        factors = [torch.empty_like(weight).copy_(self[name]) for name, weight in weights.items()]

        def again() -> None:
            with torch.no_grad():
                torch._foreach_mul_(tensors, factors)

        again()
        return again


def prunable(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that masks speak about: those of every `Conv2d`, by name, in the network's order."""
    return {f"{name}.weight": m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}


def dense(net: nn.Module) -> Mask:
    """The mask that keeps every convolution weight."""
    return Mask({name: torch.ones_like(w, dtype=torch.bool, device="cpu") for name, w in prunable(net).items()})


def prune(mask: Mask, scores: Mapping[str, Tensor], rate: float) -> Mask:
    """Prune the fraction `rate` of the surviving weights, those with the lowest scores over all layers together.

    As in `torch.nn.utils.prune.global_unstructured`, `round(rate * surviving)` weights go. Scores by name, in the
    shapes of the mask: absolute weights give global magnitude pruning, random numbers random pruning.

    Raises:
        DwlthError: for a rate outside [0, 1), or a score that is NaN.
    """
    if not 0 <= rate < 1:
        raise DwlthError(f"pruning rate is {rate}: give a fraction of at least 0 and below 1")
    flat_mask = torch.cat([tensor.flatten() for tensor in mask.values()])
    flat = torch.cat([scores[name].detach().flatten().cpu() for name in mask])[flat_mask]
    if flat.isnan().any():
        raise DwlthError("cannot prune: some weights are NaN")
    survivors = torch.ones_like(flat, dtype=torch.bool)
    survivors[flat.topk(round(rate * len(flat)), largest=False).indices] = False
    flat_mask = flat_mask.masked_scatter(flat_mask, survivors)
    pieces = flat_mask.split([tensor.numel() for tensor in mask.values()])
    return Mask({name: piece.view(mask[name].shape) for name, piece in zip(mask, pieces)})


def magnitude(net: nn.Module) -> dict[str, Tensor]:
    """Scores for `prune`: the absolute weights."""
    return {name: weight.detach().abs() for name, weight in prunable(net).items()}


def random(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores for `prune`: uniform random numbers; the masks of one seed are nested."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in prunable(net).items()}


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that name the convolution weights of a network (`prunable(net)`, or a part of a state dict in the
    same order): a ticket belongs to one set of weights."""
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name}{list(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
