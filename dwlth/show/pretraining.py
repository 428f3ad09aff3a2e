"""Figures of pre-training: how it went, what IMP's rounds did to it, and what it is worth downstream."""

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dwlth.errors import NotYet
from dwlth.results import percents, sparsity_by_round
from dwlth.show import style
from dwlth.show.crossing import over
from dwlth.show.style import WIDTH, Picture, interval, legend, percent, sparsity_axis, styled
from dwlth.verdict import CRITERIA, transfers


@styled()
def histories(of: Mapping[str, list[dict]]) -> Figure:
    """How the training of each source went, from the `history` in its record: accuracy on the (attacked) training
    images of each epoch, and validation SA and RA where they were measured."""
    columns = {"accuracy": "Training accuracy", "val_sa": "Validation SA", "val_ra": "Validation RA"}
    rows = pd.DataFrame(
        [row | {"source": source} for source in of for row in of[source]] or {"source": [], "epoch": []}
    )
    rows = rows.reindex(columns=["source", "epoch", *columns]).astype(dict.fromkeys(columns, float))
    rows["epoch"] += 1
    rows[list(columns)] *= 100
    looks = style.of_sources(of)
    figure = Picture(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True)
    for panel, (column, title) in zip(panels, columns.items()):
        style.lines(panel, rows, "epoch", column, "source", looks)
        panel.set(title=title, xlabel="Epochs", ylabel="", xlim=(0.5, max(map(len, of.values()), default=1) + 0.5))
        panel.set_ylim(-3, 103)
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    panels[0].set_ylabel("%")
    legend(figure, *zip(style.handles(looks)))
    return figure


@styled()
def pretraining(table: pd.DataFrame) -> Figure:
    """SA and RA on the pre-training task after each round of IMP; the first point is the dense source.

    Raises:
        NotYet: if the table has no round of IMP.
    """
    runs = percents(table[(table["stage"] == "imp") & (table["method"] == "imp")])
    if runs.empty:
        raise NotYet("no round of IMP yet: `python -m dwlth run PRESET` makes them")
    looks = style.of_sources(runs["source"])
    figure = Picture(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, metric in zip(panels, ("sa", "ra")):
        style.lines(panel, runs, "round", metric, "source", looks, estimator="mean", errorbar="se")
        sparsity_axis(panel, sparsity_by_round(runs))
        panel.set(title=f"{metric.upper()}, pre-training task", ylabel=f"{metric.upper()} (%)")
    legend(figure, *zip(style.handles(looks)))
    figure.suptitle(f"Each round of IMP, on the pre-training task{style.band_over(runs['seed'])}")
    return figure


@styled()
def gain(table: pd.DataFrame, downstream: str, *rounds: int) -> Figure:
    """What robust pre-training is worth, in points over standard pre-training with the same seed, by the fraction of
    downstream data: the mean over seeds and its 95 % confidence interval (Student's t), with a row of panels for the
    tickets of each of these `rounds` of IMP (by default 0, the dense networks).

    Raises:
        NotYet: if no round has both the standard and another source.
    """
    runs, keys = percents(transfers(table, downstream)), ["round", "fraction", "seed"]
    runs = runs[runs["round"].isin(rounds or (0,))]
    every = over(runs, "source", "standard", keys)
    if every.empty:
        raise NotYet(f"no gain over standard pre-training on {downstream} to show: it takes two sources")
    looks, sparsity = style.of_sources(every["source"]), sparsity_by_round(runs)
    shown, fractions = sorted(every["round"].unique()), sorted(every["fraction"].unique(), reverse=True)
    figure = Picture(figsize=(WIDTH, 0.6 + 2.7 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(CRITERIA), sharex=True, sharey=True, squeeze=False)
    for panel, criterion in zip(grid[0], every["criterion"].unique()):
        panel.set_title(criterion)
    palette = {name: look.colour for name, look in looks.items()}
    markers = [look.marker for look in looks.values()]
    points = {"markers": markers, "linestyle": "none", "dodge": 0.3 if len(looks) > 1 else False, "legend": False}
    bars = {"errorbar": interval, "capsize": 0.08, "err_kws": {"linewidth": 1.2}}
    by = {"order": list(map(percent, fractions)), "hue_order": list(looks), "palette": palette}
    for line, round_ in zip(grid, shown):
        for panel, (_, rows) in zip(line, every.groupby("criterion", sort=False)):
            data = rows[rows["round"] == round_].assign(fraction=rows["fraction"].map(percent))
            sns.pointplot(data, x="fraction", y="points", hue="source", ax=panel, **by, **points, **bars)
            panel.axhline(0, color="0.3", linestyle="--", linewidth=0.8)
            panel.set(xlabel="Downstream training data", xlim=(-0.5, len(fractions) - 0.5))
            panel.label_outer()
        networks = f"Tickets, {100 * sparsity[round_]:.4g} % pruned" if round_ else "Dense networks"
        line[0].set_ylabel(f"{networks}:\ngain (points)")
    legend(figure, *([Line2D([], [], **look.line | {"linestyle": "none"})] for look in looks.values()))
    figure.suptitle(
        f"Gain over standard pre-training with the same seed, {downstream}\n"
        "(bars: 95 % confidence interval; a mark alone: one seed, or a bar within the mark)"
    )
    return figure
