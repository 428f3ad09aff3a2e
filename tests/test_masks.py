import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from dwlth import masks, tickets
from dwlth.errors import DwlthError
from dwlth.masks import Mask


def test_the_ladder_to_the_weight(model):
    mask, kept = masks.dense(model.net), masks.dense(model.net).total
    assert kept == sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    for k in range(1, 20):
        mask = masks.prune(mask, masks.magnitude(model.net), 0.2)
        kept -= round(0.2 * kept)
        assert mask.kept == kept
        assert mask.sparsity == pytest.approx(1 - 0.8**k, abs=2e-4)


@pytest.mark.parametrize("scores", [masks.magnitude, lambda net: masks.random(net, 0)], ids=["magnitude", "random"])
def test_masks_are_nested(model, scores):
    larger = masks.prune(masks.dense(model.net), scores(model.net), 0.5)
    smaller = masks.prune(larger, scores(model.net), 0.5)
    assert all((smaller[name] <= larger[name]).all() for name in larger)
    assert smaller.kept < larger.kept


def test_the_smallest_weights_of_the_whole_network_go(model):
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.3)
    weights = masks.prunable(model.net)
    survivors = torch.cat([weights[name][mask[name].to(weights[name].device)] for name in mask]).abs()
    pruned = torch.cat([weights[name][~mask[name].to(weights[name].device)] for name in mask]).abs()
    assert pruned.max() <= survivors.min()
    assert len({tensor.float().mean().item() for tensor in mask.values()}) > 1  # global, not per layer


def test_equals_torch_prune_round_by_round(model):
    model.to(memory_format=torch.contiguous_format)  # all that torch's can take
    reference = [(m, "weight") for m in model.net.modules() if isinstance(m, nn.Conv2d)]
    mask, weights = masks.dense(model.net), {n: w.detach().clone() for n, w in masks.prunable(model.net).items()}
    for _ in range(5):
        mask = masks.prune(mask, {name: weight.abs() for name, weight in weights.items()}, 0.2)
        prune.global_unstructured(reference, prune.L1Unstructured, amount=0.2)
        for (module, _), tensor in zip(reference, mask.values()):
            assert torch.equal(module.weight_mask.bool().cpu(), tensor)


def test_apply_zeroes_in_place_and_again(model):
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.5)
    names = list(model.net.state_dict())
    again = mask.apply_(model.net)
    with torch.no_grad():
        model.net.conv1.weight.add_(1)
    again()
    pruned = ~mask["conv1.weight"].to(model.net.conv1.weight.device)
    assert (model.net.conv1.weight[pruned] == 0).all() and (model.net.conv1.weight[~pruned] != 0).all()
    assert list(model.net.state_dict()) == names  # a plain network, whatever was masked


def test_a_saved_ticket_is_small_and_comes_back(model, tmp_path):
    mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.37)
    tickets.save(tmp_path / "07.safetensors", mask, round=7)
    loaded, about = tickets.load(tmp_path / "07.safetensors")
    assert loaded.keys() == mask.keys() and all(torch.equal(loaded[name], mask[name]) for name in mask)
    assert about["round"] == 7 and about["sparsity"] == mask.sparsity
    assert (tmp_path / "07.safetensors").stat().st_size < mask.total / 8 + 2000


def test_random_masks_differ_by_seed(model):
    one, two = (masks.prune(masks.dense(model.net), masks.random(model.net, seed), 0.5) for seed in (0, 1))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_the_fingerprint_is_of_the_convolutions(model):
    before = masks.fingerprint(masks.prunable(model.net))
    with torch.no_grad():
        model.net.fc.weight.add_(1)
    assert masks.fingerprint(masks.prunable(model.net)) == before
    with torch.no_grad():
        model.net.conv1.weight[0, 0, 0, 0] += 1e-3
    assert masks.fingerprint(masks.prunable(model.net)) != before


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_refuses_a_bad_rate(model, rate):
    with pytest.raises(DwlthError, match="pruning rate"):
        masks.prune(masks.dense(model.net), masks.magnitude(model.net), rate)


@pytest.mark.parametrize("of", ["missing", "one channel"])
def test_refuses_scores_that_do_not_fit(model, of):
    mask, scores = masks.dense(model.net), masks.magnitude(model.net)
    last = list(scores)[-1]
    without = {name: score for name, score in scores.items() if name != last}
    wrong = without if of == "missing" else without | {last: scores[last][:1]}
    with pytest.raises(DwlthError, match=f"mask and scores differ.*{last}"):
        masks.prune(mask, wrong, 0.2)


def test_refuses_what_does_not_fit(model):
    dense = masks.dense(model.net)
    with pytest.raises(DwlthError, match="conv1.weight.*5, 5"):
        Mask(dense | {"conv1.weight": torch.ones(8, 1, 5, 5, dtype=torch.bool)}).apply_(model.net)
    with pytest.raises(DwlthError, match="other.weight"):
        Mask(dense | {"other.weight": torch.ones(1, dtype=torch.bool)}).apply_(model.net)
    with pytest.raises(DwlthError, match="float32, not bool"):
        Mask({"conv1.weight": torch.ones(1)})
    with torch.no_grad():
        model.net.conv1.weight[0] = float("nan")
    with pytest.raises(DwlthError, match="NaN"):
        masks.prune(dense, masks.magnitude(model.net), 0.2)
