"""Datasets by name: small ones live on the device as uint8, and batches are cut from them there."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dwlth.errors import DwlthError


@dataclass(frozen=True, eq=False)
class Split:
    """Images (uint8 [N, C, H, W]) and their labels (int64 [N]), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, indices: list[int]) -> "Split":
        return Split(self.images[indices], self.labels[indices])

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (float [n, C, H, W] in [0, 1]) and labels, the last one as small as it comes out; in a
        random order where a generator is given (on the device of the data), otherwise in order."""
        order = None
        if generator is not None:
            order = torch.randperm(len(self), generator=generator, device=self.labels.device)
        for start in range(0, len(self), size):
            index = slice(start, start + size) if order is None else order[start : start + size]
            yield self.images[index].float().div_(255), self.labels[index]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification task: three splits, the number of classes, and the mean and std of its training pixels per
    channel (pixels in [0, 1])."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to(self, device: str | torch.device) -> "Dataset":
        splits = (split.to(device) for split in (self.train, self.val, self.test))
        return Dataset(self.name, *splits, self.classes, self.mean, self.std)


def balanced_subset(labels: Tensor, fraction: float, seed: int) -> list[int]:
    """Indices of a class-balanced random subset: of each class the given fraction, rounded, and at least one image.

    So 1 % of a small training set still holds every class. Another seed draws another subset; the subset for a
    smaller fraction is contained in that for a larger one. `fraction=1` is the whole set in its own order.

    Raises:
        DwlthError: for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise DwlthError(f"fraction of the training data is {fraction}: give a number above 0 and at most 1")
    rng = np.random.default_rng(seed)
    chosen = []
    for label in labels.unique().tolist():
        members = rng.permutation((labels == label).nonzero().flatten().numpy(force=True))
        chosen += members[: max(1, round(fraction * len(members)))].tolist()
    return sorted(chosen)


@cache
def _digits(first: int, last: int) -> Dataset:
    """Handwritten digits first..last of scikit-learn's copy of the UCI set (Alpaydin & Kaynak, 1998): 8x8 scans in
    17 grey levels, here stretched to 0..255. Split once for all seeds, stratified, 55 / 15 / 30 % (our choice: a
    test set of some 270 images keeps one image's weight below 0.4 points)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    chosen = (scans.target >= first) & (scans.target <= last)
    images = torch.from_numpy(scans.images[chosen] * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(scans.target[chosen]).long() - first
    rest, test = train_test_split(np.arange(len(labels)), test_size=0.30, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=0.15 / 0.70, stratify=labels[rest], random_state=0)
    train, val, test = (Split(images[index], labels[index]) for index in (train, val, test))
    pixels = train.images.float() / 255
    return Dataset(
        f"digits{first}-{last}", train, val, test, last - first + 1, (pixels.mean().item(),), (pixels.std().item(),)
    )


DATASETS = {"digits0-4": lambda: _digits(0, 4), "digits5-9": lambda: _digits(5, 9)}


def load(name: str) -> Dataset:
    """The dataset of that name, on the CPU.

    Raises:
        DwlthError: for a name that is not in `DATASETS`.
    """
    if name not in DATASETS:
        raise DwlthError(f"unknown dataset {name!r}: choose from {', '.join(DATASETS)}")
    return DATASETS[name]()
