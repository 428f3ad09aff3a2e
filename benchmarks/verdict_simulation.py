"""How often the verdict is right: simulated tickets, judged by the rule of `dwlth.verdict`, and by the rule before it.

    python benchmarks/verdict_simulation.py

It prints the tables of docs/verdict.md, in half a minute on one core.

A dense network and its ticket are drawn seed by seed, with three criteria, all with a margin of 1 point. Their paired
differences are normal with a spread `sd`; the points of dense networks spread more, as dense and ticket correlate at
0.95 (so in the results of `digits`).
"""

import numpy as np

from dwlth.verdict import bounds

SEEDS, SPREADS, TABLES, CORRELATION = (5, 10, 20, 50), (0.5, 1.0, 2.0), 10_000, 0.95


def draw(rng: np.random.Generator, seeds: int, sd: float, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of dense networks, (seeds, tables, 1, 3), and of tickets minus dense, (seeds, tables, tickets, 3), which
    lose `loss` (tickets, 3) in truth."""
    common = rng.standard_normal((seeds, TABLES, 1, 3))
    spread = sd / np.sqrt(2 * (1 - CORRELATION))  # of one network's points
    own = [np.sqrt(1 - CORRELATION) * rng.standard_normal((seeds, TABLES, n, 3)) for n in (1, len(loss))]
    dense, ticket = (spread * (np.sqrt(CORRELATION) * common + part) for part in own)
    return dense, ticket - dense - loss


def paired(dense: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """(tables, tickets): whether the rule calls them double-win."""
    return (bounds(difference)[2] > -1).all(-1)


def old(dense: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """The same by the rule before: no mean is more than one standard error of the dense runs below theirs."""
    error = dense.std(0, ddof=1) / np.sqrt(len(dense)) if len(dense) > 1 else np.zeros(dense.shape[1:])
    return (difference.mean(0) >= -error).all(-1)


def share(rule, seeds: int, sd: float, loss: tuple[float, float, float]) -> float:
    """In percent, of tables where the one ticket is called double-win."""
    return 100 * rule(*draw(np.random.default_rng(0), seeds, sd, np.array([loss]))).mean()


def too_sparse(rule, seeds: int, sd: float) -> float:
    """In percent, of tables where the answer is sparser than the truth. Of six tickets the first three equal the dense
    network, the fourth loses exactly the margin in one criterion, and the others lose more and more."""
    loss = np.array([[0, 0, 0]] * 3 + [[0, 0, lost] for lost in (1, 1.5, 2)], float)
    wins = rule(*draw(np.random.default_rng(1), seeds, sd, loss))
    if rule is paired:
        return 100 * (np.cumprod(wins, axis=1).sum(1) > 3).mean()
    return 100 * wins[:, 3:].any(1).mean()  # the rule before took the sparsest of all


def table(title: str, columns: tuple, cells) -> None:
    print(f"\n{title}\n\n| spread | {' | '.join(f'{n} seeds' for n in columns)} |\n|---|{'---|' * len(columns)}")
    for sd in SPREADS:
        print(f"| {sd:g} | {' | '.join(cells(n, sd) for n in columns)} |")


def main() -> None:
    losses = {"equal": (0, 0, 0), "one criterion at the margin": (0, 0, 1), "all three at the margin": (1, 1, 1)}
    for name, loss in losses.items():
        table(
            f"Double-win, true loss: {name} (% of {TABLES:,} tables: this rule / the rule before)",
            SEEDS,
            lambda n, sd, loss=loss: f"{share(paired, n, sd, loss):.1f} / {share(old, n, sd, loss):.1f}",
        )
    table(
        "Sparser than the truth, of six tickets (%: this rule / the rule before)",
        SEEDS,
        lambda n, sd: f"{too_sparse(paired, n, sd):.1f} / {too_sparse(old, n, sd):.1f}",
    )
    table(
        "With many seeds, true loss of half the margin in one criterion: double-win (%: this rule / the rule before)",
        (5, 20, 100, 200),
        lambda n, sd: f"{share(paired, n, sd, (0, 0, 0.5)):.1f} / {share(old, n, sd, (0, 0, 0.5)):.1f}",
    )


if __name__ == "__main__":
    main()
