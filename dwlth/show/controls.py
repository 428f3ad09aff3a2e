"""Mask or weights? The pictures: what `dwlth.show.crossing` finds in a table, and the way between two trainings.

Intervals are of 95 %: of means over the seeds Student's t, of shares the jackknife over the seeds.
"""

from collections.abc import Collection
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dwlth.errors import NotYet
from dwlth.masks import METHODS
from dwlth.presets import SOURCES, in_order
from dwlth.results import ended, percents, sparsity_by_round
from dwlth.results.records import BARRIERS
from dwlth.show import style
from dwlth.show.crossing import PARTS, against_imp, crossed, variance
from dwlth.show.style import WIDTH, Picture, interval, legend, percent, sparsity_axis, styled
from dwlth.verdict import CRITERIA

KINDS = {"crossed": "Source of the mask", "trained": "IMP trained as for"}
"""What the columns of a crossing are, by the method that makes them."""


@styled()
def draw_crossing(table: pd.DataFrame, downstream: str, fraction: float | None = None, kind: str = "crossed") -> Figure:
    """A heat map for each criterion and round: the mean over the seeds of each cell of `dwlth.show.crossing.crossed`,
    and half its interval. The colours of a criterion span 10 points at least, the same ones in each round. A blank cell
    is the source's own training under another name.

    Raises:
        NotYet: as of `crossed`.
    """
    found = crossed(table, downstream, fraction, kind)
    rounds, names = sorted(found["round"].unique()), [in_order(found[by]) for by in ("weights", "mask")]
    sparsity = sparsity_by_round(table[table["method"] == "imp"])
    figure = Picture(figsize=(WIDTH, 0.9 + (0.6 + 0.7 * max(len(names[0]), 2)) * len(rounds)), layout="constrained")
    grid = figure.subplots(len(rounds), len(CRITERIA), squeeze=False)
    labels = [[SOURCES.get(name, name).replace(" ", "\n") for name in of] for of in names]
    for line, round_ in zip(grid, rounds):
        for panel, criterion in zip(line, CRITERIA):
            cells = found[found["round"] == round_].groupby(["weights", "mask"])[criterion]
            top, bottom = (end(found.groupby(["round", "weights", "mask"])[criterion].mean()) for end in (max, min))
            means = cells.mean().unstack().loc[names[0], names[1]]
            half = cells.agg(lambda values: interval(values)[1] - values.mean()).unstack().loc[names[0], names[1]]
            spread = "\n± {:.1f}" if cells.size().min() > 1 else ""
            texts = [[f"{m:.1f}{spread.format(h)}" for m, h in zip(*row)] for row in zip(means.values, half.values)]
            where = {"xticklabels": labels[1], "yticklabels": labels[0], "square": True, "linewidths": 1, "ax": panel}
            where |= {"vmin": min(bottom, top - 10), "vmax": top}
            sns.heatmap(means, cmap="mako_r", annot=np.array(texts), fmt="", cbar=False, **where)
            panel.tick_params(labelsize="x-small", rotation=0)
            panel.grid(False)  # a blank cell would show its lines
            panel.set(xlabel=KINDS[kind] if round_ == rounds[-1] else "", ylabel="", title="")
        line[0].set_ylabel(f"{100 * sparsity[round_]:.4g} % pruned\nSource of the weights")
    for panel, criterion in zip(grid[0], CRITERIA):
        panel.set_title(f"{criterion} (%)")
    seeds = found["seed"].nunique()
    of = f"means over {seeds} seeds, 95 % intervals" if seeds > 1 else "one seed"
    figure.suptitle(f"{downstream}, {percent(found['fraction'].iloc[0])} of its data: {of}")
    return figure


@styled()
def draw_variance(table: pd.DataFrame, downstream: str, fraction: float | None = None, kind: str = "crossed") -> Figure:
    """The shares of `variance`, a panel for each criterion, and their intervals.

    Raises:
        NotYet: as of `variance`.
    """
    found = variance(table, downstream, fraction, kind)
    sparsity = sparsity_by_round(table[table["method"] == "imp"])
    rounds = sorted(found["round"].unique())
    figure = Picture(figsize=(WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, len(CRITERIA), sharey=True)
    greys, width = [str(v) for v in np.linspace(0.15, 0.75, len(rounds))], 0.8 / len(rounds)
    for panel, criterion in zip(panels, CRITERIA):
        for i, (round_, grey) in enumerate(zip(rounds, greys)):
            of = found[(found["criterion"] == criterion) & (found["round"] == round_)]
            places = np.arange(len(of)) + (i - (len(rounds) - 1) / 2) * width
            share, low, high = (100 * of[column].to_numpy() for column in ("share", "low", "high"))
            error = np.maximum([share - low, high - share], 0)
            label = f"{100 * sparsity[round_]:.4g} % pruned"
            panel.bar(places, share, width, color=grey, yerr=error, capsize=2, ecolor="0.5", label=label)
        panel.set_xticks(range(len(PARTS)), PARTS, rotation=30, ha="right", rotation_mode="anchor")
        panel.set_title(criterion)
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel("Share of the spread (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(rounds))
    seeds = f"{percent(found['fraction'].iloc[0])} of its data, {found['seeds'].max()} seeds"
    figure.suptitle(f"What the spread of the crossing is due to, {downstream}, {seeds} (bars: 95 % intervals)")
    return figure


@styled()
def draw_controls(
    table: pd.DataFrame, downstream: str, round_: int | None = None, fraction: float | None = None
) -> Figure:
    """How many points better than IMP's the other tickets are, by method and source at one round, by default that with
    the most runs: the mean over the seeds of `dwlth.show.crossing.against_imp`, and its interval.

    Raises:
        NotYet: as of `against_imp`, and where it has nothing at this round.
    """
    found = against_imp(table, downstream, fraction)
    found = found[found["method"].isin(list(style.of_methods()))]  # others are known where they were made
    if found.empty:
        raise NotYet("no pruning but IMP in the table that is known here")
    sizes = found.groupby("round").agg(runs=("points", "size"), seeds=("seed", "nunique"))
    round_ = sizes.sort_values(["runs", "seeds"], kind="stable").index[-1] if round_ is None else round_
    found = found[found["round"] == round_]
    if found.empty:
        raise NotYet(f"no pruning but IMP at round {round_} in the table")
    looks, methods = style.of_sources(found["source"]), [m for m in style.of_methods() if m in set(found["method"])]
    figure = Picture(figsize=(WIDTH, 1.5 + 0.42 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(CRITERIA), sharey=True)
    for panel, criterion in zip(panels, CRITERIA):
        for i, (source, look) in enumerate(looks.items()):
            of = found[(found["source"] == source) & (found["criterion"] == criterion)].groupby("method")["points"]
            if not (ends := {name: interval(values) for name, values in of}):
                continue  # a run under way has other criteria only
            places = [methods.index(name) + 0.2 * (i - (len(looks) - 1) / 2) for name in ends]
            panel.hlines(places, *zip(*ends.values()), color=look.colour, linewidth=1.4)
            panel.plot(of.mean()[list(ends)], places, look.marker, color=look.colour, markersize=5)
        panel.axvline(0, color="0.3", linestyle="--", linewidth=0.8)
        panel.set(title=criterion, xlabel="Better than IMP by (points)")
    panels[0].set_yticks(range(len(methods)), [style.of_methods()[name].label for name in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    legend(figure, *([Line2D([], [], **look.line | {"linestyle": "none"})] for look in looks.values()))
    sparsity = sparsity_by_round(table[table["method"] == "imp"])[round_]
    bars = "bars: 95 % intervals; a mark alone: one seed, or a bar within the mark"
    figure.suptitle(
        f"Other tickets against IMP's of the same source and seed, {100 * sparsity:.4g} % pruned\n"
        f"({downstream}, {percent(found['fraction'].iloc[0])} of its data; {bars})"
    )
    return figure


@styled()
def draw_methods(
    table: pd.DataFrame, downstream: str, source: str, fraction: float = 1.0, of: Collection[str] = ()
) -> Figure:
    """SA and RA of one source's tickets by each pruning method, or by those `of` a selection, at the rounds and seeds
    that all of them have; the first point is the dense network.

    Raises:
        NotYet: if the table has no round at which they can be compared.
    """
    runs = percents(table[(table["stage"] == "transfer") & (table["source"] == source)])
    runs = runs[(runs["downstream"] == downstream) & (runs["fraction"] == fraction)]
    looks = {
        name: look for name, look in style.of_methods().items() if name in set(runs["method"]) & set(of or METHODS)
    }
    dense, runs = runs[runs["round"] == 0], runs[runs["method"].isin(list(looks))]
    runs = pd.concat([runs[runs["round"] > 0], *(dense.assign(method=method) for method in looks)])
    runs = runs[runs.groupby(["regime", "round", "seed"])["method"].transform("nunique") == len(looks)]
    if len(looks) < 2 or not len(runs[runs["round"] > 0]):
        raise NotYet(f"no round has tickets of the {source} source by several of {', '.join(style.of_methods())}")
    runs = runs[runs["seed"].isin(runs[runs["round"] > 0]["seed"])]
    figure = Picture(figsize=(WIDTH, 3.5), layout="constrained")
    panels = figure.subplots(1, len(CRITERIA))
    for panel, (title, (regime, metric)) in zip(panels, CRITERIA.items()):
        shown = runs[runs["regime"] == regime]
        bars = {"err_style": "bars", "err_kws": {"capsize": 2}}
        style.lines(panel, shown, "round", metric, "method", looks, estimator="mean", errorbar="se", **bars)
        sparsity_axis(panel, sparsity_by_round(runs))
        panel.set(title=title, ylabel=f"{metric.upper()} (%)")
    legend(figure, *zip(style.handles(looks)))
    figure.suptitle(
        f"{SOURCES.get(source, source)} pre-training: tickets transferred to {downstream} with {percent(fraction)} of "
        "its training data (bars: one standard error)"
    )
    return figure


@styled()
def draw_connectivity(table: pd.DataFrame, downstream: str, fraction: float | None = None) -> Figure:
    """The barrier between two trainings from one start, by regime (rows), against sparsity: of the loss and the
    adversarial loss, and of SA and RA in points; means over the seeds and intervals.

    Raises:
        NotYet: if the table has no rows of the stage `connect`.
    """
    runs = ended(table[(table["stage"] == "connect") & (table["downstream"] == downstream)])
    fraction = runs["fraction"].max() if fraction is None else fraction
    runs = runs[runs["fraction"] == fraction]
    if runs.empty:
        raise NotYet("no way between two trainings in the table: `python -m dwlth connect PRESET` makes it")
    looks, regimes = style.of_sources(runs["source"]), sorted(runs["regime"].unique(), reverse=True)
    titles = ["SA (points lost)", "RA (points lost)", "Loss (nats)", "Adversarial loss (nats)"]
    apart = 0.04 * max(1, runs["round"].max() - runs["round"].min())  # so that no bar hides another
    shift = {source: apart * (i - (len(looks) - 1) / 2) for i, source in enumerate(looks)}
    place = runs["round"] + runs["source"].map(shift)
    runs = runs.assign(barrier_sa=100 * runs["barrier_sa"], barrier_ra=100 * runs["barrier_ra"], place=place)
    figure = Picture(figsize=(WIDTH, 0.8 + 2.3 * len(regimes)), layout="constrained")
    grid = figure.subplots(len(regimes), len(BARRIERS), squeeze=False, sharex=True)
    for line, regime in zip(grid, regimes):
        for panel, column, title in zip(line, BARRIERS, titles):
            bars = {"err_style": "bars", "err_kws": {"capsize": 2}, "estimator": "mean", "errorbar": interval}
            style.lines(panel, runs[runs["regime"] == regime], "place", column, "source", looks, **bars)
            sparsity_axis(panel, sparsity_by_round(runs))
            panel.set(ylabel="", title=title if regime == regimes[0] else "")
            high = max(panel.get_ylim()[1], 0.1 if "loss" in column else 1.0)  # what is next to nothing looks so
            panel.set_ylim(-0.08 * high, high)  # a barrier is 0 or more
            panel.set_xlabel("Sparsity (%)" if regime == regimes[-1] else "")
        line[0].set_ylabel(f"{regime.capitalize()} transfer:\nbarrier")
    legend(figure, *zip(style.handles(looks)))
    figure.suptitle(
        f"The straight way between two trainings from one start, {downstream}, {percent(fraction)} of its data\n"
        "(bars: 95 % intervals, cut below 0; a mark alone: one seed, or a bar within the mark)"
    )
    return figure


FIGURES = {
    "controls": draw_controls,
    "crossing": draw_crossing,
    "variance": draw_variance,
    "training": partial(draw_crossing, kind="trained"),
    "connectivity": draw_connectivity,
}
"""By the start of their files' names: functions of a table and a downstream task."""
