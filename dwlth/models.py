"""Networks: a backbone with torchvision's names, and the input normalisation in front of it."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, conv1x1

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

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


class SmallResNet(nn.Module):
    """A ResNet for 8x8 images with one channel: a 3x3 stem and two of torchvision's BasicBlocks (our choice: the
    smallest that passes 97 % on the handwritten digits and still loses accuracy at 98 % sparsity)."""

    def __init__(self, classes: int, width: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(width, 2 * width)
        self.layer2 = self._stage(2 * width, 4 * width)
        self.fc = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(inplanes: int, planes: int) -> nn.Sequential:
        downsample = nn.Sequential(conv1x1(inplanes, planes, 2), nn.BatchNorm2d(planes))
        return nn.Sequential(BasicBlock(inplanes, planes, 2, downsample))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def native32(net: nn.Module) -> nn.Module:
    """torchvision's ResNet for images of 32 px: a 3x3 convolution with stride 1 as its stem, and no max-pool (the
    native variant of the reference code; its 7x7 stem with stride 2 is for 224 px)."""
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    net.maxpool = nn.Identity()
    return net


NETWORKS = {
    "small_resnet": SmallResNet,
    "resnet18": lambda classes: resnet18(num_classes=classes),
    "resnet50": lambda classes: resnet50(num_classes=classes),
    "resnet18-3x3": lambda classes: native32(resnet18(num_classes=classes)),
    "resnet50-3x3": lambda classes: native32(resnet50(num_classes=classes)),
}
"""By name: a function from the number of classes to a network with random weights. `-3x3` marks the stem for 32 px."""


_INITIALISING = threading.Lock()  # torchvision draws from the one generator of all threads


def build(name: str, classes: int, mean: Sequence[float], std: Sequence[float], seed: int) -> Classifier:
    """A freshly initialised network; the same seed gives the same weights, and the global generator is untouched.

    Raises:
        DwlthError: for a name that is not in `NETWORKS`.
    """
    if name not in NETWORKS:
        raise DwlthError(f"unknown network {name!r}: choose from {', '.join(NETWORKS)}")
    with _INITIALISING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(NETWORKS[name](classes), mean, std).to(memory_format=torch.channels_last)
