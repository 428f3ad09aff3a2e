"""The scoreboard: what the paper's abstract claims, and what a table of results says about it.

The robust pre-training of these claims is the adversarial one (PGD), beside the standard one; `scoreboard` takes
another. Their *gain* is the robust source's points minus those of the standard source, paired: the same seed, task,
regime, fraction and round.
"""

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pandas as pd

from dwlth.errors import DwlthError, NotYet
from dwlth.results import Folder
from dwlth.runs import percent
from dwlth.show import questions
from dwlth.show.order import resampled
from dwlth.verdict import CRITERIA, bounds, tests, transfers, verdict, with_most_data

SCARCE = (0.1, 0.01)
"""The fractions of the downstream data that the paper's claim names."""

FASTER = 1.3
"""How many times fewer multiplications count as less work (our choice; docs/sparsity.md)."""


def scoreboard(
    table: pd.DataFrame, margins: Mapping[str, float], robust: str = "adversarial", folder: Folder | None = None
) -> pd.DataFrame:
    """One row for each claim of the abstract, and for six questions that it leaves open.

    Args:
        table: of `dwlth.results.read_table`.
        margins: as of `dwlth.verdict.tests`.
        robust: the source that stands for robust pre-training.
        folder: of these results; its audit and its tickets give the last two rows.

    Returns:
        `claim`; `answer`: `supported`, `contradicted` or `undecided`; `effect`: in words, points with their interval,
        or what is missing; `seeds` that it rests on; `figure`: the file that shows it. All intervals are two-sided,
        of 95 %, over the seeds; where these share one source, it is that of the transfer, and says nothing of another
        pre-training. "Much data" is the fraction of `dwlth.verdict.with_most_data`. "Over tasks" are those that have
        both sources.

        1. *Double-win tickets exist*, with much data. Supported if the verdict has one for any source (and task), with
           one-sided bounds of 1 - 5 % / (sources times tasks), since any would do. Contradicted if the least sparse
           ticket of each is not double-win. The effect is that of the sparsest such ticket, or of the first one tried.
        2. *Robust pre-training makes them sparser*, with much data. Seeds are drawn anew as in `dwlth.show.order`, and
           each time the sparsities of the sparsest double-win tickets are compared (the mean over tasks). Supported if
           the interval that holds the middle 95 % of the differences lies above 0, contradicted if below; but undecided
           unless some ticket of the source that is behind, as sparse or less, is shown to be none (on each task where
           it is behind): a wide spread alone also shows few tickets.
        3. *Robust tickets have higher SA and RA at equal sparsity*, with much data: the gain, the mean over the tickets
           that both sources have (the dense networks left out) and over tasks.
        4. *They are more data-efficient*: the same with each of 10 % and 1 % of the data that the table has tickets
           of; all of them must hold.
        5. *The gain grows with less data*: the gain of the dense networks with the smallest fraction minus that with
           the largest, of those with two seeds or more.
        6. *The gain grows with sparsity*, with much data: the slope of the gain over the IMP rounds (least squares, for
           each seed), times the rounds from the dense network to the sparsest ticket.

        3 to 6 have three numbers, one for each of the verdict's criteria, and Student's t. The claim is supported if
        all three intervals lie above 0. It is contradicted if any lies below 0, even where others lie above (the claim
        says SA *and* RA); there the interval's level is 1 - 5 % / 3 (or over as many numbers as there are), since any
        would do. Anything else is undecided, and so is what the table has no runs for. Where intervals of 95 % lie on
        both sides of 0, the effect says "mixed". Six more rows, which are not the abstract's, follow where the table
        and the folder have what they need:

        7 to 9 are the first questions of `dwlth.show.questions`, answered as 3 to 6 are.
        10. *No barrier parts two trainings from one start*, its last: supported if the interval of each criterion's
           barrier lies below the margin, contradicted if one lies above it (level as above).
        11. *The robustness passes every check* of `dwlth.running.checks`: supported if all checks of all audited
           networks pass, contradicted if one fails.
        12. *A double-win ticket is less work for dense kernels*: supported if the ticket of claim 1, with the weights
           of its source, needs `FASTER` times fewer multiplications in its convolutions after the exact removal of dead
           channels (`dwlth.fast.shrink`), contradicted if not. One source says so, that of seed 0.

        Failed runs have no numbers: in 3 to 6 their seeds are left out, and so is a round that less than half
        of the seeds have.
    """
    whole = table
    table = table[table["stage"].isin(["transfer", "imp"])]
    table = table[table["method"] == "imp"]
    gain, tasks = _gains(table, robust)
    dense, tickets = _dense(gain), _mean_of_tickets(gain)
    counts = {f: len(dense.loc[f].dropna()) for f in dense.index.unique("fraction")}
    fractions = sorted((f for f in counts if counts[f] > 1), reverse=True)
    much = _much(table, margins, robust)
    scarce = [fraction for fraction in SCARCE if fraction in tickets.index.unique("fraction")]
    place = re.sub(r"[^\w.-]", "-", tasks[0]) if tasks else "task"  # as `dwlth.show.figures` names its files
    few = " and ".join(map(percent, scarce or SCARCE))
    name = robust.replace("_", " ").capitalize()
    lack = f"no transfers of {robust} and standard sources with the same seed in the table" if gain.empty else ""
    at_few = {f"{percent(fraction)}: " if len(scarce) > 1 else "": _at(tickets, fraction) for fraction in scarce}
    grown = {"": _at(dense, fractions[-1]) - _at(dense, fractions[0])} if len(fractions) > 1 else {}
    answers = {
        "Double-win tickets exist": _exist(table, margins, much),
        f"{name} pre-training makes them sparser": _sparser(table, margins, much, robust),
        f"{name} tickets have higher SA and RA at equal sparsity": _above(
            {"": _at(tickets, much)}, lack or "no tickets in the table"
        ),
        f"They are more data-efficient (with {few} of the data)": _above(
            at_few, lack or f"no tickets with {few} of the data in the table"
        ),
        "The gain grows with less data": _above(
            grown, lack or "no two fractions of the data with two seeds or more of the dense networks"
        ),
        "The gain grows with sparsity": _above({"": _slope(gain, much)}, lack or "fewer than two rounds in the table"),
    }
    of_much, of_few = (f"curves-{place}-{fraction:g}.png" for fraction in (much, (scarce or SCARCE)[0]))
    sparsest = f"double-wins-{place}.png"
    figures = [sparsest, sparsest, of_much, of_few, f"gain-{place}.png", of_much]
    rows = [(claim, *answer, figure) for (claim, answer), figure in zip(answers.items(), figures)]
    open_ = {
        "IMP's mask beats a shuffled one": (questions.over_shuffled(whole, tasks), f"controls-{place}.png"),
        "The source of the weights matters more than that of the mask": (
            questions.weights_over_mask(whole, tasks),
            f"crossing-{place}.png",
        ),
        "IMP must train as its source did": (questions.own_training(whole, tasks), f"training-{place}.png"),
    }
    rows += [(claim, *_above({"": of}, ""), figure) for claim, (of, figure) in open_.items() if of is not None]
    if (barriers := questions.barriers(whole)) is not None:
        answer = _below(barriers, margins)
        rows.append(("No barrier parts two trainings from one start", *answer, f"connectivity-{place}.png"))
    if folder is not None:
        try:
            rows.append(("The robustness passes every check", *_audited(folder), "audit.png"))
        except NotYet:
            pass
        except DwlthError as error:
            warnings.warn(f"the scoreboard leaves the audit out: {error}", stacklevel=2)
        with suppress(DwlthError):  # files that are absent or damaged: `verify` says so
            answer = _less_work(folder, table, margins, much)
            rows.append(("A double-win ticket is less work for dense kernels", *answer, "savings.png"))
    return pd.DataFrame(rows, columns=["claim", "answer", "effect", "seeds", "figure"])


def _gains(table: pd.DataFrame, robust: str) -> tuple[pd.DataFrame, list[str]]:
    """What the robust source gains, in points: a column for each criterion, by fraction, round and seed, and the mean
    over the tasks that have both sources; and all tasks."""
    tasks = sorted(table["downstream"][table["stage"] == "transfer"].unique())
    index = ["fraction", "round", "seed"]
    of_task: list[pd.DataFrame] = []
    for task in tasks:
        runs = transfers(table, task)
        columns = {}
        for criterion, (regime, column) in CRITERIA.items():
            of = runs[runs["regime"] == regime].groupby(["source", *index])[column].mean()
            sources = [of.xs(s, level="source") if s in of.index else of[:0].droplevel(0) for s in (robust, "standard")]
            columns[criterion] = 100 * (sources[0] - sources[1])
        of_task += [of for of in [pd.DataFrame(columns).dropna()] if len(of)]
    if not of_task:
        return pd.DataFrame(columns=list(CRITERIA), index=pd.MultiIndex.from_tuples([], names=index)), tasks
    every = of_task[0] if len(of_task) == 1 else sum(of_task[1:], of_task[0]) / len(of_task)
    every = every.dropna()
    seeds = every.groupby(level=["fraction", "round"])[every.columns[0]].transform("size")
    return every[2 * seeds >= seeds.groupby(level="fraction").transform("max")], tasks


def _much(table: pd.DataFrame, margins: Mapping[str, float], robust: str) -> float:
    """The fraction that counts as much data, of those of the two sources, or of any where they have no verdict."""
    for runs in (table[table["source"].isin([robust, "standard"])], table):
        with suppress(NotYet):
            return with_most_data(verdict(runs, margins))["fraction"].iloc[0]
    fractions = table.loc[table["stage"] == "transfer", "fraction"]
    return fractions.max() if len(fractions) else 1.0


def _below(barriers: pd.DataFrame, margins: Mapping[str, float]) -> tuple[str, str, int]:
    """Whether barriers lie below the margins: the answer, the effect and the seeds."""
    limits = np.array([margins[CRITERIA[criterion][1]] for criterion in barriers.columns])
    points = barriers.to_numpy(float)
    mean, _, low, high = bounds(points, 0.975)
    strict = bounds(points, 1 - 0.025 / len(limits))[2]
    answer = "contradicted" if (strict > limits).any() else "supported" if (high < limits).all() else "undecided"
    return answer, "; ".join(map(_points, barriers.columns, mean, low, high)), len(points)


def _at(gain: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """By seed."""
    return gain.xs(fraction, level="fraction") if fraction in gain.index.get_level_values("fraction") else gain[:0]


def _dense(gain: pd.DataFrame) -> pd.DataFrame:
    """By fraction and seed."""
    return gain[gain.index.get_level_values("round") == 0].droplevel("round")


def _mean_of_tickets(gain: pd.DataFrame) -> pd.DataFrame:
    """By fraction and seed; of seeds that have every round that some seed has."""
    tickets = gain[gain.index.get_level_values("round") > 0].groupby(level=["fraction", "seed"])
    count = tickets.size()
    return tickets.mean()[count == count.groupby(level="fraction").transform("max")]


def _slope(gain: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Points from the dense network to the sparsest ticket, by the straight line through a seed's gains."""
    lines = {}
    for criterion in gain.columns:
        of = _at(gain, fraction)[criterion].unstack("seed")
        of = of.dropna(axis=1).astype(float)  # seeds that have every round
        rounds = of.index.to_numpy(dtype=float)
        if len(rounds) > 1 and of.shape[1]:
            lines[criterion] = pd.Series(np.polyfit(rounds, of, 1)[0] * np.ptp(rounds), of.columns)
    return pd.DataFrame(lines)


def _above(found: dict[str, pd.DataFrame | None], lack: str) -> tuple[str, str, int]:
    """Whether gains, by seed and in a column for each criterion, lie above 0: the answer, the effect and the seeds."""
    found = {label: gain for label, gain in found.items() if gain is not None and not gain.dropna().empty}
    if not found:
        return "undecided", lack, 0
    numbers = sum(gain.shape[1] for gain in found.values())
    words, above, below, signs, seeds = [], True, False, set(), []
    for label, gain in found.items():
        points = gain.dropna()
        seeds.append(len(points))
        mean, _, low, high = bounds(points.to_numpy(float), 0.975)
        strict = bounds(points.to_numpy(float), 1 - 0.025 / numbers)[3]
        above, below = above and bool((low > 0).all()), below or bool((strict < 0).any())
        signs |= {1} if (low > 0).any() else set()
        signs |= {-1} if (high < 0).any() else set()
        words += [label + "; ".join(map(_points, gain.columns, mean, low, high))]
    effect = ("mixed: " if len(signs) > 1 else "") + " / ".join(words)
    return "contradicted" if below else "supported" if above else "undecided", effect, min(seeds)


def _points(criterion: str, mean: float, low: float, high: float) -> str:
    short = criterion.replace(" transfer", "").replace(",", "")
    if np.isnan(mean):
        return f"{short} failed"
    return f"{short} {mean:+.1f}" + (f" ({low:.1f} to {high:.1f})" if np.isfinite(low) else " (one seed)")


def _sparsest(table: pd.DataFrame, margins: Mapping[str, float], fraction: float) -> tuple[pd.DataFrame, pd.Series]:
    """The runs with this fraction, and of their verdicts the one with the sparsest double-win ticket."""
    runs = table[(table["fraction"] == fraction) | (table["stage"] == "imp")]
    groups = len(runs[runs["stage"] == "transfer"].groupby(["downstream", "source"]))
    found = verdict(runs, margins, level=1 - 0.05 / max(groups, 1))
    return runs, found.loc[found["round"][::-1].idxmax()]  # of equals the last, which has the most robust source


def _exist(table: pd.DataFrame, margins: Mapping[str, float], fraction: float) -> tuple[str, str, int]:
    try:
        runs, best = _sparsest(table, margins, fraction)
    except NotYet:
        return "undecided", "no ticket and dense network with the same seed in the table", 0
    proven = best["round"] > 0
    each = tests(runs, margins, level=0.975)  # two-sided intervals of 95 %
    of = each[(each["source"] == best["source"]) & (each["downstream"] == best["downstream"])]
    ticket = of[of["round"] == best["round"] if proven else of["in_sequence"]].iloc[0]
    effect = "; ".join(_points(name, *ticket[[name, f"{name} low", f"{name} high"]]) for name in CRITERIA)
    first = each[each["in_sequence"]].drop_duplicates(["downstream", "source"])["answer"]
    answer = "supported" if proven else "contradicted" if (first == "not").all() else "undecided"
    return answer, f"{best['source']}, {ticket['sparsity']:.2%}: {effect}", int(ticket["pairs"])


def _sparser(table: pd.DataFrame, margins: Mapping[str, float], fraction: float, robust: str) -> tuple[str, str, int]:
    runs = table[
        ((table["fraction"] == fraction) | (table["stage"] == "imp")) & table["source"].isin([robust, "standard"])
    ]
    found = list(resampled(runs, margins))
    if not found:
        return "undecided", f"fewer than 3 seeds that both {robust} and standard have", 0
    seen = 100 * np.mean([row[5] for row in found])
    low, high = np.quantile(100 * np.mean([row[6] for row in found], axis=0), [0.025, 0.975])
    answer = "supported" if low > 0 else "contradicted" if high < 0 else "undecided"
    effect, each = f"{seen:+.1f} points of sparsity ({low:.1f} to {high:.1f})", tests(runs, margins)
    for task, _, a, b, _, more, _ in found if answer != "undecided" else ():
        ahead, behind = (a, b) if more > 0 else (b, a)
        of = each[each["downstream"] == task]
        best = of[(of["source"] == ahead) & of["in_sequence"] & (of["answer"] == "double-win")]["round"].max()
        none = of[(of["source"] == behind) & (of["answer"] == "not")]["round"]
        if more and not (none <= best).any():
            answer = "undecided"
            effect += f"; no {behind} ticket on {task} as sparse or less is shown to be none"
    return answer, effect, min(row[4] for row in found)


def _audited(folder: Folder) -> tuple[str, str, int]:
    found = folder.audit()
    judged = found[found["verdict"] != ""]
    failed = judged[judged["verdict"] == "fails"]
    effect = f"{len(judged) - len(failed)} of {len(judged)} checks of {found['id'].nunique()} networks pass"
    for source, checks in failed.groupby("source", sort=False)["check"]:
        effect += f"; {source} fails: {', '.join(checks.unique())}"
    return "contradicted" if len(failed) else "supported", effect, found["seed"].nunique()


def _less_work(
    folder: Folder, table: pd.DataFrame, margins: Mapping[str, float], fraction: float
) -> tuple[str, str, int]:
    from dwlth.show.sparsity import savings  # late: matplotlib takes a while

    _, best = _sparsest(table, margins, fraction)
    if not best["round"]:
        raise NotYet("no double-win ticket")
    ticket = savings(folder, 0, (best["source"], best["round"])).iloc[0]
    saved, of = ticket["saved"], f"{best['source']}, {best['sparsity']:.2%}"
    effect = f"{of}: {saved:.0f} % fewer multiplications, {ticket['dead']:.0f} % fewer channels"
    effect += f"; a file {ticket['smaller']:.1f} times smaller"
    return "supported" if saved >= 100 * (1 - 1 / FASTER) else "contradicted", effect, 1
