"""Figures, each from the table alone."""

import io
import re
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwlth.errors import NotYet
from dwlth.files import write
from dwlth.verdict import CRITERIA, verdict

SOURCES = {
    "standard": ("Standard", "#0072B2", "o", ""),
    "fast_adversarial": ("Fast adversarial", "#E69F00", "s", (4, 1.5)),
    "adversarial": ("Adversarial", "#009E73", "D", (1, 1)),
}
"""Name, colour (Okabe and Ito's, told apart by colour-blind readers), marker and dashes of each source, in the order
of the legend: black-and-white print has the markers and dashes."""

PANELS = CRITERIA | {"RA, standard transfer": ("standard", "ra")}


class Picture(Figure):
    """A matplotlib figure made without pyplot, so on any thread, that a notebook's cell shows when it ends with it."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """The figure as PNG, for a screen; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def curves(table: pd.DataFrame, downstream: str, fraction: float, tolerance: float | None = None) -> Figure:
    """SA and RA of the tickets against their sparsity, under both regimes, with a line per source: the mean over
    seeds and a band of one standard error; dashed, the dense network; a star, the sparsest double-win ticket."""
    runs = table[(table["stage"] == "transfer") & (table["method"] == "imp")]
    runs = runs[(runs["downstream"] == downstream) & (runs["fraction"] == fraction)]
    found = verdict(runs, tolerance).set_index("source")["round"]
    figure = Picture(figsize=(15, 3.9), layout="constrained")
    panels = figure.subplots(1, 4)
    for panel, (title, (regime, metric)) in zip(panels, PANELS.items()):
        shown = runs[runs["regime"] == regime]
        _lines(panel, shown, metric)
        means = shown.groupby(["source", "round"])[metric].mean() * 100
        for source, (_, colour, _, _) in SOURCES.items():
            if (source, 0) in means:
                panel.axhline(means[source, 0], color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
            if title in CRITERIA and source in found and (source, found[source]) in means:
                panel.plot(found[source], means[source, found[source]], "*", markersize=17, color=colour, mec="black")
        panel.set(title=title, ylabel=f"{metric.upper()} (%)")
    for panel in panels[1:]:
        panel.get_legend().remove()
    figure.suptitle(
        f"Tickets transferred to {downstream} with {fraction:.0%} of its training data "
        "(dashed: dense network, star: sparsest double-win ticket, band: one standard error)",
        fontsize="medium",
    )
    return figure


def pretraining(table: pd.DataFrame) -> Figure:
    """SA and RA on the pre-training task after each round of IMP; the first point is the dense source."""
    runs = table[table["stage"] == "imp"]
    figure = Picture(figsize=(9, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, metric in zip(panels, ("sa", "ra")):
        _lines(panel, runs, metric)
        panel.set(title=f"{metric.upper()}, pre-training task", ylabel=f"{metric.upper()} (%)")
    return figure


def double_wins(table: pd.DataFrame, downstream: str, tolerance: float | None = None) -> Figure:
    """The sparsity of the sparsest double-win ticket of each source, by the fraction of downstream data."""
    found = verdict(table[table["downstream"] == downstream], tolerance)
    figure = Picture(figsize=(5.5, 3.9), layout="constrained")
    panel = figure.subplots()
    fractions = sorted(found["fraction"].unique(), reverse=True)
    for shift, (source, (name, colour, marker, _)) in zip((-0.15, 0, 0.15), SOURCES.items()):
        shown = found[found["source"] == source]
        places = [fractions.index(fraction) + shift for fraction in shown["fraction"]]
        panel.plot(places, shown["round"], marker, color=colour, markersize=9, mec="black", label=name)
        panel.vlines(places, 0, shown["round"], color=colour, linewidth=1.5)
    sparsity = table.groupby("round")["sparsity"].first()
    panel.set(xlabel="Downstream training data", ylabel="Sparsity of the sparsest double-win ticket (%)")
    panel.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
    rounds = sorted(table[table["stage"] == "transfer"]["round"].unique())
    panel.set_yticks(rounds, [f"{100 * sparsity[r]:.4g}" if r else "0 (dense)" for r in rounds])
    panel.set_ylim(top=rounds[-1] + 1)
    panel.set_title(f"Double-win tickets on {downstream}")
    panel.legend(title="Pre-training", fontsize="small")
    return figure


def draw_all(table: pd.DataFrame, folder: Path, tolerance: float | None = None) -> list[Path]:
    """Draw every figure the table has the runs for, as PNG and PDF; returns the paths of the PNGs."""
    transfers = table[table["stage"] == "transfer"]
    drawn = {}
    for downstream, runs in transfers.groupby("downstream"):
        place = re.sub(r"[^\w.-]", "-", downstream)  # folder:PATH makes no file name
        for fraction in sorted(runs["fraction"].unique(), reverse=True):
            drawn[f"curves-{place}-{fraction:g}"] = lambda d=downstream, f=fraction: curves(table, d, f, tolerance)
        drawn[f"double-wins-{place}"] = lambda d=downstream: double_wins(table, d, tolerance)
    if (table["stage"] == "imp").any():
        drawn["pretraining"] = lambda: pretraining(table)
    paths = []
    for name, draw in drawn.items():
        try:
            figure = draw()
        except NotYet:
            continue
        paths.append(_save(figure, folder / f"{name}.png"))
    return paths


def _save(figure: Figure, path: Path) -> Path:
    write(path, lambda beside: figure.savefig(beside, format="png", dpi=150))
    undated = {"CreationDate": None}  # the same figure is the same file
    write(path.with_suffix(".pdf"), lambda beside: figure.savefig(beside, format="pdf", metadata=undated))
    return path


def _lines(panel: Axes, runs: pd.DataFrame, metric: str) -> None:
    """A line per source of `metric` in percent against the IMP round, whose ticks say the sparsity in percent."""
    values = runs.groupby(["source", "round"])[metric].agg(["mean", "sem"]).mul(100).dropna(subset="mean")
    for source, (name, colour, marker, dashes) in SOURCES.items():
        if source not in values.index:
            continue
        of = values.loc[source]
        style = {"color": colour, "marker": marker, "linestyle": (0, dashes) if dashes else "-"}
        panel.plot(of.index, of["mean"], **style, mec="white", label=name)
        panel.fill_between(of.index, of["mean"] - of["sem"], of["mean"] + of["sem"], color=colour, alpha=0.2)
    sparsity = runs.groupby("round")["sparsity"].first()
    shown = sparsity if len(sparsity) < 10 else sparsity.iloc[::3]
    panel.set_xticks(shown.index, [f"{100 * value:.4g}" for value in shown], rotation=45)
    panel.set(xlabel="Sparsity (%)")
    panel.grid(alpha=0.3)
    panel.legend(title="Pre-training", fontsize="small")
