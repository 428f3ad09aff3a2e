import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dwlth import data
from dwlth.errors import DwlthError


@pytest.fixture(params=["digits0-4", "digits5-9"])
def digits(request):
    return data.load(request.param)


def test_the_splits_are_the_real_scans_each_once(digits):
    images = torch.cat([split.images for split in (digits.train, digits.val, digits.test)])
    labels = torch.cat([split.labels for split in (digits.train, digits.val, digits.test)])
    scans = load_digits()
    first = int(digits.name[6])
    chosen = (scans.target >= first) & (scans.target < first + 5)
    ours = sorted(zip(labels.tolist(), (images.flatten(1).double() * 16 / 255).round().tolist()))
    theirs = sorted(zip((scans.target[chosen] - first).tolist(), scans.data[chosen].tolist()))
    assert ours == theirs


def test_splits_hold_every_class_alike(digits):
    for split in (digits.train, digits.val, digits.test):
        shares = torch.bincount(split.labels, minlength=5) / len(split)
        assert (shares > 0.18).all() and (shares < 0.22).all()


def test_the_normalisation_is_that_of_the_training_pixels(digits):
    pixels = digits.train.images.float() / 255
    normal = (pixels - digits.mean[0]) / digits.std[0]
    assert normal.mean().item() == pytest.approx(0, abs=1e-5) and normal.std().item() == pytest.approx(1, abs=1e-5)


def test_batches_cover_the_split_once_in_a_seeded_order(task):
    draw = lambda seed: list(task.train.batches(64, torch.Generator(task.train.labels.device).manual_seed(seed)))
    one, two, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two))
    assert not torch.equal(one[0][0], other[0][0])
    x = torch.cat([x for x, _ in one])
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    assert torch.equal(torch.cat([y for _, y in one]).sort().values, task.train.labels.sort().values)
    in_order = torch.cat([x for x, _ in task.train.batches(64)])
    assert torch.equal((in_order * 255).round().to(torch.uint8), task.train.images)


def test_a_subset_is_balanced_nested_and_holds_every_class(digits):
    labels = digits.train.labels
    small, large = (data.balanced_subset(labels, fraction, seed=0) for fraction in (0.01, 0.1))
    assert torch.bincount(labels[small]).tolist() == [1] * 5
    assert torch.bincount(labels[large]).tolist() == [round(0.1 * n) for n in torch.bincount(labels).tolist()]
    assert set(small) < set(large)
    assert small == data.balanced_subset(labels, 0.01, seed=0) != data.balanced_subset(labels, 0.01, seed=1)
    assert data.balanced_subset(labels, 1.0, seed=0) == np.arange(len(labels)).tolist()


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_refuses_a_bad_fraction(digits, fraction):
    with pytest.raises(DwlthError, match="fraction"):
        data.balanced_subset(digits.train.labels, fraction, seed=0)


def test_refuses_an_unknown_name():
    with pytest.raises(DwlthError, match="'mnist'.*digits0-4"):
        data.load("mnist")
