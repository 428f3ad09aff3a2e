"""Ids: results of this version are found by every later one."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from dwlth import presets
from dwlth.runs import Run, digest, later, plain, stream

RUNS = {
    "pretrain": Run("pretrain", "adversarial", 0),
    "imp": Run("imp", "fast_adversarial", 0, 3),
    "transfer": Run("transfer", "standard", 0, 3, "imp", "cifar10", "adversarial", 0.1),
    "autoattack": Run("autoattack", "standard", 0, 3, "imp", "cifar10", "adversarial", 1.0),
}
IDS = {
    "digits": {
        "pretrain": "1430db875e18",
        "imp": "04503962c38a",
        "transfer": "189a7b06a99f",
        "autoattack": "2f9e991b012b",
    },
    "cifar-small": {
        "pretrain": "a3213c981056",
        "imp": "9bcc92102671",
        "transfer": "c7a7236df85c",
        "autoattack": "08a855d22a01",
    },
    "cifar": {
        "pretrain": "329eeb06cdc1",
        "imp": "45cc4e5052d2",
        "transfer": "88c7145894e2",
        "autoattack": "2d75055be7e6",
    },
    "paper": {
        "pretrain": "dc7ba84ca594",
        "imp": "bba7fa0ea6a7",
        "transfer": "f04d28e30953",
        "autoattack": "ee51e501ae00",
    },
}


@pytest.mark.parametrize("preset", IDS)
def test_ids_stay_what_they_are(preset):
    """If this fails, every result of that preset is orphaned: give a new field `later(BEFORE)` instead."""
    found = presets.get(preset)
    assert {stage: found.run_id(run) for stage, run in RUNS.items()} == IDS[preset]


@dataclass(frozen=True)
class Before:
    lr: float = 0.1


@dataclass(frozen=True)
class After(Before):
    smoothing: float = later(0.0)


def test_a_later_field_keeps_ids_at_its_neutral_value_alone():
    id_ = digest(plain({"recipe": Before()}))
    assert digest(plain({"recipe": After()})) == id_
    assert digest(plain({"recipe": After(smoothing=0.1)})) != id_


@pytest.mark.parametrize("field, value", [("nesterov", True), ("decay_norms", False), ("keep", "sound"), ("parts", 2)])
def test_a_recipe_s_later_fields_change_ids(field, value):
    preset = presets.get("cifar")
    name = "fast_adversarial"  # FGSM, which may keep what is sound
    recipe = replace(preset.pretrain[name], **{field: value})
    changed = replace(preset, pretrain=preset.pretrain | {name: recipe})
    run = Run("pretrain", name, 0)
    assert changed.run_id(run) != preset.run_id(run)
    assert replace(changed, pretrain=preset.pretrain).run_id(run) == preset.run_id(run)


def test_that_runs_train_side_by_side_is_part_of_the_id_and_how_many_is_not():
    digits = presets.get("digits")
    run = Run("transfer", "standard", 0, 2, "imp", "digits5-9", "adversarial", 0.1)
    alone, two, ten = (replace(digits, together=n).config(run) for n in (1, 2, 10))
    assert two == ten and ten == alone | {"stacked": True}
    first = Run("imp", "standard", 0)  # trains nothing
    assert replace(digits, together=1).run_id(first) == digits.run_id(first)


def test_whole_numbers_of_numpy_are_whole_numbers():
    digits = presets.get("digits")
    plain = Run("transfer", "standard", 3, 2, "imp", "digits5-9", "adversarial", 0.1, source_seed=1)
    theirs = Run("transfer", "standard", np.int64(3), np.int32(2), "imp", "digits5-9", "adversarial", 0.1, np.int64(1))
    assert digits.run_id(theirs) == digits.run_id(plain) and str(theirs) == str(plain)
    assert Run("transfer", "standard", 3.0, np.float64(2)) == Run("transfer", "standard", 3, 2)
    assert str(Run("imp", "standard", 3.0, 2.0)) == str(Run("imp", "standard", 3, 2))
    assert stream(np.int64(7), "train", 1) == stream(7, "train", 1)


def test_seeds_that_share_a_source():
    preset = replace(presets.get("digits"), seeds=5, per_source=2, seeds_at={0.1: 2}, rounds=(0, 2))
    runs = preset.grid()
    assert {run.seed for run in runs if run.stage != "transfer"} == {0, 1, 2}
    of = lambda fraction: {run.seed for run in runs if run.stage == "transfer" and run.fraction == fraction}
    assert of(1.0) == {0, 1, 2, 3, 4} and of(0.1) == {0, 1}
    third = next(run for run in runs if run.seed == 3 and run.round == 2)
    assert third.from_seed == 1
    assert third.needs() == [Run("pretrain", third.source, 1), Run("imp", third.source, 1, 1)]
    assert set(third.needs()) < set(runs)
    for stage in ("autoattack", "connect"):  # which load the source and the ticket too
        assert replace(third, stage=stage).needs() == [third, *third.needs()]
    from dwlth.results import Folder

    folder = Folder(preset)
    assert folder.source(third) == folder.source(Run("pretrain", third.source, 1))
    assert folder.ticket(third) == folder.ticket(Run("imp", third.source, 1, 1).pruned)
    second = replace(third, seed=2)
    assert folder.record(third) != folder.record(second) and folder.ticket(third) == folder.ticket(second)
