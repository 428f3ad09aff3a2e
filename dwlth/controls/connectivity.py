"""Connectivity: is there a barrier on the straight way between two networks that were trained from one start?

A stage of its own, `connect` (`python -m dwlth connect PRESET`): each network of a transfer is trained once more from
the same start (same weights, mask, head and images), with another order of the images and other random starts of the
attack, as in Frankle et al. (2020). Networks that the way between them does not hurt lie in one valley.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dwlth.attacks import Attack
from dwlth.data import Augment, Split
from dwlth.evaluation import precision_of
from dwlth.fast.stack import Stack
from dwlth.models import Classifier
from dwlth.results import Folder
from dwlth.results.records import BARRIERS
from dwlth.runs import Run, stream
from dwlth.transfer import load, transfer

POINTS = 11
"""Networks on the way, both ends among them (our choice)."""


def connect(folder: Folder, runs: Sequence[Run], **training) -> list[dict[str, Any]]:
    """Train the network of each transfer once more. Test networks on the straight line between its weights and those of
    the first training, whose network must be on disk, on the first `preset.autoattack_images` test images.

    Args:
        runs, training: as of `dwlth.transfer.transfer`.

    Returns:
        The result of each run: that of its training, `path` (of `way`), and the `barriers` of this.
    """
    folder = replace(folder, preset=replace(folder.preset, keep_networks=True))
    results = transfer(folder, runs, **training)
    for run, result in zip(runs, results):
        if "error" not in result:
            ends = [load(folder, each) for each in (replace(run, stage="transfer"), run)]
            recipe = folder.preset.recipe(run)
            looks = {"augment": recipe.augment, "precision": recipe.precision, "stacked": folder.preset.stacks(run)}
            result["path"] = way(*ends, folder.sample(run), folder.preset.evaluation, stream(run.seed, "way"), **looks)
            result |= barriers(result["path"])
    return results


def way(
    a: Classifier,
    b: Classifier,
    test: Split,
    attack: Attack,
    seed: int,
    augment: Augment | None = None,
    precision: str = "float32",
    stacked: bool = False,
) -> list[dict[str, float]]:
    """Networks on the straight line from `a` to `b`, batch-norm statistics and heads with the rest: for each `share`
    of b, from 0 to 1, `sa` and `loss` on the test images as they are, `ra` and `adversarial_loss` on images attacked to
    the end. The losses are mean cross-entropies; `seed` draws the attack's random starts, the same ones for each
    network.

    Args:
        augment, precision: see `dwlth.recipe.Recipe`.
        stacked: all side by side (`dwlth.fast.stack`), for small networks.
    """
    shares, device, rows = np.linspace(0, 1, POINTS).tolist(), test.labels.device, []
    points = [_between(a, b, share) for share in shares]
    for model in [Stack(points).eval()] if stacked else points:
        n = model.members
        draws = [torch.Generator(device).manual_seed(stream(seed, "evaluate")) for _ in range(n)]
        sums = torch.zeros(4, n, device=device)
        with torch.no_grad(), precision_of(precision, device):
            for x, y in test.batches(512, augment=augment):
                x, y = x.repeat_interleave(n, 0), y.repeat_interleave(n)
                for i, images in enumerate((x, attack(model, x, y, draws))):
                    logits = model(images).float()
                    sums[2 * i] += (logits.argmax(1) == y).view(-1, n).sum(0)
                    sums[2 * i + 1] += F.cross_entropy(logits, y, reduction="none").view(-1, n).sum(0)
        rows += (sums / len(test)).T.tolist()
    columns = ("sa", "loss", "ra", "adversarial_loss")
    return [{"share": share} | dict(zip(columns, row)) for share, row in zip(shares, rows)]


def _between(a: Classifier, b: Classifier, share: float) -> Classifier:
    model, theirs = copy.deepcopy(a).eval(), b.net.state_dict()
    state = {name: torch.lerp(own.float(), theirs[name].float(), share) for name, own in a.net.state_dict().items()}
    model.net.load_state_dict(state)  # counters of batches become whole again
    return model


def barriers(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The most that a network on the way (`way`) is worse than the values at its two ends, interpolated between them: a
    fraction of the images for SA and RA, cross-entropy for the two losses; 0 where it is worse nowhere, NaN
    where a value is."""
    found = {}
    for name in BARRIERS:
        column = name.removeprefix("barrier_")
        values = np.array([row[column] for row in rows])
        excess = values - np.linspace(values[0], values[-1], len(values))
        found[name] = float(np.maximum(0.0, (excess if "loss" in column else -excess).max())) + 0.0  # no -0.0
    return found
