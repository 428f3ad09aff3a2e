"""The grid on a Dask cluster: a scheduler and workers of their own, on this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pandas as pd
import pytest

import dwlth
from dwlth.errors import DwlthError
from dwlth.results import Folder, read_table
from dwlth.running import cluster, grid, machine
from dwlth.running.grid import left, run_all, run_grid
from dwlth.runs import Run
from dwlth.training import STOP

pytest.importorskip("distributed", reason="needs the extra `cluster`")
ROOT = Path(__file__).resolve().parents[1]
MEASURED = ["id", "sa", "ra", "sparsity"]


@pytest.fixture
def small(tiny):
    few = replace(tiny, rounds=(0, 2), fractions=(1.0,), together=1)
    return replace(few, pretrain={k: few.pretrain[k] for k in ("standard", "fast_adversarial")})


def children(of: subprocess.Popen) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(of.pid)], capture_output=True, text=True).stdout
    return list(map(int, found.split()))


class Cluster:
    """A scheduler at a fixed port, and workers with nannies."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.folder, self.started = f"tcp://127.0.0.1:{self.port}", folder, []
        self.scheduler = self.start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-show")

    def start(self, program: str, *args: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard", *args]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with (self.folder / "cluster.log").open("a") as log:
            ran = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": paths}
            )
        self.started.append(ran)
        return ran

    def worker(self, threads: int = 1) -> subprocess.Popen:
        return self.start("dask_worker", self.address, "--nthreads", str(threads), "--no-dashboard")

    def stop(self) -> None:
        for ran in self.started:
            for pid in (*children(ran), ran.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ran.wait()


@pytest.fixture
def own(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.stop()


def measured(folder: Folder) -> pd.DataFrame:
    return folder.collect()[MEASURED].sort_values("id").reset_index(drop=True)


def test_a_cluster_gives_the_table_of_one_process_and_survives_its_losses(small, own, tmp_path, monkeypatch):
    there, here = Folder(small, tmp_path / "there"), Folder(small, tmp_path / "here")
    first, second = own.worker(), own.worker()
    runs = left(there, small.grid())
    losses = []

    def lose_a_worker():
        for child in children(first):
            os.kill(child, signal.SIGKILL)

    def lose_a_nanny():
        second.kill()

    def lose_the_scheduler():
        own.scheduler.kill()
        own.scheduler.wait()
        own.start("dask_scheduler", "--host", "127.0.0.1", "--port", str(own.port), "--no-show")
        own.worker()

    plan = {2: lose_a_worker, 5: lose_a_nanny, 8: lose_the_scheduler}

    def passes(folder, run):  # run_all calls it as runs end
        done = len(list((there.path / "runs").glob("*.json")))
        for at in [at for at in plan if at <= done][:1]:
            losses.append(plan.pop(at))
            losses[-1]()
        return 1

    monkeypatch.setattr(grid, "passes", passes)
    ends = run_all(there, runs, scheduler=own.address, command="test")
    assert len(losses) == 3
    assert set(ends.values()) == {"ok"} and len(ends) == len(runs)
    run_all(here, left(here, small.grid()), command="test")
    pd.testing.assert_frame_equal(measured(there), measured(here))
    assert len(read_table(there.table)) == len(runs)


def test_a_stopped_command_stops_its_trainings_and_no_others(small, own, tmp_path):
    endless = replace(small.pretrain["standard"], epochs=10_000)
    folder = Folder(replace(small, pretrain={"standard": endless}), tmp_path / "endless")
    (run, *_) = folder.preset.grid()
    own.worker()

    def stop():
        while not folder.checkpoint(run).parent.exists():  # its training begins
            time.sleep(0.1)
        STOP.set()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert run_all(folder, [run], scheduler=own.address) == {run: "stopped"}
    finally:
        thread.join()
        STOP.clear()
    assert folder.checkpoint(run).exists() and not folder.record(run).exists()
    folder = Folder(small, tmp_path / "another")
    assert run_all(folder, [run], scheduler=own.address) == {run: "ok"}


EPOCHS, RUNS, TRIALS = 24, 6, 3
"""Of the throughput: a run takes some seconds, of which its start is little."""


@pytest.mark.slow
@pytest.mark.skipif(machine._cores() < 2, reason="needs two cores")
def test_two_workers_have_nearly_twice_the_throughput_of_one(tiny, own, tmp_path):
    """Independent trainings of equal length. The first trial of each worker holds its start; the medians do not."""
    from distributed import Client

    recipe = replace(tiny.pretrain["adversarial"], epochs=EPOCHS, validate_every=EPOCHS)
    preset = replace(tiny, pretrain={"adversarial": recipe}, seeds=RUNS, together=1)
    runs = [run for run in preset.grid() if run.stage == "pretrain"]
    rates, tables = {}, []
    for workers in (1, 2):
        own.worker()
        with Client(own.address, set_as_default=False) as client:
            client.wait_for_workers(workers, 120)
        trials = []
        for trial in range(TRIALS):
            folder = Folder(preset, tmp_path / f"{workers}-{trial}")
            assert set(run_all(folder, runs, scheduler=own.address, command="test").values()) == {"ok"}
            tables.append(measured(folder))
            ends = [folder.record(run).stat().st_mtime for run in runs]
            starts = [end - folder.seconds()[preset.run_id(run)] for run, end in zip(runs, ends)]
            trials.append(len(runs) / (max(ends) - min(starts)))
        rates[workers] = median(trials)
        print(f"{workers} workers: {', '.join(f'{rate:.3f}' for rate in trials)} runs a second")
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    print(f"two workers have {rates[2] / rates[1]:.2f} times the throughput of one")
    assert rates[2] >= 1.7 * rates[1]


def test_bad_clusters_are_named(small, own, tmp_path):
    folder, runs = Folder(small, tmp_path), small.grid()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    cluster.PATIENCE, before = 2.0, cluster.PATIENCE
    try:
        with pytest.raises(DwlthError, match=f"--scheduler {nobody}: no scheduler answers"):
            run_all(folder, runs, scheduler=nobody)
        began = time.monotonic()
        with pytest.raises(DwlthError, match="--scheduler nope: no scheduler answers there .missing port number"):
            run_all(folder, runs, scheduler="nope")
        for content in ("", "{}", "[]", "# README"):
            (file := tmp_path / "scheduler.json").write_text(content)
            with pytest.raises(DwlthError, match=f"--scheduler {file}: not a file that a Dask scheduler wrote"):
                run_all(folder, runs, scheduler=str(file))
        file.write_text(json.dumps({"address": nobody}))
        with pytest.raises(DwlthError, match=f"--scheduler {file}: no scheduler answers"):
            run_all(folder, runs, scheduler=str(file))
        assert time.monotonic() - began < 20
        with pytest.raises(DwlthError, match=f"--scheduler {own.address}: it has no worker"):
            run_all(folder, runs, scheduler=own.address)
    finally:
        cluster.PATIENCE = before
    own.worker(threads=2)
    with pytest.raises(DwlthError, match="has 2 threads: start it with --nthreads 1"):
        run_all(folder, runs, scheduler=own.address)
    assert not list(folder.path.glob("runs/*"))


def test_a_worker_says_what_it_lacks(tmp_path):
    class Worker:
        class state:
            nthreads = 1

    token = tmp_path / "token"
    assert "does not see the results folder" in cluster._fault(token, None, "cpu", dwlth.__version__, Worker)
    token.touch()
    assert cluster._fault(token, None, "cpu", dwlth.__version__, Worker) is None
    assert "does not see the data folder" in cluster._fault(token, tmp_path / "d", "cpu", dwlth.__version__, Worker)
    assert "has version" in cluster._fault(token, None, "cpu", "0.0", Worker)
    for device in ("cuda:99", "meta"):
        assert f"has no device '{device}'" in cluster._fault(token, None, device, dwlth.__version__, Worker)


def test_a_lost_worker_is_a_retry_and_then_a_status():
    class Lost(Exception):
        pass

    class Pool:
        def __init__(self, failures):
            self.failures = failures

        def submit(self, work, unit):
            future = Future()
            if self.failures > 0:
                self.failures -= 1
                future.set_exception(Lost())
            else:
                future.set_result(work(unit))
            return future

    run = Run("pretrain", "standard", 0)
    needs_it = Run("imp", "standard", 0)
    grid_ = partial(run_grid, [(run,), (needs_it,)], lambda unit: ["ok"], slots=lambda: 2, progress=False, lost=(Lost,))
    with pytest.warns(UserWarning, match="the worker of pretrain standard seed 0 was lost"):
        assert grid_(executor=Pool(grid.TRIES - 1)) == {run: "ok", needs_it: "ok"}
    with pytest.warns(UserWarning, match="was lost"):
        assert grid_(executor=Pool(grid.TRIES)) == {run: "lost", needs_it: "blocked"}
