"""Mask or weights? What the controls of `dwlth.controls` say, from the table alone.

Intervals are of 95 %: of means over the seeds Student's t, of shares the jackknife over the seeds.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from dwlth.controls import other
from dwlth.errors import NotYet
from dwlth.presets import in_order, in_words
from dwlth.results import percents, sparsity_by_round
from dwlth.verdict import CRITERIA, bounds

PARTS = ("weights", "mask", "match", "seeds", "rest")
"""What the spread of a crossing is due to; see `variance`."""


def crossed(table: pd.DataFrame, downstream: str, fraction: float | None = None, kind: str = "crossed") -> pd.DataFrame:
    """The transfers of a crossing, a row for each seed, IMP round and cell: `weights`, the source of the weights;
    `mask`, that of the mask (`kind` crossed), or the one whose training the rounds of IMP had (trained); and the
    criteria of the verdict, in percent. Where the two are the same source, the ticket is IMP's own. A seed that has not
    every cell of a round is left out there. Of kind trained, cells are missing where two sources train alike in IMP:
    those tickets are IMP's own too.

    Args:
        fraction: of the downstream data, the column `fraction`; None: the largest that has a crossing.

    Raises:
        NotYet: where nothing is left.
    """
    runs = table[(table["stage"] == "transfer") & (table["downstream"] == downstream) & (table["round"] > 0)]
    runs = percents(runs)
    runs = _at(runs, [name.startswith(f"{kind}@") for name in runs["method"]], fraction)
    if runs.empty:
        raise NotYet(f"no {kind} tickets: `python -m dwlth run PRESET` with `--set methods=imp,{kind}` makes them")
    own, far = runs["method"] == "imp", runs["method"].str.startswith(f"{kind}@")
    runs = runs.assign(weights=runs["source"], mask=runs["source"].where(own, runs["method"].map(other)))
    runs = runs[(own & runs["round"].isin(runs["round"][far]) & runs["source"].isin(runs["source"][far])) | far]
    index = ["fraction", "round", "seed", "weights", "mask"]
    criteria = {
        name: runs[runs["regime"] == regime].set_index(index)[column] for name, (regime, column) in CRITERIA.items()
    }
    found = pd.DataFrame(criteria, columns=list(CRITERIA)).dropna().reset_index()
    cells = found["weights"].nunique() * found["mask"].nunique()
    if kind == "trained":
        cells = len(runs[["weights", "mask"]].drop_duplicates())
    found = found[found.groupby(["round", "seed"])["weights"].transform("size") == cells]
    if found.empty:
        raise NotYet(f"no seed in the table has every cell of the crossing: `--set methods=imp,{kind}` makes them")
    return found.reset_index(drop=True)


def variance(
    table: pd.DataFrame,
    downstream: str,
    fraction: float | None = None,
    kind: str = "crossed",
) -> pd.DataFrame:
    """How much of the spread of `crossed` is due to what: an analysis of variance with the seeds as blocks.

    Returns:
        A row for each round, criterion and part, with the `fraction` of the data and the number of `seeds`: `share` of
        the sum of squares (fractions in [0, 1], 1 in all), and the bounds `low` and `high` of its interval
        (`jackknife`). The parts are `weights`, `mask`, `match` (that a mask suits the weights it was found with, or any
        others: their interaction), `seeds`, and `rest`, which is chance. By chance alone weights and mask would have
        (sources - 1) / (seeds * sources^2 - 1) each, with 10 seeds and 3 sources 2 %.

    Raises:
        NotYet: as of `crossed`, and for fewer than 3 seeds, of which no interval can be told.
    """
    found, rows = crossed(table, downstream, fraction, kind), []
    if found.groupby(["round", "seed"]).size().min() < found["weights"].nunique() * found["mask"].nunique():
        raise NotYet(f"no analysis of variance of kind {kind}: some cells are missing")
    for round_, criterion, cells in _cells(found):
        if len(cells) < 3:
            raise NotYet(
                f"{len(cells)} of 3 seeds that an interval needs: `python -m dwlth run PRESET --seeds 10 "
                f"--set methods=imp,{kind}` makes more"
            )
        seen, (low, high) = shares(cells[None])[0], jackknife(cells)
        low, high = np.minimum(low, seen), np.maximum(high, seen)  # near 0 both ends are cut there
        for i, part in enumerate(PARTS):
            row = {"fraction": found["fraction"].iloc[0], "round": round_, "criterion": criterion, "part": part}
            row["seeds"] = len(cells)
            rows.append(row | {"share": seen[i], "low": low[i], "high": high[i]})
    return pd.DataFrame(rows)


def _cells(found: pd.DataFrame) -> Iterator[tuple[int, str, np.ndarray]]:
    """Round, criterion, and the cells as [seeds, weights, masks]."""
    names = [in_order(found[by]) for by in ("weights", "mask")]
    for round_, of in found.groupby("round"):
        wide = of.set_index(["seed", "weights", "mask"])[list(CRITERIA)].unstack(["weights", "mask"])
        for criterion in CRITERIA:
            cells = wide[criterion][pd.MultiIndex.from_product(names)].to_numpy()
            yield round_, criterion, cells.reshape(-1, *map(len, names))


def shares(cells: np.ndarray) -> np.ndarray:
    """The shares of `PARTS` in the sum of squares ([draws, 5]) of values [draws, seeds, weights, masks]."""
    n, w, m = cells.shape[1:]
    grand = cells.mean((1, 2, 3), keepdims=True)
    of_weights = cells.mean((1, 3), keepdims=True) - grand
    of_mask = cells.mean((1, 2), keepdims=True) - grand
    of_match = cells.mean(1, keepdims=True) - grand - of_weights - of_mask
    of_seeds = cells.mean((2, 3), keepdims=True) - grand
    rest = cells - grand - of_weights - of_mask - of_match - of_seeds
    parts = (of_weights, of_mask, of_match, of_seeds, rest)
    squares = np.stack([np.broadcast_to(part**2, cells.shape).sum((1, 2, 3)) for part in parts], 1)
    return squares / np.maximum(squares.sum(1, keepdims=True), 1e-12)


def jackknife(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bounds ([5] each) of 95 % intervals of the `shares` of values [seeds, weights, masks]. Each seed is left out
    in turn, and Student's t is taken of the pseudo-values (Tukey, 1958) of the arcsine of a share's root. In simulated
    tables of 3 and 10 seeds such an interval holds the shares of weights, mask and match in more than 91 of 100, and
    the others in more than 83 (tests/test_controls.py)."""
    angle, n = lambda values: np.arcsin(np.sqrt(shares(values))), len(cells)
    rest = angle(np.stack([np.delete(cells, seed, 0) for seed in range(n)]))
    _, _, low, high = bounds(n * angle(cells[None]) - (n - 1) * rest, 0.975)
    return np.sin(low.clip(0)) ** 2, np.sin(high.clip(0, np.pi / 2)) ** 2


def against_imp(table: pd.DataFrame, downstream: str, fraction: float | None = None) -> pd.DataFrame:
    """Each other method against IMP on the same source, paired by seed: a row for each `fraction`, `source`, `round`,
    `method`, `criterion` and `seed`, with the `points` that it is better by than IMP (below 0: worse). Crossings and
    IMP with other training are left out.

    Raises:
        NotYet: where there is none.
    """
    runs = table[(table["stage"] == "transfer") & (table["downstream"] == downstream) & (table["round"] > 0)]
    runs = percents(runs[~runs["method"].str.contains("@")])
    runs = _at(runs, list(runs["method"] != "imp"), fraction)
    found = over(runs, "method", "imp", ["fraction", "source", "round", "seed"])
    if found.empty:
        raise NotYet(
            "no pruning but IMP in the table: `python -m dwlth run PRESET` with `--set methods=shuffled` makes it"
        )
    return found


def over(runs: pd.DataFrame, by: str, base: str, index: list[str]) -> pd.DataFrame:
    """What each value of the column `by` is better by than the value `base`, in points (below 0: worse), where all of
    `index` is the same: a row for each, with the `criterion` and the `points`. SA and RA of `runs` are in percent."""
    parts = [pd.DataFrame(columns=[*index, by, "points", "criterion"])]
    for criterion, (regime, metric) in CRITERIA.items():
        wide = runs[runs["regime"] == regime].pivot_table(metric, index, by)
        if base in wide and wide.shape[1] > 1:
            points = wide.sub(wide.pop(base), axis=0).stack().dropna().rename_axis([*index, by]).rename("points")
            parts.append(points.reset_index().assign(criterion=criterion))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def words(table: pd.DataFrame, downstream: str, fraction: float | None = None) -> str:
    """What the picture of the crossing shows at its last round, in two sentences. The intervals know nothing of the
    choice of the lowest cell, and of the best ones beside it.

    Raises:
        NotYet: as of `variance`.
    """
    found, parts = crossed(table, downstream, fraction), variance(table, downstream, fraction)
    last, criterion = found["round"].max(), "RA, adversarial transfer"
    of = parts[(parts["round"] == last) & (parts["criterion"] == criterion)].set_index("part")
    share = {part: f"{row.share:.0%} ({row.low:.0%} to {row.high:.0%})" for part, row in of.iterrows()}
    cells, sparsity = found[found["round"] == last], sparsity_by_round(table[table["method"] == "imp"])[last]
    reach = {by: np.ptp(cells.groupby(by)[criterion].mean()) for by in ("weights", "mask")}
    more = "weights" if of["share"]["weights"] > of["share"]["mask"] else "mask"
    less = "mask" if more == "weights" else "weights"
    means = cells.groupby(["weights", "mask"])[criterion].mean()
    means = means.rename(in_words)
    weights, mask = means.idxmin()
    wide = cells.set_index(["seed", "weights", "mask"])[criterion].unstack(["weights", "mask"]).rename(columns=in_words)

    def gain(to: tuple[str, str]) -> str:
        points, _, low, high = bounds((wide[to] - wide[weights, mask]).to_numpy(), 0.975)
        return f"{points:+.1f} points ({low:.1f} to {high:.1f})"

    masks, sources = means[weights], means.xs(mask, level="mask")
    return (
        f"At {sparsity:.2%} sparsity, RA after adversarial transfer depends more on the source of the {more}, whose "
        f"means lie {reach[more]:.1f} points apart and to which {share[more]} of the spread is due, than on that of "
        f"the {less}, with {reach[less]:.1f} points and {share[less]}. It is lowest, {means.min():.1f} %, for {weights}"
        f" weights with the {mask} mask: on these weights the {masks.idxmax()} mask brings "
        f"{gain((weights, masks.idxmax()))}, and under this mask the {sources.idxmax()} weights bring "
        f"{gain((sources.idxmax(), mask))}."
    )


def _at(runs: pd.DataFrame, chosen: list[bool], fraction: float | None) -> pd.DataFrame:
    """The runs with a fraction of the data, by default the largest of the `chosen` ones; none where none is chosen."""
    fraction = runs["fraction"][chosen].max() if fraction is None else fraction
    return runs[(runs["fraction"] == fraction) & any(chosen)]
