"""What runs cost: the shares of a progress bar, and estimates of time."""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dwlth import data, models, presets, sources
from dwlth.attacks import Attack
from dwlth.evaluation import evaluate
from dwlth.results import Folder
from dwlth.running import cost, grid, machine, progress
from dwlth.running.cost import passes
from dwlth.runs import Run
from dwlth.training import fit_members

ROOT = Path(__file__).parents[1]
SMALL = Folder(presets.get("cifar-small"))
DENSE = Run("transfer", "adversarial", 0, downstream="cifar10", regime="adversarial", fraction=1.0)


def test_passes_count_training_validation_and_test():
    recipe = SMALL.preset.recipe(DENSE)
    assert (recipe.epochs, recipe.attack.steps, recipe.validation.steps) == (12, 10, 20)
    attacked = 0.5 + cost.ATTACKED["adversarial"] * 20  # passes of an image of a test
    training, validations, tests = 12 * 45_000 * 11.5, 2 * 5_000 * attacked, 2 * 10_000 * attacked
    assert passes(SMALL, DENSE) == pytest.approx(training + validations + tests, rel=0.01)
    tenth = passes(SMALL, replace(DENSE, fraction=0.1))
    assert tenth == pytest.approx(training / 10 + validations + tests, rel=0.01)


def test_a_batch_in_parts_is_timed_a_part_at_a_time():
    paper = Folder(presets.get("paper"))
    run = Run("imp", "adversarial", 0, 1)
    needs = cost._needs(paper, run, data.blank, {}, 1)
    ((kind, times),) = ((kind, times) for kind, times in needs.items() if kind.members)
    recipe = paper.preset.recipe(run)
    assert kind.images == 256 and recipe.parts == 8
    assert times * kind.images == pytest.approx(recipe.epochs * 1_281_167, rel=1e-3)


def test_autoattack_is_a_large_part_of_a_bar():
    run = replace(DENSE, stage="autoattack", fraction=0.1)
    assert 2 < passes(SMALL, run) / passes(SMALL, replace(DENSE, fraction=0.1)) < 4
    assert passes(SMALL, run) == cost.AUTOATTACK * SMALL.preset.autoattack_images  # it trains nothing


def test_the_first_round_of_imp_trains_nothing():
    assert passes(SMALL, Run("imp", "adversarial", 0, 0)) == 10_000 * 10.5
    assert passes(SMALL, Run("imp", "adversarial", 0, 1)) > 2 * 45_000 * 4


def test_the_bar_of_a_grid_goes_by_weight_and_is_plain_lines_in_a_log(capsys):
    cheap, dear = Run("pretrain", "standard", 0), Run("pretrain", "adversarial", 0)
    many = [Run("pretrain", "standard", seed) for seed in range(1, 60)]
    weight = lambda run: {cheap: 15, dear: 26}.get(run, 1)
    grid.run_grid([(cheap,), (dear,), *((run,) for run in many)], lambda unit: ["ok"], weight=weight)
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert lines[0] == f"  0 %, 0 seconds so far, under way: {cheap}"
    assert lines[1].startswith(" 15 %, 1 of 61 runs") and lines[2].startswith(" 41 %, 2 of 61 runs")
    assert [int(line.split(" %")[0]) for line in lines[3:]] == [*range(45, 101, 5)]
    assert "61 of 61 runs" in lines[-1] and "left" in lines[-2] and "\r" not in said


def test_what_was_stopped_is_not_counted(capsys):
    units = [(Run("pretrain", "standard", seed),) for seed in range(4)]
    statuses = grid.run_grid(units, lambda unit: ["stopped" if unit[0].seed > 1 else "ok"])
    lines = capsys.readouterr().err.splitlines()
    assert [line[:16] for line in lines[1:]] == [" 25 %, 1 of 4 ru", " 50 %, 2 of 4 ru"]
    assert list(statuses.values()) == ["ok", "ok", "stopped", "stopped"]


@pytest.mark.parametrize("log", [True, False])
def test_a_run_that_takes_long_is_heard_of_while_it_is_under_way(log, capsys, monkeypatch):
    monkeypatch.setattr(progress, "in_log", lambda: log)
    monkeypatch.setattr(progress, "QUIET", 0.1)
    monkeypatch.setattr(grid, "REFRESH", 0.05)
    with ThreadPoolExecutor(1) as pool:
        grid.run_grid([(DENSE,)], lambda unit: time.sleep(1.5) or ["ok"], pool)
    said = capsys.readouterr().err
    if log:
        lines = [line for line in said.splitlines() if line.endswith(f"under way: {DENSE}")]
        assert len(lines) > 3 and re.match(r"  0 %, [1-9]\d* seconds so far, under way", lines[-1])
    else:
        assert re.search(r" 0%.*\[00:01<", said)


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress, "in_log", lambda: False)
    grid.run_grid([(DENSE,)], lambda unit: ["ok"])
    assert "100%|" in capsys.readouterr().err


def test_a_task_may_have_fewer_images_than_another_of_its_size():
    digits = data.load("digits0-4")
    few = replace(digits, train=digits.train.take([0, 1, 2]), test=digits.test.take([0, 1]))
    build = lambda member: models.build("small_resnet", 5, digits.mean, digits.std, member)
    for members in (0, 1):
        kind = cost.Kind("digits0-4", Attack(), None, "float32", 8, members)
        assert len(cost._times("cpu", few, kind, build, 1, math.inf)) == 1


def test_durations_in_words():
    said = {
        30: "30 seconds",
        600: "10.0 minutes",
        7200: "2.0 hours",
        86_400 * 30: "30 days",
        86_400 * 36_021: "99 years",
    }
    assert {seconds: progress.duration(seconds) for seconds in said} == said


class Clock:
    """Time that passes only in training and tests: `start` seconds for each start, `each` for each pass of an image,
    and `cold` for the first step of all."""

    def __init__(self, start, each, cold=0.0):
        self.now, self.start, self.each, self.cold, self.kinds = 0.0, start, each, cold, []

    def monotonic(self):
        return self.now

    def times(self, device, task, kind, build, most, until):
        self.kinds.append(kind)
        took = []
        while len(took) < 2 or (len(took) < most and self.now < until):
            took.append(kind.passes / kind.images * (self.start + self.each * kind.images) * max(1, kind.members))
            self.now += took[-1] + self.cold
            self.cold = 0.0
        return took[1:]


@pytest.fixture
def clock(monkeypatch):
    def of(*times):
        clock = Clock(*times)
        monkeypatch.setattr(cost, "time", clock)
        monkeypatch.setattr(cost, "_times", clock.times)
        return clock

    return of


@pytest.mark.parametrize("start, each", [(1e-3, 1e-5), (1e-2, 1e-2), (0.0, 1.0)], ids=["small", "middle", "large"])
def test_an_estimate_ends_after_ten_seconds_and_is_right(clock, start, each):
    """On a machine where a pass through the network takes `start`, and `each` for each image, whatever the network."""
    for name in ("digits", "cifar-small", "paper"):
        preset = presets.get(name)
        if name == "digits":
            preset = replace(preset, seeds=1)
        folder, now = Folder(preset), clock(start, each)
        found = cost.estimate(folder, preset.grid())
        smallest = 2 * 2.5 * (start + each * 2) * preset.together  # where one is late, each other kind is not timed
        assert now.now <= cost.SECONDS + smallest
        needs = {
            run: cost._needs(folder, run, lambda name: data.blank(name) or data.load(name), {}, 1) for run in found
        }
        right = {
            run: sum(n * kind.passes / kind.images * (start + each * kind.images) for kind, n in kinds.items())
            for run, kinds in needs.items()
        }
        assert sum(found.values()) == pytest.approx(sum(right.values()), rel=0.5)


def test_the_first_step_of_a_process_may_take_long(clock):
    """It once used up what was for the dearest kind, which was then judged by two images: an estimate 20 times too
    high."""
    folder = Folder(presets.get("digits"))
    clock(2e-3, 1e-5)
    warm = sum(cost.estimate(folder, folder.preset.grid()).values())
    now = clock(2e-3, 1e-5, 5.0)
    assert sum(cost.estimate(folder, folder.preset.grid()).values()) == pytest.approx(warm, rel=0.2)
    assert now.now < cost.SECONDS + 1


def test_kinds_with_most_passes_are_timed_and_small_steps_first(clock):
    now = clock(0.0, 1.0)
    cost.estimate(Folder(presets.get("paper")), presets.get("paper").grid())
    assert now.kinds[1].images == 2 and now.kinds[1].attack.steps == 1 and now.kinds[1].members == 1


def test_an_estimate_computes_on_one_thread_for_a_small_network(monkeypatch, tiny):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_cores", lambda: 4)
    seen, own = [], cost._times
    monkeypatch.setattr(cost, "SECONDS", 0.01)
    monkeypatch.setattr(cost, "_times", lambda *args: seen.append(torch.get_num_threads()) or own(*args))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grid.plan(Folder(tiny, "nowhere"), tiny.grid()[:1])
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_experiment_chooses_the_threads_of_its_process(monkeypatch):
    from dwlth.interface.experiment import Experiment

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_cores", lambda: 2)
    before = torch.get_num_threads()
    try:
        for name, threads in (("paper", 2), ("digits", 1), ("cifar-small", 1), ("cifar", 2)):
            Experiment(name, device="cpu")
            assert torch.get_num_threads() == threads, name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("source", ["standard", "adversarial"])
def test_a_test_attacks_about_as_many_images_as_is_estimated(source):
    folder = Folder(presets.get("digits"), ROOT / "results")
    model = sources.load(folder, Run("pretrain", source, 0))
    test, attack, images = folder.dataset("digits0-4", 0).test, folder.preset.evaluation, []
    model.register_forward_hook(lambda module, inputs, output: images.append(len(output)))
    evaluate(model, test, attack, 0)
    assert 0.5 < sum(images) / (len(test) * (1 + attack.steps)) / cost.ATTACKED[source] <= 2.1


@pytest.mark.parametrize("regime", ["standard", "adversarial"])
def test_the_estimate_of_a_run_is_near_its_cost(tiny, tmp_path, monkeypatch, regime):
    """In time of this process, which a busy machine changes little, and the median of three; only what an estimate can
    know is compared: the training and the tests."""
    monkeypatch.setattr(cost, "time", SimpleNamespace(monotonic=time.process_time))
    monkeypatch.setattr("dwlth.training.time", SimpleNamespace(time=time.time, monotonic=time.process_time))
    preset = presets.get("digits")
    recipe, steps = preset.transfer[regime], replace(preset.transfer[regime], epochs=2, validation=Attack())
    preset = replace(preset, transfer={**preset.transfer, regime: steps}, evaluation=Attack())
    (run,) = [run for run in preset.grid() if run.regime == regime and run.fraction == 1 and run.source == "standard"][
        :1
    ]
    task = data.load("digits5-9")
    nets = [models.build(preset.network, task.classes, task.mean, task.std, seed=0) for _ in range(10)]
    ratios = []
    with machine.torch_threads(1):
        alike = [replace(run, seed=seed) for seed in range(10)]
        for _ in range(3):
            estimate = cost.estimate(Folder(preset, tmp_path), alike)[run]
            began = time.process_time()
            fit_members(nets, steps, [task.train] * 10, [task.val] * 10, seeds=[0] * 10, stacked=True)
            ratios.append(10 * estimate / (time.process_time() - began))
    assert 1 / 1.5 < sorted(ratios)[1] < 1.5 and recipe.epochs > 2
