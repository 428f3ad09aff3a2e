import functools
import hashlib
import http.server
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from dwlth import data
from dwlth.data import Augment, official
from dwlth.data import datasets as datasets_module
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


PAPER = [
    ("cifar10", 0.1, 4500),
    ("cifar10", 0.01, 450),
    ("cifar100", 0.1, 4500),
    ("svhn", 0.1, 6825),
    ("svhn", 0.01, 682),
]


@pytest.mark.parametrize("name, fraction, n", PAPER)
def test_the_papers_parts_are_the_first_images(name, fraction, n):
    labels = torch.arange(data.DATASETS[name].sizes[0]) % 10
    assert data.subset(labels, fraction, "first") == list(range(n))


def test_a_part_is_not_one_short_for_want_of_precision():
    labels = torch.zeros(100).long()
    assert [len(data.subset(labels, n / 100, "first")) for n in range(1, 101)] == list(range(1, 101))


def test_random_parts_are_seeded_and_nested(device):
    labels = (torch.arange(5000) % 10).to(device)
    small, large = (data.subset(labels, fraction, "random", seed=0) for fraction in (0.1, 0.3))
    assert len(small) == 500 and len(large) == 1500 and set(small) < set(large) and small == sorted(small)
    assert small == data.subset(labels, 0.1, "random", seed=0) != data.subset(labels, 0.1, "random", seed=1)
    assert abs(np.mean(small) - 2500) < 200  # from everywhere, not the first
    assert data.subset(labels, 0.1, "balanced", 3) == data.balanced_subset(labels, 0.1, 3)


def test_refuses_a_part_without_a_class_and_says_what_would_do():
    labels = torch.zeros(1000).long()
    labels[37], labels[503] = 1, 2
    with pytest.raises(DwlthError, match="fraction 0.1 .*first: 100 of 1000 .*class 2: give 0.504 or more") as error:
        data.subset(labels, 0.1, "first")
    assert "\n" not in str(error.value)
    assert data.subset(labels, 0.504, "first") == list(range(504))
    assert data.subset(labels, 0.1, "first", allow_empty=True) == list(range(100))
    with pytest.raises(
        DwlthError, match="fraction 0.0005 of the training data: none of 1000 images: give 0.001 or more"
    ):
        data.subset(labels, 0.0005, "first", allow_empty=True)
    with pytest.raises(DwlthError, match="random.*none of class"):
        data.subset(labels, 0.01, "random", seed=0)
    assert {37, 503} <= set(data.subset(labels, 0.01, "balanced"))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("how", ["first", "random", "balanced"])
def test_refuses_a_bad_fraction_for_every_kind_of_part(fraction, how):
    with pytest.raises(DwlthError, match="fraction of the training data is"):
        data.subset(torch.zeros(10), fraction, how)


def test_refuses_an_unknown_kind_of_part():
    with pytest.raises(DwlthError, match="is 'last': give first, random or balanced"):
        data.subset(torch.zeros(10), 0.5, "last")


def test_refuses_an_unknown_name():
    with pytest.raises(DwlthError, match="'mnist'.*digits0-4.*cifar10.*folder:PATH"):
        data.load("mnist")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root, kind, monkeypatch):
    """Miniature batches as the real archive has them, random pixels, and torchvision's checksums to match."""
    rng = np.random.default_rng(0)
    key, classes = ("labels", 10) if kind is datasets.CIFAR10 else ("fine_labels", 100)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    written = {}
    for part, files in (("train", kind.train_list), ("test", kind.test_list)):
        n = (200 if part == "train" else 100) // len(files)
        for index, (name, _) in enumerate(files):
            pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
            labels = ((np.arange(n) + index) % classes).tolist()
            batch = {"data": pixels, key: labels, "batch_label": name, "filenames": [f"{i}.png" for i in range(n)]}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
            written.setdefault(part, []).append((pixels, labels))
        monkeypatch.setattr(kind, f"{part}_list", [[name, md5(folder / name)] for name, _ in files])
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [str(i) for i in range(classes)]}, protocol=2))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
    join = lambda part: [np.concatenate(pieces) for pieces in zip(*written[part])]
    return {part: (pixels.reshape(-1, 3, 32, 32), labels) for part in written for pixels, labels in [join(part)]}


def shrink(monkeypatch, name):
    """150 training, 50 validation and 100 test images, as the writers here write them."""
    monkeypatch.setitem(data.DATASETS, name, replace(data.DATASETS[name], sizes=(150, 50, 100)))


def write_svhn(root, monkeypatch):
    """Miniature .mat files as the real ones: X is uint8 [32, 32, 3, N], y is uint8 [N, 1] with 10 for the digit 0."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    written, checksums = {}, {}
    for part, n in (("train", 200), ("test", 100)):
        pixels, labels = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 10
        path = root / f"{part}_32x32.mat"
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": pixels.transpose(2, 3, 1, 0), "y": y}, do_compression=True)
        written[part] = pixels, labels
        checksums[part] = [f"file:///nowhere/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", checksums)
    return written


@pytest.mark.parametrize("name, classes", [("cifar10", 10), ("cifar100", 100), ("svhn", 10)])
def test_published_datasets_have_torchvisions_order_and_the_papers_splits(tmp_path, monkeypatch, name, classes):
    kind = getattr(datasets, name.upper())
    images = write_svhn(tmp_path, monkeypatch) if name == "svhn" else write_cifar(tmp_path, kind, monkeypatch)
    shrink(monkeypatch, name)
    dataset = data.load(name, tmp_path)
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [150, 50, 100]
    assert dataset.classes == classes and (dataset.mean, dataset.std) == data.MEAN_STD[name]
    pixels, labels = images["train"]
    for split, part in ((dataset.train, slice(0, 150)), (dataset.val, slice(150, 200))):
        assert split.images.dtype == torch.uint8 and np.array_equal(split.images, pixels[part])
        assert split.labels.dtype == torch.int64 and split.labels.tolist() == list(labels[part])
    assert np.array_equal(dataset.test.images, images["test"][0])
    theirs = kind(tmp_path, **({"split": "train"} if name == "svhn" else {"train": True}))
    image, label = theirs[7]
    assert np.array_equal(dataset.train.images[7].permute(1, 2, 0), image) and dataset.train.labels[7] == label
    assert data.load(name, tmp_path) is dataset


def bad(images=None, labels=None, part="train", **fields):
    def change(whole):
        split = getattr(whole, part)
        images_ = split.images if images is None else images(split.images)
        labels_ = split.labels if labels is None else labels(split.labels)
        return replace(whole, **{part: data.Split(images_, labels_)}, **fields)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (bad(lambda x: x / 255), "train: type of images is torch.float32: give torch.uint8"),
        (bad(lambda x: x[:, 0], part="val"), r"val: shape of images is \(\d+, 8, 8\): give .*: \[N, C, H, W\]"),
        (bad(lambda x: x.repeat(1, 3, 1, 1)), r"train: shape of images is \(\d+, 3, 8, 8\): .*of 1 channels as mean"),
        (bad(lambda x: x[1:]), r"train: shape of images is \((\d+), 1, 8, 8\): give one image for each of the \d+"),
        (bad(labels=lambda y: y.int()), "train: type of labels is torch.int32: give torch.int64"),
        (bad(lambda x: x[:0], lambda y: y[:0], part="val"), "val: number of images is 0: give 1 or more"),
        (bad(labels=lambda y: y + 5, part="test"), r"test: labels from is \(5, 9\): give labels of 0 to 4"),
    ],
)
def test_a_dataset_of_ones_own_that_is_none_is_refused(monkeypatch, change, message):
    whole = data.load("digits5-9")
    monkeypatch.setitem(data.DATASETS, "own", data.Entry(lambda *_: change(replace(whole, name="own"))))
    with pytest.raises(DwlthError, match=f"^dataset 'own', {message}"):
        data.load("own", "somewhere", str(message))  # each its own place in the cache


def test_numbers_of_ones_own_dataset_become_plain(monkeypatch):
    whole = data.load("digits5-9")
    odd = replace(whole, classes=np.int64(5), mean=(torch.tensor(0.25),), std=(np.float32(0.5),))
    monkeypatch.setitem(data.DATASETS, "own", data.Entry(lambda *_: odd))
    found = data.load("own", "elsewhere")
    assert (type(found.classes), found.mean, found.std) == (int, (0.25,), (0.5,))
    assert type(found.mean[0]) is type(found.std[0]) is float


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine, of the folder `far`; its address."""
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "far")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_absent_is_downloaded_and_checked(tmp_path, monkeypatch, server):
    write_cifar(tmp_path / "far", datasets.CIFAR10, monkeypatch)
    archive = tmp_path / "far" / datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "far" / datasets.CIFAR10.base_folder, datasets.CIFAR10.base_folder)
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server}/{archive.name}")
    with pytest.raises(
        DwlthError, match="^cifar10: .*here.*data_batch_1 is not there.*corrupted.*es-py/ of http:"
    ) as error:
        data.load("cifar10", tmp_path / "here")  # the real hash, which this archive has not
    assert "\n" not in str(error.value)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    shrink(monkeypatch, "cifar10")
    assert len(data.load("cifar10", tmp_path / "here").val) == 50


def test_a_server_that_falls_silent_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, and says nothing
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz")
        with pytest.raises(DwlthError, match=r"cannot be downloaded \(.*timed out.*\): put cifar-10-batches-py/ of"):
            data.load("cifar10", tmp_path)


@pytest.mark.parametrize("name, where", [("cifar100", "cifar-100-python/"), ("svhn", "train_32x32.mat and test_32x32")])
def test_says_what_to_put_where_if_there_is_no_download(tmp_path, monkeypatch, name, where):
    if name == "svhn":
        write_svhn(tmp_path / "far", monkeypatch)
    monkeypatch.setattr(datasets.CIFAR100, "url", "file:///nowhere/cifar.tar.gz")
    with pytest.raises(DwlthError, match=f"^{name}: .*cannot be downloaded.*put {where}.*nowhere.* into") as error:
        data.load(name, tmp_path / "here")
    assert str(tmp_path / "here") in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_copy_is_not_read(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    with open(tmp_path / "test_32x32.mat", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DwlthError, match="test_32x32.mat: damaged: its MD5 is [0-9a-f]{32}, where .* remove it"):
        data.load("svhn", tmp_path)


def test_a_file_that_is_absent_and_one_that_is_damaged_are_told_apart(tmp_path, monkeypatch):
    write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "url", "file:///nowhere/cifar.tar.gz")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1] + b"x")
    with pytest.raises(DwlthError, match=r"^\S*/data_batch_3: damaged: its MD5") as error:
        data.load("cifar10", tmp_path)
    assert "\n" not in str(error.value)
    batch.unlink()
    with pytest.raises(DwlthError, match="^cifar10: .*/data_batch_3 is not there, and cannot be downloaded"):
        data.load("cifar10", tmp_path)
    batch.write_bytes(whole)
    shrink(monkeypatch, "cifar10")
    assert len(data.load("cifar10", tmp_path).train) == 150


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_files_that_are_there_are_neither_downloaded_nor_read_to_see_that(tmp_path, monkeypatch, name):
    kind = getattr(datasets, name.upper())
    write_svhn(tmp_path, monkeypatch) if name == "svhn" else write_cifar(tmp_path, kind, monkeypatch)
    shrink(monkeypatch, name)

    def fail(*_, **__):
        raise AssertionError("asked torchvision")

    with monkeypatch.context() as patched:
        patched.setattr(kind, "__init__", fail)
        data.fetch(name, tmp_path)
    monkeypatch.setattr(kind, "download", fail)
    assert len(data.load(name, tmp_path).train) == 150


def write_pngs(images, root, names):
    """The images of `write_cifar` as root/{train,test}/CLASS/*.png, in an order of their own."""
    for part, (pixels, labels) in images.items():
        order = np.random.default_rng(1).permutation(len(pixels))
        for number, index in enumerate(order):
            path = root / part / names[labels[index]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index].transpose(1, 2, 0)).save(path)


CIFAR = {"cifar10": data.DATASETS["cifar10"].classes, "cifar100": [f"class{n:02}" for n in range(100)]}


@pytest.mark.parametrize("name", CIFAR)
def test_by_content_both_kinds_of_files_give_the_same_splits_bit_for_bit(tmp_path, monkeypatch, name):
    images = write_cifar(tmp_path / "a", getattr(datasets, name.upper()), monkeypatch)
    write_pngs(images, tmp_path / "b" / name, CIFAR[name])
    shrink(monkeypatch, name)
    one, other = (data.load(name, tmp_path / root, "content") for root in ("a", "b"))
    for part in ("train", "val", "test"):
        for kind in ("images", "labels"):
            assert torch.equal(getattr(getattr(one, part), kind), getattr(getattr(other, part), kind))
    assert (one.classes, one.mean, one.std) == (other.classes, other.mean, other.std)
    given = data.load(name, tmp_path / "a", "given")
    key = lambda images: sorted(image.numpy().tobytes() for image in images)
    assert key(torch.cat([one.train.images, one.val.images])) == key(torch.cat([given.train.images, given.val.images]))
    assert not torch.equal(one.train.images, given.train.images)
    with pytest.raises(DwlthError, match=f"b/{name}: image files, but the splits .* follow torchvision's order"):
        data.load(name, tmp_path / "b", "given")


def test_equal_images_with_different_labels_have_an_order(tmp_path, monkeypatch):
    """By their labels, whichever comes first on disk; torchvision's files hold them in another order than PNGs."""
    images = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
    images[5] = 1
    labels = torch.tensor([3, 1, 2, 1, 0, 7])
    found = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]):
        split = datasets_module._by_content(data.Split(images[order], labels[order]))
        found.append((split.images.flatten(1)[:, 0].tolist(), split.labels.tolist()))
    assert found[0] == found[1] == found[2]
    assert [label for pixel, label in zip(*found[0]) if pixel == 0] == [0, 1, 1, 2, 3]


@pytest.fixture
def pngs(tmp_path, monkeypatch):
    """A folder cifar10/ of image files as they should be."""
    images = write_cifar(tmp_path / "a", datasets.CIFAR10, monkeypatch)
    write_pngs(images, tmp_path / "cifar10", CIFAR["cifar10"])
    shrink(monkeypatch, "cifar10")
    return tmp_path / "cifar10"


def one_less(path):
    next((path / "test" / "frog").iterdir()).unlink()
    return r"cifar10/test: 99 images of 10 classes, but cifar10 has 100 of 10"


def one_class_less(path):
    shutil.rmtree(path / "train" / "frog")
    return r"cifar10/train: 180 images of 9 classes, but cifar10 has 200 of 10"


def other_names(path):
    (path / "train" / "airplane").rename(path / "train" / "plane")
    return "cifar10/train: class folders automobile, bird, cat .*torchvision's names"


def no_test_images(path):
    shutil.rmtree(path / "test")
    return "cifar10/test: no such folder: put the images there as test/CLASS/"


def one_damaged(path):
    damaged = sorted((path / "test" / "ship").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    return f"{damaged}: not an image, or a damaged one"


def other_sizes(path):
    for file in (path / "test").rglob("*.png"):
        Image.new("RGB", (28, 28)).save(file)
    return "cifar10/test: images of other sizes than 32x32"


@pytest.mark.parametrize("harm", [one_less, one_class_less, other_names, no_test_images, one_damaged, other_sizes])
def test_image_files_of_cifar_that_are_not_as_they_should_be(pngs, harm):
    words = harm(pngs)
    with pytest.raises(DwlthError, match=words) as error:
        data.load("cifar10", pngs.parent, "content")
    assert "\n" not in str(error.value)


def test_class_folders_named_by_numbers_are_refused_where_they_would_sort_wrongly(tmp_path, monkeypatch):
    images = write_cifar(tmp_path / "a", datasets.CIFAR100, monkeypatch)
    write_pngs(images, tmp_path / "cifar100", [str(n) for n in range(100)])  # 0, 1, 10, 11
    shrink(monkeypatch, "cifar100")
    with pytest.raises(DwlthError, match="class folders 0, 1, 10 ...: call them by torchvision's names"):
        data.load("cifar100", tmp_path, "content")


@pytest.mark.parametrize("name", ["digits0-4", "digits5-9"])
def test_the_splits_of_every_seed_are_whole_and_of_one_size(name):
    everything = lambda task: sorted(
        (y, x.numpy().tobytes())
        for split in (task.train, task.val, task.test)
        for x, y in zip(split.images, split.labels.tolist())
    )
    counts = lambda task: [torch.bincount(split.labels).tolist() for split in (task.train, task.val, task.test)]
    tasks = [data.load(name, seed=seed) for seed in range(6)]
    for task in tasks[1:]:
        assert everything(task) == everything(tasks[0]) and counts(task) == counts(tasks[0])
        assert not torch.equal(task.test.images, tasks[0].test.images)


def test_writing_into_a_batch_changes_no_split(device):
    """`load` gives the same object to every thread."""
    task = data.load("digits0-4").to(device)
    before = [tensor.clone() for split in (task.train, task.test) for tensor in (split.images, split.labels)]
    for augment in (None, Augment(flip=True), Augment("pad"), Augment("resized", size=8, resize=8)):
        for generator in (None, torch.Generator(device).manual_seed(0)):
            for split in (task.train, task.test):
                for images, labels in split.batches(64, generator, augment):
                    images.zero_()
                    labels.zero_()
    after = [tensor for split in (task.train, task.test) for tensor in (split.images, split.labels)]
    assert all(torch.equal(one, other) for one, other in zip(before, after))


def test_batches_are_augmented_where_a_generator_is_given(task):
    augment = Augment("pad", padding=2)
    device = task.train.labels.device
    seeded = lambda: torch.Generator(device).manual_seed(0)
    plain = torch.cat([x for x, _ in task.test.batches(64, None, augment)])
    assert torch.equal(plain, task.test.images / 255)
    views, labels = next(task.train.batches(32, seeded(), augment))
    again, _ = next(task.train.batches(32, seeded(), augment))
    bare, same_labels = next(task.train.batches(32, seeded()))
    assert torch.equal(views, again) and torch.equal(labels, same_labels) and not torch.equal(views, bare)


def test_importing_data_imports_no_heavy_library():
    code = "import sys, dwlth.data; print([m for m in ('torchvision', 'sklearn', 'scipy', 'PIL') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
