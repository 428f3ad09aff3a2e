"""The widgets, driven as a person would, without a browser: values set, buttons clicked."""

import html
import re
import threading
import time

import ipywidgets as ipw
import numpy as np
import pandas as pd
import pytest

from dwlth import presets
from dwlth.errors import DwlthError
from dwlth.presets import SOURCES
from dwlth.results import Folder, read_record, read_table
from dwlth.running import cost, grid
from dwlth.running.settings import override
from dwlth.runs import Run, plain
from dwlth.show import figures, widgets
from dwlth.show.widgets.parts import HEAR
from dwlth.training import OutOfTime


def falls_after(last, by=5.0):
    """Percent by round and seed: that of the dense network up to a round, and less from there on; no two seeds are
    alike, but each seed's differences from its dense network nearly are."""
    return lambda k, seed: 80.0 + seed - by * (k > last) + 0.01 * ((k + seed) % 3)


def table(sa_standard, sa_adversarial, ra_adversarial, source="adversarial", seeds=2, fraction=1.0):
    """A table of transfers whose values are functions of round and seed, in percent."""
    rows = []
    for seed, k in ((seed, k) for seed in range(seeds) for k in range(20)):
        row = {"stage": "transfer", "method": "imp", "downstream": "CIFAR-10", "fraction": fraction, "status": "ok"}
        row |= {"source": source, "seed": seed, "round": k, "sparsity": 1 - 0.8**k}
        rows.append(row | {"regime": "standard", "sa": sa_standard(k, seed) / 100, "ra": 0.0})
        adversarial = {"sa": sa_adversarial(k, seed) / 100, "ra": ra_adversarial(k, seed) / 100}
        rows.append(row | {"regime": "adversarial"} | adversarial)
    return pd.DataFrame(rows)


def find(widget, name):
    """The widget of that CSS class, or None."""
    if f"dwlth-{name}" in widget._dom_classes:
        return widget
    inside = (find(child, name) for child in getattr(widget, "children", ()))
    return next((found for found in inside if found is not None), None)


def text(widget, name="text"):
    found = find(widget, name)
    return html.unescape(re.sub("<.*?>", "", found.value)) if found is not None else ""


MARGINS = {"sa": 1.0, "ra": 2.0}


@pytest.fixture(scope="module")
def runs():
    """Tickets that are double-win up to round 6, 7 and 8."""
    tables = [table(*[falls_after(k)] * 3, source=s, seeds=4) for s, k in zip(SOURCES, (6, 7, 8))]
    tables += [table(*[falls_after(2)] * 3, source="adversarial", fraction=0.1)]
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def tiny():
    """A `digits` that trains in a moment, with some epochs to be stopped in."""
    tiny = ["pretrain.epochs=1", "imp.epochs=1", "transfer.epochs=6", "transfer.validate_every=2", "evaluation.steps=1"]
    steps = ["transfer.validation.steps=1", "transfer.adversarial.attack.steps=2"]
    return override(presets.get("digits"), [*tiny, *steps, "rounds=0,2", "seeds=1"])


@pytest.fixture
def folder(tiny, tmp_path):
    return Folder(tiny, tmp_path)


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
    with pytest.raises(DwlthError, match="source: nothing to choose from yet; `python -m dwlth run PRESET`"):
        widgets.choose("source", [], None)


def test_live_draws_again_and_the_same_value_gives_the_same_bytes(runs):
    def draw(fraction):
        if fraction == 0.5:
            raise DwlthError("no <half>")
        return (
            figures.double_wins(runs, "CIFAR-10", MARGINS),
            runs[runs["fraction"] == fraction].head(2),
            f"{fraction} < 2",
        )

    box = widgets.live(draw, fraction=widgets.choose("fraction", [1.0, 0.5, 0.1], 1.0))
    picture, numbers = find(box, "figure"), text(box, "table")
    before = picture.value
    assert bytes(before).startswith(b"\x89PNG") and "CIFAR-10" in numbers and "1.0 < 2" in text(box)
    find(box, "fraction").value = 0.1
    assert text(box, "table") != numbers and "0.1 < 2" in text(box)
    find(box, "fraction").value = 0.5  # the pictures would be those of another value
    assert "no <half>" in text(box) and find(box, "figure") is None and find(box.children[1], "table") is None
    find(box, "fraction").value = 1.0
    assert find(box, "figure").value == before and text(box, "table") == numbers


def test_a_figure_of_pyplot_is_closed():
    from matplotlib import pyplot as plt

    open_before = plt.get_fignums()
    assert bytes(find(widgets.live(lambda: plt.subplots()[0]), "figure").value).startswith(b"\x89PNG")
    assert plt.get_fignums() == open_before


def test_live_on_several_threads_ends_with_the_last_values(runs):
    box = explorer(runs, source="standard")
    expected = {}
    for source in SOURCES:
        find(box, "source").value = source
        expected[source] = find(box, "figure").value
    threads = [
        threading.Thread(target=lambda s=source: setattr(find(box, "source"), "value", s)) for source in [*SOURCES] * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find(box, "figure").value == expected[find(box, "source").value]


# the explorer


def test_the_explorer_knows_the_layers_of_every_network(runs):
    for name in ("digits", "cifar-small", "cifar"):
        layer = find(explorer(runs, Folder(presets.get(name), "nowhere")), "layer")
        assert ("conv1.weight", "conv1.weight") in layer.options and len(layer.options) > 4


def explorer(table, folder=None, **start):
    return widgets.explorer(table, folder or Folder(presets.get("digits"), "nowhere"), **start)


def test_every_picker_changes_the_picture_and_back(runs):
    runs = pd.concat([runs, runs.assign(downstream="SVHN", sa=runs["sa"] - 0.1, ra=runs["ra"] - 0.2)])
    box = explorer(runs, source="adversarial", fraction=1.0, round=6)
    picture = find(box, "figure")
    for name, other in {
        "source": "standard",
        "downstream": "SVHN",
        "fraction": 0.1,
        "round": 7,
    }.items():
        control, first = find(box, name), picture.value
        begin = control.value
        control.value = other
        assert picture.value != first, name
        control.value = begin
        assert picture.value == first, name


def test_the_numbers_and_the_answer_are_those_of_the_table():
    values = falls_after(8)
    box = explorer(table(values, values, values, seeds=4), source="adversarial", round=12)
    numbers = text(box, "table")
    assert "81.5 ± 0.6" in numbers and "76.5 ± 0.6" in numbers and "93.13%" in numbers and "seeds" in numbers
    assert "Not double-win: SA, standard transfer loses 5.0 points" in text(box)
    find(box, "round").value = 8
    assert "76.5" not in text(box, "table") and "Double-win: 4 seeds" in text(box)
    find(box, "round").value = 0
    assert "the dense network" in text(box)


def test_the_answer_counts_failed_runs_and_the_tickets_before():
    values, dips = falls_after(19), lambda k, seed: falls_after(19)(k, seed) - 5 * (k == 3)
    broken = table(values, values, values, seeds=4)
    lost = (broken["seed"] == 2) & (broken["round"] == 8) & (broken["regime"] == "adversarial")
    broken.loc[lost, ["status", "sa", "ra"]] = "failed", np.nan, np.nan
    assert "Not double-win: 1 of 4 seeds failed" in text(explorer(broken, source="adversarial", round=8))
    broken.loc[broken["round"] == 8, ["status", "sa", "ra", "sparsity"]] = "failed", np.nan, np.nan, np.nan
    box = explorer(broken, source="adversarial", round=8)  # a failed run has no sparsity
    assert find(box, "round").label == "round 8, failed" and "failed" in text(box)
    drawn = figures.double_wins(broken, "CIFAR-10", MARGINS).axes[0]
    assert not any("nan" in label.get_text() for label in drawn.get_yticklabels())
    after = explorer(table(dips, values, values, seeds=4), source="adversarial", round=8)
    assert "the verdict ends before it" in text(after)


def test_the_margins_move_the_answer_the_picture_and_the_scoreboard(runs):
    box = explorer(runs, source="adversarial", round=12, fraction=1.0)
    board, picture = find(box, "scoreboard"), find(box, "figure")
    assert {name: find(box, f"{name}_margin").value for name in MARGINS} == MARGINS
    begin = text(box), picture.value, text(board, "table")
    assert begin[0].startswith("Not double-win: SA") and "Double-win tickets exist" in begin[2]
    assert "supported" in begin[2] and "83.22%" in begin[2]  # round 8
    for name in MARGINS:
        find(box, f"{name}_margin").value = 7.5
    assert text(box).startswith("Double-win") and "98.56%" in text(board, "table")  # round 19
    assert picture.value != begin[1]
    for name, points in MARGINS.items():
        find(box, f"{name}_margin").value = points
    assert (text(box), picture.value, text(board, "table")) == begin


def wins(box):
    """The numbers in large type, from standard to adversarial."""
    return re.findall(r"<b [^>]*>(.*?)</b>", find(find(box, "headline"), "html").value)


def test_the_headline_moves_with_the_margins(runs):
    box = explorer(runs, fraction=1.0)
    assert wins(box) == ["73.79%", "79.03%", "83.22%"]  # rounds 6, 7 and 8
    assert "less than 1 of SA and 2 of RA" in text(find(box, "headline"), "html")
    for name in MARGINS:
        find(box, f"{name}_margin").value = 7.5
    assert wins(box) == ["98.56%"] * 3
    find(box, "fraction").value = 0.1
    assert wins(box) == ["98.56%"]
    find(box, "ra_margin").value = 0.25
    assert wins(box) == ["36.00%"]  # round 2


def test_no_double_win_and_no_verdict_are_said(runs):
    box = explorer(table(*[falls_after(0)] * 3, seeds=4))
    assert wins(box) == ["none"] and "next, 20.00%: not" in text(find(box, "headline"), "html")
    box = explorer(runs[runs["regime"] == "standard"])
    assert wins(box) == [] and "No ticket can be judged here yet" in text(find(box, "headline"), "html")


def test_the_control_is_called_sparsity(runs):
    control = find(explorer(runs, round=6), "round")
    assert control.description == "Sparsity" and control.label == "73.79 %"


def test_a_partial_table_is_enough(runs):
    part = runs[(runs["source"] != "standard") & (runs["regime"] == "standard")]
    box = explorer(part, source="standard", fraction=1.0, round=2)  # which only the preset has
    assert [value for _, value in find(box, "source").options] == ["fast_adversarial", "adversarial"]
    assert find(box, "source").value == "fast_adversarial" and "Not judged" in text(box)
    find(box, "fraction").value = 0.1  # which fast adversarial does not have
    assert find(box, "figure").value and "Not judged" in text(box)
    part = pd.concat([runs, runs.assign(downstream="SVHN")]).query("downstream != 'SVHN' or fraction == 1")
    box = explorer(part, fraction=1.0, downstream="SVHN")
    find(box, "fraction").value = 0.1
    assert "no transfers to SVHN with 10 % of its data" in text(box) and find(box.children[2], "table") is None


def test_without_transfers_one_sees_what_there_is_and_what_makes_the_rest(folder, runs):
    failed = {
        "stage": "imp",
        "source": "adversarial",
        "status": "failed",
        "id": folder.preset.run_id(folder.preset.grid()[0]),
    }
    other = failed | {"stage": "pretrain", "status": "ok", "id": "of no run of the grid"}
    box = explorer(pd.DataFrame([failed, other]).reindex(columns=[*runs, "id"]), folder)
    planned, name = len(folder.preset.grid()), folder.preset.name
    assert f"0 of {planned} runs are done. `python -m dwlth run {name}` does the others" in text(box)
    assert "adversarial" in text(box, "table") and find(box, "figure") is None
    grid.complete(folder, [Run("imp", "standard", 0, 1)])
    box = widgets.explorer(None, folder, source="adversarial", round=2)
    assert f"3 of {planned} runs are done" in text(box) and find(box, "figure") is not None
    assert find(box, "source").value == "standard"
    assert "The ticket of 36.00% from inside" in text(find(box, "inside"))


def test_where_one_begins_is_kept_until_there_are_results(folder, runs):
    box = widgets.explorer(None, folder, source="adversarial", fraction=0.1)
    assert find(box, "source") is None
    HEAR[folder.path](runs)
    assert [find(box, name).value for name in ("source", "fraction")] == ["adversarial", 0.1]


def test_where_no_kernel_answers_the_cell_says_that_it_is_asleep(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets.parts, "display", lambda part, **_: shown.append(part))
    widgets.live(lambda: "text")._ipython_display_()
    asleep, view = shown  # two outputs: the first stays where the second cannot be shown
    assert "application/vnd.jupyter.widget-view+json" in view
    assert "Run All Cells</em> wakes them" in asleep.data


def test_bad_arguments_are_named(runs):
    for name, value in dict(source="x", downstream="x", fraction=0.2, round=99, layer="x").items():
        with pytest.raises(DwlthError, match=f"{name} is {value!r}: choose from"):
            explorer(runs, **{name: value})


def test_the_ticket_from_inside_where_it_is_on_disk(folder, runs):
    grid.complete(folder, [Run("imp", "standard", 0, 1)])
    box = widgets.explorer(runs, folder, source="standard", round=2)
    inside = find(box, "inside")
    assert "The ticket of 36.00% from inside, standard pre-training, seed 0" in text(inside)
    layers, kernels = (part for part in inside.children if isinstance(part, ipw.Image))
    seen = layers.value, kernels.value
    find(box, "layer").value = "layer1.0.conv2.weight"
    assert layers.value == seen[0] and kernels.value != seen[1]
    find(box, "layer").value = "layer2.0.conv2.weight"  # the largest, where it began
    assert (layers.value, kernels.value) == seen
    find(box, "round").value = 5
    wanted = 'experiment.have(experiment.runs(stage="imp", source="standard", round=4, seed=0), files=True)'
    assert wanted in text(inside)
    folder.ticket(Run("transfer", "standard", 0, 2)).write_bytes(b"cut off")
    find(box, "round").value = 2
    assert "not a ticket (truncated or foreign)" in text(inside)


def test_unreadable_files_are_counted(runs, folder):
    path = folder.record(Run("pretrain", "standard", 0))
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(UserWarning, match="not a record"):
        list(folder.records())
    for box in (widgets.explorer(runs, folder), widgets.training_panel(folder)):
        assert "not counted: 1 (" in text(find(box, "set-aside")) and f"{path.name}.bad" in text(find(box, "set-aside"))


def test_a_move_draws_what_it_changes_and_once(runs, monkeypatch):
    calls = []

    def counted(place, name):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, **more: calls.append(name) or real(*args, **more))

    counted(figures, "criteria")
    counted(widgets.explore, "judge")
    counted(widgets.explore, "verdict")
    counted(widgets.explore, "scoreboard")
    box = explorer(runs, fraction=1.0)
    calls.clear()
    find(box, "round").value = 6
    assert calls == ["criteria", "judge"]
    calls.clear()
    find(box, "ra_margin").value = 5.0
    assert calls == ["verdict", "criteria", "judge", "scoreboard"]  # what is in large type first
    calls.clear()
    find(box, "ra_margin").value = 2.0
    assert "verdict" not in calls  # known


# the training panel


def panel(folder, **start):
    start = {"source": "standard", "regime": "adversarial", "fraction": 0.1, "round": 2, "device": "cpu"} | start
    return widgets.training_panel(folder, **start)


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


def science(folder, run):
    result = read_record(folder.record(run))["result"]
    return result | {"history": [row | {"seconds": 0} for row in result["history"]]}


RUN = Run("transfer", "standard", 0, 2, "imp", "digits5-9", "adversarial", 0.1)


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """The same run, uninterrupted, without a panel."""
    folder = Folder(tiny, tmp_path_factory.mktemp("straight"))
    grid.complete(folder, [RUN])
    return science(folder, RUN)


def test_stopped_and_started_again_it_is_the_same_run(folder, straight):
    box = panel(folder, seed=0)
    assert "not done yet (0 of 6 epochs)" in text(box) and find(box, "stop").disabled
    seen = []
    find(box, "text").observe(lambda change: seen.append(change["new"]), "value")
    stop_at(box, "epoch 3 of 6")
    find(box, "start").click()
    wait(box)
    assert not folder.record(RUN).exists() and folder.checkpoint(RUN).exists()
    assert "not done yet (3 of 6 epochs)" in text(box) and find(box, "progress").value == 0.5
    assert sum("pretrain standard seed 0 (run 1 of 4)" in words for words in seen) >= 2
    assert any("epoch 2 of 6, training accuracy" in words and "validation SA" in words for words in seen)
    again = panel(folder, seed=0)  # as after a restart of the kernel
    assert "not done yet (3 of 6 epochs)" in text(again) and find(again, "figure") is not None
    find(again, "start").click()
    wait(again)
    assert science(folder, RUN) == straight
    assert f"done, SA {straight['sa']:.1%} and RA {straight['ra']:.1%}" in text(again)
    assert not folder.checkpoint(RUN).exists()
    assert folder.preset.run_id(RUN) in set(read_table(folder.table)["id"])


def test_a_second_click_starts_nothing_and_stop_before_the_first_epoch(folder, monkeypatch):
    begun = []
    execute = grid.execute
    monkeypatch.setattr(grid, "execute", lambda *args, **more: begun.extend(args[4]) or execute(*args, **more))
    box = panel(folder, round=0, regime="standard", fraction=0.1)
    for _ in range(3):
        find(box, "start").click()
    assert find(box, "source").disabled
    wait(box)
    assert [run.stage for run in begun] == ["pretrain", "transfer"] and not find(box, "source").disabled
    find(box, "seed").value = 1
    find(box, "start").click()
    find(box, "stop").click()
    wait(box)
    assert "not done yet (0 of 6 epochs)" in text(box) and len(list(folder.path.glob("runs/*.json"))) == 2


def test_two_panels_at_once_lose_nothing(folder, straight):
    boxes = [panel(folder, seed=0), panel(folder, seed=0), panel(folder, seed=0, regime="standard")]
    for box in boxes:
        find(box, "start").click()
    for box in boxes:
        wait(box)
        assert "done, SA" in text(box)
    assert science(folder, RUN) == straight
    table = folder.collect()
    assert table["stage"].value_counts().to_dict() == {"imp": 2, "transfer": 2, "pretrain": 1}
    assert not list(folder.path.rglob("*.bad")) and not list(folder.path.rglob(".*.tmp"))


def test_done_runs_show_their_numbers_and_the_first_open_seed_is_offered(folder):
    done = Run("transfer", "standard", 0, 0, "imp", "digits5-9", "standard", 0.1)
    grid.complete(folder, [done])
    start = {"round": 0, "regime": "standard", "fraction": 0.1}
    box = panel(folder, **start)
    assert find(box, "seed").value == 1 and "not done yet" in text(box)
    find(box, "seed").value = 0
    assert "done, SA" in text(box) and find(box, "progress").value == 1 and find(box, "figure") is not None
    record = folder.record(done)
    record.write_text(record.read_text()[:100])
    box = panel(folder, seed=0, **start)
    assert "not a record of a run (truncated?)" in text(box) and "Start does the run again" in text(box)
    with pytest.warns(UserWarning, match="not a record"):
        assert find(panel(folder, **start), "seed").value == 1  # the table still has it
    box = panel(folder, seed=0, **start)
    assert "done, SA" in text(box) and "(from the table)" in text(box)
    assert "not counted: 1 (" in text(find(box, "set-aside"))


def test_a_failed_run_of_which_the_table_alone_is_left_is_no_done_one(folder):
    folder.path.mkdir()
    ended = {"id": folder.preset.run_id(RUN), "status": "failed"} | dict.fromkeys(("sparsity", "sa", "ra", "seconds"))
    pd.DataFrame([plain(RUN) | ended]).to_csv(folder.table, index=False)
    box = panel(folder, seed=0)
    assert text(box).endswith("seed 0: failed (from the table)") and find(box, "progress").value == 0
    assert not find(box, "start").disabled
    done = ended | {"status": "ok", "sa": 0.5}  # without an attack in the evaluation there is no RA
    pd.DataFrame([plain(RUN) | done]).to_csv(folder.table, index=False)
    assert text(panel(folder, seed=0)).endswith("done, SA 50.0% and RA not measured on the test set (from the table)")


def test_a_training_that_would_take_long_is_begun_by_a_second_start(folder):
    box = panel(folder, minutes=1e-6, round=0, regime="standard")
    find(box, "start").click()
    wait(box)
    assert "That is more than 1e-06 minutes: Start once more begins them" in text(box)
    assert f"`python -m dwlth run {folder.preset.name}` in" in text(box) and not list(folder.path.rglob("*.json"))
    find(box, "seed").value = 5
    find(box, "start").click()
    wait(box)
    assert f"`python -m dwlth run {folder.preset.name} --seeds 6` in" in text(box)
    find(box, "seed").value = 0
    find(box, "start").click()
    wait(box)
    assert "done, SA" in text(box)


def test_start_on_a_run_that_is_done_shows_it(folder):
    """With the limit of minutes of the notebooks: nothing is left to estimate."""
    for _ in range(2):
        box = panel(folder, minutes=1e-6, round=0, regime="standard", seed=0)
        for _ in range(2):
            find(box, "start").click()
            wait(box)
    assert "done, SA" in text(box)


def test_an_explorer_that_is_made_again_takes_the_place_of_the_one_before(folder, runs):
    before = len(HEAR)
    first, second = (widgets.explorer(None, folder, source="adversarial") for _ in "ab")
    assert len(HEAR) == before + 1
    HEAR[folder.path](runs)
    assert find(first, "source") is None and find(second, "source").value == "adversarial"


def test_stop_ends_the_estimate(folder, monkeypatch):
    timing = threading.Event()

    def estimate(folder, todo, stop):
        timing.set()
        while not stop():
            time.sleep(0.01)
        raise OutOfTime

    monkeypatch.setattr(cost, "estimate", estimate)
    box = panel(folder)
    find(box, "start").click()
    assert timing.wait(60)
    assert "estimating how long 4 runs would take here" in text(box) and not find(box, "stop").disabled
    find(box, "stop").click()
    wait(box)
    assert "not done yet (0 of 6 epochs)" in text(box) and not list(folder.path.rglob("*.json"))


def test_what_the_panel_trains_appears_in_the_explorer(folder):
    explored = widgets.explorer(None, folder)
    other = widgets.explorer(None, Folder(folder.preset, folder.root / "other"))
    assert "No ticket" in text(explored) and "is transferred yet" in text(explored)
    box = panel(folder, round=0, regime="standard")
    find(box, "start").click()
    wait(box)
    assert "Just trained: transfer standard, seed 0, sparsity 0.00%, standard: SA" in text(explored)
    assert find(explored, "fraction").value == 0.1 and find(explored, "figure") is not None
    assert "0.00%" in text(explored, "table") and "No ticket" in text(other)
    find(explored, "sa_margin").value = 5.0
    find(box, "seed").value = 1
    find(box, "start").click()
    wait(box)
    assert find(explored, "sa_margin").value == 5.0  # what one has set stays
    assert "seed 1" in text(explored) and re.search(r"0\.00%\s+2\s", text(explored, "table"))  # seeds


def test_a_training_that_breaks_down_says_so(folder, monkeypatch):
    box = panel(folder, round=0, device="cuda:99")
    find(box, "start").click()
    wait(box)
    assert "device 'cuda:99'" in text(box)
    monkeypatch.setattr(grid, "execute", lambda *args, **more: 1 / 0)
    box = panel(folder, round=0)
    find(box, "start").click()
    wait(box)
    assert "ZeroDivisionError" in text(box) and not find(box, "start").disabled


def test_settings_of_the_panel_are_checked(folder):
    for name, value in dict(source="x", regime="x", downstream="x", fraction=0.2, round=99, seed=-1).items():
        with pytest.raises(DwlthError, match=f"{name} is {value!r}: choose from"):
            panel(folder, **{name: value})
