"""CIFAR and SVHN in torchvision's files: read, checked, downloaded by it where they are absent."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dwlth.data.splits import Split
from dwlth.errors import DwlthError

PATIENCE = 60.0
"""Seconds that a download waits for the next byte (our choice)."""


def official(name: str, root: Path) -> tuple[Split, Split]:
    """The official training and test images of `cifar10`, `cifar100` or `svhn`, in torchvision's order, on the CPU; a
    file that is absent from the folder `root` is downloaded.

    Raises:
        DwlthError: for files that are damaged, or absent and cannot be had.
    """
    from torchvision import datasets

    kind, missing = getattr(datasets, name.upper()), absent(name, root)
    svhn = name == "svhn"

    def split(part: str) -> Split:
        part_of = {"split": part} if svhn else {"train": part == "train"}
        got = kind(root, download=bool(missing), **part_of)  # compares the files with their hashes
        images, labels = (got.data, got.labels) if svhn else (got.data.transpose(0, 3, 1, 2), got.targets)
        return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels))

    try:
        with patience():
            return split("train"), split("test")
    except Exception as error:  # torchvision and the network raise many kinds
        for path, md5 in _files(name, root).items():
            if path.exists() and (found := hashlib.md5(path.read_bytes()).hexdigest()) != md5:
                raise DwlthError(
                    f"{path}: damaged: its MD5 is {found}, where {md5} should be: remove it, and it is downloaded again"
                ) from None
        why = str(error).partition("\n")[0] or type(error).__name__
        if not missing:
            raise DwlthError(f"{name}: cannot be read from {root}: {why}") from None
        what = "train_32x32.mat and test_32x32.mat" if svhn else f"{kind.base_folder}/"
        url = os.path.dirname(kind.split_list["train"][0]) if svhn else kind.url
        raise DwlthError(
            f"{name}: {missing[0]} is not there, and cannot be downloaded ({why}): put {what} of {url} into {root}"
        ) from None


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Meanwhile a new connection that brings nothing for `PATIENCE` ends with a TimeoutError. torch and torchvision
    would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _files(name: str, root: Path) -> dict[Path, str]:
    """The files that torchvision reads, with their MD5."""
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    if name == "svhn":
        return {root / kind.split_list[part][1]: kind.split_list[part][2] for part in ("train", "test")}
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return {root / kind.base_folder / file: md5 for file, md5 in files}


def absent(name: str, root: Path) -> list[Path]:
    """Those of torchvision's files of `cifar10`, `cifar100` or `svhn` that are not there."""
    return [path for path in _files(name, root) if not path.exists()]
