"""This machine: its device, its cores, and processes to run on them."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_process

import torch

from dwlth.errors import DwlthError
from dwlth.fast import team


def this_machine(device: str | None = None, workers: int | None = None) -> tuple[str, int]:
    """The device and the number of processes to use: as given, or a GPU where there is one with one process, or else
    the CPU with a process per core.

    Raises:
        DwlthError: for a device that is not there, or fewer than one process.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if workers is None:
        workers = 1 if device.startswith("cuda") or team.current.size > 1 else _cores()
    if workers < 1:
        raise DwlthError(f"workers is {workers}: give 1 or more")
    if workers > 1 and team.current.size > 1:
        raise DwlthError(f"workers is {workers}: give 1 under torchrun, whose processes work on one run at a time")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DwlthError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    return device, workers


def threads(workers: int, small: bool = False) -> int:
    """Threads of each worker: as many as the variable OMP_NUM_THREADS says; or one for `small` networks, whose
    thousands of small operations would wait for a second thread; or else its share of the cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(wanted) if wanted.isdigit() else 1 if small else _cores() // workers)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads meanwhile; 0: on as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes(workers: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of worker processes with so many threads each. They end with the block, at once if it is left by an
    exception, and with this process, however it ends."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(threads,))
    try:
        yield executor
    except BaseException:
        for child in list((executor._processes or {}).values()):  # Python 3.14 has terminate_workers()
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
