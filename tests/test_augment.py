"""Augmentation on the device, against torchvision's transforms applied image by image."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as pil_transforms
from torchvision.transforms.v2 import functional as one

from dwlth.data.augment import Augment
from dwlth.errors import DwlthError

PAD = Augment("pad", flip=True)
RESIZED = Augment("resized", flip=True)
SHAPES = [(3, 32, 32), (1, 20, 28), (3, 61, 40)]


def seeded(device, seed=0):
    return torch.Generator(device).manual_seed(seed)


def noise(n, *shape):
    return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=seeded("cpu"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("augment", [PAD, RESIZED, Augment("resized", flip=True, size=24, resize=28)])
def test_training_views_are_torchvisions_of_the_same_draws(augment, shape, device):
    images = noise(24, *shape)
    boxes, flips = augment.draw(24, *shape[1:], seeded(device))
    assert len(boxes.unique(dim=0)) > 15 and 4 < flips.sum() < 20
    ours = augment(images.to(device), seeded(device))
    assert ours.dtype == torch.float32 and ours.device.type == device
    for view, image, box, flip in zip(ours.cpu(), images / 255, boxes.tolist(), flips.tolist()):
        if augment.crop == "pad":
            theirs = one.crop(image, *box)
        else:
            theirs = one.resized_crop(image, *box, [augment.size, augment.size])
        theirs = one.horizontal_flip(theirs) if flip else theirs
        torch.testing.assert_close(view, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 300, 281)])
@pytest.mark.parametrize("augment", [RESIZED, Augment("resized", size=21, resize=24)])
def test_testing_views_are_torchvisions(augment, shape, device):
    images = noise(3, *shape)
    ours = augment(images.to(device)).cpu()
    theirs = one.center_crop(one.resize(images / 255, [augment.resize]), [augment.size])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert ours.min() >= 0 and ours.max() <= 1


@pytest.mark.parametrize("side", [32, 300])
def test_testing_views_are_those_of_pil_within_a_grey_level(side):
    images = noise(3, 3, side, side)
    reference = pil_transforms.Compose(
        [pil_transforms.Resize(256), pil_transforms.CenterCrop(224), pil_transforms.ToTensor()]
    )
    theirs = torch.stack([reference(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    assert (RESIZED(images) - theirs).abs().max() < 1.01 / 255


def test_without_a_generator_nothing_but_resizing_happens():
    images = noise(5, 3, 32, 32)
    for augment in (Augment(), PAD, Augment(flip=True)):
        assert torch.equal(augment(images), images / 255)


@pytest.mark.parametrize("augment", [Augment("pad", flip=True), Augment("none", flip=True), Augment("pad")])
def test_views_are_the_same_in_every_memory_format(augment):
    images = noise(6, 3, 9, 11)
    view = augment(images, seeded("cpu"))
    assert torch.equal(augment(images.contiguous(memory_format=torch.channels_last), seeded("cpu")), view)


def test_no_augmentation_draws_nothing():
    generator = seeded("cpu")
    before = generator.get_state()
    assert torch.equal(Augment()(noise(5, 1, 8, 8), generator), noise(5, 1, 8, 8) / 255)
    assert torch.equal(generator.get_state(), before)


def test_the_same_seed_gives_the_same_views_and_another_others(device):
    images = noise(16, 3, 32, 32).to(device)
    for augment in (PAD, RESIZED):
        first, again, other = (augment(images, seeded(device, seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_half_precision_costs_no_grey_level():
    images = noise(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        views = RESIZED(images, seeded("cpu"))
    assert torch.equal(views, RESIZED(images, seeded("cpu")))


def test_padded_crops_fall_on_every_place_alike():
    boxes, flips = PAD.draw(8100, 32, 32, seeded("cpu"))
    assert (boxes[:, 2:] == 32).all()
    places = torch.bincount((boxes[:, 0] + 4) * 9 + boxes[:, 1] + 4, minlength=81)
    assert len(places) == 81 and ((places - 100).abs() < 45).all()  # 4.5 standard deviations
    assert abs(flips.float().mean() - 0.5) < 0.025


@pytest.mark.parametrize("height, width", [(32, 32), (224, 160), (12, 40), (40, 12)])
def test_resized_crops_are_distributed_as_torchvisions(height, width):
    n = 3000
    ours = RESIZED.draw(n, height, width, seeded("cpu"))[0].double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blank = torch.empty(1, height, width)
        draw = pil_transforms.RandomResizedCrop.get_params
        theirs = torch.tensor([draw(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]).double()
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] > 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        mine, other = measure(ours), measure(theirs)
        at = torch.cat([mine, other]).unique()
        shares = [(values.unsqueeze(1) <= at).double().mean(0) for values in (mine, other)]
        assert (shares[0] - shares[1]).abs().max() < 0.05  # Kolmogorov-Smirnov, one in a thousand


def test_a_decoded_image_gets_the_view_of_its_seed():
    pixels = noise(1, 3, 50, 70)[0].permute(1, 2, 0).numpy()
    augment = Augment("resized", flip=True, size=30, resize=40)
    views = [augment.view(Image.fromarray(pixels), seed) for seed in range(20)]
    assert all(view.shape == (3, 30, 30) and view.dtype == torch.uint8 for view in views)
    assert len({view.numpy().tobytes() for view in views}) == 20
    assert torch.equal(views[3], augment.view(Image.fromarray(pixels), 3))
    for seed, view in enumerate(views):
        on_device = augment(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0), seeded("cpu", seed))[0]
        assert (on_device * 255 - view).abs().max() < 1.01
    centre = pil_transforms.CenterCrop(30)(pil_transforms.Resize(40)(Image.fromarray(pixels)))
    assert np.array_equal(augment.view(Image.fromarray(pixels), None).permute(1, 2, 0).numpy(), np.asarray(centre))


def test_is_hashable_and_plain():
    assert {RESIZED: 1}[Augment("resized", flip=True)] == 1
    assert json.loads(json.dumps(dataclasses.asdict(RESIZED)))["scale"] == [0.08, 1.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": "centre"},
        {"padding": -1},
        {"size": 0},
        {"size": 300},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.2)},
        {"scale": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
    ],
)
def test_refuses_settings_that_make_no_view(settings):
    with pytest.raises(DwlthError, match=f"augment: .*{next(iter(settings))}"):
        Augment(**settings)
