"""Several small networks as one with grouped convolutions, which takes little more time than one of them."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dwlth.errors import DwlthError
from dwlth.masks import Mask
from dwlth.models import INITIALISING, Classifier


def side_by_side(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the members of a `Stack` (state dicts, or masks) as those of the stack: joined along their first
    axis; scalars (counters of batches) are the first member's."""
    return {
        name: torch.cat([state[name] for state in states]) if first.ndim else first for name, first in states[0].items()
    }


class Stack(Classifier):
    """Several classifiers of one architecture, each with its own normalisation, as one network with grouped
    convolutions: small ones side by side take little more time than one, whose cost is that of starting operations, not
    of the arithmetic.

    A batch holds each image once per member: row n * members + m of the images (float [N * members, C, H, W]), and of
    the logits (float [N * members, classes]), is image n for member m. Nothing flows from one member to another, and on
    a CPU a member's numbers are the same bits whichever others, one at least, stand beside it. (With AVX2 alone, the
    last bits depend on how many there are: oneDNN takes other kernels.)
    """

    def __init__(self, members: Sequence[Classifier]):
        first = members[0]
        super().__init__(copy.deepcopy(first.net), first.mean.flatten().tolist(), first.std.flatten().tolist())
        self.members = len(members)
        with INITIALISING, torch.random.fork_rng(devices=[]):  # new layers draw, though their weights are replaced
            for name, module in list(self.net.named_modules()):
                if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                    self.net.set_submodule(name, _grouped(module, self.members))
        self.net.load_state_dict(side_by_side([member.net.state_dict() for member in members]))
        self.mean = torch.cat([member.mean for member in members])  # [members, C, 1, 1]
        self.std = torch.cat([member.std for member in members])
        self.to(first.mean.device, memory_format=torch.channels_last)
        self._like = tuple(map(copy.deepcopy, members))  # in a tuple, so that they are no part of this network

    def forward(self, x: Tensor) -> Tensor:
        x = (x.unflatten(0, (-1, self.members)) - self.mean) / self.std
        return self.net(x.flatten(1, 2)).unflatten(1, (self.members, -1)).flatten(0, 1)

    def alone(self) -> list[Classifier]:
        members = [copy.deepcopy(like) for like in self._like]
        state = self.net.state_dict()
        parts = {name: t.chunk(self.members) if t.ndim else [t] * self.members for name, t in state.items()}
        for member, one in enumerate(members):
            one.net.load_state_dict({name: part[member] for name, part in parts.items()})
        return members


class _GroupedLinear(nn.Linear):
    """Linear layers side by side: from [N, groups * inputs] to [N, groups * outputs]."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__(inputs, outputs * groups)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        # as a convolution, whose bits, unlike those of batched products, do not depend on a group's place
        return F.conv2d(x[..., None, None], self.weight[..., None, None], self.bias, groups=self.groups).flatten(1)


def _grouped(module: nn.Module, groups: int) -> nn.Module:
    """A layer that does what so many of `module` do side by side."""
    if isinstance(module, nn.Linear):
        return _GroupedLinear(module.in_features, module.out_features, groups)
    if isinstance(module, nn.BatchNorm2d):
        if not (module.affine and module.track_running_stats and module.momentum is not None):
            raise DwlthError(f"cannot stack {module}: only batch norm with weights, running statistics and a momentum")
        return nn.BatchNorm2d(module.num_features * groups, module.eps, module.momentum)
    if module.padding_mode != "zeros":
        raise DwlthError(f"cannot stack {module}: its padding mode is {module.padding_mode!r}, not 'zeros'")
    return nn.Conv2d(
        module.in_channels * groups,
        module.out_channels * groups,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        groups=module.groups * groups,
        bias=module.bias is not None,
    )


def join(models: Sequence[Classifier], masks: Sequence[Mask] | None, *others: Sequence) -> tuple:
    """Networks and their masks as one of each, and `others`, of which each network has one. A lone network stands
    beside its double, so that its bits are those it has in any company."""
    twice = 2 if len(models) == 1 else 1
    mask = Mask(side_by_side([*masks] * twice)) if masks else None
    return Stack([*models] * twice), mask, *([*other] * twice for other in others)
