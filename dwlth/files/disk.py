"""Files that are whole or absent: written beside their place, flushed to the disk, and renamed into it."""

import contextlib
import os
import platform
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dwlth.errors import DwlthError
from dwlth.runs import digest

DAY = 86_400.0
"""Seconds after which a temporary file of another machine is taken for a dead process's (our choice)."""

writing = True
"""False in a process that helps another one, which writes all files (`dwlth.running.distributed`)."""


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let `writer` write a file beside `path`, flush it to the disk, then rename it into place: a reader sees all of it
    or nothing, also after a power cut.

    Raises:
        OSError: if the disk is full, or the folder cannot be written to.
    """
    if not writing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{_place()}-{os.getpid()}-{_born(os.getpid())}-{threading.get_ident()}"
    beside = path.with_name(f".{path.name}.{owner}.tmp")
    try:
        writer(beside)
        _flush(beside, os.O_RDWR)
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, (SafetensorError, RuntimeError)):  # so they say that the disk is full
            raise OSError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from error
        if isinstance(error, OSError) and error.errno:
            raise OSError(
                error.errno, f"{error.strerror}: what is there is kept, this file is missing", str(path)
            ) from error
        raise
    with contextlib.suppress(OSError):  # some systems flush no folders
        _flush(path.parent, os.O_RDONLY)


def _flush(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@cache
def _place() -> str:
    """Names this machine since it was started, and the set of process numbers that holds here."""
    known = [platform.node()]
    with contextlib.suppress(OSError):
        known += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return digest(known, 8)


def _born(pid: int | str) -> str:
    """When a process here began, in ticks; empty where there is none, or the system does not say."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def sweep(folder: Path) -> None:
    """Remove the temporary files in `folder` whose writer is surely dead: a process of this machine that is no more
    there, or, as others' processes cannot be seen, one whose file is a `DAY` old."""
    for path in folder.rglob(".*.tmp"):
        place, pid, born, *_ = [*path.name.split(".")[-2].split("-"), "", "", ""]
        with contextlib.suppress(OSError):  # another process was faster
            here = place == _place() and born
            if _born(pid) != born if here else time.time() - path.stat().st_mtime > DAY:
                path.unlink()


def set_aside(path: Path, why: Exception | str) -> None:
    """Rename a file that is not what it should be to NAME.bad, and say so in a warning. In a folder that cannot be
    written it stays, and is left out."""
    bad = path.with_name(path.name + ".bad")
    try:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.replace(path, bad)
        end = f"moved to {bad.name}, and made again where it is needed"
    except OSError as error:
        end = f"left out, and not moved to {bad.name} ({error.strerror.lower()})"
    warnings.warn(f"{why}; {end}", stacklevel=2)


def check_writable(folder: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        DwlthError: if no file can be written into it or a folder in it.
    """
    place = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *filter(Path.is_dir, folder.iterdir())):
            tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        why = error.strerror.lower()
        raise DwlthError(f"{place}: cannot be written ({why}): give a folder for the results that can") from None
