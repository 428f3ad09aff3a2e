"""The scoreboard: planted tables, of which each claim's answer is known."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dwlth import presets
from dwlth.results import Folder
from dwlth.results.records import write_table
from dwlth.show import claims, report, sentences
from dwlth.show.claims import scoreboard
from dwlth.show.sparsity import savings
from dwlth.verdict import CRITERIA, verdict

MARGINS = {"sa": 1.0, "ra": 2.0}
SPREADS = {"standard": 4.0, "adversarial": 0.2}
EXIST, SPARSER, HIGHER, SCARCE, LESS, SPARSITY = range(6)


def planted(gain, last=None, seeds=6, fractions=(1.0, 0.1), rounds=(0, 2, 6, 10), noise=0.2, task="digits5-9"):
    """Transfers of a standard source, and of an adversarial one that is `gain(criterion, fraction, round)` points
    better; tickets beyond a source's `last` round lose 5 points in each criterion."""
    rng, last, rows = np.random.default_rng(0), last or {"standard": 6, "adversarial": 6}, []
    level = 70 + 3 * rng.standard_normal((len(fractions), seeds))
    for source, end in last.items():
        for (i, fraction), seed, k in product(enumerate(fractions), range(seeds), rounds):
            of = level[i, seed] - 5.0 * (k > end) + noise * rng.standard_normal(3)
            if source == "adversarial":
                of = [value + gain(criterion, fraction, k) for criterion, value in enumerate(of)]
            row = {"stage": "transfer", "method": "imp", "downstream": task, "source": source, "seed": seed}
            row |= {"fraction": fraction, "round": k, "sparsity": 1 - 0.8**k}
            rows.append(row | {"regime": "standard", "sa": of[0] / 100, "ra": 0.0})
            rows.append(row | {"regime": "adversarial", "sa": of[1] / 100, "ra": of[2] / 100})
    return pd.DataFrame(rows)


def answers(table, **how):
    return scoreboard(table, MARGINS, **how)["answer"].tolist()


def test_a_table_that_supports_every_claim():
    def grows(criterion, fraction, k):
        return 3 + 4 * (fraction < 1) + 0.4 * k

    runs = planted(grows, {"standard": 2, "adversarial": 6})
    board = scoreboard(runs, MARGINS)
    assert set(board["answer"][2:]) == {"supported"} and (board["seeds"] == 6).all()
    assert list(board.columns) == ["claim", "answer", "effect", "seeds", "figure"]
    assert board["figure"].tolist() == [
        "double-wins-digits5-9.png",
        "double-wins-digits5-9.png",
        "curves-digits5-9-1.png",
        "curves-digits5-9-0.1.png",
        "gain-digits5-9.png",
        "curves-digits5-9-1.png",
    ]
    assert board["answer"].tolist()[:2] == ["supported", "supported"]
    assert board["effect"][EXIST].startswith("adversarial, 73.79%: SA standard")
    assert board["effect"][SPARSER].startswith("+37.8 points of sparsity (")


def test_tables_that_contradict():
    falls = planted(lambda c, fraction, k: -3 - 4 * (fraction < 1) - 0.1 * k, {"standard": 6, "adversarial": 2})
    assert answers(falls) == ["supported"] + ["contradicted"] * 5
    nothing = scoreboard(planted(lambda c, fraction, k: 3.0, {"standard": 0, "adversarial": 0}), MARGINS)
    assert nothing["answer"][EXIST] == "contradicted" and nothing["answer"][SPARSER] == "undecided"
    assert nothing["effect"][SPARSER].startswith("+0.0 points of sparsity (0.0 to 0.0)")


@pytest.mark.parametrize("worse", [0, 1, 2])
def test_one_criterion_that_is_lower_contradicts_and_is_said(worse):
    board = scoreboard(planted(lambda c, fraction, k: -4.0 if c == worse else 4.0), MARGINS)
    assert board["answer"][HIGHER] == board["answer"][SCARCE] == "contradicted"
    assert board["effect"][HIGHER].startswith("mixed: SA standard ")
    parts = board["effect"][HIGHER].split(";")
    assert [float(part.split("(")[0].split()[-1]) < 0 for part in parts] == [c == worse for c in range(3)]


def test_one_criterion_without_a_gain_is_undecided():
    board = scoreboard(planted(lambda c, fraction, k: 4.0 * (c != 1), noise=1.0), MARGINS)
    assert board["answer"][HIGHER] == "undecided"
    assert board["answer"][LESS] == board["answer"][SPARSITY] == "undecided"  # the same with all data, at all rounds


def test_the_intervals_are_those_of_scipy():
    runs = planted(lambda c, fraction, k: 3.0 + 0.2 * k, noise=1.0, fractions=(1.0,))
    board = scoreboard(runs, MARGINS)
    of = runs[(runs["regime"] == "adversarial")].pivot(index="seed", columns=["source", "round"], values="ra")
    gain = 100 * (of["adversarial"] - of["standard"])
    interval = stats.ttest_1samp(gain[[2, 6, 10]].mean(axis=1), 0).confidence_interval(0.95)
    mean = gain[[2, 6, 10]].mean(axis=None)
    assert f"RA adversarial {mean:+.1f} ({interval.low:.1f} to {interval.high:.1f})" in board["effect"][HIGHER]
    slopes = [10 * stats.linregress([0, 2, 6, 10], gain.loc[seed]).slope for seed in gain.index]
    interval = stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
    text = f"RA adversarial {np.mean(slopes):+.1f} ({interval.low:.1f} to {interval.high:.1f})"
    assert text in board["effect"][SPARSITY]


def test_what_a_table_lacks_is_said():
    runs = planted(lambda c, fraction, k: 4.0, fractions=(1.0,))
    board = scoreboard(runs, MARGINS)
    assert board["answer"][SCARCE] == board["answer"][LESS] == "undecided"
    assert board["effect"][SCARCE] == "no tickets with 10% and 1% of the data in the table"
    assert board["effect"][LESS].startswith("no two fractions of the data")
    alone = scoreboard(runs[runs["source"] == "standard"], MARGINS)
    assert set(alone["answer"][1:]) == {"undecided"} and alone["answer"][EXIST] == "supported"
    assert alone["effect"][HIGHER] == "no transfers of adversarial and standard sources with the same seed in the table"
    dense = scoreboard(runs[runs["round"] == 0], MARGINS)
    assert dense["effect"][EXIST] == "no ticket and dense network with the same seed in the table"
    assert dense["effect"][HIGHER] == "no tickets in the table" and "two rounds" in dense["effect"][SPARSITY]
    assert set(answers(runs[:0])) == {"undecided"}


def test_one_seed_decides_nothing():
    board = scoreboard(planted(lambda c, fraction, k: 40.0, seeds=1), MARGINS)
    assert set(board["answer"]) == {"undecided"} and "(one seed)" in board["effect"][HIGHER]


def test_most_data_is_the_largest_fraction_with_two_seeds():
    runs = planted(lambda c, fraction, k: {1.0: -9, 0.1: 4, 0.01: 8}[fraction], fractions=(1.0, 0.1, 0.01))
    runs = runs[(runs["fraction"] < 1) | (runs["seed"] == 0)]  # as in `cifar-small`
    board = scoreboard(runs, MARGINS)
    assert board["figure"][HIGHER] == "curves-digits5-9-0.1.png"
    assert board["answer"].tolist()[2:5] == ["supported"] * 3
    assert board["claim"][SCARCE] == "They are more data-efficient (with 10% and 1% of the data)"
    assert "10%: " in board["effect"][SCARCE] and " / 1%: " in board["effect"][SCARCE]


def test_so_it_is_where_one_source_is_alone():
    runs = planted(lambda c, fraction, k: 4.0)
    runs = runs[((runs["fraction"] < 1) | (runs["seed"] == 0)) & (runs["source"] == "adversarial")]
    assert scoreboard(runs, MARGINS)["answer"].iloc[EXIST] == "supported"  # with 10 % of the data


def test_numbers_of_failed_runs_are_called_failed():
    runs = planted(lambda c, fraction, k: 4.0, rounds=(0, 2), fractions=(1.0,)).assign(status="ok")
    runs.loc[runs["round"] > 0, ["sa", "ra", "status"]] = np.nan, np.nan, "failed"
    told = scoreboard(runs, MARGINS)["effect"].tolist(), report.report(runs, presets.get("digits"))
    assert "nan" not in str(told) and "SA standard failed" in told[0][EXIST]
    sources = pd.DataFrame({"stage": "pretrain", "source": ["standard", "adversarial"], "sa": [np.nan, 0.9], "ra": 0.5})
    assert "nan" not in str(sentences.of_sources(sources.assign(seed=0)))


def test_a_round_that_one_seed_has_is_left_out():
    runs = planted(lambda c, fraction, k: 4.0, rounds=(0, 2, 4, 6))
    assert answers(runs[(runs["round"] != 4) | (runs["seed"] == 0)])[HIGHER] == "supported"


def test_a_first_ticket_that_one_seed_has_contradicts_nothing():
    noisy = planted(lambda *_: 0, noise=3.0)
    stray = noisy[(noisy["round"] == 2) & (noisy["seed"] == 0)].assign(round=1, sparsity=0.2)
    boards = [scoreboard(runs, MARGINS).iloc[EXIST] for runs in (noisy, pd.concat([noisy, stray]))]
    assert boards[0]["answer"] == "undecided" and boards[1].equals(boards[0])


def test_a_wide_spread_alone_does_not_make_a_source_less_sparse():
    """All tickets equal the dense network, but those of the standard source have a wide spread, so none is shown."""
    wide, sharp = (planted(lambda *_: 0.0, {name: 10}, seeds=10, noise=n) for name, n in SPREADS.items())
    board = scoreboard(pd.concat([wide, sharp]), MARGINS)
    assert board["answer"][SPARSER] == "undecided" and "+89.3 points of sparsity (" in board["effect"][SPARSER]
    assert "no standard ticket on digits5-9 as sparse or less is shown to be none" in board["effect"][SPARSER]
    lost = wide.assign(sa=wide["sa"] - 0.2 * (wide["round"] == 10))  # the sparsest is none: that is shown
    assert answers(pd.concat([lost, sharp]))[SPARSER] == "supported"
    other = {"standard": "adversarial", "adversarial": "standard"}
    turned = pd.concat([runs.assign(source=runs["source"].map(other)) for runs in (lost, sharp)])
    assert answers(turned)[SPARSER] == "contradicted"


def test_the_number_of_sparser_ones_is_of_what_both_sources_have():
    runs = planted(lambda *_: 3.0, {"standard": 2, "adversarial": 6})
    alone = planted(lambda *_: 3.0, {"standard": 6}, task="svhn")
    before, after = (scoreboard(table, MARGINS) for table in (runs, pd.concat([runs, alone])))
    assert before["effect"][SPARSER] == after["effect"][SPARSER] == "+37.8 points of sparsity (37.8 to 37.8)"


def test_a_task_that_has_only_begun_takes_no_answer_away():
    runs = planted(lambda *_: 4.0)
    begun = planted(lambda *_: 4.0, {"standard": 6}, task="svhn", seeds=1, rounds=(0,))
    assert answers(pd.concat([runs, begun]))[HIGHER:] == answers(runs)[HIGHER:]


def test_a_fraction_without_tickets_is_not_named():
    runs = planted(lambda criterion, fraction, k: -4.0 if k == 0 else 4.0, fractions=(1.0, 0.1, 0.01))
    board = scoreboard(runs[(runs["fraction"] != 0.1) | (runs["round"] == 0)], MARGINS)
    assert board["claim"][SCARCE] == "They are more data-efficient (with 1% of the data)"
    assert board["answer"][SCARCE] == "supported"
    dense = scoreboard(runs[(runs["fraction"] < 1) | (runs["round"] == 0)], MARGINS)
    assert "no tickets" not in "".join(dense["effect"]) and "as sparse" not in dense["effect"][EXIST]


def test_the_shuffled_masks_have_one_fraction_whatever_else_is_there():
    def rows(task, fraction, points, method="shuffled"):
        own = planted(lambda *_: 4.0, fractions=(fraction,), rounds=(0, 2), task=task)
        moved = own[own["round"] > 0].assign(method=method)
        return pd.concat([own, moved.assign(sa=moved["sa"] - points / 100, ra=moved["ra"] - points / 100)])

    over = lambda *parts: claims.questions.over_shuffled(pd.concat(parts), ["a", "b"]).mean()
    few = rows("a", 0.1, 3.0)
    assert over(few).tolist() == pytest.approx([3.0] * 3)
    assert over(few, rows("a", 1.0, 9.0, "oneshot")).tolist() == pytest.approx([3.0] * 3)
    assert over(few, rows("b", 1.0, -5.0)).tolist() == pytest.approx([-5.0] * 3)


def test_a_failed_dense_network_counts_against_no_ticket():
    runs = planted(lambda *_: 0.0, seeds=8).assign(status="ok")
    lost = (runs["seed"] == 0) & (runs["round"] == 0) & (runs["regime"] == "standard") & (runs["source"] == "standard")
    runs.loc[lost & (runs["fraction"] == 1), ["sa", "ra", "status"]] = np.nan, np.nan, "failed"
    dense = "1 run of a dense network failed (diverged): its seed is left out"
    assert report.notes(runs) == [dense]
    assert (verdict(runs, MARGINS)["round"] == 6).all()
    runs.loc[(runs["seed"] == 1) & (runs["round"] == 2) & (runs["regime"] == "standard"), "status"] = "failed"
    assert report.notes(runs) == ["4 runs of tickets failed (diverged): each counts against its ticket", dense]
    others = pd.concat([runs, runs[runs["round"] == 2].assign(method="shuffled", status="failed")])
    assert report.notes(others) == report.notes(runs)


def test_sentences_compare_what_the_same_seeds_have():
    runs = planted(lambda *_: 2.0, {"standard": 10, "adversarial": 10}, fractions=(1.0,), noise=0.0)
    some = runs[(runs["round"] == 0) | (runs["seed"] == 2)]
    said = str(sentences.of_transfers(some, "digits5-9", 1.0))
    assert "points against the dense network: +0.0 (standard pre-training) and +0.0 (adversarial pre-training)" in said
    assert "sparsest ticket" not in str(sentences.of_transfers(runs[runs["round"] == 0], "digits5-9", 1.0))
    uneven = runs[(runs["source"] == "standard") | (runs["seed"] == 2)]
    assert "by +2.0 points, and SA after standard transfer by +2.0" in str(sentences.of_fractions(uneven, "digits5-9"))
    sources = uneven[(uneven["round"] == 0) & (uneven["regime"] == "adversarial")].assign(stage="pretrain")
    assert "changes SA by +2.0 points and RA by +2.0 points" in str(sentences.of_sources(sources))


def test_tasks_are_averaged_and_named_as_files_are():
    runs = planted(lambda c, fraction, k: 4.0, task="folder:a/b")
    other = planted(lambda c, fraction, k: -1.0, task="svhn")
    board = scoreboard(pd.concat([runs, other]), MARGINS)
    assert board["figure"][LESS] == "gain-folder-a-b.png" and board["answer"][HIGHER] == "supported"
    assert " +1." in board["effect"][HIGHER]


def test_any_source_may_stand_for_robust_pre_training():
    runs = planted(lambda c, fraction, k: 4.0).replace({"source": {"adversarial": "fast_adversarial"}})
    board = scoreboard(runs, MARGINS, robust="fast_adversarial")
    assert board["answer"][HIGHER] == "supported" and board["claim"][SPARSER].startswith(
        "Fast adversarial pre-training"
    )


def test_failed_runs_are_left_out_of_gains():
    runs = planted(lambda c, fraction, k: 4.0).assign(status="ok")
    lost = (runs["seed"] == 1) & (runs["round"] == 2) & (runs["source"] == "adversarial")
    runs.loc[lost, ["sa", "ra"]], runs.loc[lost, "status"] = np.nan, "failed"
    board = scoreboard(runs, MARGINS)
    assert board["answer"][HIGHER] == "supported" and board["seeds"][HIGHER] == 5


def test_what_any_of_three_numbers_would_do_is_tested_at_a_third_of_the_level():
    z = np.array([-1.0, -1, -1, 1, 1, 1]) / (6 / 5) ** 0.5  # mean 0, standard deviation 1
    for t, answer in ((-3.0, "undecided"), (-4.0, "contradicted")):  # t(5): 2.57 at 0.975, 3.53 at 1 - 0.025 / 3
        gain = pd.DataFrame({name: z + (t if i == 1 else 9) / 6**0.5 for i, name in enumerate(CRITERIA)})
        assert claims._above({"": gain}, "")[0] == answer
        wall = {name: 0.1 * z + (1 - 0.1 * t / 6**0.5 if i == 1 else -9) for i, name in enumerate(CRITERIA)}
        assert claims._below(pd.DataFrame(wall), {"sa": 1.0, "ra": 1.0})[0] == answer


def test_no_claim_is_made_of_noise():
    """Where nothing is true, few claims are called so: each is tested at 2.5 % a side."""
    found = []
    for number in range(30):
        rng = np.random.default_rng(number)
        runs = planted(lambda c, fraction, k: 0.0, {"standard": 10, "adversarial": 10}, noise=0.0)
        noise = rng.normal(0, 0.01, (len(runs), 2))
        runs[["sa", "ra"]] += noise
        found += answers(runs)[2:]
    assert np.mean([answer != "undecided" for answer in found]) < 0.12


@pytest.mark.parametrize("seeds", [1, 6])
@pytest.mark.parametrize("last", [0, 6])
def test_the_last_screen_is_short_and_says_where_to_go(seeds, last):
    fast = planted(lambda c, f, k: -20.123 * (c == 0) + 11.234, {"standard": 2, "adversarial": last}, seeds, noise=2.5)
    other = fast[fast["source"] == "standard"].assign(source="fast_adversarial")
    runs = pd.concat([fast, other], ignore_index=True).assign(status="ok")
    runs.loc[runs.index[-1], "status"] = "failed"
    text = report.screen(runs, Folder(presets.get("digits"), "quickstart-of-a-test"), "python -m dwlth verdict digits")
    lines = text.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 120
    assert "Look at quickstart-of-a-test/digits/figures/curves-digits5-9-1.png" in text and "make lab" in text
    assert sum(line.startswith(("supported", "contradicted", "undecided")) for line in lines) == 6
    assert "1 run of a ticket failed" in text and ("one seed decides nothing" in text) == (seeds == 1)


AUDIT = [("a", "adversarial", "passes"), ("b", "adversarial", ""), ("a", "standard", "passes"), ("b", "standard", "")]


@pytest.mark.parametrize(
    ("verdicts", "answer", "effect"),
    [
        (AUDIT, "supported", "2 of 2 checks of 2 networks pass"),
        (
            [*AUDIT, ("c", "adversarial", ""), ("c", "standard", "fails")],
            "contradicted",
            "2 of 3 checks of 2 networks pass; standard fails: c",
        ),
    ],
)
def test_an_audit_has_a_line(verdicts, answer, effect, tmp_path):
    folder = Folder(presets.get("digits"), tmp_path)
    runs = planted(lambda c, f, k: 2.0)
    assert len(scoreboard(runs, MARGINS, folder=folder)) == 6  # neither audit nor tickets
    folder.path.mkdir()
    found = pd.DataFrame(verdicts, columns=["check", "source", "verdict"])
    found = found.assign(found="1 %", honest="", id=found["source"], sparsity=0.0, seed=0)
    write_table(folder.path / "audit.csv", found)
    line = scoreboard(runs, MARGINS, folder=folder).iloc[-1]
    assert (line["answer"], line["effect"], line["seeds"]) == (answer, effect, 1)
    assert line["claim"] == "The robustness passes every check"


@pytest.mark.parametrize(("last", "answer"), [(5, "contradicted"), (19, "supported")])
def test_the_sparsest_double_win_ticket_has_a_line_on_its_work(last, answer):
    folder = Folder(presets.get("digits"), Path(__file__).parents[1] / "results")
    runs = planted(lambda c, f, k: 0.0, {"standard": last, "adversarial": 0}, rounds=(0, last))
    line = scoreboard(runs, MARGINS, folder=folder).iloc[-1]
    assert line["claim"] == "A double-win ticket is less work for dense kernels" and line["answer"] == answer
    saved = savings(folder, 0, ("standard", last))["saved"].item()
    assert line["effect"].split(", ")[0] == "standard" and f" {saved:.0f} % fewer multiplications" in line["effect"]
    assert (saved > 60) == (last == 19)


def test_the_sparsest_ticket_is_found_where_the_two_sided_interval_ends_the_sequence_before():
    rng, rows = np.random.default_rng(6), []
    for seed, k, regime in product(range(5), (0, 1, 2), ("standard", "adversarial")):
        row = {"stage": "transfer", "method": "imp", "downstream": "digits5-9", "source": "adversarial", "seed": seed}
        row |= {"fraction": 1.0, "round": k, "sparsity": 1 - 0.8**k, "regime": regime}
        sa, ra = (rng.normal() * spread if k else 0 for spread in (0.006, 0.01))
        rows.append(row | {"sa": 0.9 + sa, "ra": 0.5 + ra})
    runs = pd.DataFrame(rows)
    assert [verdict(runs, MARGINS, level=level)["round"].item() for level in (0.95, 0.975)] == [2, 0]
    found = scoreboard(runs, MARGINS).iloc[EXIST]
    assert found["answer"] == "supported" and found["effect"].startswith("adversarial, 36.00%")
    both = pd.concat([runs, runs.assign(source="standard")])  # one of two would do, so each must be surer
    assert scoreboard(both, MARGINS)["answer"][EXIST] == "undecided"


def test_what_is_said_of_fractions_leaves_out_what_is_not_there():
    runs = planted(lambda *_: 5.0, fractions=(1.0, 0.005)).assign(status="ok")
    whole = sentences.of_fractions(runs, "digits5-9")
    assert whole.count("RA after adversarial transfer by +") == whole.count("SA after standard transfer by +") == 2
    assert "With 0.5% of the data" in whole
    part = sentences.of_fractions(runs[runs["regime"] == "standard"], "digits5-9")
    assert part.count("changes SA after standard transfer by +") == 2 and "RA" not in part


def test_the_last_screen_shows_the_data_that_the_scoreboard_rests_on():
    runs = planted(lambda *_: 5.0).assign(status="ok")
    begun = runs[(runs["fraction"] == 0.1) | (runs["seed"] == 0)]
    folder = Folder(presets.get("digits"), "quickstart-of-a-test")
    of_one = begun[(begun["fraction"] == 0.1) | (begun["source"] == "standard")]
    of_one = pd.concat([of_one, runs[(runs["fraction"] == 1) & (runs["source"] == "standard") & (runs["seed"] > 0)]])
    for table, with_ in ((runs, "100%"), (begun, "10%"), (of_one, "10%")):
        assert scoreboard(table, MARGINS)["figure"][2] == f"curves-digits5-9-{float(with_[:-1]) / 100:g}.png"
        assert f"ticket with {with_} of the data, by pre-training" in report.screen(table, folder, "verdict")
