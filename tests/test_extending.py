"""One table each: a method, regime, source, dataset or network of one's own, and the whole road with it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dwlth import data, masks, models, presets
from dwlth.data.datasets import Entry
from dwlth.errors import DwlthError
from dwlth.interface.commands import main
from dwlth.masks import Method
from dwlth.results import read_table


@pytest.fixture
def small(tiny):
    return replace(tiny, rounds=(0, 1), fractions=(1.0,), pretrain={"standard": tiny.pretrain["standard"]})


def whole_road(preset, tmp_path, monkeypatch):
    """Run it, with the verdict and the figures; returns the table."""
    preset = replace(preset, name="own")
    monkeypatch.setitem(presets.PRESETS, "own", preset)
    args = ["own", "--results", str(tmp_path)]
    assert main(["run", *args, "--device", "cpu", "--workers", "1"]) == 0
    assert main(["verdict", *args]) == 0 and main(["figures", *args]) == 0
    assert list((tmp_path / "own" / "figures").glob("*.png"))
    table = read_table(tmp_path / "own" / "table.csv")
    assert len(table) == len(preset.grid())
    return table


def lowest_first(net, seed):
    """Scores of a toy method: weights that come first are pruned first."""
    return {
        name: torch.arange(1.0, weight.numel() + 1).view(weight.shape) for name, weight in masks.prunable(net).items()
    }


def test_a_pruning_method(small, tmp_path, monkeypatch):
    monkeypatch.setitem(masks.METHODS, "first", Method("First", lowest_first))
    table = whole_road(replace(small, methods=("imp", "first")), tmp_path, monkeypatch)
    rows = table[table["method"] == "first"]
    assert len(rows) == 2 and set(rows["round"]) == {1} and rows["sparsity"].between(0.199, 0.201).all()
    theirs = table[(table["stage"] == "transfer") & (table["method"] == "imp") & (table["round"] == 1)]
    assert rows["sa"].tolist() != theirs["sa"].tolist()  # and not the tickets of another


def test_a_regime(small, tmp_path, monkeypatch):
    weak = replace(small.transfer["standard"], lr=0.01)
    table = whole_road(replace(small, transfer=small.transfer | {"slow": weak}), tmp_path, monkeypatch)
    assert set(table["regime"]) == {"", "standard", "adversarial", "slow"} and (table["regime"] == "slow").sum() == 2


def test_a_source(small, tmp_path, monkeypatch):
    own = {
        "pretrain": small.pretrain | {"mine": small.pretrain["standard"]},
        "imp": small.imp | {"mine": small.imp["standard"]},
    }
    table = whole_road(replace(small, **own), tmp_path, monkeypatch)
    assert (table["source"] == "mine").sum() == len(table) / 2


def test_a_dataset(small, tmp_path, monkeypatch):
    def stripes(root, order, seed):
        """Horizontal ones, and vertical ones."""
        images = torch.zeros(80, 1, 8, 8, dtype=torch.uint8)
        images[::2, :, ::2], images[1::2, :, :, ::2] = 255, 255
        split = data.Split(images, torch.arange(80) % 2)
        return data.Dataset("stripes", split, split, split, 2, (0.5,), (0.5,))

    monkeypatch.setitem(data.DATASETS, "stripes", Entry(stripes))
    table = whole_road(replace(small, downstream=("stripes",)), tmp_path, monkeypatch)
    assert (table["downstream"] == "stripes").sum() == 4


class Tiny(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.bn1(self.conv1(x)).relu().mean((2, 3)))


def test_a_network(small, tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "tiny", Tiny)
    table = whole_road(replace(small, network="tiny"), tmp_path, monkeypatch)
    assert table[table["round"] == 1]["sparsity"].tolist() == pytest.approx([7 / 36] * 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network=resnet51", "network is 'resnet51': give one of small_resnet"),
        ("methods=grasp", "unknown method 'grasp': choose from imp, oneshot, random"),
        ("downstream=mnist", "unknown dataset 'mnist': choose from digits0-4"),
        ("transfer.standard@svnh.lr=0.1", "no recipe 'standard@svnh': choose from standard, adversarial"),
    ],
)
def test_a_wrong_name_is_said_before_anything_runs(setting, message, tmp_path, capsys):
    assert main(["run", "digits", "--results", str(tmp_path), "--set", setting]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("dwlth: error: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, message", [("robust@svhn", "no regime 'robust': it has"), ("standard@svnh", "svnh")])
def test_a_recipe_for_a_task_or_regime_that_is_none(tiny, name, message):
    with pytest.raises(DwlthError, match=message):
        replace(tiny, transfer=tiny.transfer | {name: tiny.transfer["standard"]})


def test_a_source_without_a_recipe_for_imp(tiny):
    with pytest.raises(DwlthError, match="imp has no recipe for the source 'mine'"):
        replace(tiny, pretrain=tiny.pretrain | {"mine": tiny.pretrain["standard"]})
