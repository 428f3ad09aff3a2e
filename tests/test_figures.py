import pytest
from matplotlib import pyplot as plt
from test_verdict import falls_after, table

from dwlth import figures


@pytest.fixture
def runs():
    import pandas as pd

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
