"""Datasets made of image files: small ones in memory, large ones streamed, and files that are not as they should be."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from dwlth import data
from dwlth.data import Split, Streamed, images
from dwlth.data.augment import Augment
from dwlth.data.images import read
from dwlth.errors import DwlthError

VIEW = Augment("resized", flip=True, size=24, resize=32)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tree(folder, per_class=10, side=20, classes=("ant", "bee"), kind="png"):
    """A tree of noise images, each unlike all others (its path is its seed)."""
    for class_ in classes:
        for number in range(per_class):
            path = folder / class_ / f"{number}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = int.from_bytes(f"{folder.name}/{class_}/{number}".encode()[-12:], "big")
            Image.fromarray(pixels(side, side + 3, 3, seed=seed)).save(path)
    return folder


def everything(dataset):
    """Label and pixels of all images of a dataset in memory."""
    splits = (dataset.train, dataset.val, dataset.test)
    return [(y, x.numpy().tobytes()) for split in splits for x, y in zip(split.images, split.labels.tolist())]


def test_small_images_are_those_of_torchvisions_imagefolder(tmp_path):
    path = tree(tmp_path / "set", per_class=20)
    dataset = data.load(f"folder:{path}")
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [28, 4, 8] and dataset.classes == 2
    theirs = [(y, transforms.PILToTensor()(x).numpy().tobytes()) for x, y in datasets.ImageFolder(path)]
    assert sorted(everything(dataset)) == sorted(theirs)
    for split in (dataset.train, dataset.val, dataset.test):
        assert torch.bincount(split.labels).unique().numel() == 1
    normal = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx(normal.mean((0, 2, 3)).tolist())
    assert dataset.std == pytest.approx(normal.std((0, 2, 3), correction=0).tolist())


def test_a_channel_of_one_level_is_not_divided_by_0(tmp_path):
    path = tree(tmp_path / "set")
    for file in path.rglob("*.png"):
        levels = np.array(Image.open(file).convert("RGB"))
        levels[..., 1:] = 7
        Image.fromarray(levels).save(file)
    found = data.load("folder:set", tmp_path)
    assert found.std[1:] == (1.0, 1.0) and 0 < found.std[0] < 1


def test_nested_folders_and_hidden_files_are_listed_as_torchvision_does(tmp_path):
    path = tree(tmp_path / "set")
    tree(path / "ant", per_class=2, classes=("b", "a"))
    wanted = datasets.ImageFolder(path).samples
    (path / "bee" / ".hidden").write_text("no image")
    (path / ".cache").mkdir()
    tree(path / "ant" / ".thumbnails", per_class=2)
    classes, paths, labels = images.tree(path)
    assert (classes, list(zip(paths, labels))) == (["ant", "bee"], wanted)


def test_splits_do_not_depend_on_the_place_or_the_order_of_writing(tmp_path):
    path = tree(tmp_path / "set")
    files = sorted(path.rglob("*.png"), key=lambda file: file.name, reverse=True)
    for file in files:
        copy = tmp_path / "elsewhere" / file.relative_to(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (tmp_path / "elsewhere" / "ant" / ".hidden").write_text("no image")
    (tmp_path / "elsewhere" / "README").write_text("no class")
    assert everything(data.load(f"folder:{path}")) == everything(data.load(f"folder:{tmp_path / 'elsewhere'}"))


@pytest.mark.parametrize(
    "parts, sizes",
    [
        (("train", "val", "test"), [20, 20, 20]),
        (("train", "test"), [18, 2, 20]),
        (("train", "val"), [18, 2, 20]),
    ],
)
def test_folders_that_are_split_stay_so(tmp_path, parts, sizes):
    for part in parts:
        tree(tmp_path / part)
    dataset = data.load(f"folder:{tmp_path}")
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == sizes
    last = datasets.ImageFolder(tmp_path / parts[-1])
    assert torch.equal(dataset.test.images, torch.stack([transforms.PILToTensor()(x) for x, _ in last]))
    assert dataset.test.labels.tolist() == last.targets
    assert len(set(everything(dataset))) == sum(sizes)


def test_imagenet_trains_on_all_of_train_and_tests_on_val(tmp_path):
    tree(tmp_path / "imagenet" / "train", side=80, kind="JPEG")
    tree(tmp_path / "imagenet" / "val", per_class=3, side=80, kind="JPEG")
    imagenet = data.load("imagenet", tmp_path)
    assert isinstance(imagenet.train, Streamed) and [len(imagenet.train), len(imagenet.test)] == [20, 6]
    assert imagenet.val is imagenet.test and imagenet.mean == (0.485, 0.456, 0.406)
    assert all("/val/" in path for path in imagenet.test.paths)


def convert(mode):
    image = Image.fromarray(pixels(20, 23, 3)).convert("RGB")
    if mode == "palette, part of it transparent":
        return image.quantize(16), {"transparency": bytes([0] * 8)}
    if mode == "RGBA":
        image.putalpha(100)
        return image, {}
    return image.convert(mode), {}


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "palette, part of it transparent", "CMYK"])
@pytest.mark.filterwarnings("error")
def test_other_kinds_of_images_become_rgb(tmp_path, mode):
    image, options = convert(mode)
    path = str(tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}")
    image.save(path, **options)
    expected = image.convert("RGB") if mode != "RGBA" else Image.fromarray(pixels(20, 23, 3))
    assert read(path).mode == "RGB" and np.array_equal(np.asarray(read(path)), np.asarray(expected))


@pytest.mark.parametrize("kind", ["png", "pgm"])
def test_grey_levels_in_16_bits_become_8_and_not_white(tmp_path, kind):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{kind}")
    got = np.asarray(read(str(tmp_path / f"ramp.{kind}")))
    assert got.shape == (256, 256, 3) and np.array_equal(got[..., 0], (ramp // 256).astype(np.uint8))
    assert np.array_equal(got[..., 0], got[..., 1]) and np.array_equal(got[..., 0], got[..., 2])


def test_a_small_folder_of_mixed_kinds_is_three_channels(tmp_path):
    tree(tmp_path)
    Image.fromarray(pixels(20, 23)).save(tmp_path / "ant" / "0.png")
    Image.fromarray(pixels(20, 23).astype(np.uint16) * 256).save(tmp_path / "ant" / "1.png")
    dataset = data.load(f"folder:{tmp_path}")
    grey = (0, np.stack([pixels(20, 23)] * 3).tobytes())
    assert everything(dataset).count(grey) == 2 and len(everything(dataset)) == 20


def no_image(path):
    path.write_bytes(b"<html>not found</html>")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def flipped_bit(path):
    """In the pixels of a flat image, whose decompression goes well nevertheless: only the checksum tells."""
    good = np.tile(np.arange(20, dtype=np.uint8)[:, None, None] * 8, (1, 23, 3))
    Image.fromarray(good).save(path)
    raw = path.read_bytes()
    start = raw.index(b"IDAT") + 4
    for place in range(start, len(raw) - 16):
        bad = bytearray(raw)
        bad[place] ^= 0x10
        path.write_bytes(bad)
        try:
            with Image.open(path) as image:
                if not np.array_equal(np.asarray(image), good):
                    return
        except Exception:
            continue
    raise AssertionError("no flipped bit goes unseen")


def tiff_16(path):
    Image.fromarray(pixels(20, 23).astype(np.uint16)).save(path, "TIFF")


def tiff_float(path):
    Image.fromarray(pixels(20, 23).astype(np.float32)).save(path, "TIFF")


@pytest.mark.parametrize("damage", [no_image, empty, truncated, flipped_bit, tiff_16, tiff_float])
def test_refuses_a_file_that_is_no_sound_image_and_names_it(tmp_path, damage):
    path = tree(tmp_path, per_class=12) / "bee" / "7.png"
    damage(path)
    with pytest.raises(DwlthError, match="/bee/7.png: ") as error:
        data.load(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)


def empty_class(path):
    (path / "train" / "cat").mkdir()
    return "train/cat: a class without images"


def foreign_file(path):
    (path / "train" / "bee" / "notes.txt").write_text("")
    return "bee/notes.txt: not an image by its name"


def class_in_test_only(path):
    tree(path / "test", classes=("cow",))
    return "class 'cow' is in only one of train/ and test/"


def no_test(path):
    shutil.rmtree(path / "test")
    return "train/ alone: put the images there as train/CLASS"


def no_train(path):
    shutil.rmtree(path / "train")
    return "test/ alone: put the images there as train/CLASS"


def nothing(path):
    shutil.rmtree(path)
    return "no such folder: put the images there as train/CLASS"


def no_classes(path):
    shutil.rmtree(path / "train" / "ant")
    return "train: 1 class folders: put there two or more"


def lone_image(path):
    for number in range(1, 10):
        (path / "train" / "bee" / f"{number}.png").unlink()
    return "bee/0.png: its class has too few images"


@pytest.mark.parametrize(
    "harm", [empty_class, foreign_file, class_in_test_only, no_test, no_train, nothing, no_classes, lone_image]
)
def test_refuses_a_folder_that_is_no_dataset(tmp_path, harm):
    for part in ("train", "test"):
        tree(tmp_path / "set" / part)
    words = harm(tmp_path / "set")
    with pytest.raises(DwlthError, match=words) as error:
        data.load(f"folder:{tmp_path / 'set'}")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_has_gone_is_not_called_damaged(tmp_path):
    with pytest.raises(DwlthError, match="gone.png: no such file"):
        read(str(tmp_path / "gone.png"))


def test_says_where_imagenet_goes(tmp_path):
    with pytest.raises(DwlthError, match="imagenet: no such folder: put the images there as train/CLASS.* val/CLASS"):
        data.load("imagenet", tmp_path)
    tree(tmp_path / "imagenet" / "train")
    tree(tmp_path / "imagenet" / "test")
    with pytest.raises(DwlthError, match="imagenet: train and test/ alone: .* val/CLASS"):
        data.load("imagenet", tmp_path)


def test_images_of_many_sizes_are_streamed_with_a_warning(tmp_path):
    tree(tmp_path)
    Image.fromarray(pixels(21, 23, 3)).save(tmp_path / "bee" / "3.png")
    with pytest.warns(UserWarning, match=r"bee/3.png is \(23, 21\).*streamed"):
        dataset = data.load(f"folder:{tmp_path}")
    assert isinstance(dataset.train, Streamed) and isinstance(dataset.test, Streamed)


@pytest.fixture
def streamed(tmp_path):
    """14 training images of 83 x 80 pixels; those of the second class are plain."""
    tree(tmp_path / "train", per_class=8, side=80)
    tree(tmp_path / "test", per_class=3, side=80)
    for part in ("train", "test"):
        for path in (tmp_path / part / "bee").glob("*"):
            Image.new("RGB", (83, 80), (int(path.stem), 200, 250)).save(path)
    return data.load(f"folder:{tmp_path}").train


def collect(split, seed=None, size=5):
    generator = None if seed is None else torch.Generator(split.labels.device).manual_seed(seed)
    return list(split.batches(size, generator, VIEW))


def same(one, two):
    return all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y))


def test_streamed_testing_views_are_torchvisions(streamed, device):
    split = streamed.to(device)
    batches = collect(split)
    assert [len(y) for _, y in batches] == [5, 5, 4] and all(x.device.type == device for x, _ in batches)
    reference = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(24), transforms.ToTensor()])
    theirs = torch.stack([reference(Image.open(path)) for path in streamed.paths])
    assert torch.equal(torch.cat([x for x, _ in batches]).cpu(), theirs)
    assert torch.equal(torch.cat([y for _, y in batches]), split.labels)


def test_the_number_of_workers_changes_no_batch(streamed):
    state = torch.get_rng_state()
    epochs = []
    for workers in (0, 1, 2):
        split = Streamed(streamed.paths, streamed.labels, workers)
        epochs.append(collect(split, seed=0) + collect(split, seed=1) + collect(split))
    assert same(epochs[0], epochs[1]) and same(epochs[0], epochs[2])
    assert torch.equal(torch.get_rng_state(), state)
    first, second = epochs[0][:3], epochs[0][3:6]
    assert not same(first, second)
    for epoch in (first, second):
        x, y = (torch.cat(part) for part in zip(*epoch))
        assert torch.equal(y == 1, (x[:, 2] == 250 / 255).flatten(1).all(1))  # labels and images belong together
        assert y.sum() == 7 and len({image.numpy().tobytes() for image in x}) == 14


def test_workers_stay_and_an_epoch_can_be_left(streamed):
    split = Streamed(streamed.paths, streamed.labels, workers=2)
    whole = collect(split, seed=0, size=2)
    workers = [worker.pid for worker in split._loader._iterator._workers]
    for _ in zip(range(2), split.batches(2, torch.Generator().manual_seed(5), VIEW)):
        pass
    assert same(collect(split, seed=0, size=2), whole)
    assert [worker.pid for worker in split._loader._iterator._workers] == workers


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 1), (12, 1, 12), (64, 8, 8), (64, 1, 16), (2, 8, 1)]
)
def test_decoders_share_the_cores_and_their_memory_is_bounded(cores, processes, workers, streamed, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert Streamed(streamed.paths, streamed.labels).workers == workers
    assert streamed._loader.prefetch_factor == 1  # batch


def test_a_process_that_a_fault_ends_within_an_epoch_does_end(streamed, tmp_path):
    """Its workers heed no signal, and Python waits for them."""
    code = f"""import sys, torch
from dwlth.data import Augment, load
if __name__ == "__main__":
    train = load({f"folder:{tmp_path}"!r}).train
    for batch in train.batches(4, torch.Generator().manual_seed(0), Augment("resized", size=16, resize=18)):
        raise RuntimeError("CUDA out of memory")
"""
    (tmp_path / "fault.py").write_text(code)
    ended = subprocess.run([sys.executable, tmp_path / "fault.py"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.rstrip().endswith("RuntimeError: CUDA out of memory")


def test_a_signal_to_the_whole_group_ends_no_worker(streamed):
    """A training finishes its step then, and saves it; for that it needs the next batch."""
    split = Streamed(streamed.paths, streamed.labels, workers=2)
    batches = split.batches(2, torch.Generator().manual_seed(0), VIEW)
    got = [next(batches), next(batches)]  # so both workers are there
    for worker in split._loader._iterator._workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, number)
    time.sleep(0.5)
    assert same(got + list(batches), collect(split, seed=0, size=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_in_a_stream_is_named_in_one_line(streamed, workers):
    path = streamed.paths[9]
    os.truncate(path, 60)
    message = ""
    try:
        collect(Streamed(streamed.paths, streamed.labels, workers), seed=0)
    except DwlthError as error:  # pytest.raises would make a cycle of it, and workers that end in one take 10 s
        message = str(error)
    assert message.startswith(f"{path}: not an image") and "\n" not in message


def test_part_of_a_stream(streamed):
    part = streamed.take([2, 8])
    assert len(part) == 2 and part.labels.tolist() == [0, 1]
    assert torch.equal(collect(part)[0][0], torch.cat([x for x, _ in collect(streamed)])[[2, 8]])


@pytest.mark.parametrize("augment", [None, Augment("pad")])
def test_streams_only_views_of_one_size(streamed, augment):
    with pytest.raises(DwlthError, match="0.png and the like .* crop to 'resized'"):
        next(streamed.batches(4, None, augment))


def test_both_kinds_of_split_agree(streamed):
    """The same images, in memory and streamed, are the same to the network when it is tested."""
    images = torch.stack([transforms.PILToTensor()(Image.open(path)) for path in streamed.paths])
    for (a, la), (b, lb) in zip(collect(Split(images, streamed.labels)), collect(streamed), strict=True):
        assert torch.equal(la, lb) and (a - b).abs().max() < 1.01 / 255
