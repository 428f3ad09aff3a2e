"""Put the tables of a run into docs/performance.md: `python benchmarks/tables.py FILE.json` (of `run.py --out`).

Of several files, of one kind of device, a row is the last one's that has it; the page says which are whose.
Only the part between the marks of its device, `<!-- cpu -->` or `<!-- cuda -->`, and the end mark is replaced.
"""

import json
import re
import sys
from pathlib import Path
from statistics import median

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
EVAL = "ours, bfloat16, eval-mode attack"
FASTEST_PEER = "the fastest peer"

# what is compared: row, contender, with what, what of it, and the goal on a CPU and on a GPU (None: no goal)
GOALS = [
    ("PGD-10 step, train-mode attack, against the reference loop", "step", "ours, bfloat16", None, 2.4, 6),
    ("PGD-10 step, eval-mode attack, against the reference loop", "step", EVAL, None, 2.8, None),
    ("train-mode attack, ResNet-50 at 224 px", "step224", "ours, bfloat16", None, None, 4),
    (
        "PGD-20 evaluation: ours in bfloat16, worst step, against the fastest peer in float32, last step",
        "evaluation",
        "ours, bfloat16",
        FASTEST_PEER,
        3,
        6,
    ),
    (
        "PGD-20 evaluation, like for like: float32, last step, all images, against the fastest peer",
        "last_step",
        "ours, float32, last step",
        FASTEST_PEER,
        3,
        3,
    ),
    ("pruning ResNet-50 against torch.nn.utils.prune", "pruning", "ours", None, 3.5, None),
    ("crop and flip at 32 px against a DataLoader", "crops", "ours", None, 25, None),
    ("RandomResizedCrop to 224 px against a DataLoader", "resized", "ours", None, 5, None),
    ("12 transfers at once against one after another", "transfers", "together in one network", None, None, 2),
]
COSTS = [  # the smaller the better
    (
        "time of a step over that of its bare passes",
        "step",
        "ours, bfloat16",
        "bare passes, bfloat16 channels_last",
        1.05,
    ),
    ("the same, eval-mode attack", "step", EVAL, "bare passes, the same, eval-mode attack", 1.05),
]


def ratio(row: dict, contender: str, versus: str | None) -> float | None:
    """The median over the rounds of how many times faster one is than the other; None where one did not run."""
    rounds = {name: outcomes for name, outcomes in row["rounds"].items() if isinstance(outcomes, list) and outcomes}
    if versus == FASTEST_PEER:
        peers = [name for name in rounds if not name.startswith("ours")]
        versus = max(peers, key=lambda name: row["summary"][name]["speed"])
    versus = versus or next(iter(rounds))
    if contender not in rounds or versus not in rounds:
        return None
    speeds = [[o["units"] / o["seconds"] for o in rounds[name]] for name in (contender, versus)]
    return median(ours / theirs for ours, theirs in zip(*speeds))


def goals(rows: dict, gpu: bool) -> list[str]:
    lines = ["| what | goal | measured | |", "|---|---|---|---|"]
    for text, name, contender, versus, *wanted in GOALS:
        goal, found = wanted[gpu], ratio(rows[name], contender, versus) if name in rows else None
        if goal is not None and found is not None:
            lines.append(f"| {text} | {goal:g} times faster | {found:.2f} | {'met' if found >= goal else 'missed'} |")
    at_most = []
    for text, name, contender, versus, goal in COSTS:
        if name in rows and (found := ratio(rows[name], versus, contender)) is not None:
            at_most.append((text, f"{goal:g}", f"{found:.3f}", found <= goal))
    if "pruning" in rows:
        ours, theirs = (rows["pruning"]["summary"][name]["extra_mib"] for name in ("ours", "torch.nn.utils.prune"))
        at_most.append(
            ("extra memory of pruning over the reference's", "0.25", f"{ours / theirs:.2f}", ours <= theirs / 4)
        )
    if "imports" in rows:
        for module in ("dwlth", "dwlth.training", "dwlth.__main__"):
            seconds = rows["imports"]["summary"][module]["beyond"]
            at_most.append((f"`import {module}` beyond torch", "0.3 s", f"{seconds:.2f} s", seconds <= 0.3))
    if "quickstart" in rows:
        minutes = rows["quickstart"]["summary"]["ours"]["seconds"] / 60
        at_most.append(("the quickstart's `digits`", "2.5 minutes", f"{minutes:.1f} minutes", minutes <= 2.5))
    lines += [
        f"| {text} | at most {goal} | {found} | {'met' if met else 'missed'} |" for text, goal, found, met in at_most
    ]
    return lines


def table(row: dict) -> list[str]:
    lines = row["summary"]
    extras = [key for key in ("extra_mib", "sa", "ra", "beyond") if any(key in line for line in lines.values())]
    if not any("masks" in line for line in lines.values()):
        extras = [key for key in extras if key != "extra_mib"]
    form = {"extra_mib": "{:.0f} MiB", "sa": "{:.2%}", "ra": "{:.2%}", "beyond": "{:.2f} s"}
    title = {"extra_mib": "extra memory", "sa": "SA", "ra": "RA", "beyond": "beyond torch"}
    head = [
        "contender",
        "s" if row["unit"] == "s" else row["unit"],
        "times as fast",
        "range",
        "rounds",
        *map(title.get, extras),
    ]
    text = [f"**{row['title']}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, line in lines.items():
        if "absent" in line:
            text.append(f"| {name} | {line['absent']} |" + " |" * (len(head) - 2))
            continue
        value = (
            f"{line['seconds']:.4g}" if row["unit"] == "s" else f"{line['speed']:,.{0 if line['speed'] >= 100 else 2}f}"
        )
        cells = [name, value, f"{line['ratio']:.2f}", "{:.2f} to {:.2f}".format(*line["range"]), str(line["rounds"])]
        cells += [form[key].format(line[key]) if key in line else "" for key in extras]
        text.append("| " + " | ".join(cells) + " |")
    if "gflop" in row:
        speeds = {name: row["gflop"] * line["speed"] for name, line in lines.items() if "speed" in line}
        best = max(speeds, key=speeds.get)
        text += ["", f"A step is {row['gflop']:,.0f} GFLOP; {best} does {speeds[best]:,.0f} GFLOP/s."]
    return [*text, ""]


def source(about: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return (
        f"`{about['command']}`, {about['seconds'] / 60:.0f} minutes, commit {about['commit']}; {about['device']}, "
        f"{about['threads']} threads; Python {about['python']}, torch {about['torch']}, torchvision "
        f"{about['torchvision']}, {versions}."
    )


def main(*files: str) -> None:
    report, *later = (json.loads(Path(file).read_text()) for file in files)
    rows, text = report["rows"], [source(report["about"])]
    for other in later:
        titles = ", ".join(row["title"] for row in other["rows"].values())
        text += ["", f"And {source(other['about'])[:-1]}: {titles}."]
        rows |= other["rows"]
    text += ["", *goals(rows, report["kind"] == "cuda"), ""]
    for row in rows.values():
        text += table(row)
    page = PAGE.read_text()
    mark = f"<!-- {report['kind']} -->"
    if mark not in page:
        sys.exit(f"{PAGE}: no {mark} in it")
    page = re.sub(f"{mark}.*?<!-- end -->", lambda _: "\n".join([mark, "", *text, "<!-- end -->"]), page, flags=re.S)
    PAGE.write_text(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
