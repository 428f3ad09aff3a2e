"""Splits of a dataset: small ones live on the device as uint8, and batches are cut from them and augmented there; large
ones stream from disk, decoded and cropped by worker processes.

`batches` of either kind of split gives the images as the network sees them, `subset` a part of the training images.
"""

import atexit
import ctypes
import math
import os
import platform
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dwlth.data.augment import Augment
from dwlth.data.images import read
from dwlth.errors import DwlthError, check


@dataclass(frozen=True, eq=False)
class Split:
    """Images (uint8 [N, C, H, W]) and their labels (int64 [N]), on one device.

    Threads share it (`load` gives the same one to all), so nothing may write into it; `batches` are copies.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, indices: list[int]) -> "Split":
        return Split(self.images[indices], self.labels[indices])

    def batches(
        self,
        size: int,
        generator: torch.Generator | None = None,
        augment: Augment | None = None,
        *,
        first: int = 0,
        state: Tensor | None = None,
        rows: Callable[[int], slice] = slice,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (float [n, C, h, w] in [0, 1]) and labels, the last one as small as it comes out. With a
        generator (on the device of the data) in a random order and in `augment`'s views for training; without one in
        order and in its views for testing.

        Args:
            first, state: go on at this batch, with the state that the generator had there.
            rows: from the number of images of a batch to those that are wanted.
        """
        augment = augment or Augment()
        if not self.labels.is_cuda:
            _keep_memory()
        order = None
        if generator is not None:
            order = torch.randperm(len(self), generator=generator, device=self.labels.device)
        if state is not None:
            generator.set_state(state)
        for start in range(first * size, len(self), size):
            part = slice(start, min(start + size, len(self)))
            own = rows(part.stop - start)
            if order is None:
                yield augment(self.images[part], generator)[own], self.labels[part][own].clone()  # the split is shared
            else:  # index_select copies whole images, indexing pixel by pixel
                pick = order[part]
                yield augment(self.images.index_select(0, pick), generator)[own], self.labels[pick[own]]


@cache
def _keep_memory() -> None:
    """Have the process keep the memory of freed tensors for the next ones. glibc gives what is above 32 MB back to the
    system, and its next use costs a page fault for every 4 KiB: a tenth of the time of training on a CPU, and half of
    that of resizing to 224 px (docs/performance.md)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block is the system's own ...
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: ... nor given back at the end of the heap, below 2 GiB


def _decoders() -> int:
    """As many workers as a process has cores, up to 16 (our choice): each keeps one batch in shared memory, which is
    308 MB for 2,048 images."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return min(max(1, cores // here), 16)


@dataclass(frozen=True, eq=False)
class Streamed:
    """Image files and their labels (int64 [N]): a `Split` for images that are large or of many sizes.

    Workers decode and crop; 8-bit pixels go to the device of the labels. Each image's view depends on the generator
    alone, so the number of workers changes no batch. The workers stay from one epoch to the next.
    """

    paths: np.ndarray  # of str; a list would be copied into every worker, bit by bit, as its counts are touched
    labels: Tensor
    workers: int = field(default_factory=_decoders)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "Streamed":
        return replace(self, labels=self.labels.to(device))

    def take(self, indices: list[int]) -> "Streamed":
        return replace(self, paths=self.paths[indices], labels=self.labels[indices])

    def batches(
        self,
        size: int,
        generator: torch.Generator | None = None,
        augment: Augment | None = None,
        *,
        first: int = 0,
        state: Tensor | None = None,
        rows: Callable[[int], slice] = slice,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Split.batches`; only the images that are wanted are decoded. One such iteration at a time: a new one ends
        the one before.

        Raises:
            DwlthError: for an `augment` that leaves images their sizes, and for a file that is no sound image.
        """
        if augment is None or augment.crop != "resized":
            raise DwlthError(f"{self.paths[0]} and the like stream from disk: set augment's crop to 'resized'")
        order, seeds = torch.arange(len(self)), [None] * len(self)
        if generator is not None:
            device = generator.device
            order = torch.randperm(len(self), generator=generator, device=device).cpu()
            seeds = torch.randint(2**63 - 1, (len(self),), generator=generator, device=device).tolist()
        if state is not None:
            generator.set_state(state)
        whole = [range(start, min(start + size, len(self))) for start in range(first * size, len(self), size)]
        parts = [batch[rows(len(batch))] for batch in whole]
        parts = [slice(part.start, part.stop) for part in parts]
        self._loader.sampler[:] = [(augment, order[part].numpy(), seeds[part]) for part in parts]
        for images, part in zip(self._loader, parts):
            if isinstance(images, str):
                raise DwlthError(images)
            images = images.to(self.labels.device, non_blocking=True)
            yield images.float().div_(255), self.labels[order[part].to(self.labels.device)]

    @cached_property
    def _loader(self) -> DataLoader:
        loader = DataLoader(
            _Reader(self.paths),
            batch_size=None,  # the sampler, a list that `batches` fills, gives whole batches
            sampler=[],
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=1 if self.workers else None,
            pin_memory=self.labels.is_cuda,
            generator=torch.Generator(),  # else it would draw from the global one
            worker_init_fn=_leave_signals,
        )
        if self.workers:  # iter starts them, and registers what waits for them; what is registered last is called first
            atexit.register(_end, weakref.ref(iter(loader)))
        return loader


def _end(workers: weakref.ref) -> None:
    """At the end of a process that a fault ended within an epoch. Python would wait for workers that heed no signal."""
    if (there := workers()) is not None:
        there._shutdown_workers()


def _leave_signals(_: int) -> None:
    """A worker of a loader: a signal to the whole group of processes is for the one that trains, which needs its images
    to end in order."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class _Reader:
    """What a worker does: `reader[augment, indices, seeds]` is a batch (uint8 [n, 3, size, size]), or the message of
    the error it met, since a worker's exceptions arrive wrapped in its traceback."""

    def __init__(self, paths: np.ndarray):
        self.paths = paths

    def __getitem__(self, batch: tuple[Augment, np.ndarray, list]) -> Tensor | str:
        augment, indices, seeds = batch
        try:
            views = [augment.view(read(path), seed) for path, seed in zip(self.paths[indices], seeds)]
            return torch.stack(views) if views else torch.empty(0, 3, augment.size, augment.size, dtype=torch.uint8)
        except DwlthError as error:
            return str(error)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification task: three splits, the number of classes, and the mean and std of its training pixels per
    channel (pixels in [0, 1])."""

    name: str
    train: Split | Streamed
    val: Split | Streamed
    test: Split | Streamed
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to(self, device: str | torch.device) -> "Dataset":
        return replace(self, **{part: getattr(self, part).to(device) for part in ("train", "val", "test")})


def subset(labels: Tensor, fraction: float, how: str, seed: int = 0, allow_empty: bool = False) -> list[int]:
    """Indices, ascending, of a part of the training images.

    Args:
        labels: int64 [N].
        how: `first`: the first int(fraction * N) (paper: 4,500 and 450 of CIFAR, 6,825 and 682 of SVHN); `random`: as
            many, drawn by the seed; `balanced`: see `balanced_subset`. With one seed, smaller parts lie in larger ones.
        allow_empty: let a class go without images. The paper's first 450 of CIFAR-100 are likely to want this: of 450
            random images, one of 100 classes is missing on average.

    Raises:
        DwlthError: for a fraction outside (0, 1], or too small for one image; for an unknown `how`; and for a class
            left without images.
    """
    if how == "balanced":
        return balanced_subset(labels, fraction, seed)
    check("subset of the training data", how, how in ("first", "random"), "first, random or balanced")
    _check_fraction(fraction)
    total = len(labels)
    count = int(fraction * total + 1e-6)  # the reference code's int(), but 0.29 of 100 is 29
    order = np.arange(total) if how == "first" else np.random.default_rng(seed).permutation(total)
    classes, first_seen = np.unique(labels.numpy(force=True)[order], return_index=True)
    if first_seen.max() >= count and not allow_empty:
        missing = classes[first_seen.argmax()]
        enough = math.ceil((first_seen.max() + 1) / total * 1e4) / 1e4
        raise DwlthError(
            f"fraction {fraction:g} of the training data, {how}: {count} of {total} images, and none of class "
            f"{missing}: give {enough:g} or more, or take a balanced subset"
        )
    if not count:
        raise DwlthError(
            f"fraction {fraction:g} of the training data: none of {total} images: give {1 / total:g} or more"
        )
    return sorted(order[:count].tolist())


def balanced_subset(labels: Tensor, fraction: float, seed: int) -> list[int]:
    """Indices of a class-balanced random subset: of each class the given fraction, rounded, and at least one image.

    So 1 % of a small training set still holds every class. Another seed draws another subset; the subset for a
    smaller fraction is contained in that for a larger one. `fraction=1` is the whole set in its own order.

    Raises:
        DwlthError: for a fraction outside (0, 1].
    """
    _check_fraction(fraction)
    rng = np.random.default_rng(seed)
    chosen = []
    for label in labels.unique().tolist():
        members = rng.permutation((labels == label).nonzero().flatten().numpy(force=True))
        chosen += members[: max(1, round(fraction * len(members)))].tolist()
    return sorted(chosen)


def _check_fraction(fraction: float) -> None:
    check("fraction of the training data", fraction, 0 < fraction <= 1, "a number above 0 and at most 1")
