import json
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dwlth.attacks import Attack
from dwlth.errors import DwlthError
from dwlth.outside.autoattack import autoattack
from dwlth.recipe import Recipe
from dwlth.training import fit

PGD = Attack(eps=0.2, step_size=0.05, steps=5)
FGSM_RS = Attack(eps=0.2, step_size=0.25, steps=1)
L2 = Attack(eps=1.0, step_size=0.25, steps=5, norm="l2")


@pytest.fixture
def batch(task):
    return next(task.train.batches(32))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("attack", [PGD, FGSM_RS, L2], ids=["pgd", "fgsm", "l2"])
@pytest.mark.parametrize("bn", ["eval", "train", "frozen"])
@pytest.mark.parametrize("random_start", [True, False])
def test_stays_in_the_ball_and_raises_the_loss(model, batch, attack, bn, random_start):
    x, y = batch
    before = x.clone()
    adv = replace(attack, bn=bn, random_start=random_start)(model, x, y)
    assert torch.equal(x, before)
    assert adv.shape == x.shape and not adv.requires_grad
    distance = torch.linalg.vector_norm((adv - x).flatten(1), 2 if attack.norm == "l2" else torch.inf, dim=1)
    assert distance.max() <= attack.eps + 1e-6
    assert distance.min() > attack.eps / 2
    assert adv.min() >= 0 and adv.max() <= 1
    model.train(bn != "eval")
    assert F.cross_entropy(model(adv), y) > F.cross_entropy(model(x), y)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bn", ["eval", "frozen"])
def test_leaves_the_model_as_it_found_it(model, batch, training, bn):
    model.train(training)
    model.net.bn1.eval()  # a module with a mode of its own
    model.net.fc.weight.requires_grad_(False)
    model.net.conv1.weight.grad = torch.ones_like(model.net.conv1.weight)
    before = state(model)
    Attack(0.2, 0.05, 3, bn=bn)(model, *batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training == training and model.net.layer1.training == training and not model.net.bn1.training
    assert not model.net.fc.weight.requires_grad and model.net.conv1.weight.requires_grad
    assert torch.equal(model.net.conv1.weight.grad, torch.ones_like(model.net.conv1.weight))
    assert model.net.layer1[0].conv1.weight.grad is None


def test_train_mode_updates_batch_norm_at_every_pass(model, batch):
    Attack(0.2, 0.05, 7, bn="train")(model, *batch)
    assert model.net.bn1.num_batches_tracked == 7


def test_the_seed_draws_the_start(model, batch):
    draw = lambda seed: PGD(model, *batch, torch.Generator(batch[0].device).manual_seed(seed))
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("attack", [PGD, L2], ids=["linf", "l2"])
def test_the_start_is_drawn_as_it_says(model, batch, attack):
    """With steps of length 0 the start is all there is."""
    x = torch.full_like(batch[0], 0.5).repeat(100, 1, 1, 1)  # nothing is clipped
    draws = torch.Generator(x.device).manual_seed(0)
    start = replace(attack, eps=0.4, step_size=0.0, steps=1)(model, x, batch[1].repeat(100), draws) - x
    if attack.norm == "l2":
        start = start.flatten(1).norm(dim=1)  # the distance of each image: uniform in [0, eps]
    assert start.abs().max() <= 0.4 + 1e-6
    sample = start.abs().flatten()[:3200].sort().values
    expected = torch.linspace(0, 0.4, len(sample), device=sample.device)
    assert (sample - expected).abs().max() < 0.4 * 0.04  # Kolmogorov-Smirnov: 0.029 at the level of 1 %


@pytest.mark.parametrize("margin", [18, 36, 60])
def test_a_step_in_l2_has_its_length_however_confident_the_network_is(margin):
    """The square of a gradient of exp(-60) is 0 in float32."""
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    linear[1].weight.data, linear[1].bias.data = torch.tensor([[1.0] * 4, [-1.0] * 4]), torch.tensor([margin - 4.0, 0])
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    adv = Attack(eps=0.8, step_size=0.1, steps=3, random_start=False, norm="l2")(linear, x, y)
    assert (adv - x).flatten(1).norm(dim=1).item() == pytest.approx(0.3, rel=1e-4)


def test_no_gradient_is_no_step(batch):
    """A network that sees nothing, and a ball of radius 0: no division by 0."""
    blind = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).to(batch[0].device)
    nn.init.zeros_(blind[1].weight)
    for attack in (replace(L2, random_start=False), replace(L2, eps=0.0), replace(PGD, eps=0.0)):
        assert torch.allclose(attack(blind, *batch), batch[0])


class Fork(nn.Module):
    """Right with a high loss where the pixel is below a half, wrong with a lower one above."""

    def forward(self, x):
        right = x.flatten(1) < 0.5
        logits = torch.where(right, torch.tensor([0.34, 0.33, 0.33]).log(), torch.tensor([0.45, 0.54, 0.01]).log())
        return logits + 0 * x.flatten(1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("case", ["network", "fork"])
def test_restarts_keep_the_strongest_of_each_image(case, targeted):
    from dwlth import data, models

    task = data.load("digits0-4")
    if case == "network":
        model = models.build("small_resnet", 5, task.mean, task.std, seed=0).eval()
        x, y = next(task.train.batches(32))
        attack = replace(PGD, eps=0.05, step_size=0.01, targeted=targeted)
    else:
        model, x, y = Fork(), torch.full((32, 1, 1, 1), 0.5), torch.zeros(32, dtype=torch.int64) + targeted
        attack = Attack(eps=0.5, step_size=0.0, steps=1, targeted=targeted)
    generator = torch.Generator().manual_seed(0)
    runs = [attack(model, x, y, generator) for _ in range(4)]
    found = replace(attack, restarts=4)(model, x, y, torch.Generator().manual_seed(0))

    def strength(image, label):
        logits = model(image[None])
        loss = F.cross_entropy(logits, label[None]).item()
        hit = logits.argmax().item() == label.item()
        return (hit, -loss) if targeted else (not hit, loss)

    for i in range(32):
        best = max(strength(run[i], y[i]) for run in runs)
        assert strength(found[i], y[i]) == pytest.approx(best, abs=1e-6)
        assert any(torch.equal(found[i], run[i]) for run in runs)


@pytest.mark.parametrize("attack", [PGD, L2, replace(PGD, targeted=True)], ids=["linf", "l2", "targeted"])
def test_survivors_are_right_at_the_start_and_after_every_step(model, task, attack):
    fit(model, Recipe(2, 32, 0.1), task.train, task.val, seed=0)
    model.eval()
    attack = replace(attack, eps=attack.eps * 0.75, step_size=attack.step_size / 2, steps=8)
    x, y = next(task.test.batches(200))
    y = (y + 1) % 5 if attack.targeted else y
    draw = lambda: torch.Generator(x.device).manual_seed(0)
    iterates = [replace(attack, steps=1, step_size=0.0)(model, x, y, draw())]
    iterates += [replace(attack, steps=k)(model, x, y, draw()) for k in range(1, 9)]
    unbroken = torch.stack([(model(adv).argmax(1) == y) != attack.targeted for adv in iterates]).all(0)
    sizes = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    survivors = attack.survivors(model, x, y, draw())
    hook.remove()
    assert abs(survivors - int(unbroken.sum())) <= 1  # rounding may turn a borderline image in a smaller batch
    assert set(sizes) <= {200, 100, 50, 25, 12, 6, 3, 1} and len(sizes) <= 9
    if not attack.targeted:
        assert 0 < survivors < 100 and sizes[-1] < 200  # what was broken was left alone


def test_survivors_of_restarts_withstand_all_of_them():
    model, x, y = Fork(), torch.full((4096, 1, 1, 1), 0.5), torch.zeros(4096, dtype=torch.int64)
    attack = Attack(eps=0.5, step_size=0.0, steps=1, restarts=3)  # each start breaks half of them
    assert attack.survivors(model, x, y, torch.Generator().manual_seed(0)) == pytest.approx(4096 / 8, abs=90)
    always = torch.full((8, 1, 1, 1), 0.9)
    assert replace(attack, eps=0.1).survivors(model, always, y[:8]) == 0
    assert replace(attack, eps=0.1).survivors(model, 1 - always, y[:8]) == 8


@pytest.mark.parametrize("attack", [PGD, L2], ids=["linf", "l2"])
def test_targets_come_nearer(model, batch, attack):
    x, y = batch
    target = (y + 1) % 5
    adv = replace(attack, targeted=True)(model.eval(), x, target)
    assert F.cross_entropy(model(adv), target) < F.cross_entropy(model(x), target)
    opposite = attack(model, x, target)
    assert F.cross_entropy(model(opposite), target) > F.cross_entropy(model(x), target)


def test_an_attack_is_a_plain_value():
    attack = replace(L2, restarts=3, targeted=True, bn="frozen")
    again = Attack(**json.loads(json.dumps(asdict(attack))))
    assert again == attack and hash(again) == hash(attack) and len({attack, again, PGD}) == 2


@pytest.fixture
def package():
    package = pytest.importorskip("pyautoattack")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine its thousands of small operations wait for a second thread
    yield package
    torch.set_num_threads(threads)


def test_autoattack_leaves_all_as_it_found_it(package, device):
    """In a ball so small that all images withstand all four attacks."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    net = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)
    x = torch.rand(4, 3, 6, 6, device=device).to(memory_format=torch.channels_last)
    y = net.eval()(x).argmax(1)
    net.train()
    net[1].eval()  # a module with a mode of its own
    net[5].weight.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, images = state(net), x.clone()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trace, old = lambda *_: None, sys.gettrace()
    sys.settrace(trace)
    try:
        adv = autoattack(net, x, y, eps=0.1, norm="l2")
        assert sys.gettrace() is trace
    finally:
        sys.settrace(old)
    assert torch.rand(1) == expected and torch.equal(x, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training and net[0].training and not net[1].training
    assert not net[5].weight.requires_grad and net[0].weight.requires_grad
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight)) and net[0].bias.grad is None
    assert torch.equal(adv, x) and not adv.requires_grad


def test_autoattack_in_l2(package, model, batch):
    """In a ball so large that all images fall."""
    x, y = batch
    adv = autoattack(model, x, y, eps=4.0, norm="l2")
    assert (model.eval()(adv).argmax(1) != y).all()
    assert 1 < (adv - x).flatten(1).norm(dim=1).max() <= 4.0 + 1e-5 and adv.min() >= 0 and adv.max() <= 1
    assert torch.equal(autoattack(model, x, y, eps=4.0, norm="l2"), adv)  # the seed decides
    assert not torch.equal(autoattack(model, x, y, eps=4.0, norm="l2", seed=1), adv)


def test_autoattack_refuses_what_it_cannot_do(package, model, batch, monkeypatch):
    with pytest.raises(DwlthError, match="3 classes.*needs 4"):
        autoattack(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(batch[0].device), *batch, eps=0.1)
    with pytest.raises(DwlthError, match="norm is 'l1'"):
        autoattack(model, *batch, eps=0.1, norm="l1")
    monkeypatch.setitem(sys.modules, "pyautoattack", None)  # as if it were not installed
    with pytest.raises(DwlthError, match=r"pyautoattack is missing.*dwlth\[autoattack\]"):
        autoattack(model, *batch, eps=0.1)


def test_no_steps_is_no_attack(model, batch):
    assert torch.equal(Attack()(model, *batch), batch[0])


def test_works_without_gradients_around_it(model, batch):
    with torch.no_grad():
        adv = PGD(model, *batch)
    assert not torch.equal(adv, batch[0])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"eps": -1}, "eps is -1, not 0 or more"),
        ({"step_size": float("nan")}, "step_size is nan, not 0 or more"),
        ({"steps": -1}, "steps is -1"),
        ({"bn": "off"}, "bn is 'off', not one of eval, train, frozen"),
        ({"norm": "l1"}, "norm is 'l1', not one of linf, l2"),
        ({"restarts": 0}, "restarts is 0, not 1 or more"),
        ({"restarts": 2, "random_start": False}, "restarts is 2, but without random_start"),
    ],
)
def test_refuses_bad_settings(bad, message):
    with pytest.raises(DwlthError, match=f"attack: {message}"):
        Attack(**bad)
