"""The picture of the idea, at the head of the first notebook: `python -m dwlth.show.idea docs/idea.png`."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwlth.attacks import Attack
from dwlth.data import load
from dwlth.files import write
from dwlth.show.style import PALETTE, Picture, styled

WIDTHS = (4, 6, 6, 3)
"""Units of the sketched network, layer by layer."""

GREEN, GREY = PALETTE[2], "0.45"


@styled()
def idea() -> Figure:
    """What a double-win ticket is, from left to right: a dense network, a ticket of it, and its two exams."""
    figure = Picture(figsize=(11, 3.7))
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, 11), ylim=(0, 3.7))
    panel.axis("off")
    rng = np.random.default_rng(5)
    kept = [rng.random((a, b)) < 0.3 for a, b in zip(WIDTHS, WIDTHS[1:])]
    _network(panel, 0.45, [np.ones_like(layer) for layer in kept])
    _network(panel, 3.55, kept)
    _head(panel, 1.35, "1  Pre-train", "a dense network, on images\nas they are or on attacked ones")
    _head(panel, 4.45, "2  Prune", "a ticket: few of the weights,\nat the values that they had")
    _head(panel, 6.95, "3  Transfer", "train the ticket alone\non a new task")
    _head(panel, 9.6, "4  Examine it twice", "is it as good as the dense network?")
    for left, right in ((2.5, 3.3), (5.6, 6.2), (7.75, 8.3)):
        panel.annotate("", (right, 1.6), (left, 1.6), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 2})
    clean, attacked = _digits()
    for i, image in enumerate(clean[:4].reshape(4, 8, 8)):
        left, bottom = 6.33 + 0.64 * (i % 2), 1.62 - 0.64 * (i // 2)
        panel.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(left, left + 0.56, bottom, bottom + 0.56))
    for image, bottom, name in ((clean[0], 1.55, "clean images: SA"), (attacked[0], 0.55, "attacked images: RA")):
        panel.imshow(image[0], cmap="gray", vmin=0, vmax=1, extent=(8.5, 9.3, bottom, bottom + 0.8))
        panel.text(9.42, bottom + 0.4, f"{name}\n", va="center", fontsize=10)
        panel.text(9.42, bottom + 0.27, "✓ as good", va="center", color=GREEN, fontsize=11, fontweight="bold")
    panel.text(9.75, 0.2, "both: a double win", ha="center", fontsize=12, fontweight="bold", color=GREEN)
    panel.set(xlim=(0, 11), ylim=(0, 3.7), aspect="auto")
    return figure


def _head(panel: Axes, x: float, title: str, text: str) -> None:
    panel.text(x, 3.4, title, ha="center", fontsize=14, fontweight="bold")
    panel.text(x, 3.22, text, ha="center", va="top", fontsize=10, color="0.25", linespacing=1.3)


def _network(panel: Axes, left: float, layers: list[np.ndarray]) -> None:
    """Units as dots and the weights that are kept as lines."""
    places = [[(left + 0.6 * i, 1.45 + 0.38 * (j - (n - 1) / 2)) for j in range(n)] for i, n in enumerate(WIDTHS)]
    for before, after, layer in zip(places, places[1:], layers):
        for i, j in np.argwhere(layer):
            panel.plot(*zip(before[i], after[j]), color=PALETTE[0], linewidth=1, alpha=0.8, zorder=1)
    panel.plot(*zip(*sum(places, [])), "o", color="black", markersize=7, zorder=2)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits (float [4, 1, 8, 8]), as they are and attacked: a linear classifier is enough for a sketch."""
    train = load("digits5-9", Path("data"), 0, 0).train
    images, labels = train.images / 255, train.labels
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    attack = Attack(eps=0.2, step_size=0.05, steps=20, random_start=False)
    chosen = [int((labels == label).nonzero()[0]) for label in (3, 0, 1, 4)]
    clean = images[chosen]
    return clean.numpy(), attack(model.eval(), clean, labels[chosen]).numpy()


if __name__ == "__main__":
    write(Path(sys.argv[1]), lambda beside: idea().savefig(beside, format="png", dpi=150))
