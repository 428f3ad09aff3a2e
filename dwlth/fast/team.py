"""The processes that train one network together, and how they share a batch.

Without torchrun this process is alone, and nothing here does anything. `dwlth.running.distributed` puts a team of
several in the place of `current`.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from dwlth.errors import check

Value = TypeVar("Value")


class Team:
    """One process alone; and what a team of several must be able to do. All its processes call the same methods in the
    same order."""

    rank = 0
    """The number of this process: from 0, which writes the files, to `size - 1`."""
    size = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes; every process gets the same bits."""

    def says(self, yes: bool) -> bool:
        """What the first process says."""
        return yes

    def same(self, make: Callable[[], Value]) -> Value:
        """What `make()` gives in the first process, the only one that calls it."""
        return make()

    def share(self, count: int) -> range:
        """Which of so many things, in order, this process does."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


current = Team()


def cut(count: int, parts: int) -> list[range]:
    """A batch of so many images in parts as equal as they can be. With fewer images than parts, some are empty,
    but not the first."""
    ends = [-(-count * part // parts) for part in range(parts + 1)]
    return [range(*both) for both in zip(ends, ends[1:])]


def own(count: int, parts: int) -> list[range]:
    """Those parts of a batch of so many images that this process does.

    Raises:
        DwlthError: for parts that the processes cannot share.
    """
    check("recipe: parts", parts, parts % current.size == 0, f"a multiple of {current.size}, the number of processes")
    mine = current.share(parts)
    return cut(count, parts)[mine.start : mine.stop]


@torch.no_grad()
def exchange(net: nn.Module, sums: Tensor) -> None:
    """Let all processes have the sum of their gradients and of `sums`, and the running statistics of the first one, who
    does the first part: in one exchange, once all parts are done.

    DistributedDataParallel would take more lines: it wants to wrap each forward pass, to be told of every backward pass
    but the last that it is not the last, and exchanges neither the statistics nor the sums with the gradients. It would
    begin while the last part is still computed; a step on part of a large batch takes much longer than the exchange.
    """
    if current.size == 1:
        return
    statistics = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    for buffer in statistics if current.rank else ():
        buffer.zero_()
    for weight in net.parameters():  # None where the batch had no image for this process
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    current.sum_([*(weight.grad for weight in net.parameters()), *statistics, sums])
