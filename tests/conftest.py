"""What several tests share: a network, its data, and a `digits` so small that a run takes a moment."""

import pytest
import torch

from dwlth import data, models, presets
from dwlth.running.settings import override

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

TINY = [
    "pretrain.epochs=2",
    "imp.epochs=2",
    "transfer.epochs=2",
    "pretrain.validate_every=1",
    "transfer.validate_every=1",
    *(f"{stage}.adversarial.attack.steps=3" for stage in ("pretrain", "imp", "transfer")),
    *(f"{name}.validation.steps=2" for name in ("pretrain.fast_adversarial", "pretrain.adversarial")),
    "transfer.adversarial.validation.steps=2",
    "evaluation.steps=2",
    "rounds=0,2,3",
    "fractions=1.0,0.01",
    "seeds=1",
]


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def tiny():
    return override(presets.get("digits"), TINY)


@pytest.fixture
def tiny_args():
    return [word for setting in TINY for word in ("--set", setting)]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def task(device):
    return data.load("digits0-4").to(device)


@pytest.fixture
def model(task, device):
    return models.build("small_resnet", task.classes, task.mean, task.std, seed=0).to(device)
