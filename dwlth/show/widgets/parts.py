"""What pickers, the explorer and the training panel are made of."""

import asyncio
import base64
import html
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from dwlth.errors import DwlthError, NotYet
from dwlth.results import KEY, Folder
from dwlth.show import style

DRAWING = threading.RLock()  # matplotlib is not safe on several threads at once

ASLEEP = (
    '<p class="dwlth-asleep"><strong>Asleep.</strong> The controls of this cell answer while the notebook runs: '
    "<em>Run, Run All Cells</em> wakes them.</p>"
)
STYLE = """<style>
.jp-Cell *:has(.dwlth-pinned), .dwlth-explorer, .dwlth-explorer .widget-vbox { overflow: visible !important; }
.dwlth-pinned { position: sticky; top: 0; z-index: 2; padding: 4px 0; background: var(--jp-layout-color0, white);
    border-bottom: 1px solid var(--jp-border-color2, #bbb); }
.jupyter-widgets-disconnected .dwlth-pinned::after { content: "Asleep: Run, Run All Cells wakes it"; }
.dwlth-drawing > .dwlth-figure { opacity: 0.7; }
.dwlth-box.jupyter-widgets-disconnected { opacity: 0.5; }
.jp-OutputArea:has(.dwlth-box:not(.jupyter-widgets-disconnected)) .dwlth-asleep { display: none; }
</style>"""
"""What ipywidgets' layouts cannot say: controls stay in sight while one scrolls (what is around them must not scroll by
itself); a picture is pale until it is drawn anew; a page whose kernel lives does not say that it is asleep."""


class Box(ipw.VBox):
    """Widgets, one below the other. A page without a kernel shows their tables and their first picture as they were, or
    else a word on what is missing. In a notebook `ASLEEP` stands above them while no kernel answers."""

    def __init__(self, parts: Iterable[ipw.Widget] = ()):
        super().__init__()
        self._style = ipw.HTML(STYLE, layout=ipw.Layout(display="none"))
        self.fill(parts)
        self.add_class("dwlth-box")

    def fill(self, parts: Iterable[ipw.Widget]) -> None:
        self.children = [*parts, self._style]

    def __repr__(self) -> str:
        return "(widgets: asleep until the notebook runs; Run, Run All Cells wakes them)"

    def _ipython_display_(self, **_) -> None:
        tables = "".join(part.value for part in self._parts() if isinstance(part, ipw.HTML) and "<table" in part.value)
        # of its own, since the page keeps it where it cannot show a widget
        display(HTML(ASLEEP + (tables and f'<div class="dwlth-asleep">{tables}</div>')))
        display(self._repr_mimebundle_(), raw=True)

    def _repr_mimebundle_(self, **options) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options)
        picture = next((part.value for part in self._parts() if isinstance(part, ipw.Image)), None)
        return bundle | ({"image/png": base64.b64encode(picture).decode()} if picture else {})

    def _parts(self) -> list[ipw.Widget]:
        """All widgets in it."""
        parts: list[ipw.Widget] = [self]
        for part in parts:
            parts += getattr(part, "children", ())
        return parts


def choose(
    name: str, options: Iterable, value: Any = None, label: str | None = None
) -> ipw.Dropdown | ipw.SelectionSlider:
    """A labelled control for one value: a slider for rising numbers, a menu for anything else. Its CSS class is
    `dwlth-NAME`.

    Args:
        options: the values, or a dict from label to value.
        value: at the start; by default the first.
        label: what a reader sees as its name; by default the name.

    Raises:
        DwlthError: for a value that is not among them, or where there are none.
    """
    labelled = list(options.items()) if isinstance(options, dict) else [(str(option), option) for option in options]
    values = [option for _, option in labelled]
    if not values:
        raise DwlthError(f"{name}: nothing to choose from yet; `python -m dwlth run PRESET` makes results")
    if value is not None and value not in values:
        raise DwlthError(f"{name} is {value!r}: choose from {', '.join(map(str, values))}")
    rising = all(not isinstance(option, str) for option in values) and all(a < b for a, b in zip(values, values[1:]))
    kind = ipw.SelectionSlider if rising and len(values) > 1 else ipw.Dropdown
    value = values[0] if value is None else value
    control = kind(options=labelled, value=value, description=label or name.replace("_", " ").capitalize())
    control.style.description_width = "initial"
    control.layout.width = "20em" if kind is ipw.SelectionSlider else "auto"
    return control.add_class(f"dwlth-{name}")


def live(draw: Callable[..., Any], **controls: ipw.Widget) -> Box:
    """The controls, and below them what `draw` makes of their values (by the names given here): a figure, a table
    (`DataFrame`), a text, or a tuple of these. It is drawn again when a control changes; the same values give the
    same bytes. A `DwlthError` is shown in place of the pictures, which would be those of other values."""
    return Box([in_a_row(controls), drawn(draw, controls)]).add_class("dwlth-live")


def in_a_row(controls: dict[str, ipw.Widget]) -> ipw.HBox:
    """The controls side by side; in more lines where the page is narrow."""
    return ipw.HBox(list(controls.values()), layout=ipw.Layout(flex_flow="row wrap", grid_gap="2px 16px"))


def drawn(draw: Callable[..., Any], controls: dict[str, ipw.Widget], wait: float = 0.0) -> ipw.VBox:
    """What `draw` makes, drawn again once the controls have stood still for so many seconds (in a kernel; elsewhere
    nobody drags them). Until then it has the class `dwlth-drawing`."""
    shown, timers = ipw.VBox(), []

    def changed(_) -> None:
        try:
            loop = asyncio.get_running_loop() if wait else None
        except RuntimeError:
            loop = None
        if loop is None:
            return redraw()
        while timers:
            timers.pop().cancel()
        shown.add_class("dwlth-drawing")
        timers.append(loop.call_later(wait, redraw))

    def redraw() -> None:
        with DRAWING:  # values are read inside, so that the last drawing is of the last values
            try:
                parts = draw(**{name: control.value for name, control in controls.items()})
            except DwlthError as error:
                parts = str(error)
            show(shown, *(parts if isinstance(parts, tuple) else (parts,)))
        shown.remove_class("dwlth-drawing")

    for control in controls.values():
        control.observe(changed, "value")
    redraw()
    return shown


def show(box: ipw.VBox, *parts: Any) -> None:
    """Put figures, tables and texts into `box`, in the widgets that are there where they fit."""
    children = []
    for i, part in enumerate(parts):
        if isinstance(part, Figure):
            kind, name, value = ipw.Image, "figure", style.png(part)
            plt.close(part)  # where pyplot made it
        elif isinstance(part, pd.DataFrame):
            with pd.option_context("display.max_colwidth", None):  # sentences whole
                value = f'<div class="jp-RenderedHTMLCommon">{part.to_html(border=0)}</div>'
            kind, name = ipw.HTML, "table"
        elif isinstance(part, HTML):
            kind, name, value = ipw.HTML, "html", part.data
        else:
            kind, name, value = ipw.HTML, "text", f'<div style="white-space: pre-wrap">{html.escape(str(part))}</div>'
        child = box.children[i] if i < len(box.children) else None
        if type(child) is not kind:
            child = kind(layout=ipw.Layout(max_width="100%", align_self="flex-start")).add_class(f"dwlth-{name}")
        child.value = value
        children.append(child)
    if children != list(box.children):
        box.children = children


def percent(fractions: Iterable[float]) -> dict[str, float]:
    """Options of `choose`: fractions of the data."""
    return {style.percent(fraction): fraction for fraction in fractions}


def sparsities(sparsity: Mapping[int, float]) -> dict[str, int]:
    """Options of `choose`: rounds, from their sparsity by round; NaN where all runs failed."""
    named = lambda round_, value: f"round {round_}, failed" if math.isnan(value) else f"{100 * value:.2f} %"
    return {named(*of): of[0] for of in sparsity.items()}


def table_of(folder: Folder) -> pd.DataFrame:
    """Its table; without rows where there is none."""
    try:
        return folder.collect()
    except NotYet:
        return pd.DataFrame(columns=["id", *KEY, "sparsity", "sa", "ra", "status"])


def set_aside(folder: Folder, box: ipw.VBox | None = None) -> ipw.VBox:
    """Says in `box`, or a new one, how many files of results could not be read, and which."""
    box, names = box or ipw.VBox().add_class("dwlth-set-aside"), sorted(p.name for p in folder.path.rglob("*.bad"))
    show(box, *([f"Set aside because unreadable, not counted: {len(names)} ({', '.join(names)})"] if names else []))
    return box


HEAR: dict[Path, Callable[[pd.DataFrame], None]] = {}
"""What hears of the rows that a training panel adds to the table of a folder's path."""
