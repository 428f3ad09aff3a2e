"""Pickers, the explorer and the training panel: the only module that imports ipywidgets.

Every control has a value from the start, so that a notebook runs headless too; callbacks may run on any thread.
"""

import base64
import contextlib
import html
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dwlth import masks, models, sources, tickets
from dwlth.errors import DwlthError, NotYet
from dwlth.presets import in_order
from dwlth.results import Folder, read_record, read_table
from dwlth.running import grid, machine
from dwlth.runs import Run
from dwlth.show import analysis, figures
from dwlth.show.claims import scoreboard
from dwlth.training import read_checkpoint
from dwlth.verdict import judge, transfers

_DRAWING = threading.RLock()  # matplotlib is not safe on several threads at once


class Box(ipw.VBox):
    """Widgets, one below the other. A page without a kernel shows their first picture as it was, or else a word on what
    is missing."""

    def __repr__(self) -> str:
        return "(widgets: shown while the notebook runs)"

    def _repr_mimebundle_(self, **options) -> dict[str, Any]:
        bundle, parts = super()._repr_mimebundle_(**options), [self]
        for part in parts:
            parts += getattr(part, "children", ())
        picture = next((part.value for part in parts if isinstance(part, ipw.Image)), None)
        return bundle | ({"image/png": base64.b64encode(picture).decode()} if picture else {})


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
        raise DwlthError(f"{name}: nothing to choose from yet; `python -m dwlth run` makes results")
    if value is not None and value not in values:
        raise DwlthError(f"{name} is {value!r}: choose from {', '.join(map(str, values))}")
    rising = all(not isinstance(option, str) for option in values) and all(a < b for a, b in zip(values, values[1:]))
    kind = ipw.SelectionSlider if rising and len(values) > 1 else ipw.Dropdown
    value = values[0] if value is None else value
    control = kind(options=labelled, value=value, description=label or name.replace("_", " ").capitalize())
    control.style.description_width = "initial"
    control.layout.width = "26em" if kind is ipw.SelectionSlider else "auto"
    return control.add_class(f"dwlth-{name}")


def live(draw: Callable[..., Any], **controls: ipw.Widget) -> Box:
    """The controls, and below them what `draw` makes of their values (by the names given here): a figure, a table
    (`DataFrame`), a text, or a tuple of these. It is drawn again when a control changes; the same values give the
    same bytes. A `DwlthError` is shown in place of the pictures, which would be those of other values."""
    return Box([_row(controls), _drawn(draw, controls)]).add_class("dwlth-live")


def _row(controls: dict[str, ipw.Widget]) -> ipw.HBox:
    return ipw.HBox(list(controls.values()), layout=ipw.Layout(flex_flow="row wrap", grid_gap="2px 16px"))


def _drawn(draw: Callable[..., Any], controls: dict[str, ipw.Widget]) -> ipw.VBox:
    shown = ipw.VBox()

    def redraw(_=None) -> None:
        with _DRAWING:  # values are read inside, so that the last drawing is of the last values
            try:
                parts = draw(**{name: control.value for name, control in controls.items()})
            except DwlthError as error:
                parts = str(error)
            show(shown, *(parts if isinstance(parts, tuple) else (parts,)))

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return shown


def show(box: ipw.VBox, *parts: Any) -> None:
    """Put figures, tables and texts into `box`, in the widgets that are there where they fit."""
    children = []
    for i, part in enumerate(parts):
        if isinstance(part, Figure):
            kind, name, value = ipw.Image, "figure", figures.png(part)
            plt.close(part)  # where pyplot made it
        elif isinstance(part, pd.DataFrame):
            with pd.option_context("display.max_colwidth", None):  # sentences whole
                value = f'<div class="jp-RenderedHTMLCommon">{part.to_html(border=0)}</div>'
            kind, name = ipw.HTML, "table"
        else:
            kind, name, value = ipw.HTML, "text", f'<div style="white-space: pre-wrap">{html.escape(str(part))}</div>'
        child = box.children[i] if i < len(box.children) else None
        if type(child) is not kind:
            child = kind(layout=ipw.Layout(max_width="100%", align_self="flex-start")).add_class(f"dwlth-{name}")
        child.value = value
        children.append(child)
    if children != list(box.children):
        box.children = children


def explorer(
    table: pd.DataFrame,
    folder: Folder,
    *,
    source: str | None = None,
    regime: str | None = None,
    downstream: str | None = None,
    fraction: float | None = None,
    metric: str = "ra",
    round: int | None = None,
    layer: str | None = None,
) -> Box:
    """The curves of `figures.curve` with the numbers at the marker and the answer of the verdict there; the ticket from
    inside: its layers and the kernels of one of them, of the smallest seed whose files are on disk; and the scoreboard
    of the claims. Two sliders set the margins, which begin at the preset's.

    Args:
        table: of `dwlth.results.read_table`; what it lacks is not offered, or said to be missing.
        source, regime, downstream, fraction, metric, round, layer: where to begin; None: at the first there is, and at
            the largest layer.

    Raises:
        DwlthError: for a value that is not there, or a table without transfers of IMP's tickets.
    """
    runs = table[(table["stage"] == "transfer") & (table["method"] == "imp")]
    known = {name: set(runs[name]) for name in ("source", "regime", "downstream", "fraction")}
    sparsity = runs.groupby("round")["sparsity"].first()
    controls = {
        "source": choose("source", in_order(known["source"]), source),
        "regime": choose("regime", [name for name in folder.preset.regimes if name in known["regime"]], regime),
        "downstream": choose("downstream", sorted(known["downstream"]), downstream),
        "fraction": choose("fraction", _percent(sorted(known["fraction"], reverse=True)), fraction),
        "metric": choose("metric", {"SA": "sa", "RA": "ra"}, metric),
        "round": choose("round", _sparsities(sparsity), round, "Sparsity"),
    }
    margins = {metric: _margin(metric, points) for metric, points in folder.preset.margins.items()}
    layers = masks.prunable(models.build(folder.preset.network, 2, [0.0], [1.0], seed=0).net)
    layer = layer or max(layers, key=lambda name: layers[name].numel())
    within = {"source": controls["source"], "round": controls["round"], "layer": choose("layer", list(layers), layer)}

    def outside(source, regime, downstream, fraction, metric, round, **margins):
        figure = figures.curve(runs, downstream, fraction, regime, metric, source, round, margins)
        chosen = transfers(runs, downstream, fraction)
        chosen = chosen[(chosen["source"] == source) & chosen["round"].isin([0, round])]
        numbers = figures.summary(chosen[chosen["regime"] == regime], "sparsity")
        return figure, numbers, judge(chosen, round, margins)

    def inside(source, round, layer):
        run = _on_disk(folder, source, round)
        model = sources.load(replace(folder, device="cpu"), run)
        mask = tickets.find(folder, run, model)
        what = f"The ticket of {mask.sparsity:.2%}" if round else "The dense network"
        text = f"{what} from inside, {source} pre-training, seed {run.seed}"
        return text, analysis.draw_layers({source: mask}), analysis.draw_kernels(model.net, mask, layer, limit=6)

    def board(**margins):
        return "The claims of the paper, with these margins", scoreboard(table, margins).set_index("claim")

    parts = [_row(controls | margins), _drawn(outside, controls | margins)]
    parts += [_row({"layer": within["layer"]}), _drawn(inside, within).add_class("dwlth-inside")]
    parts += [_drawn(board, margins).add_class("dwlth-scoreboard"), _set_aside(folder)]
    return Box(parts).add_class("dwlth-explorer")


def _margin(metric: str, points: float) -> ipw.SelectionSlider:
    """How much of `metric` a ticket may lose; it begins at so many points."""
    steps = sorted({0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, points})
    label = f"{metric.upper()} may fall by"
    return choose(f"{metric}_margin", {f"{step:g} point{'s' * (step != 1)}": step for step in steps}, points, label)


def _percent(fractions: Iterable[float]) -> dict[str, float]:
    return {f"{100 * fraction:.4g} %": fraction for fraction in fractions}


def _sparsities(sparsity: pd.Series) -> dict[str, int]:
    return {f"{100 * value:.1f} % (round {round_})": round_ for round_, value in sparsity.items()}


def _on_disk(folder: Folder, source: str, round_: int) -> Run:
    """A run of this ticket, of the smallest seed whose source and ticket are on disk."""
    names = [path.stem for path in folder.path.glob(f"sources/{source}-s*.safetensors")]
    for seed in sorted(int(name.rpartition("-s")[2]) for name in names):
        run = Run("transfer", source, seed, round_)
        if round_ == 0 or folder.ticket(run).exists():
            return run
    what, which = f"ticket {round_} of the {source} source", f'stage="imp", source="{source}", round={round_ - 1}'
    if round_ == 0:
        what, which = f"the {source} source", f'stage="pretrain", source="{source}"'
    raise NotYet(f"{what} is not on disk: `experiment.have(experiment.runs({which}, seed=0), files=True)` makes it")


def _set_aside(folder: Folder, box: ipw.VBox | None = None) -> ipw.VBox:
    """Says in `box`, or a new one, how many files of results could not be read, and which."""
    box, names = box or ipw.VBox().add_class("dwlth-set-aside"), sorted(p.name for p in folder.path.rglob("*.bad"))
    show(box, *([f"Set aside because unreadable, not counted: {len(names)} ({', '.join(names)})"] if names else []))
    return box


def training_panel(
    folder: Folder,
    *,
    source: str | None = None,
    downstream: str | None = None,
    regime: str | None = None,
    fraction: float | None = None,
    round: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    minutes: float = 10.0,
) -> Box:
    """Does one transfer of the folder's preset in the background, after the runs it needs, and shows its progress after
    each epoch. Stop ends it after the epoch under way; Start goes on from there, in another kernel too.

    Args:
        source, downstream, regime, fraction, round: of the transfer; None: the preset's first.
        seed: 0 to 9, or more where the preset has more; None: the first that is not done.
        device: see `dwlth.running.machine.this_machine`.
        minutes: what is estimated to take longer is not begun.

    Raises:
        DwlthError: for a value that the preset does not have.
    """
    preset = folder.preset
    rounds = pd.Series({k: 1 - (1 - preset.prune_rate) ** k for k in preset.rounds})
    controls = {
        "source": choose("source", list(preset.pretrain), source),
        "downstream": choose("downstream", preset.downstream, downstream),
        "regime": choose("regime", preset.regimes, regime),
        "fraction": choose("fraction", _percent(preset.fractions), fraction),
        "round": choose("round", _sparsities(rounds), round, "Sparsity"),
        "seed": choose("seed", range(max(10, preset.seeds)), seed),
    }
    start = ipw.Button(description="Start", button_style="primary").add_class("dwlth-start")
    stop = ipw.Button(description="Stop", disabled=True).add_class("dwlth-stop")
    bar, shown = ipw.FloatProgress(max=1.0).add_class("dwlth-progress"), ipw.VBox()
    bad = _set_aside(folder)
    running, stopping = threading.Lock(), threading.Event()

    def chosen(**changed: int) -> Run:
        values = {name: control.value for name, control in controls.items()} | changed
        return Run("transfer", **values, source_seed=preset.source_of(values["seed"]))

    def tell(text: str, history: list[dict] | None = None, share: float = 0.0) -> None:
        bar.value = share
        with _DRAWING:
            show(shown, text, *([figures.histories({chosen().source: history})] if history else []))

    def look(_=None) -> None:
        tell(*_known(folder, chosen()))
        _set_aside(folder, bad)

    def switch(on: bool) -> None:
        stop.disabled = not on
        for widget in controls.values():
            widget.disabled = on

    def work(run: Run) -> None:
        try:
            wider = replace(preset, seeds=max(preset.seeds, run.seed + 1), seeds_at={})
            _train(replace(folder, preset=wider), run, device, minutes, stopping, tell)
            look()
        except Exception as error:  # nobody else would see it
            tell(str(error) if isinstance(error, DwlthError) else repr(error))
        finally:
            switch(on=False)
            running.release()
            start.disabled = False

    def on_start(_) -> None:
        if running.acquire(blocking=False):  # a second click changes nothing
            stopping.clear()
            start.disabled = True
            switch(on=True)
            threading.Thread(target=work, args=(chosen(),), daemon=True).start()

    start.on_click(on_start)
    stop.on_click(lambda _: stopping.set())
    for control in controls.values():
        control.observe(look, "value")
    if seed is None:
        done = folder.done()
        undone = (k for _, k in controls["seed"].options if preset.run_id(chosen(seed=k)) not in done)
        controls["seed"].value = next(undone, controls["seed"].value)
    look()
    parts = [_row(controls), ipw.HBox([start, stop, bar]), shown, bad]
    return Box(parts).add_class("dwlth-training")


def _known(folder: Folder, run: Run) -> tuple[str, list[dict], float]:
    """What is known of a run: in words, its history as far as it is on disk, and how much of it is done."""
    text = "{}: done, SA {:.1%} and RA {:.1%} on the test set"
    try:
        if folder.record(run).exists():
            record = read_record(folder.record(run))
            result = record["result"]
            if record["status"] != "ok":
                return f"{run}: {result['error']}", [], 0.0
            return text.format(run, result["sa"], result["ra"]), result["history"], 1.0
        table = read_table(folder.table) if folder.table.exists() else pd.DataFrame({"id": []})
        for _, row in table[table["id"] == folder.preset.run_id(run)].iterrows():
            if row["status"] == "failed":
                return f"{run}: failed (from the table)", [], 0.0
            return text.format(run, row["sa"], row["ra"]) + " (from the table)", [], 1.0
    except DwlthError as error:
        return f"{error}; Start does the run again", [], 0.0
    history, epochs = _history(folder, run), folder.preset.recipe(run).epochs
    text = f"{run}: not done yet ({len(history)} of {epochs} epochs); Start does what is left, and the runs it needs"
    return text, history, len(history) / epochs


def _history(folder: Folder, run: Run) -> list[dict]:
    """The epochs that an earlier, stopped training of a run has done."""
    with contextlib.suppress(DwlthError):
        return read_checkpoint(folder.checkpoint(run))["fits"][0]["history"]
    return []


def _train(folder: Folder, run: Run, device, minutes: float, stopping: threading.Event, tell: Callable) -> None:
    """Do `run`, after the runs it needs, until `stopping` is set; `tell` hears of each epoch."""
    tell(f"{run}: looking what is left to do ...")
    folder = replace(folder, device=machine.this_machine(device)[0])
    todo = grid.left(folder, [run])
    history: list[dict] = []

    def on_epoch(each: Run, row: dict | None) -> bool:
        if row is None:
            history[:] = _history(folder, each)
        else:
            history.append(row)
        i, epochs = todo.index(each), getattr(folder.preset.recipe(each), "epochs", 0)
        words = f"{each} (run {i + 1} of {len(todo)}), epoch {len(history)} of {epochs}"
        for name, key in (("training accuracy", "accuracy"), ("validation SA", "val_sa"), ("RA", "val_ra")):
            measured = [row[key] for row in history if row[key] is not None]  # not after every epoch
            words += f", {name} {measured[-1]:.1%}" if measured else ""
        tell(words, history, (i + len(history) / max(1, epochs)) / len(todo))
        return stopping.is_set()

    grid.complete(folder, [run], minutes=minutes, on_epoch=on_epoch, command="dwlth.show.widgets.training_panel")
    for failed in (each for each in todo if folder.record(each).exists()):
        if read_record(folder.record(failed))["status"] != "ok":
            raise DwlthError(f"{failed} broke down: see {folder.record(failed)}")
