"""Files from elsewhere: fetched once, by torch or huggingface_hub, and checked before they get their name."""

import contextlib
import hashlib
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import torch

from dwlth import files
from dwlth.data.official import patience
from dwlth.errors import DwlthError


@dataclass(frozen=True)
class Known:
    """What is known of a file before it is here."""

    size: int | None = None
    """In bytes."""
    sha256: str = ""
    """In hex; its first digits will do."""
    checked: bool = False
    """Whether we saw a file with this size and hash; if not, both are hearsay."""


KNOWN = {
    "hf:madrylab/robust-imagenet-models/resnet50_linf_eps4.0.ckpt": Known(
        204_818_947, "9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db"
    )
}
"""What third-party code says of a source for `fetch`, unchecked. Beside it lie the networks of other eps, in 255ths of
[0, 1]: 0.5, 1.0, 2.0 and 8.0. Wong et al.'s weights lie in a Google Drive folder, which gives web pages to programs:
fetch those by hand."""


def fetch(where: str | Path, folder: str | Path, sha256: str = "", size: int | None = None) -> Path:
    """The file at `where`, in a folder of its own in `folder`, which is named by a hash of `where`: two addresses with
    one file name get two files. A local file stays where it is. A file that is there already is checked and reused. A
    download that breaks off leaves nothing, and the next call begins anew (but huggingface_hub resumes its own).

    Args:
        where: a local path, an http(s) URL, `hf:owner/repo/filename` (Hugging Face), or a member of torchvision's
            weights, such as `torchvision:ResNet50_Weights.IMAGENET1K_V1`.
        sha256: in hex, or its first 8 or more digits. By default what `KNOWN` or torchvision's file name says.
        size: in bytes. By default what `KNOWN` says.

    Raises:
        DwlthError: if it is not to be had, truncated, empty, a web page, or not of that size and hash.
    """
    where, folder = str(where), Path(folder)
    known = KNOWN.get(where, Known()) if not sha256 and size is None else Known(size, sha256.lower(), checked=True)
    if not re.fullmatch(r"([0-9a-f]{8,64})?", known.sha256):
        raise DwlthError(f"sha256 is {sha256!r}: give 8 to 64 hex digits")
    if where.startswith("hf:"):
        path = _hugging_face(where, folder / _digest(where))
    elif where.startswith("torchvision:"):
        url = _torchvision(where)
        in_name = re.search(r"-([0-9a-f]{8,})\.", url)  # resnet50-0676ba61.pth
        return fetch(url, folder, known.sha256 or (in_name[1] if in_name else ""), known.size)
    elif where.startswith(("http://", "https://")):
        try:
            name = Path(unquote(urlsplit(where).path)).name
        except ValueError:
            name = ""
        if not name:
            raise DwlthError(f"{where}: this address names no file")
        path = folder / _digest(where) / name
        if not path.exists():
            files.write(path, lambda beside: _download(where, beside, known))
            return path
    elif "://" in where:
        raise DwlthError(f"{where}: give a path, an http(s) address, hf:owner/repo/filename or torchvision:NAME")
    else:
        path = Path(where)
        if not path.is_file():
            raise DwlthError(f"{path}: no such file")
    check(path, known, str(path))
    return path


def check(path: Path, known: Known, name: str) -> None:
    """Raise `DwlthError` if the file is empty, a web page, or not of the known size and hash; `name` is its name in
    the message."""
    refuse_page(path, name)
    hearsay = "" if known.checked else " (hearsay: to take the file as it is, give its own size and sha256)"
    size = path.stat().st_size
    if known.size not in (None, size):
        raise DwlthError(f"{name}: {size:,} bytes, where {known.size:,} should be{hearsay}")
    if known.sha256:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if not found.startswith(known.sha256):
            raise DwlthError(f"{name}: its sha256 is {found}, where {known.sha256} should be{hearsay}")


def refuse_page(path: Path, name: str = "") -> bytes:
    """The first 512 bytes of a file; raises `DwlthError` if it is empty or a web page."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise DwlthError(f"{name or path}: empty (0 bytes), where a checkpoint should be")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise DwlthError(
            f"{name or path}: a web page (HTML), where a checkpoint should be: the server asks for a click, a login or "
            "says that the file has gone; fetch it in a browser, and give its path"
        )
    return head


def _digest(where: str) -> str:
    """12 hex digits for an address, so that files of the same name from two of them do not meet."""
    return hashlib.sha256(where.encode()).hexdigest()[:12]


def first_line(error: Exception) -> str:
    """Other people's errors, cut to the one line that ours have."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _download(url: str, path: Path, known: Known) -> None:
    """Fetch `url` into `path`, and check it."""
    length = 0  # as the server says beforehand; torch does not compare
    try:
        with patience():
            with contextlib.suppress(OSError, HTTPException), urlopen(Request(url, method="HEAD")) as response:
                length = int(response.headers.get("Content-Length", 0))
            torch.hub.download_url_to_file(url, str(path))
    except (OSError, HTTPException) as error:
        raise DwlthError(f"{url}: {first_line(error)}") from None
    size = path.stat().st_size
    if size < length:
        raise DwlthError(f"{url}: truncated: {size:,} of {length:,} bytes came; the same call begins anew")
    check(path, known, url)


def _torchvision(where: str) -> str:
    from torchvision.models import get_weight

    try:
        return get_weight(where.removeprefix("torchvision:")).url
    except (ValueError, AttributeError, KeyError):
        raise DwlthError(f"{where}: torchvision has no such weights; e.g. ResNet50_Weights.IMAGENET1K_V1") from None


def _hugging_face(where: str, folder: Path) -> Path:
    owner, _, rest = where.removeprefix("hf:").partition("/")
    repo, _, filename = rest.partition("/")
    if not filename:
        raise DwlthError(f"{where}: write it as hf:owner/repo/filename")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise DwlthError(f"{where}: needs the package huggingface_hub: install the extra dwlth[hub]") from None
    try:
        return Path(hf_hub_download(f"{owner}/{repo}", filename, local_dir=folder))
    except Exception as error:  # its own classes, and those of whichever HTTP library it uses
        raise DwlthError(f"{where}: {first_line(error)}") from None
