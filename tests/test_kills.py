"""Sudden ends and asked-for ones: at whichever moment, the same command goes on, to the same table, bit for bit."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import dwlth.interface.commands
from dwlth import presets, training
from dwlth.errors import NotYet
from dwlth.interface.commands import main
from dwlth.recipe import Recipe
from dwlth.results import Folder, read_table
from dwlth.running import grid
from dwlth.running.settings import override
from dwlth.runs import Run

GRID = [
    *(f"{stage}.epochs=2" for stage in ("pretrain", "imp", "transfer")),
    *(f"{stage}.validate_every=1" for stage in ("pretrain", "transfer")),
    *("transfer.adversarial.attack.steps=1", "transfer.adversarial.validation.steps=1", "evaluation.steps=1"),
    *("rounds=0,2", "fractions=0.1", "seeds=1"),
]
SCIENCE = ["id", "status", "sparsity", "n_train", "sa", "ra", "sa_best_sa", "ra_best_sa", "val_sa_best_sa"]


def words(root, workers=1):
    settings = [word for setting in GRID for word in ("--set", setting)]
    where = ["--results", str(root), "--workers", str(workers), "--device", "cpu"]
    return ["run", "digits", "--source", "standard", *settings, *where]


def folder(root):
    return Folder(override(presets.get("digits"), GRID), root)


def science(root):
    """The table as it is on disk, without what says when, where and how long."""
    return read_table(folder(root).table)[SCIENCE]


def forked(target, *args):
    """A process that has everything imported; it does not return from `target`."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def quietly(args):
    """The command, with a checkpoint after each epoch and no figures; ends this process."""
    training.CHECKPOINT_SECONDS = 0.0
    dwlth.interface.commands._draw = lambda folder: []
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os._exit(main(args))


def collect_for_ever(root):
    while True:
        with contextlib.suppress(NotYet):
            folder(root).collect()
        time.sleep(0.05)


def kill_at_random(root, count, workers, draw):
    """So many kills; whenever the grid comes to its end in between, its table is compared, and it begins anew."""
    whole, place = root / "whole", root / "killed"
    began = time.monotonic()
    first = forked(quietly, words(whole, workers))
    first.join()
    assert first.exitcode == 0
    took, killed, ends = time.monotonic() - began, 0, 0
    while killed < count or ends == 0:
        process = forked(quietly, words(place, workers))
        process.join(draw.uniform(0, took) if killed < count else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            continue
        assert process.exitcode == 0
        assert science(place).equals(science(whole)), f"after {killed} kills"
        assert not list(place.rglob("*.tmp")) and not list(place.rglob("*.bad"))
        assert not list(place.rglob("*.pt"))
        shutil.rmtree(place)
        ends += 1
    return killed, ends


def together(root, grids, collectors):
    """So many grids and collectors on one folder at once."""
    processes = [forked(quietly, words(root)) for _ in range(grids)]
    others = [forked(collect_for_ever, root) for _ in range(collectors)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * grids
    for other in others:
        assert other.exitcode is None  # none has fallen over
        other.kill()
        other.join()


def in_a_fresh_process(*args):
    """This file as a program: it forks before torch has begun any thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_four_kills_and_a_crowd(tmp_path):
    said = in_a_fresh_process(tmp_path, 4, 1)
    assert said.startswith("4 kills") and "2 grids and 4 collectors: the same table" in said


@pytest.mark.slow
@pytest.mark.parametrize("workers, kills", [(1, 60), (2, 40)])
def test_a_hundred_kills(tmp_path, workers, kills):
    assert in_a_fresh_process(tmp_path, kills, workers).startswith(f"{kills} kills")


@pytest.fixture(autouse=True)
def heard():
    """SIGINT has its usual handler, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send_in_the_first_epoch(monkeypatch, *numbers):
    """Signals in the middle of the first epoch of IMP."""
    train, left = training._train_epoch, list(numbers)

    def epoch(model, recipe, trains, optimizer, epoch, seeds, *rest):
        if left and seeds[0] != grid_seed("pretrain"):
            number = left.pop(0)
            os.kill(os.getpid(), number)
        return train(model, recipe, trains, optimizer, epoch, seeds, *rest)

    monkeypatch.setattr(training, "_train_epoch", epoch)


def grid_seed(stage):
    from dwlth.runs import stream

    return stream(0, stage)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 3)])
def test_a_signal_finishes_the_step_saves_and_says_what_is_left(name, code, tmp_path, monkeypatch, capfd):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    monkeypatch.setattr(dwlth.interface.commands, "_draw", lambda folder: [])
    before = signal.getsignal(getattr(signal, name))
    send_in_the_first_epoch(monkeypatch, getattr(signal, name))
    args = [*words(tmp_path), "--stage", "pretrain", "--stage", "imp"]
    assert main(args) == code
    said = capfd.readouterr().err
    assert f"{name}: what is under way is finished and saved" in said
    assert f"dwlth: stopped by {name}: 1 of 3 runs are left; the same command goes on from here" in said
    (checkpoint,) = folder(tmp_path).path.glob("checkpoints/*.pt")
    state = training.read_checkpoint(checkpoint)
    assert state["fits"][0]["history"] == [] and state["within"]["step"] == 1
    assert signal.getsignal(getattr(signal, name)) == before and not training.STOP.is_set()
    assert main(args) == 0 and not checkpoint.exists()
    run = Run("imp", "standard", 0, 1)
    assert [row["epoch"] for row in grid.results.read_record(folder(tmp_path).record(run))["result"]["history"]] == [
        0,
        1,
    ]


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch, capfd):
    from dwlth.running import machine

    with pytest.raises(KeyboardInterrupt), machine.stopping() as came:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # `timeout` sends each twice
        time.sleep(0.05)
        assert came == ["SIGTERM"] and training.STOP.is_set()
        for _ in range(4):  # one who presses again and again is heard
            time.sleep(0.4)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert came == ["SIGTERM", "SIGINT"] and not training.STOP.is_set()


@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 3)])
@pytest.mark.parametrize("group", [False, True], ids=["parent alone", "whole group"])
def test_workers_stop_with_their_parent_after_their_epoch(name, code, group, tmp_path):
    """A terminal and SLURM send a signal to all processes, `kill` to one."""
    script = f"import sys; sys.argv[0] = {__file__!r}; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    script += f"import test_kills\nif __name__ == '__main__': test_kills.quietly({words(tmp_path, 2)!r})\n"
    (tmp_path / "program.py").write_text(script)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"], start_new_session=True, env=environment)
    limit = time.monotonic() + 200
    while len(list(tmp_path.glob("*/runs/*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, getattr(signal, name))
    assert process.wait(100) in (code, 0)
    assert not list(tmp_path.rglob("*.tmp"))  # nobody died in the middle of writing


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_runs(tmp_path):
    said = in_a_fresh_process(tmp_path, "memory", 1000)
    after_some, at_the_end = map(int, said.split())
    assert at_the_end < 1.05 * after_some, said


def memory(root, count):
    """Do so many short runs in this process; prints the memory held after a fifth of them and at the end, in KiB."""
    short = Recipe(1, 32, 0.1)
    preset = replace(presets.get("digits"), pretrain={"standard": short}, imp={"standard": short}, seeds=1)
    preset = replace(preset, transfer={"standard": short}, rounds=(0,), fractions=(0.01,), per_source=count, together=1)
    place = Folder(replace(preset, splits="fixed", keep_networks=True), root)
    grid.run_all(place, [Run("pretrain", "standard", 0)])
    held = []
    for part in range(5):
        seeds = range(part * count // 5, (part + 1) * count // 5)
        runs = [Run("transfer", "standard", seed, 0, "imp", "digits5-9", "standard", 0.01, 0) for seed in seeds]
        assert set(grid.run_all(place, runs).values()) == {"ok"}
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024)
    print(held[0], held[-1])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if sys.argv[2] == "memory":
        memory(root, int(sys.argv[3]))
    else:
        killed, ends = kill_at_random(root, int(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[2])))
        print(f"{killed} kills, {ends} ends, each with the same table", flush=True)
        if int(sys.argv[3]) == 1:
            together(root / "crowd", 2, 4)
            assert science(root / "crowd").equals(science(root / "whole"))
            print("2 grids and 4 collectors: the same table")
