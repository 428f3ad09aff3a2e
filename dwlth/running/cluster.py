"""The grid on many machines: workers of a Dask cluster that see one results folder. Needs `distributed` (the extra
`cluster`)."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import dwlth
from dwlth.errors import DwlthError
from dwlth.results import Folder, read_record
from dwlth.running.machine import lacks, torch_threads
from dwlth.runs import Run
from dwlth.training import STOP

PATIENCE = 30.0
"""Seconds to wait for the scheduler, and for its first worker (our choice)."""


@contextmanager
def connect(scheduler: str, folder: Folder) -> Iterator[tuple[Executor, Callable[[], int], tuple, str]]:
    """The workers of a cluster as an executor, with the number of them at any time, the exceptions that mean that a
    worker was lost, and a name of this command. Where `dwlth.training.STOP` is set here, its trainings there end too.

    Args:
        scheduler: the address of a running scheduler, such as `tcp://node1:8786`, or the file it was started with
            (`dask scheduler --scheduler-file FILE`).
        folder: the results, at a path that the workers see too.

    Raises:
        DwlthError: if there is no scheduler there or it has no worker, if a worker has several threads, does not see
            the folder of the results or that of the data, or has another version of the kit.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed.comm import get_address_host_port
    except ImportError:
        raise DwlthError('--scheduler needs the package distributed: pip install -e ".[cluster]"') from None
    try:
        address = json.loads(Path(scheduler).read_bytes())["address"] if Path(scheduler).is_file() else scheduler
    except (ValueError, KeyError, TypeError):
        raise DwlthError(f"--scheduler {scheduler}: not a file that a Dask scheduler wrote") from None
    try:
        get_address_host_port(address)  # else a client that cannot begin takes a minute to end
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, AssertionError) as error:
        raise DwlthError(f"--scheduler {scheduler}: no scheduler answers there ({error})") from None
    with client:
        began = time.monotonic()
        while not client.nthreads():
            if time.monotonic() - began > PATIENCE:
                raise DwlthError(
                    f"--scheduler {scheduler}: it has no worker; `dask worker --nthreads 1 ...` starts one"
                )
            time.sleep(0.2)
        client.run_on_scheduler(_for_long_tasks)
        data, token = Path(folder.data), folder.path / f".seen-{time.time_ns()}"
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
        try:
            faults = client.run(_fault, token, data if data.exists() else None, folder.device, dwlth.__version__)
        finally:
            token.unlink(missing_ok=True)
        for worker, fault in faults.items():
            if fault:
                raise DwlthError(f"--scheduler {scheduler}: the worker {worker} {fault}")
        threading.Thread(target=_pass_on, args=[client], daemon=True).start()
        yield client.get_executor(pure=False), partial(_workers, client), (KilledWorker, CancelledError), client.id


def _pass_on(client) -> None:
    """Tell the workers when this command is to stop."""
    while client.status != "closed":
        if STOP.wait(1.0):
            with suppress(OSError):  # the scheduler is away: they end by themselves
                client.run(_stop, client.id, on_error="ignore")
            return


_stopped: set[str] = set()  # commands that this worker was told to stop
_command = ""  # whose training is under way


def _stop(command: str) -> None:
    _stopped.add(command)
    if _command == command:
        STOP.set()


def _workers(client) -> int:
    """How many there are now; 0 while the scheduler is away."""
    try:
        return len(client.nthreads())
    except (OSError, TimeoutError):
        return 0


def _for_long_tasks(dask_scheduler) -> None:
    """A training holds its worker for long: a worker whose heartbeat is late is not dead, and nothing is to be gained
    by moving tasks to other workers."""
    if stealing := dask_scheduler.extensions.get("stealing"):
        dask_scheduler.loop.add_callback(stealing.stop)
    dask_scheduler.worker_ttl = 3600.0


def _fault(token: Path, data: Path | None, device: str, version: str, dask_worker) -> str | None:
    """What is wrong with this worker, in words; None: nothing."""
    if dask_worker.state.nthreads != 1:
        return f"has {dask_worker.state.nthreads} threads: start it with --nthreads 1, one worker for each core or GPU"
    for kind, path, seen in (("results", token.parent, token), ("data", data, data)):
        if seen and not seen.exists():
            return f"does not see the {kind} folder {path}: put it where all machines see it, under this path"
    if dwlth.__version__ != version:
        return f"has version {dwlth.__version__} of the kit, not {version}"
    if why := lacks(device):
        return f"has no device {device!r} ({why})"
    return None


def once(
    folder: Folder,
    command: str,
    fresh: frozenset[Run],
    threads: int,
    work: Callable[[tuple[Run, ...]], list[str]],
    unit: tuple[Run, ...],
) -> list[str]:
    """`work` for a command on those of a unit that are not done, with so many threads of torch. Dask does a task again
    whose worker was lost after it, so those of the `fresh`, which had no record when the grid began, are looked up
    first."""
    global _command
    STOP.clear()  # that was another command's
    _command = command
    if command in _stopped:
        STOP.set()

    def done(run: Run) -> bool:
        return run in fresh and folder.record(run).exists() and read_record(folder.record(run))["status"] == "ok"

    rest = tuple(run for run in unit if not done(run))
    with torch_threads(threads):
        ends = dict.fromkeys(unit, "ok") | dict(zip(rest, work(rest) if rest else ()))
    return [ends[run] for run in unit]
