"""Files from elsewhere: fetched once, resumed where they broke off, and checked before they get their name."""

import hashlib
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from dwlth.errors import DwlthError

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Known:
    """What is known of a file before it is here."""

    size: int | None = None
    """In bytes."""
    sha256: str = ""
    """In hex; its first digits will do."""
    checked: bool = False
    """Whether we saw a file with this size and hash; if not, both are hearsay."""


SALMAN = "hf:madrylab/robust-imagenet-models/resnet50_linf_eps{}.ckpt"
KNOWN = {
    "torchvision:ResNet50_Weights.IMAGENET1K_V1": Known(),  # the weights of the paper; the API's default is V2
    **{SALMAN.format(eps): Known() for eps in ("0.5", "1.0", "2.0", "8.0")},
    SALMAN.format("4.0"): Known(204_818_947, "9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db"),
}
"""Sources for `fetch`; eps in 255ths of [0, 1]. The size and hash of the last are from third-party code, unchecked.
Wong et al.'s weights lie in a Google Drive folder, which gives web pages to programs: fetch those by hand."""


def fetch(where: str | Path, folder: str | Path, sha256: str = "", size: int | None = None) -> Path:
    """The file at `where`, in `folder` (a local file stays where it is). A file that is there already is checked and
    reused; a download that broke off leaves NAME.part, and the next call goes on from there.

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
        path = _hugging_face(where, folder)
    elif where.startswith("torchvision:"):
        url = _torchvision(where)
        in_name = re.search(r"-([0-9a-f]{8,})\.", url)  # resnet50-0676ba61.pth
        return fetch(url, folder, known.sha256 or (in_name[1] if in_name else ""), known.size)
    elif where.startswith(("http://", "https://")):
        path = folder / Path(unquote(urlsplit(where).path)).name
        if path == folder:
            raise DwlthError(f"{where}: this address names no file")
        if not path.exists():
            part = path.with_name(path.name + ".part")
            _download(where, part)
            try:
                check(part, known, where)
            except DwlthError:
                part.unlink()  # complete but wrong: there is nothing to go on from
                raise
            part.replace(path)
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
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        if not digest.hexdigest().startswith(known.sha256):
            raise DwlthError(f"{name}: its sha256 is {digest.hexdigest()}, where {known.sha256} should be{hearsay}")


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


def first_line(error: Exception) -> str:
    """Other people's errors, cut to the one line that ours have."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _download(url: str, part: Path) -> None:
    """Fetch `url` into `part`, from where it ends; what came stays there if the connection breaks."""
    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": "dwlth"} | ({"Range": f"bytes={start}-"} if start else {}))
    try:
        with urlopen(request, timeout=TIMEOUT) as response:
            # 206: the rest follows; any other success: the server knows no ranges, and sends everything again
            start = start if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True) as bar,
            ):
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except HTTPError as error:
        if error.code == 416 and start:  # nothing lies beyond: it is complete, or of another file
            size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if size and int(size[1]) == start:
                return
            part.unlink()
            return _download(url, part)
        raise DwlthError(f"{url}: the server says {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise DwlthError(f"{url}: broke off ({error}); the same call goes on from {part.name}") from None
    if total is not None and part.stat().st_size < total:
        raise DwlthError(
            f"{url}: truncated: {part.stat().st_size:,} of {total:,} bytes came; the same call goes on from {part.name}"
        )


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
