"""Pickers, the explorer and the training panel: the only module that imports ipywidgets.

Every control has a value from the start, so that a notebook runs headless too; callbacks may run on any thread.
"""

import html
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import ipywidgets as ipw
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dwlth import analysis, figures, grid, masks, models, sources, tickets
from dwlth.errors import DwlthError, NotYet
from dwlth.presets import Given, Preset, Run
from dwlth.results import Folder, read_record, read_table
from dwlth.training import read_checkpoint
from dwlth.verdict import verdict

COMMAND = "dwlth.widgets.training_panel"
REGIMES = ("standard", "adversarial")
_DRAWING = threading.RLock()  # matplotlib is not safe on several threads at once


class Box(ipw.VBox):
    """Widgets, one below the other; where only text can be shown, a word on what is missing."""

    def __repr__(self) -> str:
        return "(widgets: shown while the notebook runs)"


def choose(name: str, options: Iterable, value: Any = None) -> ipw.Dropdown | ipw.SelectionSlider:
    """A labelled control for one value: a slider for rising numbers, a menu for anything else. Its CSS class is
    `dwlth-NAME`.

    Args:
        options: the values, or a dict from label to value.
        value: at the start; by default the first.

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
    control = kind(options=labelled, value=value, description=name.replace("_", " ").capitalize())
    return control.add_class(f"dwlth-{name}")


def live(draw: Callable[..., Any], **controls: ipw.Widget) -> Box:
    """The controls, and below them what `draw` makes of their values (by the names given here): a figure, a table
    (`DataFrame`), a text, or a tuple of these. It is drawn again when a control changes; the same values give the
    same bytes. A `DwlthError` is shown in place of the pictures, which would be those of other values."""
    return Box([_row(controls), _drawn(draw, controls)]).add_class("dwlth-live")


def _row(controls: dict[str, ipw.Widget]) -> ipw.HBox:
    return ipw.HBox(list(controls.values()), layout=ipw.Layout(flex_flow="row wrap"))


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
            kind, name, value = ipw.HTML, "table", part.to_html(border=0)
        else:
            kind, name, value = ipw.HTML, "text", f'<div style="white-space: pre-wrap">{html.escape(str(part))}</div>'
        child = box.children[i] if i < len(box.children) else None
        if type(child) is not kind:
            child = kind(layout=ipw.Layout(max_width="100%")).add_class(f"dwlth-{name}")
        child.value = value
        children.append(child)
    if children != list(box.children):
        box.children = children


def explorer(
    table: pd.DataFrame,
    preset: Preset,
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
    """The curves of `figures.curve` with the numbers at the marker, and below them the ticket there from inside: its
    layers and the kernels of one of them, of the smallest seed whose files are on disk.

    Args:
        table: of `dwlth.results.read_table`; what it lacks is not offered, or said to be missing.
        source, regime, downstream, fraction, metric, round, layer: where to begin; None: at the first there is.

    Raises:
        DwlthError: for a value that is not there, or a table without transfers of IMP's tickets.
    """
    runs = table[(table["stage"] == "transfer") & (table["method"] == "imp")]
    known = {name: set(runs[name]) for name in ("source", "regime", "downstream", "fraction")}
    sparsity = runs.groupby("round")["sparsity"].first()
    controls = {
        "source": choose("source", [name for name in figures.SOURCES if name in known["source"]], source),
        "regime": choose("regime", [name for name in REGIMES if name in known["regime"]], regime),
        "downstream": choose("downstream", sorted(known["downstream"]), downstream),
        "fraction": choose("fraction", _percent(sorted(known["fraction"], reverse=True)), fraction),
        "metric": choose("metric", {"SA": "sa", "RA": "ra"}, metric),
        "round": choose("round", _sparsities(sparsity), round),
    }
    layers = masks.prunable(models.build(preset.network, 2, [0.0], [1.0], seed=0).net)
    within = {"source": controls["source"], "round": controls["round"], "layer": choose("layer", list(layers), layer)}

    def outside(source, regime, downstream, fraction, metric, round):
        figure = figures.curve(table, downstream, fraction, regime, metric, source, round)
        return figure, *_numbers(figures.transfers(table, downstream, fraction), source, regime, round)

    def inside(source, round, layer):
        run = _on_disk(folder, source, round)
        model = sources.load(preset, run, folder, "cpu")
        mask = tickets.find(preset, run, folder, model)
        what = f"The ticket of {mask.sparsity:.2%}" if round else "The dense network"
        text = f"{what} from inside, {source} pre-training, seed {run.seed}"
        return text, analysis.draw_layers({source: mask}), analysis.draw_kernels(model.net, mask, layer)

    parts = [_row(controls), _drawn(outside, controls), within["layer"], _drawn(inside, within)]
    return Box([*parts, _set_aside(folder)]).add_class("dwlth-explorer")


def _percent(fractions: Iterable[float]) -> dict[str, float]:
    return {f"{100 * fraction:.4g} %": fraction for fraction in fractions}


def _sparsities(sparsity: pd.Series) -> dict[str, int]:
    return {f"{100 * value:.4g} % (round {round_})": round_ for round_, value in sparsity.items()}


def _numbers(runs: pd.DataFrame, source: str, regime: str, round_: int) -> tuple[pd.DataFrame, str]:
    """SA and RA of a ticket and of its dense network under one regime, and whether it is double-win."""
    runs = runs[(runs["source"] == source) & runs["round"].isin([0, round_])]
    rows = {}
    for name, k in ((f"ticket of round {round_}", round_), ("dense network", 0)):
        of = runs[(runs["round"] == k) & (runs["regime"] == regime)]
        rows[name] = {"SA (%)": _mean(of["sa"]), "RA (%)": _mean(of["ra"]), "seeds": of["seed"].nunique()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    if round_ == 0:
        return table.tail(1), "The dense network, which tickets are compared with."
    try:
        found = verdict(runs).iloc[0]
    except NotYet:
        found = {"round": 0, "fails_at_round": 0}
    if found["round"] == round_:
        return table, "Double-win: within one standard error of the dense network in all three criteria."
    if found["fails_at_round"] == round_:
        return table, f"Not double-win: below the dense network in {found['fails_by'].replace('; ', ' and in ')}."
    return table, "Not judged: this needs the ticket and the dense network transferred under both regimes."


def _mean(values: pd.Series) -> str:
    """Mean and standard error over the seeds, in percent."""
    if values.isna().all():
        return "not run yet"
    return f"{100 * values.mean():.1f}" + (f" ± {100 * values.sem():.1f}" if len(values) > 1 else "")


def _on_disk(folder: Folder, source: str, round_: int) -> Run:
    """A run of this ticket, of the smallest seed whose source and ticket are on disk."""
    names = [path.stem for path in folder.path.glob(f"sources/{source}-s*.safetensors")]
    for seed in sorted(int(name.rpartition("-s")[2]) for name in names):
        run = Run("transfer", source, seed, round_)
        if round_ == 0 or folder.ticket(run, round_).exists():
            return run
    what, need = f"ticket {round_} of the {source} source", f'Run("imp", "{source}", 0, {round_ - 1})'
    if round_ == 0:
        what, need = f"the {source} source", f'Run("pretrain", "{source}", 0)'
    raise NotYet(f"{what} is not on disk: `grid.complete(preset, [{need}], folder, files=True)` makes it")


def _set_aside(folder: Folder) -> ipw.VBox:
    """How many files of results could not be read, and which."""
    names = sorted(path.name for path in folder.path.rglob("*.bad"))
    box = ipw.VBox()
    if names:
        show(box, f"{len(names)} unreadable files were set aside, and count for nothing: {', '.join(names)}")
    return box.add_class("dwlth-set-aside")


def training_panel(
    preset: Preset,
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
    """Does one transfer of the preset in the background, after the runs it needs, and shows its progress after each
    epoch. Stop ends it after the epoch under way; Start goes on from there, in another kernel too.

    Args:
        source, downstream, regime, fraction, round: of the transfer; None: the preset's first.
        seed: 0 to 9, or more where the preset has more; None: the first that is not done.
        device: see `dwlth.grid.this_machine`.
        minutes: what is estimated to take longer is not begun.

    Raises:
        DwlthError: for a value that the preset does not have.
    """
    rounds = pd.Series({k: 1 - (1 - preset.prune_rate) ** k for k in preset.rounds})
    controls = {
        "source": choose("source", list(preset.pretrain), source),
        "downstream": choose("downstream", preset.downstream, downstream),
        "regime": choose("regime", REGIMES, regime),
        "fraction": choose("fraction", _percent(preset.fractions), fraction),
        "round": choose("round", _sparsities(rounds), round),
        "seed": choose("seed", range(max(10, preset.seeds)), seed),
    }
    start = ipw.Button(description="Start", button_style="primary").add_class("dwlth-start")
    stop = ipw.Button(description="Stop", disabled=True).add_class("dwlth-stop")
    bar, shown = ipw.FloatProgress(description="Epochs").add_class("dwlth-progress"), ipw.VBox()
    running, stopping = threading.Lock(), threading.Event()

    def chosen(**changed: int) -> Run:
        return Run("transfer", **{name: control.value for name, control in controls.items()} | changed)

    def tell(title: str, text: str, history: list[dict], done: int, total: int) -> None:
        bar.max, bar.value = max(1, total), done
        with _DRAWING:
            show(shown, f"{title}: {text}", *([figures.training(history, title)] if history else []))

    def look(_=None) -> None:
        """Show what is known of the chosen run."""
        run = chosen()
        text, history = _known(preset, folder, run)
        tell(str(run), text, history, len(history), preset.recipe(run).epochs)

    def switch(on: bool) -> None:
        stop.disabled = not on
        for widget in (*controls.values(), start):
            widget.disabled = on

    def work(run: Run) -> None:
        try:
            _train(replace(preset, seeds=max(preset.seeds, run.seed + 1)), folder, run, device, minutes, stopping, tell)
            look()
        except Exception as error:  # nobody else would see it
            tell(str(run), str(error) if isinstance(error, DwlthError) else repr(error), [], 0, 1)
        finally:
            switch(on=False)
            running.release()

    def on_start(_) -> None:
        if running.acquire(blocking=False):  # a second click changes nothing
            stopping.clear()
            switch(on=True)
            threading.Thread(target=work, args=(chosen(),), daemon=True).start()

    start.on_click(on_start)
    stop.on_click(lambda _: stopping.set())
    for control in controls.values():
        control.observe(look, "value")
    if seed is None:
        done = folder.done()
        seeds = [k for _, k in controls["seed"].options]
        controls["seed"].value = next((k for k in seeds if preset.run_id(chosen(seed=k)) not in done), seeds[0])
    look()
    parts = [_row(controls), ipw.HBox([start, stop, bar]), shown, _set_aside(folder)]
    return Box(parts).add_class("dwlth-training")


def _known(preset: Preset, folder: Folder, run: Run) -> tuple[str, list[dict]]:
    """What is known of a run: in words, and its history as far as it is on disk."""
    id_ = preset.run_id(run)
    try:
        if folder.record(id_).exists():
            record = read_record(folder.record(id_))
            if record["status"] == "failed":
                return f"it broke down: {record['result']['error']}", []
            return _done(record["result"]), record["result"]["history"]
        if folder.table.exists():
            table = read_table(folder.table)
            if (table["id"] == id_).any():
                return f"{_done(table[table['id'] == id_].iloc[0])} (from the table)", []
    except DwlthError as error:
        return f"{error}; Start does the run again", []
    history = _history(preset, folder, run)
    epochs = preset.recipe(run).epochs
    return f"not done yet ({len(history)} of {epochs} epochs); Start does what is left, and the runs it needs", history


def _done(result: Any) -> str:
    return f"done, SA {result['sa']:.1%} and RA {result['ra']:.1%} on the test set"


def _history(preset: Preset, folder: Folder, run: Run) -> list[dict]:
    """The epochs in the checkpoint of a run, if there is one."""
    path = folder.checkpoint(preset.run_id(run))
    try:
        return read_checkpoint(path)["history"]
    except DwlthError:  # it is made again
        return []


def _train(preset, folder, run: Run, device, minutes: float, stopping: threading.Event, tell: Callable) -> None:
    """Do `run`, after the runs it needs, until `stopping` is set; `tell` hears of each epoch."""
    tell(str(run), "looking what is left to do ...", [], 0, 1)
    todo = grid.left(preset, [run], folder)
    device, _ = grid.this_machine(device)
    seconds = grid.estimate(preset, todo, folder, device)
    if seconds > 60 * minutes:
        raise NotYet(
            f"about {grid.duration(seconds)} on this machine ({device}); more than {minutes:g} minutes are not begun "
            f"here. `python -m dwlth run {preset.name}` can be stopped and resumed"
        )
    epochs = [_epochs(preset, each) for each in todo]

    def do(i: int, each: Run) -> bool:
        history, title = _history(preset, folder, each), f"{each} (run {i + 1} of {len(todo)})"

        def on_epoch(row: dict | None = None) -> bool:
            history.extend([row] if row else [])
            tell(title, _progress(history, epochs[i]), history, sum(epochs[:i]) + len(history), sum(epochs))
            return stopping.is_set()

        if on_epoch():
            return False
        status = grid.execute(preset, folder, device, math.inf, COMMAND, False, each, on_epoch)
        if status == "failed":
            raise DwlthError(f"{each} broke down: see {folder.record(preset.run_id(each))}")
        return status == "ok"

    if all(do(i, each) for i, each in enumerate(todo)):
        folder.collect()


def _epochs(preset: Preset, run: Run) -> int:
    recipe = preset.recipe(run)
    return 0 if isinstance(recipe, Given) or (run.stage == "imp" and run.round == 0) else recipe.epochs


def _progress(history: list[dict], epochs: int) -> str:
    """The last values of the training under way; SA and RA are not measured after every epoch."""
    words = [f"epoch {len(history)} of {epochs}"]
    for name, key in (("accuracy in training", "accuracy"), ("validation SA", "val_sa"), ("RA", "val_ra")):
        measured = [row[key] for row in history if row[key] is not None]
        words += [f"{name} {measured[-1]:.1%}"] if measured else []
    return ", ".join(words)
