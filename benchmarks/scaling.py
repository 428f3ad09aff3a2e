"""What the preset `paper` costs, and how its grid would run on many GPUs: counted operations, not a measurement.

    python benchmarks/scaling.py

It prints the tables of docs/scaling.md, in some seconds on one core. No GPU was used. The peaks are those of the
maker's data sheet. The share of them that is reached (`REACHED`) is an assumption.
"""

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from dwlth import models
from dwlth.presets import PRESETS
from dwlth.presets.preset import Preset
from dwlth.recipe import Given, Recipe
from dwlth.runs import Run

PEAK = {"float32": 67e12, "tf32": 494e12, "bfloat16": 989e12}
"""Operations per second of one H200, without sparsity (NVIDIA's data sheet)."""
REACHED = {"float32": 0.5, "tf32": 0.15, "bfloat16": 0.15}
"""Share of the peak that a ResNet-50 reaches (assumption, to be measured). An A100 is said to train 2,600 images/s in
mixed precision (huggingface/pytorch-image-models, issue 1491): that is 20 % of its 312e12. A ResNet waits for memory,
and an H200 has 3.2 times the arithmetic of that card, but 2.4 times its memory bandwidth: so 15 %."""
RATE = {precision: peak * REACHED[precision] for precision, peak in PEAK.items()}
"""Operations per second that the tables count with."""
EXCHANGE = {"NVLink": 450e9, "400 Gbit/s network": 50e9}
"""Bytes per second, one way, of one GPU within a machine and between machines (data sheets)."""
IMAGES = {  # training, validation and test images
    "imagenet": (1_281_167, 0, 50_000),
    "cifar10": (45_000, 5_000, 10_000),
    "cifar100": (45_000, 5_000, 10_000),
    "svhn": (68_257, 5_000, 26_032),
}
HOUR = 3600


def forward(network: str, px: int) -> int:
    """Operations (two for each product) of one image's forward pass."""
    model = models.build(network, 10, (0.5,) * 3, (0.5,) * 3, seed=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, px, px))
    return counter.get_total_flops()


def passes(preset: Preset, run: Run) -> tuple[float, float]:
    """Forward passes' worth of operations that a run takes to train, and to validate and test. A pass back to the
    images alone costs one forward pass, and a pass back to weights and images two."""
    recipe = preset.recipe(run)
    if isinstance(recipe, Given):
        return 0.0, 0.0
    train, val, test = IMAGES[run.downstream or preset.upstream]
    measured = test * (2 + 2 * preset.evaluation.steps) * (2 if run.stage == "transfer" else 1)
    if run.stage == "imp" and run.round == 0:
        return 0.0, measured
    validations = sum(map(recipe.validates, range(recipe.epochs)))
    return (
        recipe.epochs * run.fraction * train * trained(recipe),
        measured + validations * val * (2 + 2 * recipe.validation.steps),
    )


def trained(recipe: Recipe) -> int:
    """Forward passes' worth of one image's part in a training step."""
    return 3 + 2 * recipe.attack.steps


def schedule(
    seconds: Mapping[Hashable, float], needs: Mapping[Hashable, Iterable[Hashable]], workers: int
) -> tuple[float, float]:
    """Time until all tasks are done with so many workers, if a free worker takes the ready task with the longest road
    behind it, and the time of the longest road: no number of workers is faster than that.

    Args:
        seconds: of each task.
        needs: the tasks that must be done before, of those that need any.
    """
    after = defaultdict(list)
    missing = {task: 0 for task in seconds}
    for task, before in needs.items():
        for one in before:
            after[one].append(task)
            missing[task] += 1
    road: dict[Hashable, float] = {}

    def length(task: Hashable) -> float:
        if task not in road:
            road[task] = seconds[task] + max(map(length, after[task]), default=0.0)
        return road[task]

    ready = [(-length(task), n, task) for n, task in enumerate(seconds) if not missing[task]]
    heapq.heapify(ready)
    under_way: list[tuple[float, int, Hashable]] = []
    now, number = 0.0, len(seconds)
    while ready or under_way:
        while ready and len(under_way) < workers:
            _, _, task = heapq.heappop(ready)
            number += 1
            heapq.heappush(under_way, (now + seconds[task], number, task))
        now, _, done = heapq.heappop(under_way)
        for task in after[done]:
            missing[task] -= 1
            if not missing[task]:
                number += 1
                heapq.heappush(ready, (-length(task), number, task))
    return now, max(map(length, seconds))


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def head(*cells: str) -> None:
    print()
    row(*cells)
    print("|" + "---|" * len(cells))


def main() -> None:
    preset = PRESETS["paper"]
    flops = forward(preset.network, 224)
    runs = preset.grid()
    kind = lambda run: " ".join(
        filter(None, [run.stage, run.source if run.stage == "imp" else run.regime, f"{run.fraction:.0%}"[:4]])
    )
    kinds: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        kinds[kind(run)].append(run)

    print(f"One forward pass of {preset.network} at 224 px: {flops / 1e9:.2f} GFLOP.")
    head(
        "runs",
        "number",
        "operations, 1e18",
        "of it tests and validations",
        "hours, float32",
        "hours, TF32",
        "hours, bfloat16",
    )
    total = 0.0
    for name, some in kinds.items():
        training, testing = (sum(parts) * flops for parts in zip(*(passes(preset, run) for run in some)))
        work = training + testing
        total += work
        if work:
            hours = [f"{work / rate / HOUR:,.0f}" for rate in RATE.values()]
            row(name, len(some), f"{work / 1e18:,.1f}", f"{testing / work:.0%}", *hours)
    hours = [f"{total / rate / HOUR:,.0f}" for rate in RATE.values()]
    row("all", len(runs), f"{total / 1e18:,.1f}", "", *hours)

    head("training step", "images/s a GPU, float32", "TF32", "bfloat16", "exchange a step, NVLink", "400 Gbit/s")
    weights = 4 * sum(
        p.numel() for p in models.build(preset.network, 1000, (0.5,) * 3, (0.5,) * 3, seed=0).parameters()
    )
    steps = {
        "IMP, standard": preset.imp["standard"],
        "IMP, PGD-3": preset.imp["adversarial"],
        "transfer, standard": preset.transfer["standard"],
        "transfer, PGD-10": preset.transfer["adversarial"],
    }
    for name, recipe in steps.items():
        rate = {p: RATE[p] / (flops * trained(recipe)) for p in RATE}
        share = recipe.batch_size / 8 / rate["bfloat16"]  # seconds of a step, one of 8 processes
        taken = [f"{1e3 * 2 * weights / width:.1f} ms of {1e3 * share:,.0f}" for width in EXCHANGE.values()]
        row(f"{name}, batch {recipe.batch_size}", *(f"{rate[p]:,.0f}" for p in RATE), *taken)

    seconds = {run: sum(passes(preset, run)) * flops / RATE["bfloat16"] for run in runs}
    needs = {run: run.needs() for run in runs}
    head("GPUs", "one a run: days", "speed-up", "8 for a round of IMP: days", "speed-up")
    eight = {run: taken / 8 if run.stage == "imp" else taken for run, taken in seconds.items()}
    for gpus in (1, 2, 4, 8, 16, 32, 64, 128):
        alone, longest = schedule(seconds, needs, gpus)
        cells = [gpus, f"{alone / HOUR / 24:.1f}", f"{sum(seconds.values()) / alone:.1f}"]
        if gpus >= 8:
            shared, _ = grouped(seconds, eight, needs, gpus)
            cells += [f"{shared / HOUR / 24:.1f}", f"{sum(seconds.values()) / shared:.1f}"]
        row(*cells, *[""] * (5 - len(cells)))
    print(f"\nThe longest road with one GPU a run: {longest / HOUR / 24:.1f} days.")


def grouped(seconds: Mapping, eight: Mapping, needs: Mapping, gpus: int) -> tuple[float, float]:
    """The rounds of IMP first, on groups of 8 GPUs, then the transfers, one GPU each."""
    imp = {run: taken for run, taken in eight.items() if run.stage != "transfer"}
    first, road = schedule(imp, {run: needs[run] for run in imp}, gpus // 8)
    rest = {run: taken for run, taken in seconds.items() if run.stage == "transfer"}
    then, longest = schedule(rest, {}, gpus)
    return first + then, road + longest


if __name__ == "__main__":
    main()
