"""The sentences of the notebooks that name numbers, and the banner that says which results they show."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dwlth.attacks import Attack
from dwlth.masks import Mask
from dwlth.presets import in_order, in_words
from dwlth.results import Folder
from dwlth.runs import percent
from dwlth.verdict import transfers

KIT = Path(__file__).resolve().parents[2]


class Sentences(str):
    """A text that a notebook's cell shows as Markdown when it ends with it."""

    def _repr_markdown_(self) -> str:
        return str(self)


def banner(folder: Folder, table: pd.DataFrame | None, kit: Path = KIT) -> Sentences:
    """Which results a notebook shows, of how many seeds, and how to see the others.

    Args:
        table: of these results; None: there are none yet.
        kit: where the results that come with the kit and those of `make quickstart` lie.
    """
    known = {kit / "results": "that come with the kit", kit / "quickstart": "of your quickstart"}
    own = known.get(Path(folder.root).resolve())
    if table is None:
        text = f"**There are no results in `{folder.path}` yet.** The cells below make those that take minutes."
    else:
        seeds, runs = table["seed"].nunique(), len(table)
        many = f"{seeds} seed{'s' * (seeds != 1)}, {runs:,} run{'s' * (runs != 1)}"
        text = f"**These are the results in `{folder.path}`: {many}.**"
        text += f" They are those {own}. What you train here is added to them." if own else ""
    for root, whose in known.items():
        if whose != own and (root / folder.preset.name / "table.csv").exists():
            where = Path(os.path.relpath(root)).as_posix()
            text += f' To see those {whose}, write `results = "{where}"` in the cell above and run all cells again.'
    return Sentences(text)


def of_sources(table: pd.DataFrame) -> Sentences:
    """SA and RA of the sources on the pre-training task, which is the highest, and what each gains over standard."""
    runs = 100 * table[table["stage"] == "pretrain"].set_index(["source", "seed"])[["sa", "ra"]]
    means = runs.groupby("source").mean()
    text = f"SA is {_levels(means['sa'])} RA is {_levels(means['ra'])}"
    runs = runs.dropna()  # what failed, or was not measured
    for name in in_order(set(runs.index.unique("source")) - {"standard"}) if "standard" in runs.index else ():
        over = (runs.loc[name] - runs.loc["standard"]).dropna()
        if len(over):
            sa, ra = over.mean()
            text += f" Against standard pre-training, {in_words(name)} pre-training changes SA by {sa:+.1f} points and "
            text += f"RA by {ra:+.1f} points."
    return Sentences(text)


def of_transfers(table: pd.DataFrame, downstream: str, fraction: float) -> Sentences:
    """What the dense networks reach under both regimes, and what their sparsest tickets lose of it."""
    runs = transfers(table, downstream, fraction)
    means = 100 * runs.groupby(["regime", "round", "source"])[["sa", "ra"]].mean()
    last, lines = runs["round"].max(), []
    for (regime, column), question in {
        ("standard", "sa"): "Does pre-training show in SA after standard transfer?",
        ("adversarial", "ra"): "Does it show in RA after adversarial transfer?",
        ("standard", "ra"): "What is left of RA where the transfer is standard?",
    }.items():
        if (regime, 0) in means.index:
            dense = means[column][regime, 0]
            lines += [f"- {question} The dense networks have {_levels(dense)}"]
    ra = 100 * runs[runs["regime"] == "adversarial"].pivot_table("ra", ["source", "seed"], "round")
    lost = ra.reindex(columns=[0, last]).diff(axis=1)[last].groupby("source").mean().dropna() if last > 0 else ()
    if len(lost):
        sparsity = runs.loc[runs["round"] == last, "sparsity"].iloc[0]
        each = _listed([f"{lost[name]:+.1f} ({in_words(name)} pre-training)" for name in in_order(lost.index)])
        lines += [
            f"- What does the sparsest ticket ({100 * sparsity:.2f} %) change? RA after adversarial transfer, in "
        ]
        lines[-1] += f"points against the dense network: {each}."
    return Sentences("\n".join(lines))


def of_fractions(table: pd.DataFrame, downstream: str) -> Sentences:
    """What robust pre-training gains over standard pre-training, with each fraction of the data: dense networks."""
    runs = table[(table["stage"] == "transfer") & (table["downstream"] == downstream) & (table["round"] == 0)]
    lines, by = [], ["fraction", "source", "seed", "regime"]
    seen = 100 * runs.groupby(by)[["sa", "ra"]].mean().unstack("regime")
    criteria = {
        "RA after adversarial transfer": ("ra", "adversarial"),
        "SA after standard transfer": ("sa", "standard"),
    }
    for fraction in sorted(runs["fraction"].unique(), reverse=True):
        at = seen.loc[fraction]
        for name in in_order(set(at.index.unique("source")) - {"standard"}) if "standard" in at.index else ():
            over = (at.loc[name] - at.loc["standard"]).mean().dropna()
            said = [f"{what} by {over[where]:+.1f} points" for what, where in criteria.items() if where in over]
            changes = f"- With {percent(fraction)} of the data, {in_words(name)} pre-training changes "
            lines += [changes + ", and ".join(said) + "."] if said else []
    return Sentences("\n".join(lines))


def of_eps(attack: Attack) -> Sentences:
    """How much an attack in the largest norm may change a pixel, beside the paper's."""
    own, paper = 100 * attack.eps, 100 * 8 / 255
    return Sentences(f"Here a pixel may change by {own:.1f} % of its range. The paper's eps is {paper:.1f} %.")


def under_attack(steps: Mapping[str, pd.DataFrame], images: int) -> Sentences:
    """What an attack does to networks, by name: the first and last accuracy of `dwlth.show.attacked.attack_steps`."""
    lines = [f"Of these {images} images, these shares are classified right:", ""]
    for name, rows in steps.items():
        clean, attacked = rows["accuracy"].iloc[[0, -1]]
        lines += [f"- {in_words(name)}: {100 * clean:.1f} % as they are, {100 * attacked:.1f} % under attack"]
    return Sentences("\n".join(lines))


def beyond_magnitude(mask: Mask, oneshot: Mask) -> Sentences:
    """How many weights a ticket keeps that pruning at once, by magnitude, would not keep."""
    inside = mask.kept - sum(int((mask[name] & oneshot[name]).sum()) for name in mask)
    return Sentences(
        f"This ticket keeps {mask.kept:,} weights. {inside:,} of them lie between the dotted lines: pruning at once "
        f"would have cut them. In their place {oneshot.kept - mask.kept + inside:,} weights outside the lines are gone."
    )


def _levels(means: pd.Series) -> str:
    """These means in percent, by source, and which is the highest as printed."""
    shown = means.dropna().round(1)
    each = [f"{shown[name]:.1f} % ({in_words(name)})" for name in in_order(shown.index)]
    best = [in_words(name) for name in in_order(shown.index[shown == shown.max()])]
    highest = f"highest with {_listed(best)} pre-training" if len(each) > len(best) else "no source is ahead"
    return f"{_listed(each)}; {highest}." if len(each) > 1 else f"{_listed(each) or 'not measured'}."


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
