"""Networks side by side: each is what it would be alone."""

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from dwlth import masks, models
from dwlth.attacks import Attack
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.fast.folding import fold
from dwlth.fast.stack import Stack, _grouped
from dwlth.recipe import Recipe
from dwlth.results import Folder
from dwlth.runs import Run
from dwlth.sources import pretrain
from dwlth.tickets import imp_round
from dwlth.training import fit, fit_members
from dwlth.transfer import transfer

PGD = Attack(0.2, 0.05, 3, bn="train")
RECIPE = Recipe(2, 32, 0.05, attack=PGD, validation=replace(PGD, bn="eval"))


def members(task, count, network="small_resnet"):
    built = [models.build(network, task.classes, task.mean, task.std, seed) for seed in range(count)]
    return built, [masks.prune(masks.dense(m.net), masks.magnitude(m.net), 0.2 * i) for i, m in enumerate(built)]


def side_by_side(task, nets, recipe, masks=None):
    n = len(nets)
    return fit_members(nets, recipe, [task.train] * n, [task.val] * n, seeds=[0] * n, masks=masks, stacked=True)


def test_networks_side_by_side_have_as_many_images_each(task):
    """A network with more images than the first would never see the rest of them."""
    (few, many), _ = members(task, 2)
    for trains, vals, part in (([100, 164], [50, 50], "training"), ([100, 100], [50, 49], "validation")):
        trains, vals = ([task.train.take(list(range(size))) for size in sizes] for sizes in (trains, vals))
        with pytest.raises(DwlthError, match=rf"^{part} images of networks side by side is \[.*\]: give each as many"):
            fit_members([few, many], RECIPE, trains, vals, seeds=[0, 0], stacked=True)


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
    """With AVX2 alone, oneDNN takes another kernel for three grouped convolutions of one channel than for two."""
    exact = torch.backends.cpu.get_cpu_capability() != "AVX2"
    near = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-3, "atol": 1e-4}
    _, three = train_together(task, (0, 1, 2))
    _, others = train_together(task, (2, 0))
    _, double = train_together(task, (0, 0))
    for of_zero in (others[1], double[0], double[1]):
        for row, expected in zip(of_zero.history, three[0].history):
            for key in row.keys() - {"seconds"}:
                same = exact or not isinstance(row[key], float)
                assert row[key] == (expected[key] if same else pytest.approx(expected[key], rel=1e-3)), key
        for metric in ("sa", "ra"):
            state, expected = of_zero.best[metric]["state"], three[0].best[metric]["state"]
            torch.testing.assert_close(dict(state), dict(expected), **near)
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


class PreActivation(nn.Module):
    """Batch norm before each convolution, so that one follows, in order of registration, a convolution that it does
    not norm."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv1(x)
        x = x + self.conv2(self.bn2(x).relu())
        return self.fc(self.bn3(x).relu().mean((2, 3)))


def test_batch_norm_that_comes_before_its_convolution_is_not_folded(task):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.Classifier(PreActivation(), task.mean, task.std).to(task.train.images.device)
    fit(model, replace(RECIPE, attack=Attack(), validation=Attack()), task.train, task.val, seed=0)
    model.eval()
    x, y = next(task.test.batches(len(task.test)))
    assert torch.equal(fold(model, x[:8])(x), model(x))
    right = (model(x).argmax(1) == y).float().mean().item()
    assert evaluate(model, task.test, Attack(), seed=0)[0] == pytest.approx(right, abs=1e-6)


def test_what_cannot_be_grouped_is_refused_and_the_rest_is_copied():
    with pytest.raises(DwlthError, match="padding mode is 'reflect', not 'zeros'"):
        _grouped(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 2)
    with pytest.raises(DwlthError, match="cannot stack BatchNorm2d"):
        _grouped(nn.BatchNorm2d(4, affine=False), 2)
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2)
    both = _grouped(conv, 2)
    both.load_state_dict({name: torch.cat([t, t]) for name, t in conv.state_dict().items()})
    x = torch.rand(3, 2, 9, 9)
    assert torch.allclose(both(torch.cat([x, x], 1)), torch.cat([conv(x)] * 2, 1), atol=1e-6)


def test_a_seed_gives_one_network_beside_a_thread_that_stacks(task):
    build = lambda: models.build("small_resnet", task.classes, task.mean, task.std, seed=0).state_dict()
    expected, members, done = build(), members_of(task), threading.Event()

    def stack():
        while not done.is_set():
            Stack(members)

    thread = threading.Thread(target=stack)
    thread.start()
    try:
        others = sum(any(not torch.equal(t, expected[name]) for name, t in build().items()) for _ in range(300))
    finally:
        done.set()
        thread.join()
    assert others == 0


def members_of(task):
    return members(task, 2)[0]


STAGES = {
    "pretrain": (pretrain, lambda seed: Run("pretrain", "adversarial", seed)),
    "imp": (imp_round, lambda seed: Run("imp", "adversarial", seed, 1)),
    "transfer": (
        transfer,
        lambda seed: Run("transfer", "adversarial", seed, 1, "imp", "digits5-9", "adversarial", 0.1),
    ),
}


def test_seeds_and_data_of_its_own_change_no_bit_of_a_member(tiny, tmp_path):
    """In each stage: beside a run of another seed, so with other weights, masks, images and draws, and beside its
    double."""
    assert tiny.splits == "by seed"
    together, alone = Folder(tiny, tmp_path / "together"), Folder(tiny, tmp_path / "alone")
    for stage, (do, run) in STAGES.items():
        found = do(together, [run(0), run(1)], stacked=True)
        lone = [do(alone, [run(seed)], stacked=True)[0] for seed in (0, 1)]
        assert [without_seconds(each) for each in found] == [without_seconds(each) for each in lone], stage
        assert without_seconds(found[0]) != without_seconds(found[1]), stage
        for seed in (0, 1):
            path = together.made(run(seed))
            assert path.read_bytes() == alone.made(run(seed)).read_bytes(), stage
            if stage == "pretrain":  # and the first ticket
                for folder in (together, alone):
                    imp_round(folder, [Run("imp", "adversarial", seed)])


def without_seconds(result):
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result["history"]]
    return result | {"history": rows}
