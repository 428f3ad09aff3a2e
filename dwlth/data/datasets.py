"""Datasets by name: `load` gives a `Dataset` of three splits."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dwlth.data.images import decode, tree
from dwlth.data.official import absent, official
from dwlth.data.splits import Dataset, Split, Streamed, balanced_subset
from dwlth.errors import DwlthError, check

MEAN_STD = {  # of pixels in [0, 1], red, green, blue
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # reference code
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # reference code
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052)),  # reference code; others have a std of about 0.2
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's
}


@dataclass(frozen=True)
class Entry:
    """A dataset with a name."""

    load: Callable[[Path, str, int | None], Dataset]
    """From the folder of the datasets, the order and the seed (see `load`) to the images."""
    sizes: tuple[int, int, int] = ()
    """Training, validation and test images, of a published dataset."""
    classes: tuple[str, ...] | int = 0
    """The names of its classes in the order of the labels, or their number."""
    side: int = 32
    """Pixels a side, as they are stored or streamed."""
    on_disk: str = ""
    """What lies in the folder of the datasets once it is there; empty: it comes with a package."""


def blank(name: str) -> Dataset | None:
    """Black images of the published number and size, to time and count with where the real ones are not on disk; they
    take no memory. None for other datasets."""
    entry = DATASETS.get(name)
    if entry is None or not entry.sizes:
        return None
    images = torch.zeros(1, 3, entry.side, entry.side, dtype=torch.uint8)
    label = torch.zeros(1, dtype=torch.long)
    splits = [Split(images.expand(size, -1, -1, -1), label.expand(size)) for size in entry.sizes]
    return Dataset(name, *splits, _number(entry.classes), *MEAN_STD[name])


def _number(classes: tuple[str, ...] | int) -> int:
    return classes if isinstance(classes, int) else len(classes)


def check_name(name: str) -> None:
    """Raise `DwlthError` for a name that `load` does not know."""
    if name not in DATASETS and not name.startswith("folder:"):
        raise DwlthError(f"unknown dataset {name!r}: choose from {', '.join(DATASETS)}, or give folder:PATH")


@cache
def load(name: str, root: str | Path = "data", order: str = "given", seed: int | None = None) -> Dataset:
    """The dataset of that name, on the CPU; the same object when asked again.

    Args:
        name: one of `DATASETS`, or `folder:PATH`, where PATH (relative to `root`) holds train/CLASS/*, and test/, val/
            or both beside it, or CLASS/* alone. A lone val/ is the test set. What is missing is held out from the
            training images, and is always the same: for testing 20 % of each class, then for validation 10 % of the
            rest (our choice).
        root: where CIFAR and SVHN are, or are downloaded to by torchvision, and ImageNet as imagenet/train and
            imagenet/val. There, as in the reference code, all of train/ trains, and val/ both validates and tests: do
            not select a network by it. CIFAR is also read from image files, cifar10/{train,test}/CLASS/* and
            cifar100/..., with an `order` by content.
        order: of the images of CIFAR and SVHN before they are split: `given`: torchvision's; `content`: by a hash of
            the pixels, so that torchvision's files and image files without loss (PNG), in any order, give the same
            splits (our choice). Other datasets have an order of their own.
        seed: of the splits of a dataset that has none of its own, the handwritten digits; None: the same split always.

    Raises:
        DwlthError: for an unknown name, images that are absent and cannot be had, and folders or files that are not
            what they should be.
    """
    check_name(name)
    if name.startswith("folder:"):
        return _folder(name, Path(root, name.removeprefix("folder:")))
    return _checked(DATASETS[name].load(Path(root), order, seed))


def fetch(name: str, root: str | Path) -> None:
    """Have a dataset on disk: CIFAR and SVHN are downloaded by torchvision. What is there is not looked at.

    Raises:
        DwlthError: for an unknown name, and for a dataset that is absent and cannot be had.
    """
    check_name(name)
    if name in ("cifar10", "cifar100", "svhn"):
        if not Path(root, name, "train").is_dir() and absent(name, Path(root)):
            official(name, Path(root))
        return
    on_disk = DATASETS[name].on_disk if name in DATASETS else name.removeprefix("folder:")
    if on_disk and not Path(root, on_disk).exists():
        load(name, root)  # says what should be there


def _checked(data: Dataset) -> Dataset:
    """A dataset, which may be anybody's, with plain numbers, once its images and labels are what they should be."""
    channels = len(data.mean)
    for part in ("train", "val", "test"):
        if not isinstance(split := getattr(data, part), Split):
            continue
        images, labels, name = split.images, split.labels, f"dataset {data.name!r}, {part}:"
        of = f"one image for each of the {len(labels)} labels, of {channels} channels as mean has: [N, C, H, W]"
        fits = images.ndim == 4 and images.shape[:2] == (len(labels), channels)
        check(f"{name} type of images", images.dtype, images.dtype == torch.uint8, "torch.uint8, levels of 0 to 255")
        check(f"{name} shape of images", tuple(images.shape), fits, of)
        check(f"{name} type of labels", labels.dtype, labels.dtype == torch.int64, "torch.int64")
        check(f"{name} number of images", len(labels), len(labels) > 0, "1 or more")
        least, most = labels.aminmax()
        known = least >= 0 and most < data.classes
        check(f"{name} labels from", (int(least), int(most)), known, f"labels of 0 to {data.classes - 1}")
    return replace(data, classes=int(data.classes), mean=(*map(float, data.mean),), std=(*map(float, data.std),))


def _digits(first: int, last: int, root: Path, order: str, seed: int | None) -> Dataset:
    """Handwritten digits first..last of scikit-learn's copy of the UCI set (Alpaydin & Kaynak, 1998): 8x8 scans in
    17 grey levels, here stretched to 0..255. Of each class, drawn by the seed, 30 % test, 15 % validate and the rest
    trains (our choice: a test set of some 270 images keeps one image's weight below 0.4 points). With equal numbers for
    every seed, networks of several seeds can train side by side."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    chosen = (scans.target >= first) & (scans.target <= last)
    images = torch.from_numpy(scans.images[chosen] * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(scans.target[chosen]).long() - first
    parts: tuple[list[int], ...] = ([], [], [])
    if seed is None:
        rest, parts[0][:] = train_test_split(np.arange(len(labels)), test_size=0.30, stratify=labels, random_state=0)
        parts[2][:], parts[1][:] = train_test_split(rest, test_size=0.15 / 0.70, stratify=labels[rest], random_state=0)
    else:
        rng = np.random.default_rng(seed)
        for label in range(last - first + 1):
            members = rng.permutation((labels == label).nonzero().flatten().numpy())
            cuts = [round(0.30 * len(members)), round(0.45 * len(members))]
            for part, indices in zip(parts, np.split(members, cuts)):
                part += indices.tolist()
        parts = tuple(map(sorted, parts))
    test, val, train = (Split(images[part], labels[part]) for part in parts)
    pixels = train.images.float() / 255
    return Dataset(
        f"digits{first}-{last}", train, val, test, last - first + 1, (pixels.mean().item(),), (pixels.std().item(),)
    )


def _published(name: str, root: Path, order: str, seed: int | None) -> Dataset:
    """CIFAR-10, CIFAR-100 or SVHN, with as many training and validation images as in the paper."""
    if (root / name / "train").is_dir():
        if order != "content":
            raise DwlthError(
                f"{root / name}: image files, but the splits of this preset follow torchvision's order: "
                f"remove the folder and put torchvision's files of {name} into {root}"
            )
        train, test = _image_files(name, root / name)
    else:
        train, test = official(name, root)
    if order == "content":
        train, test = _by_content(train), _by_content(test)
    n = DATASETS[name].sizes[0]
    train, val = (Split(train.images[part], train.labels[part]) for part in (slice(n), slice(n, None)))
    return Dataset(name, train, val, test, _number(DATASETS[name].classes), *MEAN_STD[name])


def _by_content(split: Split) -> Split:
    """The images in the order of a hash of their pixels, equal ones in that of their labels."""
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in split.images.numpy()]
    return split.take(sorted(range(len(split)), key=lambda i: (hashes[i], int(split.labels[i]))))


def _image_files(name: str, path: Path) -> tuple[Split, Split]:
    """The official training and test images of CIFAR from path/{train,test}/CLASS/*; sorted, the names of the classes
    are in the order of torchvision's labels."""
    splits = []
    entry = DATASETS[name]
    for part, size in (("train", sum(entry.sizes[:2])), ("test", entry.sizes[2])):
        if not (path / part).is_dir():
            raise DwlthError(f"{path / part}: no such folder: put the images there as {part}/CLASS/*")
        classes, paths, labels = tree(path / part)
        found, right = (len(paths), len(classes)), (size, _number(entry.classes))
        if found != right:
            raise DwlthError(
                f"{path / part}: {found[0]} images of {found[1]} classes, but {name} has {right[0]} of {right[1]}"
            )
        names = entry.classes if isinstance(entry.classes, tuple) else None
        if (tuple(classes) != names) if names else classes[0].isdigit():  # numbers sort as 0, 1, 10
            raise DwlthError(
                f"{path / part}: class folders {', '.join(classes[:3])} ...: call them by torchvision's names"
            )
        images = decode(np.array(paths))
        if images is None or images.shape[1:] != (3, 32, 32):
            raise DwlthError(f"{path / part}: images of other sizes than 32x32, which {name} has")
        splits.append(Split(images, torch.tensor(labels)))
    return splits[0], splits[1]


def _folder(name: str, path: Path) -> Dataset:
    """A dataset of image files: on the device if they are small, streamed if not. Mean and std are computed from small
    images; for streamed ones they are ImageNet's (our choice)."""
    parts = [part for part in ("train", "val", "test") if (path / part).is_dir()]
    imagenet = name == "imagenet"
    split = "train" in parts and ("val" in parts or ("test" in parts and not imagenet))
    if not path.is_dir() or not (split or (not parts and not imagenet)):
        layout = "train/CLASS/* and val/CLASS/*" if imagenet else "train/CLASS/* and test/CLASS/*, or CLASS/* alone"
        found = f"{' and '.join(parts) or 'no train'}/ alone" if path.is_dir() else "no such folder"
        raise DwlthError(f"{path}: {found}: put the images there as {layout}")
    classes, trees = None, {}
    for part in parts or [""]:
        found, paths, labels = tree(path / part)
        classes = classes or found
        if found != classes:
            odd = min(set(found) ^ set(classes))
            raise DwlthError(f"{path}: class {odd!r} is in only one of train/ and {part}/: give both the same classes")
        trees[part] = Streamed(np.array(paths), torch.tensor(labels))
    train, val, test = trees.get("train"), trees.get("val"), trees.get("test")
    if imagenet:
        test = val
    elif not split:
        train, test = _hold_out(trees[""], 0.2)
    elif test is None:
        val, test = None, val
    if val is None:
        train, val = _hold_out(train, 0.1)
    splits = [train, val, test]
    pixels = decode(np.concatenate([split.paths for split in splits]))
    if pixels is not None:
        parts = pixels.split([len(split) for split in splits])
        splits = [Split(part, split.labels) for part, split in zip(parts, splits)]
    mean_std = MEAN_STD["imagenet"] if imagenet or pixels is None else _mean_std(splits[0].images)
    return Dataset(name, *splits, len(classes), *mean_std)


def _hold_out(files: Streamed, fraction: float) -> tuple[Streamed, Streamed]:
    """What remains, and what is held out: of each class that fraction, at least one image, always the same."""
    held = balanced_subset(files.labels, fraction, seed=0)
    rest = np.setdiff1d(np.arange(len(files)), held)
    used_up = np.setdiff1d(files.labels, files.labels[rest])
    if len(used_up):
        first = files.paths[(files.labels == used_up[0]).numpy()][0]
        raise DwlthError(f"{first}: its class has too few images to split: give 3 or more, or folders test/ and val/")
    return files.take(rest), files.take(held)


def _mean_std(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, of pixels (uint8 [N, C, H, W]) in [0, 1], from the counts of the 256 levels: exact, and light. The
    std of a channel of one level is 1, for it is divided by."""
    levels = torch.arange(256, dtype=torch.double) / 255
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)])
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares @ levels**2 - mean**2).clamp_min(0).sqrt()
    std[(counts > 0).sum(1) == 1] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())


def _imagenet(root: Path, order: str, seed: int | None) -> Dataset:
    return _folder("imagenet", root / "imagenet")


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

DATASETS = {
    "digits0-4": Entry(partial(_digits, 0, 4), classes=tuple("01234")),
    "digits5-9": Entry(partial(_digits, 5, 9), classes=tuple("56789")),
    # the first so many official training images train, and the 5,000 that follow, the last, validate (paper)
    "cifar10": Entry(partial(_published, "cifar10"), (45_000, 5_000, 10_000), _CIFAR10, on_disk="cifar-10-batches-py"),
    "cifar100": Entry(partial(_published, "cifar100"), (45_000, 5_000, 10_000), 100, on_disk="cifar-100-python"),
    "svhn": Entry(partial(_published, "svhn"), (68_257, 5_000, 26_032), tuple("0123456789"), on_disk="train_32x32.mat"),
    "imagenet": Entry(_imagenet, (1_281_167, 50_000, 50_000), 1000, 256, "imagenet"),
}
"""The datasets with a name; any other is `folder:PATH`. A new one is one more entry."""
