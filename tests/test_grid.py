"""What is left of a grid, what it costs, and doing it from a notebook."""

import math
import re
import tempfile
from dataclasses import replace

import pandas as pd
import pytest
import torch

from dwlth import data, masks, presets, sources, tickets, training, transfer
from dwlth.attacks import Attack
from dwlth.errors import DwlthError, NotYet
from dwlth.evaluation import evaluate
from dwlth.fast import team
from dwlth.files import read_tensors
from dwlth.interface.commands import main
from dwlth.outside import autoattack as under
from dwlth.results import Folder, read_record, read_table
from dwlth.running import cost, grid, machine
from dwlth.running.settings import override
from dwlth.runs import Run
from dwlth.show.report import report_autoattack


@pytest.fixture
def small(tiny):
    """One source, one ticket and the dense network, both regimes, all the data."""
    return replace(tiny, pretrain={"standard": tiny.pretrain["standard"]}, rounds=(0, 2), fractions=(1.0,))


def test_units_hold_runs_that_can_train_side_by_side(tiny):
    tiny = replace(tiny, seeds=3)
    runs = tiny.grid()
    found = tiny.units(runs)
    assert sorted(map(str, runs)) == sorted(str(run) for unit in found for run in unit)
    for unit in found:
        recipes = {repr(tiny.recipe(run)) for run in unit}
        assert len(unit) <= tiny.together and len({(r.stage, r.downstream, r.fraction) for r in unit}) == 1
        assert len(recipes) == 1
        assert len(unit) == 1 or unit[0].stage != "imp" or len({r.round for r in unit}) == 1
    assert {stage: max(len(u) for u in found if u[0].stage == stage) for stage in ("pretrain", "imp", "transfer")} == {
        "pretrain": 3,
        "imp": 3,
        "transfer": 10,
    }
    assert all(len(unit) == 1 for unit in replace(tiny, together=1).units(runs))


def test_complete_does_what_is_left_and_makes_lost_files_again(small, tmp_path):
    folder = Folder(small, tmp_path)
    keeps_none = replace(folder, preset=replace(small, keep_networks=False))
    runs = small.grid()
    with pytest.raises(
        NotYet,
        match=r"7 runs are left, about \d.* \(cpu, 1 at a time\).*`experiment.have\(..., minutes=1e6\)` does",
    ):
        grid.complete(folder, runs, minutes=1e-4)
    table = grid.complete(folder, runs, files=True, minutes=1000)
    assert len(table) == len(runs) == 7

    run = next(run for run in runs if run.regime == "adversarial" and run.round == 2)
    written = folder.table.stat().st_mtime_ns
    network = folder.network(run)
    before, _ = read_tensors(network, "network")
    network.unlink()
    assert grid.left(folder, runs) == [] and grid.left(folder, runs, files=True) == [run]
    assert grid.complete(keeps_none, [run]).equals(table) and not network.exists()
    assert grid.complete(folder, [run], files=True).equals(table)
    after, _ = read_tensors(network, "network")
    # alone now, where it was trained beside the others: the same bits
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert folder.table.stat().st_mtime_ns == written  # a row stays when its run is done once more

    model = transfer.load(folder, run)
    mask = tickets.find(folder, run, sources.load(folder, run))
    assert all((weight[~mask[name]] == 0).all() for name, weight in masks.prunable(model.net).items())
    task = folder.dataset(run.downstream, run.seed)
    row = table[(table["regime"] == "adversarial") & (table["round"] == 2)].iloc[0]
    assert evaluate(model, task.test, Attack(), 0)[0] == pytest.approx(row["sa"], abs=1e-6)


def test_threads_are_a_share_of_the_cores_or_as_the_environment_says(monkeypatch):
    monkeypatch.setattr(machine, "_cores", lambda: 8)
    for said, threads in (("", 4), ("3", 3), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert machine.threads("resnet50", 2) == threads
        assert machine.threads("resnet50", 100) == (1 if said != "3" else 3)


@pytest.mark.parametrize("name, said", [("cifar", "; it needs a GPU"), ("digits", "1 at a time)")])
def test_a_plan_needs_no_data_and_says_what_needs_a_gpu(tmp_path, monkeypatch, name, said):
    monkeypatch.setattr(cost, "SECONDS", 0.5)  # the time itself is not looked at
    preset = presets.get(name)
    plan = grid.plan(Folder(preset, tmp_path, tmp_path / "nothing"), preset.grid(), 1)
    assert plan.endswith(said) and "left on this machine (cpu, 1 at a time)" in plan
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name, images", [("cifar100", 45_000), ("svhn", 68_257), ("imagenet", 1_281_167)])
def test_blank_images_have_the_published_numbers(name, images):
    task = data.blank(name)
    assert len(task.train) == images and task.train.images.untyped_storage().nbytes() < 1e6
    assert data.blank("digits0-4") is None


def test_half_precision_sources(small, tmp_path):
    small = replace(small, half_sources=True, rounds=(0,))
    folder, run = Folder(small, tmp_path), Run("pretrain", "standard", 0)
    grid.complete(folder, [run])
    weights, about = read_tensors(folder.source(run), "source")
    assert weights["conv1.weight"].dtype == torch.float16 and weights["bn1.running_var"].dtype == torch.float32
    model = sources.load(folder, run)
    assert masks.prunable(model.net)["conv1.weight"].dtype == torch.float32
    task = folder.dataset("digits0-4", 0)
    assert evaluate(model, task.test, Attack(), 0)[0] == pytest.approx(about["sa"], abs=1e-6)
    assert small.run_id(run) != replace(small, half_sources=False).run_id(run)


def test_autoattack_of_the_dense_network_and_the_double_win_ticket(tiny_args, tmp_path, capsys):
    pytest.importorskip("pyautoattack")
    settings = [*tiny_args, "--set", "rounds=0,2", "--set", "fractions=1.0", "--set", "autoattack_images=12"]
    settings += ["--set", "evaluation.eps=0.4"]  # AutoAttack is quick where images fall early
    settings += ["--seeds", "2", "--set", "margins.sa=1000", "--set", "margins.ra=1000"]  # every ticket is double-win
    args = ["digits", *settings, "--results", str(tmp_path), "--source", "standard", "--workers", "1"]
    assert main(["autoattack", *args]) == 2
    assert "no finished run yet" in capsys.readouterr().err
    assert main(["run", *args]) == 0
    assert main(["autoattack", *args]) == 0
    said = capsys.readouterr().out
    table = read_table(next(tmp_path.glob("*/table.csv")))
    rows = table[table["stage"] == "autoattack"]
    assert rows["round"].tolist() == [0, 0, 2, 2] and (rows["ra"] <= rows["ra_pgd"] + 1e-6).all() and "36.00%" in said
    assert (rows["ra_pgd"] <= rows["sa"]).all() and rows["command"].str.startswith("python -m dwlth autoattack").all()
    assert main(["autoattack", *args]) == 0  # nothing left
    assert "runs ok" not in capsys.readouterr().out


def test_autoattack_that_is_stopped_goes_on_behind_its_last_batch(small, tmp_path, monkeypatch):
    folder = Folder(replace(small, rounds=(0,), keep_networks=True, autoattack_images=12), tmp_path)
    of = next(run for run in folder.preset.grid() if run.regime == "adversarial")
    grid.complete(folder, [of], minutes=1000)
    run, sizes = replace(of, stage="autoattack"), []

    def grey(model, x, y, *args, **how):  # in its place, for speed
        sizes.append(len(y))
        training.STOP.set()
        return torch.where((y > 1).view(-1, 1, 1, 1), x, 0.5)

    precisions, precision_of = [], under.precision_of
    spy = lambda name, device: precisions.append(name) or precision_of(name, device)
    monkeypatch.setattr(under, "precision_of", spy)
    monkeypatch.setattr(under, "autoattack", grey)
    try:
        whole = under.under_autoattack(folder, [run])  # one batch: there is nothing to stop
        monkeypatch.setattr(under, "BATCH", 5)
        with monkeypatch.context() as patch:  # one of several processes asks the first one whether to end
            patch.setattr(team.current, "says", lambda yes: False, raising=False)
            assert under.under_autoattack(folder, [run]) == whole
        sizes.clear()
        for ends in ("stopped", "stopped", "ok"):
            training.STOP.clear()
            assert grid.execute(folder, math.inf, "", False, (run,)) == [ends]
            assert folder.checkpoint(run).exists() == (ends == "stopped")
    finally:
        training.STOP.clear()
    assert sizes == [5, 5, 2] and set(precisions) == {"float32"}
    assert read_record(folder.record(run))["result"] == whole[0]
    assert 0 < whole[0]["ra"] < whole[0]["sa"]


def test_the_report_keeps_fractions_apart():
    row = {"stage": "autoattack", "downstream": "digits5-9", "source": "standard", "round": 0, "seed": 0}
    row |= {"sparsity": 0.0, "sa": 0.9, "ra_pgd": 0.7}
    said = report_autoattack(pd.DataFrame([row | {"fraction": 1.0, "ra": 0.6}, row | {"fraction": 0.1, "ra": 0.4}]))
    assert re.search(r"100% .* 60.00%\n.* 10% .* 40.00%", said)


def test_autoattack_takes_the_most_data_that_is_asked_for_and_decided():
    preset = override(presets.get("digits"), ["fractions=1.0,0.1", "seeds=2"])
    row = {"downstream": "digits5-9", "source": "standard", "round": 4}
    found = pd.DataFrame([row | {"fraction": fraction, "pairs": 2} for fraction in (1.0, 0.1)])
    one_seed = found.assign(pairs=[1, 2])
    for table, settings, fraction in ((found, [], 1.0), (found, ["fractions=0.1"], 0.1), (one_seed, [], 0.1)):
        runs = grid.for_autoattack(override(preset, settings), table)
        assert [(run.fraction, run.round, run.seed) for run in runs] == [
            (fraction, k, s) for k in (0, 4) for s in (0, 1)
        ]
    assert grid.for_autoattack(override(preset, ["fractions=0.01"]), found) == []


def test_bad_input_of_one_run_fails_that_run_alone(small, tmp_path, monkeypatch):
    small = replace(small, rounds=(0,))
    do = grid.DO["transfer"]

    def refuse(folder, runs, **training):
        if runs[0].regime == "standard":
            raise DwlthError("bad.png: not an image")
        return do(folder, runs, **training)

    monkeypatch.setitem(grid.DO, "transfer", refuse)
    folder = Folder(small, tmp_path)
    refused = next(run for run in small.grid() if run.regime == "standard")
    kept = folder.checkpoint(refused)  # of a training that an earlier call stopped
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"trained so far")
    monkeypatch.setattr(grid, "_earlier_seconds", lambda checkpoint: 0.0)
    ends = grid.run_all(folder, grid.left(folder, small.grid()))
    assert kept.exists()
    assert {(run.stage, run.regime): end for run, end in ends.items()} == {
        ("pretrain", ""): "ok",
        ("transfer", "standard"): "failed",
        ("transfer", "adversarial"): "ok",
    }
    why = [record["result"]["error"] for record in folder.records() if record["status"] == "refused"]
    assert why == ["bad.png: not an image"] and (folder.collect()["status"] == "ok").all()


def test_bad_input_of_one_member_of_a_stack_fails_that_member_alone(small, tmp_path, monkeypatch):
    small = replace(small, rounds=(0,), seeds=2)
    do = grid.DO["transfer"]

    def refuse(folder, runs, **training):
        if any(run.seed == 1 and run.regime == "standard" for run in runs):
            raise DwlthError("standard-s1: a source of other weights")
        return do(folder, runs, **training)

    monkeypatch.setitem(grid.DO, "transfer", refuse)
    folder = Folder(small, tmp_path)
    runs = grid.left(folder, [run for run in small.grid() if run.fraction == 1])
    assert any(len({run.seed for run in unit}) == 2 for unit in small.units(runs))
    ends = grid.run_all(folder, runs)
    assert {(run.regime, run.seed) for run, end in ends.items() if end != "ok"} == {("standard", 1)}
    assert (folder.collect()["status"] == "ok").all()


def test_what_a_refused_stack_has_trained_stays_and_goes_once_it_is_done(small, tmp_path, monkeypatch):
    small = replace(small, rounds=(0,), seeds=2)
    folder, do = Folder(small, tmp_path), grid.DO["transfer"]
    todo = grid.left(folder, small.grid())
    grid.run_all(folder, [run for run in todo if run.stage == "pretrain"])
    unit = next(unit for unit in small.units(todo) if unit[0].stage == "transfer" and len(unit) == 2)
    kept, alone = folder.checkpoint(unit[-1], "0123456789ab"), folder.checkpoint(unit[0])
    kept.parent.mkdir(parents=True, exist_ok=True)

    def refuse(*_, **__):
        raise DwlthError("no data")

    for path in (kept, alone):
        path.write_bytes(b"trained so far")
    monkeypatch.setattr(grid, "_earlier_seconds", lambda checkpoint: 0.0)
    monkeypatch.setitem(grid.DO, "transfer", refuse)
    assert grid.execute(folder, math.inf, "", False, unit) == ["failed", "failed"]
    assert kept.exists() and alone.exists()
    monkeypatch.setitem(grid.DO, "transfer", do)
    assert grid.execute(folder, math.inf, "", False, unit) == ["ok", "ok"]
    assert not list(kept.parent.glob("*.pt"))


def test_a_transient_error_of_the_disk_sets_no_source_aside(small, tmp_path, monkeypatch):
    folder, run = Folder(small, tmp_path), Run("pretrain", "standard", 0)
    grid.run_all(folder, [run])

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("dwlth.files.safe_open", broken)
        with pytest.raises(OSError, match="Input/output"):
            folder.has(run)
    assert folder.source(run).exists() and folder.has(run)


def test_an_imported_ticket_is_neither_trained_nor_overwritten(small, tmp_path):
    folder = Folder(replace(small, rounds=(0, 1)), tmp_path)
    source, first = Run("pretrain", "standard", 0), Run("imp", "standard", 0)
    grid.run_all(folder, [source])
    net = sources.load(folder, source).net
    mask = masks.prune(masks.dense(net), masks.random(net, 7), 0.2)
    belongs_to = masks.fingerprint(masks.prunable(net))
    about = {"id": folder.preset.run_id(first), "method": "imported from x.pth", "belongs_to": belongs_to}
    tickets.save(folder.ticket(first.pruned), mask, **about)
    before = folder.ticket(first.pruned).read_bytes()
    todo = grid.left(folder, folder.preset.grid())
    assert first not in todo and len(todo) == 4
    assert set(grid.run_all(folder, todo).values()) == {"ok"}
    assert folder.ticket(first.pruned).read_bytes() == before


@pytest.mark.parametrize(("rounds", "trained"), [((0, 5), []), ((0, 2, 5), [0, 1]), ((0, 5, 7), [5, 6])])
def test_rounds_that_lead_to_nothing_but_an_imported_ticket_are_not_done(rounds, trained, tmp_path, monkeypatch):
    brought = Run("imp", "standard", 0, 4)
    monkeypatch.setattr(Folder, "imported", lambda folder, run: run == brought)
    monkeypatch.setattr(Folder, "has", lambda folder, run: run == brought)
    folder = Folder(replace(presets.get("digits"), rounds=rounds, seeds=1), tmp_path)
    for runs in (folder.preset.grid(), [run for run in folder.preset.grid() if run.stage == "transfer"]):
        todo = [run for run in grid.left(folder, runs) if run.stage == "imp"]
        assert [run.round for run in todo if run.source == "standard"] == trained
        assert [run.round for run in todo if run.source == "adversarial"] == [*range(max(rounds))]


def test_processes_end_their_own_workers_alone():
    import multiprocessing
    import time

    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt), machine.processes(1, 1) as pool:
            pool.submit(time.sleep, 0).result()
            workers = list(pool._processes.values())
            raise KeyboardInterrupt
        assert other.is_alive() and not any(worker.is_alive() for worker in workers)
    finally:
        other.terminate()
        other.join()


def test_the_parent_fetches_each_data_set_once(small, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(grid, "fetch", lambda name, root: fetched.append((name, root)))
    monkeypatch.setattr(grid, "run_grid", lambda *_, **__: {})
    folder = Folder(small, tmp_path, "there")
    grid.run_all(folder, small.grid(), workers=2)
    assert sorted(fetched) == [("digits0-4", "there"), ("digits5-9", "there")]


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(small, tmp_path, monkeypatch):
    """A folder inside that another user made; also where `preset.json` is there already."""
    folder = Folder(small, tmp_path)
    folder.write_preset()
    (folder.path / "runs").mkdir()
    own = tempfile.TemporaryFile

    def refuse(dir):
        if dir == folder.path / "runs":
            raise PermissionError(13, "Permission denied", str(dir / "tmp123"))
        return own(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setitem(grid.DO, "pretrain", lambda *_, **__: pytest.fail("something was trained"))
    with pytest.raises(DwlthError, match=r"runs: cannot be written \(permission denied\): give a folder"):
        grid.run_all(folder, grid.left(folder, small.grid()))
