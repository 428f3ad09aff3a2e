"""Figures, each from the table alone."""

import contextlib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dwlth.errors import NotYet
from dwlth.files import write
from dwlth.verdict import CRITERIA, PAPER, transfers, verdict

SOURCES = {
    "standard": ("Standard", "#0072B2", "o", ""),
    "fast_adversarial": ("Fast adversarial", "#E69F00", "s", (4, 1.5)),
    "adversarial": ("Adversarial", "#009E73", "D", (1, 1)),
}
"""Name, colour (Okabe and Ito's, told apart by colour-blind readers), marker and dashes of each source, in the order
of the legend: black-and-white print has the markers and dashes."""

METHODS = {
    "imp": ("IMP", "black", "o", ""),
    "oneshot": ("One-shot", "#D55E00", "^", (4, 1.5)),
    "random": ("Random", "#56B4E9", "X", (1, 1)),
}
"""The same of each way to find a ticket."""

WIDTH = 9.0
"""Inches of a wide figure: scaled to a page's 6.75 inches of text, its letters are 6 to 9 points high."""

PANELS = CRITERIA | {"RA, standard transfer": ("standard", "ra")}


class Picture(Figure):
    """A matplotlib figure made without pyplot, so on any thread, that a notebook's cell shows when it ends with it."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """The figure as PNG, for a screen; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.set_dpi(100)
    FigureCanvasAgg(figure).print_png(file)  # savefig draws twice
    return file.getvalue()


def curves(
    table: pd.DataFrame,
    downstream: str,
    fraction: float,
    tolerance: float | None = None,
    sources: Iterable[str] = tuple(SOURCES),
) -> Figure:
    """SA and RA of the tickets against their sparsity, under both regimes, with a line for each of `sources`: the mean
    over seeds and a band of one standard error; dashed, the dense network; a star, the sparsest double-win ticket.

    Raises:
        NotYet: if no source has dense runs under both regimes.
    """
    runs = transfers(table, downstream, fraction)
    runs = runs[runs["source"].isin(list(sources))]
    found = verdict(runs, tolerance)
    figure = Picture(figsize=(WIDTH, 6.4), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for panel, (title, (regime, metric)) in zip(panels, PANELS.items()):
        _transfers(panel, runs, found, regime, metric)
        panel.set_title(title)
    for panel in panels[1:]:
        panel.get_legend().remove()
    figure.suptitle(
        f"Tickets transferred to {downstream} with {fraction:.0%} of its training data\n"
        "(dashed: dense network, star: sparsest double-win ticket, band: one standard error)",
        fontsize="medium",
    )
    return figure


def curve(
    table: pd.DataFrame,
    downstream: str,
    fraction: float,
    regime: str,
    metric: str,
    source: str,
    round_: int | None = None,
) -> Figure:
    """One panel of `curves`, for a regime and a metric (`sa` or `ra`): the tickets of `source`, those of the other
    sources faint, and a ring around the ticket of IMP round `round_`.

    Raises:
        NotYet: if the table has no such transfers.
    """
    runs = transfers(table, downstream, fraction)
    if not (runs["regime"] == regime).any():
        raise NotYet(
            f"no {regime} transfers to {downstream} with {fraction:.0%} of its data in the table yet; "
            "`python -m dwlth run` makes them"
        )
    found = pd.DataFrame(columns=["source", "round"])
    with contextlib.suppress(NotYet):
        found = verdict(runs)
    figure = Picture(figsize=(7.5, 4.2), layout="constrained")
    panel = figure.subplots()
    values = _transfers(panel, runs, found, regime, metric, source)
    if (source, round_) in values.index:
        at = (round_, values["mean"][source, round_])
        panel.plot(*at, "o", markersize=22, fillstyle="none", color="black", mew=2, zorder=4)
        panel.axvline(round_, color="black", linewidth=0.8, linestyle=":")
    panel.set_title(f"{metric.upper()}, {regime} transfer to {downstream} with {fraction:.0%} of its training data")
    return figure


def pretraining(table: pd.DataFrame) -> Figure:
    """SA and RA on the pre-training task after each round of IMP; the first point is the dense source."""
    runs = table[table["stage"] == "imp"]
    figure = Picture(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, metric in zip(panels, ("sa", "ra")):
        _lines(panel, runs, metric)
        panel.set(title=f"{metric.upper()}, pre-training task")
    return figure


def double_wins(table: pd.DataFrame, downstream: str, tolerance: float | None = None, paper: bool = False) -> Figure:
    """The sparsity of the sparsest double-win ticket of each source, by the fraction of downstream data.

    With `paper` also the paper's own, which are of another scale: hollow, from `results/paper.csv`; those of the same
    task, or of all its tasks where this one is none of them.
    """
    found = verdict(table[table["downstream"] == downstream], tolerance)
    theirs = pd.read_csv(PAPER) if paper and PAPER.exists() else pd.DataFrame(columns=["downstream"])
    same = theirs["downstream"].str.replace("-", "").str.lower() == downstream.replace("-", "").lower()
    theirs = theirs[same] if same.any() else theirs
    figure = Picture(figsize=(8 if len(theirs) else 5.5, 3.9), layout="constrained")
    panel = figure.subplots()
    fractions = sorted(found["fraction"].unique(), reverse=True)
    shift = dict(zip(SOURCES, (-0.15, 0, 0.15)))  # side by side
    for source, (name, colour, marker, _) in SOURCES.items():
        shown = found[found["source"] == source]
        places = [fractions.index(fraction) + shift[source] for fraction in shown["fraction"]]
        panel.plot(places, shown["round"], marker, color=colour, markersize=9, mec="black", label=name)
        panel.vlines(places, 0, shown["round"], color=colour, linewidth=1.5)
    for shape, (task, rows) in zip("*p", theirs.groupby("downstream")):
        places = [shift[source] for source in rows["source"]]
        colours = [SOURCES[source][1] for source in rows["source"]]
        label = f"the paper's on {task},\nanother scale"
        panel.scatter(places, rows["round"], 150, "none", marker=shape, edgecolors=colours, linewidths=1.6)
        panel.scatter([], [], 90, "none", marker=shape, edgecolors="black", label=label)
    sparsity = table.groupby("round")["sparsity"].first()
    panel.set(xlabel="Downstream training data", ylabel="Sparsity of the sparsest double-win ticket (%)")
    panel.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
    rounds = sorted(table[table["stage"] == "transfer"]["round"].unique())
    panel.set_yticks(rounds, [f"{100 * sparsity[r]:.4g}" if r else "0 (dense)" for r in rounds])
    panel.set_ylim(top=rounds[-1] + 1)
    panel.set_title(f"Double-win tickets on {downstream}")
    if len(theirs):
        figure.legend(loc="outside right upper", title="Pre-training", fontsize="small")
    else:
        panel.legend(title="Pre-training", fontsize="small")
    return figure


def draw_all(table: pd.DataFrame, folder: Path, tolerance: float | None = None) -> list[Path]:
    """Draw every figure the table has the runs for, as PNG and PDF; returns the paths of the PNGs."""
    drawn = {}
    for downstream, runs in table[table["stage"] == "transfer"].groupby("downstream"):
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


def _transfers(
    panel: Axes, runs: pd.DataFrame, found: pd.DataFrame, regime: str, metric: str, highlight: str = ""
) -> pd.DataFrame:
    """`_lines` of the transfers under one regime, with the dense networks, and the double-win tickets `found` by the
    verdict where `metric` under this regime is one of its criteria."""
    values = _lines(panel, runs[runs["regime"] == regime], metric, highlight)
    for source, (_, colour, _, _) in SOURCES.items():
        faint, zorder = _emphasis(source, highlight)
        if (source, 0) in values.index:
            dense = values["mean"][source, 0]
            panel.axhline(dense, color=colour, linestyle="--", linewidth=0.8, alpha=0.7 * faint)
        for round_ in found["round"][found["source"] == source]:
            if (regime, metric) in CRITERIA.values() and (source, round_) in values.index:
                best = values["mean"][source, round_]
                panel.plot(round_, best, "*", markersize=17, color=colour, mec="black", alpha=faint, zorder=zorder)
    return values


def _lines(panel: Axes, runs: pd.DataFrame, metric: str, highlight: str = "") -> pd.DataFrame:
    """A line per source of `metric` in percent against the IMP round, whose ticks say the sparsity in percent; all
    sources but `highlight` faint. Returns the `mean` and the standard error `sem` over seeds, by source and round."""
    values = runs.groupby(["source", "round"])[metric].agg(["mean", "sem"]).mul(100).dropna(subset="mean")
    for source, (name, colour, marker, dashes) in SOURCES.items():
        if source not in values.index:
            continue
        faint, zorder = _emphasis(source, highlight)
        of = values.loc[source]
        style = {"color": colour, "marker": marker, "linestyle": (0, dashes) if dashes else "-", "mec": "white"}
        panel.plot(of.index, of["mean"], **style, alpha=faint, zorder=zorder, label=name)
        low, high = of["mean"] - of["sem"], of["mean"] + of["sem"]
        panel.fill_between(of.index, low, high, color=colour, alpha=0.2 * faint)
    sparsity_axis(panel, runs.groupby("round")["sparsity"].first())
    panel.set_ylabel(f"{metric.upper()} (%)")
    panel.grid(alpha=0.3)
    panel.legend(title="Pre-training", fontsize="small")
    return values


def sparsity_axis(panel: Axes, sparsity: Mapping[int, float]) -> None:
    """An x axis of IMP rounds that says their sparsity (fractions, by round), of many rounds that of every third."""
    rounds = sorted(sparsity.keys())
    rounds = rounds if len(rounds) < 10 else rounds[::3]
    panel.set_xticks(rounds, [f"{100 * sparsity[r]:.4g}" for r in rounds], rotation=45)
    panel.set_xlabel("Sparsity (%)")


def _emphasis(source: str, highlight: str) -> tuple[float, int]:
    """Opacity in [0, 1] and order from back (2, matplotlib's own) to front of a source, where one may stand out."""
    return (1, 2) if not highlight else (1, 3) if source == highlight else (0.25, 2)


def methods(table: pd.DataFrame, downstream: str, source: str, fraction: float = 1.0) -> Figure:
    """SA and RA of one source's tickets by iterative, one-shot and random pruning, at the rounds and seeds that all of
    them have; the first point is the dense network.

    Raises:
        NotYet: if the table has no round at which they can be compared.
    """
    runs = table[(table["stage"] == "transfer") & (table["source"] == source)]
    runs = runs[(runs["downstream"] == downstream) & (runs["fraction"] == fraction)]
    dense = runs[runs["round"] == 0]
    runs = pd.concat([runs[runs["round"] > 0], *(dense.assign(method=method) for method in METHODS)])
    which = ["regime", "round", "seed"]
    runs = runs[runs.groupby(which)["method"].transform("nunique") == len(METHODS)]
    if not len(runs[runs["round"] > 0]):
        raise NotYet(f"no round has tickets of the {source} source by {', '.join(METHODS)}")
    runs = runs[runs["seed"].isin(runs[runs["round"] > 0]["seed"])]
    figure = Picture(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, len(CRITERIA))
    for panel, (title, (regime, metric)) in zip(panels, CRITERIA.items()):
        values = runs[runs["regime"] == regime].groupby(["method", "round"])[metric].agg(["mean", "sem"]).mul(100)
        for method, (name, colour, marker, dashes) in METHODS.items():
            of, line = values.loc[method], (0, dashes) if dashes else "-"
            error = of["sem"].fillna(0)
            panel.errorbar(of.index, of["mean"], error, color=colour, marker=marker, linestyle=line, label=name)
        sparsity_axis(panel, runs.groupby("round")["sparsity"].first())
        panel.set(title=title, ylabel=f"{metric.upper()} (%)")
        panel.grid(alpha=0.3)
    panels[0].legend(title="Pruning", fontsize="small")
    data = f"{downstream} with {fraction:.0%} of its training data"
    figure.suptitle(f"{SOURCES[source][0]} pre-training: tickets transferred to {data}", fontsize="medium")
    return figure


def gain(table: pd.DataFrame, downstream: str, round_: int = 0) -> Figure:
    """What robust pre-training is worth, in points over standard pre-training with the same seed, by the fraction of
    downstream data: the mean over seeds, and one standard error."""
    runs = transfers(table, downstream)
    runs = runs[runs["round"] == round_].set_index(["fraction", "seed"])
    fractions = sorted(runs.index.levels[0], reverse=True)
    figure = Picture(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, len(CRITERIA), sharey=True)
    for panel, (title, (regime, metric)) in zip(panels, CRITERIA.items()):
        shown = runs[runs["regime"] == regime]
        base = shown[shown["source"] == "standard"][metric]
        for shift, (source, (name, colour, marker, _)) in zip((0, -0.08, 0.08), SOURCES.items()):
            points = 100 * (shown[shown["source"] == source][metric] - base).dropna()
            if source == "standard" or points.empty:
                continue
            over = points.groupby(level="fraction").agg(["mean", "sem"]).reindex(fractions)
            places = [place + shift for place in range(len(fractions))]
            error = over["sem"].fillna(0)
            panel.errorbar(
                places,
                over["mean"],
                error,
                color=colour,
                marker=marker,
                markersize=8,
                mec="black",
                linewidth=0,
                elinewidth=1.5,
                capsize=4,
                label=name,
            )
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
        panel.set(title=title, xlabel="Downstream training data", xlim=(-0.5, len(fractions) - 0.5))
        panel.grid(alpha=0.3)
    networks = "Dense networks" if round_ == 0 else f"Tickets of round {round_} ({runs['sparsity'].iloc[0]:.2%} pruned)"
    figure.suptitle(f"{networks}, transferred to {downstream}", fontsize="medium")
    panels[0].set_ylabel("Gain over standard\npre-training (points)")
    panels[0].legend(title="Pre-training", fontsize="small")
    return figure


def histories(of: dict[str, list[dict]]) -> Figure:
    """How the training of each source went, from the `history` in its record: accuracy on the (attacked) training
    images of each epoch, and validation SA and RA where they were measured."""
    columns = {"accuracy": "Training accuracy", "val_sa": "Validation SA", "val_ra": "Validation RA"}
    figure = Picture(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True)
    for panel, (column, title) in zip(panels, columns.items()):
        for source, (name, colour, marker, dashes) in SOURCES.items():
            rows = [row for row in of.get(source, []) if row[column] is not None]
            style = {"color": colour, "marker": marker, "linestyle": (0, dashes) if dashes else "-"}
            if rows:
                epochs = [1 + row["epoch"] for row in rows]
                panel.plot(epochs, [100 * row[column] for row in rows], **style, mec="white", label=name)
        longest = max(map(len, of.values()), default=1)
        panel.set(title=title, xlabel="Epochs", xlim=(0.5, longest + 0.5), ylim=(-3, 103))
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("%")
    panels[0].legend(title="Pre-training", fontsize="small")
    return figure


def summary(runs: pd.DataFrame, *by: str) -> pd.DataFrame:
    """SA and RA in percent as text, by the columns given, sources in the order of `SOURCES`: the mean over the seeds
    and, of two or more, one standard error; and the number of seeds."""
    runs = runs.sort_values("source", key=lambda names: names.map(list(SOURCES).index), kind="stable")
    if "sparsity" in by:
        runs = runs.assign(sparsity=runs["sparsity"].map("{:.2%}".format))
    groups = runs.groupby(list(by), sort=False)
    rows = {"seeds": groups["seed"].nunique()}
    for metric in ("sa", "ra"):
        values = groups[metric].agg(["mean", "sem"]).mul(100)
        text = [
            "not measured" if pd.isna(mean) else f"{mean:.1f}" + ("" if pd.isna(sem) else f" ± {sem:.1f}")
            for mean, sem in values.itertuples(index=False)
        ]
        rows[f"{metric.upper()} (%)"] = pd.Series(text, values.index)
    return pd.DataFrame(rows)
