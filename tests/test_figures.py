import pandas as pd
import pytest
from matplotlib import pyplot as plt
from test_verdict import falls_after, table

from dwlth import figures
from dwlth.errors import NotYet


@pytest.fixture
def runs():
    tables = [table(*[falls_after(k)] * 3, source=s, seeds=2) for s, k in zip(figures.SOURCES, (6, 7, 8))]
    return pd.concat(tables, ignore_index=True)


def test_curves_show_the_numbers_of_the_table(runs):
    figure = figures.curves(runs, "CIFAR-10", 1.0)
    assert [panel.get_title() for panel in figure.axes] == list(figures.PANELS)
    panel = figure.axes[0]
    assert panel.get_xlabel() == "Sparsity (%)" and panel.get_ylabel() == "SA (%)"
    lines = {line.get_color(): line for line in panel.lines if len(line.get_xdata()) == 20}
    stars = {line.get_color(): line.get_xdata()[0] for line in panel.lines if line.get_marker() == "*"}
    for (_, colour, _, _), k in zip(figures.SOURCES.values(), (6, 7, 8)):
        assert lines[colour].get_ydata() == pytest.approx([80.0 if r <= k else 79.0 for r in range(20)])
        assert stars[colour] == k
    assert not [line for line in figure.axes[3].lines if line.get_marker() == "*"]  # not a criterion
    plt.close(figure)


def test_the_sources_can_be_told_apart_without_colour():
    _, _, markers, dashes = zip(*figures.SOURCES.values())
    assert len(set(markers)) == len(set(dashes)) == 3


def test_every_figure_is_drawn_as_png_and_pdf(runs, tmp_path):
    paths = figures.draw_all(runs, tmp_path)
    assert [path.stem for path in paths] == ["curves-CIFAR-10-1", "double-wins-CIFAR-10"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    figures.draw_all(runs, tmp_path)
    assert first == {path: path.read_bytes() for path in tmp_path.iterdir()}  # the same table, the same files


def test_a_figure_without_its_runs_is_left_out(runs, tmp_path):
    assert figures.draw_all(runs[runs["regime"] == "standard"], tmp_path) == []


def of_method(runs, method, rounds, **columns):
    return runs[runs["round"].isin(rounds)].assign(method=method, **columns)


def test_methods_are_compared_where_all_were_run(runs):
    one = of_method(runs, "oneshot", [2, 6, 9], sa=0.5)
    other = of_method(runs, "random", [2, 6], ra=0.25)
    table = pd.concat([runs, one[one["seed"] == 0], other[other["seed"] == 0]], ignore_index=True)
    figure = figures.methods(table, "CIFAR-10", "standard")
    lines = {bars.get_label(): bars[0] for bars in figure.axes[0].containers}
    assert lines.keys() == {"IMP", "One-shot", "Random"}
    assert all(list(line.get_xdata()) == [0, 2, 6] for line in lines.values())
    assert list(lines["One-shot"].get_ydata()) == pytest.approx([80, 50, 50])  # the dense network, then its tickets
    assert figure.axes[2].containers[2][0].get_ydata()[1] == pytest.approx(25)
    with pytest.raises(NotYet, match="adversarial source"):
        figures.methods(runs, "CIFAR-10", "adversarial")


def test_the_gain_is_that_of_the_same_seed(runs):
    table = runs[runs["round"] == 0].copy()
    table["ra"] = 0.5 + table["seed"] / 10  # seeds differ more than sources
    table.loc[table["source"] == "adversarial", "ra"] += 0.04
    panel = figures.gain(table, "CIFAR-10").axes[2]
    containers = {bars.get_label(): bars for bars in panel.containers}
    assert containers.keys() == {"Fast adversarial", "Adversarial"}
    points, _, (bars,) = containers["Adversarial"]
    assert points.get_ydata()[0] == pytest.approx(4)
    assert bars.get_segments()[0][:, 1] == pytest.approx([4, 4])  # no error: the seeds agree
    assert panel.get_ylim() == figures.gain(table, "CIFAR-10").axes[0].get_ylim()


def test_the_papers_points_are_marked_as_such(runs):
    with_paper, without = (figures.double_wins(runs, "CIFAR-10", paper=paper) for paper in (True, False))
    labels = [text.get_text() for text in with_paper.legends[0].texts]
    assert labels[3:] == ["the paper's on CIFAR-10,\nanother scale"]
    (paper,) = (points for points in with_paper.axes[0].collections if len(points.get_offsets()) == 3)
    assert paper.get_offsets()[:, 1].tolist() == [10, 10, 11] and len(paper.get_facecolors()) == 0
    assert not without.legends and len(without.axes[0].get_legend().texts) == 3


def test_histories_show_what_was_measured():
    history = [{"epoch": e, "accuracy": 0.5, "val_sa": 0.9 if e else None, "val_ra": None} for e in range(3)]
    accuracy, sa, ra = figures.histories({"adversarial": history}).axes
    assert list(accuracy.lines[0].get_xdata()) == [1, 2, 3] and list(accuracy.lines[0].get_ydata()) == [50] * 3
    assert list(sa.lines[0].get_xdata()) == [2, 3] and not ra.lines


def test_the_summary_by_hand():
    rows = [("adversarial", 0, 0.5, 0.1), ("adversarial", 1, 0.7, 0.1), ("standard", 0, 0.25, None)]
    table = pd.DataFrame(rows, columns=["source", "seed", "sa", "ra"])
    found = figures.summary(table, "source")
    assert list(found.index) == ["standard", "adversarial"]
    assert found.loc["adversarial"].tolist() == [2, "60.0 ± 10.0", "10.0 ± 0.0"]
    assert found.loc["standard"].tolist() == [1, "25.0", "not measured"]
