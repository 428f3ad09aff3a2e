"""What a ticket looks like from inside: layers, kernels, weights, overlaps and loss surfaces.

Functions that compute take masks and networks; those that draw return a matplotlib Figure of their own, which nobody
else holds (no pyplot), so they may run on any thread.
"""

import copy
from collections.abc import Mapping
from itertools import combinations, cycle

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from dwlth.attacks import Attack
from dwlth.errors import DwlthError
from dwlth.masks import Mask, prunable
from dwlth.models import Classifier
from dwlth.show import style
from dwlth.show.style import MARKERS, WIDTH, Picture, sparsity_axis, styled


def layer_sparsity(mask: Mask) -> pd.Series:
    """The fraction of each layer's weights that is pruned, in [0, 1], by the names in the mask and in its order."""
    return pd.Series({name: 1 - tensor.double().mean().item() for name, tensor in mask.items()}, name="sparsity")


@styled()
def draw_layers(masks: Mapping[str, Mask]) -> Figure:
    """The sparsity of each layer, with a line per mask; masks named as a source look as that source does everywhere."""
    layers = [name.removesuffix(".weight") for name in next(iter(masks.values()))]
    figure = Picture(figsize=(max(7.5, 2 + 0.22 * len(layers)), 4), layout="constrained")
    panel = figure.subplots()
    for look, mask in zip(style.of_labels(masks), masks.values()):
        panel.plot(100 * layer_sparsity(mask).to_numpy(), **look.line)
    turned = {"rotation": 90} if len(layers) > 20 else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    panel.set_xticks(range(len(layers)), layers, fontsize="small", **turned)
    panel.set(xlabel="Convolution, from input to output", ylabel="Pruned weights (%)", ylim=(-3, 103))
    figure.legend(loc="outside right upper")
    return figure


def overlap(a: Mask, b: Mask) -> float:
    """How alike two masks of one network are: survivors in both over survivors in either (Jaccard), in [0, 1]."""
    _same_layers(a, b)
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    return both / max(1, a.kept + b.kept - both)


def overlap_by_chance(a: Mask, b: Mask) -> float:
    """The overlap to expect of two masks that are drawn at random, independently, with the densities of `a` and `b` in
    each layer (expected survivors in both, over expected survivors in either)."""
    _same_layers(a, b)
    both = sum(int(a[name].sum()) * int(b[name].sum()) / a[name].numel() for name in a)
    return both / max(1, a.kept + b.kept - both)


@styled()
def draw_overlap(tickets: Mapping[str, Mapping[int, Mask]], round_: int | None = None) -> Figure:
    """The overlap of tickets, by name (a source's, as a rule) and round: on the left between all names at one round,
    by default the last; on the right of each pair at every round. Beside it, the overlap by chance."""
    names = list(tickets)
    rounds = sorted(set.intersection(*(set(of) for of in tickets.values())))
    round_ = rounds[-1] if round_ is None else round_
    figure = Picture(figsize=(WIDTH, 3.9), layout="constrained")
    matrix, curve = figure.subplots(1, 2, width_ratios=(1, 1.5))
    pairs = [[(tickets[a][round_], tickets[b][round_]) for b in names] for a in names]
    values = pd.DataFrame([[overlap(*pair) for pair in row] for row in pairs])
    texts = [[f"{overlap(a, b):.2f}\n(chance {overlap_by_chance(a, b):.2f})" for a, b in row] for row in pairs]
    for i in range(len(names)):
        texts[i][i] = "1"
    labels = [style.name(name).replace(" ", "\n") for name in names]
    sns.heatmap(
        values,
        vmin=0,
        vmax=1,
        cmap="mako_r",
        annot=texts,
        fmt="",
        annot_kws={"fontsize": "small"},
        square=True,
        cbar=False,
        ax=matrix,
        xticklabels=labels,
        yticklabels=labels,
        linewidths=1,
    )
    matrix.tick_params(rotation=0, labelsize="small")
    matrix.set_title(f"Round {round_}, sparsity {tickets[names[0]][round_].sparsity:.2%}")
    pairs = list(combinations(names, 2))
    for (a, b), colour, marker in zip(pairs, style.shades(len(pairs)), cycle(MARKERS)):
        masks = [(tickets[a][r], tickets[b][r]) for r in rounds]
        label = f"{style.name(a)} / {style.name(b)}"
        curve.plot(rounds, [overlap(*pair) for pair in masks], marker=marker, mec="white", color=colour, label=label)
        curve.plot(rounds, [overlap_by_chance(*pair) for pair in masks], color=colour, linestyle=":", linewidth=1)
    curve.plot([], [], color="black", linestyle=":", label="the same, by chance")
    sparsity_axis(curve, {r: tickets[names[0]][r].sparsity for r in rounds})
    curve.set(ylabel="Overlap", ylim=(0, 1.03), title="Every round")
    curve.legend(fontsize="small")
    return figure


def kernels(net: nn.Module, mask: Mask, layer: str) -> Tensor:
    """The weights of a convolution (float [out, in, height, width], on the CPU), NaN where the mask prunes them.

    Raises:
        DwlthError: for a layer that is not in the mask.
    """
    if layer not in mask:
        raise DwlthError(f"no layer {layer!r} in the mask: choose from {', '.join(mask)}")
    weight = prunable(net)[layer].detach().float().cpu()
    return weight.masked_fill(~mask[layer].cpu(), torch.nan)


@styled()
def draw_kernels(net: nn.Module, mask: Mask, layer: str, limit: int = 8) -> Figure:
    """A convolution of a ticket: on the left how many weights each of its kernels keeps, a row per output and a column
    per input channel; on the right the kernels of the first `limit` of both, with a cross on each pruned weight."""
    weight = kernels(net, mask, layer)
    figure = Picture(figsize=(11, 4.8))  # laid out by hand, which takes half the time: the explorer waits for it
    place = {"left": 0.06, "right": 0.99, "bottom": 0.11, "top": 0.93, "wspace": 0.12}
    counts, grid = figure.subplots(1, 2, width_ratios=(1, 1.25), gridspec_kw=place)
    size = weight[0, 0].numel()
    kept, bar = mask[layer].sum((2, 3)).numpy(force=True), {"label": f"Surviving weights of a kernel's {size}"}
    own = {"xticklabels": False, "yticklabels": False}  # ours are faster: seaborn draws its own to see whether they fit
    sns.heatmap(kept, cmap="mako_r", vmin=0, vmax=size, cbar_kws=bar, rasterized=True, ax=counts, **own)
    counts.set(xlabel="Input channel", ylabel="Output channel", title=f"{layer.removesuffix('.weight')}: all kernels")
    for axis, length in ((counts.xaxis, weight.shape[1]), (counts.yaxis, weight.shape[0])):
        channels = range(0, length, max(1, length // 8))
        axis.set_ticks([channel + 0.5 for channel in channels], channels)

    shown = weight[:limit, :limit]
    rows, columns, height, width = shown.shape
    canvas = torch.full((rows * (height + 1) - 1, columns * (width + 1) - 1), torch.nan)
    crosses = []
    for i, j in np.ndindex(rows, columns):
        top, left = i * (height + 1), j * (width + 1)
        canvas[top : top + height, left : left + width] = shown[i, j]
        crosses.append(shown[i, j].isnan().nonzero() + torch.tensor([top, left]) + 0.5)
        box = {"fill": False, "edgecolor": "0.7", "linewidth": 0.6, "clip_on": False}
        grid.add_patch(Rectangle((left, top), width, height, **box))
    reach = weight.nan_to_num().abs().max().item() or 1.0
    bar = {"label": "Weight (cross: pruned)"}
    sns.heatmap(canvas.numpy(), cmap="cividis", vmin=-reach, vmax=reach, cbar_kws=bar, square=True, ax=grid, **own)
    cell = 200 / max(canvas.shape)  # points, about
    places = torch.cat(crosses).numpy().T[::-1]
    grid.scatter(*places, marker="x", s=(0.45 * cell) ** 2, color="0.6", linewidths=0.08 * cell)
    grid.set_xticks([j * (width + 1) + width / 2 for j in range(columns)], range(columns))
    grid.set_yticks([i * (height + 1) + height / 2 for i in range(rows)], range(rows))
    grid.grid(False)
    grid.set(xlabel="Input channel", ylabel="Output channel", title=f"the first {rows} x {columns} kernels")
    return figure


@styled()
def draw_weights(net: nn.Module, mask: Mask) -> Figure:
    """How the weights of a network are distributed, all of them and those that survive, counted on a log scale; dotted,
    the magnitude at which pruning at once would keep as many."""
    weights = prunable(net)
    dense = torch.cat([weight.detach().float().cpu().flatten() for weight in weights.values()]).numpy()
    kept = np.concatenate([mask[name].cpu().flatten().numpy() for name in weights])
    figure = Picture(figsize=(WIDTH, 3.9), layout="constrained")
    panel = figure.subplots()
    reach = float(np.abs(dense).max())
    bins = np.linspace(-reach, reach, 82)  # an even number of edges, so that a bin has 0 in its middle
    panel.hist(dense, bins, color="0.8", edgecolor="0.6", linewidth=0.3, label=f"all {len(dense):,}")
    label = f"the {kept.sum():,} that survive ({mask.sparsity:.2%} pruned)"
    panel.hist(dense[kept], bins, histtype="step", color="black", linewidth=1.5, label=label)
    threshold = np.sort(np.abs(dense))[-kept.sum()] if kept.any() else reach
    panel.axvline(threshold, color="black", linestyle=":", label="as many, by magnitude at once")
    panel.axvline(-threshold, color="black", linestyle=":")
    panel.set(yscale="log", xlabel="Weight before pruning", ylabel="Weights (log scale)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def loss_surface(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    mask: Mask | None = None,
    points: int = 15,
    reach: float = 1.0,
    seed: int = 0,
    attack: Attack = Attack(),  # noqa: B008, a frozen value
) -> tuple[Tensor, Tensor]:
    """The loss around a network, on a plane through its weights along two random directions, each filter of which has
    the norm of the network's own filter (Li et al., 2018); batch norm, biases and pruned weights stay as they are.

    Args:
        images, labels: float [N, C, H, W] in [0, 1] and int64 [N], on the model's device.
        mask: makes the network a ticket: pruned weights are zero all over the plane.
        points: an odd number, so that the network itself is the point in the middle.
        reach: the plane goes from -reach to reach, in norms of the filters.
        seed: of the two directions, which are the same for all networks of one kind, and of the attack's starts.
        attack: the loss is that of images attacked anew at each point; none by default.

    Returns:
        `axis` (float [points]), and the mean cross-entropies in evaluation mode (float [points, points]), where
        `losses[i, j]` is the one `axis[i]` along the first direction and `axis[j]` along the second. The model is
        left as it was.

    Raises:
        DwlthError: for a number of points that is even or below 3, or a reach that is not above 0.
    """
    if points < 3 or points % 2 == 0:
        raise DwlthError(f"points is {points}: give an odd number, 3 or more")
    if not reach > 0:
        raise DwlthError(f"reach is {reach}: give a number above 0")
    model = copy.deepcopy(model).eval()
    if mask:
        mask.apply_(model.net)
    generator = torch.Generator().manual_seed(seed)
    start = {name: p.detach().clone() for name, p in model.net.named_parameters() if p.dim() > 1}
    one, two = ({name: _direction(p, generator) for name, p in start.items()} for _ in range(2))
    parameters = dict(model.net.named_parameters())
    axis = torch.linspace(-reach, reach, points)
    losses = torch.empty(points, points)
    for i, j in np.ndindex(points, points):
        with torch.no_grad():
            for name, weight in start.items():
                parameters[name].copy_(weight + axis[i] * one[name] + axis[j] * two[name])
        draws = torch.Generator(images.device).manual_seed(seed)
        adv = attack(model, images, labels, draws)
        with torch.no_grad():
            losses[i, j] = F.cross_entropy(model(adv), labels).item()
    return axis, losses


@styled()
def draw_surfaces(surfaces: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Loss surfaces of `loss_surface` by name, side by side on common levels, which grow by a factor; the cross is the
    network itself."""
    figure = Picture(figsize=(1.2 + 3.6 * len(surfaces), 3.9), layout="constrained")
    panels = figure.subplots(1, len(surfaces), squeeze=False)[0]
    every = torch.stack([losses for _, losses in surfaces.values()]).clamp_min(1e-4)
    levels = np.geomspace(every.min().item(), every.max().item() * 1.001, 13)
    for panel, (name, (axis, losses)) in zip(panels, surfaces.items()):
        axis = axis.numpy()
        drawn = losses.clamp_min(1e-4).T.numpy()  # the first direction to the right
        filled = panel.contourf(axis, axis, drawn, levels, cmap="cividis", norm="log")
        panel.contour(axis, axis, drawn, levels, colors="black", linewidths=0.5)
        panel.plot(0, 0, "+", color="white", markersize=12, markeredgewidth=2)
        middle = losses[len(axis) // 2, len(axis) // 2]
        panel.set(xlabel="First direction", ylabel="Second direction")
        panel.set_title(f"{style.name(name)}: loss {middle:.3g}")
        panel.set_box_aspect(1)
    figure.colorbar(filled, ax=panels, label="Loss", format="%.2g", ticks=levels[::2])
    return figure


def _direction(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A Gaussian direction with zeros where the weight has them, and each filter of the norm of the weight's own."""
    draw = torch.randn(weight.shape, generator=generator).to(weight) * (weight != 0)
    own, norm = (x.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1)) for x in (weight, draw))
    return draw * own / norm.clamp_min(1e-12)


def _same_layers(a: Mask, b: Mask) -> None:
    for name in a.keys() | b.keys():
        if name not in a or name not in b or a[name].shape != b[name].shape:
            raise DwlthError(f"masks of two networks: they differ at {name}")
