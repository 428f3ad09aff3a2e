"""What the network sees of an image: nothing changed, a random crop, or a random resized crop, mirrored or not."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dwlth.errors import check

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Augment:
    """From stored images to what the network sees: a random view for training, a fixed one for testing.

    Resizing is bilinear with antialias, like torchvision's default and like PIL's, which the reference code used;
    antialias matters where it shrinks, and from 32 to 224 pixels it changes nothing. On the device the result is not
    rounded to 8 bits again, as PIL's is, so the two differ by up to a grey level (1/255).
    """

    crop: str = "none"
    """`none`; `pad`: a random crop of the own size from the zero-padded image, and for testing nothing (the reference
    code at 32 pixels); `resized`: torchvision's RandomResizedCrop, and for testing Resize and CenterCrop (paper)."""
    flip: bool = False
    """Mirror half of the training images left to right (paper: yes, on SVHN too)."""
    padding: int = 4
    """Pixels on each side, of `pad`."""
    size: int = 224
    """Pixels a side that `resized` gives."""
    resize: int = 256
    """Pixels of the shorter side that `resized` cuts its centre from, in testing."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the crop of `resized`, as a fraction of the image's (torchvision's default)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width by height of the crop of `resized` (torchvision's default)."""

    def __post_init__(self):
        two = lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1]
        for name, right, what in (
            ("crop", self.crop in ("none", "pad", "resized"), "none, pad or resized"),
            ("padding", self.padding >= 0, "0 or more"),
            ("size", 1 <= self.size <= self.resize, f"1 or more and at most resize, {self.resize}"),
            ("scale", two(self.scale) and self.scale[1] <= 1, "(low, high), above 0 and at most 1"),
            ("ratio", two(self.ratio), "(low, high), above 0"),
        ):
            check(f"augment: {name}", getattr(self, name), right, what)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The views (float [n, C, h, w] in [0, 1]) of a batch (uint8 [n, C, H, W]): random ones with a generator, which
        is on the images' device; without one, those for testing."""
        n, _, height, width = images.shape
        if self.crop == "resized" and generator is None:
            rows, columns = (self._centre(side, min(height, width), images.device) for side in (height, width))
            return _resample(images, rows, columns)
        if generator is None or (self.crop == "none" and not self.flip):
            return images.float().div_(255)
        boxes, flips = self.draw(n, height, width, generator)
        top, left, box_height, box_width = boxes.T
        if self.crop == "resized":
            rows = _bilinear(top, box_height, self.size, height)
            columns = _bilinear(left, box_width, self.size, width)
            return _resample(images, rows, torch.where(flips.view(n, 1, 1), columns.flip(1), columns))
        # crops are windows of the padded images or of their mirror images, all in one copy of a view of every window
        padding = self.padding if self.crop == "pad" else 0
        padded = F.pad(torch.cat([images, images.flip(3)]), [padding] * 4).contiguous()
        each, (channels, rows, columns) = torch.arange(n, device=images.device), padded.shape[1:]
        left = torch.where(flips, padding - left, padding + left)
        first = ((each + n * flips) * channels * rows + top + padding) * columns + left
        strides = (1, rows * columns, columns, 1)
        places = padded.numel() - sum((k - 1) * by for k, by in zip((channels, height, width), strides[1:]))
        windows = padded.as_strided((places, channels, height, width), strides)
        return windows.index_select(0, first).float().div_(255)

    def draw(self, n: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random views of n images of one size: boxes (int64 [n, 4]: top, left, height, width; those of `pad` may
        reach over the edge) and flips (bool [n]), on the generator's device."""
        rand = partial(torch.rand, generator=generator, device=generator.device)
        flips = rand(n) < (0.5 if self.flip else 0)
        limit = torch.tensor([height, width], device=generator.device)
        if self.crop != "resized":
            padding = self.padding if self.crop == "pad" else 0
            start = (rand(n, 2) * (2 * padding + 1)).long() - padding
            return torch.cat([start, limit.expand(n, 2)], 1), flips
        (low, high), (narrow, wide) = self.scale, self.ratio
        # torchvision's way: of ten tries the first that fits the image, or else the largest box of an allowed shape
        area = height * width * (low + (high - low) * rand(n, 10))
        ratio = (math.log(narrow) + math.log(wide / narrow) * rand(n, 10)).exp()
        sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2).round().long()
        fits = ((sizes > 0) & (sizes <= limit)).all(2)
        size = sizes[torch.arange(n, device=limit.device), fits.int().argmax(1)]
        start = (rand(n, 2) * (limit - size + 1)).long()
        largest = torch.tensor(
            [min(height, round(width / narrow)), min(width, round(height * wide))], device=limit.device
        )
        fallback = torch.cat([(limit - largest) // 2, largest])
        return torch.where(fits.any(1, keepdim=True), torch.cat([start, size], 1), fallback), flips

    def _centre(self, side: int, shorter: int, device: torch.device) -> Tensor:
        """Weights [1, size, side] that resize a side of an image, and cut the centre of what results."""
        resized = self.resize * side // shorter
        start = round((resized - self.size) / 2)
        whole = torch.tensor([side], device=device)
        return _bilinear(torch.zeros_like(whole), whole, resized, side)[:, start : start + self.size]

    def view(self, image: "Image", seed: int | None) -> Tensor:
        """The view (uint8 [3, size, size]) of `resized` of one decoded image: random with a seed, or for testing."""
        from torchvision.transforms.v2 import functional as transforms

        if seed is None:
            image = transforms.center_crop(transforms.resize(image, [self.resize]), [self.size])
        else:
            box, flip = self.draw(1, image.height, image.width, torch.Generator().manual_seed(seed))
            image = transforms.resized_crop(image, *box[0].tolist(), [self.size, self.size])
            image = transforms.horizontal_flip(image) if flip else image
        return transforms.pil_to_tensor(image)


def _bilinear(start: Tensor, length: Tensor, out: int, pixels: int) -> Tensor:
    """Weights (float [n, out, pixels]) that resize the pixels start..start+length (int64 [n]) of a line to `out`: a
    triangle around each new pixel's centre, as wide as a pixel of the coarser of the two grids (antialias)."""
    scale = (length / out).view(-1, 1, 1)
    centre = torch.arange(0.5, out, device=start.device).view(1, -1, 1) * scale
    pixel = torch.arange(0.5, pixels, device=start.device) - start.view(-1, 1, 1)
    weights = (pixel - centre).abs_().div_(scale.clamp(min=1)).neg_().add_(1).clamp_(min=0)
    weights.mul_((pixel > 0) & (pixel < length.view(-1, 1, 1)))
    return weights.div_(weights.sum(2, keepdim=True))


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images (uint8 [n, C, H, W]) resized by weights for their rows and columns, as floats in [0, 1]. Where a program
    lets float32 products use TF32, they are right to half a grey level only."""
    n, channels, height, width = images.shape
    with torch.autocast(images.device.type, enabled=False):  # half precision would cost a whole one, and more
        # [n, H, C, W]: the channels share their weights; a millionth darker, so that rounding leads to nothing above 1,
        # but for that of TF32: on a CPU, clamping the result would take a seventh of the time
        pixels = images.transpose(1, 2).float().mul_((1 - 2**-20) / 255)
        pixels = (rows @ pixels.flatten(2)).view(n, -1, channels, width).transpose(1, 2)
        pixels = pixels.flatten(1, 2) @ columns.mT
        pixels = pixels.view(n, channels, -1, pixels.shape[2])
        return pixels.clamp_(0, 1) if pixels.is_cuda else pixels
