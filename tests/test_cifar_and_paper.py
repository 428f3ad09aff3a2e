"""The presets `cifar` and `paper` at a cut-down size, on image folders made here, with checkpoints and tickets made
elsewhere."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils import prune
from torchvision.models import resnet18, resnet50

from dwlth import masks, models, presets, sources, tickets
from dwlth.errors import DwlthError
from dwlth.interface.commands import main
from dwlth.outside import checkpoints
from dwlth.recipe import Given
from dwlth.results import Folder, read_table
from dwlth.running.settings import override
from dwlth.runs import Run

CPU = ["--device", "cpu", "--workers", "1"]
SMALL = ["transfer.batch_size=8", "imp.batch_size=8", "transfer.epochs=1", "imp.epochs=1", "evaluation.steps=2"]
SMALL += ["transfer.adversarial.attack.steps=2", "transfer.adversarial.validation.steps=2", "rounds=0,1,2", "seeds=1"]
SMALL += ["imp.validate_every=1", "transfer.validate_every=1", "upstream=folder:up", "downstream=folder:down"]
SMALL += ["fractions=1.0,0.5"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two trees of class folders of 32x32 PNGs: noise around a colour of each class."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for task in ("up", "down"):
        for part, count in (("train", 8), ("test", 4)):
            for label, colour in enumerate(((200, 60, 60), (60, 200, 60))):
                folder = root / task / part / f"class{label}"
                folder.mkdir(parents=True)
                for n in range(count):
                    pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{n}.png")
    return root


def settings(*more):
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


def test_cifar(images, tmp_path):
    cut = settings("pretrain.batch_size=8", "pretrain.epochs=1", "pretrain.validate_every=1", "rounds=0,1")
    cut += settings(
        "imp.adversarial.attack.steps=2", "pretrain.validation.steps=2", "pretrain.adversarial.attack.steps=2"
    )
    where = ["--results", str(tmp_path), "--data", str(images), *CPU, "--source", "adversarial"]
    assert main(["run", "cifar", *where, *cut, "--set", "rounds=0,1", "--set", "fractions=0.5"]) == 0
    table = read_table(next(tmp_path.glob("*/table.csv")))
    assert table["stage"].value_counts().to_dict() == {"pretrain": 1, "imp": 1, "transfer": 2 * 2}
    assert next(tmp_path.glob("*/figures/double-wins-folder-down.png")).exists()
    assert set(table["downstream"]) == {"", "folder:down"} and table["ra"].notna().all()
    assert set(table[table["stage"] == "transfer"]["n_train"]) == {8}


@pytest.fixture(scope="module")
def paper(images, tmp_path_factory):
    """`paper` with a ResNet-18 at 32 px, its sources given by a file, and the tickets of one source found."""
    root = tmp_path_factory.mktemp("paper")
    torch.manual_seed(0)
    net = resnet18(num_classes=2)
    torch.save({"state_dict": {f"module.{name}": t for name, t in net.state_dict().items()}}, root / "given.pth.tar")
    cut = ["network=resnet18", "imp.augment.size=32", "imp.augment.resize=36", "subset=balanced"]
    cut += ["imp.parts=2", "transfer.augment.size=32", "transfer.augment.resize=36"]
    cut += [f"pretrain.{source}.where={root / 'given.pth.tar'}" for source in presets.SOURCES]
    args = ["paper", *settings(*cut), "--results", str(root), "--data", str(images)]
    assert main(["run", *args, *CPU, "--source", "fast_adversarial"]) == 0
    preset = override(presets.get("paper"), [*SMALL, *cut])
    return preset, Folder(preset, root, images), args, net


def test_paper(paper):
    preset, folder, _, net = paper
    table = read_table(folder.table)
    assert table["stage"].value_counts().to_dict() == {"pretrain": 1, "imp": 2, "transfer": 3 * 2 * 2}
    standard = table[(table["stage"] == "transfer") & (table["regime"] == "standard")]
    assert standard["sa_best_ra"].isna().all() and standard["ra"].notna().all()  # it validates SA alone
    mask, about = tickets.load(folder.ticket(Run("imp", "fast_adversarial", 0, 2)))
    assert mask.sparsity == pytest.approx(0.36, abs=1e-6)
    assert about["belongs_to"] == masks.fingerprint(masks.prunable(net))


def test_a_ticket_goes_out_and_comes_back(paper, tmp_path, capsys):
    """To the reference code's format, through torch.nn.utils.prune, and back: the same bits."""
    preset, folder, args, net = paper
    words = ["--source", "fast_adversarial", "--round", "2"]
    file, path = tmp_path / "2-checkpoint.pth.tar", folder.ticket(Run("imp", "fast_adversarial", 0, 2))
    before = path.read_bytes()
    assert main(["export", args[0], str(file), *args[1:], *words]) == 0
    exported = checkpoints.read(file)
    mask, _ = tickets.load(path)
    assert all(torch.equal(exported.mask[name], mask[name]) for name in mask)
    assert all(torch.equal(exported.state[name], tensor) for name, tensor in net.state_dict().items())

    content = torch.load(file)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "bare.pth.tar")
    assert main(["import", args[0], str(tmp_path / "bare.pth.tar"), *args[1:], *words]) == 2  # it has no init
    err = capsys.readouterr().err
    assert re.search(r"bare.pth.tar: a ticket of the weights unknown, but those of .* are [0-9a-f]{16}", err)
    try:
        assert main(["import", args[0], str(file), *args[1:], *words]) == 0
        again, about = tickets.load(path)
        assert all(torch.equal(again[name], mask[name]) for name in mask)
        assert about["method"] == "imported from 2-checkpoint.pth.tar"
        content["init"] = resnet18(num_classes=2).state_dict()
        torch.save(content, file)
        assert main(["import", args[0], str(file), *args[1:], *words]) == 2
        assert main(["import", args[0], str(file), *args[1:], *words, "--force"]) == 0
    finally:
        path.write_bytes(before)


def test_tickets_that_do_not_fit(paper, tmp_path, capsys):
    preset, folder, args, net = paper
    words = ["--source", "fast_adversarial", "--round", "2"]
    torch.save(net.state_dict(), tmp_path / "dense.pth")
    assert main(["import", args[0], str(tmp_path / "dense.pth"), *args[1:], *words]) == 2
    assert "dense.pth: a dense resnet18 (unknown), where a ticket should be" in capsys.readouterr().err
    other = models.native32(resnet18(num_classes=2))
    checkpoints.write_reference_ticket(tmp_path / "stem.pth.tar", other.state_dict(), masks.dense(other))
    assert main(["import", args[0], str(tmp_path / "stem.pth.tar"), *args[1:], *words]) == 2
    assert "stem.pth.tar: its stem (conv1) is 3x3, the network's 7x7" in capsys.readouterr().err
    mask = masks.prune(masks.prune(masks.dense(net), masks.random(net, 7), 0.2), masks.random(net, 7), 0.2)
    checkpoints.write_reference_ticket(tmp_path / "other.pth.tar", net.state_dict(), mask)
    before = folder.ticket(Run("imp", "fast_adversarial", 0, 2)).read_bytes()
    assert main(["import", args[0], str(tmp_path / "other.pth.tar"), *args[1:], *words]) == 2
    assert "02.safetensors: another ticket is there, of which transfers may be done" in capsys.readouterr().err
    assert folder.ticket(Run("imp", "fast_adversarial", 0, 2)).read_bytes() == before
    assert main(["import", args[0], str(tmp_path / "stem.pth.tar"), *args[1:], *words[:3], "0"]) == 2
    assert "--round 0: give 1 or more" in capsys.readouterr().err


def test_a_given_source_of_another_network(paper, tmp_path, capsys, images):
    _, _, args, _ = paper
    torch.save(resnet50(num_classes=2).state_dict(), tmp_path / "fifty.pth")
    args = [*args, "--results", str(tmp_path), "--set", f"pretrain.standard.where={tmp_path / 'fifty.pth'}"]
    assert main(["run", *args, *CPU, "--source", "standard"]) == 1
    assert "fifty.pth: not the" in capsys.readouterr().err
    torch.save(resnet18(num_classes=1000).state_dict(), tmp_path / "thousand.pth")
    args += ["--set", f"pretrain.standard.where={tmp_path / 'thousand.pth'}"]
    assert main(["run", *args, *CPU, "--source", "standard"]) == 1
    assert "the source has 1000 classes, but its task folder:up 2" in capsys.readouterr().err


def test_a_given_source_in_the_folder_of_the_datasets(paper, tmp_path):
    preset, _, _, net = paper
    (tmp_path / "elsewhere").mkdir()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "elsewhere" / "given.pth.tar")
    taken = sources._given(Given("data/given.pth.tar"), Folder(preset, tmp_path, tmp_path / "elsewhere"))
    assert torch.equal(taken.net.conv1.weight, net.conv1.weight)
    with pytest.raises(DwlthError, match="nowhere.given.pth.tar: no such file"):
        sources._given(Given("data/given.pth.tar"), Folder(preset, tmp_path, tmp_path / "nowhere"))


def test_a_ticket_is_no_given_source(paper, tmp_path):
    preset, _, _, net = paper
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            prune.random_unstructured(module, "weight", 0.5)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "ticket.pth.tar")
    with pytest.raises(DwlthError, match="ticket.pth.tar: a ticket, where a dense network should be; .*by import"):
        sources._given(Given(str(tmp_path / "ticket.pth.tar")), Folder(preset, tmp_path))


def test_a_given_source_needs_no_data_of_its_task(paper, tmp_path, capsys):
    """Transfers of the dense network can do without; the source is not measured, and `inspect` says so."""
    preset, _, args, _ = paper
    args = [*args, "--results", str(tmp_path), "--set", "upstream=folder:nowhere", "--stage", "pretrain"]
    with pytest.warns(UserWarning, match="the standard source is not measured: .*nowhere: no such folder"):
        assert main(["run", *args, *CPU, "--source", "standard"]) == 0
    capsys.readouterr()
    for path in (*tmp_path.glob("*/sources/*"), *tmp_path.glob("*/runs/*")):
        assert main(["inspect", str(path)]) == 0
        assert "SA not measured" in capsys.readouterr().out


def test_the_paper_s_numbers():
    preset = presets.get("paper")
    assert preset.rounds == tuple(range(20)) and preset.prune_rate == 0.2
    for source in presets.SOURCES:
        imp = preset.imp[source]
        assert (imp.epochs, imp.batch_size, imp.lr, imp.momentum, imp.weight_decay) == (30, 2048, 5e-4, 0.9, 1e-4)
        assert imp.schedule == "constant" and imp.attack.steps == (0 if source == "standard" else 3)
    recipe = lambda regime, task: preset.recipe(Run("transfer", "standard", 0, downstream=task, regime=regime))
    for task in preset.downstream:
        standard, adversarial = recipe("standard", task), recipe("adversarial", task)
        assert (standard.epochs, standard.batch_size, standard.lr, standard.milestones) == (150, 64, 1e-3, (50, 100))
        attack = adversarial.attack
        assert (attack.eps, attack.step_size, attack.steps, attack.bn) == (8 / 255, 2 / 255, 10, "train")
        assert adversarial.batch_size == 128 and standard.weight_decay == adversarial.weight_decay == 5e-4
    cifar, svhn = recipe("adversarial", "cifar100"), recipe("adversarial", "svhn")
    assert (cifar.lr, cifar.epochs, cifar.schedule, cifar.milestones) == (0.1, 100, "step", (50, 75))
    assert (svhn.lr, svhn.epochs, svhn.schedule) == (0.01, 80, "cosine")
    assert (preset.evaluation.steps, preset.evaluation.bn) == (20, "eval")
