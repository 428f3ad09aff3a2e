"""The grid: which of the runs that a preset asks for are done, and doing the rest."""

import contextlib
import hashlib
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from dwlth import files, results
from dwlth.cost import duration, estimate
from dwlth.errors import DwlthError, NotYet
from dwlth.presets import STAGES, Given, Preset, Run
from dwlth.results import Folder
from dwlth.sources import pretrain
from dwlth.tickets import imp_round
from dwlth.training import OutOfTime, TrainingFailed, available_precision, read_checkpoint
from dwlth.transfer import transfer, under_autoattack

STAGE = {"pretrain": pretrain, "imp": imp_round}
"""What does one run of these stages; for the others see `execute`."""


def available(preset: Preset, run: Run, folder: Folder) -> bool:
    """Whether the file that later runs read from this one is on disk, and of this run. A file that cannot be read is
    named in a warning and set aside."""
    if run.stage == "autoattack":
        return True  # leaves no file but its record
    if run.stage == "transfer":
        path = folder.network(preset.run_id(run))
    else:
        path = folder.source(run) if run.stage == "pretrain" else folder.ticket(run, run.round + 1)
    if not path.exists():
        return False
    try:
        return files.read_about(path)["id"] == preset.run_id(run)
    except DwlthError as error:
        files.set_aside(path, error)
        return False


def left(preset: Preset, runs: Iterable[Run], folder: Folder, files: bool = False) -> list[Run]:
    """Those of `runs` (a selection of the preset's grid) that are not done, with the runs they need whose files are
    missing, each after those it needs. With `files` also those that are done but whose source, ticket or network is
    not on disk."""
    done, runs = folder.done(), list(runs)
    wanted: set[Run] = set()
    queue = [run for run in runs if preset.run_id(run) not in done or (files and not available(preset, run, folder))]
    while queue:
        run = queue.pop()
        if run not in wanted:
            wanted.add(run)
            queue += [need for need in run.needs() if not available(preset, need, folder)]
    return [run for run in dict.fromkeys([*preset.grid(), *runs]) if run in wanted]


def complete(
    preset: Preset,
    runs: Iterable[Run],
    folder: Folder,
    *,
    files: bool = False,
    minutes: float = 10.0,
    device: str | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Do what is left of `runs`, with a progress bar, and return the table; at once where nothing is left.

    Args:
        files: have the files of these runs on disk too: sources, tickets and the networks of transfers.
        minutes: at most so much work is begun, by the estimate for this machine.
        device, workers: see `this_machine`.

    Raises:
        NotYet: where the estimate is higher; it says the cost, and the command for a larger machine.
    """
    if files:
        preset = replace(preset, keep_networks=True)
    todo = left(preset, runs, folder, files)
    if todo:
        device, workers = this_machine(device, workers)
        seconds = sum(estimate(preset, todo, folder, device, threads(workers)).values()) / workers
        if seconds > 60 * minutes:
            raise NotYet(
                f"{len(todo)} runs are left, about {duration(seconds)} here ({device}, {workers} at a time); "
                f"more than {minutes:g} minutes are not begun here. `python -m dwlth run {preset.name}` does them, and "
                "can be stopped and resumed"
            )
        ends = run_all(preset, todo, folder, device, workers, command="dwlth.grid.complete")
        for failed in (run for run, end in ends.items() if end == "failed"):
            warnings.warn(f"failed: {failed}: see {folder.record(preset.run_id(failed))}", stacklevel=2)
    return folder.collect()


def plan(preset: Preset, runs: list[Run], folder: Folder, device: str | None = None, workers: int | None = None) -> str:
    """Of each stage, how many of `runs` are done and left, the time that those that are done took, and what is left
    costs on this machine; the published datasets need not be on disk."""
    device, workers = this_machine(device, workers)
    todo = left(preset, runs, folder)
    spent, to_come = folder.seconds(), estimate(preset, todo, folder, device, threads(workers))
    lines = {}
    for stage in (stage for stage in STAGES if any(run.stage == stage for run in runs)):
        done = [run for run in runs if run.stage == stage and run not in to_come]
        ahead = [seconds / workers for run, seconds in to_come.items() if run.stage == stage]
        took = sum(spent.get(preset.run_id(run), 0.0) for run in done)
        lines[stage] = {"done": len(done), "left": len(ahead), "took": duration(took), "to come": duration(sum(ahead))}
    cost = f"about {duration(sum(to_come.values()) / workers)} left on this machine ({device}, {workers} at a time)"
    return f"{pd.DataFrame.from_dict(lines, orient='index').to_string()}\n{cost}"


def this_machine(device: str | None = None, workers: int | None = None) -> tuple[str, int]:
    """The device and the number of processes to use: as given, or a GPU where there is one with one process, or else
    the CPU with a process per core.

    Raises:
        DwlthError: for a device that is not there, or fewer than one process.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if workers is None:
        workers = 1 if device.startswith("cuda") else _cores()
    if workers < 1:
        raise DwlthError(f"workers is {workers}: give 1 or more")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DwlthError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    return device, workers


def threads(workers: int) -> int:
    """Threads of each worker: as many as the variable OMP_NUM_THREADS says, or else its share of the cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(wanted) if wanted.isdigit() else _cores() // workers)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    preset: Preset,
    runs: list[Run],
    folder: Folder,
    device: str,
    workers: int,
    deadline: float = math.inf,
    command: str = "",
) -> dict[Run, str]:
    """Do `runs` (as `left` gives them) on this machine, in so many processes that share its cores; returns their
    statuses."""
    folder.write_preset(preset)
    work = partial(execute, preset, folder, device, deadline, command, workers == 1)
    with contextlib.ExitStack() as stack:
        executor = None
        if runs and workers > 1:
            executor = stack.enter_context(processes(workers, threads(workers)))
        return run_grid(units(preset, runs), work, executor, workers, deadline)


def units(preset: Preset, runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """The runs in what is done at a time: transfers that can train side by side, and each other run for itself."""
    found: list[list[Run]] = []
    for run in runs:
        alike = lambda other, run=run: replace(other, source=run.source, round=run.round, method=run.method) == run
        open_ = (unit for unit in found if len(unit) < preset.together and alike(unit[0]))
        unit = next(open_, None) if run.stage == "transfer" else None
        if unit is None:
            found.append(unit := [])
        unit.append(run)
    return [tuple(unit) for unit in found]


def execute(
    preset: Preset,
    folder: Folder,
    device: str,
    deadline: float,
    command: str,
    progress: bool,
    unit: tuple[Run, ...],
    on_epoch: Callable[[dict], bool | None] | None = None,
) -> list[str]:
    """Do the runs of a unit and write their records; returns the status of each: `ok`, `failed` (training broke down;
    the record says how) or `stopped` (at the deadline, or by `on_epoch`; the next call goes on from there)."""
    ids = [preset.run_id(run) for run in unit]
    company = hashlib.sha256("".join(ids).encode()).hexdigest()[:12]
    checkpoint = folder.checkpoint(ids[-1] if len(ids) == 1 else f"{ids[-1]}-{company}")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    for stale in (path for id_ in ids for path in checkpoint.parent.glob(f"{id_}-*.pt") if path != checkpoint):
        stale.unlink(missing_ok=True)  # of these runs in other company, of which some are done since
    began = time.time() - _earlier_seconds(checkpoint)
    training = {"checkpoint": checkpoint, "deadline": deadline, "on_epoch": on_epoch, "progress": progress}
    try:
        if unit[0].stage == "transfer":
            found = transfer(preset, unit, folder, device, **training)
        elif unit[0].stage == "autoattack":
            found = [under_autoattack(preset, unit[0], folder, device)]
        else:
            found = [STAGE[unit[0].stage](preset, unit[0], folder, device, **training)]
    except OutOfTime:
        return ["stopped"] * len(unit)
    except TrainingFailed as error:
        found = [{"error": str(error)}]
    seconds = (time.time() - began) / len(unit)
    ends = ["failed" if "error" in result else "ok" for result in found]
    for run, id_, status, result in zip(unit, ids, ends, found):
        record = {"id": id_, "status": status, "config": preset.config(run), "result": result}
        recipe = preset.recipe(run)
        precision = "float32" if isinstance(recipe, Given) else available_precision(recipe.precision, device)
        record["provenance"] = results.provenance(device, precision, len(unit), seconds, command)
        files.write_json(folder.record(id_), record)
    checkpoint.unlink(missing_ok=True)
    return ends


def _earlier_seconds(checkpoint: Path) -> float:
    """Time that earlier, interrupted calls spent on a training; a checkpoint that cannot be read is set aside."""
    try:
        return (
            sum(row["seconds"] for row in read_checkpoint(checkpoint)["fits"][0]["history"])
            if checkpoint.exists()
            else 0.0
        )
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
) -> dict[Run, str]:
    """Do units of runs (each listed after those it needs) with `work`, which returns the status of each run; returns
    the statuses.

    With an executor of `concurrent.futures`, up to `slots` units are under way at a time, the earliest in the list
    first; without one, they are done here, one by one. A run is `blocked` if one it needs did not end `ok`.
    """
    listed = {run for unit in units for run in unit}
    status: dict[Run, str] = {}
    pending, under_way = list(units), {}
    with tqdm(total=len(listed), unit="run", disable=not progress) as bar:

        def ended(unit: tuple[Run, ...], ends: list[str]) -> None:
            status.update(zip(unit, ends))
            bar.update(len(unit))

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


@contextmanager
def processes(workers: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of worker processes with so many threads each. They end with the block, at once if it is left by an
    exception, and with this process, however it ends."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(threads,))
    try:
        yield executor
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # die at once and quietly; the next call goes on
    torch.set_num_threads(threads)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait_for_process([parent]), os._exit(1)), daemon=True).start()
