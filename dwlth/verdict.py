"""The verdict: which is the sparsest double-win ticket of each source?

A ticket is **double-win** if it is shown to be no worse than its dense network by more than a margin, in every
criterion. In the words of statistics: a non-inferiority test of paired differences for each criterion (ticket minus
dense network, same seed); an intersection-union test over the criteria, which needs no correction since all must hold;
and fixed-sequence testing over the tickets, from the least sparse on, which needs none since the first that is not
shown ends the sequence. With a true loss of exactly the margin, at most 5 % of tickets pass (docs/verdict.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dwlth.errors import DwlthError, NotYet, check
from dwlth.presets import in_order
from dwlth.runs import Run

CRITERIA = {
    "SA, standard transfer": ("standard", "sa"),
    "SA, adversarial transfer": ("adversarial", "sa"),
    "RA, adversarial transfer": ("adversarial", "ra"),
}
"""What a double-win ticket keeps: its name, the regime and the column of the table. The paper's definition names SA
and RA under both regimes; its public code measures no RA after standard transfer, so these three are judged."""

FOURTH = {"RA, standard transfer": ("standard", "ra")}
"""The criterion that the definition names and the public code does not measure: shown, and judged with `all_four`."""

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper.csv"

MOST_SEEDS = 1000
"""Above so many seeds, no number is said of how many would decide."""
ROUNDING = 1e-4
"""Points within which a loss equals the margin: SA is a quotient in float32 (our choice)."""


def tests(
    table: pd.DataFrame,
    margins: Mapping[str, float],
    all_four: bool = False,
    method: str = "imp",
    level: float = 0.95,
    rule: str = "paired",
    tolerance: float | None = None,
) -> pd.DataFrame:
    """Each ticket against its dense network, paired by seed.

    Args:
        table: of `dwlth.results.read_table`, or rows of it.
        margins: what a ticket may lose, in points, by column: `sa` and `ra`; see `Preset.margins`.
        all_four: judge `FOURTH` too.
        method: how the tickets were found.
        level: of the one-sided bounds.
        rule: `paired`: as below; `mean`: the means alone, for comparison with papers that report one seed: a ticket is
            double-win if no mean difference is below minus `tolerance`.
        tolerance: in points, for the rule `mean`.

    Returns:
        A row for each downstream task, fraction, source and round above 0 that some seed has all criteria of, or a
        failed run, ascending by round. Seeds: `pairs` have all judged criteria of dense network and ticket, and only
        these enter the numbers; `failed` have a failed run of either, or (their ticket) failed rounds of IMP; `missing`
        are the others. For each criterion, by its name, in points: the mean difference ticket minus dense network,
        and with ` low`, ` high` and ` sd` after the name its one-sided bounds (Student's t) and the spread of the
        differences, NaN with one pair. `answer`:

        - `double-win`: every lower bound lies above minus the margin, and no ticket's run failed
        - `not`: an upper bound lies below minus the margin, or a run of the ticket failed (diverged)
        - `undecided`: anything else; one seed decides nothing

        `why` says the criterion, or about how many seeds would decide it if mean and spread stay as seen.
        `in_sequence` is True while all less sparse tickets are double-win. A ticket that less than half of the seeds
        have (tried in a notebook, say) is no part of the sequence, and does not end it.

    Raises:
        DwlthError: for margins, a rule or a tolerance that are none.
    """
    if rule not in ("paired", "mean"):
        raise DwlthError(f"rule is {rule!r}: give paired or mean")
    if rule == "mean" and (tolerance is None or not tolerance >= 0):
        raise DwlthError(f"tolerance is {tolerance}: give points of accuracy, 0 or more, for the rule of means")
    check("level", level, 0.5 < level < 1, "the level of the one-sided bounds, between 0.5 and 1: 0.95, not 95")
    if rule == "paired" and tolerance is not None:
        raise DwlthError(f"tolerance is {tolerance}: it belongs to the rule of means; the paired rule has margins")
    judged, limits = criteria_of(margins, all_four)
    rows = []
    for key, paired in paired_by_seed(table, judged, method):
        mean, sd, low, high = bounds(paired.points, level)
        for i, round_ in enumerate(paired.rounds):
            pairs, of = int(paired.complete[:, i].sum()), slice(len(judged))
            seen = (value[i, of] for value in (mean, sd, low, high))
            answer, why = _answer(list(judged), limits, pairs, level, *seen)
            if broken := int(paired.broken[:, i].sum()):
                failed = f"{broken} of {len(paired.seeds)} seeds failed"
                answer, why = "not", f"{failed}; {why}" if answer == "not" else failed
            row = dict(zip(("downstream", "fraction", "source"), key))
            row |= {"round": round_, "sparsity": paired.sparsity[i], "pairs": pairs}
            row["failed"] = int(paired.failed[:, i].sum())
            row["missing"] = len(paired.seeds) - pairs - row["failed"]
            for j, name in enumerate(CRITERIA | FOURTH):
                row |= {name: mean[i, j], f"{name} low": low[i, j], f"{name} high": high[i, j], f"{name} sd": sd[i, j]}
            rows.append(row | {"answer": answer, "why": why})
    if not rows:
        return pd.DataFrame(columns=["downstream", "fraction", "source", "round", "answer", "why", "in_sequence"])
    found = pd.DataFrame(rows)
    found = found if rule == "paired" else _by_means(found, tolerance, list(judged))
    return found.assign(in_sequence=_in_sequence(found))


def verdict(
    table: pd.DataFrame,
    margins: Mapping[str, float],
    rule: str = "paired",
    tolerance: float | None = None,
    all_four: bool = False,
    method: str = "imp",
    level: float = 0.95,
) -> pd.DataFrame:
    """The sparsest double-win ticket per downstream task, fraction of the data and source: the last of those that are
    double-win one after the other, from the least sparse on.

    Args:
        table, margins, rule, tolerance, all_four, method, level: as of `tests`.

    Returns:
        A row each: `round` and `sparsity` (a fraction) of the sparsest double-win ticket, 0 if there is none;
        `next_round`, `next_sparsity`, `next_answer` (`not` or `undecided`) and `why` of the ticket that ended the
        sequence, NA and empty if none did; `pairs` (seeds) of the former, or of the latter if there is none.

    Raises:
        DwlthError: for margins, a rule or a tolerance that are none.
        NotYet: if no ticket can be judged.
    """
    found = tests(table, margins, all_four, method, level, rule, tolerance)
    if found.empty:
        raise NotYet(
            "no verdict yet: no source has a ticket and its dense network with the same seed, transferred under both "
            "regimes; `python -m dwlth run PRESET` makes them"
        )
    rows = []
    for key, group in found[found["in_sequence"]].groupby(["downstream", "fraction", "source"], sort=False):
        wins, ended = (group[(group["answer"] == "double-win") == won] for won in (True, False))
        last = wins.iloc[-1] if len(wins) else {"round": 0, "sparsity": 0.0, "pairs": group["pairs"].iloc[0]}
        end = ended.iloc[0] if len(ended) else {"round": pd.NA, "sparsity": np.nan, "answer": "", "why": ""}
        row = dict(zip(("downstream", "fraction", "source"), key)) | {"pairs": last["pairs"]}
        row |= {"round": int(last["round"]), "sparsity": last["sparsity"]}
        row |= {f"next_{name}": end[name] for name in ("round", "sparsity", "answer")} | {"why": end["why"]}
        rows.append(row)
    return pd.DataFrame(rows).astype({"next_round": "Int64"})


def with_most_data(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of a verdict with one fraction of the data: that in which the most sources have several seeds, of equals
    the largest."""
    sources = found[found["pairs"] > 1].groupby("fraction")["source"].nunique()
    sources = sources.reindex(found["fraction"].unique(), fill_value=0)
    return found[found["fraction"] == sources[sources == sources.max()].index.max()]


def transfers(table: pd.DataFrame, downstream: str, fraction: float | None = None) -> pd.DataFrame:
    """The rows of IMP's tickets, and of the dense networks, on a downstream task: with a fraction of its data, or with
    any. Failed runs are left out."""
    runs = table[(table["stage"] == "transfer") & (table["method"] == "imp") & (table["downstream"] == downstream)]
    runs = runs[~_failed(runs)]
    return runs if fraction is None else runs[runs["fraction"] == fraction]


def judge(
    table: pd.DataFrame, downstream: str, fraction: float, source: str, round_: int, margins: Mapping[str, float]
) -> str:
    """Whether the ticket of this source and round is double-win on a task with a fraction of its data, in a sentence.

    Args:
        table, margins: as of `tests`. The other tickets belong to it: the verdict may end before this one.
    """
    if round_ == 0:
        return "This is the dense network, which tickets are compared with."
    here = (table["downstream"] == downstream) & (table["fraction"] == fraction) | (table["stage"] == "imp")
    found = tests(table[here], margins)  # of all sources: one may lack all runs of a round whose tickets failed
    found = found[(found["source"] == source) & (found["round"] == round_)]
    if found.empty:
        return "Not judged: this needs the ticket and the dense network, transferred under both regimes."
    ticket = found.iloc[0]
    if ticket["answer"] == "double-win":
        won = f"Double-win: {ticket['pairs']} seeds show that it loses less than the margin in each criterion."
        but = " But the verdict ends before it: a less sparse ticket is not double-win, or few seeds have this one."
        return won + ("" if ticket["in_sequence"] else but)
    return f"{'Not double-win' if ticket['answer'] == 'not' else 'Undecided'}: {ticket['why']}."


def bounds(points: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation, and lower and upper one-sided bound of the mean (Student's t at this level), over the
    first axis without its NaNs; NaN where there are too few numbers."""
    from scipy.special import stdtrit  # late: only this needs it

    n = np.isfinite(points).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, np.nansum(points, 0) / n, np.nan)
        sd = np.where(n > 1, np.sqrt(np.nansum((points - mean) ** 2, 0) / (n - 1)), np.nan)
        half = stdtrit(np.where(n > 1, n - 1, np.nan), level) * sd / np.sqrt(n)
    return mean, sd, mean - half, mean + half


def seeds_to_decide(mean: float, sd: float, margin: float, level: float = 0.95) -> int:
    """The least number of seeds with which a mean difference and a spread (of the paired differences) as these, in
    points, decide a criterion; `MOST_SEEDS` + 1 where it is more."""
    from scipy.special import stdtrit

    n = np.arange(2, MOST_SEEDS + 1)
    enough = stdtrit(n - 1, level) * sd / np.sqrt(n) < abs(mean + margin)
    return int(n[enough.argmax()]) if enough.any() else MOST_SEEDS + 1


@dataclass(frozen=True)
class Paired:
    """Tickets and dense networks of one source, downstream task and fraction, paired by seed."""

    seeds: np.ndarray
    rounds: list[int]
    sparsity: list[float]
    points: np.ndarray
    """(seeds, rounds, criteria): ticket minus dense network, in points; NaN where not `complete`."""
    complete: np.ndarray
    """(seeds, rounds): all judged criteria are there."""
    broken: np.ndarray
    """(seeds, rounds): a run of the ticket failed, or one that it is made by."""
    failed: np.ndarray
    """(seeds, rounds): `broken`, or a run of the dense network failed."""


def criteria_of(margins: Mapping[str, float], all_four: bool) -> tuple[dict[str, tuple[str, str]], np.ndarray]:
    """The criteria that decide, as `CRITERIA`, and the margin of each in points, float64 [criteria].

    Raises:
        DwlthError: for margins that are none.
    """
    for column in ("sa", "ra"):
        if not margins.get(column, -1) >= 0:
            raise DwlthError(f"margins is {dict(margins)}: give points of accuracy, 0 or more, for sa and ra")
    judged = CRITERIA | FOURTH if all_four else CRITERIA
    return judged, np.array([margins[column] for _, column in judged.values()])


def _failed(table: pd.DataFrame) -> pd.Series:
    """Which rows are of failed runs."""
    return table["status"] == "failed" if "status" in table else pd.Series(False, table.index)


def paired_by_seed(
    table: pd.DataFrame, judged: Mapping[str, tuple[str, str]], method: str
) -> Iterator[tuple[tuple[str, float, str], Paired]]:
    """Tickets and dense networks of each downstream task, fraction (falling) and source, which are the key.

    Args:
        table, method: as of `tests`.
        judged: the first of `criteria_of`.
    """
    of_method = (table["method"] == method) | (table["round"] == 0)
    regimes = {regime for regime, _ in (CRITERIA | FOURTH).values()}
    runs = table[(table["stage"] == "transfer") & of_method & table["regime"].isin(regimes)]
    lost = table[_failed(table) & (table["stage"] == "imp")]
    own, any_ = (rows.groupby("round")["sparsity"].first() for rows in (table[of_method], table))
    sparsity = own.combine_first(any_)  # where all of its own failed
    place = {source: i for i, source in enumerate(in_order(runs["source"]))}
    keys = ["downstream", "fraction", "source"]
    for key, group in sorted(runs.groupby(keys), key=lambda item: (item[0][0], -item[0][1], place[item[0][2]])):
        seeds = np.unique(group["seed"])
        made_by = Run("transfer", key[2], 0, 1, method).found_by
        by = (made_by.source, made_by.method) if made_by else ("", "")
        broke = lost[(lost["source"] == by[0]) & (lost["method"] == by[1])]
        tried = group if broke.empty else runs[(runs["downstream"] == key[0]) & (runs["fraction"] == key[1])]
        rounds = [int(round_) for round_ in np.unique(tried["round"]) if round_ > 0]  # blocked ones have no rows
        at = np.searchsorted(seeds, group["seed"]), np.searchsorted([0, *rounds], group["round"])
        values = np.full((len(seeds), len(rounds) + 1, len(CRITERIA | FOURTH)), np.nan)
        for i, (regime, column) in enumerate((CRITERIA | FOURTH).values()):
            of = (group["regime"] == regime).to_numpy()
            values[at[0][of], at[1][of], i] = group[column][of]
        points = 100 * (values[:, 1:] - values[:, :1])
        ended = np.zeros(values.shape[:2], bool)
        np.logical_or.at(ended, at, _failed(group))
        broken = ended[:, 1:].copy()
        if len(broke):
            own = group["source_seed"] if "source_seed" in group else pd.Series(np.nan, group.index)
            source_seed = group["seed"].where(own.isna(), own).groupby(group["seed"]).first().to_numpy()
            for row in broke.itertuples():
                broken |= (source_seed == row.seed)[:, None] & (np.array(rounds) > row.round)
        complete = np.isfinite(points[..., : len(judged)]).all(-1) & ~broken
        points = np.where(complete[..., None], points, np.nan)
        shown = [i for i in range(len(rounds)) if (complete | broken)[:, i].any()]
        if shown:
            yield (
                key,
                Paired(
                    seeds,
                    [rounds[i] for i in shown],
                    [sparsity[rounds[i]] for i in shown],
                    *(part[:, shown] for part in (points, complete, broken, broken | ended[:, :1])),
                ),
            )


def _answer(names: list[str], limits: np.ndarray, pairs: int, level: float, *of: np.ndarray) -> tuple[str, str]:
    """The answer of one ticket, and why; `of` are mean, standard deviation, lower and upper bound of each criterion."""
    mean, sd, low, high = of
    if pairs < 2:
        return "undecided", "one seed decides nothing" if pairs else "no pair of finished runs"
    if worse := [i for i in range(len(names)) if high[i] < -limits[i] - ROUNDING]:
        return "not", "; ".join(f"{names[i]} loses {-mean[i]:.1f} points, {-high[i]:.1f} at least" for i in worse)
    if (low > ROUNDING - limits).all():
        return "double-win", ""
    needed = [seeds_to_decide(*values, level) for values in zip(mean, sd, limits)]
    below = [i for i in range(len(names)) if mean[i] < -limits[i]]
    # one criterion below is enough for "not"; for "double-win" the slowest must be decided
    last = min(below, key=needed.__getitem__) if below else max(range(len(names)), key=needed.__getitem__)
    seeds = f"about {needed[last]}" if needed[last] <= MOST_SEEDS else f"more than {MOST_SEEDS:,}"
    return "undecided", f"{names[last]} {mean[last]:+.1f} ± {mean[last] - low[last]:.1f}; {seeds} seeds would decide"


def enough(seeds: pd.Series, of: pd.Series | list[pd.Series]) -> pd.Series:
    """Whether tickets have half of the seeds or more that the ticket of their group with the most of them has."""
    return 2 * seeds >= seeds.groupby(of).transform("max")


def _in_sequence(found: pd.DataFrame) -> pd.Series:
    """For each ticket, whether it is part of the sequence, and all less sparse ones of its group are double-win."""
    keys = [found[key] for key in ("downstream", "fraction", "source")]
    part = enough(found["pairs"] + found["failed"], keys)
    wins = (found["answer"] == "double-win") | ~part
    return part & wins.groupby(keys).transform(lambda of: of.shift(fill_value=True).cummin()).astype(bool)


def _by_means(found: pd.DataFrame, tolerance: float, names: list[str]) -> pd.DataFrame:
    """Tests of `tests`, with the answers of the rule of means."""
    found = found.copy()
    for i, row in found.iterrows():
        low = [name for name in names if not row[name] >= -tolerance - ROUNDING]
        if row["pairs"] and not (row["answer"] == "not" and "failed" in row["why"]):
            why = "; ".join(f"{name} loses {-row[name]:.1f} points" for name in low)
            found.loc[i, ["answer", "why"]] = ["not" if low else "double-win", why]
    return found
