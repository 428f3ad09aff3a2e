"""Masks: which convolution weights of a network survive."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
        return sum(int(tensor.count_nonzero()) for tensor in self.values())

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
            DwlthError: as of `check`.
        """
        self.check(prunable(net))
        weights = prunable(net)
        tensors = list(weights.values())
        factors = [torch.empty_like(weight).copy_(self[name]) for name, weight in weights.items()]

        def again() -> None:
            with torch.no_grad():
                torch._foreach_mul_(tensors, factors)

        again()
        return again

    def check(self, found: Mapping[str, Tensor], what: str = "network") -> None:
        """Raise `DwlthError` where tensors, of `prunable(net)` say, differ from the mask's in name or shape."""
        if found.keys() != self.keys():
            odd = min(found.keys() ^ self.keys())
            raise DwlthError(f"mask and {what} differ: {odd} is in one and not in the other")
        for name, tensor in found.items():
            if tensor.shape != self[name].shape:
                raise DwlthError(f"mask and {what} differ at {name}: {list(self[name].shape)} and {list(tensor.shape)}")


def prunable(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that masks speak about: those of every `Conv2d`, by name, in the network's order."""
    return {f"{name}.weight": m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}


def dense(net: nn.Module) -> Mask:
    """The mask that keeps every convolution weight."""
    return Mask({name: torch.ones_like(w, dtype=torch.bool, device="cpu") for name, w in prunable(net).items()})


def prune(mask: Mask, scores: Mapping[str, Tensor], rate: float) -> Mask:
    """Prune the fraction `rate` of the surviving weights, those with the lowest absolute scores over all layers
    together.

    As in `torch.nn.utils.prune.global_unstructured`, `round(rate * surviving)` weights go; where equal scores leave a
    choice, the same ones. Scores (float) by name, in the shapes of the mask: the weights themselves give global
    magnitude pruning, random numbers random pruning.

    Raises:
        DwlthError: for a rate outside [0, 1), scores that are missing or of another shape, or a score that is NaN.
    """
    if not 0 <= rate < 1:
        raise DwlthError(f"pruning rate is {rate}: give a fraction of at least 0 and below 1")
    mask.check({name: scores[name] for name in mask.keys() & scores.keys()}, "scores")
    count = round(rate * mask.kept)
    if count == 0:
        return Mask(mask)
    lowest = _absolute(mask, scores).numpy()
    lowest.partition(count - 1)  # in place: the fastest selection on a CPU, and it takes no memory
    threshold = lowest[count - 1].item()
    tied = lowest[count:].min(initial=torch.inf) == threshold
    del lowest
    if not tied:
        return Mask({name: _above(scores[name], threshold) & tensor for name, tensor in mask.items()})
    # equal scores on both sides of the cut: which ones go, only torch's own call can tell
    flat_mask = torch.cat([tensor.flatten() for tensor in mask.values()])
    survivors = torch.ones(mask.kept, dtype=torch.bool)
    survivors[_absolute(mask, scores)[flat_mask].topk(count, largest=False, sorted=False).indices] = False
    pieces = flat_mask.masked_scatter_(flat_mask, survivors).split([tensor.numel() for tensor in mask.values()])
    return Mask({name: piece.view(mask[name].shape) for name, piece in zip(mask, pieces)})


def _above(score: Tensor, threshold: float) -> Tensor:
    return (score.detach().float().abs() > threshold).cpu().contiguous()


def _absolute(mask: Mask, scores: Mapping[str, Tensor]) -> Tensor:
    """The absolute scores of all layers in one line (float32, on the CPU), infinite where the mask has pruned."""
    flat = torch.empty(mask.total)
    for (name, tensor), piece in zip(mask.items(), flat.split([tensor.numel() for tensor in mask.values()])):
        piece.view(tensor.shape).copy_(scores[name].detach()).abs_().masked_fill_(~tensor, torch.inf)
        if piece.isnan().any():
            raise DwlthError(f"cannot prune: some weights of {name} are NaN")
    return flat


def magnitude(net: nn.Module) -> dict[str, Tensor]:
    """Scores for `prune`: the weights, of which it takes the absolute values."""
    return {name: weight.detach() for name, weight in prunable(net).items()}


def random(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores for `prune`: uniform random numbers; the masks of one seed are nested."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in prunable(net).items()}


@dataclass(frozen=True)
class Method:
    """A way to find tickets."""

    label: str
    """Its name in figures."""
    scores: Callable[..., Mapping[str, Tensor]] | None
    """From a pre-trained network, a seed and what `takes` names to scores for `prune`, which prunes step by step, so
    that the counts are those of IMP; a `Mask` that it returns is the ticket as it is. None for IMP itself, which trains
    between its rounds."""
    takes: str = ""
    """What `scores` takes beside network and seed: `batch`: images and labels of the pre-training task; `mask`: the
    ticket that IMP found; or nothing more."""
    again: bool = False
    """Scores are made anew for each step, of the network as it is pruned so far."""
    fresh: bool = False
    """The ticket is transferred on random weights, not on the pre-trained ones."""
    other: bool = False
    """Its name goes on with @ and another source of the preset; without it, it stands for all of them."""


METHODS = {
    "imp": Method("IMP", None),
    "oneshot": Method("One-shot", lambda net, seed: magnitude(net)),
    "random": Method("Random", random),
}
"""The pruning methods by name. A new one is one more entry."""


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that name weights, in their order: the convolution weights of a network (`prunable(net)`), to which
    a ticket belongs, or a whole state dict, with which a training begins."""
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name}{list(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
