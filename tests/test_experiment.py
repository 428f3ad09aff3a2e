"""The one object that notebooks hold: it selects, does and reads runs, and hands out what they made by name."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from dwlth import presets, tickets, verdict
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.interface.experiment import Experiment
from dwlth.results import read_record
from dwlth.running import grid, machine
from dwlth.runs import Run, stream
from dwlth.show import claims, order, sentences

SETTINGS = ["pretrain.epochs=1", "imp.epochs=1", "transfer.epochs=1", "evaluation.steps=2", "rounds=0,1", "seeds=2"]
SETTINGS += [f"{stage}.adversarial.attack.steps=2" for stage in ("pretrain", "imp", "transfer")]
SETTINGS += [f"{name}.validation.steps=2" for name in ("pretrain.fast_adversarial", "pretrain.adversarial")]
SETTINGS += ["transfer.adversarial.validation.steps=2"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A `digits` that takes a moment, with all its runs done, and their files."""
    place = tmp_path_factory.mktemp("experiment")
    experiment = Experiment("digits", place / "results", place / "data", "cpu", [*SETTINGS, "methods=imp,random"])
    assert experiment.have(experiment.runs(), files=True, images=True, minutes=1e6)
    return experiment


@pytest.fixture
def empty(tmp_path):
    return Experiment("digits", tmp_path / "results", tmp_path / "data", "cpu", SETTINGS)


def test_it_comes_with_the_package_and_late():
    code = """import sys, dwlth
assert not {"pandas", "matplotlib", "torch"} & sys.modules.keys()
from dwlth import Experiment
assert Experiment.__module__ == "dwlth.interface.experiment"
try:
    dwlth.experimant
except AttributeError:
    print("late")"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "late\n"


def test_it_is_a_preset_with_settings_by_name_or_as_it_is(empty):
    preset = empty.preset
    assert preset.transfer["standard"].epochs == 1 and preset.name.startswith("digits-")
    assert Experiment(preset, "there").folder.path.parts == ("there", preset.name)
    assert Experiment().preset == presets.get("digits")


def test_what_the_table_has_beyond_the_preset_can_be_read():
    """The kit's table of `digits` has rounds up to 19 and 10 % of the data."""
    ours = Experiment("digits", sentences.KIT / "results", settings=["fractions=1.0,0.05", "rounds=0,1,2"])
    assert ours.fraction() == 1.0 and ours.fraction(0.1) == 0.1 and ours.rung(19, 0) == 19
    assert ours.transfer("adversarial", 15, "standard").round == 15 and ours.curves(0.1)
    for name in ("fraction", "round"):
        with pytest.raises(DwlthError, match=f"unknown {name} "):
            ours.fraction(0.3) if name == "fraction" else ours.transfer("adversarial", 20, "standard")


def test_runs_are_those_of_the_grid(empty):
    assert empty.runs() == empty.preset.grid()
    chosen = empty.transfers(source=["standard", "adversarial"], round=1, seed=range(1), fraction=0.1)
    assert len(chosen) == 4 and set(chosen) <= set(empty.preset.grid())
    assert {(run.source, run.regime) for run in chosen} == {
        (source, regime) for source in ("standard", "adversarial") for regime in ("standard", "adversarial")
    }
    assert empty.transfer("standard", 1, "adversarial", 0.1, 1) in empty.runs(stage="transfer")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda e: e.runs(colour="red"), "unknown field of a run 'colour': choose from stage, source"),
        (lambda e: e.runs(source="stndard"), "unknown source 'stndard': choose from standard, fast_adversarial, ad"),
        (lambda e: e.transfers(round=[0, 99]), "unknown round 99: choose from 0, 1"),
        (lambda e: e.source("x"), "unknown source 'x': choose from standard"),
        (lambda e: e.ticket("standard", 99), "unknown round 99: choose from 0, 1$"),
        (
            lambda e: e.ticket("standard", 1, method="grasp"),
            "unknown method 'grasp': choose from imp, oneshot, random, sh",
        ),
        (
            lambda e: e.transfer("standard", 1, "standard", method="trained@nope"),
            "unknown source 'nope': choose from standard",
        ),
        (lambda e: e.network("standard", 0, "x"), "unknown regime 'x': choose from standard, adversarial"),
        (lambda e: e.transfer("standard", 0, "standard", downstream="svhn"), "'svhn': choose from digits5-9"),
        (lambda e: e.methods("x"), "unknown source 'x'"),
        (lambda e: e.curves(0.5), "unknown fraction 0.5: choose from 1.0, 0.1"),
        (lambda e: Experiment("digit"), "unknown preset 'digit': choose from digits"),
    ],
)
def test_unknown_names_are_errors_that_list_the_choices(empty, ask, says):
    with pytest.raises(ValueError, match=says):
        ask(empty)


def test_the_fraction_is_that_with_the_most_tickets(experiment, empty, monkeypatch):
    assert empty.fraction() == experiment.fraction() == 1.0 and experiment.fraction(0.1) == 0.1
    table = experiment.table()
    begun = table[(table["fraction"] != 1) | (table["round"] == 0)]  # as one begins, with little data
    monkeypatch.setattr(experiment, "table", lambda: begun)
    assert experiment.fraction() == 0.1
    assert "with 10 % of its" in experiment.curves().get_suptitle()
    assert experiment.differences().get_suptitle() and experiment.fraction(1.0) == 1.0


def test_what_is_there_is_not_done_again(experiment, monkeypatch):
    monkeypatch.setattr(grid, "execute", lambda *_: pytest.fail("a run was begun"))
    assert experiment.have(experiment.runs(), files=True, images=True, minutes=0)
    assert "left on this machine" in experiment.plan() and experiment.seconds([]) == 0


def test_what_is_needed_beside_the_grid_comes_first(empty):
    transfer = empty.transfer("adversarial", 1, "standard", seed=20)
    left = grid.left(empty.folder, [transfer])
    assert left[-1] == transfer and [run.stage for run in left] == ["pretrain", "imp", "transfer"]
    assert not set(left) & set(empty.preset.grid())


def test_what_the_command_would_not_do_is_to_be_asked_for_here(empty, capsys):
    assert not empty.have([empty.transfer("adversarial", 1, "standard", seed=20)], minutes=1e-9)
    assert "`experiment.have(..., minutes=1e6)` does them" in capsys.readouterr().out


def test_what_is_too_long_is_refused_with_the_command_and_leaves_nothing(empty, capsys):
    assert not empty.have(empty.transfers(), minutes=1e-9)
    said = capsys.readouterr().out
    assert "more than 1e-09 minutes are not begun here" in said
    where = f"--results {empty.folder.root} --data {empty.folder.data}"
    assert f"`python -m dwlth run digits {where} --set {' --set '.join(SETTINGS)}`" in said
    assert not empty.have(empty.runs(stage="imp"), files=True, minutes=1e-9)  # done or not, the files are wanted
    assert "`experiment.have(..., files=True, minutes=1e6)` does them" in capsys.readouterr().out
    assert not empty.folder.path.exists()


@pytest.mark.parametrize(
    ("preset", "results", "settings", "command"),
    [
        ("digits", "results", [], "python -m dwlth run digits"),
        ("digits", sentences.KIT / "results", ["splits=by seed"], "python -m dwlth run digits --set 'splits=by seed'"),
        ("digits", sentences.KIT / "quickstart", [], "python -m dwlth run digits --results quickstart"),
        (dataclasses.replace(presets.get("digits"), name="mine"), "results", [], "experiment.have(..., minutes=1e6)"),
    ],
)
def test_the_command_that_goes_on_is_one_that_a_shell_takes(preset, results, settings, command):
    folder = Experiment(preset, results, settings=settings).folder
    assert folder.by_hand() == command and folder.by_hand("plan") == command.replace(" run ", " plan ")


def test_missing_images_are_said(tmp_path, capsys):
    elsewhere = Experiment("digits", tmp_path, tmp_path, "cpu", [*SETTINGS, "downstream=folder:nowhere"])
    assert not elsewhere.have(elsewhere.transfers(), minutes=0)
    assert "nowhere" in capsys.readouterr().out


def test_a_failed_run_is_not_had(empty, monkeypatch):
    run = empty.runs(stage="pretrain", source="standard", seed=0)
    monkeypatch.setitem(grid.DO, "pretrain", lambda folder, runs, **_: [{"error": "broke", "history": []}] * len(runs))
    monkeypatch.setattr(empty.folder.__class__, "collect", lambda _: None)
    with pytest.warns(UserWarning, match="failed: pretrain standard seed 0"):
        assert not empty.have(run)


def test_networks_and_tickets_by_name(experiment):
    folder, preset = experiment.folder, experiment.preset
    table = experiment.table()
    for fraction, round_, seed in ((1.0, 1, 1), (0.1, 0, 0)):
        run = experiment.transfer("adversarial", round_, "adversarial", fraction, seed)
        network = experiment.network("adversarial", round_, "adversarial", fraction, seed)
        test = folder.dataset("digits5-9", seed).test
        sa, ra = evaluate(network, test, preset.evaluation, stream(seed, "transfer"), **preset.recipe(run).measuring)
        (row,) = table[table["id"] == preset.run_id(run)].itertuples()
        assert row.sa == pytest.approx(sa) and row.ra == pytest.approx(ra)
        kept = experiment.ticket("adversarial", round_, seed)
        assert sum(int((w != 0).sum()) for w in network.net.parameters() if w.dim() == 4) <= kept.kept
    mask, _ = tickets.load(folder.ticket(Run("transfer", "adversarial", 1, 1)))
    again = experiment.ticket("adversarial", 1, 1)
    assert again.keys() == mask.keys() and all(torch.equal(again[name], mask[name]) for name in mask)
    assert experiment.tickets("standard").keys() == {1} and experiment.ticket("standard", 0).sparsity == 0
    assert not experiment.source("standard").training


def test_images_are_those_of_the_seed(experiment):
    for seed in (0, 1):
        images, labels = experiment.images("digits0-4", seed, limit=7)
        assert images.shape == (7, 1, 8, 8) and 0 <= images.min() < images.max() <= 1
        assert torch.equal(labels, experiment.folder.dataset("digits0-4", seed).test.labels[:7])
    assert not torch.equal(experiment.images(seed=0)[0], experiment.images(seed=1)[0])
    images, labels, names = experiment.examples()
    assert len(images) == 5 and labels.tolist() == [0, 1, 2, 3, 4] and names == ["5", "6", "7", "8", "9"]


def test_the_answers_are_those_of_the_table(experiment):
    table, margins, wide = experiment.table(), experiment.preset.margins, {"sa": 50.0, "ra": 50.0}
    assert experiment.tests().equals(verdict.tests(table, margins))
    assert experiment.verdict().equals(verdict.verdict(table, margins))
    assert experiment.verdict(wide).equals(verdict.verdict(table, wide))
    assert experiment.order(wide).equals(order.order(table, wide))
    assert experiment.scoreboard().equals(claims.scoreboard(table, margins, folder=experiment.folder))
    assert "finished runs" in experiment.environment()["results"]


def test_figures(experiment, tmp_path):
    drawn = [experiment.curves(0.1), experiment.differences(0.1), experiment.double_wins(), experiment.gain(0, 1)]
    for figure in [*drawn, experiment.pretraining(), experiment.methods("standard")]:
        assert figure._repr_png_().startswith(b"\x89PNG")
    paths = experiment.figures(tmp_path)
    assert paths and all(path.parent == tmp_path and path.with_suffix(".pdf").exists() for path in paths)


def test_small_networks_train_on_one_thread(empty, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_cores", lambda: 4)
    assert machine.threads("resnet50") == 4 and machine.threads(empty.preset.network) == 1
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (run,) = empty.runs(stage="pretrain", source="standard", seed=0)
        assert empty.have([run], minutes=1e6)
        assert read_record(empty.folder.record(run))["provenance"]["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
