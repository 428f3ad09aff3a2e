"""Controls: other ways to a ticket, which say what IMP's mask brings and what the weights bring.

They are pruning methods like any other, entries of `dwlth.masks.METHODS`:

- `shuffled`: IMP's mask, in each layer in random order. That is also a random mask with IMP's number of weights in each
  layer: both are drawn evenly from the same masks, so there is one method for the two.
- `snip`, `synflow`: scores of pruning before training, here at the pre-trained weights.
- `reinit`: IMP's mask on random weights.
- `narrow`: the first channels of each layer, on random weights: a dense network of as few weights as IMP's ticket has.
  Nothing else of the ticket counts, so sources whose tickets have equally many weights share one network for a seed.
- `crossed@SOURCE`: the mask that IMP found with the weights of another source.
- `trained@SOURCE`: IMP on the own weights, with the training of another source in its rounds.

`oneshot` and `random`, of `dwlth.masks`, are two more.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dwlth.errors import DwlthError
from dwlth.masks import METHODS, Mask, Method, prunable

BATCH = 256
"""Training images that a method sees which takes a batch (our choice; SNIP's authors: 100 to 128, 10 of each class)."""


def shuffled(net: nn.Module, seed: int, mask: Mask) -> Mask:
    """The mask with each layer's entries in random order."""
    draws = torch.Generator().manual_seed(seed)
    return Mask(
        {name: t.flatten()[torch.randperm(t.numel(), generator=draws)].view(t.shape) for name, t in mask.items()}
    )


def snip(net: nn.Module, seed: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """|weight * gradient of the loss| (Lee et al., 2019: what the loss changes by, to first order, where the weight is
    set to 0), in evaluation mode.

    Args:
        images, labels: float [N, C, H, W] as `net` takes them, and int64 [N].
    """
    weights = prunable(net)
    loss = F.cross_entropy(net.eval()(images), labels)
    return _times_gradient(weights, loss)


def synflow(net: nn.Module, seed: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """|weight * gradient of the sum of outputs|, of the network with the absolute values of all its parameters, for an
    image of ones (Tanaka et al., 2020). Of the images only their shape is looked at. Their schedule has 100 steps; ours
    is IMP's, each of which prunes a fifth.
    """
    positive = copy.deepcopy(net).double().eval()  # products over many layers
    with torch.no_grad():
        for tensor in positive.state_dict().values():
            tensor.abs_()
    weights = prunable(positive)
    flow = positive(torch.ones_like(images[:1], dtype=torch.float64)).sum()
    scores = _times_gradient(weights, flow)
    largest = max(score.max() for score in scores.values())  # so that float32 can hold them
    return {name: score / largest for name, score in scores.items()}


def _times_gradient(weights: dict[str, nn.Parameter], value: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(value, list(weights.values()))
    return {name: weight.detach() * gradient for (name, weight), gradient in zip(weights.items(), gradients)}


def same(net: nn.Module, seed: int, mask: Mask) -> Mask:
    """The mask itself."""
    return mask


def narrow(net: nn.Module, seed: int, mask: Mask) -> Mask:
    """The first channels of each layer, the same share of all layers: the largest that leaves no more weights than the
    mask. Nothing reads the other channels but the head, and it only adds a constant of each, as a bias does."""
    shapes = {name: list(tensor.shape) for name, tensor in mask.items()}
    (_, pixels, *_), widest = next(iter(shapes.values())), max(shape[0] for shape in shapes.values())
    for width in range(widest, 0, -1):
        share = lambda channels, width=width: max(1, round(channels * width / widest))
        left = {name: (share(outputs), share(inputs)) for name, (outputs, inputs, *_) in shapes.items()}
        left[next(iter(left))] = left[next(iter(left))][0], pixels
        kept = sum(outputs * inputs * math.prod(shapes[name][2:]) for name, (outputs, inputs) in left.items())
        if kept <= mask.kept:
            bits = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
            for name, (outputs, inputs) in left.items():
                bits[name][:outputs, :inputs] = True
            return Mask(bits)
    raise DwlthError(f"narrow: one channel in each layer has {kept} weights, and the ticket only {mask.kept}")


METHODS |= {
    "shuffled": Method("IMP's, shuffled", shuffled, "mask"),
    "snip": Method("SNIP", snip, "batch"),
    "synflow": Method("SynFlow", synflow, "batch", again=True),
    "reinit": Method("IMP's, random weights", same, "mask", fresh=True),
    "narrow": Method("Dense, as few weights", narrow, "mask", fresh=True),
    "crossed": Method("IMP's of another source", same, "mask", other=True),
    "trained": Method("IMP with other training", None, other=True),
}


def method(name: str) -> Method:
    """The method of this name, which may go on with @ and a source.

    Raises:
        DwlthError: for one that does not exist.
    """
    first, at, source = name.partition("@")
    if first not in METHODS or (at and not (source and METHODS[first].other)):
        names = [f"{known}[@SOURCE]" if of.other else known for known, of in METHODS.items()]
        raise DwlthError(f"unknown method {name!r}: choose from {', '.join(names)}")
    return METHODS[first]


def other(name: str) -> str:
    """The source that the name of a method goes on with, or ""."""
    return name.partition("@")[2]
