"""The grid: which of the runs that a preset asks for are done, and doing the rest."""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from dwlth import files, results
from dwlth.data import fetch
from dwlth.errors import DwlthError, NotYet
from dwlth.evaluation import available_precision
from dwlth.outside.autoattack import under_autoattack
from dwlth.presets import Preset
from dwlth.recipe import Given
from dwlth.results import Folder
from dwlth.running import distributed
from dwlth.running.cost import duration, estimate, passes
from dwlth.running.machine import processes, threads, torch_threads
from dwlth.runs import STAGES, Run
from dwlth.sources import pretrain
from dwlth.tickets import imp_round
from dwlth.training import OutOfTime, read_checkpoint
from dwlth.transfer import transfer

DO = {"pretrain": pretrain, "imp": imp_round, "transfer": transfer, "autoattack": under_autoattack}
"""What does the runs of each stage."""


def left(folder: Folder, runs: Iterable[Run], files: bool = False) -> list[Run]:
    """Those of `runs` (a selection of the preset's grid) that are not done, with the runs they need whose files are
    missing, each after those it needs. With `files` also those that are done but whose source, ticket or network is
    not on disk. A ticket that was brought from elsewhere counts as done."""
    done, runs, preset = folder.done(), list(runs), folder.preset
    wanted: set[Run] = set()
    queue = [run for run in runs if preset.run_id(run) not in done or (files and not folder.has(run))]
    queue = [run for run in queue if not folder.imported(run)]
    while queue:
        run = queue.pop()
        if run not in wanted:
            wanted.add(run)
            queue += [need for need in run.needs() if not folder.has(need)]
    return [run for run in dict.fromkeys([*preset.grid(), *runs]) if run in wanted]


def complete(
    folder: Folder,
    runs: Iterable[Run],
    *,
    files: bool = False,
    minutes: float = 10.0,
    workers: int = 1,
    on_epoch: Callable[[Run, dict | None], bool | None] | None = None,
    by_hand: str = "",
    command: str = "dwlth.running.grid.complete",
) -> pd.DataFrame:
    """Do what is left of `runs`, with a progress bar, and return the table; at once where nothing is left.

    Args:
        files: have the files of these runs on disk too: sources, tickets and the networks of transfers.
        minutes: at most so much work is begun, by the estimate for this machine.
        workers: processes; one does the work here.
        on_epoch: called with the run under way and each new row of its history, before the first with None; returns
            True to stop there. One worker only.
        by_hand: the command that does these runs, for the error; by default that of the preset's name.
        command: for the records.

    Raises:
        NotYet: where the estimate is higher; it says the cost, and the command for a larger machine.
    """
    if files:
        folder = replace(folder, preset=replace(folder.preset, keep_networks=True))
    todo = left(folder, runs, files)
    if todo:
        seconds = sum(estimate(folder, todo, threads(workers, folder.preset.together > 1)).values()) / workers
        if seconds > 60 * minutes:
            raise NotYet(
                f"{len(todo)} runs are left, about {duration(seconds)} here ({folder.device}, {workers} at a time); "
                f"more than {minutes:g} minutes are not begun here. "
                f"`{by_hand or f'python -m dwlth run {folder.preset.name}'}` does them, and can be stopped and resumed"
            )
        ends = run_all(folder, todo, workers, command=command, on_epoch=on_epoch)
        for failed in (run for run, end in ends.items() if end == "failed"):
            warnings.warn(f"failed: {failed}: see {folder.record(failed)}", stacklevel=2)
    return folder.collect()


def plan(folder: Folder, runs: list[Run], workers: int = 1) -> str:
    """Of each stage, how many of `runs` are done and left, the time that those that are done took, and what is left
    costs on this machine; the published datasets need not be on disk."""
    todo = left(folder, runs)
    spent, to_come = folder.seconds(), estimate(folder, todo, threads(workers, folder.preset.together > 1))
    lines = {}
    for stage in (stage for stage in STAGES if any(run.stage == stage for run in runs)):
        done = [run for run in runs if run.stage == stage and run not in to_come]
        ahead = [seconds / workers for run, seconds in to_come.items() if run.stage == stage]
        took = sum(spent.get(folder.preset.run_id(run), 0.0) for run in done)
        lines[stage] = {"done": len(done), "left": len(ahead), "took": duration(took), "to come": duration(sum(ahead))}
    cost = f"about {duration(sum(to_come.values()) / workers)} left on this machine"
    return f"{pd.DataFrame.from_dict(lines, orient='index').to_string()}\n{cost} ({folder.device}, {workers} at a time)"


def for_autoattack(preset: Preset, found: pd.DataFrame) -> list[Run]:
    """AutoAttack on the adversarially transferred dense network and sparsest double-win ticket of each row of a
    verdict (`dwlth.verdict.verdict`) with all the data, for each seed."""
    return [
        Run("autoattack", row.source, seed, round_, "imp", row.downstream, "adversarial", 1.0, preset.source_of(seed))
        for row in found[found["fraction"] == 1].itertuples()
        for round_ in sorted({0, int(row.round)})
        for seed in range(preset.seeds_at.get(1.0, preset.seeds))
    ]


def run_all(
    folder: Folder,
    runs: list[Run],
    workers: int = 1,
    deadline: float = math.inf,
    command: str = "",
    on_epoch: Callable[[Run, dict | None], bool | None] | None = None,
) -> dict[Run, str]:
    """Do `runs` (as `left` gives them) on this machine, in so many processes that share its cores; returns their
    statuses."""
    distributed.check(folder.preset, runs)
    folder.write_preset()
    for name in {run.downstream or folder.preset.upstream for run in runs}:
        fetch(name, folder.data)  # before several processes do it at once
    work = partial(execute, folder, deadline, command, workers == 1, on_epoch=on_epoch)
    each = threads(workers, folder.preset.together > 1)
    with ExitStack() as stack:
        executor = None
        if runs and workers > 1:
            executor = stack.enter_context(processes(workers, each))
        else:
            stack.enter_context(torch_threads(each))
        weight = partial(passes, folder)
        return run_grid(units(folder.preset, runs), work, executor, workers, deadline, weight=weight)


def units(preset: Preset, runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """The runs in what is done at a time: those that can train side by side, and each other run for itself."""
    found: list[list[Run]] = []
    open_: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.stage, repr(preset.recipe(run)), run.downstream, run.fraction, run.stage == "imp" and run.round)
        unit = open_.get(key) if preset.stacks(run) and run.stage != "autoattack" else None
        if unit is None or len(unit) == preset.together:
            found.append(unit := [])
            open_[key] = unit
        unit.append(run)
    return [tuple(unit) for unit in found]


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
    for stale in (path for run in unit for path in checkpoint.parent.glob(f"{preset.run_id(run)}-*.pt")):
        if stale != checkpoint:
            stale.unlink(missing_ok=True)  # of these runs in other company, of which some are done since
    began = time.time() - _earlier_seconds(checkpoint)
    training = {"checkpoint": checkpoint, "deadline": deadline, "progress": progress, "stacked": preset.stacks(first)}
    if on_epoch:
        training["on_epoch"] = lambda row: on_epoch(first, row)
    try:
        found = distributed.together(DO[first.stage], folder, unit, **training)
    except OutOfTime:
        return ["stopped"] * len(unit)
    except DwlthError as error:  # bad input of this unit: the others go on
        found = [{"error": str(error), "history": [], "refused": True}] * len(unit)
    seconds = (time.time() - began) / len(unit)
    ends = ["failed" if "error" in result else "ok" for result in found]
    for run, status, result in zip(unit, ends, map(dict, found)):
        kind = "refused" if result.pop("refused", False) else status  # bad input says nothing of a ticket
        record = {"id": preset.run_id(run), "status": kind, "config": preset.config(run), "result": result}
        recipe = preset.recipe(run)
        precision = "float32" if isinstance(recipe, Given) else available_precision(recipe.precision, folder.device)
        record["provenance"] = results.provenance(folder.device, precision, len(unit), seconds, command)
        files.write_json(folder.record(run), record)
    if kind != "refused":  # what is trained so far is of use once the input is right
        checkpoint.unlink(missing_ok=True)
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
    slots: int = 1,
    deadline: float = math.inf,
    progress: bool = True,
    weight: Callable[[Run], int] = lambda run: 1,
) -> dict[Run, str]:
    """Do units of runs (each listed after those it needs) with `work`, which returns the status of each run; returns
    the statuses.

    With an executor of `concurrent.futures`, up to `slots` units are under way at a time, the earliest in the list
    first; without one, they are done here, one by one. The bar counts runs by their `weight`. A run is `blocked` if
    one it needs did not end `ok`.
    """
    listed = {run for unit in units for run in unit}
    status: dict[Run, str] = {}
    pending, under_way = list(units), {}
    form = "{l_bar}{bar}| {postfix} [{elapsed}<{remaining}]"
    with tqdm(total=sum(map(weight, listed)), bar_format=form, disable=not progress) as bar:

        def ended(unit: tuple[Run, ...], ends: list[str]) -> None:
            status.update(zip(unit, ends))
            bar.set_postfix_str(f"{len(status)} of {len(listed)} runs", refresh=False)
            bar.update(sum(map(weight, unit)))

        while pending or under_way:
            for unit in list(pending):
                needs = {run: [status.get(need) for need in run.needs() if need in listed] for run in unit}
                ends = [end for run in unit for end in needs[run]]
                if blocked := [run for run in unit if {"failed", "blocked"} & set(needs[run])]:
                    status |= dict.fromkeys(blocked, "blocked")
                    if rest := tuple(run for run in unit if run not in blocked):
                        pending.append(rest)
                elif "stopped" in ends or time.time() > deadline:
                    status |= dict.fromkeys(unit, "stopped")
                elif len(under_way) < slots and all(ends):
                    more = f" and {len(unit) - 1} more" if len(unit) > 1 else ""
                    bar.set_description(f"{unit[0]}{more}")
                    if executor is None:
                        ended(unit, work(unit))
                    else:
                        under_way[executor.submit(work, unit)] = unit
                else:
                    continue
                pending.remove(unit)
            for future in wait(under_way, return_when=FIRST_COMPLETED).done if under_way else ():
                ended(under_way.pop(future), future.result())
    return status
