"""Attacks that one can see: what their steps do to the accuracy and the loss of networks, and what they do to images.

Functions that draw return a matplotlib Figure of their own, which nobody else holds (no pyplot), so they may run on
any thread.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from dwlth.attacks import Attack
from dwlth.data import DATASETS
from dwlth.models import Classifier
from dwlth.show import style
from dwlth.show.style import WIDTH, Picture, styled


def attack_steps(model: Classifier, images: Tensor, labels: Tensor, attack: Attack, seed: int = 0) -> pd.DataFrame:
    """What the steps of an attack do, from the same start: a row each for 0 steps (clean images), for `attack.steps`,
    and for some between, with the mean cross-entropy (`loss`) and the `accuracy` in [0, 1]."""
    mode, rows = model.training, {}
    model.eval()
    for steps in sorted({0, *np.geomspace(1, attack.steps, 8).round().astype(int).tolist()}):
        draws = torch.Generator(images.device).manual_seed(seed)
        adv = replace(attack, steps=steps)(model, images, labels, draws)
        with torch.no_grad():
            logits = model(adv)
        right = (logits.argmax(1) == labels).float().mean().item()
        rows[steps] = {"loss": F.cross_entropy(logits, labels).item(), "accuracy": right}
    model.train(mode)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("steps")


@styled()
def draw_attack_steps(steps: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy and loss after the steps of an attack, with a line for the `attack_steps` of each model, by name."""
    figure = Picture(figsize=(WIDTH, 3.9), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for look, rows in zip(style.of_labels(steps), steps.values()):
        accuracy.plot(100 * rows["accuracy"], **look.line)
        loss.plot(rows["loss"], **look.line)
    for panel in (accuracy, loss):
        panel.set(xlabel="Steps of the attack (0: clean images)", xticks=rows.index)
        accuracy.set(ylabel="Accuracy (%)", ylim=(-3, 103))
    loss.set(ylabel="Cross-entropy (log scale)", yscale="log")
    columns = 4 if sum(map(len, steps)) < 60 else 2  # or else long names are cut off
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    return figure


def class_names(dataset: str, classes: int) -> list[str]:
    """What the labels of a dataset stand for: numbers of classes where it is not known here."""
    known = DATASETS[dataset].classes if dataset in DATASETS else 0
    if isinstance(known, tuple) and len(known) == classes:
        return list(known)
    return [f"class {label}" for label in range(classes)]


@styled()
def draw_attacked(
    models: Mapping[str, Classifier],
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """What an attack does to images, in three rows for each model: as they are, the perturbation, magnified so that the
    largest one fills the range of a pixel (grey: no change), and attacked. Above each image, what the model takes it
    for and with what confidence, ticked where it is right and crossed where it is wrong.

    Args:
        images, labels: float [N, C, H, W] in [0, 1] and int64 [N], on the models' device; a column each.
        names: of the classes, by label; see `class_names`.
        seed: of the attack's random start, the same for each model.
    """
    seen = {}
    for label, model in models.items():
        mode = model.training
        draws = torch.Generator(images.device).manual_seed(seed)
        adv = attack(model.eval(), images, labels, draws)
        seen[label] = [(x.cpu(), *_predict(model, x)) for x in (images, adv)]
        model.train(mode)
    guesses = [guess for of in seen.values() for _, guess, _ in of]
    names = names or class_names("", 1 + int(torch.cat([labels.cpu(), *guesses]).max()))
    largest = max((adv - clean).abs().max().item() for (clean, *_), (adv, *_) in seen.values()) or 1.0
    columns = 2 if len(models) > 1 and len(images) < 8 else 1
    rows = math.ceil(len(models) / columns)
    figure = Picture(figsize=(columns * (0.6 + 1.05 * len(images)), rows * 4.2), layout="constrained")
    blocks = figure.subfigures(rows, columns, squeeze=False, hspace=0.04).flatten()
    for block, (label, ((clean, *before), (adv, *after))) in zip(blocks, seen.items()):
        block.suptitle(style.name(label), fontsize="medium")
        magnified = (adv - clean) / (2 * largest) + 0.5
        perturbation = f"perturbation\n{0.5 / largest:.3g} times"
        kinds = (("clean", clean, before), (perturbation, magnified, None), ("attacked", adv, after))
        for (kind, pictures, predicted), line in zip(kinds, block.subplots(3, len(images), squeeze=False)):
            line[0].set_ylabel(kind, fontsize="small")
            for i, panel in enumerate(line):
                _show(panel, pictures[i])
                if predicted:
                    guess, confidence = (values[i].item() for values in predicted)
                    right = guess == labels[i].item()
                    title = f"{names[guess]} {'✓' if right else '✗'} {confidence:.0%}"
                    if kind == "clean":
                        title = f"true: {names[labels[i]]}\n{title}"
                    panel.set_title(title, fontsize="small", fontweight="normal" if right else "bold", pad=3)
    return figure


@torch.no_grad()
def _predict(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The classes (int64 [N]) that a model predicts, and their probabilities."""
    confidence, guess = model(images).softmax(1).max(1)
    return guess.cpu(), confidence.cpu()


def _show(panel: Axes, image: Tensor) -> None:
    """An image (float [1 or 3, H, W] in [0, 1]) without ticks."""
    panel.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])
