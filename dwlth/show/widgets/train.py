"""The training panel: one transfer in the background, with its progress."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace

import ipywidgets as ipw
import pandas as pd

from dwlth.errors import DwlthError
from dwlth.results import Folder, read_record, read_table
from dwlth.running import cost, grid, machine
from dwlth.running.progress import duration
from dwlth.runs import Run
from dwlth.show import pretraining
from dwlth.show.widgets.parts import (
    DRAWING,
    HEAR,
    Box,
    choose,
    in_a_row,
    percent,
    set_aside,
    show,
    sparsities,
    table_of,
)
from dwlth.training import OutOfTime, read_checkpoint


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
        "fraction": choose("fraction", percent(preset.fractions), fraction),
        "round": choose("round", sparsities(rounds), round, "Sparsity"),
        "seed": choose("seed", range(max(10, preset.seeds, _seeds(folder) + 1)), seed),
    }
    start = ipw.Button(description="Start", button_style="primary").add_class("dwlth-start")
    stop = ipw.Button(description="Stop", disabled=True).add_class("dwlth-stop")
    bar, shown = ipw.FloatProgress(max=1.0).add_class("dwlth-progress"), ipw.VBox()
    bad = set_aside(folder)
    running, stopping, warned = threading.Lock(), threading.Event(), []

    def chosen(**changed: int) -> Run:
        values = {name: control.value for name, control in controls.items()} | changed
        return Run("transfer", **values, source_seed=preset.source_of(values["seed"]))

    def tell(text: str, history: list[dict] | None = None, share: float = 0.0) -> None:
        bar.value = share
        with DRAWING:
            show(shown, text, *([pretraining.histories({chosen().source: history})] if history else []))

    def look(_=None) -> None:
        tell(*_known(folder, chosen()))
        set_aside(folder, bad)

    def switch(on: bool) -> None:
        stop.disabled = not on
        for widget in controls.values():
            widget.disabled = on

    def work(run: Run) -> None:
        try:
            wider = replace(preset, seeds=max(preset.seeds, run.seed + 1), seeds_at={})
            more = run.seed >= preset.seeds_at.get(run.fraction, preset.seeds)
            by_hand = folder.by_hand() + (f" --seeds {run.seed + 1}" if more else "")
            limit = float("inf") if run in warned else minutes
            rows = _train(replace(folder, preset=wider, command=by_hand), run, device, limit, stopping, tell)
            look()
            if folder.path in HEAR:
                HEAR[folder.path](rows)
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
    parts = [in_a_row(controls), ipw.HBox([start, stop, bar]), shown, bad]
    return Box(parts).add_class("dwlth-training")


def _seeds(folder: Folder) -> int:
    """The highest seed of the table, and one; so that a panel always has a seed to train."""
    with contextlib.suppress(DwlthError):
        return int(read_table(folder.table)["seed"].max()) + 1 if folder.table.exists() else 0
    return 0


def _known(folder: Folder, run: Run) -> tuple[str, list[dict], float]:
    """What is known of a run: in words, its history as far as it is on disk, and how much of it is done."""
    share = lambda value: "not measured" if pd.isna(value) else f"{value:.1%}"
    text = lambda of: f"{run}: done, SA {share(of['sa'])} and RA {share(of['ra'])} on the test set"
    try:
        if folder.record(run).exists():
            record = read_record(folder.record(run))
            result = record["result"]
            if record["status"] != "ok":
                return f"{run}: {result['error']}", [], 0.0
            return text(result), result["history"], 1.0
        table = read_table(folder.table) if folder.table.exists() else pd.DataFrame({"id": []})
        for _, row in table[table["id"] == folder.preset.run_id(run)].iterrows():
            if row["status"] == "failed":
                return f"{run}: failed (from the table)", [], 0.0
            return text(row) + " (from the table)", [], 1.0
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

    seconds = _estimated(folder, todo, stopping, tell) if todo and minutes < float("inf") else 0.0
    if seconds > 60 * minutes:
        raise _Long(
            f"{run}: {len(todo)} runs are left, about {duration(seconds)} here ({folder.device}), by an estimate "
            f"that a busy machine makes too high. That is more than {minutes:g} minutes: Start once more begins them "
            f"all the same, or `{folder.by_hand()}` in a terminal. Either can be stopped"
        )
    if todo and not stopping.is_set():
        grid.run_all(folder, todo, command="dwlth.show.widgets.training_panel", on_epoch=on_epoch)
    table = table_of(folder)
    for failed in (each for each in todo if folder.record(each).exists()):
        if read_record(folder.record(failed))["status"] != "ok":
            raise DwlthError(f"{failed} broke down: see {folder.record(failed)}")
    return table[table["id"].isin([folder.preset.run_id(each) for each in todo])]


def _estimated(folder: Folder, todo: list[Run], stopping: threading.Event, tell: Callable) -> float:
    """Seconds that `todo` would take; 0 as soon as `stopping` is set."""
    tell(f"{todo[-1]}: estimating how long {len(todo)} run{'s' * (len(todo) != 1)} would take here, some ten seconds")
    try:
        return sum(cost.estimate(folder, todo, stop=stopping.is_set).values())
    except OutOfTime:
        return 0.0
