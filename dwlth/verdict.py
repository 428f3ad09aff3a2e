"""The verdict: which is the sparsest double-win ticket of each source?"""

import contextlib
from pathlib import Path

import pandas as pd

from dwlth.errors import DwlthError, NotYet
from dwlth.presets import in_order

CRITERIA = {
    "SA, standard transfer": ("standard", "sa"),
    "SA, adversarial transfer": ("adversarial", "sa"),
    "RA, adversarial transfer": ("adversarial", "ra"),
}
"""What a double-win ticket keeps: its name, the regime and the column of the table."""

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper.csv"


def verdict(table: pd.DataFrame, tolerance: float | None = None, method: str = "imp") -> pd.DataFrame:
    """The sparsest double-win ticket per source, downstream task and fraction of the data.

    A ticket is double-win if its mean over the seeds is, for each of the three `CRITERIA`, no lower than the dense
    network's mean minus the tolerance. Only rounds that have runs for all three are looked at.

    Args:
        table: of `dwlth.results.read_table`.
        tolerance: in points (percent), the same for all three; by default one standard error of the dense runs of
            that criterion, which is 0 for a single seed (our choice; the paper's tolerance is not known).

    Returns:
        A row for each source, downstream task and fraction: `seeds` (of the dense runs); `round` and `sparsity` (a
        fraction) of the sparsest double-win ticket, 0 if only the dense network is; `fails_at_round`,
        `fails_at_sparsity` and `fails_by`, the first round that is not double-win and the criteria it misses, empty
        if there is none; the largest `tolerance` that was used, in points; and for each criterion, by its name, a text:
        what that ticket gains over the dense network with the same seed, in points, the mean over the seeds and half
        the width of its 95 % confidence interval (Student's t; our choice), as in "-0.3 ± 0.8". The interval is that of
        one ticket, and allows nothing for its having been chosen out of many.

    Raises:
        DwlthError: for a negative tolerance.
        NotYet: if no source has dense runs under both regimes.
    """
    if tolerance is not None and not tolerance >= 0:
        raise DwlthError(f"tolerance is {tolerance}: give points of accuracy, 0 or more")
    runs = table[(table["stage"] == "transfer") & ((table["method"] == method) | (table["round"] == 0))]
    rows = []
    keys = ["downstream", "fraction", "source"]
    order = in_order(runs["source"])
    for key, group in sorted(runs.groupby(keys), key=lambda item: (item[0][0], -item[0][1], order.index(item[0][2]))):
        values = pd.DataFrame(
            {
                name: group[group["regime"] == regime].groupby("round")[column].agg(list)
                for name, (regime, column) in CRITERIA.items()
            }
        ).dropna()
        if 0 not in values.index:
            continue
        dense = values.loc[0].map(pd.Series)
        slack = dense.map(pd.Series.sem).fillna(0.0) if tolerance is None else dense.map(lambda _: tolerance / 100)
        floor = dense.map(pd.Series.mean) - slack - 1e-12  # against rounding where they are equal
        missed = values.map(lambda seeds: pd.Series(seeds).mean()).lt(floor, axis="columns")
        wins = missed.index[~missed.any(axis=1)]
        fails = missed.index[missed.any(axis=1)]
        sparsity = group.groupby("round")["sparsity"].first()
        rows.append(
            dict(zip(keys, key))
            | {"seeds": len(dense.iloc[0]), "round": wins.max(), "sparsity": sparsity[wins.max()]}
            | {
                "fails_at_round": fails.min() if len(fails) else pd.NA,
                "fails_at_sparsity": sparsity[fails.min()] if len(fails) else pd.NA,
                "fails_by": "; ".join(missed.columns[missed.loc[fails.min()]]) if len(fails) else "",
                "tolerance": 100 * slack.max(),
            }
            | {name: _gain(group[group["regime"] == r], column, wins.max()) for name, (r, column) in CRITERIA.items()}
        )
    if not rows:
        raise NotYet(
            "no verdict yet: no source has dense transfers under both regimes; `python -m dwlth run` makes them"
        )
    return pd.DataFrame(rows)


def _gain(runs: pd.DataFrame, column: str, round_: int) -> str:
    """What ticket `round_` gains over the dense network with the same seed, as `verdict` says it."""
    from scipy.special import stdtrit  # late: only this needs it

    if round_ == 0:
        return ""
    by_round = runs.groupby(["seed", "round"])[column].mean().unstack()
    points = 100 * (by_round[round_] - by_round[0]).dropna()
    half = stdtrit(len(points) - 1, 0.975) * points.sem() if len(points) > 1 else 0.0
    return f"{points.mean():+.1f}" + (f" ± {half:.1f}" if len(points) > 1 else "")


def transfers(table: pd.DataFrame, downstream: str, fraction: float | None = None) -> pd.DataFrame:
    """The rows of IMP's tickets, and of the dense networks, on a downstream task: with a fraction of its data, or with
    any."""
    runs = table[(table["stage"] == "transfer") & (table["method"] == "imp") & (table["downstream"] == downstream)]
    return runs if fraction is None else runs[runs["fraction"] == fraction]


def judge(runs: pd.DataFrame, round_: int) -> str:
    """Whether ticket `round_` is double-win, in a sentence.

    Args:
        runs: rows of `transfers`, of one source.
    """
    if round_ == 0:
        return "This is the dense network, which tickets are compared with."
    with contextlib.suppress(NotYet):
        found = verdict(runs[runs["round"].isin([0, round_])]).iloc[0]
        if found["round"] == round_:
            return "Double-win: within one standard error of the dense network in all three criteria."
        if found["fails_at_round"] == round_:
            return f"Not double-win: more than one standard error below the dense network in {found['fails_by']}."
    return "Not judged: this needs the ticket and the dense network, transferred under both regimes."
