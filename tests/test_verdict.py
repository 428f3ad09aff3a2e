import pandas as pd
import pytest
from scipy import stats

from dwlth.errors import DwlthError, NotYet
from dwlth.verdict import report, verdict

ROUNDS = range(0, 20)


def table(sa_standard, sa_adversarial, ra_adversarial, source="adversarial", seeds=1, fraction=1.0):
    """A table of transfers whose values are functions of round and seed, in percent."""
    rows = []
    for seed in range(seeds):
        for k in ROUNDS:
            row = {"stage": "transfer", "method": "imp", "downstream": "CIFAR-10", "fraction": fraction}
            row |= {"source": source, "seed": seed, "round": k, "sparsity": 1 - 0.8**k}
            rows.append(row | {"regime": "standard", "sa": sa_standard(k, seed) / 100, "ra": 0.0})
            sa, ra = sa_adversarial(k, seed) / 100, ra_adversarial(k, seed) / 100
            rows.append(row | {"regime": "adversarial", "sa": sa, "ra": ra})
    return pd.DataFrame(rows)


def falls_after(last, by=1.0):
    return lambda k, seed: 80.0 - by * (k > last)


def test_the_last_round_that_keeps_all_three():
    found = verdict(table(falls_after(12), falls_after(15), falls_after(11))).iloc[0]
    assert found["round"] == 11 and found["sparsity"] == pytest.approx(0.9141, abs=5e-5)
    assert found["fails_at_round"] == 12 and found["fails_by"] == "RA, adversarial transfer"


@pytest.mark.parametrize("criterion", [0, 1, 2])
def test_each_of_the_three_counts(criterion):
    values = [falls_after(19), falls_after(19), falls_after(19)]
    values[criterion] = falls_after(5)
    found = verdict(table(*values)).iloc[0]
    names = ["SA, standard transfer", "SA, adversarial transfer", "RA, adversarial transfer"]
    assert found["round"] == 5 and found["fails_by"] == names[criterion]


def test_the_paper_s_claim():
    claim = {("standard", "CIFAR-10"): 10, ("standard", "CIFAR-100"): 6}
    claim |= {("fast_adversarial", "CIFAR-10"): 10, ("fast_adversarial", "CIFAR-100"): 7}
    claim |= {("adversarial", "CIFAR-10"): 11, ("adversarial", "CIFAR-100"): 8}
    tables = [
        table(falls_after(k), falls_after(k + 1), falls_after(k), source=source).assign(downstream=task)
        for (source, task), k in claim.items()
    ]
    found = verdict(pd.concat(tables)).set_index(["source", "downstream"])["round"]
    assert found.to_dict() == claim


def test_the_sparsest_counts_even_beyond_a_failure():
    dip = lambda k, seed: 79.0 if k == 3 else falls_after(9)(k, seed)
    found = verdict(table(dip, falls_after(19), falls_after(19))).iloc[0]
    assert found["round"] == 9 and found["fails_at_round"] == 3


def test_the_tolerance_is_one_standard_error_of_the_dense_runs():
    spread = lambda k, seed: 80.0 + seed - (0.57 if 0 < k <= 5 else 0.6 if k > 5 else 0)  # 3 seeds: s.e. 1/sqrt(3)
    runs = table(spread, falls_after(19), falls_after(19), seeds=3)
    found = verdict(runs).iloc[0]
    assert found["round"] == 5 and found["tolerance"] == pytest.approx(100 * 0.01 / 3**0.5) and found["seeds"] == 3
    assert verdict(runs, tolerance=0.5).iloc[0]["round"] == 0
    assert verdict(runs, tolerance=0.7).iloc[0]["round"] == 19


def test_a_ticket_that_never_fails_and_one_that_never_wins():
    found = verdict(table(falls_after(19), falls_after(19), falls_after(19))).iloc[0]
    assert found["round"] == 19 and pd.isna(found["fails_at_round"]) and found["fails_by"] == ""
    found = verdict(table(falls_after(0), falls_after(0), falls_after(0))).iloc[0]
    assert found["round"] == 0 and found["fails_by"].count(";") == 2


def test_fractions_are_judged_apart():
    runs = pd.concat(
        [table(falls_after(9), falls_after(9), falls_after(9)), table(*[falls_after(4)] * 3, fraction=0.1)]
    )
    assert verdict(runs).set_index("fraction")["round"].to_dict() == {1.0: 9, 0.1: 4}


def test_rounds_without_all_three_are_not_judged():
    runs = table(*[falls_after(19)] * 3)
    runs = runs[~((runs["round"] > 7) & (runs["regime"] == "adversarial"))]
    assert verdict(runs).iloc[0]["round"] == 7
    with pytest.raises(NotYet):
        verdict(runs[runs["regime"] == "standard"])


def test_refuses_a_negative_tolerance():
    with pytest.raises(DwlthError, match="tolerance is -1"):
        verdict(table(*[falls_after(9)] * 3), tolerance=-1)


def test_the_gain_over_the_dense_network_and_its_confidence_interval():
    noisy = lambda k, seed: 80.0 + 10 * seed + (k > 0) * [0.0, 0.1, 0.5][seed]  # paired, so that 10 * seed is no noise
    found = verdict(table(noisy, falls_after(19), falls_after(19), seeds=3)).iloc[0]
    interval = stats.ttest_1samp([0.0, 0.1, 0.5], 0).confidence_interval(0.95)
    assert found["round"] == 19 and found["SA, standard transfer"] == f"+0.2 ± {(interval.high - interval.low) / 2:.1f}"
    assert found["RA, adversarial transfer"] == "+0.0 ± 0.0"
    single = verdict(table(noisy, falls_after(19), falls_after(19))).iloc[0]
    assert single["SA, standard transfer"] == "+0.0"  # one seed: no interval
    never = verdict(table(*[falls_after(0)] * 3, seeds=3))
    assert never.iloc[0]["SA, standard transfer"] == "" and "±" not in report(never, "digits")


def test_the_report_has_the_paper_s_numbers_apart():
    text = report(verdict(table(*[falls_after(9)] * 3)), "digits")
    ours, paper = text.split("The paper's, another scale of experiment")
    assert "86.58% (round 9)" in ours and "91.41% (round 11)" in paper and "73.79% (round 6)" in paper
