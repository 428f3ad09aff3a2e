"""What runs cost: an estimate from a few timed steps on this machine."""

import time
from collections.abc import Callable
from functools import cache, partial

from dwlth import data, models
from dwlth.attacks import Attack
from dwlth.connectivity import POINTS
from dwlth.data import Augment
from dwlth.evaluation import evaluate
from dwlth.presets import Preset
from dwlth.recipe import Given, Recipe
from dwlth.results import Folder
from dwlth.running.machine import torch_threads
from dwlth.runs import Run
from dwlth.training import fit_members


def estimate(folder: Folder, runs: list[Run], threads: int = 0) -> dict[Run, float]:
    """Seconds that each of `runs` would take with nothing beside it, from a few timed steps of each kind: on as many
    threads as torch has now, or as are given. Published datasets need not be on disk: steps are timed on blank images
    of their size, already decoded."""
    preset, device = folder.preset, folder.device
    tasks = cache(lambda name: data.blank(name) or folder.dataset(name, 0))
    step = cache(partial(_step_seconds, preset, device))
    test_image = cache(partial(_test_seconds, preset, device))

    def test(task: data.Dataset, attack: Attack, recipe: Recipe) -> float:
        return test_image(task, attack, recipe.augment, recipe.precision)

    def cost(run: Run) -> float:
        recipe = preset.recipe(run)
        if isinstance(recipe, Given):
            return 0.0  # a download, of which nothing is known
        task = tasks(run.downstream or preset.upstream)
        tests = 1 + (run.stage in ("transfer", "connect"))
        if run.stage == "connect":
            tests += POINTS * min(1, preset.autoattack_images / len(task.test))
        members = preset.together if preset.stacks(run) else 1
        seconds = tests * len(task.test) * test(task, preset.evaluation, recipe)
        if run.stage == "imp" and run.round == 0:
            return seconds
        n_train = round(run.fraction * len(task.train))
        batches = max(1, round(n_train / recipe.batch_size))
        of_steps = {name: getattr(recipe, name) for name in ("batch_size", "attack", "augment", "precision")}
        short = Recipe(3, lr=0.01, validate_every=3, **of_steps)  # one timing serves recipes that differ elsewhere
        seconds += recipe.epochs * batches * step(task, short, members, min(n_train, recipe.batch_size))
        validations = sum(map(recipe.validates, range(recipe.epochs)))
        return seconds + validations * len(task.val) * test(task, recipe.validation, recipe)

    with torch_threads(threads):
        return {run: cost(run) for run in runs}


def passes(folder: Folder, run: Run) -> int:
    """How often a run takes an image through its network, forward and back: in proportion to its time, but for what is
    small. Without a clock, so it is at once there, to share out a progress bar."""
    recipe, preset = folder.preset.recipe(run), folder.preset
    if isinstance(recipe, Given) or run.stage == "autoattack":
        return 1
    name = run.downstream or preset.upstream
    task = data.blank(name) or folder.dataset(name, 0)
    images = len(task.test) * (1 + preset.evaluation.steps)
    if run.stage != "imp" or run.round > 0:
        images += recipe.epochs * run.fraction * len(task.train) * (1 + recipe.attack.steps)
        validations = sum(map(recipe.validates, range(recipe.epochs)))
        images += validations * len(task.val) * (1 + recipe.validation.steps)
    return round(images)


def _step_seconds(preset: Preset, device: str, task: data.Dataset, recipe: Recipe, members: int, size: int) -> float:
    """Time of one training step with `size` images, the faster of two, as one of so many members side by side."""

    def timed(n: int) -> float:
        images = task.train.take(list(range(n))).to(device)
        nets = [_blank(preset, device, task) for _ in range(members)]
        alike = [[images] * members] * 2
        history = fit_members(nets, recipe, *alike, seeds=[0] * members, stacked=members > 1)[0].history
        return min(row["seconds"] for row in history[:2]) / members  # the last one also validates

    return _scaled(timed, size)


def _test_seconds(
    preset: Preset, device: str, task: data.Dataset, attack: Attack, augment: Augment, precision: str
) -> float:
    """Time of one image's evaluation, with every image attacked."""
    model = _blank(preset, device, task)

    def timed(n: int) -> float:
        images = task.test.take(list(range(n))).to(device)
        began = time.time()
        evaluate(model, images, attack, 0, augment, precision=precision, exact=True)
        return time.time() - began

    size = min(len(task.test), 512)
    timed(2)
    return _scaled(timed, size) / size


def _blank(preset: Preset, device: str, task: data.Dataset) -> models.Classifier:
    """An untrained network of a preset, to time."""
    return models.build(preset.network, task.classes, task.mean, task.std, seed=0).to(device)


def _scaled(timed: Callable[[int], float], size: int) -> float:
    """`timed(size)`, extrapolated from as many images as take a second where that is not all: few images take longer
    each. Those are timed twice, since a busy machine can make anything take a second."""
    few = min(size, 4)
    while (seconds := timed(few)) < 1 and few < size:
        few = min(size, 4 * few)
    if few < size:
        seconds = min(seconds, timed(few))
    return seconds * size / few


def duration(seconds: float) -> str:
    """Seconds in words, in a unit that suits."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
