"""The whole road through the command line, with wrong turns and sudden ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from dwlth import files, presets, tickets
from dwlth.interface.commands import main
from dwlth.masks import prunable
from dwlth.results import Folder, read_table
from dwlth.running import grid
from dwlth.running.settings import override
from dwlth.runs import Run, plain
from dwlth.sources import load

ONE = ["--source", "adversarial", "--workers", "1", "--device", "cpu"]
PROVENANCE = [
    "seconds",
    "device",
    "threads",
    "python",
    "torch",
    "torchvision",
    "dwlth",
    "commit",
    "command",
    "together",
    "precision",
]

KILLED = """
import os, signal, sys
import dwlth.training
from dwlth.interface.commands import main

dwlth.training.CHECKPOINT_SECONDS = 0
left, replace = int(sys.argv[1]), os.replace

def replace_or_die(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)

os.replace = replace_or_die
sys.exit(main(sys.argv[2:]))
"""


def folder(root, tiny):
    return Folder(tiny, root)


def science(path):
    return science_of(read_table(path))


def science_of(table):
    return table.drop(columns=PROVENANCE)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """The tiny preset, run once from start to end by one source."""
    from conftest import TINY

    root = tmp_path_factory.mktemp("road")
    tiny = override(presets.get("digits"), TINY)
    args = ["digits", *[word for setting in TINY for word in ("--set", setting)], "--results", str(root)]
    assert main(["run", *args, *ONE]) == 0
    return root, tiny, args


@pytest.fixture
def copy(road, tmp_path):
    """A copy of that road to spoil."""
    root, tiny, args = road
    shutil.copytree(root, tmp_path / "copy")
    return folder(tmp_path / "copy", tiny), tiny, [*args[:-1], str(tmp_path / "copy")]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take longer than the tiny runs."""
    monkeypatch.setattr("dwlth.interface.commands._draw", lambda folder: [])


def test_the_whole_road(road):
    root, tiny, _ = road
    table = read_table(folder(root, tiny).table)
    assert table["stage"].value_counts().to_dict() == {"pretrain": 1, "imp": 3, "transfer": 3 * 2 * 2}
    assert table["sa"].between(0, 1).all() and table["ra"].between(0, 1).all()
    transfers = table[table["stage"] == "transfer"]
    columns = {by: [f"{m}_best_{by}" for m in ("sa", "ra", "val_sa", "epoch")] for by in ("sa", "ra")}
    adversarial = transfers["regime"] == "adversarial"
    assert transfers[columns["sa"]].notna().all(axis=None)
    assert transfers.loc[adversarial, [*columns["ra"], "val_ra_best_sa", "val_ra_best_ra"]].notna().all(axis=None)
    assert transfers.loc[~adversarial, columns["ra"]].isna().all(axis=None)  # it validates SA alone
    assert transfers.groupby("fraction")["n_train"].first().to_dict() == {0.01: 5, 1.0: 493}
    assert transfers.groupby("round")["sparsity"].first().to_dict() == pytest.approx(
        {0: 0, 2: 0.36, 3: 0.488}, abs=1e-3
    )
    for regime, by in (("standard", "sa"), ("adversarial", "ra")):
        shown = transfers[transfers["regime"] == regime]
        assert (shown["sa"] == shown[f"sa_best_{by}"]).all() and (shown["ra"] == shown[f"ra_best_{by}"]).all()
    assert {"curves-digits5-9-1.png", "curves-digits5-9-0.01.pdf", "double-wins-digits5-9.png"} <= {
        path.name for path in folder(root, tiny).figures.iterdir()
    }
    assert files.read_json(folder(root, tiny).path / "preset.json", "preset") == plain(tiny)


def test_a_record_says_all(road):
    root, tiny, _ = road
    run = next(run for run in tiny.grid() if run.stage == "transfer" and run.fraction == 0.01)
    run = replace(run, source="adversarial")
    record = json.loads(folder(root, tiny).record(run).read_text())
    assert record["config"] == tiny.config(run)
    assert record["config"]["transfer"]["attack"]["steps"] == 3 and record["config"]["evaluation"]["steps"] == 2
    assert len(record["result"]["indices"]) == 5 and len(record["result"]["history"]) == 2
    assert set(record["provenance"]) == set(PROVENANCE)
    assert record["provenance"]["torch"] == torch.__version__ and record["provenance"]["seconds"] > 0
    assert record["provenance"]["command"].startswith("python -m dwlth run digits --source adversarial --set ")
    assert str(root) not in json.dumps(record)


def test_tickets_are_rewound_nested_and_of_their_source(road):
    root, tiny, _ = road
    run = Run("imp", "adversarial", 0)
    source = load(folder(root, tiny), run)
    masks = [tickets.load(folder(root, tiny).ticket(replace(run, round=k)))[0] for k in (1, 2, 3)]
    for one, two in zip(masks, masks[1:]):
        assert all((two[name] <= one[name]).all() for name in one) and two.kept == one.kept - round(0.2 * one.kept)
    # ticket 1 is cut from the pre-trained weights, before any training
    weights = torch.cat([w.detach().abs().flatten() for w in prunable(source.net).values()])
    kept = torch.cat([mask.flatten() for mask in masks[0].values()])
    assert weights[~kept].max() <= weights[kept].min()
    # a transfer starts from exactly those weights, masked, with a new head
    from dwlth import data, transfer

    run = Run("transfer", "adversarial", 0, 3, downstream="digits5-9", regime="standard")
    model, mask = transfer.start(folder(root, tiny), run, data.load("digits5-9"))
    mask.apply_(model.net)
    for name, tensor in model.net.state_dict().items():
        expected = source.net.state_dict()[name]
        if name in mask:
            expected = expected * mask[name]
        assert torch.equal(tensor, expected) != name.startswith("fc."), name


def test_a_second_call_finds_everything_done(copy, capsys, monkeypatch):
    results, tiny, args = copy
    nothing = lambda *_, **__: pytest.fail("a run that is done was done again")
    for stage in grid.DO:
        monkeypatch.setitem(grid.DO, stage, nothing)
    before = results.table.read_bytes()
    assert main(["run", *args, *ONE]) == 0
    assert results.table.read_bytes() == before
    out = capsys.readouterr().out
    assert out.startswith("Done: 1 networks trained on digits0-4") and "curves-digits5-9-1.png" in out
    assert "Go on with: make lab (all numbers: " in out and f"--results {results.root}" in out


def test_the_table_alone_is_enough(copy, capsys, tmp_path):
    results, tiny, args = copy
    alone = tmp_path / "alone" / tiny.name
    alone.mkdir(parents=True)
    shutil.copy(results.table, alone / "table.csv")
    args = [*args[:-1], str(tmp_path / "alone")]
    assert main(["verdict", *args]) == 0 and main(["figures", *args]) == 0
    assert main(["run", *args, *ONE]) == 0  # runs in the table are done
    assert not (alone / "runs").exists()
    assert science(alone / "table.csv").equals(science(results.table))
    assert main(["run", *args, *ONE, "--set", "fractions=0.1"]) == 0  # what is missing is made, with what it needs
    assert len(read_table(alone / "table.csv")) == len(read_table(results.table)) + 6


def test_a_stale_record_of_other_settings_replaces_no_row(copy):
    results, _, _ = copy
    run = Run("imp", "adversarial", 0, 1)
    before = results.collect()
    record = files.read_json(results.record(run), "record")
    record["id"], record["result"]["sa"] = "0" * 12, 0.125
    record["config"]["prune_rate"] = 0.3  # another preset's number
    (results.path / "runs" / f"{'0' * 12}.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="1 rows or records are left out: they are of other settings"):
        assert results.collect().equals(before)
    results.table.unlink()
    with pytest.warns(UserWarning, match="1 rows or records are left out"):
        assert science_of(results.collect()).equals(science_of(before))


def test_another_seed_is_another_result(copy, undrawn):
    results, tiny, args = copy
    args = [arg.replace("seeds=1", "seeds=2") for arg in args]
    assert main(["run", *args, *ONE, "--stage", "pretrain"]) == 0
    table = read_table(results.table)
    one, two = (table[(table["stage"] == "pretrain") & (table["seed"] == seed)]["ra"].item() for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_it_goes_on(road, tmp_path, workers, undrawn):
    """SIGKILL at the writing of the first checkpoint of the pre-training, its source, its record, a ticket, during
    IMP, during transfers, and (with workers) at any time at all; then the end: the same table, bit for bit."""
    root, tiny, args = road
    args = ["run", *args[:-1], str(tmp_path), *ONE[:2], "--workers", str(workers), "--device", "cpu"]
    results = folder(tmp_path, tiny)
    if workers == 1:
        for writes in (2, 34, 2, 3, 20, 63):  # each of the 32 steps of a training writes one
            process = subprocess.run([sys.executable, "-c", KILLED, str(writes), *args], capture_output=True, text=True)
            assert process.returncode == -signal.SIGKILL, process.stderr
        assert list(results.path.rglob(".*.tmp"))  # it did die in the middle of writing
    else:
        for records in (1, 5):
            process = subprocess.Popen([sys.executable, "-m", "dwlth", *args], stderr=subprocess.DEVNULL)
            limit = time.time() + 120
            while len(list(results.path.glob("runs/*.json"))) < records:
                assert process.poll() is None and time.time() < limit
                time.sleep(0.02)
            process.kill()
            process.wait()
    assert not results.table.exists()
    assert main(args) == 0
    assert science(results.table).equals(science(folder(root, tiny).table))
    assert not list(results.path.glob("checkpoints/*.pt"))


def test_workers_end_with_their_parent(tmp_path):
    script = "import os, time; from dwlth.running import machine\nif __name__ == '__main__':\n"
    script += (
        " with machine.processes(1, 1) as pool: print(pool.submit(os.getpid).result(), flush=True); time.sleep(99)\n"
    )
    (tmp_path / "parent.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, env=environment
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
            with open(f"/proc/{worker}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent by ten seconds")


def test_minutes_stop_cleanly_and_go_on(road, tmp_path, tiny_args, undrawn, capsys):
    root, tiny, args = road
    args = ["run", *args[:-1], str(tmp_path), *ONE]
    codes = []  # and it is said each time that the same command goes on
    while not codes or codes[-1] == 3:
        assert len(codes) < 50
        codes.append(main([*args, "--minutes", "0.03"]))
    assert codes[-1] == 0 and len(codes) > 1
    assert capsys.readouterr().err.count("dwlth: out of time; the same command goes on from here\n") == len(codes) - 1
    assert science(folder(tmp_path, tiny).table).equals(science(folder(root, tiny).table))


def test_a_run_whose_loss_is_nan_is_recorded_and_the_others_go_on(road, tmp_path, capsys, undrawn):
    _, tiny, args = road
    args = ["run", *args[:-1], str(tmp_path), *ONE, "--set", "transfer.standard.lr=1e30"]
    assert main(args) == 1
    captured = capsys.readouterr()
    assert captured.err.count("failed: transfer adversarial to digits5-9 standard") == 6
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/runs/*.json")]
    failed = [record for record in records if record["status"] == "failed"]
    assert len(failed) == 6 and all("loss became nan" in record["result"]["error"] for record in failed)
    table = read_table(next(tmp_path.glob("*/table.csv")))
    assert len(table) == 1 + 3 + 12
    assert (table["status"] == "failed").equals(table["regime"] == "standard")
    assert table["sa"].isna().equals(table["status"] == "failed")
    assert captured.err.count("the loss became nan in epoch ") == 6
    assert "4 runs of tickets failed (diverged): each counts against its ticket" in captured.out
    assert "2 runs of dense networks failed (diverged): their seeds are left out" in captured.out


def test_what_needs_a_failed_run_is_blocked(tmp_path, road, capsys):
    _, tiny, args = road
    assert main(["run", *args[:-1], str(tmp_path), *ONE, "--set", "pretrain.lr=1e30"]) == 1
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/runs/*.json")]
    assert [record["status"] for record in records] == ["failed"]
    assert "1 runs failed, 15 runs blocked" in capsys.readouterr().out


SPOILED = pytest.mark.parametrize("content", [b"", b"{", None], ids=["empty", "foreign", "truncated"])


@SPOILED
@pytest.mark.parametrize("kind", ["source", "ticket", "record", "checkpoint"])
def test_a_file_that_is_not_what_it_should_be_is_set_aside(copy, content, kind, tiny, road, undrawn):
    results, _, args = copy
    transfer = Run("transfer", "adversarial", 0, 3, downstream="digits5-9", regime="standard")
    path = {
        "source": results.source(transfer),
        "ticket": results.ticket(transfer),
        "record": results.record(transfer),
        "checkpoint": results.checkpoint(transfer),
    }[kind]
    if kind == "checkpoint":
        torch.save({"net": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    results.table.unlink()
    if kind != "record":
        results.record(transfer).unlink()
    with pytest.warns(UserWarning, match=f"{path.name}: not a .*moved to {path.name}.bad"):
        assert main(["run", *args, *ONE]) == 0
    assert path.with_name(path.name + ".bad").exists()
    assert science(results.table).equals(science(folder(road[0], tiny).table))


def test_the_verdict_is_said_where_no_figure_can_be_written(copy, capsys, monkeypatch):
    _, _, args = copy

    def refuse(*_):
        raise OSError(30, "Read-only file system", "figures")

    monkeypatch.setattr("dwlth.interface.commands._draw", refuse)
    assert main(["run", *args, *ONE]) == 2
    said = capsys.readouterr()
    assert "Double-win tickets exist" in said.out and "read-only file system" in said.err.lower()


def test_a_damaged_file_costs_what_reads_it_alone(copy, capsys):
    results, _, args = copy
    path = results.source(Run("pretrain", "adversarial", 0))
    path.write_bytes(path.read_bytes()[:-9])
    (results.path / "audit.csv").write_text("hello\n")
    with pytest.warns(UserWarning) as said:
        assert main(["figures", *args]) == main(["verdict", *args]) == 0
    said = "\n".join(str(warning.message) for warning in said)
    assert re.search(f"no figure savings: .*{path.name}", said) and "no figure audit: " in said
    assert "the scoreboard leaves the audit out: " in said
    shown = capsys.readouterr().out
    assert "curves-digits5-9-1.png" in shown and "Double-win tickets exist" in shown


def test_a_ticket_of_other_weights_is_refused(copy, tiny, capsys, undrawn):
    results, _, args = copy
    run = Run("transfer", "adversarial", 0, 3, downstream="digits5-9", regime="standard")
    mask, about = tickets.load(results.ticket(run))
    about = {key: value for key, value in about.items() if key not in ("kind", "shapes", "sparsity")}
    tickets.save(results.ticket(run), mask, **about | {"belongs_to": "0123456789abcdef"})
    results.table.unlink()
    results.record(run).unlink()
    assert main(["run", *args, *ONE]) == 1
    why = f"failed: {run}: .*03.safetensors: a ticket of the weights 0123456789abcdef, but these"
    assert re.search(why, capsys.readouterr().err)
    table = results.collect()
    assert table["status"].value_counts().to_dict() == {"ok": 15}  # bad input says nothing of a ticket
    assert json.loads(results.record(run).read_text())["status"] == "refused"


def test_images_that_are_not_there_are_said_before_anything_is_done(tmp_path, capsys, tiny_args, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "file:///nowhere/cifar.tar.gz")
    args = ["run", "digits", *tiny_args, "--results", str(tmp_path), "--data", str(tmp_path), *ONE]
    assert main([*args, "--set", "downstream=folder:pets"]) == 2
    assert f"error: {tmp_path / 'pets'}: no such folder: put the images there" in capsys.readouterr().err
    assert main([*args, "--set", "upstream=imagenet"]) == 2
    assert f"error: {tmp_path / 'imagenet'}: no such folder: put the images there" in capsys.readouterr().err
    assert main([*args, "--set", "downstream=cifar10"]) == 2
    said = capsys.readouterr().err
    assert re.search("error: cifar10: .*data_batch_1 is not there.*: put cifar-10-batches-py/ of file:", said)
    assert not list(tmp_path.rglob("runs/*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "imagenet"], "unknown preset 'imagenet': choose from digits"),
        (["run", "digits", "--source", "robust"], "unknown source 'robust': choose from standard"),
        (["plan", "digits", "--stage", "train"], "unknown stage 'train': choose from pretrain, imp, transfer"),
        (["plan", "digits", "--stage", "connect"], "unknown stage 'connect': choose from pretrain, imp, transfer"),
        (["export", "digits", "x.pth.tar", "--source", "standard", "--round", "2"], "a small_resnet, which the public"),
        (["run", "digits", "--minutes", "0"], "--minutes 0: give a number above 0"),
        (["run", "digits", "--minutes", "nan"], "--minutes nan: give a number above 0"),
        (["run", "digits", "--workers", "0"], "workers is 0"),
        (["run", "digits", "--seeds", "0"], "seeds is 0"),
        (["run", "digits", "--device", "abacus"], " ...): give cpu, or cuda where torch finds a GPU"),
        (["run", "digits", "--device", "meta"], "device 'meta' (Cannot copy out of meta tensor"),  # computes nothing
        (["run", "digits", "--set", "prune_rate=-0.2"], "prune_rate is -0.2"),
        (["verdict", "digits", "--rule", "mean", "--tolerance", "-1"], "tolerance is -1.0: give points"),
        (["verdict", "digits", "--set", "seeds=2"], "no finished run yet; `python -m dwlth run digits --set seeds=2"),
        (["inspect", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, tmp_path, copy, monkeypatch, capsys):
    results, _, _ = copy
    monkeypatch.chdir(tmp_path)
    if "--tolerance" in words:
        (tmp_path / "results" / "digits").mkdir(parents=True)
        shutil.copy(results.table, tmp_path / "results" / "digits")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("dwlth: error: ") and err.count("\n") == 1


def test_results_that_cannot_be_written(road, tmp_path, capsys):
    _, _, args = road
    (tmp_path / "file").write_text("not a folder")
    assert main(["run", *args[:-1], str(tmp_path / "file"), *ONE]) == 2
    assert f"{tmp_path / 'file'}" in (said := capsys.readouterr().err) and "cannot be written (not a directory)" in said


def test_a_full_disk_loses_nothing(road, tmp_path, monkeypatch, capsys, undrawn):
    root, tiny, args = road
    args = ["run", *args[:-1], str(tmp_path), *ONE]
    save, left = files.save_file, [3]

    def full(tensors, path, about):
        left[0] -= 1
        if left[0] == 0:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        save(tensors, path, about)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        assert main(args) == 2
    assert "No space left on device" in capsys.readouterr().err
    results = folder(tmp_path, tiny)
    assert len(list(results.records())) == 2 and not list(results.path.rglob(".*.tmp"))
    assert main(args) == 0
    assert science(results.table).equals(science(folder(root, tiny).table))


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x00\x01"], ids=["empty", "foreign", "binary"])
def test_a_table_that_is_none(copy, content, capsys):
    results, _, args = copy
    results.table.write_text(content)
    assert main(["verdict", *args]) == 2
    assert f"{results.table}: not a table of results" in capsys.readouterr().err
    assert results.table.read_text() == content


@pytest.mark.parametrize("cut", [20, 200, 900])
def test_a_truncated_table(copy, capsys, cut):
    results, _, args = copy
    shutil.rmtree(results.path / "runs")
    results.table.write_bytes(results.table.read_bytes()[:-cut])
    assert main(["figures", *args]) == 2
    assert re.search(f"{results.table}: not a table of results, or a truncated one", capsys.readouterr().err)


def test_inspect_says_what_each_file_is(copy, tiny, capsys):
    results, _, args = copy
    run = Run("imp", "adversarial", 0)
    third = replace(run, round=3)
    for path, words in (
        (results.source(run), "the adversarial pre-training source, seed 0.* small_resnet .* 5 classes of digits0-4"),
        (
            results.ticket(third),
            r"ticket 3 of the adversarial source.* by imp.*sparsity of 48.80%.*belongs to",
        ),
        (results.record(run), "record of run .*, imp adversarial round 0 seed 0: ok, SA"),
        (results.table, r"a table of 16 finished runs \(12 transfer, 3 imp, 1 pretrain\), 1 seeds"),
    ):
        assert main(["inspect", str(path)]) == 0
        assert re.search(words, capsys.readouterr().out)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert main(["inspect", str(path)]) in ((0, 2) if path == results.table else (2,))
        capsys.readouterr()


def test_inspect_describes_folders_presets_and_the_papers_numbers(copy, capsys, tmp_path):
    results, tiny, _ = copy
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "train" / "cat" / "1.png").touch()
    for path, words in (
        (
            results.path,
            r"results of a preset: 16 records of runs, 1 sources, 3 tickets.*\n.*preset.json.*\n.*a table of",
        ),
        (results.path.parent, rf"results of 1 presets: {tiny.name}"),
        (results.path / "preset.json", rf"the numbers of the preset {tiny.name}: a small_resnet.*100, 1 % of the data"),
        ("results/paper.csv", "6 sparsest double-win tickets that the paper names: standard on CIFAR-10 89.26%"),
        (tmp_path / "images", "1 files in 1 classes"),
        ("results/digits/audit.csv", "an audit: 450 checks of 50 networks, of which 17 fail"),
        ("results/digits/claims.json", "what an audit found of 50 networks"),
    ):
        assert main(["inspect", str(path)]) == 0
        assert re.search(words, capsys.readouterr().out), path
    (tmp_path / "paper.csv").write_text(Path("results/paper.csv").read_text() + "standard,CIFAR-10,9,0.9,page 8,1\n")
    assert main(["inspect", str(tmp_path / "paper.csv")]) == 2
    assert "paper.csv: not tickets of the paper: " in capsys.readouterr().err
    (results.path / "preset.json").write_text('{"name": "x"}')
    assert main(["inspect", str(results.path / "preset.json")]) == 2
    assert main(["inspect", str(tmp_path / "images" / "train")]) == 2
    assert "neither a folder of results" in capsys.readouterr().err


def test_help_has_three_examples(capsys):
    for words in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        said = capsys.readouterr().out
        assert len(re.findall(r"^  python -m dwlth \w+ ", said.partition("Examples:")[2], re.M)) == 3


@pytest.mark.parametrize("ignored", [False, True], ids=["", "SIGINT ignored"])
def test_sigterm_says_what_sigint_says(road, tmp_path, ignored):
    """Workers are under way: what is done is in the table, what is left is said, and no semaphore is left."""
    _, tiny, args = road
    words = [sys.executable, "-m", "dwlth", "run", *args[:-1], str(tmp_path), "--workers", "2", "--device", "cpu"]
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=ignore)
    limit = time.time() + 240
    while not list(tmp_path.glob("*/runs/*.json")):
        assert process.poll() is None and time.time() < limit
        time.sleep(0.02)
    if ignored:
        process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert re.search(
        r"^dwlth: stopped by SIGTERM: \d+ of \d+ runs are left; the same command goes on from here$", said, re.M
    )
    assert "leaked" not in said and "Traceback" not in said and "\r" not in said
    assert len(read_table(folder(tmp_path, tiny).table)) >= 1


def test_plan_counts_what_is_left(copy, tiny, capsys):
    results, _, args = copy
    assert main(["plan", *args, *ONE]) == 0
    assert re.search(r"transfer\s+12\s+0", capsys.readouterr().out)
    results.table.unlink()
    results.record(Run("imp", "adversarial", 0, 1)).unlink()
    assert main(["plan", *args, *ONE]) == 0
    out = capsys.readouterr().out
    assert re.search(r"imp\s+2\s+1", out) and re.search(r"transfer\s+12\s+0", out) and "seconds left" in out


def test_the_core_imports_without_jupyter():
    script = "import sys, dwlth.__main__; sys.exit(any(name in sys.modules for name in ('IPython', 'ipywidgets')))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_two_at_once_lose_nothing(road, tmp_path):
    root, tiny, args = road
    words = ["run", *args[:-1], str(tmp_path), *ONE, "--set", "fractions=0.01"]
    both = [subprocess.Popen([sys.executable, "-m", "dwlth", *words], stderr=subprocess.PIPE, text=True) for _ in "ab"]
    for process in both:
        assert process.wait(timeout=300) == 0, process.stderr.read()
    expected = science(folder(root, tiny).table)
    expected = expected[(expected["stage"] != "transfer") | (expected["fraction"] == 0.01)].reset_index(drop=True)
    assert science(folder(tmp_path, tiny).table).equals(expected)


def test_a_signal_while_workers_start_is_a_stop(tiny_args, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        signal.raise_signal(signal.SIGUSR1)
        raise BrokenExecutor("a worker died")

    monkeypatch.setattr(grid, "run_all", broken)
    assert main(["run", "digits", *tiny_args, "--results", str(tmp_path), "--workers", "2"]) == 3
    assert "stopped by SIGUSR1" in capsys.readouterr().err


def test_a_world_size_without_a_rank_is_no_torchrun(tiny_args, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["plan", "digits", *tiny_args, "--results", str(tmp_path)]) == 0
