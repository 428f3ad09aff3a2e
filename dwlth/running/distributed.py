"""Several processes that train one network: `torchrun --standalone --nproc-per-node 8 -m dwlth run ...`.

torchrun starts the same command in every process. The first one (`RANK` 0) does all that one process alone would do;
the others help it with the runs, training and testing, in which all call the same functions with the same arguments
(`together`), and do their part wherever the code asks `dwlth.fast.team.current`. They write no files. All must see the
same folders of results and data.
"""

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from dwlth import files
from dwlth.errors import DwlthError
from dwlth.fast import team
from dwlth.presets import Preset
from dwlth.recipe import Recipe
from dwlth.running import machine
from dwlth.runs import Run
from dwlth.training import OutOfTime

PATIENCE = timedelta(hours=1)
"""So long a process waits for the others before it gives up (our choice: the first one may be downloading)."""


class Told(DwlthError):
    """A `DwlthError` of one process or more, which all processes raise."""


class Broken(RuntimeError):
    """Another process met an error that is not bad input: this is the end of all."""


class Processes(team.Team):
    """Those that torchrun started, or a group of them that holds the first one."""

    def __init__(self, ranks: Sequence[int] | None = None):
        self.words = dist.new_group(ranks, PATIENCE, "gloo")
        self.tensors = dist.new_group(ranks, PATIENCE)
        self.rank, self.size = dist.get_rank(self.words), dist.get_world_size(self.words)
        self.busy = False

    @torch.no_grad()
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self.agree()
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=self.tensors if flat.is_cuda else self.words)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def says(self, yes: bool) -> bool:
        return self.agree(yes=yes)

    def same(self, make: Callable[[], Any]) -> Any:
        made = None if self.rank else make()
        self.agree()
        return self.tell(made)

    def tell(self, value: Any = None) -> Any:
        """The value that the first process gives."""
        said = [value]
        dist.broadcast_object_list(said, 0, self.words, torch.device("cpu"))
        return said[0]

    def agree(self, error: Exception | None = None, yes: bool = False) -> bool:
        """Let all processes raise an error that one of them has met, or else have the first one's `yes`. All that they
        do together begins with this, and so does the way out of `attempt`: wherever one fails, the others wait here, or
        soon will."""
        heard = torch.tensor([error is not None, yes and self.rank == 0], dtype=torch.int32)
        dist.all_reduce(heard, group=self.words)
        failed, yes = map(bool, heard)
        if not failed:
            return yes
        said = [None] * self.size
        mine = None if error is None else (isinstance(error, DwlthError), str(error) or type(error).__name__)
        dist.all_gather_object(said, mine, self.words)
        if error is not None and not isinstance(error, DwlthError):
            raise error
        first = next(rank for rank, found in enumerate(said) if found)
        where = "" if all(found == said[first] for found in said) else f"process {first}: "
        message = where + said[first][1]
        raise Told(message) if all(found[0] for found in said if found) else Broken(message)

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, unless it fails in any process."""
        self.busy = True
        try:
            result = work()
            self.agree()
        except (OutOfTime, Told):  # in all processes
            self.busy = False
            raise
        except Broken:
            raise
        except Exception as error:
            try:
                self.agree(error)
            except Told:
                self.busy = False
                raise
        self.busy = False
        return result


def together(do: Callable[..., Any], *args: Any, **training: Any) -> Any:
    """`do(*args, **training)` by all processes, which the first one alone calls; it gets the result."""
    work = partial(do, *args, **training)
    if team.current.size == 1:
        return work()
    team.current.tell(partial(work, progress=False, on_epoch=None))  # the first one's bar, and its word
    return team.current.attempt(work)


@contextmanager
def several(helpers: bool = True) -> Iterator[bool]:
    """Where torchrun started this process: be one of its team meanwhile. Yields whether this is the first one, or a
    process on its own; in the others, only after the first one has left the block, as they help it until then; or at
    once, where it wants no `helpers`.

    Raises:
        DwlthError: where a machine has more processes than GPUs.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:  # MPI and SLURM may set the size alone
        yield True
        return
    if not helpers:
        yield os.environ["RANK"] == "0"
        return
    if gpus := torch.cuda.device_count():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if here > gpus:
            raise DwlthError(f"torchrun: {here} processes here, but {gpus} GPUs: give --nproc-per-node {gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE)
    team.current = Processes()
    try:
        if team.current.rank:
            _help()
        yield team.current.rank == 0
    finally:
        if team.current.rank == 0 and not team.current.busy:
            team.current.tell(None)
        team.current = team.Team()
        dist.destroy_process_group()


def _help() -> None:
    """Work with the first process until it says that all is done."""
    for number in machine.signals("SIGINT", "SIGTERM", "SIGUSR1"):  # the first process says what they mean
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # it gives the same ones
    files.disk.writing = False
    while work := team.current.tell():
        with suppress(OutOfTime, Told):
            team.current.attempt(work)


def check(preset: Preset, runs: Iterable[Run]) -> None:
    """Raise `DwlthError` where a run's batches have parts that these processes cannot share."""
    for run in runs:
        recipe = preset.recipe(run)
        if run.stage != "autoattack" and isinstance(recipe, Recipe) and recipe.parts % team.current.size:
            raise DwlthError(
                f"{run}: its recipe has parts={recipe.parts}, which {team.current.size} processes cannot share: start "
                f"fewer, or choose runs by --stage, or set parts"
            )
