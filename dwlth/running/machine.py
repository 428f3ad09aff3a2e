"""This machine: its device, its cores, its environment, and processes to run on it."""

import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path

import torch
from tqdm import tqdm

from dwlth.errors import DwlthError
from dwlth.models import SMALL


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


def threads(network: str, workers: int = 1) -> int:
    """Threads that torch is to use in each of so many processes, for a network of `dwlth.models.NETWORKS`: as many as
    the variable OMP_NUM_THREADS says; or one for a small network, whose thousands of small operations would wait for a
    second thread; or else the process's share of the cores. The command line, notebooks and widgets all ask here."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(wanted) if wanted.isdigit() else 1 if network in SMALL else _cores() // workers)


def activation() -> str:
    """The line for a shell that makes its `python` the one that runs now; empty where it is, or where this is no
    virtual environment."""
    script, found = Path(sys.prefix, "bin", "activate"), shutil.which("python")
    if not script.exists() or (found and Path(found).parent == script.parent):
        return ""
    return f"source {shlex.quote(os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script))}"


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
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is where the program began in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # die at once and quietly; the next call goes on
    torch.set_num_threads(threads)
    tqdm.set_lock(
        threading.RLock()
    )  # its own is a semaphore of the system, which a process that is ended leaves behind
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait_for_process([parent]), os._exit(1)), daemon=True).start()
