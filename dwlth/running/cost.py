"""What runs cost: an estimate from a few timed steps on this machine."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

from dwlth import data, models
from dwlth.attacks import Attack
from dwlth.controls.connectivity import POINTS
from dwlth.data import Augment
from dwlth.evaluation import evaluate
from dwlth.recipe import Given, Recipe
from dwlth.results import Folder
from dwlth.running import progress
from dwlth.running.machine import threads, torch_threads
from dwlth.runs import Run
from dwlth.training import OutOfTime, fit_members

SECONDS = 10.0
"""An estimate times steps for so long, and ends with the step that is under way then (our choice)."""

SMALL = 0.02
"""Kinds with a smaller part of all passes are not timed (our choice)."""

ATTACKED = {"standard": 0.2, "adversarial": 0.5}
"""Of the passes of an attack on test images, the part that is done, by how the network was trained: an image that
falls, or was wrong before, is attacked no further (our choice; after standard training it is 0.1 in the runs of
`cifar-small` and 0.2 to 0.4 in those of `digits`, after adversarial training 0.3 to 0.5 and 1.0)."""


AUTOATTACK = 3000
"""Passes for each image of AutoAttack (our choice: on 1,000 images of `cifar-small` it took three times as long as a
transfer with 10 % of the data, which has a million passes)."""


@dataclass(frozen=True)
class Kind:
    """What is timed: a training step on a batch, or the test of a batch."""

    task: str
    """A dataset whose images have the size."""
    attack: Attack
    augment: Augment
    precision: str
    images: int
    """In the batch, or in a part of it (`Recipe.parts`)."""
    members: int
    """That train side by side; 0: a test."""
    stacked: bool = False
    """Whether they do so as one network; see `dwlth.fast.stack`."""

    @property
    def passes(self) -> float:
        """Passes of its images through the network and back to the pixels. Training goes back to the weights too,
        which is half a pass more; a test begins with the way forward, which is half a pass."""
        return self.images * (self.attack.steps * self.attack.restarts + (1.5 if self.members else 0.5))


def estimate(
    folder: Folder, runs: list[Run], workers: int = 1, stop: Callable[[], bool] = lambda: False
) -> dict[Run, float]:
    """Seconds that each of `runs` would take one after the other on this machine, as busy as it is now, on the threads
    that one of so many workers has. Published datasets need not be on disk: steps are timed on blank images of
    their size, already decoded.

    It takes about `SECONDS`. It counts the passes through the network of each kind of step, and times the kinds from
    the one with the most passes on. A kind is timed with few images and one step of the attack, then with more while
    there is time for it; from there on time grows with the images as it did last, and with the passes. A kind with
    less than `SMALL` of all passes, or one that little or no time is left for, costs as much a pass as one that was
    timed.

    Args:
        stop: asked after each timed step.

    Raises:
        OutOfTime: where `stop` says so.
    """
    task = cache(lambda name: data.blank(name) or folder.dataset(name, 0))
    like: dict = {}  # a dataset for each size of images
    together = {run: len(unit) for unit in folder.preset.units(runs) for run in unit}
    needs = {run: _needs(folder, run, task, like, together[run]) for run in runs}
    passes_of: Counter[Kind] = Counter()
    for kinds in needs.values():
        for kind, times in kinds.items():
            passes_of[kind] += times * kind.passes
    timed = [kind for kind, passes in passes_of.most_common() if passes > SMALL * passes_of.total()]
    seconds: dict[Kind, float] = {}
    build = cache(lambda name, member: _blank(folder, task(name), member))
    with (
        torch_threads(threads(folder.preset.network, workers)),
        progress.brief(len(timed), "timing steps, to estimate the cost") as bar,
    ):
        end = time.monotonic() + SECONDS
        for kind in timed[:1]:  # the first step of a process takes long: it is not of a kind's share
            least = replace(kind, images=min(2, kind.images), attack=Attack(), members=min(1, kind.members))
            _times(folder.device, task(kind.task), least, partial(build, kind.task), 1, end)
        for i, kind in enumerate(timed):
            left = end - time.monotonic()
            if left > 0 or not seconds:
                share = left * passes_of[kind] / sum(passes_of[each] for each in timed[i:])
                took, images = _seconds(folder.device, task(kind.task), kind, partial(build, kind.task), share, stop)
                if not seconds or images > min(2, kind.images - 1):  # two images say little of a batch
                    seconds[kind] = took
            bar.update(1)
    for kind in passes_of:
        if kind not in seconds:
            nearest = next((each for each in seconds if _alike(each, kind)), next(iter(seconds)))
            seconds[kind] = seconds[nearest] * kind.passes / nearest.passes
    return {run: sum(times * seconds[kind] for kind, times in kinds.items()) for run, kinds in needs.items()}


def passes(folder: Folder, run: Run) -> int:
    """How often a run takes an image through its network, forward and back: in proportion to its time, but for what is
    small. Without a clock, so it is at once there, to share out a progress bar."""
    kinds = _needs(folder, run, lambda name: data.blank(name) or folder.dataset(name, 0), {}, 1)
    return round(sum(times * kind.passes for kind, times in kinds.items())) or 1


def _alike(one: Kind, other: Kind) -> bool:
    return (one.task, one.augment.crop, bool(one.members)) == (other.task, other.augment.crop, bool(other.members))


def _needs(folder: Folder, run: Run, task: Callable[[str], data.Dataset], like: dict, members: int) -> Counter[Kind]:
    """How often a run, with so many members in its unit, does what of each kind; nothing where a source is given."""
    preset, recipe = folder.preset, folder.preset.recipe(run)
    needs: Counter[Kind] = Counter()
    if isinstance(recipe, Given):
        return needs
    name = run.downstream or preset.upstream
    images = task(name)
    if run.stage == "autoattack":
        few = min(preset.autoattack_images, len(images.test))
        kind = Kind(name, preset.evaluation, Augment(), "float32", min(256, few), 0)
        needs[kind] += AUTOATTACK * few / kind.passes
        return needs
    name = like.setdefault(images.train.images.shape[1:] if isinstance(images.train, data.Split) else name, name)

    def test(split: data.Split, attack: Attack, times: float) -> None:
        batch = min(256, len(images.test))
        view = recipe.augment if recipe.augment.crop == "resized" else Augment()  # others change no test image
        kind = Kind(name, attack, view, recipe.precision, batch, 0)
        dense = times * len(split) / batch
        if not recipe.exact_ra and attack.steps:  # of the images, not all are attacked to the end
            share = ATTACKED["adversarial" if recipe.attack.steps else "standard"]
            needs[replace(kind, attack=Attack())] += (1 - share) * dense
            dense *= share
        needs[kind] += dense

    tests = 1 + (run.stage in ("transfer", "connect"))
    if run.stage == "connect":
        tests += POINTS * min(1, preset.autoattack_images / len(images.test))
    test(images.test, preset.evaluation, tests)
    if run.stage != "imp" or run.round > 0:
        n_train, part = round(run.fraction * len(images.train)), math.ceil(recipe.batch_size / recipe.parts)
        batch = min(n_train, part)
        kind = Kind(name, recipe.attack, recipe.augment, recipe.precision, batch, members, preset.stacks(run))
        needs[kind] += recipe.epochs * max(1, round(n_train / part))
        test(images.val, recipe.validation, sum(map(recipe.validates, range(recipe.epochs))))
    return needs


def _blank(folder: Folder, task: data.Dataset, member: int) -> models.Classifier:
    """An untrained network, to time."""
    return models.build(folder.preset.network, task.classes, task.mean, task.std, seed=member).to(folder.device)


def _seconds(
    device: str,
    task: data.Dataset,
    kind: Kind,
    build: Callable[[int], models.Classifier],
    share: float,
    stop: Callable[[], bool],
) -> tuple[float, int]:
    """Time of one of `kind`, for each member, from what can be timed in about `share` seconds, and with how many
    images. The smallest is always timed; the mean of several, since a busy machine makes some of them long."""
    until, steps = time.monotonic() + share, kind.attack.steps
    sizes = [n for n in (2, 8, 32, 128) if n < kind.images] + [kind.images]
    rungs = [(n, min(steps, 1)) for n in sizes] + [(kind.images, few) for few in (4, steps) if few <= steps]
    slope, last, each = 0.0, 0, 0.0  # seconds a pass of the whole batch, by its images
    for images, few in dict.fromkeys(rungs):
        small = replace(kind, images=images, attack=replace(kind.attack, steps=few, restarts=1))
        passes = small.passes / images
        reach = each + slope * (images - last)
        if each and time.monotonic() + 3 * reach * passes > until:
            break
        took = _times(device, task, small, build, 10 if (images, few) == rungs[-1] else 2, until)
        if stop():
            raise OutOfTime
        now = sum(took) / len(took) / passes
        if images > last:
            slope = min(max(0.0, now - each) / (images - last), now / images)
        each, last = now, images
    whole = each + slope * (kind.images - last)
    return whole * kind.passes / kind.images / max(1, kind.members), last


def _times(
    device: str, task: data.Dataset, kind: Kind, build: Callable[[int], models.Classifier], most: int, until: float
) -> list[float]:
    """Seconds of one of `kind`, timed `most` times, or fewer until then; the first, which warms up, is left out."""
    part = task.train if kind.members else task.test
    split = part.take([i % len(part) for i in range(kind.images)]).to(device)  # another task of this size has more
    took: list[float] = []

    def enough(row: dict) -> bool:
        took.append(row["seconds"])
        return len(took) >= most or time.monotonic() > until

    if kind.members:
        never = 10**9
        recipe = Recipe(never, kind.images, 0.01, validate_every=never, attack=kind.attack, augment=kind.augment)
        recipe = replace(recipe, precision=kind.precision)
        nets, splits = [build(member) for member in range(kind.members)], [[split] * kind.members] * 2
        with contextlib.suppress(OutOfTime):
            fit_members(nets, recipe, *splits, seeds=[0] * kind.members, stacked=kind.stacked, on_epoch=enough)
    else:
        began = 0.0
        while not began or not enough({"seconds": time.monotonic() - began}):
            began = time.monotonic()
            evaluate(build(0), split, kind.attack, 0, kind.augment, precision=kind.precision, exact=True)
    return took[1:] or took
