"""Checkpoints of each true format, whole and broken."""

import argparse
import re
import sys
import types
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from dwlth import files, masks, presets, tickets
from dwlth.errors import DwlthError
from dwlth.interface.commands import main
from dwlth.outside import checkpoints
from dwlth.outside.checkpoints import IMAGENET, load_into, read, write_reference_ticket
from dwlth.outside.tickets import export_reference, import_reference
from dwlth.results import Folder
from dwlth.running.settings import override
from dwlth.runs import Run
from dwlth.show.inspection import describe


def resnet(classes=1000, name="resnet18", small=False, seed=0):
    """A torchvision network that differs from a fresh one in batch norm, too."""
    torch.manual_seed(seed)
    net = getattr(torchvision.models, name)(num_classes=classes)
    if small:
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            module.num_batches_tracked.fill_(7)
    return net


@pytest.fixture(scope="module")
def net():
    return resnet()


@pytest.fixture(scope="module")
def ticket(net):
    """`net` after two rounds of the reference's pruning, by the very functions that it calls."""
    return pruned(net, rounds=2)


class Normalize(nn.Module):
    """Buffers named as advertorch's `NormalizeByChannelMeanStd` names them."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))


def library(net, mean=IMAGENET[0], std=IMAGENET[1]):
    """The modules of MadryLab's AttackerModel, inside DataParallel as on the machines that trained with it."""

    def normalizer():
        module = nn.Module()
        module.register_buffer("new_mean", torch.tensor(mean)[..., None, None])
        module.register_buffer("new_std", torch.tensor(std)[..., None, None])
        return module

    model, attacker = nn.Module(), nn.Module()
    model.normalizer, model.model, model.attacker = normalizer(), net, attacker
    attacker.normalize, attacker.model = normalizer(), net
    wrapper = nn.Module()
    wrapper.module = model
    return wrapper


def pruned(net, rounds, amount=0.2):
    copy = type(net)(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], net.fc.out_features)
    copy.load_state_dict(net.state_dict())
    convolutions = [(m, "weight") for m in copy.modules() if isinstance(m, nn.Conv2d)]
    for _ in range(rounds):
        prune.global_unstructured(convolutions, pruning_method=prune.L1Unstructured, amount=amount)
    return copy


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def save(content, path, **how):
    torch.save(content, path, **how)
    return path


def same(found, wanted):
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def refused(path, *words, **how):
    """The message of `read`'s error: one line, with the file's name and these words."""
    with pytest.raises(DwlthError) as error:
        read(path, **how)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for word in words:
        assert word in message
    return message


def test_torchvision_files(net, tmp_path):
    state = net.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    for path in (
        save(state, tmp_path / "a.pth"),
        save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False),
        save({name: nn.Parameter(t) if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "p.pth"),
        tmp_path / "a.safetensors",
    ):
        found = read(path)
        assert (found.kind, found.network, found.stem, found.classes) == ("torchvision", "resnet18", "7x7", 1000)
        assert (found.mean, found.std, found.mask, found.init, found.notes) == (None, None, None, None, ())
        assert sorted(found.state) == sorted(state)
        assert all(torch.equal(found.state[name], state[name]) for name in state)
        assert not any(tensor.requires_grad for tensor in found.state.values())


def test_files_without_counters_are_whole(net, tmp_path):
    state = {name: t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    path = save(state, tmp_path / "a.pth")
    same(read(path).state, state)
    target = resnet(seed=1)
    load_into(target, read(path).state, path)
    assert torch.equal(target.layer3[1].conv2.weight, net.layer3[1].conv2.weight)
    assert torch.equal(target.bn1.running_mean, net.bn1.running_mean)


def test_resnet50_and_the_3x3_stem(tmp_path):
    net = resnet(100, "resnet50", small=True)
    found = read(save(net.state_dict(), tmp_path / "a.pth"))
    assert (found.network, found.stem, found.classes) == ("resnet50", "3x3", 100)
    same(found.state, net.state_dict())


def test_fast_at(net, tmp_path):
    content = {
        "epoch": 15,
        "arch": "resnet50",
        "state_dict": nn.DataParallel(net).state_dict(),
        "best_prec1": torch.tensor(55.6),
        "optimizer": torch.optim.SGD(net.parameters(), 0.1).state_dict(),
    }
    found = read(save(content, tmp_path / "4px.pth.tar", _use_new_zipfile_serialization=False))
    assert (found.kind, found.mean) == ("fast-at", None)
    same(found.state, net.state_dict())
    assert found.notes == (
        "state dict in 'state_dict'",
        "prefix 'module.' removed",
        "ignored 'epoch', 'arch', 'best_prec1', 'optimizer'",
    )


def test_robust_imagenet(net, tmp_path):
    content = {"model": library(net).state_dict(), "optimizer": {"state": {}}, "epoch": 90, "amp": None}
    found = read(save(content, tmp_path / "a.ckpt"))
    assert (found.kind, (found.mean, found.std)) == ("robust-imagenet", IMAGENET)
    same(found.state, net.state_dict())
    assert "copy in 'module.attacker.model.' equal, and ignored" in found.notes


def test_robustness_files_of_other_shapes(net, tmp_path):
    whole = library(net).state_dict()
    bare = {name: tensor for name, tensor in whole.items() if name.startswith("module.model.")}
    ten = library(resnet(10)).state_dict()
    for content in ({"state_dict": whole, "epoch": 1}, {"model": bare, "epoch": 1}, {"model": ten}):
        assert read(save(content, tmp_path / "a.pt")).kind == "robustness"
    custom = {"model": library(nn.ModuleDict({"model": net})).state_dict()}  # what its add_custom_forward makes
    found = read(save(custom, tmp_path / "a.pt"))
    same(found.state, net.state_dict())
    assert found.mean == IMAGENET[0] and "prefix 'module.model.model.' removed" in found.notes


def test_a_file_of_the_real_robustness_package(net, tmp_path, monkeypatch):
    """Written by its own training function, in one epoch on two images."""
    pytest.importorskip("robustness")
    gone = types.ModuleType("torchvision.models.utils")  # the package still imports it
    gone.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    monkeypatch.setitem(sys.modules, gone.__name__, gone)
    from cox.utils import Parameters
    from robustness import datasets, defaults, model_utils, train

    monkeypatch.setattr(nn.Module, "cuda", lambda module, *_: module)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)
    model, _ = model_utils.make_and_restore_model(arch="resnet18", dataset=datasets.ImageNet(str(tmp_path)))
    args = {
        "out_dir": str(tmp_path),
        "adv_train": 0,
        "adv_eval": 0,
        "epochs": 1,
        "save_ckpt_iters": 1,
        "log_iters": 1,
        "lr": 0.1,
    }
    args = Parameters(args)
    args = defaults.check_and_fill_args(args, defaults.TRAINING_ARGS, datasets.ImageNet)
    images = [(torch.rand(2, 3, 32, 32), torch.tensor([1, 2]))]
    train.train_model(args, model, (images, images))
    written = torch.load(tmp_path / "checkpoint.pt.latest")
    assert written["model"].keys() == library(net).state_dict().keys()  # what the other tests stand on
    found = read(tmp_path / "checkpoint.pt.latest")
    assert (found.kind, (found.mean, found.std)) == ("robust-imagenet", IMAGENET)
    same(found.state, model.model.state_dict())
    load_into(resnet(), found.state, "latest")


@pytest.mark.parametrize("prefix", ["", "module.", "1.", "module.1."])
def test_reference_tickets(net, ticket, tmp_path, prefix):
    state = under(prefix, ticket.state_dict())
    content = {"epoch": 30, "arch": "resnet18", "state_dict": state, "init": net.state_dict(), "state_prune": 2}
    found = read(save(content, tmp_path / "2-checkpoint.pth.tar"))
    assert (found.kind, found.classes, found.mean) == ("reference-ticket", 1000, None)
    modules = dict(ticket.named_modules())
    for name, mask in found.mask.items():
        module = modules[name.removesuffix(".weight")]
        assert torch.equal(mask, module.weight_mask.bool())
        assert torch.equal(found.state[name], module.weight_orig)
    assert len(found.mask) == 20 and found.mask.sparsity == pytest.approx(1 - 0.8**2, abs=1e-6)
    same(found.init, net.state_dict())
    found.mask.apply_(resnet())  # the names are those of our masks, in the same order
    assert list(found.mask) == list(masks.prunable(net))


def test_tickets_of_the_adversarial_code_hold_a_normaliser(net, ticket, tmp_path):
    """ImageNet's in the network while pruning; the downstream one before it after transfer."""
    ticket = ticket.state_dict()
    normalize = under("normalize.", Normalize(*IMAGENET).state_dict())
    content = {"state_dict": normalize | ticket, "init": normalize | net.state_dict()}
    found = read(save(content, tmp_path / "a"))
    assert found.mean == IMAGENET[0]
    same(found.init, net.state_dict())
    cifar10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    before = under("0.", Normalize(*cifar10).state_dict()) | under("1.", ticket)
    for state in (before, under("module.", before)):
        found = read(save({"state_dict": state}, tmp_path / "b"))
        assert (found.mean, found.std) == cifar10
    wrong = under("normalize.", Normalize(*cifar10).state_dict()) | ticket
    refused(save({"state_dict": wrong}, tmp_path / "c"), "wrong normaliser", "0.4914", "0.485")


def test_round_trip_of_a_ticket(net, tmp_path):
    path = tmp_path / "folder" / "1.pth.tar"
    mask = masks.prune(masks.dense(net), masks.random(net, 0), 0.2)
    write_reference_ticket(path, net.state_dict(), mask)
    found = read(path)
    same(found.state, net.state_dict())
    same(found.mask, mask)
    same(found.init, net.state_dict())
    assert path.stat().st_size < 2.2 * save(net.state_dict(), tmp_path / "bare").stat().st_size  # init takes no room
    same_again = tmp_path / "2.pth.tar"
    write_reference_ticket(same_again, found.state, found.mask)
    same(torch.load(same_again)["state_dict"], torch.load(path)["state_dict"])


def test_our_ticket_is_what_the_prune_functions_write(net, tmp_path):
    """The names, their values and types; the reference's reader asks no more."""
    reference = pruned(net, rounds=1)
    mask = masks.prune(masks.dense(net), masks.magnitude(net), 0.2)
    write_reference_ticket(tmp_path / "a", net.state_dict(), mask)
    ours, theirs = torch.load(tmp_path / "a")["state_dict"], reference.state_dict()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
    reference.load_state_dict(ours)


def test_a_mask_of_another_network_is_not_written(net, tmp_path):
    mask = masks.dense(resnet(small=True))
    with pytest.raises(DwlthError, match=r"conv1.weight is \[64, 3, 3, 3\], where \[64, 3, 7, 7\]"):
        write_reference_ticket(tmp_path / "a", net.state_dict(), mask)
    del mask["conv1.weight"]
    with pytest.raises(DwlthError, match=r"mask: not the 20 tensors of the convolutions: 1 missing \(conv1.weight"):
        write_reference_ticket(tmp_path / "a", net.state_dict(), mask)
    assert not (tmp_path / "a").exists()


@pytest.fixture
def folder(net, tmp_path):
    """A folder with `net` as a source, and as its ticket 3 a random mask of that sparsity."""
    preset = override(presets.get("paper"), ["network=resnet18"])
    folder, mask = Folder(preset, tmp_path / "results"), masks.dense(net)
    about = {"network": "resnet18", "classes": 1000, "mean": IMAGENET[0], "std": IMAGENET[1]}
    files.write_tensors(folder.source(RUN), net.state_dict(), kind="source", **about)
    for _ in range(RUN.round):
        mask = masks.prune(mask, masks.random(net, 0), 0.2)
    own = masks.fingerprint(masks.prunable(net))
    tickets.save(folder.ticket(RUN), mask, id="", method="imp", belongs_to=own)
    return folder


RUN = Run("transfer", "standard", 0, 3)


@pytest.mark.parametrize("legacy", [False, True])
def test_our_export_can_be_imported_again(folder, tmp_path, legacy):
    file, (mask, about) = tmp_path / "3.pth.tar", tickets.load(folder.ticket(RUN))
    export_reference(file, folder, RUN, legacy=legacy)
    assert zipfile.is_zipfile(file) is not legacy
    folder.ticket(RUN).unlink()
    assert import_reference(file, folder, RUN) == folder.ticket(RUN)
    again, after = tickets.load(folder.ticket(RUN))
    same(again, mask)
    assert after["belongs_to"] == about["belongs_to"] and after["method"] == "imported from 3.pth.tar"


def test_a_ticket_that_needs_an_unpickle_is_imported_once_allowed(folder, tmp_path, capsys):
    file = tmp_path / "3.pth.tar"
    export_reference(file, folder, RUN)
    torch.save(torch.load(file) | {"best_sa": np.float64(91.2)}, file)
    folder.ticket(RUN).unlink()
    args = ["import", "paper", str(file), "--results", str(tmp_path / "results"), "--set", "network=resnet18"]
    args += ["--source", "standard", "--round", "3"]
    assert main(args) == 2 and "--unsafe of inspect and import" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="unpickled in full"):
        assert main([*args, "--unsafe"]) == 0
    assert folder.ticket(RUN).exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_the_pretrained_weights_go_out_as_a_bare_file(net, folder, tmp_path, legacy):
    words = ["--init", "--legacy"] if legacy else ["--init"]
    where = ["--results", str(tmp_path / "results"), "--set", "network=resnet18"]
    file = tmp_path / "init.pth"
    assert main(["export", "paper", str(file), *where, "--source", "standard", "--round", "3", *words]) == 0
    assert zipfile.is_zipfile(file) is not legacy
    target = resnet(seed=1)
    target.load_state_dict(torch.load(file))  # as the public code does: strictly, from the top of the file
    same(target.state_dict(), net.state_dict())
    assert read(file).kind == "torchvision"


@pytest.mark.parametrize("force", [False, True])
def test_a_ticket_of_another_round_is_not_imported(folder, tmp_path, force):
    file, before = tmp_path / "3.pth.tar", folder.ticket(RUN).read_bytes()
    export_reference(file, folder, RUN)
    for round_, words in ((2, "round 2 is 36.00%"), (4, "round 4 is 59.04%")):
        other = replace(RUN, round=round_)
        with pytest.raises(DwlthError, match=f"3.pth.tar: its sparsity is 48.80%, where that of {words}"):
            import_reference(file, folder, other, force)
        assert not folder.ticket(other).exists()
    assert folder.ticket(RUN).read_bytes() == before


def test_incomplete_masks_are_refused(ticket, tmp_path):
    state = ticket.state_dict()
    some = {name: t for name, t in state.items() if name != "layer1.0.conv1.weight_mask"}
    refused(save({"state_dict": some}, tmp_path / "a"), "mask", "1 missing (layer1.0.conv1.weight")
    state["conv1.weight_mask"] = state["conv1.weight_mask"] / 2
    refused(save({"state_dict": state}, tmp_path / "a"), "conv1.weight", "0 and 1")


def test_a_ticket_rewinds_to_its_own_network(net, ticket, tmp_path):
    state = ticket.state_dict()
    for init, words in (
        (net.state_dict() | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, "init is not the resnet18 with the 7x7 stem"),
        (net.state_dict() | {"bn1.bias": torch.zeros(3)}, "bn1.bias is [3], where [64]"),
    ):
        refused(save({"state_dict": state, "init": init}, tmp_path / "a"), words)


def test_one_flipped_byte_is_found(net, tmp_path):
    whole = save(net.state_dict(), tmp_path / "whole.pth").read_bytes()
    place = whole.index(net.conv1.weight.detach().numpy().tobytes()) + 1000
    flipped = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
    path = tmp_path / "a.pth"
    path.write_bytes(flipped)
    assert not torch.equal(torch.load(path)["conv1.weight"], net.conv1.weight)  # torch says nothing
    assert re.search(r"checksum \(CRC\) of \S+/data/\d+ in it is wrong", refused(path, "damaged"))


def test_a_file_without_checksums_is_read(net, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(net.state_dict(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    same(read(path).state, net.state_dict())


@pytest.mark.parametrize("where", ["top", "init"])
@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        (
            "layer1.0.conv1.weight",
            lambda t: t.where(t != t.max(), torch.nan),
            "1 of the 36,864 numbers of layer1.0.conv1",
        ),
        (
            "fc.bias",
            lambda t: t.clone().index_fill_(0, torch.tensor([2, 5]), torch.inf),
            "2 of the 1,000 numbers of fc.b",
        ),
        ("bn1.running_var", lambda t: t - 1.5, "the least number of bn1.running_var is -0.5, where 0 or more"),
        ("layer2.0.conv1.weight", lambda t: t.long(), "layer2.0.conv1.weight is torch.int64, where floating-point"),
    ],
)
def test_weights_that_are_no_weights_are_refused(net, ticket, tmp_path, where, name, harm, words):
    state = net.state_dict()
    state[name] = harm(state[name])
    content = state if where == "top" else {"state_dict": ticket.state_dict(), "init": state}
    refused(save(content, tmp_path / "a"), words)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_are_mentioned(net, tmp_path, dtype):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in net.state_dict().items()}
    found = read(save(state, tmp_path / "a"))
    same(found.state, {name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    assert found.state["conv1.weight"].dtype == torch.float32
    assert found.notes == (f"weights in {str(dtype).removeprefix('torch.')}, loaded as float32",)


def test_a_pruned_network_without_a_mask_is_said_to_be_one(net, ticket, tmp_path):
    permanent = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, module in ticket.named_modules():
        if isinstance(module, nn.Conv2d):
            permanent[f"{name}.weight"] *= module.weight_mask
    path = save(permanent, tmp_path / "a")
    with pytest.warns(UserWarning, match="a: 36.00% of its convolution weights are exactly 0, without a mask"):
        found = read(path)
    assert found.mask is None and "36.00%" in found.notes[0]
    permanent = net.state_dict() | {"conv1.weight": torch.zeros(64, 3, 7, 7)}  # 0.1 % of all
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(save(permanent, tmp_path / "b")).notes == ()


@pytest.mark.parametrize("entry", ["net", "params", "weights", "model_state_dict"])
def test_other_names_of_the_entry(net, tmp_path, entry):
    found = read(save({"epoch": 3, entry: under("module.", net.state_dict())}, tmp_path / "a"))
    same(found.state, net.state_dict())
    assert found.kind == "unknown"
    assert found.notes == (f"state dict in {entry!r}", "prefix 'module.' removed", "ignored 'epoch'")


def test_an_unknown_origin_is_called_unknown(net, tmp_path):
    state = net.state_dict()
    for content in (
        {"state_dict": under("model.", state)},  # PyTorch Lightning's
        {"state_dict": under("backbone.model.", state)},
        under("module.", state),
        {"model": state},
        resnet(10).state_dict(),
        state | under("normalize.", Normalize(*IMAGENET).state_dict()),
    ):
        assert read(save(content, tmp_path / "a")).kind == "unknown"


def test_damaged_files(net, tmp_path):
    state = net.state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "empty")
    refused(tmp_path / "missing.pth", "no such file")
    for page in ("<!DOCTYPE html><html>", "\ufeff\n <html><head><title>Google Drive - Virus scan warning"):
        (tmp_path / "page.pth").write_text(page)
        refused(tmp_path / "page.pth", "web page (HTML)", "browser")
    (tmp_path / "notes.pth").write_text("# some notes\n")
    refused(tmp_path / "notes.pth", "torch.save or safetensors", "# some notes")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.txt", "hi")
    refused(tmp_path / "photos.zip", "truncated, or no checkpoint")
    new, old = save(state, tmp_path / "new"), save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    for whole in (new, old, tmp_path / "whole.safetensors"):
        data = whole.read_bytes()
        for length in (200, 5000, len(data) // 2, len(data) - 1000):
            (tmp_path / "part.pth").write_bytes(data[:length])
            refused(tmp_path / "part.pth", "truncated")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("value", [types.SimpleNamespace(eps=4.0), np.float64(55.6)], ids=["namespace", "numpy"])
def test_what_needs_an_unpickle_is_refused_until_allowed(net, tmp_path, value, old):
    content = {"model": library(net).state_dict(), "args": value}
    path = save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not old)
    message = refused(path, "more than tensors", "unsafe=True", "can run code")
    assert re.search(r"types\.SimpleNamespace|numpy.*scalar", message)
    with pytest.warns(UserWarning, match="a.ckpt: unpickled in full"):
        found = read(path, unsafe=True)
    assert found.kind == "robust-imagenet" and "ignored 'args'" in found.notes
    same(found.state, net.state_dict())


@pytest.mark.parametrize("old", [False, True])
def test_the_settings_that_argparse_makes_need_no_full_unpickle(net, tmp_path, old):
    args = argparse.Namespace(eps=4.0, arch="resnet18")
    path = save({"state_dict": net.state_dict(), "args": args}, tmp_path / "a", _use_new_zipfile_serialization=not old)
    found = read(path)
    assert "ignored 'args'" in found.notes
    same(found.state, net.state_dict())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # other readers stay as strict as before


def test_reading_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = save({"state_dict": {}, "evil": Evil()}, tmp_path / "a.pth")
    refused(path, "unsafe=True", "exec")
    assert not (tmp_path / "ran").exists()
    with pytest.warns(UserWarning, match="unpickled in full"):
        refused(path, "unknown content", unsafe=True)
    assert (tmp_path / "ran").exists()  # so the first half of this test could have failed


def test_an_unpickle_that_lacks_a_package(tmp_path, monkeypatch):
    module = types.ModuleType("left_behind")
    module.Thing = type("Thing", (), {"__module__": "left_behind"})
    monkeypatch.setitem(sys.modules, "left_behind", module)
    path = save({"args": module.Thing()}, tmp_path / "a.pth")
    monkeypatch.delitem(sys.modules, "left_behind")
    with pytest.warns(UserWarning):
        refused(path, "install the package", "left_behind", unsafe=True)


def test_unknown_content(net, tmp_path):
    for content, words in (
        ([1, 2], ("unknown content", "list")),
        ({}, ("unknown content",)),
        ({"epoch": 3}, ("unknown content", "'epoch'", "int")),
        ({"features.0.weight": torch.zeros(1)}, ("unknown content", "features.0.weight", "layer1.0.conv1.weight")),
        ({"state_dict": {"conv1.weight": "here"}}, ("'conv1.weight' in state_dict is a str",)),
    ):
        refused(save(content, tmp_path / "a.pth"), *words)


def test_networks_that_are_not_whole(net, tmp_path):
    def shapes(net):  # small on disk, whatever the network
        return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in net.state_dict().items()}

    def less(name):
        return {key: tensor for key, tensor in state.items() if key != name}

    def other(name):
        with torch.device("meta"):
            return shapes(getattr(torchvision.models, name)())

    state = shapes(net)
    with pytest.warns(UserWarning, match="exactly 0"):
        assert read(save(state, tmp_path / "a.pth")).network == "resnet18"

    for content, words in (
        (less("layer2.0.conv1.weight"), ("1 missing (layer2.0.conv1.weight", "resnet18")),
        (less("fc.bias"), ("1 missing (fc.bias",)),
        (less("conv1.weight"), ("1 missing (conv1.weight",)),
        (state | {"layer5.weight": torch.zeros(2)}, ("1 too many (layer5.weight",)),
        (state | {"layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}, ("layer2.0.conv1.weight", "[128, 64, 1, 1]")),
        (state | {"conv1.weight": torch.zeros(64, 3, 5, 5)}, ("conv1.weight", "[64, 3, 5, 5]", "[64, 3, 7, 7]")),
        (state | {"fc.weight": torch.zeros(10, 512)}, ("fc.weight is [10, 512], where [1000, 512]",)),
        (other("wide_resnet50_2"), ("where [", "resnet50")),
        (other("resnet34"), ("too many (layer1.2.conv1.weight", "resnet18")),
        (under("module.", state) | {"step": torch.tensor(1)}, ("step is not of the network", "module.*")),
    ):
        refused(save(content, tmp_path / "a.pth"), *words)


def test_copies_that_differ_and_wrong_normalisers(net, tmp_path):
    state = dict(library(net).state_dict())
    name = "module.attacker.model.layer4.1.conv2.weight"
    other = state | {name: state[name] + 1e-6}
    refused(save({"model": other}, tmp_path / "a"), name, "module.model.layer4.1.conv2.weight", "equal copies")
    other = {key: tensor for key, tensor in state.items() if key != name}
    refused(save({"model": other}, tmp_path / "a"), name, "equal copies")
    wrong = library(net, mean=(0.5, 0.5, 0.5)).state_dict()
    refused(save({"model": wrong}, tmp_path / "a"), "wrong normaliser", "[0.5, 0.5, 0.5]", "[0.485, 0.456, 0.406]")
    for name in ("module.normalizer.new_std", "module.attacker.normalize.new_mean"):
        wrong = state | {name: state[name] * 1.01}
        refused(save({"model": wrong}, tmp_path / "a"), "wrong normaliser", name)


def test_load_into_is_strict(net):
    state = net.state_dict()
    target = resnet(seed=1)
    load_into(target, state, "a.pth")
    same(target.state_dict(), state)
    for broken in (
        {name: tensor for name, tensor in state.items() if name != "bn1.running_mean"},
        under("module.", state),
        state | {"extra": torch.zeros(1)},
        state | {"layer1.0.conv1.weight": torch.zeros(1)},
    ):
        target = resnet(seed=1)
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        with pytest.raises(DwlthError, match="^a.pth: "):
            load_into(target, broken, "a.pth")
        same(target.state_dict(), before)


def test_load_into_says_both_stems(net):
    with pytest.raises(DwlthError, match=r"a.pth: its stem \(conv1\) is 7x7, the network's 3x3"):
        load_into(resnet(small=True), net.state_dict(), "a.pth")
    with pytest.raises(DwlthError, match="is 3x3, the network's 7x7"):
        load_into(net, resnet(small=True).state_dict(), "a.pth")


def test_load_into_keeps_the_networks_head_only_if_asked(net):
    target = resnet(10, seed=1)
    head = target.fc.weight.detach().clone()
    with pytest.raises(DwlthError, match="1000 classes, the network's 10; own_head=True"):
        load_into(target, net.state_dict(), "a.pth")
    headless = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}
    with pytest.raises(DwlthError, match="fc.weight"):
        load_into(target, headless, "a.pth")
    for state in (net.state_dict(), headless):
        load_into(target, state, "a.pth", own_head=True)
        assert torch.equal(target.fc.weight, head)
        assert torch.equal(target.conv1.weight, net.conv1.weight)


def test_inspect_describes_any_checkpoint(net, ticket, tmp_path):
    path = save({"model": library(net).state_dict(), "epoch": 90}, tmp_path / "robust.ckpt")
    assert re.fullmatch(
        r".*robust.ckpt: a robust-imagenet checkpoint: a resnet18 with a 7x7 stem for 1000 classes; "
        r"normalised by mean \(0.485, .*\), std \(0.229, .*\); .*ignored 'epoch'\.",
        describe(path),
    )
    save_file(net.state_dict(), tmp_path / "bare.safetensors")
    assert "a torchvision checkpoint" in describe(tmp_path / "bare.safetensors")
    path = save({"state_dict": ticket.state_dict(), "init": net.state_dict()}, tmp_path / "2.pth.tar")
    said = describe(path)
    assert "a reference-ticket checkpoint" in said and "a sparsity of 36.00%" in said and "rewinds to" in said
    assert "\n" not in said
    unknown = tmp_path / "notes.txt"
    unknown.write_text("some notes")
    with pytest.raises(DwlthError, match=r"notes.txt: no file of torch.save or safetensors"):
        describe(unknown)
    assert checkpoints.fetch(path, tmp_path) == path


def test_keys_that_are_no_names_are_said(tmp_path):
    torch.save({0: torch.zeros(2)}, tmp_path / "net.pth")
    with pytest.raises(
        DwlthError, match="net.pth: unknown content: 0 in the file, where the name of a tensor should be"
    ):
        read(tmp_path / "net.pth")
