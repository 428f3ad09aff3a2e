"""Pickers, the explorer and the training panel: the only module that imports ipywidgets.

Every control has a value from the start, so that a notebook runs headless too; callbacks may run on any thread.
"""

import asyncio
import base64
import contextlib
import html
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from dwlth import masks, models, sources, tickets
from dwlth.errors import DwlthError, NotYet
from dwlth.presets import in_order
from dwlth.results import KEY, Folder, read_record, read_table
from dwlth.running import cost, grid, machine
from dwlth.running.progress import duration
from dwlth.runs import Run
from dwlth.show import analysis, figures, style
from dwlth.show.claims import scoreboard
from dwlth.training import OutOfTime, read_checkpoint
from dwlth.verdict import judge, transfers, verdict

_DRAWING = threading.RLock()  # matplotlib is not safe on several threads at once

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
    return Box([_row(controls), _drawn(draw, controls)]).add_class("dwlth-live")


def _row(controls: dict[str, ipw.Widget]) -> ipw.HBox:
    return ipw.HBox(list(controls.values()), layout=ipw.Layout(flex_flow="row wrap", grid_gap="2px 16px"))


def _drawn(draw: Callable[..., Any], controls: dict[str, ipw.Widget], wait: float = 0.0) -> ipw.VBox:
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
        with _DRAWING:  # values are read inside, so that the last drawing is of the last values
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
            kind, name, value = ipw.Image, "figure", figures.png(part)
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


def explorer(
    table: pd.DataFrame | None,
    folder: Folder,
    *,
    source: str | None = None,
    downstream: str | None = None,
    fraction: float | None = None,
    round: int | None = None,
    layer: str | None = None,
) -> Box:
    """The sparsest double-win ticket of each source, in large type, and sliders for the two margins (they begin at the
    preset's) with which it moves; the curves of `figures.criteria`, with the numbers at the marker and the answer of
    the verdict there; the ticket from inside: its layers and the kernels of one of them, of the smallest seed whose
    files are on disk; and the scoreboard of the claims. What a training panel of the same folder trains appears in it.

    Args:
        table: of `dwlth.results.read_table`; None: that of the folder. What it lacks is not offered, or said to be
            missing; without transfers of IMP's tickets, one sees what there is, and the command that makes the rest.
        source, downstream, fraction, round, layer: where to begin; None, or what the preset has and the table has not:
            at the first there is, and at the largest layer.

    Raises:
        DwlthError: for a value that neither the table nor the preset has.
    """
    box, now = Box().add_class("dwlth-explorer"), {}
    begin = {"source": source, "downstream": downstream, "fraction": fraction, "round": round, "layer": layer}

    def fill(table: pd.DataFrame, begin: Mapping[str, Any], *news: str) -> None:
        has = ((table["stage"] == "transfer") & (table["method"] == "imp")).any()
        parts, controls = (_pickers if has else _so_far)(table, folder, begin)
        now.update(table=table, controls=controls)
        shown = ipw.VBox().add_class("dwlth-news")
        show(shown, *news)
        box.fill([*parts[:1], shown, *parts[1:]])

    def hear(path: Path, rows: pd.DataFrame) -> None:
        if path == folder.path and len(rows):
            known = [key for key in KEY if key in now["table"]]
            table = pd.concat([rows, now["table"]], ignore_index=True).drop_duplicates(known)
            last = rows.iloc[-1]
            news = (
                f"Just trained: {last['stage']} {last['source']}, seed {last['seed']}, sparsity {last['sparsity']:.2%}"
            )
            news += f", {last['regime']}" if last["stage"] == "transfer" else ""
            news += f": SA {last['sa']:.1%}, RA {last['ra']:.1%}"
            fill(table, {name: control.value for name, control in now["controls"].items()}, news)

    fill(_table(folder) if table is None else table, begin)
    _HEAR.append(hear)
    return box


_HEAR: list[Callable[[Path, pd.DataFrame], None]] = []
"""What hears of the rows that a training panel adds to the table of a folder's path."""


def _table(folder: Folder) -> pd.DataFrame:
    try:
        return folder.collect()
    except NotYet:
        return pd.DataFrame(columns=["id", *KEY, "sparsity", "sa", "ra", "status"])


def _pickers(
    table: pd.DataFrame, folder: Folder, begin: Mapping[str, Any]
) -> tuple[list[ipw.Widget], dict[str, ipw.Widget]]:
    """The explorer of a table with transfers, and its controls."""
    preset, runs = folder.preset, table[(table["stage"] == "transfer") & (table["method"] == "imp")]
    known = {name: set(runs[name]) for name in ("source", "downstream", "fraction")}
    controls = {
        "source": _offer("source", in_order(known["source"]), begin, preset.pretrain),
        "downstream": _offer("downstream", sorted(known["downstream"]), begin, preset.downstream),
        "fraction": _offer("fraction", _percent(sorted(known["fraction"], reverse=True)), begin, preset.fractions),
        "round": _offer("round", _sparsities(runs.groupby("round")["sparsity"].first()), begin, preset.rounds),
    }
    margins = {metric: _margin(metric, points) for metric, points in preset.margins.items()}

    @cache
    def won(downstream, fraction, **margins):
        here = (table["downstream"] == downstream) & (table["fraction"] == fraction)
        return _headline(table[here | (table["stage"] == "imp")], margins)

    def outside(source, downstream, fraction, round, **margins):
        figure = figures.criteria(runs, downstream, fraction, source, round, margins)
        chosen = transfers(runs, downstream, fraction)
        chosen = chosen[(chosen["source"] == source) & chosen["round"].isin([0, round])]
        return figure, judge(chosen, round, margins), figures.summary(chosen, "regime", "sparsity")

    def board(**margins):
        answers = scoreboard(table, margins, folder=folder).set_index("claim")
        return "The claims of the paper, with these margins", answers

    task = {name: controls[name] for name in ("downstream", "fraction")}
    headline = _drawn(won, task | margins).add_class("dwlth-headline")
    pinned = ipw.VBox([_row(controls | margins), headline]).add_class("dwlth-pinned")
    parts = [pinned, _drawn(outside, controls | margins, STILL)]
    inside, layer = _inside(folder, controls, begin)
    parts += [*inside, _drawn(board, margins, STILL).add_class("dwlth-scoreboard"), _set_aside(folder)]
    return parts, controls | {"layer": layer}


STILL = 0.2
"""Seconds for which the controls stand still before the explorer's pictures follow."""


def _so_far(
    table: pd.DataFrame, folder: Folder, begin: Mapping[str, Any]
) -> tuple[list[ipw.Widget], dict[str, ipw.Widget]]:
    """The explorer of a table without transfers: what there is, and what makes the rest."""
    preset = folder.preset
    planned = pd.DataFrame([(run.stage, run.source) for run in preset.grid()], columns=["stage", "source"])
    counts = pd.DataFrame({"done": table.value_counts(["stage", "source"]), "of": planned.value_counts(sort=False)})
    counts = counts.fillna(0).astype(int).loc[lambda rows: rows["of"] > 0]
    text = (
        f"No ticket of {folder.path} is transferred yet: {counts['done'].sum()} of {counts['of'].sum():,} runs are "
        f"done. `python -m dwlth run {preset.name}` does the others; it can be stopped and goes on from there. "
        f"`python -m dwlth plan {preset.name}` says how long that takes here."
    )
    said = ipw.VBox()
    show(said, text, counts)
    rounds = table["round"][(table["stage"] == "imp") & (table["status"] == "ok")]
    if rounds.empty:
        return [said, _set_aside(folder)], {}
    sparsity = {k: 1 - (1 - preset.prune_rate) ** k for k in preset.rounds if k <= rounds.max() + 1}
    controls = {
        "source": _offer("source", in_order(set(table["source"])), begin, preset.pretrain),
        "round": _offer("round", _sparsities(pd.Series(sparsity)), begin, preset.rounds),
    }
    show(said, text, counts, figures.pretraining(table))
    inside, layer = _inside(folder, controls, begin)
    return [_row(controls).add_class("dwlth-pinned"), said, *inside, _set_aside(folder)], controls | {"layer": layer}


def _inside(
    folder: Folder, controls: Mapping[str, ipw.Widget], begin: Mapping[str, Any]
) -> tuple[list[ipw.Widget], ipw.Widget]:
    """The chosen ticket from inside, and the control of its layer."""
    layers = masks.prunable(models.build(folder.preset.network, 2, [0.0], [1.0], seed=0).net)
    layer = begin.get("layer") or max(layers, key=lambda name: layers[name].numel())
    within = {"source": controls["source"], "round": controls["round"], "layer": choose("layer", list(layers), layer)}

    def inside(source, round, layer):
        run = _on_disk(folder, source, round)
        model = sources.load(replace(folder, device="cpu"), run)
        mask = tickets.find(folder, run, model)
        what = f"The ticket of {mask.sparsity:.2%}" if round else "The dense network"
        text = f"{what} from inside, {source} pre-training, seed {run.seed}"
        return text, analysis.draw_layers({source: mask}), analysis.draw_kernels(model.net, mask, layer, limit=6)

    drawn = _drawn(inside, within, STILL).add_class("dwlth-inside")
    return [_row({"layer": within["layer"]}), drawn], within["layer"]


def _headline(table: pd.DataFrame, margins: Mapping[str, float]) -> HTML:
    """The sparsest double-win ticket of each source with these margins, in large type."""
    allowed = " and ".join(f"{points:g} of {metric.upper()}" for metric, points in margins.items())
    lines = [f"<div>Sparsest double-win ticket, where a ticket may lose less than {allowed} (points)</div>"]
    try:
        found = verdict(table, margins)
    except NotYet:
        found, lines = pd.DataFrame({"source": []}), ["<div>No ticket can be judged here yet.</div>"]
    looks, cells = style.of_sources(found["source"]), []
    for row in found.itertuples():
        look, number = looks[row.source], f"{row.sparsity:.2%}" if row.round else "none"
        then = f"{row.next_sparsity:.2%}: {row.next_answer}" if row.next_answer else "the sparsest there is"
        cells.append(
            f'<div><b style="font-size: 28px; line-height: 34px; color: {look.colour}">{number}</b> '
            f"{html.escape(look.label)}<br><small>{f'next, {then}' if row.next_answer else then}</small></div>"
        )
    line = '<div style="display: flex; flex-wrap: wrap; gap: 2px 32px; line-height: 16px">'
    return HTML("".join([*lines, line, *cells, "</div>"]))


def _offer(name: str, options: list | dict, begin: Mapping[str, Any], planned: Iterable) -> ipw.Widget:
    """A control that begins at its value in `begin`, or, where only the preset has that one, at its first."""
    value = begin.get(name)
    there = list(options.values() if isinstance(options, dict) else options)
    value = None if value in planned and value not in there else value
    return choose(name, options, value, "Sparsity" if name == "round" else None)


def _margin(metric: str, points: float) -> ipw.SelectionSlider:
    """How much of `metric` a ticket may lose; it begins at so many points."""
    steps = sorted({0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, points})
    label = f"{metric.upper()} may fall by"
    return choose(f"{metric}_margin", {f"{step:g} point{'s' * (step != 1)}": step for step in steps}, points, label)


def _percent(fractions: Iterable[float]) -> dict[str, float]:
    return {f"{100 * fraction:.4g} %": fraction for fraction in fractions}


def _sparsities(sparsity: pd.Series) -> dict[str, int]:
    return {f"{100 * value:.2f} %": round_ for round_, value in sparsity.items()}


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
    each epoch. Stop ends it after the epoch under way, and at once while it estimates; Start goes on from there,
    in another kernel too.

    Args:
        source, downstream, regime, fraction, round: of the transfer; None: the preset's first.
        seed: 0 to 9, or more where the preset or its table has more; None: the first that is not done.
        device: see `dwlth.running.machine.this_machine`.
        minutes: what is estimated to take longer is begun by a second Start only.

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
        "seed": choose("seed", range(max(10, preset.seeds, _seeds(folder) + 1)), seed),
    }
    start = ipw.Button(description="Start", button_style="primary").add_class("dwlth-start")
    stop = ipw.Button(description="Stop", disabled=True).add_class("dwlth-stop")
    bar, shown = ipw.FloatProgress(max=1.0).add_class("dwlth-progress"), ipw.VBox()
    bad = _set_aside(folder)
    running, stopping, warned = threading.Lock(), threading.Event(), []

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
            limit = float("inf") if run in warned else minutes
            rows = _train(replace(folder, preset=wider), run, device, limit, stopping, tell)
            look()
            for hear in list(_HEAR):
                hear(folder.path, rows)
        except _Long as error:
            warned.append(run)
            tell(str(error))
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


def _seeds(folder: Folder) -> int:
    """The highest seed of the table, and one; so that a panel always has a seed to train."""
    with contextlib.suppress(DwlthError):
        return int(read_table(folder.table)["seed"].max()) + 1 if folder.table.exists() else 0
    return 0


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
    with contextlib.suppress(DwlthError, FileNotFoundError):
        return read_checkpoint(folder.checkpoint(run))["fits"][0]["history"]
    return []


class _Long(DwlthError):
    """A training that is estimated to take long: a second Start begins it."""


def _train(folder: Folder, run: Run, device, minutes: float, stopping: threading.Event, tell: Callable) -> pd.DataFrame:
    """Do `run`, after the runs it needs, until `stopping` is set; `tell` hears of each epoch. Returns the rows of the
    table that are new."""
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

    seconds = _estimated(folder, todo, stopping, tell) if minutes < float("inf") else 0.0
    if seconds > 60 * minutes:
        raise _Long(
            f"{run}: {len(todo)} runs are left, about {duration(seconds)} here ({folder.device}), by an estimate "
            f"that a busy machine makes too high. That is more than {minutes:g} minutes: Start once more begins them "
            f"all the same, or `python -m dwlth run {folder.preset.name}` in a terminal. Either can be stopped"
        )
    if todo and not stopping.is_set():
        grid.run_all(folder, todo, command="dwlth.show.widgets.training_panel", on_epoch=on_epoch)
    table = _table(folder)
    for failed in (each for each in todo if folder.record(each).exists()):
        if read_record(folder.record(failed))["status"] != "ok":
            raise DwlthError(f"{failed} broke down: see {folder.record(failed)}")
    return table[table["id"].isin([folder.preset.run_id(each) for each in todo])]


def _estimated(folder: Folder, todo: list[Run], stopping: threading.Event, tell: Callable) -> float:
    """Seconds that `todo` would take; 0 as soon as `stopping` is set."""
    tell(f"{todo[-1]}: estimating how long {len(todo)} run{'s' * (len(todo) != 1)} would take here, some ten seconds")
    try:
        return sum(cost.estimate(folder, todo, machine.threads(folder.preset.network), stopping.is_set).values())
    except OutOfTime:
        return 0.0
