"""How sure the order of the sources is: seeds are drawn anew, and the verdict is made again."""

from collections.abc import Iterator, Mapping
from itertools import combinations, groupby

import numpy as np
import pandas as pd

from dwlth.verdict import ROUNDING, Paired, criteria_of, paired_by_seed


def order(table: pd.DataFrame, margins: Mapping[str, float], draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How sure the order of the sources is: seeds are drawn anew, with replacement, the same ones for both sources,
    and the verdict is made again (after rliable's probability of improvement).

    Args:
        table, margins: as of `tests`.
        draws: resamples.
        seed: of their random numbers.

    Returns:
        A row for each downstream task, fraction and two sources `a` and `b` that share 3 seeds or more (fewer cannot
        be resampled): `seeds`, and the shares of resamples in which the sparsest double-win ticket of `a` is
        `sparser`, `tied` (both may have none) or `less` sparse than that of `b`.
    """
    rows = [
        {"downstream": downstream, "fraction": fraction, "a": a, "b": b, "seeds": seeds}
        | {"sparser": (more > 0).mean(), "tied": (more == 0).mean(), "less": (more < 0).mean()}
        for downstream, fraction, a, b, seeds, _, more in resampled(table, margins, draws, seed)
    ]
    return pd.DataFrame(rows, columns=["downstream", "fraction", "a", "b", "seeds", "sparser", "tied", "less"])


def resampled(
    table: pd.DataFrame, margins: Mapping[str, float], draws: int = 2000, seed: int = 0
) -> Iterator[tuple[str, float, str, str, int, float, np.ndarray]]:
    """What `order` counts: downstream task, fraction, sources a and b, the number of seeds that both have, and the
    sparsity of the sparsest double-win ticket of a minus that of b: with these seeds, and in each resample of them
    (draws,)."""
    judged, limits = criteria_of(margins, False)
    groups = list(paired_by_seed(table, judged, "imp"))
    for (downstream, fraction), members in groupby(groups, key=lambda group: group[0][:2]):
        of = {key[2]: paired for key, paired in members}
        for b, a in combinations(of, 2):
            usable = [paired.seeds[(paired.complete | paired.broken).any(1)] for paired in (of[a], of[b])]
            seeds = np.intersect1d(*usable)
            if len(seeds) > 2:
                weights = np.random.default_rng(seed).multinomial(len(seeds), [1 / len(seeds)] * len(seeds), draws)
                weights = np.vstack([np.ones(len(seeds), int), weights])
                first, second = (last_win(of[source], seeds, weights, limits) for source in (a, b))
                yield downstream, fraction, a, b, len(seeds), first[0] - second[0], (first - second)[1:]


def last_win(paired: Paired, seeds: np.ndarray, weights: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The sparsity of the last double-win ticket of the sequence, 0 if there is none, in each resample of these seeds:
    `weights` (draws, seeds) says how often each is drawn."""
    from scipy.special import stdtrit

    rows = np.searchsorted(paired.seeds, seeds)
    tried = (paired.complete | paired.failed).sum(0)
    part = 2 * tried >= tried.max()  # as in `dwlth.verdict`
    complete, points = paired.complete[rows][:, part], paired.points[rows][:, part, : len(limits)]
    n = (weights @ complete)[..., None]  # (draws, rounds, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.nansum(points, 0) / complete.sum(0)[:, None]
        off = np.where(complete[..., None], points - centre, 0.0)
        mean = np.tensordot(weights, off, 1) / n
        spread = np.tensordot(weights, off**2, 1) / n - mean**2
        half = stdtrit(np.maximum(n - 1, 1), 0.95) * np.sqrt(spread.clip(0) / (n - 1))
        wins = (
            (centre + mean - half > ROUNDING - limits).all(-1)
            & (n[..., 0] > 1)
            & (weights @ paired.broken[rows][:, part] == 0)
        )
    return np.array([0.0, *np.array(paired.sparsity)[part]])[np.cumprod(wins, axis=1).sum(1)]
