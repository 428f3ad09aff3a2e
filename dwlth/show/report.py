"""The verdict as text, and the last screen of a run."""

import textwrap

import pandas as pd

from dwlth.presets import SOURCES, Preset, in_order
from dwlth.results import Folder, ended, percents
from dwlth.runs import percent
from dwlth.show.claims import scoreboard
from dwlth.show.order import order
from dwlth.verdict import CRITERIA, FOURTH, PAPER, tests, verdict, with_most_data

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
            "failed" if pd.isna(mean) else f"{mean:+.1f}" + ("" if pd.isna(low) else f" ({low:.1f} to {high:.1f})")
            for mean, low, high in zip(tested[name], tested[f"{name} low"], tested[f"{name} high"])
        ]
        for name in CRITERIA | FOURTH
    }
    return pd.DataFrame(about | criteria | {"answer": tested["answer"]}, index=tested.index)


def readable_order(shares: pd.DataFrame) -> pd.DataFrame:
    """The order of the sources in words, a row each."""
    words = {name: shares[name].map("{:.1%}".format) for name in ("sparser", "tied", "less")}
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
        f"tickets; {count.get('transfer', 0)} of these trained on",
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
    if "status" in table:
        failed = table[(table["status"] == "failed") & (table["method"] == "imp")]
        dense = ((failed["stage"] == "transfer") & (failed["round"] == 0)).sum()
        if tickets := failed["stage"].isin(["imp", "transfer"]).sum() - dense:
            many = f"{tickets} runs of tickets failed (diverged): each counts against its ticket"
            lines += [many if tickets > 1 else "1 run of a ticket failed (diverged): it counts against the ticket"]
        if dense:
            many = f"{dense} runs of dense networks failed (diverged): their seeds are left out"
            lines += [many if dense > 1 else "1 run of a dense network failed (diverged): its seed is left out"]
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
    shown = runs.groupby(["downstream", "fraction", "source", "round"], sort=False).agg(
        seeds=("seed", "nunique"),
        sparsity=("sparsity", "first"),
        SA=("sa", "mean"),
        RA=("ra_pgd", "mean"),
        AutoAttack=("ra", "mean"),
    )
    formats = {name: "{:.2%}".format for name in ("sparsity", "SA", "RA", "AutoAttack")} | {"fraction": percent}
    return (
        "RA after adversarial transfer, under the evaluation attack and under AutoAttack\n"
        + shown.reset_index().to_string(index=False, formatters=formats)
    )


def report_audit(table: pd.DataFrame) -> str:
    """The checks of each network (`dwlth.running.audit.audit_transfers`), and which failed."""
    parts = []
    for (id_, source, sparsity, seed), rows in table.groupby(["id", "source", "sparsity", "seed"], sort=False):
        shown = rows[["check", "found", "honest", "verdict"]].to_string(index=False)
        parts.append(f"{source}, {sparsity:.2%} sparsity, seed {seed} ({id_})\n{shown}")
    failed = table[table["verdict"] == "fails"]
    parts.append(f"{len(failed)} of {(table['verdict'] != '').sum()} checks failed")
    return "\n\n".join(parts)
