"""What is put together of tested parts, done again by hand: IMP, a transfer, a source, the batch of the controls."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY

from dwlth import controls, data, masks, presets, sources, tickets, training, transfer
from dwlth.evaluation import evaluate
from dwlth.results import Folder, read_record
from dwlth.running import grid
from dwlth.running.settings import override
from dwlth.runs import Run, stream
from dwlth.training import fit_members


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """All runs of one source, two seeds, standard transfer and 10 % of the data."""
    preset = override(presets.get("digits"), [*TINY, "rounds=0,2", "fractions=0.1", "seeds=2", "methods=imp"])
    only = {name: {"standard": getattr(preset, name)["standard"]} for name in ("pretrain", "transfer")}
    folder = Folder(replace(preset, **only), tmp_path_factory.mktemp("road"))
    assert set(grid.run_all(folder, grid.left(folder, folder.preset.grid())).values()) == {"ok"}
    return folder


def numbers(history):
    return [{key: v for key, v in row.items() if isinstance(v, float) and key != "seconds"} for row in history]


def near(history):
    """The same bits, but on a CPU with AVX2 alone, whose stacks round by their size."""
    return [pytest.approx(row, rel=1e-3) for row in numbers(history)]


def test_a_round_of_imp_trains_the_ticket_from_the_source_and_prunes_it(road):
    run = Run("imp", "standard", 1, 1)
    recipe, task, model = road.preset.recipe(run), road.dataset(road.preset.upstream, 1), sources.load(road, run)
    mask, _ = tickets.load(road.ticket(run))
    how = {"seeds": [stream(1, "imp", 1)], "masks": [mask], "stacked": road.preset.stacks(run)}
    (result,) = fit_members([model], recipe, [task.train], [task.val], **how)
    found, record = tickets.load(road.ticket(run.pruned))[0], read_record(road.record(run))["result"]
    assert numbers(record["history"]) == near(result.history)
    expected = masks.prune(mask, masks.magnitude(model.net), road.preset.prune_rate)
    assert sum(int((expected[name] != found[name]).sum()) for name in mask) <= 10  # of 17,992; 0 but with AVX2
    tested = evaluate(model, task.test, road.preset.evaluation, stream(1, "imp", 1), **recipe.measuring)
    assert (record["sa"], record["ra"]) == pytest.approx(tested, abs=0.005)


def test_a_transfer_trains_the_ticket_on_its_share_of_the_data(road):
    run = Run("transfer", "standard", 1, 2, "imp", "digits5-9", "standard", 0.1)
    task = road.dataset("digits5-9", 1)
    model, mask = transfer.start(road, run, task)
    other, _ = transfer.start(road, replace(run, seed=0), task)
    assert not torch.equal(model.net.fc.weight, other.net.fc.weight)  # a head of its own
    chosen = data.subset(task.train.labels, 0.1, road.preset.subset, 1)
    how = {"seeds": [stream(1, "transfer")], "masks": [mask], "stacked": road.preset.stacks(run)}
    (result,) = fit_members([model], road.preset.recipe(run), [task.train.take(chosen)], [task.val], **how)
    record = read_record(road.record(run))["result"]
    assert record["indices"] == chosen and numbers(record["history"]) == near(result.history)


@pytest.mark.parametrize("first", [0, 1])
def test_a_sound_source_is_that_of_the_last_sound_epoch(tiny, tmp_path, monkeypatch, first):
    recipe = replace(tiny.pretrain["fast_adversarial"], epochs=3, keep="sound", validate_every=1)
    folder = Folder(replace(tiny, pretrain=tiny.pretrain | {"fast_adversarial": recipe}), tmp_path)
    run, fits = Run("pretrain", "fast_adversarial", 0), []
    monkeypatch.setattr(training, "catastrophic_overfitting", lambda row: row["epoch"] >= first)
    monkeypatch.setattr(sources, "fit_members", lambda *args, **how: fits.extend(fit_members(*args, **how)) or fits)
    with pytest.warns(UserWarning, match="catastrophic"):
        (result,) = sources.pretrain(folder, [run], stacked=True)
    if first == 0:
        assert result["error"] == "catastrophic overfitting in every validated epoch"
        assert not folder.source(run).exists()
        return
    best, net = fits[0].best["sound"], sources.load(folder, run).net
    assert best["epoch"] == 0
    assert all(torch.equal(tensor, best["state"][name]) for name, tensor in net.state_dict().items())


def test_snip_sees_training_images_and_synflow_scores_anew_for_each_step():
    folder = Folder(presets.get("digits"), Path(__file__).parents[1] / "results")
    run = Run("transfer", "standard", 0, 2, "snip", "digits5-9", "standard")
    source, train = sources.load(folder, run), folder.dataset(folder.preset.upstream, 0).train
    images, labels = batch = tickets._batch(folder, run, source)
    levels = ((images * source.std + source.mean) * 255).round().to(torch.uint8)  # what is not normalised has others
    pairs = lambda x, y: {(image.numpy().tobytes(), label) for image, label in zip(x, y.tolist())}
    assert len(images) == controls.BATCH and pairs(levels, labels) <= pairs(train.images, train.labels)
    net, mask = copy.deepcopy(source.net), masks.dense(source.net)
    for _ in range(12):
        mask.apply_(net)
        mask = masks.prune(mask, controls.synflow(net, 0, *batch), folder.preset.prune_rate)
    found = tickets.find(folder, replace(run, method="synflow", round=12), source)
    assert all(torch.equal(found[name], mask[name]) for name in mask)
