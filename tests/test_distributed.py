"""A batch in parts: the same training in one process and in several."""

import copy
import math
import os
import socket
import subprocess
import sys
import types
import weakref
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from dwlth import data, masks, models, presets, training
from dwlth.attacks import Attack
from dwlth.data import Augment, Split, Streamed
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.fast import team
from dwlth.outside import autoattack as under
from dwlth.recipe import Recipe
from dwlth.running import distributed
from dwlth.runs import Run
from dwlth.training import OutOfTime, fit

PGD = Attack(0.2, 0.1, 2, bn="train")
RECIPE = Recipe(
    epochs=2,
    batch_size=50,
    lr=0.05,
    augment=Augment("pad", padding=1),
    attack=PGD,
    validation=replace(PGD, bn="eval"),
    parts=4,
)
"""20 steps on the 493 images, the last of each epoch with 43, of which three parts have 11 and one has 10."""


def start(dtype=torch.float32):
    task = data.load("digits0-4")
    model = models.build("small_resnet", task.classes, task.mean, task.std, seed=0).to(dtype)
    return task, model, masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.5)


def science(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def trained(recipe, dtype=torch.float32, **options):
    """What a training leaves: weights, history, and SA and RA on the test images, in three batches."""
    task, model, mask = start(dtype)
    history = fit(model, recipe, task.train, task.val, seed=0, mask=mask, **options).history
    measured = evaluate(model, task.test, PGD, 0, batch_size=100), evaluate(model, task.test, PGD, 0, exact=True)
    more = evaluate(model, task.test, replace(PGD, restarts=2), 0, batch_size=100)
    return model.net.state_dict(), science(history), [*measured, more]


class Damaged(Split):
    """Images of which the third process cannot read the fifth batch."""

    def batches(self, size, generator=None, augment=None, **options):
        for number, batch in enumerate(super().batches(size, generator, augment, **options)):
            if number == 4 and team.current.rank == 2:
                raise DwlthError("7.png: not an image")
            yield batch


def damaged():
    task, model, _ = start()
    fit(model, RECIPE, Damaged(task.train.images, task.train.labels), task.val, seed=0)


class Steps:
    """A deadline that passes when it is asked for the so manyth time: after a step, or between epochs."""

    def __init__(self, left):
        self.left = left

    def __lt__(self, now):
        self.left -= 1
        return self.left == 0


def stopped(checkpoint, steps, dtype):
    task, model, mask = start(dtype)
    deadline = Steps(steps) if team.current.rank == 0 else math.nan  # the first process's clock is that of all
    with pytest.raises(OutOfTime):
        fit(model, RECIPE, task.train, task.val, seed=0, mask=mask, checkpoint=checkpoint, deadline=deadline)


def attacked(checkpoint):
    """AutoAttack, which is another attack here, for speed: stopped after the first of three batches, then to its end;
    and how often this process attacked."""
    task, model, mask = start()
    calls, run = [], Run("autoattack", "standard", 0, 1, "imp", "digits0-4", "adversarial", 1.0)
    here = types.SimpleNamespace(preset=presets.get("digits"), sample=lambda run: task.test)
    grey = lambda model, x, y, *args, **how: calls.append(len(y)) or torch.where((y > 1).view(-1, 1, 1, 1), x, 0.5)
    with ExitStack() as stack:
        stands_in = {"load": lambda *_: model.eval(), "autoattack": grey, "BATCH": 100}
        for name, value in stands_in.items():
            stack.enter_context(mock.patch.object(under, name, value))
        stack.enter_context(mock.patch.object(under.tickets, "find", lambda *_: mask))
        stack.enter_context(mock.patch.object(under.sources, "load", lambda *_: model))
        deadline = Steps(1) if team.current.rank == 0 else math.nan
        with pytest.raises(OutOfTime):
            under.under_autoattack(here, [run], checkpoint=checkpoint, deadline=deadline)
        (result,) = under.under_autoattack(here, [run], checkpoint=checkpoint)
    return result["sa"], result["ra"], calls


def process(rank, port, folder):
    """One of four: every check that takes several, since to start them takes longer than the checks."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=4)
    teams, found = {size: distributed.Processes(list(range(size))) for size in (2, 4)}, {}
    distributed.files.disk.writing = rank == 0

    def by(size, name, work):
        dist.barrier()
        if rank < size:
            team.current = teams[size]
            try:
                found[name] = team.current.attempt(work)
            except DwlthError as error:
                found[name] = str(error)
            team.current = team.Team()

    path = Path(folder, "stopped.pt")
    by(4, "float64", lambda: trained(RECIPE, torch.float64))
    by(2, "float32", lambda: trained(RECIPE))
    by(4, "damaged", damaged)
    by(4, "stopped", lambda: stopped(path, 17, torch.float64))
    by(2, "resumed", lambda: trained(RECIPE, torch.float64, checkpoint=path))
    by(2, "parts", lambda: trained(replace(RECIPE, parts=3)))
    by(4, "few", lambda: trained(replace(RECIPE, batch_size=490)))
    by(4, "same", lambda: team.current.same(lambda: [rank]))
    by(2, "attacked", lambda: attacked(path.with_name("attacked.pt")))
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.barrier()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the four processes found, by its number."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (port, str(folder)), nprocs=4)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(4)] + [
        torch.load(folder / "stopped.pt")
    ]


@pytest.fixture(scope="module")
def alone():
    """The same trainings in this process, by the type of their numbers."""
    return {dtype: trained(RECIPE, dtype) for dtype in (torch.float64, torch.float32)}


def agree(one, two, tolerance):
    (weights, history, measured), (others, its_history, its_measured) = one, two
    for name, tensor in weights.items():
        assert torch.allclose(tensor, others[name], rtol=0, atol=tolerance), name
    assert measured == its_measured
    for row, its in zip(history, its_history, strict=True):
        assert row == its | {"loss": pytest.approx(its["loss"], rel=1e-6)}  # a sum of float32


@pytest.mark.parametrize("dtype, size, tolerance", [(torch.float64, 4, 1e-9), (torch.float32, 2, 1e-5)])
def test_any_number_of_processes_trains_the_same_network(found, alone, dtype, size, tolerance):
    name = str(dtype).removeprefix("torch.")
    (sa, ra), *_ = alone[dtype][2]
    assert sa > 0.4 and 0 < ra < sa
    agree(found[0][name], alone[dtype], tolerance)
    for rank in range(1, size):  # the same in all of them, to the bit, but for counters that nothing reads
        for key, tensor in found[rank][name][0].items():
            assert "num_batches" in key or torch.equal(tensor, found[0][name][0][key])


def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch(found, alone):
    assert found[4]["within"]["step"] == 6 and len(found[4]["fits"][0]["history"]) == 1
    agree(found[0]["resumed"], alone[torch.float64], 1e-9)


def test_an_error_of_one_process_is_raised_in_all_and_they_go_on(found):
    assert [each["damaged"] for each in found[:4]] == ["process 2: 7.png: not an image"] * 4
    assert [each["same"] for each in found[:4]] == [[0]] * 4


def test_the_first_process_runs_autoattack_and_says_when_it_ends(found, tmp_path):
    sa, ra, calls = attacked(tmp_path / "attacked.pt")
    assert 0 < ra < sa and len(calls) == 3
    assert [each["attacked"] for each in found[:2]] == [(sa, ra, calls), (sa, ra, [])]


def test_parts_that_the_processes_cannot_share_are_refused(found):
    assert found[0]["parts"] == found[1]["parts"] == "recipe: parts is 3: give a multiple of 2, the number of processes"


def test_a_batch_with_fewer_images_than_parts(found):
    """The last batch has three images, so the fourth process has nothing to do."""
    agree(found[0]["few"], trained(replace(RECIPE, batch_size=490)), 1e-5)


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, parts=1, batch_size=100)], ids=["parts", "whole"])
def test_a_training_that_is_killed_within_an_epoch_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch):
    expected = trained(recipe)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    task, model, mask = start()
    steps, step = [], training._step

    def killed(*args):
        steps.append(args)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(*args)

    path = tmp_path / "run.pt"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_step", killed)
        fit(model, recipe, task.train, task.val, seed=0, mask=mask, checkpoint=path)
    assert training.read_checkpoint(path)["within"]["step"] == 2
    weights, history, measured = trained(recipe, checkpoint=path)
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in weights.items())
    assert (history, measured) == expected[1:]


def test_each_part_has_batch_norm_of_its_own_and_the_first_one_s_statistics_stay():
    """One step by hand: the same images, cut in two, each in a forward pass of its own."""
    task, model, _ = start(torch.float64)
    recipe = Recipe(1, 100, 0.1, attack=replace(PGD, random_start=False), parts=2)
    images = task.train.take(list(range(99)))
    expected = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(expected.parameters(), 0.1, 0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(training.stream(0, "train", 0))
    x, y = next(images.batches(100, generator))
    for part in (slice(50, 99), slice(0, 50)):
        before = copy.deepcopy(expected.state_dict())
        adv = recipe.attack(expected, x[part], y[part])
        torch.nn.functional.cross_entropy(expected(adv), y[part], reduction="sum").div(99).backward()
        if part.start:
            expected.load_state_dict(before)
    optimizer.step()
    fit(model, recipe, images, task.val, seed=0)
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name], rtol=0, atol=1e-8), name


def test_without_batch_norm_parts_change_nothing():
    """So the draws are those of the whole batch, and the gradient is that of its mean."""
    task = data.load("digits0-4")
    weights = []
    for parts in (1, 3):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net[1].reset_parameters()
        model = models.Classifier(net, task.mean, task.std).double()
        fit(model, replace(RECIPE, epochs=1, parts=parts, validation=Attack()), task.train, task.val, seed=0)
        weights.append(net[1].weight)
    assert torch.allclose(*weights, rtol=0, atol=1e-9)


def peak(parts):
    """The most bytes that a step holds for its backward passes at a time, but for the weights."""
    task, model, _ = start()
    live, most, weights = 0, 0, {weight.data_ptr() for weight in model.parameters()}

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor

    def pack(tensor):
        nonlocal live, most
        saved, size = Saved(tensor), tensor.nbytes * (tensor.data_ptr() not in weights)

        def gone():
            nonlocal live
            live -= size

        weakref.finalize(saved, gone)
        live += size
        most = max(most, live)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        fit(model, replace(RECIPE, epochs=1, batch_size=480, parts=parts), task.train, task.val, seed=0)
    return most


def test_a_step_in_eight_parts_takes_an_eighth_of_the_memory():
    whole, eighth = peak(1), peak(8)
    assert whole > 5e6 and eighth <= whole / 6


def test_networks_side_by_side_have_no_parts():
    from dwlth import presets
    from dwlth.running.settings import override

    task, model, _ = start()
    with pytest.raises(DwlthError, match="parts is 4: give 1 to networks side by side"):
        fit(model, RECIPE, task.train, task.val, seed=0, stacked=True)
    digits = override(presets.get("digits"), ["imp.parts=2"])
    run = next(run for run in digits.grid() if run.stage == "imp" and run.round == 1)
    assert not digits.stacks(run) and digits.stacks(replace(run, stage="pretrain", round=0))


def test_runs_that_the_processes_cannot_share_are_refused_before_any_begins(monkeypatch):
    from dwlth import presets

    paper = presets.get("paper")
    monkeypatch.setattr(team.current, "size", 4)
    distributed.check(paper, [run for run in paper.grid() if run.stage != "transfer"])
    monkeypatch.setattr(team.current, "size", 16)
    with pytest.raises(DwlthError, match="imp .*: its recipe has parts=8, which 16 processes cannot share"):
        distributed.check(paper, paper.grid())


def test_helpers_leave_signals_to_the_first_process():
    """A process of its own, which helps with nothing."""
    script = """
import signal
from types import SimpleNamespace
from dwlth.fast import team
from dwlth.running import distributed
team.current = SimpleNamespace(tell=lambda: None)
distributed._help()
names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
assert all(signal.getsignal(getattr(signal, name)) == signal.SIG_IGN for name in names)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_each_process_decodes_its_own_images(tmp_path, monkeypatch):
    from PIL import Image

    for number in range(14):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    paths = data.splits.np.array([str(path) for path in sorted(tmp_path.iterdir())])
    split = Streamed(paths, torch.arange(14), workers=0)
    read, reads = data.splits.read, []
    monkeypatch.setattr(data.splits, "read", lambda path: reads.append(path) or read(path))
    recipe = Recipe(1, 6, 0.1, augment=Augment("resized", size=4, resize=4), parts=4)

    def batches(rank, size):
        monkeypatch.setattr(team.current, "rank", rank)
        monkeypatch.setattr(team.current, "size", size)
        reads.clear()
        return list(training._batches(recipe, [split], [torch.Generator().manual_seed(0)], 0, [None])), {*reads}

    whole, everything = batches(0, 1)
    assert len(everything) == 14 and [len(y) for _, y in whole] == [6, 6, 2]
    shares = [batches(rank, 4) for rank in range(4)]
    assert sum(len(own) for _, own in shares) == 14
    for number, batch in enumerate(whole):
        for together, pieces in zip(batch, zip(*(own[number] for own, _ in shares))):
            assert torch.equal(together, torch.cat(pieces))


def test_torchrun_gives_the_table_of_one_process(tmp_path, tiny_args, monkeypatch):
    from test_command_line import PROVENANCE

    from dwlth.interface.commands import main
    from dwlth.results import read_table

    settings = ["pretrain.parts=2", "imp.parts=2", "transfer.parts=2", "pretrain.epochs=1", "imp.epochs=1"]
    settings += ["transfer.epochs=1", "rounds=2", "fractions=0.2", "transfer.batch_size=64"]
    args = ["run", "digits", *tiny_args, *[word for setting in settings for word in ("--set", setting)]]
    args += ["--source", "adversarial", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dwlth"]
    ran = subprocess.run([*torchrun, *args, "--results", str(tmp_path / "two")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("runs ok") == 1
    monkeypatch.setattr("dwlth.interface.commands._draw", lambda folder: [])
    assert main([*args, "--results", str(tmp_path / "one"), "--workers", "1"]) == 0
    tables = [read_table(next((tmp_path / name).glob("*/table.csv"))) for name in ("one", "two")]
    assert "processes" not in tables[0] and (tables[1].pop("processes") == 2).all()
    one, two = (table.drop(columns=PROVENANCE) for table in tables)
    assert one.equals(two) and len(one) == 1 + 2 + 2
