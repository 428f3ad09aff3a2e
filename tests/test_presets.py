import itertools
from dataclasses import replace

import pytest

from dwlth import presets
from dwlth.errors import DwlthError
from dwlth.recipe import Recipe
from dwlth.running.settings import override
from dwlth.runs import Run, plain

DIGITS = presets.get("digits")
TRANSFER = Run("transfer", "standard", 0, 4, downstream="digits5-9", regime="adversarial", fraction=0.1)


def test_the_grid_of_digits():
    runs = DIGITS.grid()
    assert len(runs) == len(set(runs)) == 6 * 3 * (1 + 11 + 6 * 2 * 2)
    place = {run: i for i, run in enumerate(runs)}
    assert all(place[need] < place[run] for run in runs for need in run.needs())


def test_ids_are_of_the_whole_configuration():
    ids = {DIGITS.run_id(run) for run in DIGITS.grid()}
    assert len(ids) == len(DIGITS.grid())
    id_ = DIGITS.run_id(TRANSFER)
    for setting in (
        "transfer.adversarial.lr=0.2",
        "transfer.adversarial.attack.eps=0.1",
        "imp.standard.epochs=1",
        "pretrain.weight_decay=0.1",
        "evaluation.steps=50",
        "prune_rate=0.3",
        "network=small_resnet32",
    ):
        assert override(DIGITS, [setting]).run_id(TRANSFER) != id_, setting


def test_ids_hold_nothing_else():
    """What a run does not depend on leaves its id alone, so a grid can be widened."""
    for setting in ("seeds=7", "fractions=0.1", "rounds=0,4", "transfer.standard.lr=1.0", "imp.adversarial.epochs=9"):
        assert override(DIGITS, [setting]).run_id(TRANSFER) == DIGITS.run_id(TRANSFER), setting
    dense = replace(TRANSFER, round=0)
    assert override(DIGITS, ["imp.epochs=9"]).run_id(dense) == DIGITS.run_id(dense)


def test_settings_reach_every_recipe_or_one():
    both = override(DIGITS, ["transfer.epochs=5"])
    assert {recipe.epochs for recipe in both.transfer.values()} == {5}
    one = override(DIGITS, ["transfer.adversarial.attack.steps=3", "fractions=0.5,0.1", "imp.lr=1"])
    assert one.transfer["adversarial"].attack.steps == 3 and one.transfer["standard"].attack.steps == 0
    assert one.fractions == (0.5, 0.1) and one.imp["standard"].lr == 1.0


def test_settings_that_change_the_runs_change_the_folder():
    assert override(DIGITS, ["seeds=3", "rounds=0,4"]).name == "digits"
    one, two = override(DIGITS, ["transfer.epochs=5"]).name, override(DIGITS, ["transfer.epochs=6"]).name
    assert len({"digits", one, two}) == 3 and one.startswith("digits-")


def test_side_by_side_or_alone_are_other_bits_in_another_folder():
    alone = override(DIGITS, ["together=1"])
    assert alone.name.startswith("digits-") and alone.run_id(TRANSFER) != DIGITS.run_id(TRANSFER)
    assert not alone.is_of(plain(DIGITS)) and DIGITS.is_of(plain(DIGITS))
    assert override(DIGITS, ["together=7"]).name == "digits" and DIGITS.is_of(plain(DIGITS) | {"together": 7})


def test_equal_runs_have_one_id():
    whole, one = replace(TRANSFER, fraction=1.0), replace(TRANSFER, fraction=1)
    assert whole == one and DIGITS.run_id(whole) == DIGITS.run_id(one)


def test_seeds_at_are_set_as_a_whole():
    for name in ("digits", "cifar-small"):  # none, and some
        assert override(presets.get(name), ["seeds_at={0.1: 5}"]).seeds_at == {0.1: 5}
        with pytest.raises(DwlthError, match="seeds_at.0.1=5: no setting '0' within {.*}: give that as a whole"):
            override(presets.get(name), ["seeds_at.0.1=5"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("transfer.epochs", "write it as name=value"),
        ("transfer.epoch=3", "no setting 'epoch'.*epochs"),
        ("transfer=3", "a group: go on with .standard or .adversarial"),
        ("transfer.standard=3", "a group: go on with .epochs"),
        ("transfer.epochs=many", "'many' is no int"),
        ("seeds_at={[0.1]: 5}", "5.' is no dict"),
        ("transfer.lr=1e999", "'1e999' is no float"),
        ("transfer.epochs=0", "epochs is 0"),
        ("transfer.epochs.more=1", "no setting 'more'"),
        ("evaluation.eps=-0.1", "eps"),
        ("evaluation.bn=train", "bn of the evaluation is 'train': give eval"),
        ("transfer.validation.bn=frozen", "recipe: bn of the validation is 'frozen'"),
        ("pretrain.momentum=1.0", "momentum is 1.0: give 0 or more"),
        ("transfer.weight_decay=-1.0", "weight_decay is -1.0: give 0 or more"),
        ("evaluation.targeted=True", "evaluation: a targeted attack"),
        ("transfer.attack.targeted=True", "recipe: a targeted attack"),
        ("prune_rate=-0.2", "prune_rate is -0.2"),
        ("fractions=0.0", "fractions is .0.0,.: give numbers above 0"),
        ("subset=foo", "subset is 'foo': give first, random or balanced"),
        ("margins.sa=-1", "margins is .*give points for sa and ra, 0 or more"),
        ("rounds=0,-1", "rounds is .0, -1.: give 0"),
        ("methods=best", "unknown method 'best'.*oneshot"),
        ("methods=imp,crossed@", "unknown method 'crossed@'"),
        ("autoattack_images=0", "autoattack_images is 0: give 1 or more"),
        ("seeds_at={0.1: 2.0}", "seeds_at is {0.1: 2.0}: give numbers of seeds, 1 or more, by fraction"),
        ('seeds_at={"0.1": 9}', "seeds_at is {'0.1': 9}: give numbers of seeds, 1 or more, by fraction: {0.1: 5}"),
        ("seeds_at={10: 9}", "seeds_at is {10: 9}: give numbers of seeds"),
        ("seeds_at={0.1: 0}", "seeds_at is {0.1: 0}: give numbers of seeds"),
        ("transfer.augment.scale=1.0", r"augment: scale is \(1.0,\): give \(low, high\)"),
        ("transfer.augment.ratio=0.5,1.0,2.0", r"augment: ratio is .*: give \(low, high\), above 0"),
        ("seeds=0", "seeds is 0"),
        ("network=resnet51", "network is 'resnet51': give one of .*resnet50"),
        ("upstream=mnist", "unknown dataset 'mnist'.*cifar10"),
        ("name=x", "no setting 'name'"),
    ],
)
def test_refuses_bad_settings(setting, message):
    with pytest.raises(DwlthError, match=message):
        override(DIGITS, [setting])


def test_no_round_is_refused():
    with pytest.raises(DwlthError, match=r"rounds is \(\): give 0"):
        replace(DIGITS, rounds=())


@pytest.mark.parametrize(
    "settings",
    [
        ["transfer.schedule=cosine", "transfer.warm_up=0"],
        ["transfer.momentum=0", "transfer.nesterov=False"],
        ["transfer.augment.crop=resized", "transfer.augment.size=288", "transfer.augment.resize=320"],
    ],
)
def test_settings_that_are_right_together_are_so_in_any_order(settings):
    small = presets.get("cifar-small")
    every = [override(small, list(order)) for order in itertools.permutations(settings)]
    assert all(one == every[0] for one in every) and every[0].name != small.name
    with pytest.raises(DwlthError, match="warm_up is 0.2: give 0, or for the schedule onecycle"):
        override(small, ["transfer.schedule=cosine", "seeds=2"])


def test_what_is_asked_for_twice_is_run_once():
    twice = override(DIGITS, ["methods=imp,imp", "downstream=digits5-9,digits5-9", "rounds=0,2,2", "fractions=1.0,1.0"])
    once = override(DIGITS, ["rounds=0,2", "fractions=1.0"])
    assert sorted(map(str, twice.grid())) == sorted(map(str, once.grid()))


def test_nesterov_asks_for_momentum():
    with pytest.raises(DwlthError, match="momentum is 0.0: give 0 or more .nesterov: above 0."):
        Recipe(epochs=1, batch_size=1, lr=0.1, momentum=0.0, nesterov=True)


def test_refuses_an_unknown_preset():
    with pytest.raises(DwlthError, match="unknown preset 'imagenet'.*digits"):
        presets.get("imagenet")
