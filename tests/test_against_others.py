"""Against independent implementations: torchattacks, AutoAttack, torch's own pruning, and loops written out here."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.models import resnet50

from dwlth import data, masks, models
from dwlth.attacks import Attack
from dwlth.evaluation import evaluate
from dwlth.outside.autoattack import autoattack
from dwlth.recipe import Recipe
from dwlth.runs import stream
from dwlth.training import fit

LINF = Attack(eps=0.2, step_size=0.03, steps=7)
L2 = Attack(eps=1.0, step_size=0.2, steps=7, norm="l2")
FGSM_RS = Attack(eps=0.2, step_size=0.25, steps=1)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small gain nothing from two, and on a busy machine wait for the second at every operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained():
    """A network trained adversarially on the digits for a moment, and its task."""
    task = data.load("digits5-9")
    model = models.build("small_resnet", task.classes, task.mean, task.std, seed=0)
    recipe = Recipe(epochs=6, batch_size=32, lr=0.1, schedule="cosine", attack=Attack(0.2, 0.1, 3, bn="train"))
    fit(model, recipe, task.train, task.val, seed=0)
    return model, task


def theirs(model, attack, train):
    """The same attack by torchattacks."""
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks")
    if attack == FGSM_RS:
        other = torchattacks.FFGSM(model, attack.eps, attack.step_size)
    else:
        kind = torchattacks.PGDL2 if attack.norm == "l2" else torchattacks.PGD
        other = kind(model, attack.eps, attack.step_size, attack.steps, attack.random_start)
    if train:
        other.set_model_training_mode(model_training=True, batchnorm_training=True, dropout_training=True)
    if attack.targeted:
        other.set_mode_targeted_by_label(quiet=True)
    return other


@pytest.mark.parametrize(
    "attack",
    [LINF, L2, replace(LINF, random_start=False), replace(L2, targeted=True), replace(LINF, targeted=True), FGSM_RS],
    ids=["linf", "l2", "linf without start", "l2 targeted", "linf targeted", "fgsm-rs"],
)
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_attacks_equal_torchattacks_from_the_same_start(trained, attack, bn):
    """In float64, where rounding turns no sign of a gradient; torchattacks' FFGSM draws a normal number per pixel
    before its uniform ones."""
    model, task = trained
    ours_model, their_model = (
        models.build("small_resnet", task.classes, task.mean, task.std, seed=0).double() for _ in range(2)
    )
    for copy in (ours_model, their_model):
        copy.load_state_dict(model.state_dict())
    their_model.train(bn == "train")
    x, y = next(task.test.batches(64))
    x, y = x.double(), (y + 1) % task.classes if attack.targeted else y

    torch.manual_seed(5)
    if attack == FGSM_RS:
        torch.randn_like(x)
    ours = replace(attack, bn=bn)(ours_model, x, y)
    torch.manual_seed(5)
    expected = theirs(their_model, attack, bn == "train")(x, y)
    assert (ours - expected).abs().max() <= 1e-6
    assert (ours - x).abs().max() > attack.eps / 20  # and there is something to compare
    for name, tensor in their_model.state_dict().items():  # batch-norm statistics too
        torch.testing.assert_close(ours_model.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_robust_accuracy_agrees_with_torchattacks_pgd20(trained):
    model, task = trained
    images = data.Split(
        *(torch.cat([getattr(s, k) for s in (task.train, task.val, task.test)]) for k in vars(task.val))
    )
    attack = Attack(eps=0.2, step_size=0.05, steps=20)
    _, ours = evaluate(model, images, attack, seed=0, batch_size=len(images), exact=True)
    model.eval()
    x, y = next(images.batches(len(images)))
    torch.manual_seed(stream(0, "evaluate"))  # the same start: another one moves RA by up to a point here
    expected = (model(theirs(model, attack, False)(x, y)).argmax(1) == y).float().mean().item()
    assert 0.3 < ours < 0.9 and abs(ours - expected) <= 0.005


def test_autoattack_is_no_weaker_than_ours(trained):
    pytest.importorskip("pyautoattack")
    model, task = trained
    images = task.test.take(list(range(200)))
    _, ours = evaluate(model, images, Attack(eps=0.2, step_size=0.05, steps=20), seed=0)
    x, y = next(images.batches(200))
    adv = autoattack(model, x, y, eps=0.2)
    ra = (model.eval()(adv).argmax(1) == y).float().mean().item()
    assert 0.3 < ra <= ours + 0.005
    assert (adv - x).abs().max() <= 0.2 + 1e-5 and adv.min() >= 0 and adv.max() <= 1


@pytest.mark.parametrize(("ties", "rounds"), [(False, 19), (True, 5)], ids=["random", "ties"])
def test_the_paper_s_masks_equal_torch_prune(ties, rounds):
    """ResNet-50: 53 convolutions of 23,454,912 weights, all 19 rounds. With ties, all weights rounded to hundredths,
    five."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = resnet50(weights=None)
    weights = {name: weight.detach().clone() for name, weight in masks.prunable(net).items()}
    if ties:
        for name, weight in masks.prunable(net).items():
            weight.data.copy_(weights[name].mul_(100).round_().div_(100))
    scores = {name: weight.abs() for name, weight in weights.items()}
    reference = [(m, "weight") for m in net.modules() if isinstance(m, nn.Conv2d)]
    mask = masks.dense(net)
    assert len(mask) == 53 and mask.total == mask.kept == 23_454_912
    kept = [mask.kept]
    for _ in range(rounds):
        mask = masks.prune(mask, scores, 0.2)
        prune.global_unstructured(reference, prune.L1Unstructured, amount=0.2)
        for (module, _), tensor in zip(reference, mask.values()):
            assert torch.equal(module.weight_mask, tensor.float())
        kept.append(mask.kept)
    assert kept == KEPT[: rounds + 1]


KEPT = [23_454_912]
for _ in range(19):
    KEPT.append(KEPT[-1] - round(0.2 * KEPT[-1]))
assert KEPT[-1] == 338_021


def test_masks_in_place_equal_torch_prune_after_50_steps():
    """SGD with momentum and weight decay, which keep on moving what torch.nn.utils.prune hides behind its mask."""
    task = data.load("digits5-9")
    model, other = (models.build("small_resnet", task.classes, task.mean, task.std, seed=0).double() for _ in range(2))
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.8)
    recipe = Recipe(epochs=1, batch_size=10, lr=0.1, momentum=0.9, weight_decay=5e-4)
    fit(model, recipe, task.train, task.val, seed=0, mask=mask)

    for name, module in other.net.named_modules():
        if isinstance(module, nn.Conv2d):
            prune.custom_from_mask(module, "weight", mask[f"{name}.weight"])
    optimizer = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    other.train()
    steps = 0
    for x, y in task.train.batches(10, torch.Generator().manual_seed(stream(0, "train", 0))):
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        optimizer.step()
        steps += 1
    assert steps == 50
    for module in other.modules():
        if isinstance(module, nn.Conv2d):
            prune.remove(module, "weight")
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("attack", "nesterov", "decay_norms"),
    [
        (Attack(), False, True),
        (Attack(0.2, 0.05, 10, bn="train"), False, True),
        (Attack(0.2, 0.25, 1, bn="train"), False, True),
        (Attack(), True, True),
        (Attack(), True, False),
    ],
    ids=["standard", "adversarial", "fast adversarial", "nesterov", "nesterov, no decay of norms"],
)
def test_one_epoch_equals_a_loop_written_out_step_by_step(attack, nesterov, decay_norms):
    """Order, attack, batch norm, momentum, weight decay and mask, against plain arithmetic; in float64."""
    task = data.load("digits5-9")
    model, other = (models.build("small_resnet", task.classes, task.mean, task.std, seed=0).double() for _ in range(2))
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.5)
    recipe = Recipe(epochs=1, batch_size=64, lr=0.05, momentum=0.9, weight_decay=0.01, attack=attack)
    recipe = replace(recipe, nesterov=nesterov, decay_norms=decay_norms)
    ours = []
    watch = register_optimizer_step_post_hook(lambda *_: ours.append(state(model)))
    row = fit(model, recipe, task.train, task.val, seed=3, mask=mask).history[0]
    watch.remove()

    generator = torch.Generator().manual_seed(stream(3, "train", 0))
    order = torch.randperm(len(task.train), generator=generator)
    parameters = dict(other.net.named_parameters())
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    keep = {name: mask[name].to(p) if name in mask else 1.0 for name, p in parameters.items()}
    for name, p in parameters.items():
        p.data.mul_(keep[name])
    layers = {f"{name}.weight" for name, m in other.net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    decay = {name: 0.01 if decay_norms or name in layers else 0.0 for name in parameters}
    other.train()
    losses = []
    for i in range(0, len(order), 64):
        x, y = task.train.images[order[i : i + 64]].float() / 255, task.train.labels[order[i : i + 64]]
        cost = lambda z, y=y: -other(z).log_softmax(1).gather(1, y[:, None]).mean()
        adv = x
        if attack.steps:
            adv = (x + (2 * torch.rand(x.shape, generator=generator) - 1) * attack.eps).clamp(0, 1)
        for _ in range(attack.steps):  # in train mode: each pass updates the running statistics
            adv = adv.clone().requires_grad_()
            cost(adv).backward()
            delta = (adv.detach() + attack.step_size * adv.grad.sign() - x).clamp(-attack.eps, attack.eps)
            adv = (x + delta).clamp(0, 1)
        other.zero_grad()
        loss = cost(adv)
        loss.backward()
        losses += [loss.item()] * len(y)
        for name, p in parameters.items():
            gradient = p.grad + decay[name] * p.detach()
            velocity[name] = 0.9 * velocity[name] + gradient
            step = gradient + 0.9 * velocity[name] if nesterov else velocity[name]
            p.data = (p.data - 0.05 * step) * keep[name]
        for name, tensor in other.state_dict().items():
            torch.testing.assert_close(ours[i // 64][name], tensor, atol=1e-5, rtol=0, msg=f"step {i // 64}: {name}")
    assert len(ours) == 8 and row["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert other.net.bn1.num_batches_tracked == 8 * (1 + attack.steps)
