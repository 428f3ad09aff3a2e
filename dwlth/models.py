"""Networks: a backbone with torchvision's names, and the input normalisation in front of it."""

import copy
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dwlth.errors import DwlthError


class Classifier(nn.Module):
    """`net` behind the normalisation of its data, so that attacks work on pixels in [0, 1].

    Args:
        net: a network from normalised images (float [N, C, H, W]) to logits (float [N, classes]), with its head in
            `net.fc`. Its state dict is what goes to disk: the names are torchvision's, with no prefix.
        mean, std: per channel, of pixels in [0, 1].
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    members = 1
    """Networks in it: more than one in a `dwlth.fast.stack.Stack`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)

    def alone(self) -> list["Classifier"]:
        """A copy of each member as a network of its own."""
        return [copy.deepcopy(self)]


class SmallResNet(nn.Module):
    """A ResNet for small images: a 3x3 stem, and stages of one of torchvision's BasicBlocks each.

    Args:
        classes: outputs of the head.
        stem: channels of the images, channels after the stem, and its stride.
        stages: channels and stride of each stage.
    """

    def __init__(self, classes: int, stem: tuple[int, int, int], stages: Sequence[tuple[int, int]]):
        super().__init__()
        channels, width, stride = stem
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stages = []
        for number, (planes, stride) in enumerate(stages, start=1):
            self.add_module(f"layer{number}", self._stage(width, planes, stride))
            self.stages.append(f"layer{number}")
            width = planes
        self.fc = nn.Linear(width, classes)

    @staticmethod
    def _stage(inplanes: int, planes: int, stride: int) -> nn.Sequential:
        from torchvision.models.resnet import BasicBlock, conv1x1

        downsample = None
        if stride > 1 or inplanes != planes:
            downsample = nn.Sequential(conv1x1(inplanes, planes, stride), nn.BatchNorm2d(planes))
        return nn.Sequential(BasicBlock(inplanes, planes, stride, downsample))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(x.mean((2, 3)))


def _digits_resnet(classes: int) -> nn.Module:
    """17,992 convolution weights, for 8x8 images with one channel (our choice: the smallest that passes 97 % on the
    handwritten digits and still loses accuracy at 98 % sparsity)."""
    return SmallResNet(classes, (1, 8, 1), [(16, 2), (32, 2)])


def _cifar_resnet(classes: int) -> nn.Module:
    """306,016 convolution weights, for 32x32 images in colour (our choice: two CPU cores can train it on attacks)."""
    return SmallResNet(classes, (3, 32, 2), [(32, 1), (64, 2), (128, 2)])


def resnet(depth: int, classes: int) -> nn.Module:
    """torchvision's ResNet, with random weights."""
    from torchvision import models  # late: it takes longer to import than all of this package

    return getattr(models, f"resnet{depth}")(num_classes=classes)


def native32(net: nn.Module) -> nn.Module:
    """torchvision's ResNet for images of 32 px: a 3x3 convolution with stride 1 as its stem, and no max-pool (the
    native variant of the reference code; its 7x7 stem with stride 2 is for 224 px)."""
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    net.maxpool = nn.Identity()
    return net


NETWORKS = {
    "small_resnet": _digits_resnet,
    "small_resnet32": _cifar_resnet,
    "resnet18": lambda classes: resnet(18, classes),
    "resnet50": lambda classes: resnet(50, classes),
    "resnet18-3x3": lambda classes: native32(resnet(18, classes)),
    "resnet50-3x3": lambda classes: native32(resnet(50, classes)),
}
"""By name: a function from the number of classes to a network with random weights. `-3x3` marks the stem for 32 px."""

SMALL = {"small_resnet", "small_resnet32"}
"""Those that one thread of a CPU computes best; a second one would be waited for."""


INITIALISING = threading.Lock()
"""Held while layers are made: they draw from the one generator of all threads."""


def build(name: str, classes: int, mean: Sequence[float], std: Sequence[float], seed: int) -> Classifier:
    """A freshly initialised network; the same seed gives the same weights, and the global generators are untouched.

    Raises:
        DwlthError: for a name that is not in `NETWORKS`, or one whose network takes images of more or fewer channels
            than `mean` has.
    """
    if name not in NETWORKS:
        raise DwlthError(f"unknown network {name!r}: choose from {', '.join(NETWORKS)}")
    with INITIALISING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of the GPUs too
        net = NETWORKS[name](classes)
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if first and first.in_channels != len(mean):
        takes = f"takes images of {first.in_channels} channels, and these are of {len(mean)}"
        raise DwlthError(f"network {name!r} {takes}: give another network, or other data")
    return Classifier(net, mean, std).to(memory_format=torch.channels_last)
