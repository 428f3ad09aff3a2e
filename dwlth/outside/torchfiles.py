"""Files of tensors from elsewhere, read without running the code in them: of `torch.save`, old and new, and of
safetensors."""

import argparse
import collections
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dwlth import files
from dwlth.errors import DwlthError
from dwlth.outside.downloads import first_line, refuse_page

LEGACY = bytes.fromhex("8a0a6cfc9c46f920")  # in the first bytes of torch.save's files before torch 1.6


def load(path: Path, unsafe: bool = False) -> Any:
    """What the file holds, on the CPU.

    Args:
        path: a file of `torch.save`, before or since torch 1.6, or of safetensors.
        unsafe: where tensors and plain settings are not all there is in it, unpickle it in full, with a warning: that
            runs whatever code it holds.

    Raises:
        DwlthError: if the file is missing, empty, a web page, truncated, damaged, or needs `unsafe`.
    """
    if not path.is_file():
        raise DwlthError(f"{path}: no such file")
    head = refuse_page(path)
    safetensors = head[8:10] == b'{"'  # after the length of its header
    if not safetensors and not head.startswith(b"PK") and LEGACY not in head[:32]:
        raise DwlthError(f"{path}: no file of torch.save or safetensors: it begins with {head[:12]!r}")
    try:
        if head.startswith(b"PK"):
            files.check_zip(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain settings, which many programs save along
            return load_file(path) if safetensors else torch.load(path, "cpu", weights_only=True)
    except DwlthError:
        raise
    except pickle.UnpicklingError as error:
        if _cut_short(path):
            raise DwlthError(f"{path}: truncated: it ends inside a pickle") from None
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
    except Exception as error:  # torch has many ways to say so
        raise DwlthError(f"{path}: truncated, or no checkpoint: {first_line(error)}") from None
    if not unsafe:
        raise DwlthError(
            f"{path}: holds more than tensors ({found[1] if found else 'an unknown object'}), which takes a full "
            "unpickle, which can run code; if you trust the file: --unsafe of inspect and import, or --set "
            "pretrain.SOURCE.unsafe=True"
        )
    warnings.warn(f"{path}: unpickled in full: any code in it has run", stacklevel=3)
    try:
        return torch.load(path, "cpu", weights_only=False)
    except ImportError as error:
        raise DwlthError(f"{path}: to unpickle it, install the package it was made with: {error}") from None
    except Exception as error:
        raise DwlthError(f"{path}: truncated, or no checkpoint: {first_line(error)}") from None


def _cut_short(path: Path) -> bool:
    """Whether a file of before torch 1.6 ends inside one of its five pickles, which are walked but not run."""
    with path.open("rb") as file:
        if LEGACY in file.read(32):
            file.seek(0)
            try:
                for _ in range(5):
                    collections.deque(pickletools.genops(file), maxlen=0)
            except ValueError:
                return True
    return False


def write(path: str | Path, content: Mapping[str, Any], legacy: bool = False) -> None:
    """A file of `torch.save`; `legacy`: in the format of before torch 1.6, for the reference code's torch 1.5."""
    zipped = {"_use_new_zipfile_serialization": not legacy}
    files.write(Path(path), lambda beside: torch.save(content, beside, **zipped))
