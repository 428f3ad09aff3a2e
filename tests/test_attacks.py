import pytest
import torch
from torch.nn import functional as F

from dwlth.attacks import Attack
from dwlth.errors import DwlthError

PGD = Attack(eps=0.2, step_size=0.05, steps=5)
FGSM_RS = Attack(eps=0.2, step_size=0.25, steps=1)


@pytest.fixture
def batch(task):
    return next(task.train.batches(32))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("attack", [PGD, FGSM_RS], ids=["pgd", "fgsm"])
@pytest.mark.parametrize("bn", ["eval", "train", "frozen"])
def test_stays_in_the_ball_and_raises_the_loss(model, batch, attack, bn):
    x, y = batch
    adv = Attack(attack.eps, attack.step_size, attack.steps, bn=bn)(model, x, y)
    assert adv.shape == x.shape and not adv.requires_grad
    assert (adv - x).abs().max() <= attack.eps + 1e-6
    assert (adv - x).abs().max() > attack.eps / 2
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


def test_no_steps_is_no_attack(model, batch):
    assert torch.equal(Attack()(model, *batch), batch[0])


def test_works_without_gradients_around_it(model, batch):
    with torch.no_grad():
        adv = PGD(model, *batch)
    assert not torch.equal(adv, batch[0])


@pytest.mark.parametrize("bad", [{"eps": -1}, {"steps": -1}, {"bn": "off"}])
def test_refuses_bad_settings(bad):
    with pytest.raises(DwlthError, match="attack"):
        Attack(**bad)
