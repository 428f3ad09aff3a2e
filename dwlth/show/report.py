"""The verdict as text, and the sentences of the notebooks that name numbers."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dwlth.attacks import Attack
from dwlth.masks import Mask
from dwlth.presets import SOURCES, Preset, in_order, in_words
from dwlth.results import Folder, ended, percents
from dwlth.runs import percent
from dwlth.show.claims import scoreboard
from dwlth.show.order import order
from dwlth.verdict import CRITERIA, FOURTH, PAPER, tests, transfers, verdict, with_most_data

KIT = Path(__file__).resolve().parents[2]

PAIRED = """A ticket is double-win if the lower 95 % bound of its paired difference from the dense network (ticket
minus dense, same seed, in points) lies above -{sa:g} for SA and above -{ra:g} for RA. Tickets are tested from the least
sparse on; the first that is not double-win ends the sequence."""

MEANS = """A ticket is double-win if no mean difference from the dense network is below -{tolerance:g} points, as in
papers with one seed: this rule knows no spread. Tickets are taken from the least sparse on; the first that fails ends
the sequence."""

FOUR = """The paper's definition names SA and RA under both regimes; its code measures no RA after standard transfer,
which is {fourth} here."""


def summary(runs: pd.DataFrame, *by: str) -> pd.DataFrame:
    """SA and RA in percent as text, by the columns given, sources in the order of the legends: the mean over the seeds
    and, of two or more, one standard error; and the number of seeds. Failed runs are left out."""
    runs = percents(runs)
    runs = runs.sort_values("source", key=lambda names: names.map(in_order(names).index), kind="stable")
    if "sparsity" in by:
        runs = runs.assign(sparsity=runs["sparsity"].map("{:.2%}".format))
    groups = runs.groupby(list(by), sort=False)
    rows = {"seeds": groups["seed"].nunique()}
    for metric in ("sa", "ra"):
        text = [
            "not measured" if pd.isna(mean) else f"{mean:.1f}" + ("" if pd.isna(sem) else f" ± {sem:.1f}")
            for mean, sem in groups[metric].agg(["mean", "sem"]).itertuples(index=False)
        ]
        rows[f"{metric.upper()} (%)"] = pd.Series(text, rows["seeds"].index)
    return pd.DataFrame(rows)


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """A verdict in words, a row each."""
    return pd.DataFrame(
        {
            "data": found["fraction"].map(percent),
            "source": found["source"],
            "seeds": found["pairs"],
            "sparsest double-win": [_ticket(*row) for row in zip(found["round"], found["sparsity"])],
            "next tried": ["" if pd.isna(sparsity) else f"{sparsity:.2%}" for sparsity in found["next_sparsity"]],
            "is": found["next_answer"],
            "why": found["why"].str.replace(" transfer", ""),  # short enough for pandas to show it whole
        }
    )


def readable_tests(tested: pd.DataFrame) -> pd.DataFrame:
    """Tests of tickets in words, a row each: for each criterion the mean difference from the dense network, in points,
    and its one-sided bounds."""
    about = {
        "data": tested["fraction"].map(percent),
        "source": tested["source"],
        "sparsity": tested["sparsity"].map("{:.2%}".format),
        "pairs": tested["pairs"],
        "failed": tested["failed"],
    }
    criteria = {
        name.replace(" transfer", ""): [
            f"{mean:+.1f}" + ("" if pd.isna(low) else f" ({low:.1f} to {high:.1f})")
            for mean, low, high in zip(tested[name], tested[f"{name} low"], tested[f"{name} high"])
        ]
        for name in CRITERIA | FOURTH
    }
    return pd.DataFrame(about | criteria | {"answer": tested["answer"]}, index=tested.index)


def readable_order(shares: pd.DataFrame) -> pd.DataFrame:
    """The order of the sources in words, a row each."""
    words = {name: shares[name].map("{:.0%}".format) for name in ("sparser", "tied", "less")}
    return shares.assign(fraction=shares["fraction"].map(percent), **words).rename(columns={"fraction": "data"})


def report(
    table: pd.DataFrame,
    preset: Preset,
    rule: str = "paired",
    tolerance: float | None = None,
    all_four: bool = False,
    folder: Folder | None = None,
) -> str:
    """The whole verdict as text, beside the paper's numbers; for the arguments see `dwlth.verdict.verdict` and
    `dwlth.show.claims.scoreboard`.

    Raises:
        NotYet: if no ticket can be judged.
    """
    margins = preset.margins
    how = {"all_four": all_four, "rule": rule, "tolerance": tolerance}
    found, tested = verdict(table, margins, **how), tests(table, margins, **how)
    lines = [
        f"Preset {preset.name}",
        "",
        PAIRED.format(**margins) if rule == "paired" else MEANS.format(tolerance=tolerance),
    ]
    lines += [FOUR.format(fourth="judged too" if all_four else "shown and not judged"), *notes(table)]
    for task, group in found.groupby("downstream", sort=False):
        lines += ["", f"Sparsest double-win tickets on {task}", _text(readable(group))]
        shown = tested[(tested["downstream"] == task) & tested["in_sequence"]]
        lines += ["", "Tests of these tickets and the next: ticket minus dense, in points (one-sided 95 % bounds)"]
        lines += [_text(readable_tests(shown))]
    if rule == "mean" or all_four:
        lines += ["", "What follows is by the paired rule and the three criteria."]
    shares = order(table, margins)
    if len(shares):
        lines += ["", "How sure the order of the sources is: shares of resamples of the seeds in which the sparsest"]
        lines += ["double-win ticket of a is sparser than that of b, tied with it (or both have none), or less sparse"]
        lines += [_text(readable_order(shares))]
    lines += ["", "What the paper's abstract claims, and what these runs say (points, two-sided 95 % intervals)"]
    return "\n".join([*lines, *_claims(scoreboard(table, margins, folder=folder)), *_paper()])


def screen(table: pd.DataFrame, folder: Folder, command: str) -> str:
    """The last screen of a run, for a reader who knows nothing yet: what was done, what it says, and where to go on.

    Args:
        folder: of these results.
        command: that prints the whole verdict.

    Raises:
        NotYet: if no ticket can be judged.
    """
    preset, figures = folder.preset, folder.figures
    found, board = verdict(table, preset.margins), scoreboard(table, preset.margins, folder=folder)
    found = found[found["downstream"] == found["downstream"][0]]
    found = with_most_data(found)  # as in the scoreboard
    count = ended(table)["stage"].value_counts()
    sa, ra = (f"{preset.margins[column]:g}" for column in ("sa", "ra"))
    lines = [
        f"Done: {count.get('pretrain', 0)} networks trained on {preset.upstream} and pruned step by step into sparse "
        f"tickets; {count['transfer']} of these trained on",
        f"{', '.join(preset.downstream)} and attacked. A ticket is double-win if it is shown to lose less than {sa} "
        f"point{'s' * (sa != '1')} of accuracy (SA)",
        f"and {ra} of accuracy under attack (RA) against the dense network that it is cut from.",
        *notes(table),
        "",
        "What the paper claims, and what these runs say (points, 95 % intervals over the seeds):",
        *_claims(board),
        f"Sparsest double-win ticket with {percent(found['fraction'].iloc[0])} of the data, by pre-training:",
    ]
    for row in found.itertuples():
        why = f"; {row.next_sparsity:.2%} is {row.next_answer}: {row.why}" if row.next_answer else ""
        ticket = f"{row.source}: {_ticket(row.round, row.sparsity)}{why}".replace(" transfer", "")
        lines += ["  " + textwrap.shorten(ticket, 114, placeholder=" ...")]
    lines += [f"Look at {figures / board['figure'][2]}", f"Go on with: make lab (all numbers: {command})"]
    return "\n".join(lines)


def notes(table: pd.DataFrame) -> list[str]:
    """What a reader of any number here has to know, a line each."""
    lines = []
    runs = table[table["stage"] == "transfer"]
    if "source_seed" in runs and runs["source_seed"].notna().any():
        sources = runs["source_seed"].where(runs["source_seed"].notna(), runs["seed"]).nunique()
        of = "one source" if sources == 1 else f"{sources} sources"
        lines += [f"{runs['seed'].nunique()} transfer seeds of {of}: the spread is that of the transfer"]
    if "status" in table and (failed := (table["status"] == "failed").sum()):
        many = f"{failed} runs failed (diverged): each counts against its ticket"
        lines += [many if failed > 1 else "1 run failed (diverged): it counts against its ticket"]
    return lines


def _ticket(round_: int, sparsity: float) -> str:
    return f"{sparsity:.2%} (round {round_})" if round_ else "none shown"


def _claims(board: pd.DataFrame) -> list[str]:
    """The scoreboard in words."""
    lines = []
    for row in board.itertuples():
        lines += [f"{row.answer:13}{row.claim}: {row.effect}"]
        if len(lines[-1]) > 116:
            indent = {"initial_indent": "  ", "subsequent_indent": "  "}
            lines[-1:] = [f"{row.answer:13}{row.claim}", *textwrap.wrap(row.effect, 118, **indent)]
    return lines


def _paper() -> list[str]:
    if not PAPER.exists():
        return []
    paper = pd.read_csv(PAPER)
    paper["sparsity"] = [_ticket(*row) for row in zip(paper["round"], paper["sparsity"])]
    of = paper.pivot(index="source", columns="downstream", values="sparsity").loc[list(SOURCES)]
    return ["", "The paper's, another scale of experiment (ResNet-50, ImageNet, 100 % of the data)", of.to_string()]


def _text(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, justify="left")


def report_autoattack(table: pd.DataFrame) -> str:
    """RA under AutoAttack beside that under the evaluation attack, on the same images: means over the seeds."""
    runs = table[(table["stage"] == "autoattack") & table["ra"].notna()]
    if not len(runs):
        return "no network under AutoAttack yet"
    shown = runs.groupby(["downstream", "source", "round"], sort=False).agg(
        seeds=("seed", "nunique"),
        sparsity=("sparsity", "first"),
        SA=("sa", "mean"),
        RA=("ra_pgd", "mean"),
        AutoAttack=("ra", "mean"),
    )
    percent = {name: "{:.2%}".format for name in ("sparsity", "SA", "RA", "AutoAttack")}
    return (
        "RA after adversarial transfer, under the evaluation attack and under AutoAttack\n"
        + shown.reset_index().to_string(index=False, formatters=percent)
    )


def report_audit(table: pd.DataFrame) -> str:
    """The checks of each network (`dwlth.running.audit.audit_transfers`), and which failed."""
    parts = []
    for (source, sparsity, seed), rows in table.groupby(["source", "sparsity", "seed"], sort=False):
        shown = rows[["check", "found", "honest", "verdict"]].to_string(index=False)
        parts.append(f"{source}, {sparsity:.2%} sparsity, seed {seed}\n{shown}")
    failed = table[table["verdict"] == "fails"]
    parts.append(f"{len(failed)} of {(table['verdict'] != '').sum()} checks failed")
    return "\n\n".join(parts)


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
        text += f" They are those {own}." if own else ""
    for root, whose in known.items():
        if whose != own and (root / folder.preset.name / "table.csv").exists():
            where = Path(os.path.relpath(root)).as_posix()
            text += f' To see those {whose}, write `results = "{where}"` in the cell above and run all cells again.'
    return Sentences(text)


def of_sources(table: pd.DataFrame) -> Sentences:
    """SA and RA of the sources on the pre-training task, which is the highest, and what each gains over standard."""
    means = 100 * table[table["stage"] == "pretrain"].groupby("source")[["sa", "ra"]].mean()
    text = f"SA is {_levels(means['sa'])} RA is {_levels(means['ra'])}"
    if "standard" in means.index:
        for name in in_order(means.index.drop("standard")):
            sa, ra = means.loc[name] - means.loc["standard"]
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
    if {("adversarial", 0), ("adversarial", last)} <= set(means.index.droplevel("source")):
        lost = (means["ra"]["adversarial", last] - means["ra"]["adversarial", 0]).dropna()
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
    means, lines = 100 * runs.groupby(["fraction", "source", "regime"])[["sa", "ra"]].mean().unstack("regime"), []
    criteria = {
        "RA after adversarial transfer": ("ra", "adversarial"),
        "SA after standard transfer": ("sa", "standard"),
    }
    for fraction in sorted(runs["fraction"].unique(), reverse=True):
        at = means.loc[fraction]
        for name in in_order(at.index.drop("standard")) if "standard" in at.index else ():
            over = (at.loc[name] - at.loc["standard"]).dropna()
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
