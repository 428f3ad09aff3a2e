"""Image files: which there are in a folder of class folders, and what is in them."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dwlth.errors import DwlthError

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL_SIDE, SMALL_BYTES = 64, 4 * 2**30
"""Images of one size, up to so many pixels a side and so many bytes in all, are held in memory (our choice)."""


def tree(folder: Path) -> tuple[list[str], list[str], list[int]]:
    """The classes of a folder of class folders; its files and their labels, as torchvision's ImageFolder lists them, in
    an order that is the same on every machine: by class, then by path. What is hidden, or in a hidden folder, is left
    out.

    Raises:
        DwlthError: for fewer than two classes, for an empty one, and for a file that is no image by its name.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    def is_image(path: str) -> bool:
        hidden = any(part.startswith(".") for part in Path(path).relative_to(folder).parts)
        if not hidden and not path.lower().endswith(IMG_EXTENSIONS):
            raise DwlthError(f"{path}: not an image by its name ({', '.join(IMG_EXTENSIONS)}): remove it")
        return not hidden

    classes = sorted(item.name for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))
    if len(classes) < 2:
        raise DwlthError(f"{folder}: {len(classes)} class folders: put there two or more, each with its images")
    numbers = {class_: label for label, class_ in enumerate(classes)}
    files = make_dataset(folder, numbers, is_valid_file=is_image, allow_empty=True)
    paths, labels = [path for path, _ in files], [label for _, label in files]
    empty = set(numbers.values()) - set(labels)
    if empty:
        raise DwlthError(
            f"{folder / classes[min(empty)]}: a class without images: put some there, or remove the folder"
        )
    return classes, paths, labels


def read(path: str) -> "Image":
    """The RGB image in a file. Grey levels are copied to three channels, palettes looked up, transparency dropped (as
    torchvision's ImageFolder does), and of 16 bits the upper 8 kept.

    Raises:
        DwlthError: for a file that is absent, damaged or no image, or whose range of values is not known.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()  # the checksums of PNG, which load() does not look at
        with Image.open(path) as image:
            image.load()
            image.info.pop("transparency", None)  # else `convert` warns of what it drops
            if image.mode.startswith("I") and image.format in ("PNG", "PPM"):
                # grey in 16 bits, which `convert` would clip: all above 255 to white
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                return image.convert("RGB")
            mode = f"mode {image.mode} in {image.format}"
    except FileNotFoundError:
        raise DwlthError(f"{path}: no such file") from None
    except Exception as error:  # PIL raises many kinds
        raise DwlthError(f"{path}: not an image, or a damaged one ({error})") from None
    raise DwlthError(f"{path}: pixels of {mode}: convert it to 8 bits, or to a 16-bit PNG")


def decode(paths: np.ndarray) -> Tensor | None:
    """The pixels (uint8 [N, 3, H, W]) of all files, or None if they are not small (`SMALL_SIDE`, `SMALL_BYTES`) and of
    one size. Raises as `read`."""
    size = width, height = read(paths[0]).size
    if max(size) > SMALL_SIDE or len(paths) * 3 * width * height > SMALL_BYTES:
        return None
    pixels = torch.empty(len(paths), 3, height, width, dtype=torch.uint8)
    for place, path in zip(pixels, tqdm(paths, "decoding images", leave=False)):
        image = read(path)
        if image.size != size:
            warnings.warn(f"{path} is {image.size}, {paths[0]} is {size}: images are streamed", stacklevel=2)
            return None
        place.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return pixels
