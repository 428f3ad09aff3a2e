import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dwlth import masks, presets
from dwlth.attacks import Attack
from dwlth.errors import DwlthError
from dwlth.masks import Mask
from dwlth.show import analysis, attacked


def bits(**layers):
    return Mask({name: torch.tensor(values, dtype=torch.bool).view(-1, 1, 1, 1) for name, values in layers.items()})


@pytest.fixture
def ticket(model):
    return masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.8)


@pytest.fixture
def batch(task):
    return next(task.test.take(list(range(40))).batches(40))


def test_layer_sparsity_by_hand():
    found = analysis.layer_sparsity(bits(a=[1, 0, 0, 1], b=[0, 0, 0, 1, 1]))
    assert found.to_dict() == {"a": 0.5, "b": pytest.approx(0.6)}


def test_overlap_by_hand():
    a, b = bits(a=[1, 1, 0, 0], b=[1, 0]), bits(a=[0, 1, 1, 0], b=[1, 0])
    assert analysis.overlap(a, b) == 2 / 4
    # by chance, of 4 weights 2 and 2 survive: 1 in both, 3 in either; of 2 weights 1 and 1: 0.5 in both, 1.5 in either
    assert analysis.overlap_by_chance(a, b) == pytest.approx(1.5 / 4.5)


def test_overlap_of_equal_and_of_disjoint_masks(model, ticket):
    assert analysis.overlap(ticket, ticket) == 1
    assert analysis.overlap(ticket, Mask({name: ~tensor for name, tensor in ticket.items()})) == 0
    dense = masks.dense(model.net)
    assert analysis.overlap(dense, ticket) == analysis.overlap_by_chance(dense, ticket) == ticket.kept / ticket.total


def test_random_masks_overlap_as_by_chance():
    large = {"a": torch.rand(200, 100, 1, 1), "b": torch.rand(100, 100, 3, 3)}

    def draw():  # of a density of its own in each layer
        return Mask({"a": torch.rand_like(large["a"]) < 0.3, "b": torch.rand_like(large["b"]) < 0.1})

    torch.manual_seed(0)
    a, b = draw(), draw()
    assert analysis.overlap(a, b) == pytest.approx(analysis.overlap_by_chance(a, b), rel=0.03)
    flat = (a.kept / a.total) ** 2 / (2 * a.kept / a.total - (a.kept / a.total) ** 2)
    assert analysis.overlap(a, b) > 1.2 * flat  # densities of the whole masks would not do


def test_masks_of_two_networks_have_no_overlap():
    with pytest.raises(DwlthError, match="differ at a"):
        analysis.overlap(bits(a=[1, 0]), bits(a=[1, 0, 0]))
    with pytest.raises(DwlthError, match="differ at b"):
        analysis.overlap_by_chance(bits(a=[1]), bits(a=[1], b=[1]))


def test_kernels_show_the_surviving_weights_and_nothing_else(model, ticket):
    weight = model.net.layer1[0].conv1.weight.detach().cpu()
    found, kept = analysis.kernels(model.net, ticket, "layer1.0.conv1.weight"), ticket["layer1.0.conv1.weight"]
    assert found.isnan().equal(~kept) and found[kept].equal(weight[kept])
    with pytest.raises(DwlthError, match="'fc.weight'.*conv1.weight"):
        analysis.kernels(model.net, ticket, "fc.weight")


def test_the_kernel_figure_marks_each_pruned_weight(model, ticket):
    figure = analysis.draw_kernels(model.net, ticket, "layer1.0.conv1.weight", limit=3)
    counts, grid, *_ = figure.axes
    kept = ticket["layer1.0.conv1.weight"]
    assert counts.collections[0].get_array().tolist() == kept.sum((2, 3)).tolist()
    places = {tuple(place) for place in grid.collections[1].get_offsets().tolist()}
    pruned = (~kept[:3, :3]).nonzero().tolist()
    assert places == {(j * 4 + x + 0.5, i * 4 + y + 0.5) for i, j, y, x in pruned}


def test_the_histogram_counts_all_and_surviving_weights(model, ticket):
    (panel,) = analysis.draw_weights(model.net, ticket).axes
    counts = [bar.get_height() for bar in panel.containers[0]], panel.patches[-1].get_xy()[1:-1:2, 1]
    assert (sum(counts[0]), sum(counts[1])) == (ticket.total, ticket.kept)
    threshold = max(line.get_xdata()[0] for line in panel.lines)
    weights = torch.cat([weight.detach().flatten() for weight in masks.prunable(model.net).values()])
    assert (weights.abs() >= threshold).sum() == ticket.kept  # the ticket was cut at once, from these weights
    (label,) = (text for text in panel.get_legend_handles_labels()[1] if "survive" in text)
    assert f"{ticket.kept:,}" in label


@pytest.mark.parametrize("attack", [Attack(), Attack(0.1, 0.05, 2)], ids=["clean", "attacked"])
def test_the_middle_of_the_surface_is_the_plain_loss(model, ticket, batch, attack):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    axis, losses = analysis.loss_surface(model, *batch, mask=ticket, points=3, attack=attack)
    assert axis.tolist() == [-1, 0, 1] and losses.shape == (3, 3)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    ticket.apply_(model.net)
    model.eval()
    images = attack(model, *batch, torch.Generator(batch[0].device).manual_seed(0))
    assert losses[1, 1].item() == pytest.approx(F.cross_entropy(model(images), batch[1]).item(), rel=1e-5)
    assert losses.flatten().unique().numel() == 9


def test_pruned_weights_stay_zero_all_over_the_surface(model, ticket, batch, monkeypatch):
    seen = []

    def spy(attack, model, x, y, generator=None):
        weights = masks.prunable(model.net)
        assert all((weights[name][~ticket[name].to(weights[name].device)] == 0).all() for name in ticket)
        seen.append(torch.cat([weight.detach().flatten().clone() for weight in weights.values()]))
        return x

    monkeypatch.setattr(Attack, "__call__", spy)
    analysis.loss_surface(model, *batch, mask=ticket, points=3)
    assert len(seen) == 9 and not torch.equal(seen[0], seen[8])
    assert torch.allclose(seen[0] + seen[8], 2 * seen[4], atol=1e-6)  # a plane, with the network in its middle


def test_directions_have_the_norm_of_the_filters(model):
    weight = model.net.layer1[0].conv1.weight.detach().clone()
    weight[0] = 0  # a filter that is pruned away
    found = analysis._direction(weight, torch.Generator().manual_seed(0))
    assert torch.allclose(found.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1), rtol=1e-5)
    assert not torch.allclose(found, weight)


@pytest.mark.parametrize("bad", [{"points": 4}, {"points": 1}, {"reach": 0.0}, {"reach": math.nan}])
def test_refuses_a_surface_without_a_middle(model, batch, bad):
    with pytest.raises(DwlthError, match=next(iter(bad))):
        analysis.loss_surface(model, *batch, **bad)


def test_surfaces_share_their_levels(model, ticket, batch):
    dense = analysis.loss_surface(model, *batch, points=3)
    figure = analysis.draw_surfaces(
        {"dense": dense, "ticket": analysis.loss_surface(model, *batch, mask=ticket, points=3)}
    )
    filled = [panel.collections[0] for panel in figure.axes[:2]]
    assert list(filled[0].levels) == list(filled[1].levels)
    assert f"{dense[1][1, 1]:.3g}" in figure.axes[0].get_title()


def test_the_steps_of_an_attack(model, batch):
    model.train()
    attack = Attack(0.2, 0.05, 4)
    found = attacked.attack_steps(model, *batch, attack)
    assert model.training
    assert found.index[0] == 0 and found.index[-1] == 4
    model.eval()
    logits = model(batch[0])
    assert found.loc[0, "loss"] == pytest.approx(F.cross_entropy(logits, batch[1]).item())
    assert found.loc[0, "accuracy"] == pytest.approx((logits.argmax(1) == batch[1]).float().mean().item())
    assert found["loss"].is_monotonic_increasing and found.loc[4, "loss"] > found.loc[0, "loss"]


def test_right_and_wrong_are_told_apart_without_colour(model, batch):
    images = batch[0][:4]
    with torch.no_grad():
        guess = model.eval()(images).argmax(1)
    truth = torch.where(torch.arange(4, device=guess.device) < 2, guess, (guess + 1) % 5)
    names = attacked.class_names("digits5-9", 5)
    figure = attacked.draw_attacked({"standard": model}, images, truth, Attack(0.1, 0.05, 1), names)
    assert len(figure.axes) == 12
    for i, panel in enumerate(figure.axes[:4]):
        true, seen = panel.get_title().split("\n")
        assert true == f"true: {names[truth[i]]}"
        assert seen.startswith(f"{names[guess[i]]} {'✓' if i < 2 else '✗'} ")
        shown = torch.as_tensor(panel.images[0].get_array())
        assert torch.allclose(shown.float().squeeze(), images[i, 0].cpu())
    clean, magnified, harmed = (torch.as_tensor(figure.axes[i].images[0].get_array()).squeeze() for i in (0, 4, 8))
    assert figure.axes[4].get_ylabel() == "perturbation\n5 times"  # 0.1 to half the range
    assert torch.allclose(magnified, (harmed - clean) * 5 + 0.5, atol=1e-5)


def test_images_in_colour_are_shown_in_colour(model):
    class Blind(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    images = torch.rand(2, 3, 8, 8)
    figure = attacked.draw_attacked({"any": Blind()}, images, torch.tensor([0, 2]), Attack(8 / 255, 2 / 255, 1))
    assert figure.axes[0].images[0].get_array().shape == (8, 8, 3)
    assert figure.axes[1].get_title().startswith("true: class 2")


def test_names_of_classes():
    assert attacked.class_names("digits5-9", 5) == ["5", "6", "7", "8", "9"]
    assert attacked.class_names("digits-mine", 2) == ["class 0", "class 1"]  # a user's own
    assert attacked.class_names("cifar10", 10)[3] == "cat"
    assert attacked.class_names("cifar10", 3) == ["class 0", "class 1", "class 2"]
    assert attacked.class_names("svhn", 10)[0] == "0"
    assert attacked.class_names("folder:birds", 2) == ["class 0", "class 1"]


def test_lines_can_be_told_apart_without_colour(model):
    dense = masks.dense(model.net)
    tickets = {f"round {k}": dense for k in range(9)} | {source: dense for source in presets.SOURCES}
    (panel,) = analysis.draw_layers(tickets).axes
    looks = {
        (line.get_marker(), line.get_color() if i < 9 else line.get_linestyle()) for i, line in enumerate(panel.lines)
    }
    assert len(looks) == 12
    assert panel.get_legend_handles_labels()[1][-1] == "Adversarial"


def test_the_overlap_figure_says_what_was_counted(model):
    net, tickets = model.net, {}
    for seed, name in enumerate(("standard", "adversarial")):
        tickets[name] = {0: masks.dense(net)}
        for k in (1, 2):
            tickets[name][k] = masks.prune(tickets[name][k - 1], masks.random(net, seed), 0.5)
    matrix, curve = analysis.draw_overlap(tickets).axes
    a, b = (of[2] for of in tickets.values())
    assert matrix.texts[1].get_text().startswith(f"{analysis.overlap(a, b):.2f}")
    assert curve.lines[0].get_ydata()[2] == pytest.approx(analysis.overlap(a, b))
    assert curve.lines[1].get_ydata()[2] == pytest.approx(analysis.overlap_by_chance(a, b))


def test_models_are_left_as_they_were(model, batch):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attack = replace(presets.get("digits").evaluation, steps=1)
    attacked.draw_attacked({"one": model}, batch[0][:2], batch[1][:2], attack)
    attacked.draw_attack_steps({"one": attacked.attack_steps(model, *batch, attack)})
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
