"""Figures of tickets and of the verdict on them, each from the table alone; `draw_all` draws these and all others."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dwlth import verdict
from dwlth.errors import DwlthError, NotYet
from dwlth.files import write
from dwlth.presets import in_order
from dwlth.results import Folder, ended, percents, sparsity_by_round
from dwlth.show import style
from dwlth.show.style import WIDTH, Look, Picture, legend, percent, sparsity_axis, styled, ticks
from dwlth.verdict import CRITERIA, FOURTH, PAPER, transfers

PANELS = CRITERIA | FOURTH
"""What the paper's definition names: the criteria, and the fourth."""

RING = {"marker": "o", "markersize": 22, "fillstyle": "none", "color": "black", "mew": 2, "zorder": 5, "clip_on": False}
"""Around the ticket that a reader has chosen."""

HEADLINE = 1 - 0.8**10
"""The sparsity that the paper's abstract names for CIFAR-10 (89.26 %), as a fraction: the sparsest double-win tickets
of standard and fast adversarial pre-training have it."""

Margins = Mapping[str, float]
"""Points that a double-win ticket may lose, by the column of the table: `sa` and `ra` (see `Preset.margins`)."""


@styled()
def curves(
    table: pd.DataFrame,
    downstream: str,
    fraction: float,
    margins: Margins,
    sources: Iterable[str] | None = None,
) -> Figure:
    """SA and RA of the tickets against their sparsity, under both regimes: a line through the means over seeds for each
    of `sources` (by default all). Marks say whether a ticket is double-win. The intervals are those of the test: the
    one-sided 95 % bounds of the paired difference, laid off from the dense level. A ticket whose runs all failed has
    its mark at the bottom.

    Raises:
        NotYet: if there is no transfer to show.
    """
    table = table if sources is None else table[table["source"].isin(list(sources))]
    runs = transfers(table, downstream, fraction)
    if runs.empty:
        raise NotYet(
            f"no transfers to {downstream} with {percent(fraction)} of its data: "
            "`python -m dwlth run PRESET` makes them"
        )
    runs, found = _of_enough_seeds(runs, _tests(table, downstream, fraction, margins))
    looks = style.of_sources(runs["source"])
    figure = Picture(figsize=(WIDTH, 7.2), layout="constrained")
    for panel, (criterion, column) in zip(figure.subplots(2, 2).flatten(), PANELS.items()):
        _curves(panel, runs, found, criterion, column, margins, looks, looks)
        panel.set_title(criterion if criterion in CRITERIA else f"{criterion} (not judged)")
    figure.suptitle(
        f"Tickets transferred to {downstream} with {percent(fraction)} of its training data, {_seeds(runs)}"
    )
    legend(figure, style.handles(looks), _answers(found), _levels(found, _band(0.35)))
    return figure


@styled()
def criteria(
    table: pd.DataFrame, downstream: str, fraction: float, source: str, round_: int | None, margins: Margins
) -> Figure:
    """The three criteria of `curves` side by side: the tickets of `source`, those of the other sources faint, and a
    ring around the ticket of IMP round `round_`. A panel without runs is empty.

    Raises:
        NotYet: if the table has no transfers to `downstream` with this fraction of its data.
    """
    runs = transfers(table, downstream, fraction)
    if runs.empty:
        raise NotYet(f"no transfers to {downstream} with {percent(fraction)} of its data: `python -m dwlth run PRESET`")
    looks = style.of_sources(runs["source"])
    in_front = sorted(looks, key=lambda name: name == source)
    looks = {name: looks[name] if name == source else looks[name].faint() for name in in_front}
    runs, found = _of_enough_seeds(runs, _tests(table[table["source"] == source], downstream, fraction, margins))
    figure = Picture(figsize=(10.5, 4.1))  # laid out by hand, which takes half the time: the explorer waits for it
    place = {"left": 0.055, "right": 0.99, "bottom": 0.42, "top": 0.94, "wspace": 0.22}
    for panel, (criterion, column) in zip(figure.subplots(1, len(CRITERIA), gridspec_kw=place), CRITERIA.items()):
        means = _curves(panel, runs, found, criterion, column, margins, looks, {source} & looks.keys())
        if (source, round_) in means.index:
            panel.plot(round_, means[source, round_], **RING)
            panel.axvline(round_, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(criterion)
    shown = style.handles({name: looks[name] for name in in_order(looks)})
    legend(figure, shown, _answers(found), _levels(found, _band(0.35)), place="lower center")
    return figure


@styled()
def differences(table: pd.DataFrame, downstream: str, fraction: float, margins: Margins) -> Figure:
    """What the verdict looks at: by source (rows) and criterion (columns), each ticket minus the dense network of the
    same seed, in points. The bars are the one-sided 95 % bounds of the paired difference to either side; the band is
    the margin. Losses and gains of more than 5 margins, and tickets whose runs all failed, stand at the edge.

    Raises:
        NotYet: if no source has dense runs and tickets under both regimes.
    """
    found = _tests(table, downstream, fraction, margins)
    if found.empty:
        raise NotYet(f"nothing to judge yet: no pairs of tickets and dense networks on {downstream}")
    looks, sparsity = style.of_sources(found["source"]), sparsity_by_round(found)
    figure = Picture(figsize=(WIDTH, 1.4 + 1.9 * len(looks)), layout="constrained")
    grid = figure.subplots(len(looks), len(CRITERIA), sharex=True, sharey="col", squeeze=False)
    for line, (source, look) in zip(grid, looks.items()):
        for panel, (criterion, (_, column)) in zip(line, CRITERIA.items()):
            panel.margins(y=0.1)
            of, edge = found[found["source"] == source], 5 * margins[column]
            points, low, high = (of[f"{criterion}{end}"].clip(-edge, edge) for end in ("", " low", " high"))
            panel.axhspan(-margins[column], 0, color="0.85", zorder=0)
            panel.axhline(0, color="0.3", linestyle="--", linewidth=0.8)
            panel.vlines(of["round"], low, high, color=look.colour, linewidth=1.5)
            _marks(panel, of, points.fillna(-edge), look)  # where all runs failed
            for end, arrow in ((-edge, "v"), (edge, "^")):
                out = of["round"][points.fillna(-edge) == end]
                panel.plot(out, [1.12 * end] * len(out), arrow, color=look.colour, markersize=4, linestyle="none")
            sparsity_axis(panel, sparsity)
            panel.set_xlabel("")
        line[0].set_ylabel(look.label)
    for top, bottom, criterion in zip(grid[0], grid[-1], CRITERIA):
        top.set_title(criterion)
        bottom.set_xlabel("Sparsity (%)")
    figure.supylabel("Ticket minus dense network (points)", fontsize="medium")
    figure.suptitle(
        f"Tickets minus the dense network of the same seed, {downstream} with {percent(fraction)} of its data, "
        f"{_seeds(transfers(table, downstream, fraction))}\n"
        "(bars end at 5 margins; arrows: the mean differs by more, or all runs failed)"
    )
    legend(figure, _answers(found), _levels(found, Line2D([], [], color="0.35", linewidth=1.5)))
    return figure


@styled()
def double_wins(table: pd.DataFrame, downstream: str, margins: Margins, paper: bool = False) -> Figure:
    """The sparsity of the sparsest double-win ticket of each source, by the fraction of downstream data; a source whose
    first ticket is not double-win stands at 0. Above it, the next ticket, which ended the sequence.

    With `paper` also the paper's own, which are of another scale: hollow, from `results/paper.csv`; those of the same
    task, or of all its tasks where this one is none of them.

    Raises:
        NotYet: if there is no verdict on this task.
    """
    found = verdict.verdict(table[(table["downstream"] == downstream) | (table["stage"] == "imp")], margins)
    theirs = (
        pd.read_csv(PAPER) if paper and PAPER.exists() else pd.DataFrame(columns=["downstream", "round", "sparsity"])
    )
    same = theirs["downstream"].str.replace("-", "").str.lower() == downstream.replace("-", "").lower()
    fractions = sorted(found["fraction"].unique(), reverse=True)
    theirs = (theirs[same] if same.any() else theirs)[: None if fractions[0] == 1 else 0]  # all the data
    looks = style.of_sources(found["source"])
    figure = Picture(figsize=(WIDTH, 4.2), layout="constrained")
    panel = figure.subplots()
    shift = dict(zip(looks, np.linspace(-0.25, 0.25, len(looks)) if len(looks) > 1 else [0]))  # side by side
    for source, look in looks.items():
        of = found[found["source"] == source]
        places = np.array([fractions.index(fraction) + shift[source] for fraction in of["fraction"]])
        panel.vlines(places, 0, of["round"], color=look.colour, linewidth=2)
        panel.plot(places, of["round"], look.marker, color=look.colour, markersize=5)
        won = (of["round"] > 0).to_numpy()
        panel.plot(places[won], of["round"][won], **_star(look))
        after = of[["next_round", "next_answer"]].set_axis(["round", "answer"], axis=1)
        ended = after["round"].notna().to_numpy()
        _marks(panel, after[ended].assign(place=places[ended]), after["round"][ended], look, x="place")
    extra = []
    for shape, (task, rows) in zip("hp8", theirs.groupby("downstream")):
        rows = rows[rows["source"].isin(list(looks))]
        colours = [looks[source].colour for source in rows["source"]]
        ring = {"marker": shape, "linewidths": 1.6}
        panel.scatter(rows["source"].map(shift), rows["round"], 150, "none", edgecolors=colours, **ring)
        label = f"the paper's on {task}, another scale"
        extra += [Line2D([], [], marker=shape, markersize=10, color="none", mfc="none", mec="black", label=label)]
    panel.set(xlabel="Downstream training data", ylabel="Sparsity of the sparsest\ndouble-win ticket (%)")
    panel.set_xticks(range(len(fractions)), map(percent, fractions))
    ours = table[(table["stage"] == "transfer") & (table["method"] == "imp")]
    sparsity = sparsity_by_round(theirs) | sparsity_by_round(ours)
    rounds, labels = ticks(sparsity)
    panel.set_yticks(rounds, ["0 (dense)", *labels[1:]])
    panel.set_ylim(-0.5, max(sparsity) + 1)
    panel.grid(axis="x", visible=False)
    panel.set_title(f"Double-win tickets on {downstream}")
    shapes = _shapes(GREY)
    marks = {"sparsest double-win ticket": _star(GREY), "next sparser ticket: undecided": shapes["undecided"]}
    marks |= {"next sparser ticket: not double-win": shapes["not"]}
    if not found["round"].all():
        marks |= {"at 0: no double-win ticket is shown": shapes["double-win"] | {"mew": 0}}
    legend(figure, style.handles(looks), _entries(marks), extra)
    return figure


def draw_all(table: pd.DataFrame, folder: Path, margins: Margins, results: Folder | None = None) -> list[Path]:
    """Draw every figure the table has the runs for, and those of the audit and the tickets in `results`, as PNG and
    PDF; returns the paths of the PNGs."""
    from dwlth.show import audit, controls, pretraining, sparsity  # late: they draw with what is here

    drawn = {}
    for downstream, runs in table[table["stage"] == "transfer"].groupby("downstream"):
        place = re.sub(r"[^\w.-]", "-", downstream)  # folder:PATH makes no file name
        for fraction in sorted(runs["fraction"].unique(), reverse=True):
            for draw in (curves, differences):
                drawn[f"{draw.__name__}-{place}-{fraction:g}"] = (draw, table, downstream, fraction, margins)
        drawn[f"double-wins-{place}"] = (double_wins, table, downstream, margins)
        sparse = ended(runs)[["round", "sparsity"]].drop_duplicates().query("round > 0")
        near = (sparse["sparsity"] - HEADLINE).abs()
        drawn[f"gain-{place}"] = (pretraining.gain, table, downstream, 0, *sparse["round"][near == near.min()][:1])
        for name, draw in controls.FIGURES.items():
            drawn[f"{name}-{place}"] = (draw, table, downstream)
    drawn["pretraining"] = (pretraining.pretraining, table)
    if results is not None:
        drawn["audit"] = (lambda: audit.draw_audit(results.audit()),)
        drawn["savings"] = (lambda: sparsity.draw_savings(sparsity.savings(results)),)
    paths = []
    for name, (draw, *arguments) in drawn.items():
        try:
            paths.append(_save(draw(*arguments), folder / f"{name}.png"))
        except NotYet:
            pass
        except DwlthError as error:  # of a damaged file that this figure alone reads
            warnings.warn(f"no figure {name}: {error}", stacklevel=2)
    return paths


@styled()
def _save(figure: Figure, path: Path) -> Path:
    write(path, lambda beside: figure.savefig(beside, format="png", dpi=150))
    figure.set_layout_engine("none")  # it is laid out
    undated = {"CreationDate": None}  # the same figure is the same file
    write(path.with_suffix(".pdf"), lambda beside: figure.savefig(beside, format="pdf", metadata=undated))
    return path


def _tests(table: pd.DataFrame, downstream: str, fraction: float, margins: Margins) -> pd.DataFrame:
    """`verdict.tests` of one task and fraction, failed runs counted; no rows where nothing can be judged."""
    here = (table["downstream"] == downstream) & (table["fraction"] == fraction)
    return verdict.tests(table[here | (table["stage"] == "imp")], margins)


def _of_enough_seeds(runs: pd.DataFrame, found: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Without the tickets that fewer than half of a source's seeds have, which are not in the verdict's sequence: one
    more seed of one ticket is no curve."""
    runs = runs[verdict.enough(runs.groupby(["source", "round"])["seed"].transform("nunique"), runs["source"])]
    if found.empty:  # nothing can be judged yet
        return runs, found
    return runs, found[verdict.enough(found["pairs"] + found["failed"], found["source"])]


def _curves(
    panel: Axes,
    runs: pd.DataFrame,
    found: pd.DataFrame,
    criterion: str,
    column: tuple[str, str],
    margins: Margins,
    looks: Mapping[str, Look],
    marked: Iterable[str],
) -> pd.Series:
    """A panel of `curves`, of a column of the table under a regime, with dense levels and margins, intervals and marks
    of the sources `marked`. Returns the means over seeds in percent, by source and round."""
    regime, metric = column
    runs = percents(runs[runs["regime"] == regime])
    means = runs.groupby(["source", "round"])[metric].mean().dropna()
    plain = {"markers": False} if len(found) else {}  # marks are answers
    style.lines(panel, means.reset_index(), "round", metric, "source", looks, **plain)
    dense = {source: means[source, 0] for source in looks if (source, 0) in means.index}
    for source, level in dense.items():
        panel.axhline(level, color=looks[source].colour, linestyle="--", linewidth=0.8)
        if source in marked:
            panel.axhspan(max(level - margins[metric], 0), level, color=looks[source].colour, alpha=0.12, linewidth=0)
    bottom, top = panel.get_ylim()
    lack = max(2 * margins[metric] - (top - bottom), 0)  # an image more or less looks like one
    bottom, top = bottom - 0.1 * lack, top + 0.9 * lack
    panel.set_ylim(bottom, top)
    for source in marked:
        of, look = found[found["source"] == source], looks[source]
        if source in dense and f"{criterion} low" in of:
            ends = [dense[source] + of[f"{criterion} {end}"] for end in ("low", "high")]
            low, high = (end.clip(1.5 * bottom - 0.5 * top, 1.5 * top - 0.5 * bottom) for end in ends)  # of few seeds
            panel.fill_between(of["round"].astype(float), low, high, color=look.colour, alpha=0.2, linewidth=0)
        if criterion in CRITERIA:
            heights = means[means.index.get_level_values("source") == source].droplevel("source")
            _marks(panel, of, of["round"].map(heights).fillna(bottom), look)  # where all runs failed
    sparsity_axis(panel, sparsity_by_round(runs))
    panel.set_ylabel(f"{metric.upper()} (%)")
    return means


def _seeds(runs: pd.DataFrame) -> str:
    """How many seeds these runs have, in words."""
    count = runs["seed"].nunique()
    return f"{count} seeds" if count > 1 else "one seed: no bounds of the test"


def _shapes(look: Look) -> dict[str, dict]:
    """What the mark of each answer looks like."""
    shape = {"marker": look.marker, "linestyle": "none", "zorder": 4}
    return {
        "double-win": shape | {"color": look.colour, "mec": "black", "mew": 0.6},
        "undecided": shape | {"mfc": "white", "mec": look.colour, "mew": 1.2},
        "not": shape | {"marker": "x", "color": look.colour, "mew": 1.5},
    }


def _marks(panel: Axes, of: pd.DataFrame, y: pd.Series, look: Look, x: str = "round") -> None:
    """The answers of these rows of `verdict.tests` at the heights `y`, with a star on the sparsest double-win one."""
    for answer, shape in _shapes(look).items():
        chosen = of["answer"] == answer
        panel.plot(of[x][chosen], y[chosen], **shape)
    if "in_sequence" in of:
        won = of[(of["answer"] == "double-win") & of["in_sequence"].astype(bool)]
        won = won[won["round"] == won["round"].max()]
        panel.plot(won[x], y[won.index], **_star(look))


def _star(look: Look) -> dict:
    """Behind the marks of other sources, which it would hide."""
    edge = {"mec": "black", "mew": 0.7}
    return edge | {"marker": "*", "color": look.colour, "markersize": 14, "linestyle": "none", "zorder": 3.9}


GREY = Look("", "0.35", "o", "")


def _entries(shapes: Mapping[str, dict]) -> list[Line2D]:
    """Of a legend, by label."""
    return [Line2D([], [], **shape, label=label) for label, shape in shapes.items()]


def _answers(found: pd.DataFrame) -> list[Line2D]:
    """The marks of the answers, in a legend; none where nothing is judged."""
    shapes = _shapes(GREY)
    names = {"double-win": shapes["double-win"], "the verdict: all up to it pass": _star(GREY)}
    names |= {"undecided": shapes["undecided"], "not double-win": shapes["not"]}
    return _entries(names) if len(found) else []


def _band(alpha: float) -> Patch:
    return Patch(color="0.35", alpha=alpha, linewidth=0)


def _levels(found: pd.DataFrame, bounds: Artist) -> list[Artist]:
    """What the dense level, the margin below it and the `bounds` of the test are, in a legend."""
    dense = _entries({"dense network": {"color": "0.35", "linestyle": "--", "linewidth": 0.8}})
    bounds.set_label("95 % bounds of the test")
    margin = _band(0.15)
    margin.set_label("margin: the loss that is allowed")
    return dense + ([margin, bounds] if len(found) else [])
