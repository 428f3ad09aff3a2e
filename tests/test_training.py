import itertools
import math
import time
import warnings
from dataclasses import replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from dwlth import data, evaluation, masks, models, training
from dwlth.attacks import Attack
from dwlth.data import Augment, Split
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.fast.folding import fold
from dwlth.files import write_state
from dwlth.recipe import Recipe
from dwlth.training import OutOfTime, TrainingFailed, catastrophic_overfitting, fit

STANDARD = Recipe(epochs=3, batch_size=32, lr=0.1, schedule="cosine")
ADVERSARIAL = Recipe(
    epochs=2, batch_size=64, lr=0.1, attack=Attack(0.2, 0.1, 2, bn="train"), validation=Attack(0.2, 0.1, 2)
)
RECIPES = pytest.mark.parametrize("recipe", [STANDARD, ADVERSARIAL], ids=["standard", "adversarial"])


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def science(history):
    """The rows without their timings."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@RECIPES
def test_learns(model, task, recipe):
    before, _ = evaluate(model, task.test, Attack(), seed=0)
    history = fit(model, recipe, task.train, task.val, seed=0).history
    after, _ = evaluate(model, task.test, Attack(), seed=0)
    assert after > max(before, 0.7)
    assert history[-1]["loss"] < history[0]["loss"]


@RECIPES
def test_the_seed_decides_the_result(model, task, recipe):
    start = state(model)
    results = []
    for seed in (0, 0, 1):
        model.load_state_dict(start)
        history = fit(model, recipe, task.train, task.val, seed=seed).history
        results.append((state(model), science(history)))
    (one, rows), (two, rows_again), (other, _) = results
    assert rows == rows_again
    assert same(one, two) and not same(one, other)


@RECIPES
def test_masked_weights_are_exactly_zero_after_training(model, task, recipe):
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.8)
    fit(model, recipe, task.train, task.val, seed=0, mask=mask)
    for name, weight in masks.prunable(model.net).items():
        kept = mask[name].to(weight.device)
        assert (weight[~kept] == 0).all()
        assert (weight[kept] != 0).all()


def test_a_clock_that_is_set_back_costs_no_checkpoint(model, task, tmp_path, monkeypatch):
    checkpoint, hours = tmp_path / "run.pt", itertools.count()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(time, "time", lambda: -3600.0 * next(hours))
    seen = []
    history = fit(
        model,
        STANDARD,
        task.train,
        task.val,
        seed=0,
        checkpoint=checkpoint,
        on_epoch=lambda row: seen.append(checkpoint.exists()),
    ).history
    assert seen == [True] * STANDARD.epochs and all(row["seconds"] > 0 for row in history)


@RECIPES
def test_resumes_bit_for_bit(model, task, recipe, tmp_path, monkeypatch):
    start, checkpoint = state(model), tmp_path / "run.pt"
    straight = fit(model, recipe, task.train, task.val, seed=0)
    end = state(model)

    model.load_state_dict(start)
    with pytest.raises(OutOfTime):
        fit(model, recipe, task.train, task.val, seed=0, checkpoint=checkpoint, deadline=time.time())
    assert checkpoint.exists()
    model.load_state_dict(start)  # nothing of the interrupted training survives but the file
    resumed = fit(model, recipe, task.train, task.val, seed=0, checkpoint=checkpoint)
    assert same(end, state(model))
    assert science(resumed.history) == science(straight.history)
    for metric, best in straight.best.items():
        assert best["epoch"] == resumed.best[metric]["epoch"]
        assert same(best["state"], resumed.best[metric]["state"])


def test_keeps_the_networks_with_the_best_validation_values(model, task):
    recipe = Recipe(epochs=4, batch_size=32, lr=0.3, validation=Attack(0.2, 0.1, 2))
    result = fit(model, recipe, task.train, task.val, seed=0)
    for metric in ("sa", "ra"):
        values = [row[f"val_{metric}"] for row in result.history]
        best = result.best[metric]
        assert best["epoch"] == values.index(max(values))
        model.net.load_state_dict(best["state"])
        attack, seed = recipe.validation, training.stream(0, "validate", best["epoch"])
        sa, ra = evaluate(model, task.val, attack, seed)
        assert (sa, ra) == (best["val_sa"], best["val_ra"])


def test_evaluation_is_the_accuracy_of_the_model_itself(model, task):
    """Folding batch norm changes nothing that is measured, nor the model."""
    fit(model, STANDARD, task.train, task.val, seed=0)
    attack, before = Attack(0.1, 0.02, 5), state(model)
    model.train()
    sa, ra = evaluate(model, task.test, attack, seed=0, exact=True)
    assert model.training and same(before, state(model))
    model.eval()
    x, y = next(task.test.batches(len(task.test)))
    generator = torch.Generator(x.device).manual_seed(training.stream(0, "evaluate"))
    assert sa == pytest.approx((model(x).argmax(1) == y).float().mean().item(), abs=1e-6)
    expected = (model(attack(model, x, y, generator)).argmax(1) == y).float().mean().item()
    assert ra == pytest.approx(expected, abs=2.5 / len(y))  # rounding may turn a borderline image
    assert evaluate(model, task.test, Attack(), seed=0) == (sa, None)


@pytest.mark.parametrize("exact", [False, True])
def test_an_image_whose_logits_are_nan_is_not_classified(model, task, exact):
    torch.nn.init.constant_(model.net.fc.bias, float("nan"))
    assert evaluate(model, task.test, Attack(0.1, 0.02, 2), seed=0, exact=exact) == (0.0, 0.0)


def test_folding_is_checked_in_float32(model, task):
    """A GPU's own choice, TF32, rounds by more than folding may change."""
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled
    folded = fold(model, next(task.test.batches(8))[0])
    assert seen == [False, False] and before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_a_loss_that_is_not_finite_stops_the_training(model, task):
    with pytest.raises(TrainingFailed, match="nan.*epoch"):
        fit(model, Recipe(epochs=3, batch_size=32, lr=1e30), task.train, task.val, seed=0)


def test_schedules():
    step = Recipe(epochs=150, batch_size=64, lr=1e-3, schedule="step", milestones=(50, 100))
    assert [step.lr_at(epoch) for epoch in (0, 49, 50, 99, 100, 149)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    )
    cosine = Recipe(epochs=80, batch_size=128, lr=0.01, schedule="cosine")
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 80)
    for epoch in range(80):
        assert cosine.lr_at(epoch) == pytest.approx(reference.param_groups[0]["lr"], abs=1e-12)
        reference.step()
        scheduler.step()
    assert Recipe(epochs=5, batch_size=1, lr=0.3).lr_at(4) == 0.3


def test_every_step_is_taken_at_the_rate_of_the_schedule(model, task):
    recipe = Recipe(4, 100, 0.2, "onecycle", warm_up=0.5, decay_norms=False, validate_every=4)  # two parameter groups
    rates, steps = [], math.ceil(len(task.train) / 100)
    watch = register_optimizer_step_post_hook(lambda of, *_: rates.append({group["lr"] for group in of.param_groups}))
    try:
        fit(model, recipe, task.train, task.val, seed=0)
    finally:
        watch.remove()
    assert rates == [{recipe.lr_at(epoch, i / steps)} for epoch in range(4) for i in range(steps)]


def test_how_and_when_is_measured_is_the_recipe_s():
    view = Augment("pad")
    recipe = Recipe(1, 1, 0.1, augment=view, precision="bfloat16", exact_ra=True)
    assert recipe.measuring == {"augment": view, "precision": "bfloat16", "exact": True}
    late = replace(recipe, epochs=9, validate_every=2, validate_from=4)
    assert [epoch for epoch in range(9) if late.validates(epoch)] == [5, 7, 8]


def test_seeds_for_each_use_differ():
    seeds = {training.stream(seed, name, n) for seed in range(3) for name in ("train", "validate") for n in range(9)}
    assert len(seeds) == 54 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_gives_one_network_and_leaves_the_global_generators_alone(task, monkeypatch):
    build = lambda seed: state(models.build("small_resnet", 5, task.mean, task.std, seed))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' generators are seeded"))
    assert same(build(0), build(0)) and not same(build(0), build(1))
    assert torch.rand(1) == expected


def test_a_network_for_other_channels_is_refused(task):
    with pytest.raises(
        DwlthError, match="network 'small_resnet32' takes images of 3 channels, and these are of 1: give"
    ):
        models.build("small_resnet32", 5, task.mean, task.std, 0)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 0}, {"lr": -0.1}, {"lr": math.nan}, {"schedule": "up"}])
def test_refuses_bad_settings(bad):
    with pytest.raises(DwlthError, match="recipe"):
        Recipe(**({"epochs": 1, "batch_size": 1, "lr": 0.1} | bad))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "torch"], ids=["empty", "foreign", "other tensors"])
def test_refuses_a_bad_checkpoint(model, task, tmp_path, content):
    path = tmp_path / "run.pt"
    torch.save({"a": 1}, path) if content == "torch" else path.write_bytes(content)
    with pytest.raises(DwlthError, match="run.pt: not (a|the) checkpoint"):
        fit(model, STANDARD, task.train, task.val, seed=0, checkpoint=path)


def test_a_training_of_other_weights_is_not_gone_on_with(model, task, tmp_path, monkeypatch):
    path, start = tmp_path / "run.pt", state(model)
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.2)
    monkeypatch.setattr(training.STOP, "is_set", lambda: True)
    with pytest.raises(training.OutOfTime):
        fit(model, STANDARD, task.train, task.val, seed=0, checkpoint=path)
    monkeypatch.undo()
    model.load_state_dict(start)
    next(model.net.parameters()).data[0] += 1e-6
    for other in (None, mask):
        with pytest.raises(DwlthError, match="run.pt: a training under way that began with the weights [0-9a-f]{16}, "):
            fit(model, STANDARD, task.train, task.val, seed=0, checkpoint=path, mask=other)
        model.load_state_dict(start)
    found = training.read_checkpoint(path)
    del found["start"]  # as earlier versions wrote it
    write_state(path, found)
    fit(model, STANDARD, task.train, task.val, seed=0, checkpoint=path)


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True)])
def test_the_way_back_has_the_flags_of_a_gpu_too(precision, tf32, monkeypatch):
    """Shown without one: a GPU's convolutions read these flags when they are begun, on the way back too."""
    task = data.load("digits0-4")
    model = models.build("small_resnet", task.classes, task.mean, task.std, seed=0)
    of_gpu = lambda name, device: evaluation.precision_of(name, torch.device("cuda"))
    monkeypatch.setattr(training, "precision_of", of_gpu)
    monkeypatch.setattr(evaluation, "available_precision", lambda name, device: name)
    flags = lambda: (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    before, seen = flags(), set()
    for weight in model.parameters():
        weight.register_hook(lambda grad: seen.add((*flags(), torch.backends.cuda.matmul.allow_tf32)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        recipe = replace(STANDARD, epochs=1, validate_every=10, precision=precision)
        fit(model, recipe, task.train, task.val, seed=0)
    assert seen == {(tf32, True, tf32)} and flags() == before


def test_an_epoch_begun_on_another_device_is_refused(model, task, tmp_path, monkeypatch):
    path, start = tmp_path / "run.pt", state(model)
    other = torch.zeros(16, dtype=torch.uint8)  # as long as the state of a GPU's generator
    other = other if task.train.labels.device.type == "cpu" else torch.zeros(5056, dtype=torch.uint8)
    monkeypatch.setattr(training.STOP, "is_set", lambda: True)
    with pytest.raises(training.OutOfTime):
        fit(model, STANDARD, task.train, task.val, seed=0, checkpoint=path)
    found = training.read_checkpoint(path)
    found["within"]["draws"] = [other]
    write_state(path, found)
    model.load_state_dict(start)
    with pytest.raises(DwlthError, match="run.pt: holds an epoch begun on another kind of device than this one, "):
        fit(model, STANDARD, task.train, task.val, seed=0, checkpoint=path)


def test_a_batch_too_small_for_batch_norm_is_refused_by_name(device):
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, device=device)  # ResNet-18 sees one pixel at last
    few = Split(images, torch.arange(5, device=device))
    net = models.build("resnet18", 5, [0.5] * 3, [0.5] * 3, seed=0).to(device)
    for attack in (Attack(), Attack(0.1, 0.1, 1, bn="train")):
        recipe = Recipe(epochs=1, batch_size=4, lr=0.1, attack=attack, validation=Attack())
        with pytest.raises(DwlthError, match="batch_size is 4, which leaves a batch of 1: .* give another batch_size"):
            fit(net, recipe, few, few, seed=0)
        with pytest.raises(DwlthError, match="which leaves a batch of 1: "):  # of each of the two
            training.fit_members([net] * 2, recipe, [few] * 2, [few] * 2, seeds=[0, 1], stacked=True)
    fit(net, replace(recipe, batch_size=3), few, few, seed=0)


def row(sa, fgsm, pgd):
    return {"val_sa": sa, "val_fgsm": fgsm, "val_ra": pgd}


def test_catastrophic_overfitting_is_told_from_what_is_not():
    falls = [row(0.6, 0.40, 0.35), row(0.7, 0.48, 0.40), row(0.8, 0.79, 0.01), row(0.82, 0.85, 0.0)]
    assert [catastrophic_overfitting(r) for r in falls] == [False, False, True, True]
    healthy = [row(0.9, 0.6, 0.5), row(0.9, 0.2, 0.0), row(0.2, 0.2, 0.0), row(0.9, 0.6, 0.07)]
    unmeasured = [row(0.9, None, 0.0), row(0.9, 0.8, None), row(None, None, None)]
    assert not any(catastrophic_overfitting(r) for r in healthy + unmeasured)


def test_catastrophic_overfitting_is_detected_said_once_and_recorded(model, task):
    """FGSM without random start, in a ball so large that every network in reach fails under PGD."""
    fgsm, pgd = Attack(0.5, 0.5, 1, random_start=False, bn="train"), Attack(0.5, 0.125, 20)
    recipe = Recipe(epochs=20, batch_size=32, lr=0.1, attack=fgsm, validation=pgd, validate_every=2)
    with pytest.warns(UserWarning, match="catastrophic overfitting in epoch") as caught:
        history = fit(model, recipe, task.train, task.val, seed=0).history
    found = [row["epoch"] for row in history if row["overfits"]]
    assert len(found) > 1 and len(caught) == 1 and f"in epoch {found[0]}:" in str(caught[0].message)
    assert [row["val_fgsm"] is not None for row in history] == [recipe.validates(epoch) for epoch in range(20)]
    seed = training.stream(0, "validate", 19)
    assert history[-1]["val_fgsm"] == evaluate(model, task.val, replace(fgsm, bn="eval"), seed)[1]


def test_sound_fgsm_training_gives_no_alarm(model, task, recwarn):
    recipe = Recipe(epochs=4, batch_size=32, lr=0.1, attack=Attack(0.1, 0.125, 1), validation=Attack(0.1, 0.025, 10))
    history = fit(model, recipe, task.train, task.val, seed=0).history
    assert history[-1]["val_fgsm"] > 0.5 and history[-1]["val_ra"] > 0.5
    assert not any(row["overfits"] for row in history)
    assert not any("catastrophic" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("attack", [Attack(), Attack(0.1, 0.05, 2), Attack(0.2, 0.2, 1)], ids=["none", "pgd", "ball"])
def test_only_fgsm_training_in_the_same_ball_is_watched(attack):
    recipe = Recipe(epochs=1, batch_size=32, lr=0.1, attack=attack, validation=Attack(0.1, 0.02, 5))
    assert recipe.single_step.steps == 0


def test_bfloat16_measures_and_trains_as_float32_does(task, device, monkeypatch):
    if evaluation.available_precision("bfloat16", device) != "bfloat16":
        pytest.skip("needs bfloat16 units")
    pgd = Attack(0.1, 0.025, 5)
    recipe = replace(STANDARD, epochs=4, attack=replace(pgd, bn="train"), precision="bfloat16")
    model = models.build("small_resnet", task.classes, task.mean, task.std, seed=0).to(device)
    fit(model, recipe, task.train, task.val, seed=0)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    full, half = (evaluate(model, task.test, pgd, 0, precision=name) for name in ("float32", "bfloat16"))
    assert full[0] > 0.8 and full[1] > 0.3
    assert half == pytest.approx(full, abs=3.5 / len(task.test))  # some three images on the border
    monkeypatch.setattr(evaluation, "available_precision", lambda *_: "float32")  # as where the units are missing
    assert evaluate(model, task.test, pgd, 0, precision="bfloat16") == full
    with pytest.raises(DwlthError, match="precision is 'half': give one of float32, tf32, bfloat16"):
        replace(STANDARD, precision="half")


def test_the_one_cycle_schedule_rises_and_falls_step_by_step():
    recipe = Recipe(epochs=10, batch_size=32, lr=0.2, schedule="onecycle", warm_up=0.2)
    rates = [recipe.lr_at(epoch, part) for epoch, part in ((0, 0), (0, 0.5), (1, 0), (2, 0), (6, 0), (9, 0.5))]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.2, 0.1, 0.0125])
    with pytest.raises(DwlthError, match="warm_up is 0.2: give 0, or for the schedule onecycle"):
        Recipe(epochs=1, batch_size=1, lr=0.1, warm_up=0.2)


def test_sound_keeps_the_last_epoch_without_overfitting_also_when_resumed(model, task, tmp_path, monkeypatch):
    fgsm, pgd = Attack(0.1, 0.125, 1), Attack(0.1, 0.05, 2)
    recipe = Recipe(epochs=4, batch_size=64, lr=0.1, attack=fgsm, validation=pgd, keep="sound")
    epochs = lambda row: row["val_sa"] is not None and row["epoch"] >= 2  # it overfits from epoch 2 on
    monkeypatch.setattr(training, "catastrophic_overfitting", epochs)
    start, kept = state(model), []
    with pytest.warns(UserWarning, match="catastrophic overfitting in epoch 2"):
        straight = fit(model, recipe, task.train, task.val, seed=0)
    for stop in (1, 2):
        model.load_state_dict(start)
        path = tmp_path / f"{stop}.pt"
        with pytest.raises(OutOfTime):
            options = {"checkpoint": path, "on_epoch": lambda row, stop=stop: row["epoch"] == stop}
            fit(model, recipe, task.train, task.val, seed=0, **options)
        model.load_state_dict(start)
        kept.append(fit(model, recipe, task.train, task.val, seed=0, checkpoint=path).best["sound"])
    for best in kept:
        assert best["epoch"] == straight.best["sound"]["epoch"] == 1
        assert same(best["state"], straight.best["sound"]["state"])
