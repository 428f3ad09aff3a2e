"""A network without its dead channels computes what the whole one does, and trains to the same end."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dwlth import data, masks, models, presets, training
from dwlth.data import Augment, Streamed
from dwlth.errors import DwlthError, NotYet
from dwlth.evaluation import evaluate
from dwlth.fast.folding import fold
from dwlth.fast.shrink import channels, shrink, shrink_for_training
from dwlth.masks import Mask
from dwlth.recipe import Recipe
from dwlth.results import Folder
from dwlth.show.sparsity import draw_savings, multiplications, packed_bytes, savings

SIDES = {"small_resnet": 8, "small_resnet32": 32, "resnet18-3x3": 16, "resnet50": 64}


def network(name: str, seed: int = 0) -> tuple[models.Classifier, torch.Tensor]:
    """A network whose batch norms have seen something, and images; each constant is far from 0."""
    count = 1 if name == "small_resnet" else 3
    model = models.build(name, 10, [0.4] * count, [0.3] * count, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.3, 0.5, generator=generator)
    return model.eval(), torch.rand(4, count, SIDES[name], SIDES[name], generator=generator)


def same(small: nn.Module, model: nn.Module, images: torch.Tensor) -> bool:
    with torch.no_grad():
        found, right = small(images), model(images)
    return bool((found - right).abs().max() <= 1e-5 * right.abs().max().clamp_min(1))


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("sparsity", [0.98, 0.998])
def test_the_logits_are_those_of_the_masked_network(name, sparsity):
    model, images = network(name)
    scores = masks.magnitude(model.net) if "50" in name else masks.random(model.net, 1)
    masks.prune(masks.dense(model.net), scores, sparsity).apply_(model.net)
    small = shrink(model, images)
    assert same(small, model, images)
    assert channels(small) < channels(model) or sparsity < 0.99  # at 98 % many have lost nothing
    assert same(shrink_for_training(model), model, images)


@torch.no_grad()
def test_nothing_goes_that_is_needed():
    model, images = network("small_resnet")
    assert channels(model) == 8 + 2 * (16 + 32)
    block = model.net.layer1[0]
    dense = shrink(model, images)
    assert channels(dense) == 104 and same(dense, model, images)
    block.conv2.weight[3] = 0  # the downsample convolution still writes this channel
    assert channels(shrink(model, images)) == 104
    model.net.layer2[0].conv1.weight[:, 5] = 0  # ... and still reads this one
    assert channels(shrink(model, images)) == 104
    model.net.layer2[0].downsample[0].weight[:, 5] = 0  # now nobody does
    small = shrink(model, images)
    assert channels(small) == 103 and same(small, model, images)
    assert channels(shrink_for_training(model)) == 103


@torch.no_grad()
def test_constants_at_a_padded_border_become_one_channel_of_ones():
    model, images = network("small_resnet")
    block = model.net.layer2[0]
    block.conv1.weight[[1, 4, 7]] = 0
    block.bn1.bias[[1, 4, 7]] = 3.0  # far above what makes ReLU 0
    small = shrink(model, images)
    assert channels(small) == 102 and same(small, model, images)  # as a bias, the border would be wrong
    assert channels(shrink_for_training(model)) == 104  # in training each is a bias of its own
    block.bn1.bias[[1, 4, 7]] = -30.0  # always 0 after ReLU
    small = shrink(model, images)
    assert channels(small) == 101 and same(small, model, images)


@torch.no_grad()
def test_a_constant_that_a_residual_connection_carries():
    model, images = network("resnet18-3x3")
    first, second = model.net.layer4
    dead = [0, 9, 30]
    for conv, norm in (
        (first.conv2, first.bn2),
        (first.downsample[0], first.downsample[1]),
        (second.conv2, second.bn2),
    ):
        conv.weight[dead] = 0
        norm.bias[dead] = 1.5  # it grows from block to block, and the padded convolution reads the first value
    small = shrink(model, images)
    assert channels(small) == channels(model) - 2 and same(small, model, images)
    second.conv1.weight[:, dead] = 0  # the head alone reads them: they are in its bias
    small = shrink(model, images)
    assert channels(small) == channels(model) - 3 and same(small, model, images)


@torch.no_grad()
def test_a_constant_is_folded_where_no_border_is():
    model, images = network("resnet50")
    block = model.net.layer2[1]
    block.conv2.weight[:100] = 0  # the 1x1 convolution after it is not padded
    small = shrink(model, images)
    assert channels(small) == channels(model) - 100 and same(small, model, images)


@torch.no_grad()
def test_the_dead_take_others_along():
    model, images = network("small_resnet32")
    model.net.layer3[0].conv2.weight.zero_()  # so nobody reads what conv1 writes; one channel stays
    small = shrink(model, images)
    assert channels(small) == 448 - 127 and same(small, model, images)


def test_training_the_smaller_network_ends_where_the_masked_one_does():
    task = data.load("digits0-4")
    model = models.build("small_resnet", 5, task.mean, task.std, seed=0)
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.95)
    mask["layer2.0.conv2.weight"][:, :20] = False
    mask["layer1.0.conv1.weight"][:5] = False  # a bias, and must stay one
    again = mask.apply_(model.net)
    small = shrink_for_training(model)
    assert channels(small) <= channels(model) - 20
    recipe = Recipe(2, 32, 0.05, weight_decay=5e-4, validate_every=2)
    train, before = task.train.take(list(range(256))), copy.deepcopy(small)
    training.fit(
        small, recipe, train, task.val, seed=1, mask=Mask({n: w != 0 for n, w in masks.prunable(small.net).items()})
    )
    training.fit(model, recipe, train, task.val, seed=1, mask=mask)
    again()
    images = next(task.test.batches(100))[0]
    with torch.no_grad():
        found, right, untrained = (net.eval()(images) for net in (small, model, before))
    assert (found - right).abs().max() < 1e-3 < 0.1 < (untrained - right).abs().max()
    assert evaluate(small, task.test, recipe.attack, 0) == evaluate(model, task.test, recipe.attack, 0)


def test_networks_whose_batch_norm_cannot_be_folded_are_refused(monkeypatch):
    model, images = network("small_resnet")
    monkeypatch.setattr("dwlth.fast.shrink.fold", lambda model, images: fold(model, images * torch.nan))
    with pytest.raises(DwlthError, match="batch norm"):
        shrink(model, images)


def test_bytes_and_multiplications_of_a_network_counted_by_hand():
    model, images = network("small_resnet")
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.9)
    numbers = sum(tensor.numel() for tensor in model.net.state_dict().values() if tensor.is_floating_point())
    counters = sum(not tensor.is_floating_point() for tensor in model.net.state_dict().values())
    whole, packed = packed_bytes(model, mask)
    assert whole == 4 * numbers + 8 * counters
    assert packed == whole - 4 * mask.total + 4 * mask.kept + sum(math.ceil(each.numel() / 8) for each in mask.values())
    conv = models.build("small_resnet", 10, [0.4], [0.3], 0)
    conv.net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 5, 1, stride=2))
    assert multiplications(conv, images) == 8 * 8 * 2 * 9 + 4 * 4 * 5 * 2


def test_what_sparsity_buys_where_images_are_streamed(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(tmp_path / "0.png")
    streamed = Streamed(np.array([str(tmp_path / "0.png")]), torch.tensor([0]))
    monkeypatch.setattr(data, "blank", lambda name: None)
    monkeypatch.setattr(Folder, "dataset", lambda *_: SimpleNamespace(test=streamed))
    small = presets.get("cifar-small")
    views = Augment("resized", size=32, resize=40)
    imp = {source: replace(recipe, augment=views) for source, recipe in small.imp.items()}
    folder = Folder(replace(small, imp=imp), Path(__file__).parents[1] / "results")
    assert savings(folder, 0, ("standard", 1))["smaller"].item() > 1


def test_what_sparsity_buys_is_read_from_the_tickets_on_disk(tmp_path):
    folder = Folder(presets.get("digits"), Path(__file__).parents[1] / "results")
    found = savings(folder).set_index(["source", "round"])
    early, late = found.loc[("standard", 1)], found.loc[("standard", 19)]
    assert early["dead"] == early["saved"] == 0 and 1 < early["smaller"] < 1.3
    assert late["dead"] > 0 and late["saved"] > 0 and late["smaller"] > 10
    assert len(draw_savings(found.reset_index()).axes) == 3
    with pytest.raises(NotYet, match=r"no ticket of seed 0 is on disk: `experiment.have\(experiment.runs\("):
        savings(Folder(presets.get("digits"), tmp_path))
