"""The explorer: the verdict, the curves and the tickets of a folder of results."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import ipywidgets as ipw
import pandas as pd
import torch
from IPython.display import HTML

from dwlth import masks, models, sources, tickets
from dwlth.errors import NotYet
from dwlth.presets import in_order
from dwlth.results import KEY, Folder, ended, sparsity_by_round
from dwlth.runs import Run
from dwlth.show import analysis, figures, pretraining, report, style
from dwlth.show.claims import scoreboard
from dwlth.show.widgets.parts import HEAR, Box, choose, drawn, in_a_row, percent, set_aside, show, sparsities, table_of
from dwlth.verdict import judge, transfers, verdict


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

    def hear(rows: pd.DataFrame) -> None:
        if len(rows):
            known = [key for key in KEY if key in now["table"]]
            table = pd.concat([rows, now["table"]], ignore_index=True).drop_duplicates(known)
            last = rows.iloc[-1]
            news = (
                f"Just trained: {last['stage']} {last['source']}, seed {last['seed']}, sparsity {last['sparsity']:.2%}"
            )
            news += f", {last['regime']}" if last["stage"] == "transfer" else ""
            news += f": SA {last['sa']:.1%}, RA {last['ra']:.1%}"
            fill(table, begin | {name: control.value for name, control in now["controls"].items()}, news)

    fill(table_of(folder) if table is None else table, begin)
    HEAR[folder.path] = hear
    return box


def _pickers(
    table: pd.DataFrame, folder: Folder, begin: Mapping[str, Any]
) -> tuple[list[ipw.Widget], dict[str, ipw.Widget]]:
    """The explorer of a table with transfers, and its controls."""
    preset, runs = folder.preset, table[(table["stage"] == "transfer") & (table["method"] == "imp")]
    known = {name: set(runs[name]) for name in ("source", "downstream", "fraction")}
    controls = {
        "source": _offer("source", in_order(known["source"]), begin, preset.pretrain),
        "downstream": _offer("downstream", sorted(known["downstream"]), begin, preset.downstream),
        "fraction": _offer("fraction", percent(sorted(known["fraction"], reverse=True)), begin, preset.fractions),
        "round": _offer("round", sparsities(sparsity_by_round(runs)), begin, preset.rounds),
    }
    margins = {metric: _margin(metric, begin.get(metric, points)) for metric, points in preset.margins.items()}

    @cache
    def won(downstream, fraction, **margins):
        here = (table["downstream"] == downstream) & (table["fraction"] == fraction)
        return _headline(table[here | (table["stage"] == "imp")], margins)

    def outside(source, downstream, fraction, round, **margins):
        which = table, downstream, fraction, source, round, margins
        chosen = transfers(runs, downstream, fraction)
        chosen = chosen[(chosen["source"] == source) & chosen["round"].isin([0, round])]
        return figures.criteria(*which), judge(*which), report.summary(chosen, "regime", "sparsity")

    def board(**margins):
        answers = scoreboard(table, margins, folder=folder).set_index("claim")
        return "The claims of the paper, with these margins", answers

    task = {name: controls[name] for name in ("downstream", "fraction")}
    headline = drawn(won, task | margins).add_class("dwlth-headline")
    pinned = ipw.VBox([in_a_row(controls | margins), headline]).add_class("dwlth-pinned")
    parts = [pinned, drawn(outside, controls | margins, STILL)]
    inside, layer = _inside(folder, controls, begin)
    parts += [*inside, drawn(board, margins, STILL).add_class("dwlth-scoreboard"), set_aside(folder)]
    return parts, controls | margins | {"layer": layer}


STILL = 0.2
"""Seconds for which the controls stand still before the explorer's pictures follow."""


def _so_far(
    table: pd.DataFrame, folder: Folder, begin: Mapping[str, Any]
) -> tuple[list[ipw.Widget], dict[str, ipw.Widget]]:
    """The explorer of a table without transfers: what there is, and what makes the rest."""
    preset = folder.preset
    planned = pd.DataFrame([(run.stage, run.source) for run in preset.grid()], columns=["stage", "source"])
    done = ended(table)
    own = done[done["id"].isin(set(map(preset.run_id, preset.grid())))]
    counts = pd.DataFrame({"done": own.value_counts(["stage", "source"]), "of": planned.value_counts(sort=False)})
    counts = counts.fillna(0).astype(int).loc[lambda rows: rows["of"] > 0]
    text = (
        f"No ticket of {folder.path} is transferred yet: {counts['done'].sum()} of {counts['of'].sum():,} runs are "
        f"done. `{folder.by_hand()}` does the others; it can be stopped and goes on from there. "
        f"`{folder.by_hand('plan')}` says how long that takes here."
    )
    said = ipw.VBox()
    show(said, text, counts)
    rounds = done.query("stage == 'imp'")["round"]
    if rounds.empty:
        return [said, set_aside(folder)], {}
    sparsity = {k: 1 - (1 - preset.prune_rate) ** k for k in preset.rounds if k <= rounds.max() + 1}
    controls = {
        "source": _offer("source", in_order(set(table["source"])), begin, preset.pretrain),
        "round": _offer("round", sparsities(pd.Series(sparsity)), begin, preset.rounds),
    }
    show(said, text, counts, pretraining.pretraining(table))
    inside, layer = _inside(folder, controls, begin)
    return [in_a_row(controls).add_class("dwlth-pinned"), said, *inside, set_aside(folder)], controls | {"layer": layer}


def _inside(
    folder: Folder, controls: Mapping[str, ipw.Widget], begin: Mapping[str, Any]
) -> tuple[list[ipw.Widget], ipw.Widget]:
    """The chosen ticket from inside, and the control of its layer."""
    with torch.device("meta"):  # names and shapes alone
        layers = masks.prunable(models.NETWORKS[folder.preset.network](2))
    layer = begin.get("layer") or max(layers, key=lambda name: layers[name].numel())
    within = {"source": controls["source"], "round": controls["round"], "layer": choose("layer", list(layers), layer)}

    def inside(source, round, layer):
        run = _on_disk(folder, source, round)
        model = sources.load(replace(folder, device="cpu"), run)
        mask = tickets.find(folder, run, model)
        what = f"The ticket of {mask.sparsity:.2%}" if round else "The dense network"
        text = f"{what} from inside, {source} pre-training, seed {run.seed}"
        return text, analysis.draw_layers({source: mask}), analysis.draw_kernels(model.net, mask, layer, limit=6)

    picture = drawn(inside, within, STILL).add_class("dwlth-inside")
    return [in_a_row({"layer": within["layer"]}), picture], within["layer"]


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
