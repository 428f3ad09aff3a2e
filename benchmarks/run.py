"""Ours and the peers, measured in one run, on one machine, taking turns.

    python benchmarks/run.py                      all rows, in 10 to 15 minutes; prints a table of ratios
    python benchmarks/run.py --device cuda        the same on a GPU, with its larger sizes
    python benchmarks/run.py --only step pruning  some rows (--only quickstart runs that whole command)
    python benchmarks/run.py --smoke              every row, tiny: does it all work?
    python benchmarks/run.py --out FILE.json      what `python benchmarks/tables.py FILE.json` puts into the docs

Needs `pip install -e ".[bench]"`; a peer that is not installed is said to be so. Each contender is a process of its own
that waits while the others work, so that no memory, flag or cache of one is another's. In every round each of them has
one turn; a ratio compares times of one round, and the table gives the median of the ratios and their range. Of four and
more rounds, the first warms up and is not counted. `contenders.py` says what each of them does.
"""

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import contenders as c
import torch
from contenders import Absent, Contender, Sizes

from dwlth import results
from dwlth.data import Augment

bf16, f32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Row:
    """One table: its contenders, of which the first is the one that the others are compared with."""

    title: str
    contenders: dict[str, Contender]
    share: float = 0.02
    """Of the minutes."""
    unit: str = "s"
    """Of a contender's column: s, or what is done in a second."""
    default: bool = True


def table(device: str) -> dict[str, Row]:
    """The rows of a device, by name."""
    cuda = device.startswith("cuda")
    steps = c.CUDA_STEPS if cuda else c.STEPS
    rows = {
        "step": Row("One step of PGD-10 training, ResNet-18 at 32 px", steps, 0.4),
        "step224": Row("One step of PGD-10 training, ResNet-50 at 224 px", steps, 0.4, default=cuda),
        "evaluation": Row("PGD-20 evaluation", c.EVALUATIONS, 0.35, "images/s"),
        "last_step": Row("PGD-20 evaluation in float32, RA of the last step", c.LAST_STEP, 0.3, "images/s"),
        "pruning": Row("Global magnitude pruning of ResNet-50 by 20 %", c.prunings(1)),
        "ties": Row("The same where equal weights lie on both sides of the cut", c.prunings(0)),
        "tickets": Row(
            "Saving and loading the masks of ResNet-50",
            {"torch.save, float masks": c.their_tickets, "ours, packed": c.our_tickets},
        ),
        "masking": Row(
            "Masking the weights of ResNet-50",
            {"torch.nn.utils.prune, every forward pass": c.their_application, "ours, every step": c.our_application},
        ),
        "crops": Row(
            "Crop and flip at 32 px",
            {
                "DataLoader, 2 workers": c.their_images(c.transforms.Compose(c.CROP), "crops"),
                "ours": c.our_images(Augment("pad", flip=True), "crops", epochs=10),
            },
            0.04,
            "images/s",
        ),
        "resized": Row(
            "RandomResizedCrop to 224 px and flip, of images of 32 px",
            {
                "DataLoader, 2 workers": c.their_images(c.transforms.Compose(c.RESIZED), "resized"),
                "ours": c.our_images(Augment("resized", flip=True), "resized", epochs=1),
            },
            0.04,
            "images/s",
        ),
        "imports": Row(
            "Imports in a fresh interpreter",
            {name: c.importing(name) for name in ("torch", "dwlth", "dwlth.training", "dwlth.__main__")},
            0.06,
        ),
        "arithmetic": Row(
            "Products and convolutions",
            {
                f"{what}, {name}": contender(dtype)
                for what, contender in {
                    "product": c.product,
                    "3x3 convolution, 64 channels of 32 px": lambda dtype: c.convolution(64, 32, dtype),
                    "3x3 convolution, 512 channels of 4 px": lambda dtype: c.convolution(512, 4, dtype),
                }.items()
                for name, dtype in {"float32": f32, "bfloat16": bf16}.items()
            },
            unit="GFLOP/s",
        ),
        "small": Row(
            "PGD-10 training of cifar-small's network",
            {"its convolutions alone, bfloat16": c.small_step(True), "ours, bfloat16": c.small_step(False)},
            0.05,
            unit="GFLOP/s",
        ),
        "memory": Row(
            "Copying 128 MiB",
            {"into memory at hand": c.copying(False), "into fresh memory": c.copying(True)},
            unit="GB/s",
        ),
        "transfers": Row(
            "12 transfers of digits on one GPU",
            {
                "one after another": c.transfers("--workers", "1", "--set", "together=1"),
                "4 processes": c.transfers("--workers", "4", "--set", "together=1"),
                "together in one network": c.transfers("--workers", "1"),
            },
            0.3,
            "runs/s",
            default=cuda,
        ),
        "quickstart": Row("python -m dwlth run digits", {"ours": c.quickstart}, 0.0, default=False),
    }
    return rows


def serve(pipe, row: str, name: str, sizes: Sizes, device: str, folder: Path) -> None:
    """A contender's process: prepare, say so, and at each word from the pipe work once and say how it went."""
    torch.set_num_threads(sizes.threads or torch.get_num_threads())
    try:
        rounds = table(device)[row].contenders[name](sizes, device, folder)
        next(rounds)
        pipe.send("")
        while pipe.recv():
            gc.collect()
            before = memory(reset=True)
            synchronize(device)
            began = time.perf_counter()
            report = next(rounds)
            synchronize(device)
            seconds = time.perf_counter() - began
            outcome = {"seconds": seconds, "extra_mib": (memory() - before) / 2**20, "units": 1}
            pipe.send(outcome | (report() if report else {}))
            next(rounds)
            if device != "cpu":
                torch.cuda.empty_cache()
    except Absent as absent:
        pipe.send(str(absent))
    except EOFError:  # the run has ended
        pass


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def memory(reset: bool = False) -> float:
    """The largest resident memory of this process since the last reset, in bytes; NaN where Linux does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        return float("nan")


@contextmanager
def process(row: str, name: str, sizes: Sizes, device: str, folder: Path):
    """A contender ready for its turns: a pipe to it, or why it is absent."""
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    if sys.platform != "win32":
        context.set_forkserver_preload(["torch", "torchvision", "dwlth.running.grid"])  # imported once
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs, row, name, sizes, device, folder))
    child.start()
    theirs.close()
    try:
        yield ours.recv() or ours
    finally:
        ours.close()
        child.join(30)
        if child.is_alive():
            child.terminate()


def measure(row: str, what: Row, sizes: Sizes, device: str, seconds: float, folder: Path) -> dict:
    """The rounds of a row: for each contender a list of outcomes, or why it is absent. At least two rounds, more
    while the seconds last; a single one where there are none to spend. Of four and more, the first is warming up."""
    found, pipes = {}, {}
    with ExitStack() as stack:
        for name in what.contenders:
            pipe = stack.enter_context(process(row, name, sizes, device, folder))
            if isinstance(pipe, str):
                found[name] = pipe
            else:
                found[name], pipes[name] = [], pipe
        began, count = time.time(), 0
        while count < (2 if seconds else 1) or (time.time() - began) * (count + 1) / count < seconds and count < 12:
            for name, pipe in pipes.items():
                time.sleep(0.05)  # the threads of the one before fall asleep
                pipe.send("go")
                found[name].append(pipe.recv())
            count += 1
    return {name: rounds[1:] if count >= 4 and name in pipes else rounds for name, rounds in found.items()}


def speed(outcome: dict) -> float:
    return outcome["units"] / outcome["seconds"]


def summary(rounds: dict) -> dict:
    """For each contender: the median of its speeds, and of its ratios to the first contender's in the same round,
    above 1 where it is faster, with their range."""
    first = next(iter(rounds.values()))
    lines = {}
    for name, outcomes in rounds.items():
        if isinstance(outcomes, str):
            lines[name] = {"absent": outcomes}
            continue
        ratios = [speed(outcome) / speed(base) for outcome, base in zip(outcomes, first)]
        lines[name] = {
            "speed": median(map(speed, outcomes)),
            "seconds": median(1 / speed(outcome) for outcome in outcomes),
            "ratio": median(ratios),
            "range": [min(ratios), max(ratios)],
            "rounds": len(outcomes),
        }
        for key in ("extra_mib", "sa", "ra", "beyond", "bytes"):
            if key in outcomes[0]:
                lines[name][key] = median(outcome[key] for outcome in outcomes)
        if "masks" in outcomes[0]:
            lines[name]["masks"] = outcomes[0]["masks"]
    return lines


FORMS = {
    "extra_mib": "{:.0f} MiB extra",
    "ra": "RA {:.2%}",
    "beyond": "{:.2f} s beyond torch",
    "masks": "masks {}",
}


def show(what: Row, lines: dict) -> None:
    print(f"\n{what.title}")
    for name, line in lines.items():
        if "absent" in line:
            print(f"  {name:42} {line['absent']}")
            continue
        column = f"{line['seconds']:.4g} s" if what.unit == "s" else f"{line['speed']:.5g} {what.unit}"
        text = f"  {name:42} {column:>18}  x{line['ratio']:.2f} ({line['range'][0]:.2f} to {line['range'][1]:.2f})"
        for key, form in FORMS.items():
            if key in line and (key != "extra_mib" or "masks" in line):
                text += "  " + form.format(line[key])
        print(text, flush=True)


def about(device: str, sizes: Sizes) -> dict:
    """Where and of what: hardware, versions, commit, command and sizes."""
    versions = {}
    for package in ("numpy", "torchattacks", "foolbox", "cleverhans", "adversarial-robustness-toolbox", "robustness"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    words = [Path(word).name for word in sys.argv[1:]]  # no path of a machine
    command = " ".join(["python benchmarks/run.py", *words])
    where = results.provenance(device=device, precision="", together=1, seconds=0.0, command=command)
    for of_runs in ("precision", "together", "seconds"):
        del where[of_runs]
    return where | {"versions": versions, "sizes": asdict(sizes)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python benchmarks/run.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all rows together (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="of " + ", ".join(table("cuda")))
    parser.add_argument("--smoke", action="store_true", help="every row, tiny")
    parser.add_argument("--out", type=Path, help="write all rounds and their summary to this JSON file")
    args = parser.parse_args(argv)
    rows = table(args.device)
    if unknown := set(args.only or ()) - rows.keys():
        parser.error(f"no row {min(unknown)!r}: choose from {', '.join(rows)}")
    sizes = c.SMOKE if args.smoke else c.CPU if args.device == "cpu" else c.CUDA
    chosen = {name: row for name, row in rows.items() if (name in args.only if args.only else row.default)}
    torch.set_num_threads(sizes.threads or torch.get_num_threads())
    whole = sum(row.share for row in chosen.values()) or 1
    report = {"kind": args.device.partition(":")[0], "about": about(args.device, sizes), "rows": {}}
    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"evaluation", "last_step"} & chosen.keys():
            c.train_for_evaluation(sizes, args.device, folder)
        if {"crops", "resized"} & chosen.keys():
            c.png_folder(sizes, folder)
        for name, row in chosen.items():
            seconds = 0 if args.smoke else 60 * args.minutes * row.share / whole
            own = c.BIG if name == "step224" and not args.smoke else sizes
            rounds = measure(name, row, own, args.device, seconds, folder)
            lines = summary(rounds)
            show(row, lines)
            report["rows"][name] = {"title": row.title, "unit": row.unit, "summary": lines, "rounds": rounds}
            if name.startswith("step"):
                gflop = c.step_gflop(own)
                report["rows"][name]["gflop"] = gflop
                best = max((line["speed"], label) for label, line in lines.items() if "speed" in line)
                print(f"  {gflop:.0f} GFLOP a step: {gflop * best[0]:.0f} GFLOP/s by {best[1]}")
    report["about"]["seconds"] = round(time.time() - began)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
