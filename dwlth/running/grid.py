"""The grid: which of the runs that a preset asks for are done, and doing the rest."""

import hashlib
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from dwlth import files, results
from dwlth.controls.connectivity import connect
from dwlth.data import fetch
from dwlth.errors import DwlthError, NotYet
from dwlth.evaluation import available_precision
from dwlth.fast import team
from dwlth.outside.autoattack import under_autoattack
from dwlth.presets import Preset
from dwlth.recipe import Given, Recipe
from dwlth.results import Folder
from dwlth.running import cluster, distributed
from dwlth.running import progress as bars
from dwlth.running.cost import estimate, passes
from dwlth.running.machine import processes, threads, torch_threads
from dwlth.running.progress import duration
from dwlth.runs import STAGES, Run
from dwlth.sources import pretrain
from dwlth.tickets import imp_round
from dwlth.training import STOP, OutOfTime, read_checkpoint
from dwlth.transfer import transfer
from dwlth.verdict import with_most_data

DO = {"pretrain": pretrain, "imp": imp_round, "transfer": transfer, "autoattack": under_autoattack}
DO["connect"] = connect
"""What does the runs of each stage."""
TRIES = 3
"""How often a run is handed to Dask before it is `lost` (our choice); each time Dask tries it on up to 4 workers."""

REFRESH = 10.0
"""Seconds after which the bar shows the time anew, where no run has ended (our choice)."""


def left(folder: Folder, runs: Iterable[Run], files: bool = False) -> list[Run]:
    """Those of `runs` (of the preset's grid or others) that are not done, with the runs they need whose files are
    missing, each after those it needs. With `files` also those that are done but whose source, ticket or network is
    not on disk. A ticket that was brought from elsewhere counts as done."""
    done, runs, preset = folder.done(), list(runs), folder.preset
    wanted: set[Run] = set()
    queue = [run for run in runs if preset.run_id(run) not in done or (files and not folder.has(run))]
    brought = [run for run in queue if folder.imported(run)]
    read = [found_by for run in runs if (found_by := run.downstream and run.found_by)]
    chain = lambda run: (run.source, run.seed, run.method)

    def idle(run: Run) -> bool:
        """Whether a round leads to nothing but a ticket that was brought."""
        later = [other.round for other in brought if chain(other) == chain(run) and other.round >= run.round]
        needed = (of for of in read if chain(of) == chain(run) and run.round <= of.round)
        return bool(later and read) and all(of.round >= min(later) for of in needed)

    queue = [run for run in queue if run not in brought and not (run.stage == "imp" and idle(run))]
    while queue:
        run = queue.pop()
        if run not in wanted:
            wanted.add(run)
            queue += [need for need in run.needs() if not folder.has(need)]
    needs = sorted(wanted.difference(runs), key=lambda run: (STAGES.index(run.stage), run.round, str(run)))
    return [run for run in dict.fromkeys([*preset.grid(), *needs, *runs]) if run in wanted]


def complete(
    folder: Folder,
    runs: Iterable[Run],
    *,
    files: bool = False,
    minutes: float = 10.0,
    on_epoch: Callable[[Run, dict | None], bool | None] | None = None,
    by_hand: str = "",
    command: str = "dwlth.running.grid.complete",
) -> pd.DataFrame:
    """Do what is left of `runs`, with a progress bar, and return the table; at once where nothing is left.

    Args:
        files: have the files of these runs on disk too: sources, tickets and the networks of transfers.
        minutes: at most so much work is begun, by the estimate for this machine.
        on_epoch: called with the run under way and each new row of its history, before the first with None; returns
            True to stop there.
        by_hand: the command that does these runs, for the error; by default `dwlth.Experiment.have`.
        command: for the records.

    Raises:
        NotYet: where the estimate is higher; it says the cost, and the command for a larger machine.
    """
    if files:
        folder = replace(folder, preset=replace(folder.preset, keep_networks=True))
    todo = left(folder, runs, files)
    if todo:
        seconds = sum(estimate(folder, todo).values())
        if seconds > 60 * minutes:
            by_hand = by_hand or f"experiment.have(...{', files=True' if files else ''}, minutes=1e6)"
            raise NotYet(
                f"{len(todo)} runs are left, about {duration(seconds)} here ({folder.device}, 1 at a time); "
                f"more than {minutes:g} minutes are not begun here. `{by_hand}` does them, and can be stopped and "
                "resumed"
            )
        ends = run_all(folder, todo, command=command, on_epoch=on_epoch)
        for failed in (run for run, end in ends.items() if end == "failed"):
            warnings.warn(f"failed: {failed}: see {folder.record(failed)}", stacklevel=2)
    return folder.collect()


def plan(folder: Folder, runs: list[Run], workers: int = 1) -> str:
    """Of each stage, how many of `runs` are done and left, the time that those that are done took, and what is left
    costs on this machine; the published datasets need not be on disk. On a CPU, what takes more than two weeks is said
    to need a GPU."""
    todo = left(folder, runs)
    spent, to_come = folder.seconds(), estimate(folder, todo, workers)
    lines = {}
    for stage in (stage for stage in STAGES if any(run.stage == stage for run in runs)):
        done = [run for run in runs if run.stage == stage and run not in to_come]
        ahead = [seconds / workers for run, seconds in to_come.items() if run.stage == stage]
        took = sum(spent.get(folder.preset.run_id(run), 0.0) for run in done)
        lines[stage] = {"done": len(done), "left": len(ahead), "took": duration(took), "to come": duration(sum(ahead))}
    total = sum(to_come.values()) / workers
    cost = f"about {duration(total)} left on this machine ({folder.device}, {workers} at a time)"
    cost += "; it needs a GPU" if folder.device == "cpu" and total > 14 * 86_400 else ""
    return f"{pd.DataFrame.from_dict(lines, orient='index').to_string()}\n{cost}"


def for_autoattack(preset: Preset, found: pd.DataFrame) -> list[Run]:
    """AutoAttack on the adversarially transferred dense network and sparsest double-win ticket of each row of a
    verdict (`dwlth.verdict.verdict`), of those with fractions of the preset, with the most data, for each seed."""
    found = with_most_data(found[found["fraction"].isin(preset.fractions)])
    return [
        Run("autoattack", of.source, seed, k, "imp", of.downstream, "adversarial", of.fraction, preset.source_of(seed))
        for of in found.itertuples()
        for k in sorted({0, int(of.round)})
        for seed in range(preset.seeds_at.get(of.fraction, preset.seeds))
    ]


def for_connect(runs: Iterable[Run]) -> list[Run]:
    """The way between two trainings, for each transfer of IMP's among `runs`."""
    return [replace(run, stage="connect") for run in runs if run.stage == "transfer" and run.method == "imp"]


def run_all(
    folder: Folder,
    runs: list[Run],
    workers: int = 1,
    deadline: float = math.inf,
    command: str = "",
    on_epoch: Callable[[Run, dict | None], bool | None] | None = None,
    scheduler: str | None = None,
) -> dict[Run, str]:
    """Do `runs` (as `left` gives them) on this machine, in so many processes that share its cores, or on the workers of
    a Dask `scheduler` (`dwlth.running.cluster`); returns their statuses.

    Raises:
        DwlthError: before anything is trained, for a results folder that cannot be written, a dataset that is not
            there, or a batch that the processes of torchrun cannot share.
    """
    if scheduler and team.current.size > 1:
        raise DwlthError(f"--scheduler {scheduler}: not under torchrun, whose processes work on one run at a time")
    distributed.check(folder.preset, runs)
    if runs:
        files.check_writable(folder.path)
    folder.write_preset()
    files.sweep(folder.path)
    task = lambda run: run.downstream or folder.preset.upstream
    trained = {task(run) for run in runs if isinstance(folder.preset.recipe(run), Recipe)}
    for name in {task(run) for run in runs}:
        try:
            fetch(name, folder.data)  # before several processes do it at once
        except DwlthError:
            if name in trained:  # a given source is only measured on it
                raise
    shown = workers == 1 and not scheduler and not bars.in_log()
    work = partial(execute, folder, deadline, command, shown, on_epoch=on_epoch)
    each = threads(folder.preset.network, workers)
    with ExitStack() as stack:
        executor, lost = None, ()
        if runs and scheduler:
            folder = replace(folder, root=Path(folder.root).resolve(), data=Path(folder.data).resolve())
            executor, workers, lost, name = stack.enter_context(cluster.connect(scheduler, folder))
            fresh = frozenset(run for run in runs if not folder.record(run).exists())
            work = partial(execute, folder, deadline, command, False)
            work = partial(cluster.once, folder, name, fresh, each, work)
        elif runs and workers > 1:
            executor = stack.enter_context(processes(workers, each))
        else:
            stack.enter_context(torch_threads(each))
        weight = partial(passes, folder)
        return run_grid(folder.preset.units(runs), work, executor, workers, deadline, weight=weight, lost=lost)


def execute(
    folder: Folder,
    deadline: float,
    command: str,
    progress: bool,
    unit: tuple[Run, ...],
    on_epoch: Callable[[Run, dict | None], bool | None] | None = None,
) -> list[str]:
    """Do the runs of a unit and write their records; returns the status of each: `ok`, `failed` (the record says
    how) or `stopped` (at the deadline, or by `on_epoch`; the next call goes on from there)."""
    preset, first = folder.preset, unit[0]
    if on_epoch and on_epoch(first, None):
        return ["stopped"] * len(unit)
    company = "" if len(unit) == 1 else hashlib.sha256("".join(map(preset.run_id, unit)).encode()).hexdigest()[:12]
    checkpoint = folder.checkpoint(unit[-1], company)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic() - _earlier_seconds(checkpoint)
    training = {"checkpoint": checkpoint, "deadline": deadline, "progress": progress, "stacked": preset.stacks(first)}
    if on_epoch:
        training["on_epoch"] = lambda row: on_epoch(first, row)
    try:
        found = distributed.together(DO[first.stage], folder, unit, **training)
    except OutOfTime:
        return ["stopped"] * len(unit)
    except DwlthError as error:  # bad input: of one member of a stack, or of this run; the others go on
        if len(unit) > 1:
            alone = ((run,) for run in unit)
            return [end for run in alone for end in execute(folder, deadline, command, progress, run, on_epoch)]
        found = [{"error": str(error), "history": [], "refused": True}]
    seconds = (time.monotonic() - began) / len(unit)
    ends = ["failed" if "error" in result else "ok" for result in found]
    for run, status, result in zip(unit, ends, map(dict, found)):
        kind = "refused" if result.pop("refused", False) else status  # bad input says nothing of a ticket
        record = {"id": preset.run_id(run), "status": kind, "config": preset.config(run), "result": result}
        recipe = preset.recipe(run)
        precision = "float32" if isinstance(recipe, Given) else available_precision(recipe.precision, folder.device)
        record["provenance"] = results.provenance(folder.device, precision, len(unit), seconds, command)
        files.write_json(folder.record(run), record)
    if kind != "refused":  # what is trained so far is of use once the input is right
        for path in (path for run in unit for path in checkpoint.parent.glob(f"{preset.run_id(run)}*.pt")):
            path.unlink(missing_ok=True)  # also of these runs alone, or in other company
    return ends


def _earlier_seconds(checkpoint: Path) -> float:
    """Time that earlier, interrupted calls spent on a training; a checkpoint that cannot be read is set aside."""
    try:
        if not checkpoint.exists():
            return 0.0
        state = read_checkpoint(checkpoint)
        within = state.get("within", {}).get("seconds", 0.0)
        return within + sum(row["seconds"] for row in state["fits"][0]["history"])
    except DwlthError as error:
        files.set_aside(checkpoint, error)
        return 0.0


def run_grid(
    units: list[tuple[Run, ...]],
    work: Callable[[tuple[Run, ...]], list[str]],
    executor: Executor | None = None,
    slots: int | Callable[[], int] = 1,
    deadline: float = math.inf,
    progress: bool = True,
    weight: Callable[[Run], int] = lambda run: 1,
    lost: tuple[type[BaseException], ...] = (),
) -> dict[Run, str]:
    """Do units of runs (each listed after those it needs) with `work`, which returns the status of each run; returns
    the statuses.

    With an executor of `concurrent.futures`, up to `slots` units are under way at a time, the earliest in the list
    first (a function says how many now); without one, they are done here, one by one. The bar counts runs by their
    `weight`. A run is `blocked` if one it needs did not end `ok`. A unit whose worker was lost, as one of the
    exceptions `lost` says, is begun again, and is `lost` after so many `TRIES`.
    """
    listed = {run for unit in units for run in unit}
    status: dict[Run, str] = {}
    done: list[Run] = []
    pending, under_way = list(units), {}
    tries = Counter()
    form = "{l_bar}{bar}| {postfix} [{elapsed}<{remaining}]"
    with bars.bar(sum(map(weight, listed)), progress, bar_format=form) as bar:

        def ended(unit: tuple[Run, ...], ends: list[str]) -> None:
            status.update(zip(unit, ends))
            new = [run for run, end in zip(unit, ends) if end != "stopped"]
            done.extend(new)
            bar.set_postfix_str(f"{len(done)} of {len(listed)} runs", refresh=False)
            bar.update(sum(map(weight, new)))

        while pending or under_way:
            free = slots() if callable(slots) else slots
            for unit in list(pending):
                needs = {run: [status.get(need) for need in run.needs() if need in listed] for run in unit}
                ends = [end for run in unit for end in needs[run]]
                if blocked := [run for run in unit if {"failed", "blocked", "lost"} & set(needs[run])]:
                    status |= dict.fromkeys(blocked, "blocked")
                    if rest := tuple(run for run in unit if run not in blocked):
                        pending.append(rest)
                elif "stopped" in ends or time.time() > deadline or STOP.is_set():
                    status |= dict.fromkeys(unit, "stopped")
                elif len(under_way) < free and all(ends):
                    more = f" and {len(unit) - 1} more" if len(unit) > 1 else ""
                    bar.set_description(f"{unit[0]}{more}")
                    if executor is None:
                        ended(unit, work(unit))
                    else:
                        under_way[executor.submit(work, unit)] = unit
                else:
                    continue
                pending.remove(unit)
            if not under_way and not free:
                time.sleep(1)  # until a worker comes
            bar.refresh()  # a run may take an hour
            for future in wait(under_way, REFRESH, FIRST_COMPLETED).done if under_way else ():
                unit = under_way.pop(future)
                try:
                    ended(unit, future.result())
                except lost as error:
                    tries[unit] += 1
                    warnings.warn(f"the worker of {unit[0]} was lost ({type(error).__name__})", stacklevel=2)
                    if tries[unit] < TRIES:
                        pending.insert(0, unit)
                    else:
                        ended(unit, ["lost"] * len(unit))
    return status
