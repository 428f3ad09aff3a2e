"""One look for all figures: fonts, grid and width, and what each source and pruning method looks like.

Nothing here touches pyplot, and matplotlib's settings are changed only inside `styled`, by one thread at a time.
"""

import contextlib
import io
import math
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dwlth.masks import METHODS
from dwlth.presets import SOURCES, in_order
from dwlth.verdict import bounds

WIDTH = 9.0
"""Inches of a wide figure: scaled to a page's 6.75 inches of text, its letters are 6 to 8 points high."""

RC = (
    sns.plotting_context("paper", font_scale=1.1)
    | sns.axes_style("whitegrid")
    | {
        "axes.edgecolor": "0.4",
        "figure.titlesize": "medium",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure everywhere
        "grid.color": "0.9",
        "legend.edgecolor": "0.8",
        "lines.markersize": 6,
    }
)

PALETTE = sns.color_palette("colorblind").as_hex()
MARKERS = "osD^vPX<>p"
DASHES = ("", (4, 1.5), (1, 1), (3, 1, 1, 1), (6, 1, 2, 1), (2, 3), (6, 3), (5, 1, 1, 1, 1, 1), (9, 2), (8, 2, 2, 2))


class Look(NamedTuple):
    """What the line of a source or a method looks like: black-and-white print has the marker and the dashes."""

    label: str
    colour: str | tuple
    marker: str
    dashes: str | tuple

    @property
    def line(self) -> dict:
        """Arguments of matplotlib's `plot`."""
        style = (0, self.dashes) if self.dashes else "-"
        return {"color": self.colour, "marker": self.marker, "linestyle": style, "mec": "white", "label": self.label}

    def faint(self, opacity: float = 0.25) -> "Look":
        return self._replace(colour=to_rgba(self.colour, opacity))


def _looks(labels: Mapping[str, str], colours: Iterable[str]) -> dict[str, Look]:
    """By position; after the last colour, marker or dashes, the first again."""
    colours = list(colours)
    return {
        name: Look(label, colours[i % len(colours)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, (name, label) in enumerate(labels.items())
    }


def of_sources(names: Iterable[str] = ()) -> dict[str, Look]:
    """The look of each of `names`, in the order of the legend. The paper's sources always look the same."""
    names = set(names)
    looks = _looks({name: SOURCES.get(name, name) for name in in_order(names | SOURCES.keys())}, PALETTE)
    return {name: look for name, look in looks.items() if name in names}


def of_methods() -> dict[str, Look]:
    """The look of each pruning method of `masks.METHODS` that is said of one source alone; no colour is that of one of
    the paper's sources."""
    labels = {name: method.label for name, method in METHODS.items() if not method.other}
    return _looks(labels, ["black", *PALETTE[3:], "#7f0000"])


_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """A context, and a decorator: inside, figures are made and drawn in the common style. matplotlib's settings belong
    to all threads, so one thread at a time is inside; afterwards they are as before."""
    with _ONE_AT_A_TIME, mpl.rc_context(RC):
        yield


class Picture(Figure):
    """A matplotlib figure made without pyplot, so on any thread, that a notebook's cell shows when it ends with it."""

    def _repr_png_(self) -> bytes:
        return png(self)


@styled()
def png(figure: Figure) -> bytes:
    """The figure as PNG, for a screen; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.set_dpi(100)
    FigureCanvasAgg(figure).print_png(file)  # savefig draws twice
    return file.getvalue()


def lines(panel: Axes, data: pd.DataFrame, x: str, y: str, by: str, looks: Mapping[str, Look], **options) -> None:
    """seaborn's lines of `y` against `x`, one for each value of `by` in `looks`, the last one in front. The options are
    those of `seaborn.lineplot`; by default there is one value for each x, and no error band."""
    dashed = {name: look.dashes for name, look in looks.items()}
    markers = {name: look.marker for name, look in looks.items()}
    options = {"estimator": None, "errorbar": None, "markers": markers, "dashes": dashed, "legend": False} | options
    palette = {name: look.colour for name, look in looks.items()}
    data = data[data[by].isin(list(looks))].dropna(subset=y)
    names = {"hue_order": list(looks), "style_order": list(looks)}
    if len(data):
        sns.lineplot(data, x=x, y=y, hue=by, style=by, palette=palette, ax=panel, **names, **options)


def handles(looks: Mapping[str, Look]) -> list[Line2D]:
    """What a legend shows of these looks."""
    return [Line2D([], [], **look.line) for look in looks.values()]


def band_over(seeds: pd.Series) -> str:
    """What a title says of lines with `errorbar="se"`."""
    return " (band: one standard error over seeds)" if seeds.nunique() > 1 else " (one seed)"


def percent(fraction: float) -> str:
    """A fraction in percent, as the figures write it: "1 %", "0.5 %"."""
    return f"{100 * fraction:.4g} %"


def sparsity_axis(panel: Axes, sparsity: Mapping[int, float]) -> None:
    """An x axis of IMP rounds that says their sparsity (fractions, by round), of many rounds that of every third
    and the last."""
    panel.set_xticks(*ticks(sparsity), rotation=90, fontsize="small")  # early rounds are close
    panel.set_xlabel("Sparsity (%)")


def ticks(sparsity: Mapping[int, float]) -> tuple[list[int], list[str]]:
    """Rounds and the texts of their sparsities (fractions, by round; NaN where all runs failed): of all, or of many
    those of every third and the last."""
    rounds = sorted(sparsity.keys())
    rounds = rounds if len(rounds) < 10 else [*rounds[:-2:3], rounds[-1]]
    return rounds, ["failed" if math.isnan(sparsity[r]) else f"{100 * sparsity[r]:.4g}" for r in rounds]


def legend(figure: Figure, *columns: Sequence[Artist], place: str = "outside lower center") -> None:
    """A legend of these columns, below the panels. Columns of one entry each are a row, or several of up to four."""
    rows = max(map(len, columns))
    blank = Line2D([], [], linestyle="none", label=" ")
    handles = [handle for column in columns if column for handle in [*column, *[blank] * (rows - len(column))]]
    count = len(handles) // rows
    figure.legend(handles=handles, loc=place, ncols=math.ceil(count / math.ceil(count / 4)) if rows == 1 else count)


def interval(values: pd.Series) -> tuple[float, float]:
    """The 95 % confidence interval of a mean (Student's t); of one value, that value."""
    mean, _, low, high = bounds(values.to_numpy(), 0.975)
    return (low, high) if len(values) > 1 else (mean, mean)


def name(label: str) -> str:
    """A source as the legends call it, and any other label as it is."""
    return SOURCES.get(label, label)


def of_labels(labels: Collection[str]) -> list[Look]:
    """What the line of each label looks like: the paper's sources as in every figure, others from dark to light."""
    own = of_sources(SOURCES)
    others = zip(labels, shades(len(labels)), cycle(MARKERS))
    return [own.get(label) or Look(label, shade, marker, "") for label, shade, marker in others]


def shades(count: int) -> list[str]:
    """From dark to light, so that lines can be told apart in print."""
    return [str(value) for value in np.linspace(0, 0.65, count).round(2)]
