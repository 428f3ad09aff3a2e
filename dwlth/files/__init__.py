"""Files of the results: whole or absent (`dwlth.files.disk`), and sealed with a checksum that reading verifies. A file
without one, of an earlier version, is read all the same."""

import hashlib
import json
import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dwlth.errors import DwlthError
from dwlth.files.disk import check_writable, set_aside, sweep, write
from dwlth.runs import digest

__all__ = [
    "check_writable",
    "check_zip",
    "read_about",
    "read_json",
    "read_state",
    "read_tensors",
    "set_aside",
    "sweep",
    "write",
    "write_json",
    "write_state",
    "write_tensors",
]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A dict as JSON, with a `checksum` of the rest: the SHA-256 of its JSON with sorted keys."""
    value = json.loads(json.dumps(value))
    text = json.dumps(value | {"checksum": digest(value, 64)}, indent=1)
    write(path, lambda beside: beside.write_text(text + "\n", "utf-8"))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The dict in a file of `write_json`, without its checksum.

    Raises:
        DwlthError: if the file is none, or damaged; `what` says what it should be.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DwlthError(f"{path}: not a {what} (truncated?): {error}") from None
    if not isinstance(value, dict):
        raise DwlthError(f"{path}: JSON, but not a {what}")
    own, found = value.pop("checksum", ""), digest(value, 64)
    if own not in ("", found):
        raise DwlthError(f"{path}: not a {what} as it was written: its checksum is {own}, that of the rest {found}")
    return value


def write_tensors(path: Path, tensors: dict[str, Tensor], **about: Any) -> None:
    """A safetensors file with JSON values in its header; `kind` (source, ticket or network) is one of them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seal = {"sha256": _sha256(json.dumps(about), tensors)}
    header = {"dwlth": json.dumps(about | seal)}  # one entry: safetensors writes several in any order
    write(path, lambda beside: save_file(tensors, beside, header))


def _sha256(text: str, tensors: dict[str, Tensor]) -> str:
    """Of a header's text, and of the names, types, shapes and bytes of tensors."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read_tensors(path: Path, kind: str = "", id_: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header values of a file of `write_tensors`.

    Args:
        kind: what it should be: a source, a ticket or a network.
        id_: of the run that should have made it.

    Raises:
        DwlthError: if there is no such file, or it is truncated, damaged, foreign, of another kind or of another run.
    """
    what = kind or "source, ticket or network"
    try:
        with safe_open(path, "pt") as file:  # checks the header against the size of the file
            header = file.metadata() or {}
            about = json.loads(header["dwlth"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise DwlthError(f"{path}: no such file; `Experiment(PRESET).have([RUN], files=True)` makes it") from None
    except KeyError:
        raise DwlthError(f"{path}: a safetensors file, but not a {what} of this project") from None
    except (SafetensorError, ValueError) as error:  # an OSError says nothing about the file
        raise DwlthError(f"{path}: not a {what} (truncated or foreign): {error}") from None
    sealed = any(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in about.values())
    own = about.pop("sha256", "")
    if (sealed or own) and own != _sha256(json.dumps(about), tensors):
        raise DwlthError(f"{path}: not a {what} as it was written: its checksum (sha256) is another")
    if kind and about.get("kind") != kind:
        raise DwlthError(f"{path}: a {about.get('kind')}, where a {kind} should be")
    if id_ and about.get("id", id_) != id_:
        raise DwlthError(f"{path}: not the {what} of the run {id_}, but of {about.get('id')}")
    return tensors, about


def read_about(path: Path, kind: str = "", id_: str = "") -> dict[str, Any]:
    """The header values alone, of a file that is whole; see `read_tensors`."""
    return read_tensors(path, kind, id_)[1]


def write_state(path: Path, state: Any) -> None:
    """A file of `torch.save`, and behind it a line with a checksum of its name and its bytes."""

    def writer(beside: Path) -> None:
        torch.save(state, beside)
        seal = _seal(path.name, beside.read_bytes())
        with beside.open("ab") as file:
            file.write(seal)

    write(path, writer)


def _seal(name: str, content: bytes | memoryview) -> bytes:
    found = hashlib.sha256(name.encode())
    found.update(content)
    return f"\nsha256 {found.hexdigest()}".encode()


def read_state(path: Path) -> Any:
    """What is in a file of `write_state`, on the CPU.

    Raises:
        DwlthError: if it is truncated, damaged, another's, or holds anything but plain values and tensors.
    """
    content = memoryview(path.read_bytes())
    rest, seal = content[:-72], bytes(content[-72:])  # a zip ends with 22 bytes that begin with PK56
    if seal != _seal(path.name, rest) and seal[-22:-18] != b"PK\5\6":
        raise DwlthError(f"{path}: not a checkpoint (truncated or foreign), or not as it was written under this name")
    try:
        check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        why = str(error).partition("\n")[0] or type(error).__name__
        raise DwlthError(f"{path}: not a checkpoint (truncated or foreign): {why}") from None


def check_zip(path: Path) -> None:
    """Raise `DwlthError` where a checksum in a zip is wrong, which torch does not look at (it can write files without
    any; those pass), or where a member has a name that leads elsewhere, or claims more bytes than the file has."""
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
        size, claimed = path.stat().st_size, sum(item.file_size for item in items)
        if claimed > size:
            raise DwlthError(
                f"{path}: its members claim {claimed:,} bytes, but the file has {size:,}; torch packs nothing"
            )
        for item in items:
            if item.filename.startswith("/") or ".." in PurePosixPath(item.filename).parts:
                raise DwlthError(f"{path}: its member {item.filename!r} leads out of the file")
        wrong = archive.testzip() if any(item.CRC for item in items) else None
    if wrong:
        raise DwlthError(f"{path}: damaged: the checksum (CRC) of {wrong} in it is wrong; fetch the file again")
