"""The widgets, driven as a person would, without a browser: values set, buttons clicked."""

import html
import re
import threading
import time

import ipywidgets as ipw
import pandas as pd
import pytest
from test_verdict import falls_after, table

from dwlth import figures, grid, presets, widgets
from dwlth.errors import DwlthError
from dwlth.presets import Run
from dwlth.results import Folder, read_record, read_table


def find(widget, name):
    """The widget of that CSS class, or None."""
    if f"dwlth-{name}" in widget._dom_classes:
        return widget
    inside = (find(child, name) for child in getattr(widget, "children", ()))
    return next((found for found in inside if found is not None), None)


def text(widget, name="text"):
    found = find(widget, name)
    return html.unescape(re.sub("<.*?>", "", found.value)) if found is not None else ""


@pytest.fixture(scope="module")
def runs():
    """Tickets that are double-win up to round 6, 7 and 8."""
    tables = [table(*[falls_after(k)] * 3, source=s, seeds=2) for s, k in zip(figures.SOURCES, (6, 7, 8))]
    tables += [table(*[falls_after(2)] * 3, source="adversarial", fraction=0.1)]
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def tiny():
    """A `digits` that trains in a moment, with some epochs to be stopped in."""
    tiny = ["pretrain.epochs=1", "imp.epochs=1", "transfer.epochs=6", "transfer.validate_every=2", "evaluation.steps=1"]
    return presets.get("digits").override([*tiny, "transfer.validation.steps=1", "rounds=0,2", "seeds=1"])


@pytest.fixture
def folder(tiny, tmp_path):
    return Folder(tmp_path, tiny.name)


# choose and live


def test_a_menu_for_names_and_a_slider_for_rising_numbers():
    menu = widgets.choose("source", ["standard", "adversarial"], "adversarial")
    assert isinstance(menu, ipw.Dropdown) and menu.value == "adversarial" and menu.description == "Source"
    assert find(menu, "source") is menu
    slider = widgets.choose("round", {"0 %": 0, "36 %": 2, "74 %": 6}, 2)
    assert isinstance(slider, ipw.SelectionSlider) and slider.value == 2 and slider.label == "36 %"
    assert isinstance(widgets.choose("fraction", [1.0, 0.1], None), ipw.Dropdown)


def test_a_value_that_is_no_option_is_named():
    with pytest.raises(DwlthError, match="source is 'random': choose from standard, adversarial"):
        widgets.choose("source", ["standard", "adversarial"], "random")
    with pytest.raises(DwlthError, match="source: nothing to choose from yet; `python -m dwlth run`"):
        widgets.choose("source", [], None)


def test_live_draws_again_and_the_same_value_gives_the_same_bytes(runs):
    def draw(fraction):
        if fraction == 0.5:
            raise DwlthError("no <half>")
        return figures.double_wins(runs, "CIFAR-10"), runs[runs["fraction"] == fraction].head(2), f"{fraction} < 2"

    box = widgets.live(draw, fraction=widgets.choose("fraction", [1.0, 0.5, 0.1], 1.0))
    picture, numbers = find(box, "figure"), text(box, "table")
    before = picture.value
    assert bytes(before).startswith(b"\x89PNG") and "CIFAR-10" in numbers and "1.0 < 2" in text(box)
    find(box, "fraction").value = 0.1
    assert text(box, "table") != numbers and "0.1 < 2" in text(box)
    find(box, "fraction").value = 0.5  # the pictures would be those of another value
    assert "no <half>" in text(box) and find(box, "figure") is None and find(box, "table") is None
    find(box, "fraction").value = 1.0
    assert find(box, "figure").value == before and text(box, "table") == numbers


def test_a_figure_of_pyplot_is_closed():
    from matplotlib import pyplot as plt

    open_before = plt.get_fignums()
    assert bytes(find(widgets.live(lambda: plt.subplots()[0]), "figure").value).startswith(b"\x89PNG")
    assert plt.get_fignums() == open_before


def test_live_on_several_threads_ends_with_the_last_values(runs):
    box = widgets.explorer(
        runs, presets.get("digits"), Folder("nowhere", "digits"), source="standard", regime="standard"
    )
    expected = {}
    for source in figures.SOURCES:
        find(box, "source").value = source
        expected[source] = find(box, "figure").value
    threads = [
        threading.Thread(target=lambda s=source: setattr(find(box, "source"), "value", s))
        for source in [*figures.SOURCES] * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find(box, "figure").value == expected[find(box, "source").value]


# the explorer


def explorer(table, folder=None, preset="digits", **start):
    return widgets.explorer(table, presets.get(preset), folder or Folder("nowhere", preset), **start)


def test_every_picker_changes_the_picture_and_back(runs):
    runs = pd.concat([runs, runs.assign(downstream="SVHN", sa=runs["sa"] - 0.1, ra=runs["ra"] - 0.2)])
    box = explorer(runs, source="adversarial", regime="adversarial", fraction=1.0, metric="sa", round=6)
    picture = find(box, "figure")
    for name, other in {
        "source": "standard",
        "regime": "standard",
        "downstream": "SVHN",
        "fraction": 0.1,
        "metric": "ra",
        "round": 7,
    }.items():
        control, first = find(box, name), picture.value
        begin = control.value
        control.value = other
        assert picture.value != first, name
        control.value = begin
        assert picture.value == first, name


def test_the_numbers_and_the_verdict_are_those_of_the_table(runs):
    def spread(k, seed):
        return falls_after(8)(k, seed) + seed

    runs = table(spread, spread, spread, seeds=2)
    box = explorer(runs, source="adversarial", round=12, regime="adversarial")
    numbers = text(box, "table")
    assert "80.5 ± 0.5" in numbers and "79.5 ± 0.5" in numbers and "93.13%" in numbers and "seeds" in numbers
    assert "Not double-win: more than one standard error below the dense network in SA, standard" in text(box, "text")
    find(box, "round").value = 8
    assert "79.5" not in text(box, "table") and "Double-win: within one standard error" in text(box, "text")
    find(box, "round").value = 0
    assert "the dense network" in text(box, "text")


def test_a_partial_table_is_enough(runs):
    part = runs[(runs["source"] != "standard") & (runs["regime"] == "standard")]
    box = explorer(part, fraction=1.0, round=2)
    assert [value for _, value in find(box, "source").options] == ["fast_adversarial", "adversarial"]
    assert [value for _, value in find(box, "regime").options] == ["standard"]
    assert "Not judged" in text(box)
    find(box, "fraction").value = 0.1  # which fast adversarial does not have
    assert find(box, "figure").value and "Not judged" in text(box)
    without = runs[~((runs["regime"] == "standard") & (runs["fraction"] == 0.1))]
    box = explorer(without, source="adversarial", regime="standard", fraction=1.0)
    find(box, "fraction").value = 0.1
    assert "no standard transfers to CIFAR-10 with 10% of its data" in text(box) and find(box, "table") is None


def test_bad_arguments_are_named(runs):
    for name, value in dict(
        source="x", regime="x", downstream="x", fraction=0.2, metric="x", round=99, layer="x"
    ).items():
        with pytest.raises(DwlthError, match=f"{name} is {value!r}: choose from"):
            explorer(runs, **{name: value})
    with pytest.raises(DwlthError, match="nothing to choose from yet; `python -m dwlth run`"):
        explorer(runs.iloc[:0])


def test_the_ticket_from_inside_where_it_is_on_disk(tiny, folder, runs):
    grid.complete(tiny, [Run("imp", "standard", 0, 1)], folder, workers=1, device="cpu")
    box = widgets.explorer(runs, tiny, folder, source="standard", round=2)
    inside = box.children[-2]
    assert "The ticket of 36.00% from inside, standard pre-training, seed 0" in text(inside)
    layers, kernels = (part for part in inside.children if isinstance(part, ipw.Image))
    seen = layers.value, kernels.value
    find(box, "layer").value = "layer1.0.conv2.weight"
    assert layers.value == seen[0] and kernels.value != seen[1]
    find(box, "layer").value = "layer2.0.conv2.weight"  # the largest, where it began
    assert (layers.value, kernels.value) == seen
    find(box, "round").value = 5
    assert 'grid.complete(preset, [Run("imp", "standard", 0, 4)], folder, files=True)' in text(inside).replace(
        "&quot;", '"'
    )
    folder.ticket(Run("imp", "standard", 0), 2).write_bytes(b"cut off")
    find(box, "round").value = 2
    assert "not a ticket (truncated or foreign)" in text(inside)


def test_unreadable_files_are_counted(runs, folder, tiny):
    path = folder.record("0" * 12)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(UserWarning, match="not a record"):
        folder.records()
    for box in (widgets.explorer(runs, tiny, folder), widgets.training_panel(tiny, folder)):
        assert "not counted: 1 (" in text(find(box, "set-aside")) and f"{path.name}.bad" in text(find(box, "set-aside"))


def test_a_redraw_of_10_000_rows_is_quick(runs):
    rows = pd.concat([runs.assign(seed=runs["seed"] + 2 * k) for k in range(37)], ignore_index=True)
    assert len(rows) > 10_000
    box = explorer(rows, fraction=1.0)
    began = time.time()
    find(box, "round").value = 6
    seconds = time.time() - began
    print(f"a redraw of {len(rows)} rows: {seconds:.2f} seconds")
    assert seconds < 5


# the training panel


def panel(preset, folder, **start):
    start = {"source": "standard", "regime": "adversarial", "fraction": 0.01, "round": 2, "device": "cpu"} | start
    return widgets.training_panel(preset, folder, **start)


def wait(box, seconds=120):
    limit = time.time() + seconds
    while find(box, "start").disabled:
        assert time.time() < limit, text(box)
        time.sleep(0.02)


def stop_at(box, words):
    """Click stop when the panel says so."""
    status = find(box, "training").children[2]

    def look(_):
        if words in text(status):
            find(box, "stop").click()

    find(box, "progress").observe(look, "value")
    find(status, "text").observe(look, "value")


def science(folder, preset, run):
    result = read_record(folder.record(preset.run_id(run)))["result"]
    return result | {"history": [row | {"seconds": 0} for row in result["history"]]}


RUN = Run("transfer", "standard", 0, 2, "imp", "digits5-9", "adversarial", 0.01)


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """The same run, uninterrupted, without a panel."""
    folder = Folder(tmp_path_factory.mktemp("straight"), tiny.name)
    grid.complete(tiny, [RUN], folder, workers=1, device="cpu")
    return science(folder, tiny, RUN)


def test_stopped_and_started_again_it_is_the_same_run(tiny, folder, straight):
    box = panel(tiny, folder, seed=0)
    assert "not done yet (0 of 6 epochs)" in text(box) and find(box, "stop").disabled
    seen = []
    find(box, "text").observe(lambda change: seen.append(change["new"]), "value")
    stop_at(box, "epoch 3 of 6")
    find(box, "start").click()
    wait(box)
    id_ = tiny.run_id(RUN)
    assert not folder.record(id_).exists() and folder.checkpoint(id_).exists()
    assert "not done yet (3 of 6 epochs)" in text(box) and find(box, "progress").value == 0.5
    assert sum("pretrain standard seed 0 (run 1 of 4)" in words for words in seen) >= 2
    assert any("epoch 2 of 6, training accuracy" in words and "validation SA" in words for words in seen)
    again = panel(tiny, folder, seed=0)  # as after a restart of the kernel
    assert "not done yet (3 of 6 epochs)" in text(again) and find(again, "figure") is not None
    find(again, "start").click()
    wait(again)
    assert science(folder, tiny, RUN) == straight
    assert f"done, SA {straight['sa']:.1%} and RA {straight['ra']:.1%}" in text(again)
    assert not folder.checkpoint(id_).exists() and set(read_table(folder.table)["id"]) >= {id_}


def test_a_second_click_starts_nothing_and_stop_before_the_first_epoch(tiny, folder, monkeypatch):
    begun = []
    execute = grid.execute
    monkeypatch.setattr(grid, "execute", lambda *args: begun.extend(args[6]) or execute(*args))
    box = panel(tiny, folder, round=0, regime="standard", fraction=0.01)
    for _ in range(3):
        find(box, "start").click()
    assert find(box, "source").disabled
    wait(box)
    assert [run.stage for run in begun] == ["pretrain", "transfer"] and not find(box, "source").disabled
    find(box, "seed").value = 1
    find(box, "start").click()
    find(box, "stop").click()
    wait(box)
    assert len(begun) == 2 and "not done yet (0 of 6 epochs)" in text(box)


def test_two_panels_at_once_lose_nothing(tiny, folder, straight):
    boxes = [panel(tiny, folder, seed=0), panel(tiny, folder, seed=0), panel(tiny, folder, seed=0, regime="standard")]
    for box in boxes:
        find(box, "start").click()
    for box in boxes:
        wait(box)
        assert "done, SA" in text(box)
    assert science(folder, tiny, RUN) == straight
    table = folder.collect()
    assert table["stage"].value_counts().to_dict() == {"imp": 2, "transfer": 2, "pretrain": 1}
    assert not list(folder.path.rglob("*.bad")) and not list(folder.path.rglob(".*.tmp"))


def test_done_runs_show_their_numbers_and_the_first_open_seed_is_offered(tiny, folder):
    done = Run("transfer", "standard", 0, 0, "imp", "digits5-9", "standard", 0.01)
    grid.complete(tiny, [done], folder, workers=1, device="cpu")
    start = {"round": 0, "regime": "standard", "fraction": 0.01}
    box = panel(tiny, folder, **start)
    assert find(box, "seed").value == 1 and "not done yet" in text(box)
    find(box, "seed").value = 0
    assert "done, SA" in text(box) and find(box, "progress").value == 1 and find(box, "figure") is not None
    record = folder.record(tiny.run_id(done))
    record.write_text(record.read_text()[:100])
    box = panel(tiny, folder, seed=0, **start)
    assert "not a record of a run (truncated?)" in text(box) and "Start does the run again" in text(box)
    with pytest.warns(UserWarning, match="not a record"):
        assert find(panel(tiny, folder, **start), "seed").value == 1  # the table still has it
    box = panel(tiny, folder, seed=0, **start)
    assert "done, SA" in text(box) and "(from the table)" in text(box)
    assert "not counted: 1 (" in text(find(box, "set-aside"))


def test_a_training_that_would_take_long_is_not_begun(tiny, folder):
    box = panel(tiny, folder, minutes=1e-6)
    find(box, "start").click()
    wait(box)
    assert "on this machine (cpu), and more than 1e-06 minutes are not begun here" in text(box)
    assert f"python -m dwlth run {tiny.name}" in text(box) and not list(folder.path.rglob("*.json"))


def test_a_training_that_breaks_down_says_so(tiny, folder, monkeypatch):
    box = panel(tiny, folder, round=0, device="cuda:99")
    find(box, "start").click()
    wait(box)
    assert "device 'cuda:99'" in text(box)
    monkeypatch.setattr(grid, "execute", lambda *args: 1 / 0)
    box = panel(tiny, folder, round=0)
    find(box, "start").click()
    wait(box)
    assert "ZeroDivisionError" in text(box) and not find(box, "start").disabled


def test_settings_of_the_panel_are_checked(tiny, folder):
    for name, value in dict(source="x", regime="x", downstream="x", fraction=0.2, round=99, seed=-1).items():
        with pytest.raises(DwlthError, match=f"{name} is {value!r}: choose from"):
            panel(tiny, folder, **{name: value})
