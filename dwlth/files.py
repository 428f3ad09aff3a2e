"""Files that are whole or absent, and tensors with a header that says what they are."""

import contextlib
import json
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dwlth.errors import DwlthError

writing = True
"""False in a process that helps another one, which writes all files (`dwlth.running.distributed`)."""


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Let `writer` write a file beside `path`, then rename it into place: a reader sees all of it or nothing."""
    if not writing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        writer(beside)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write(path, lambda beside: beside.write_text(json.dumps(value, indent=1) + "\n"))


def write_tensors(path: Path, tensors: dict[str, Tensor], **about: Any) -> None:
    """A safetensors file with JSON values in its header; `kind` (source, ticket or network) is one of them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write(path, lambda beside: save_file(tensors, beside, {"dwlth": json.dumps(about)}))


def read_tensors(path: Path, kind: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header values of a file of `write_tensors`.

    Raises:
        DwlthError: if there is no such file, or it is truncated, foreign or of another kind.
    """
    about = read_about(path, kind)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, about


def read_about(path: Path, kind: str = "") -> dict[str, Any]:
    """The header values alone; see `read_tensors`."""
    what = kind or "source, ticket or network"
    try:
        with safe_open(path, "pt") as file:  # checks the header against the size of the file
            about = json.loads((file.metadata() or {})["dwlth"])
    except FileNotFoundError:
        raise DwlthError(f"{path}: no such file; `python -m dwlth run` makes it") from None
    except KeyError:
        raise DwlthError(f"{path}: a safetensors file, but not a {what} of this project") from None
    except (SafetensorError, ValueError) as error:  # an OSError says nothing about the file
        raise DwlthError(f"{path}: not a {what} (truncated or foreign): {error}") from None
    if kind and about.get("kind") != kind:
        raise DwlthError(f"{path}: a {about.get('kind')}, where a {kind} should be")
    return about


def set_aside(path: Path, why: Exception | str) -> None:
    """Rename a file that is not what it should be to NAME.bad, and say so in a warning."""
    bad = path.with_name(path.name + ".bad")
    warnings.warn(f"{why}; moved to {bad.name}, and made again where it is needed", stacklevel=2)
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.replace(path, bad)
