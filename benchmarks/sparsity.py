"""What sparsity buys on a CPU: the tables of docs/sparsity.md.

    python benchmarks/sparsity.py                  all tables, as Markdown, in about 10 minutes
    python benchmarks/sparsity.py --only dead size some of them
    python benchmarks/sparsity.py --results DIR    of the sources and tickets of another folder of results

All is float32 on one thread. What is compared takes turns in one process, and a ratio is the median over the rounds of
the ratio of their processor times in one round: another program on the machine takes none of it. It still slows the
memory, so small differences mean nothing.
"""

import argparse
import contextlib
import copy
import platform
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from dwlth import masks, models, presets, sources, tickets, training
from dwlth.data import Split
from dwlth.fast.folding import fold
from dwlth.fast.shrink import channels, shrink, shrink_for_training
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.show.sparsity import multiplications, packed_bytes

PRESETS = {"digits": ((14, 15, 17), "imp"), "cifar-small": ((14, 17, 19), "oneshot")}
"""The tickets, by round. `cifar-small`'s IMP ends at round 11: 91 %."""
SOURCES = ("standard", "fast_adversarial", "adversarial")
SPARSITIES = (0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
LAYERS = {  # kernel, channels in and out, side of the image
    "ResNet-50 at 224 px": [
        (1, 64, 256, 56),
        (1, 256, 64, 56),
        (1, 128, 512, 28),
        (1, 512, 128, 28),
        (1, 256, 1024, 14),
        (1, 1024, 256, 14),
        (1, 512, 2048, 7),
        (1, 2048, 512, 7),
        (3, 64, 64, 56),
        (3, 128, 128, 28),
        (3, 256, 256, 14),
        (3, 512, 512, 7),
    ],
    "ResNet-18 at 32 px": [(3, 64, 64, 32), (3, 512, 512, 4)],
}


def take_turns(seconds: float, *contenders: Callable) -> list[list[float]]:
    """The processor seconds of a call of each contender, round by round; each turn is at least 5 ms of calls."""
    counts = []
    for call in contenders:
        call()
        began = time.process_time()
        call()
        counts.append(int(0.005 / max(time.process_time() - began, 1e-6)) + 1)
    rounds, until = [], time.monotonic() + seconds
    while len(rounds) < 5 or time.monotonic() < until:
        rounds.append([])
        for call, count in zip(contenders, counts):
            began = time.process_time()
            for _ in range(count):
                call()
            rounds[-1].append((time.process_time() - began) / count)
    return rounds


def ratio(rounds: list[list[float]], one: int, other: int) -> float:
    """How many times faster the first of two contenders is than the second."""
    return median(times[other] / times[one] for times in rounds)


def table(title: str, head: list[str], rows: list[list[object]]) -> None:
    print(f"\n**{title}**\n\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def sparse_networks(results: Path, wanted: tuple[str, ...] = SOURCES):
    """Preset, source, seed, network and its mask, the weights of the source masked: of all seeds and rounds on disk."""
    for preset, (rounds, method) in PRESETS.items():
        for source in wanted:
            for path in sorted((results / preset / "sources").glob(f"{source}-s*.safetensors")):
                dense, seed = sources.read(path, "source", "cpu").eval(), path.stem.rpartition("-s")[2]
                for number in rounds:
                    model = copy.deepcopy(dense)
                    if method == "imp":
                        ticket = results / preset / "tickets" / f"{source}-imp-s{seed}" / f"{number:02d}.safetensors"
                        if not ticket.exists():
                            continue
                        mask, _ = tickets.load(ticket)
                    else:
                        mask, scores = masks.dense(model.net), masks.magnitude(model.net)
                        for _ in range(number):
                            mask = masks.prune(mask, scores, 0.2)
                    mask.apply_(model.net)
                    yield preset, source, dense, model, mask


def images(model: Classifier, count: int) -> torch.Tensor:
    depth, generator = model.net.conv1.in_channels, torch.Generator().manual_seed(0)
    return torch.rand(count, depth, *[8 if depth == 1 else 32] * 2, generator=generator)


def spread(values: list[float], form: str = "{:g}") -> str:
    low, high = form.format(min(values)), form.format(max(values))
    middle = form.format(median(values))
    return middle if low == high else f"{middle} ({low} to {high})"


def dead(results: Path, seconds: float) -> None:
    counts: dict[tuple, list] = {}
    for preset, source, _, model, mask in sparse_networks(results):
        smaller, trained = shrink(model, images(model, 8)), shrink_for_training(model)
        whole, *work = (multiplications(m, images(model, 1)) for m in (model, trained, smaller))
        key = (preset, source, f"{mask.sparsity:.1%}", channels(model))
        gone = [channels(model) - channels(trained), channels(model) - channels(smaller)]
        counts.setdefault(key, []).append([gone[0], 100 * (1 - work[0] / whole), gone[1], 100 * (1 - work[1] / whole)])
    rows = []
    for (preset, source, sparsity, all_), found in counts.items():
        columns = [list(column) for column in zip(*found)]
        cells = [spread(column, "{:.0f} %" if i % 2 else "{:g}") for i, column in enumerate(columns)]
        rows.append([preset, source, sparsity, all_, *cells, len(found)])
    head = ["preset", "source", "sparsity", "channels", "gone for training", "multiplications saved"]
    table("Dead channels", [*head, "gone for inference", "multiplications saved", "seeds"], rows)


def latency(results: Path, seconds: float) -> None:
    rows = []
    for preset, source, dense, model, mask in sparse_networks(results, ("adversarial", "standard")):
        if len(rows) and rows[-1][:3] == [preset, source, f"{mask.sparsity:.1%}"]:
            continue  # of one seed
        few = images(model, 8)
        contenders = fold(dense, few), fold(model, few), shrink(model, few)
        cells = []
        for batch in (1, 64):
            x = images(model, batch)
            rounds = take_turns(seconds, *(lambda net=net, x=x: net(x) for net in contenders))
            cells += [f"{ratio(rounds, one, 0):.2f}" for one in (1, 2)]
        rows.append([preset, source, f"{mask.sparsity:.1%}", *cells])
    head = ["preset", "source", "sparsity", "masked, 1 image", "shrunken, 1 image"]
    table("Inference: times as fast as dense", [*head, "masked, 64 images", "shrunken, 64 images"], rows)


def steps(results: Path, seconds: float) -> None:
    """An epoch of the preset's adversarial transfer on a few batches."""
    rows = []
    for preset, source, _, model, mask in sparse_networks(results, ("adversarial", "standard")):
        if len(rows) and rows[-1][:3] == [preset, source, f"{mask.sparsity:.1%}"]:
            continue
        recipe = replace(presets.get(preset).transfer["adversarial"], epochs=2, validate_every=2, precision="float32")
        x = (255 * images(model, recipe.batch_size * (1 if preset == "cifar-small" else 8))).to(torch.uint8)
        split = Split(x, torch.arange(len(x)) % model.net.fc.out_features)

        def step(net: Classifier, recipe=recipe, split=split) -> None:
            left = Mask({name: weight != 0 for name, weight in masks.prunable(net.net).items()})
            with torch.enable_grad(), contextlib.suppress(training.OutOfTime):
                training.fit(copy.deepcopy(net), recipe, split, split, seed=0, mask=left, on_epoch=lambda row: True)

        small = shrink_for_training(model)
        rounds = take_turns(3 * seconds, lambda model=model: step(model), lambda small=small: step(small))
        gone = f"{channels(model) - channels(small)} of {channels(model)}"
        rows.append([preset, source, f"{mask.sparsity:.1%}", gone, f"{ratio(rounds, 1, 0):.2f}"])
    table("A training step: times as fast as masked", ["preset", "source", "sparsity", "channels gone", "ratio"], rows)


def size(results: Path, seconds: float) -> None:
    """Bytes of a network: with its mask as bits and the survivors, or as torch's CSR with indices of 4 bytes."""
    rows = []
    nets = [(p, model, mask) for p, source, _, model, mask in sparse_networks(results, ("adversarial",))]
    for number in (14, 17):
        model = models.build("resnet50", 1000, [0.5] * 3, [0.25] * 3, seed=0)
        mask, scores = masks.dense(model.net), masks.magnitude(model.net)
        for _ in range(number):
            mask = masks.prune(mask, scores, 0.2)
        mask.apply_(model.net)
        nets.append(("resnet50, random weights", model, mask))
    for name, model, mask in nets:
        state, (whole, packed) = model.net.state_dict(), packed_bytes(model, mask)
        rest = whole - 4 * mask.total
        bits = b"".join(np.packbits(tensor.numpy()).tobytes() for tensor in mask.values())
        csr = 8 * mask.kept + sum(4 * (len(tensor) + 1) for tensor in mask.values()) + rest
        zipped = len(zlib.compress(b"".join(tensor.numpy().tobytes() for tensor in state.values())))
        sizes = [len(bits), packed, csr, zipped]
        row = [name, f"{mask.sparsity:.1%}", f"{whole:,}", *(f"{each:,} ({whole / each:.1f}x)" for each in sizes)]
        if row not in rows:
            rows.append(row)
    head = ["network", "sparsity", "dense", "mask alone", "mask, survivors and the rest", "CSR and the rest"]
    table("Bytes, and how many times fewer than dense", [*head, "zlib"], rows)


def products(results: Path, seconds: float) -> None:
    """A layer's CSR product against the fastest dense way: its convolution in both memory formats, or the product."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for network, layers in LAYERS.items():
        for kernel, inputs, outputs, side in layers:
            weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
            flat = weight.flatten(1)
            scores = torch.rand(weight.shape, generator=generator)
            for batch in (1, 16):
                x, pad = torch.randn(batch, inputs, side, side, generator=generator), kernel // 2
                x_last, last = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
                columns = x.transpose(0, 1).flatten(1).contiguous()  # the order that the product wants, for nothing

                def unfolded(x=x, kernel=kernel, pad=pad, columns=columns):
                    if kernel == 1:
                        return columns
                    found = F.unfold(x, kernel, padding=pad)
                    return found[0] if len(found) == 1 else found.transpose(0, 1).flatten(1)

                sparse = []
                for sparsity in SPARSITIES:
                    kept = weight * (scores >= sparsity)
                    csr = kept.flatten(1).to_sparse_csr()
                    right = F.conv2d(x, kept, padding=pad).transpose(0, 1).flatten(1)
                    assert torch.allclose(csr @ unfolded(), right, atol=1e-3)
                    sparse.append(lambda csr=csr: csr @ unfolded())
                rounds = take_turns(
                    seconds,
                    lambda x=x, w=weight, pad=pad: F.conv2d(x, w, padding=pad),
                    lambda x=x_last, w=last, pad=pad: F.conv2d(x, w, padding=pad),
                    lambda flat=flat: flat @ unfolded(),
                    *sparse,
                )
                dense = min(range(3), key=lambda i: median(times[i] for times in rounds))
                ratios = [ratio(rounds, i, dense) for i in range(3, len(sparse) + 3)]
                shown = [f"{ratios[SPARSITIES.index(s)]:.2f}" for s in (0.8, 0.9, 0.95, 0.98)]
                what = f"{kernel}x{kernel}, {inputs} to {outputs}, {side} px"
                rows.append([network, what, batch, *shown, even(ratios)])
    head = ["network", "convolution", "images", "80 %", "90 %", "95 %", "98 %", "break-even"]
    table("A CSR product: times as fast as the fastest dense way, by sparsity", head, rows)


def even(ratios: list[float]) -> str:
    """The sparsity from which the sparse product is the faster one: between two measured ones, on the straight line of
    its time over dense's."""
    slower = [i for i, each in enumerate(ratios) if each < 1]
    if not slower:
        return f"below {SPARSITIES[0]:.0%}"
    i = slower[-1]
    if i + 1 == len(SPARSITIES):
        return f"above {SPARSITIES[-1]:.0%}"
    here, there = 1 / ratios[i], 1 / ratios[i + 1]
    return f"{SPARSITIES[i] + (SPARSITIES[i + 1] - SPARSITIES[i]) * (here - 1) / (here - there):.0%}"


TABLES = {"dead": dead, "size": size, "latency": latency, "steps": steps, "products": products}


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser("python benchmarks/sparsity.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="some tables")
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each comparison (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Sparse CSR")  # beta
    print(f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}.")
    with torch.no_grad():
        for name in args.only:
            TABLES[name](args.results, args.seconds)


if __name__ == "__main__":
    main()
