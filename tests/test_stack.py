"""Networks side by side: each is what it would be alone."""

import copy
from dataclasses import replace

import pytest
import torch

from dwlth import masks, models
from dwlth.attacks import Attack
from dwlth.evaluation import evaluate
from dwlth.fast.stack import Stack
from dwlth.recipe import Recipe
from dwlth.training import fit, fit_members

PGD = Attack(0.2, 0.05, 3, bn="train")
RECIPE = Recipe(2, 32, 0.05, attack=PGD, validation=replace(PGD, bn="eval"))


def members(task, count, network="small_resnet"):
    built = [models.build(network, task.classes, task.mean, task.std, seed) for seed in range(count)]
    return built, [masks.prune(masks.dense(m.net), masks.magnitude(m.net), 0.2 * i) for i, m in enumerate(built)]


def side_by_side(task, nets, recipe, masks=None):
    n = len(nets)
    return fit_members(nets, recipe, [task.train] * n, [task.val] * n, seeds=[0] * n, masks=masks, stacked=True)


def train_together(task, chosen, recipe=RECIPE):
    built, own_masks = members(task, max(chosen) + 1)
    nets, their_masks = [copy.deepcopy(built[i]) for i in chosen], [own_masks[i] for i in chosen]
    return nets, side_by_side(task, nets, recipe, their_masks)


@pytest.mark.parametrize("network", ["small_resnet", "resnet18-3x3", "resnet50"])
def test_a_stack_is_the_same_function(task, network):
    side = 32 if network != "small_resnet" else 8
    channels = 3 if network != "small_resnet" else 1
    alone = [models.build(network, 5, [0.5] * channels, [0.25] * channels, seed).eval().double() for seed in range(3)]
    stack = Stack(alone).eval().double()
    x = torch.rand(2, channels, side, side, dtype=torch.double)
    together = stack(x.repeat_interleave(3, 0)).view(2, 3, 5)
    for member, model in enumerate(alone):
        assert torch.allclose(together[:, member], model(x), atol=1e-9)
    for again, model in zip(stack.alone(), alone):
        assert all(torch.equal(again.net.state_dict()[name], t) for name, t in model.net.state_dict().items())
        assert torch.equal(again(x), model(x))


def test_members_train_as_they_would_alone(task):
    """Up to float32 rounding, which training magnifies: so one short epoch, and losses, not bits."""
    recipe = replace(RECIPE, epochs=1)
    built, own_masks = members(task, 2)
    _, fits = train_together(task, (0, 1), recipe)
    for model, mask, together in zip(built, own_masks, fits):
        alone = fit(model, recipe, task.train, task.val, seed=0, mask=mask)
        assert together.history[0]["loss"] == pytest.approx(alone.history[0]["loss"], rel=1e-3)
        assert together.history[0]["val_sa"] == pytest.approx(alone.history[0]["val_sa"], abs=0.03)


def test_companions_change_no_bit(task):
    _, three = train_together(task, (0, 1, 2))
    _, others = train_together(task, (2, 0))
    _, double = train_together(task, (0, 0))
    for of_zero in (others[1], double[0], double[1]):
        for row, expected in zip(of_zero.history, three[0].history):
            assert {k: v for k, v in row.items() if k != "seconds"} == {
                k: v for k, v in expected.items() if k != "seconds"
            }
        for metric in ("sa", "ra"):
            state, expected = of_zero.best[metric]["state"], three[0].best[metric]["state"]
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert others[0].history[-1]["loss"] != others[1].history[-1]["loss"]


def test_masks_hold_for_each_member(task):
    _, own_masks = members(task, 3)
    nets, _ = train_together(task, (0, 1, 2))
    for one, mask in zip(nets, own_masks):
        zeros = {name: one.net.state_dict()[name] == 0 for name in mask}
        assert all(zeros[name][~mask[name]].all() for name in mask)
        assert sum(int(z.sum()) for z in zeros.values()) <= mask.total - mask.kept + 5


def test_a_member_that_breaks_down_leaves_the_others_alone(task):
    built, _ = members(task, 2)
    with torch.no_grad():
        built[1].net.fc.weight.fill_(float("nan"))
    fits = side_by_side(task, built, RECIPE)
    assert "nan" in fits[1].error and not fits[0].error
    _, whole = train_together(task, (0, 0), RECIPE)
    assert fits[0].history[-1]["loss"] == whole[0].history[-1]["loss"]


def test_ra_counts_images_right_as_they_are_and_attacked(task):
    model = models.build("small_resnet", task.classes, task.mean, task.std, 0)
    fit(model, replace(RECIPE, attack=Attack(), validation=Attack()), task.train, task.val, seed=0)
    weak = Attack(0.02, 0.01, 2)
    sa, ra = evaluate(model, task.test, weak, seed=0)
    exact_sa, exact_ra = evaluate(model, task.test, weak, seed=0, exact=True)
    assert sa == exact_sa and ra <= min(sa, exact_ra)
    assert abs(ra - exact_ra) < 0.01
