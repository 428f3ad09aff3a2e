"""A batch in parts: the same training in one process and in several."""

import copy
import math
import os
import socket
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from dwlth import data, masks, models, training
from dwlth.__main__ import main
from dwlth.attacks import Attack
from dwlth.data import Augment, Split, Streamed
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.fast import team
from dwlth.recipe import Recipe
from dwlth.results import read_table
from dwlth.running import distributed
from dwlth.running.settings import override
from dwlth.training import OutOfTime, fit, fit_members

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


def process(rank, port, folder):
    """One of four: every check that takes several, since to start them takes longer than the checks."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=4)
    teams, found = {size: distributed.Processes(list(range(size))) for size in (2, 4)}, {}
    distributed.files.writing = rank == 0

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


def test_parts_that_the_processes_cannot_share_are_refused(found):
    assert found[0]["parts"] == found[1]["parts"] == "recipe: parts is 3: give a multiple of 2, the number of processes"


def test_a_batch_with_fewer_images_than_parts(found):
    """The last batch has three images, so the fourth process has nothing to do."""
    agree(found[0]["few"], trained(replace(RECIPE, batch_size=490)), 1e-5)
