from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from dwlth import masks, verdict
from dwlth.controls import METHODS
from dwlth.errors import NotYet
from dwlth.presets import SOURCES
from dwlth.show import controls, figures, pretraining, report, style

MARGINS = {"sa": 1.0, "ra": 2.0}
ROUNDS = range(10)


def table(last=9, source="adversarial", seeds=3, fraction=1.0, noise=0.0, drop=5.0):
    """Transfers that keep 80 % up to round `last` and lose `drop` points from there on; seeds differ, their pairs do by
    `noise` points."""
    random, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for k in ROUNDS:
            row = {"stage": "transfer", "method": "imp", "downstream": "CIFAR-10", "fraction": fraction, "status": "ok"}
            row |= {"source": source, "seed": seed, "round": k, "sparsity": 1 - 0.8**k}
            for regime in ("standard", "adversarial"):
                sa, ra = (80 + seed - drop * (k > last) + noise * random.normal(size=2)) / 100
                rows.append(row | {"regime": regime, "sa": sa, "ra": ra})
    return pd.DataFrame(rows)


@pytest.fixture
def runs():
    return pd.concat([table(k, source) for source, k in zip(SOURCES, (6, 7, 8))], ignore_index=True)


def marked(panel, marker):
    """The places of such marks, by colour."""
    lines = [line for line in panel.lines if line.get_marker() == marker and len(line.get_xdata())]
    return {to_rgb(line.get_color()): list(line.get_xdata()) for line in lines}


def test_curves_show_the_numbers_of_the_table(runs):
    figure = figures.curves(runs, "CIFAR-10", 1.0, MARGINS)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == [*verdict.CRITERIA, "RA, standard transfer (not judged)"]
    panel = figure.axes[0]
    assert panel.get_xlabel() == "Sparsity (%)" and panel.get_ylabel() == "SA (%)"
    assert [text.get_text() for text in panel.get_xticklabels()][:3] == ["0", "48.8", "73.79"]
    lines = {to_rgb(line.get_color()): line for line in panel.lines if len(line.get_xdata()) == len(ROUNDS)}
    stars = marked(panel, "*")
    for look, k in zip(style.of_sources(SOURCES).values(), (6, 7, 8)):
        assert lines[to_rgb(look.colour)].get_ydata() == pytest.approx([81.0 if r <= k else 76.0 for r in ROUNDS])
        assert stars[to_rgb(look.colour)] == [k]
    assert not marked(figure.axes[3], "*") and not marked(figure.axes[3], "x")
    assert figure.get_suptitle().endswith("100 % of its training data, 3 seeds")


def test_a_ticket_that_few_seeds_have_is_no_point_of_a_curve():
    """As in the verdict: fewer than half of the source's seeds. With one seed, every ticket has all of them."""
    runs = table(seeds=5, noise=0.1)
    more = runs[(runs["round"] != 4) | (runs["seed"] == 0)]
    for of, missing in ((more, [4]), (more[more["seed"] == 0], [])):
        for figure in (
            figures.curves(of, "CIFAR-10", 1.0, MARGINS),
            figures.criteria(of, "CIFAR-10", 1.0, "adversarial", 3, MARGINS),
        ):
            for panel in figure.axes:
                drawn = max((list(line.get_xdata()) for line in panel.lines), key=len)
                assert drawn == [k for k in ROUNDS if k not in missing]
            assert not any(4 in places for places in marked(figure.axes[0], "*").values())


def test_a_legend_of_many_entries_stays_within_the_figure():
    figure = style.Picture(figsize=(style.WIDTH, 3), layout="constrained")
    figure.subplots(1, 2)
    handles = [mpl.lines.Line2D([], [], label=method.label) for method in METHODS.values()]
    style.legend(figure, *zip(handles))
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and len(handles) > 7


def test_the_intervals_are_those_of_the_test_and_the_band_is_the_margin():
    runs = table(5, seeds=6, noise=0.5)
    found = verdict.tests(runs, MARGINS).set_index("round")
    figure = figures.curves(runs, "CIFAR-10", 1.0, MARGINS)
    for panel, (name, (regime, column)) in zip(figure.axes, verdict.CRITERIA.items()):
        dense = 100 * runs[(runs["round"] == 0) & (runs["regime"] == regime)][column].mean()
        (interval,) = panel.collections
        path = pd.DataFrame(interval.get_paths()[0].vertices, columns=["round", "value"]).groupby("round")["value"]
        assert path.min().to_numpy() == pytest.approx(dense + found[f"{name} low"].to_numpy())
        assert path.max().to_numpy() == pytest.approx(dense + found[f"{name} high"].to_numpy())
        (band,) = panel.patches
        assert (band.get_y(), band.get_height()) == pytest.approx((dense - MARGINS[column], MARGINS[column]))
    panels = figures.differences(runs, "CIFAR-10", 1.0, MARGINS).axes
    bars = np.array(panels[2].collections[0].get_segments())[:, :, 1]
    name = "RA, adversarial transfer"
    assert bars == pytest.approx(found[[f"{name} low", f"{name} high"]].clip(-10, 10).to_numpy())
    assert (panels[2].patches[0].get_y(), panels[2].patches[0].get_height()) == (-2, 2)


def three_answers():
    """Round 2 is undecided, since its seeds differ by far more than the margin; from round 6 on, tickets are worse."""
    runs = table(5)
    runs.loc[(runs["round"] == 2) & (runs["seed"] == 1), "sa"] += 0.1
    answers = ["double-win", "undecided", *["double-win"] * 3, *["not"] * 4]
    assert list(verdict.tests(runs, MARGINS)["answer"]) == answers
    return runs


@pytest.mark.parametrize(
    "draw",
    [
        lambda runs: figures.curves(runs, "CIFAR-10", 1.0, MARGINS),
        lambda runs: figures.criteria(runs, "CIFAR-10", 1.0, "adversarial", 4, MARGINS),
        lambda runs: figures.differences(runs, "CIFAR-10", 1.0, MARGINS),
    ],
    ids=["curves", "criteria", "differences"],
)
def test_marks_and_the_legend_say_the_three_answers(draw):
    figure = draw(three_answers())
    panel = figure.axes[0]
    (legend,) = figure.legends
    labels = {text.get_text(): handle for text, handle in zip(legend.texts, legend.legend_handles)}
    own = [line for line in panel.lines if line.get_marker() == "D" and len(line.get_xdata())]
    places = {line.get_markerfacecolor(): list(line.get_xdata()) for line in own}
    look = style.of_sources(["adversarial"])["adversarial"]
    assert places == {look.colour: [1, 3, 4, 5], "white": [2]}  # never the dense network
    assert list(marked(panel, "x").values()) == [[6, 7, 8, 9]] and list(marked(panel, "*").values()) == [[1]]
    assert labels["undecided"].get_markerfacecolor() == "white" and labels["not double-win"].get_marker() == "x"
    assert {"double-win", "the verdict: all up to it pass", "margin: the loss that is allowed"} <= labels.keys()


def test_failed_runs_are_no_numbers_but_count():
    runs = table(9)
    lost = (runs["round"] == 4) & (runs["seed"] == 0)
    runs.loc[lost, ["sa", "ra", "status"]] = [0.0, 0.0, "failed"]
    panel = figures.curves(runs, "CIFAR-10", 1.0, MARGINS).axes[0]
    (line,) = (line for line in panel.lines if len(line.get_xdata()) == len(ROUNDS))
    assert line.get_ydata()[4] == pytest.approx(81.5)
    assert list(marked(panel, "x").values()) == [[4]]
    runs.loc[runs["round"] == 4, ["sa", "ra", "status"]] = [np.nan, np.nan, "failed"]
    panel = figures.differences(runs, "CIFAR-10", 1.0, MARGINS).axes[0]
    (cross,) = (line for line in panel.lines if len(line.get_xdata()) and line.get_marker() == "x")
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([4], [-5])


def test_one_seed_gives_lines_without_intervals():
    rows = table(5, seeds=1)
    none = rows.assign(ra=rows["ra"].where(rows["regime"] == "adversarial", 0.0001 * (rows["round"] == 0)))
    figure = figures.curves(none, "CIFAR-10", 1.0, MARGINS)
    one, (low, high) = figure.axes[0], figure.axes[3].get_ylim()
    assert high - low == pytest.approx(2 * MARGINS["ra"])  # one image more does not fill the panel
    assert figure.get_suptitle().endswith("one seed: no bounds of the test")
    assert "one seed: no bounds of the test\n" in figures.differences(rows, "CIFAR-10", 1.0, MARGINS).get_suptitle()
    assert not any(np.isfinite(path.vertices).all(1).any() for band in one.collections for path in band.get_paths())


def test_a_source_of_ones_own_needs_no_entry(runs):
    mine = pd.concat([runs, table(9, "my-source"), table(4, "another")])
    looks = style.of_sources(mine["source"])
    assert list(looks) == [*SOURCES, "another", "my-source"] and looks["my-source"].label == "my-source"
    assert list(style.of_sources(SOURCES).values()) == [looks[source] for source in SOURCES]
    for draw in (figures.curves, figures.differences):
        figure = draw(mine, "CIFAR-10", 1.0, MARGINS)
        assert marked(figure.axes[0 if draw is figures.curves else 12], "*")[to_rgb(looks["my-source"].colour)] == [9]
    assert list(report.summary(mine, "source").index) == list(looks)


def test_sources_and_methods_can_be_told_apart_without_colour(monkeypatch):
    monkeypatch.setitem(masks.METHODS, "mine", masks.Method("My own", None))
    for looks in (style.of_sources([*SOURCES, "a", "b", "c"]), style.of_methods()):
        for different in ("marker", "dashes", "colour"):
            assert len({getattr(look, different) for look in looks.values()}) == len(looks)
    assert style.of_methods()["mine"].label == "My own"


def test_every_figure_is_drawn_as_png_and_pdf(runs, tmp_path):
    runs = pd.concat([runs, table(3, fraction=0.01), runs[runs["regime"] == "standard"].assign(stage="imp")])
    paths = figures.draw_all(runs, tmp_path, MARGINS)
    names = [f"{kind}-CIFAR-10-{fraction}" for fraction in ("1", "0.01") for kind in ("curves", "differences")]
    assert [path.stem for path in paths] == [*names, "double-wins-CIFAR-10", "gain-CIFAR-10", "pretraining"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    figures.draw_all(runs, tmp_path, MARGINS)
    assert first == {path: path.read_bytes() for path in tmp_path.iterdir()}  # the same table, the same files


def test_a_figure_without_its_runs_is_left_out(runs, tmp_path):
    runs = runs[(runs["regime"] == "standard") & (runs["source"] == "adversarial")]
    assert [path.stem for path in figures.draw_all(runs, tmp_path, MARGINS)] == ["curves-CIFAR-10-1"]
    with pytest.raises(NotYet, match="10 %"):
        figures.curves(runs, "CIFAR-10", 0.1, MARGINS)


def test_threads_draw_the_same_picture_and_leave_settings_as_they_were(runs):
    before = dict(mpl.rcParams)
    draws = [
        lambda: style.png(figures.criteria(runs, "CIFAR-10", 1.0, "standard", 3, MARGINS)),
        lambda: style.png(pretraining.gain(runs, "CIFAR-10")),
    ]
    alone = [draw() for draw in draws]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda draw: draw(), draws * 3))
    assert together == alone * 3
    assert dict(mpl.rcParams) == before and not plt.get_fignums()
    assert pretraining.gain(runs, "CIFAR-10").get_facecolor() == (1, 1, 1, 1)  # on a dark page too


def of_method(runs, method, rounds, **columns):
    return runs[runs["round"].isin(rounds)].assign(method=method, **columns)


def test_methods_are_compared_where_all_were_run(runs):
    one = of_method(runs, "oneshot", [2, 6, 9], sa=0.5)
    other = of_method(runs, "random", [2, 6], ra=0.25)
    some = pd.concat([runs, one[one["seed"] == 0], other[other["seed"] == 0]], ignore_index=True)
    figure = controls.draw_methods(some, "CIFAR-10", "standard")
    found = [[line for line in panel.lines if line.get_linestyle() != "None"] for panel in figure.axes]
    assert [len(lines) for lines in found] == [3, 3, 3]
    assert all(list(line.get_xdata()) == [0, 2, 6] for lines in found for line in lines)
    assert list(found[0][1].get_ydata()) == pytest.approx([80, 50, 50])  # the dense network, then its tickets
    assert found[2][2].get_ydata()[1] == pytest.approx(25)
    assert [text.get_text() for text in figure.legends[0].texts] == ["IMP", "One-shot", "Random"]
    with pytest.raises(NotYet, match="adversarial source"):
        controls.draw_methods(runs, "CIFAR-10", "adversarial")


def test_the_gain_is_that_of_the_same_seed(runs):
    dense = runs[runs["round"] == 0].copy()
    dense["ra"] = 0.5 + dense["seed"] / 10  # seeds differ more than sources
    dense.loc[dense["source"] == "adversarial", "ra"] += 0.04
    fast = dense["source"] == "fast_adversarial"
    dense.loc[fast, "ra"] += 0.01 * dense[fast]["seed"]
    panel = pretraining.gain(dense, "CIFAR-10").axes[2]
    ends = {}
    for line in panel.lines:  # seaborn's points, and its bars with their caps
        at = [float(y) for y in line.get_ydata() if np.isfinite(y)]
        ends.setdefault(to_rgb(line.get_color()), []).extend(at)
    looks = style.of_sources(SOURCES)
    same, fast = (ends[to_rgb(looks[source].colour)] for source in ("adversarial", "fast_adversarial"))
    assert (min(same), max(same)) == pytest.approx((4, 4))  # no error: the seeds agree
    assert (min(fast), max(fast)) == pytest.approx((1 - 4.3027 / 3**0.5, 1 + 4.3027 / 3**0.5), abs=1e-3)  # t, 2 d.f.
    assert to_rgb(looks["standard"].colour) not in ends
    with pytest.raises(NotYet, match="two sources"):
        pretraining.gain(dense[dense["source"] == "standard"], "CIFAR-10")


def test_the_gain_of_dense_networks_and_tickets_side_by_side(runs):
    runs.loc[(runs["source"] == "adversarial") & (runs["round"] == 9), "sa"] += 0.03
    axes = pretraining.gain(runs, "CIFAR-10", 0, 9).axes
    assert [axes[i].get_ylabel().split(":")[0] for i in (0, 3)] == ["Dense networks", "Tickets, 86.58 % pruned"]
    assert axes[0].get_ylim() == axes[3].get_ylim()


def test_the_sparsest_double_win_and_the_ticket_that_ended_the_sequence(runs):
    figure, none = (
        figures.double_wins(rows, "CIFAR-10", MARGINS) for rows in (pd.concat([runs, table(0, fraction=0.01)]), runs)
    )
    panel, at_0 = figure.axes[0], "at 0: no double-win ticket is shown"
    has = [at_0 in [text.get_text() for text in of.legends[0].get_texts()] for of in (figure, none)]
    assert has == [True, False]
    stars = [line for line in panel.lines if line.get_marker() == "*" and len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in stars] == [[6], [7], [8]]  # and none on a dense network
    crosses = [line for line in panel.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [sorted(line.get_ydata()) for line in crosses] == [[7], [8], [1, 9]]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["100 %", "1 %"]


def test_the_papers_points_are_marked_as_such(runs):
    with_paper, without = (figures.double_wins(runs, "CIFAR-10", MARGINS, paper=paper) for paper in (True, False))
    label = "the paper's on CIFAR-10, another scale"
    shown = [[text.get_text() for text in figure.legends[0].texts] for figure in (with_paper, without)]
    assert label in shown[0] and label not in shown[1]
    (paper,) = (points for points in with_paper.axes[0].collections if len(points.get_offsets()) == 3)
    assert paper.get_offsets()[:, 1].tolist() == [10, 10, 11] and len(paper.get_facecolors()) == 0


def test_the_papers_points_stand_at_all_the_data_or_nowhere(runs):
    few = runs[(runs["fraction"] == 1) & (runs["round"] <= 6)]
    panel = figures.double_wins(few, "CIFAR-10", MARGINS, paper=True).axes[0]
    assert panel.get_ylim()[1] > 11  # where the paper's are
    tenth = figures.double_wins(few.assign(fraction=0.1), "CIFAR-10", MARGINS, paper=True)
    assert not any("another scale" in text.get_text() for text in tenth.legends[0].texts)


def test_histories_show_what_was_measured():
    history = [{"epoch": e, "accuracy": 0.5, "val_sa": 0.9 if e else None, "val_ra": None} for e in range(3)]
    accuracy, sa, ra = pretraining.histories({"adversarial": history}).axes
    assert list(accuracy.lines[0].get_xdata()) == [1, 2, 3] and list(accuracy.lines[0].get_ydata()) == [50] * 3
    assert list(sa.lines[0].get_xdata()) == [2, 3] and not ra.lines


def test_the_summary_by_hand():
    rows = [("adversarial", 0, 0.5, 0.1), ("adversarial", 1, 0.7, 0.1), ("standard", 0, 0.25, None)]
    rows = [(*row, "ok") for row in rows] + [("standard", 1, None, None, "failed")]
    found = report.summary(pd.DataFrame(rows, columns=["source", "seed", "sa", "ra", "status"]), "source")
    assert list(found.index) == ["standard", "adversarial"]
    assert found.loc["adversarial"].tolist() == [2, "60.0 ± 10.0", "10.0 ± 0.0"]
    assert found.loc["standard"].tolist() == [1, "25.0", "not measured"]


@pytest.mark.parametrize("last, shown", [(8, range(9)), (11, (0, 3, 6, 9, 11)), (19, (0, 3, 6, 9, 12, 15, 19))])
def test_of_many_rounds_every_third_and_the_last_are_labelled(last, shown):
    rounds, labels = style.ticks({k: 1 - 0.8**k for k in range(last + 1)})
    assert rounds == [*shown] and labels[-1] == f"{100 * (1 - 0.8**last):.4g}"
