"""Pickers, the explorer and the training panel: the only module that imports ipywidgets.

Every widget has a plain-Python value from the start, and its callbacks may run on any thread.
"""

import html
import threading
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dwlth.errors import DwlthError
from dwlth.figures import png

_DRAWING = threading.RLock()  # matplotlib is not safe on several threads at once


def choose(name: str, options: Iterable, value: Any) -> ipw.Dropdown | ipw.SelectionSlider:
    """A labelled control for one value: a slider for rising numbers, a menu for anything else. Its CSS class is
    `dwlth-NAME`.

    Args:
        options: the values, or a dict from label to value.

    Raises:
        DwlthError: for a value that is not among them.
    """
    options = list(options.items()) if isinstance(options, dict) else [(str(option), option) for option in options]
    values = [option for _, option in options]
    if not values:
        raise DwlthError(f"{name}: nothing to choose from yet; `python -m dwlth run` makes results")
    if value not in values:
        raise DwlthError(f"{name} is {value!r}: choose from {', '.join(map(str, values))}")
    rising = all(not isinstance(option, str) for option in values) and all(a < b for a, b in zip(values, values[1:]))
    kind = ipw.SelectionSlider if rising and len(values) > 1 else ipw.Dropdown
    control = kind(options=options, value=value, description=name.replace("_", " ").capitalize())
    return control.add_class(f"dwlth-{name}")


def live(draw: Callable[..., Any], **controls: ipw.Widget) -> ipw.VBox:
    """The controls, and below them what `draw` makes of their values (by the names given here): a figure, a table
    (`DataFrame`), a text, or a tuple of these. It is drawn again when a control changes; the same values give the
    same bytes. A `DwlthError` is shown in place of the pictures, which would be those of other values."""
    shown = ipw.VBox()

    def redraw(_=None) -> None:
        with _DRAWING:  # values are read inside, so that the last drawing is of the last values
            try:
                parts = draw(**{name: control.value for name, control in controls.items()})
            except DwlthError as error:
                parts = str(error)
            show(shown, parts)

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    bar = ipw.HBox(list(controls.values()), layout=ipw.Layout(flex_flow="row wrap"))
    return ipw.VBox([bar, shown]).add_class("dwlth-live")


def show(box: ipw.VBox, parts: Any) -> None:
    """Put a figure, a table, a text or a tuple of these into `box`, in the widgets that are there if they fit."""
    children = []
    for i, part in enumerate(parts if isinstance(parts, tuple) else (parts,)):
        if isinstance(part, Figure):
            kind, name, value = ipw.Image, "figure", png(part)
            plt.close(part)  # where pyplot made it
        elif isinstance(part, pd.DataFrame):
            kind, name, value = ipw.HTML, "table", part.to_html(border=0)
        else:
            kind, name, value = ipw.HTML, "text", f'<div style="white-space: pre-wrap">{html.escape(str(part))}</div>'
        old = box.children[i] if i < len(box.children) else None
        if type(old) is kind:
            old.value = value
        else:
            old = kind(value=value, layout=ipw.Layout(max_width="100%")).add_class(f"dwlth-{name}")
        children.append(old)
    if children != list(box.children):
        box.children = children
