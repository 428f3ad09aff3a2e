"""The kit's own questions of the scoreboard, which the paper leaves open: what the mask brings, and what the weights
(`dwlth.controls`).

Each answer is a table of points: a row for each seed, a column for each of the verdict's criteria. It is None where the
table of results has no runs for it. Where these have several fractions of the data, the largest counts.
"""

from contextlib import suppress

import pandas as pd

from dwlth.errors import NotYet
from dwlth.results import ended
from dwlth.show.crossing import against_imp, crossed
from dwlth.verdict import CRITERIA


def over_shuffled(table: pd.DataFrame, tasks: list[str]) -> pd.DataFrame | None:
    """*IMP's mask beats a shuffled one*: SA and RA of IMP's tickets minus those of the same masks, shuffled in each
    layer; the mean over sources, rounds and tasks."""
    found, fraction, both = [], _most_data(table, "shuffled"), table[table["method"].isin(["imp", "shuffled"])]
    for task in tasks:
        with suppress(NotYet):
            found.append(against_imp(both, task, fraction).assign(task=task))
    if not found:
        return None
    return _by_seed(-pd.concat(found).pivot_table("points", ["seed", "source", "round", "task"], "criterion"))


def weights_over_mask(table: pd.DataFrame, tasks: list[str]) -> pd.DataFrame | None:
    """*The source of the weights matters more than that of the mask*: in the crossing of masks and weights, for each
    seed and round the spread (standard deviation) of the means of the sources of the weights minus that of the means
    of the sources of the masks; the mean over rounds and tasks."""
    spreads, fraction = [], _most_data(table, "crossed@")
    for task in tasks:
        with suppress(NotYet):
            found, cell = crossed(table, task, fraction).assign(task=task), ["seed", "round", "task"]
            of = [found.groupby([*cell, by])[list(CRITERIA)].mean() for by in ("weights", "mask")]
            weights, mask = (means.groupby(level=cell).std() for means in of)
            spreads.append(weights - mask)
    return _by_seed(pd.concat(spreads)) if spreads else None


def own_training(table: pd.DataFrame, tasks: list[str]) -> pd.DataFrame | None:
    """*IMP must train as its source did*: SA and RA of IMP's tickets minus those that IMP found on the same source with
    the training of another; the mean over the other trainings, sources, rounds and tasks."""
    found, fraction = [], _most_data(table, "trained@")
    for task in tasks:
        with suppress(NotYet):
            found.append(crossed(table, task, fraction, "trained").assign(task=task))
    if not found:
        return None
    cells = pd.concat(found)
    own, cell = cells["weights"] == cells["mask"], ["seed", "round", "weights", "task"]
    # the mean of each source first: it has one training of its own, and several others
    means = [cells[of].groupby(cell)[list(CRITERIA)].mean() for of in (own, ~own)]
    return _by_seed(means[0] - means[1])


def barriers(table: pd.DataFrame) -> pd.DataFrame | None:
    """*No barrier parts two trainings from one start*: what is lost on the straight line between them; the mean over
    sources, rounds and tasks."""
    runs = ended(table).query("stage == 'connect'")
    runs = runs[runs["fraction"] == runs["fraction"].max()]
    cell = ["seed", "source", "round", "downstream"]
    of = {regime: rows.set_index(cell) for regime, rows in runs.groupby("regime")}
    columns = {name: of[regime][f"barrier_{key}"] for name, (regime, key) in CRITERIA.items() if regime in of}
    return _by_seed(100 * pd.DataFrame(columns)) if columns else None


def _most_data(table: pd.DataFrame, method: str) -> float | None:
    """The largest fraction of the data with which tickets of a method, or of those that begin so, were transferred."""
    runs = ended(table)
    fractions = runs["fraction"][(runs["stage"] == "transfer") & runs["method"].str.startswith(method)]
    return fractions.max() if len(fractions) else None


def _by_seed(cells: pd.DataFrame) -> pd.DataFrame | None:
    """The mean over the cells of an experiment, by seed: of the cells that half of the seeds have or more, and of seeds
    that have all of these. None where nothing is left.

    Args:
        cells: a column for each criterion; the index has the seed and what makes a cell. A cell without all criteria
            is none: a run under way has such.
    """
    cells = cells.reindex(columns=list(CRITERIA)).dropna()
    if cells.empty:
        return None
    wide = cells.unstack([name for name in cells.index.names if name != "seed"])
    count = wide.notna().sum()
    means = wide.loc[:, 2 * count >= count.max()].dropna().T.groupby(level=0, sort=False).mean().T
    return None if means.empty else means
