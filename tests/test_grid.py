"""What is left of a grid, what it costs, and doing it from a notebook."""

from dataclasses import replace

import pytest
import torch

from dwlth import data, grid, masks, presets, sources, tickets, transfer
from dwlth.__main__ import main
from dwlth.errors import NotYet
from dwlth.files import read_tensors
from dwlth.presets import Run
from dwlth.results import Folder, read_table
from dwlth.training import evaluate


@pytest.fixture
def small(tiny):
    """One source, one ticket and the dense network, both regimes, all the data."""
    return replace(tiny, pretrain={"standard": tiny.pretrain["standard"]}, rounds=(0, 2), fractions=(1.0,))


def test_units_hold_transfers_that_can_train_side_by_side(tiny):
    runs = tiny.grid()
    found = grid.units(tiny, runs)
    assert sorted(map(str, runs)) == sorted(str(run) for unit in found for run in unit)
    for unit in found:
        assert len(unit) <= tiny.together and len({(r.stage, r.regime, r.fraction, r.seed) for r in unit}) == 1
        assert len(unit) == 1 or unit[0].stage == "transfer"
    assert max(map(len, found)) == 7
    assert all(len(unit) == 1 for unit in grid.units(replace(tiny, together=1), runs))


def test_complete_does_what_is_left_and_makes_lost_files_again(small, tmp_path):
    folder = Folder(tmp_path, small.name)
    runs = small.grid()
    with pytest.raises(
        NotYet, match=r"7 runs are left, about \d.*here \(cpu, 1 at a time\).*python -m dwlth run digits"
    ):
        grid.complete(small, runs, folder, minutes=1e-4, device="cpu", workers=1)
    table = grid.complete(small, runs, folder, files=True, device="cpu", workers=1, minutes=1000)
    assert len(table) == len(runs) == 7

    run = next(run for run in runs if run.regime == "adversarial" and run.round == 2)
    written = folder.table.stat().st_mtime_ns
    network = folder.network(small.run_id(run))
    before, _ = read_tensors(network, "network")
    network.unlink()
    assert grid.left(small, runs, folder) == [] and grid.left(small, runs, folder, files=True) == [run]
    assert grid.complete(small, [run], folder, device="cpu", workers=1).equals(table) and not network.exists()
    assert grid.complete(small, [run], folder, files=True, device="cpu", workers=1).equals(table)
    after, _ = read_tensors(network, "network")
    # alone now, where it was trained beside the others: the same bits
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert folder.table.stat().st_mtime_ns == written  # a row stays when its run is done once more

    model = transfer.load(small, run, folder, "cpu")
    mask = tickets.find(small, run, folder, sources.load(small, run, folder, "cpu"))
    assert all((weight[~mask[name]] == 0).all() for name, weight in masks.prunable(model.net).items())
    task = data.load(run.downstream)
    row = table[(table["regime"] == "adversarial") & (table["round"] == 2)].iloc[0]
    assert evaluate(model, task.test, presets.Attack(), 0)[0] == pytest.approx(row["sa"], abs=1e-6)


def test_threads_are_a_share_of_the_cores_or_as_the_environment_says(monkeypatch):
    monkeypatch.setattr(grid, "_cores", lambda: 8)
    for said, threads in (("", 4), ("3", 3), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert grid.threads(2) == threads and grid.threads(100) == (1 if said != "3" else 3)


def test_a_plan_needs_no_data(tmp_path):
    cifar = presets.get("cifar")
    cifar = replace(cifar, pretrain={"standard": cifar.pretrain["standard"]}, rounds=(0,), fractions=(0.01,), seeds=1)
    few = ["pretrain.validation.steps=1", "transfer.validation.steps=1"]  # of the time that steps take
    cifar = cifar.override([*few, "transfer.adversarial.attack.steps=1", "evaluation.steps=1"])
    said = grid.plan(cifar, cifar.grid(), Folder(tmp_path, "cifar", tmp_path / "nothing"), "cpu", 1)
    assert "pretrain     0     1" in said and "left on this machine (cpu, 1 at a time)" in said
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name, images", [("cifar100", 45_000), ("svhn", 68_257), ("imagenet", 1_281_167)])
def test_blank_images_have_the_published_numbers(name, images):
    task = data.blank(name)
    assert len(task.train) == images and task.train.images.untyped_storage().nbytes() < 1e6
    assert data.blank("digits0-4") is None


def test_half_precision_sources(small, tmp_path):
    small = replace(small, half_sources=True, rounds=(0,))
    folder, run = Folder(tmp_path, small.name), Run("pretrain", "standard", 0)
    grid.complete(small, [run], folder, device="cpu", workers=1)
    weights, about = read_tensors(folder.source(run), "source")
    assert weights["conv1.weight"].dtype == torch.float16 and weights["bn1.running_var"].dtype == torch.float32
    model = sources.load(small, run, folder, "cpu")
    assert masks.prunable(model.net)["conv1.weight"].dtype == torch.float32
    task = data.load("digits0-4")
    assert evaluate(model, task.test, presets.Attack(), 0)[0] == pytest.approx(about["sa"], abs=1e-6)
    assert small.run_id(run) != replace(small, half_sources=False).run_id(run)


def test_autoattack_of_the_dense_network_and_the_double_win_ticket(tiny_args, tmp_path, capsys):
    pytest.importorskip("pyautoattack")
    settings = [*tiny_args, "--set", "rounds=0,2", "--set", "fractions=1.0", "--set", "autoattack_images=12"]
    args = ["digits", *settings, "--results", str(tmp_path), "--source", "standard", "--workers", "1"]
    assert main(["autoattack", *args]) == 2
    assert "no finished run yet" in capsys.readouterr().err
    assert main(["run", *args]) == 0
    assert main(["autoattack", *args, "--tolerance", "100"]) == 0
    said = capsys.readouterr().out
    table = read_table(next(tmp_path.glob("*/table.csv")))
    rows = table[table["stage"] == "autoattack"]
    assert rows["round"].tolist() == [0, 2] and (rows["ra"] <= rows["ra_pgd"] + 1e-6).all() and "36.00%" in said
    assert (rows["ra_pgd"] <= rows["sa"]).all() and rows["command"].str.startswith("python -m dwlth autoattack").all()
    assert main(["autoattack", *args, "--tolerance", "100"]) == 0  # nothing left
    assert "runs ok" not in capsys.readouterr().out
