"""This machine: its device, its cores, its environment, and processes to run on it."""

import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path

import torch
from tqdm import tqdm

from dwlth.errors import DwlthError
from dwlth.fast import team
from dwlth.models import SMALL
from dwlth.training import STOP


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
    if why := lacks(device):
        raise DwlthError(f"device {device!r} ({why}): give cpu, or cuda where torch finds a GPU")
    return device, workers


def lacks(device: str) -> str | None:
    """Why torch cannot compute on a device, in its words; None: it can."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        return textwrap.shorten(str(error).partition(". ")[0], 80, placeholder=" ...")  # torch writes a page
    return None


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
    """Let torch compute on so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
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
    _pools.append(executor)
    try:
        yield executor
    except BaseException:
        for child in _children(executor):
            child.kill()
        raise
    finally:
        _pools.remove(executor)
        executor.shutdown(cancel_futures=True)


_pools: list[ProcessPoolExecutor] = []  # of this process, open now


def _children(executor: ProcessPoolExecutor) -> list:
    return list((executor._processes or {}).values())


@contextmanager
def stopping() -> Iterator[list[str]]:
    """Meanwhile the first SIGINT (Ctrl-C), SIGTERM or SIGUSR1 (SLURM's warning, as `--signal=USR1@120` sends it) lets
    each training of this process and its workers end after its step, saved, and no further one begin; a second SIGINT
    or SIGTERM ends at once, by KeyboardInterrupt. Yields the names of the signals that came. Where a system lacks a
    signal, that one does nothing; workers on Windows end at once, and go on from their last checkpoint."""
    came: list[str] = []
    last = 0.0

    def stop(number: int, _) -> None:
        nonlocal last
        if came and time.monotonic() - last < 1:
            return  # the same one: `timeout` sends each signal to the process and to its group
        last = time.monotonic()
        came.append(signal.Signals(number).name)
        if len(came) > 1 and number != getattr(signal, "SIGUSR1", None):
            raise KeyboardInterrupt
        STOP.set()
        os.write(2, f"\n{came[-1]}: what is under way is finished and saved; once more ends at once\n".encode())
        for executor in _pools:
            for child in _children(executor):
                child.terminate()  # in a worker as here: after its step

    if threading.current_thread() is not threading.main_thread():  # Python lets no other one handle signals
        yield came
        return
    heard = [n for n in signals("SIGINT", "SIGTERM", "SIGUSR1") if signal.getsignal(n) != signal.SIG_IGN]  # see nohup
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        STOP.clear()


def signals(*names: str) -> list[signal.Signals]:
    """Those of these that the system has."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent says what to do
    for number in signals("SIGTERM", "SIGUSR1"):
        signal.signal(number, lambda *_: STOP.set())
    torch.set_num_threads(threads)
    tqdm.set_lock(
        threading.RLock()
    )  # its own is a semaphore of the system, which a process that is ended leaves behind
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait_for_process([parent]), os._exit(1)), daemon=True).start()
