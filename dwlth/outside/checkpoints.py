"""Checkpoints that people bring: recognised by their content, verified, and loaded whole or not at all.

| kind | whose | how it looks inside |
|---|---|---|
| `reference-ticket` | the paper's code | `*.weight_orig` and `*.weight_mask`, as `torch.nn.utils.prune` names them |
| `robust-imagenet` | Salman et al., 2020 | `model`, with all that MadryLab's library writes, and 1000 classes |
| `robustness` | MadryLab's library | its normaliser (`new_mean`), or `module.model.*` in `model` or `state_dict` |
| `fast-at` | Wong et al., 2020 | `state_dict`, with the prefix `module.` and no normaliser |
| `torchvision` | torchvision's weights | nothing but bare names (`conv1.weight` ...); 7x7 stem, 1000 classes |
| `unknown` | anyone else | one whole network in any other way |

The first line that fits counts. Salman et al. trained with MadryLab's library, which writes a normaliser and a second
copy of the network (`module.attacker.model.*`). PyTorch's ImageNet example writes what `fast-at` looks like. A kind is
a guess at the origin, for people to read: nothing else depends on it.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dwlth import models
from dwlth.data import MEAN_STD
from dwlth.errors import DwlthError
from dwlth.masks import Mask, prunable
from dwlth.outside import torchfiles
from dwlth.outside.downloads import fetch as fetch  # what people bring may lie elsewhere: fetch, then read

State = dict[str, Tensor]

NETWORKS = ("resnet18", "resnet50")
ENTRIES = ("model", "state_dict", "net", "params", "weights", "model_state_dict")
"""Where a file keeps its network; the first one counts."""
ZEROS = 0.01  # a larger part of exact zeros is no accident
STEMS = {(64, 3, 7, 7): "7x7", (64, 3, 3, 3): "3x3"}
MARK = "layer1.0.conv1.weight"  # once in every ResNet: what stands before it is a prefix
COUNTER = "num_batches_tracked"  # files of old have none, and nothing depends on it

IMAGENET = MEAN_STD["imagenet"]
"""Mean and standard deviation per channel of ImageNet's pixels in [0, 1], as all of the above use them."""

DOWNSTREAM = tuple(MEAN_STD[name] for name in ("cifar10", "cifar100", "svhn"))
"""The same for CIFAR-10, CIFAR-100 and SVHN in the reference code, whose transferred tickets begin with them."""


@dataclass(frozen=True)
class Checkpoint:
    """A network from a file, verified; see `read`."""

    kind: str
    """One of the table above."""
    state: State
    """Under torchvision's names, on the CPU, in float32. Of a ticket, the weights before masking."""
    network: str
    """resnet18 or resnet50."""
    stem: str
    """7x7 (torchvision's) or 3x3 (for small images)."""
    classes: int
    mean: tuple[float, ...] | None
    """Per channel, of pixels in [0, 1]; None (and std, too) where the file holds no normaliser."""
    std: tuple[float, ...] | None
    mask: Mask | None
    """Of a reference ticket; its names are those of the weights."""
    init: State | None
    """The pre-trained weights that a reference ticket rewinds to, where its file holds them."""
    notes: tuple[str, ...]
    """What was unwrapped and what was ignored."""


def read(path: str | Path, unsafe: bool = False) -> Checkpoint:
    """Recognise, unwrap and verify the checkpoint of a ResNet-18 or ResNet-50.

    Args:
        path: a file of `torch.save`, old or new, or of safetensors.
        unsafe: where the tensors cannot be had without it, unpickle the file in full, with a warning: that runs
            whatever code it holds.

    Raises:
        DwlthError: if the file is missing, empty, a web page, truncated, damaged, needs `unsafe`, or holds anything
            but one whole network, equal copies of it, and the normaliser that belongs to it; and if a weight is no
            number (an integer, NaN, infinite) or a running variance negative.
    """
    path = Path(path)
    content = torchfiles.load(path, unsafe)
    entry, tensors = _state_dict(path, content)
    prefix, state, normaliser, copies = _unwrap(path, tensors)
    masks = {name.removesuffix("_mask"): state.pop(name) for name in list(state) if name.endswith(".weight_mask")}
    state = {name.removesuffix("_orig"): tensor for name, tensor in state.items()}
    network, stem, classes = _verify(path, state)
    state, types = _float32(path, state)
    # the reference code puts the downstream normaliser in front of what it transfers: nn.Sequential(normalize, net)
    known = (IMAGENET, *DOWNSTREAM) if masks and prefix.endswith("1.") else (IMAGENET,)
    mean, std = _constants(path, normaliser, known)
    init = None
    if masks and isinstance(content.get("init"), Mapping):
        init = _unwrap(path, _tensors(path, content["init"], "init"))[1]
        if _verify(path, init)[:2] != (network, stem):
            raise DwlthError(f"{path}: its init is not the {network} with the {stem} stem that its state_dict is")
        init, _ = _float32(path, init)

    library = any(name.endswith("new_mean") for name in normaliser)  # what MadryLab's library calls it
    if masks:
        kind = "reference-ticket"
    elif library and entry == "model" and any("attacker" in copy for copy in copies) and classes == 1000:
        kind = "robust-imagenet"
    elif library or (entry in ("model", "state_dict") and prefix == "module.model."):
        kind = "robustness"
    elif entry == "state_dict" and prefix == "module." and not normaliser:
        kind = "fast-at"
    elif (entry, prefix, stem, classes) == ("", "", "7x7", 1000) and not normaliser:
        kind = "torchvision"
    else:
        kind = "unknown"

    ignored = [repr(name) for name in content if name not in (entry, "init" if init else "")] if entry else []
    notes = [f"state dict in {entry!r}"] * bool(entry) + [f"prefix {prefix!r} removed"] * bool(prefix)
    notes += [f"copy in {copy!r} equal, and ignored" for copy in copies]
    notes += [f"ignored {', '.join(ignored)}"] * bool(ignored)
    notes += [f"weights in {', '.join(types)}, loaded as float32"] * bool(types)
    if not masks:
        notes += _zeros(path, state)
    mask = _mask(path, masks, state, network) if masks else None
    return Checkpoint(kind, state, network, stem, classes, mean, std, mask, init, tuple(notes))


def load_into(net: nn.Module, state: Mapping[str, Tensor], file: str | Path, own_head: bool = False) -> None:
    """Load `state` into `net` (torchvision's names, no prefix): all of it, or an error and `net` as it was.

    Args:
        file: where `state` is from, for the messages.
        own_head: leave the head `net.fc` as it is, whatever `state` holds for it.

    Raises:
        DwlthError: where names (but `num_batches_tracked`) or shapes differ.
    """
    own = net.state_dict()
    sizes = [None if stem is None else tuple(stem.shape) for stem in (state.get("conv1.weight"), own["conv1.weight"])]
    if sizes[0] != sizes[1] and set(sizes) <= STEMS.keys():
        raise DwlthError(f"{file}: its stem (conv1) is {STEMS[sizes[0]]}, the network's {STEMS[sizes[1]]}")
    if not own_head and "fc.bias" in state and "fc.bias" in own and state["fc.bias"].shape != own["fc.bias"].shape:
        raise DwlthError(
            f"{file}: its head has {len(state['fc.bias'])} classes, the network's {len(own['fc.bias'])}; "
            "own_head=True keeps the network's"
        )
    kept = {name: tensor for name, tensor in state.items() if not (own_head and name.startswith("fc."))}
    _compare(file, kept, {name: t for name, t in own.items() if not (own_head and name.startswith("fc."))})
    net.load_state_dict(kept, strict=False)  # checked above; strict would ask for the counters


def write_reference_ticket(
    path: str | Path, state: Mapping[str, Tensor], mask: Mapping[str, Tensor], legacy: bool = False
) -> None:
    """A ticket as the reference code reads it (`--tickets_file`): `read` gives back the same state and mask, and a
    network under `torch.nn.utils.prune` loads its `state_dict` strictly. `init`, the weights it rewinds to, is `state`.

    Args:
        legacy: as in `torchfiles.write`.

    Raises:
        DwlthError: if the mask is not that of all convolutions in `state`.
    """
    convolutions = {name: tensor for name, tensor in state.items() if tensor.dim() == 4}
    _compare(f"{path}: mask", mask, convolutions, " of the convolutions")
    weights = {}
    for name, tensor in state.items():
        weights[f"{name}_orig" if name in mask else name] = tensor.detach().cpu()
        if name in mask:
            weights[f"{name}_mask"] = mask[name].float().cpu()  # float, as torch.nn.utils.prune has it
    init = {name: tensor.detach().cpu() for name, tensor in state.items()}
    torchfiles.write(path, {"state_dict": weights, "init": init}, legacy)


def describe(path: str | Path, unsafe: bool = False) -> str:
    """One paragraph about a checkpoint; see `read` for the errors."""
    found = read(path, unsafe)
    text = f"{path}: a {found.kind} checkpoint: a {found.network} with a {found.stem} stem for {found.classes} classes"
    if found.mask:
        text += f", keeping {found.mask.kept:,} of {found.mask.total:,} convolution weights in {len(found.mask)} layers"
        text += f", a sparsity of {found.mask.sparsity:.2%}"
        text += ", with" if found.init else ", without"
        text += " the pre-trained weights it rewinds to"
    text += f"; normalised by mean {found.mean}, std {found.std}" if found.mean else "; no normaliser in the file"
    return "; ".join([text, *found.notes]) + "."


def _state_dict(path: Path, content: Any) -> tuple[str, State]:
    """The state dict, and the name of its entry ("" where it is the whole content)."""
    if not isinstance(content, Mapping) or not content:
        raise DwlthError(f"{path}: unknown content: a {type(content).__name__}, where a dict of tensors should be")
    for entry in ENTRIES:
        if isinstance(content.get(entry), Mapping):
            return entry, _tensors(path, content[entry], entry)
    return "", _tensors(path, content, "the file")


CLAIMED = 2**30
"""Bytes that a tensor of repeated numbers may claim; a larger one could fill the memory (our choice)."""


def _tensors(path: Path, values: Mapping[str, Any], where: str) -> State:
    for name, value in values.items():
        if not isinstance(name, str):
            raise DwlthError(f"{path}: unknown content: {name!r} in {where}, where the name of a tensor should be")
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise DwlthError(f"{path}: unknown content: {name!r} in {where} is a {kind}, where a tensor should be")
        claimed = value.numel() * value.element_size()
        if value.layout != torch.strided or claimed > max(CLAIMED, value.untyped_storage().nbytes()):
            raise DwlthError(f"{path}: {name!r} in {where} claims {value.numel():,} numbers, more than the file holds")
    return {name: tensor.detach() for name, tensor in values.items()}


def _unwrap(path: Path, tensors: State) -> tuple[str, State, State, list[str]]:
    """The network's prefix, its state without it, the tensors of normalisers, and the prefixes of equal copies."""
    normaliser = {n: t for n, t in tensors.items() if re.fullmatch(r"(new_)?(mean|std)", n.rpartition(".")[2])}
    marks = [name.removesuffix("_orig") for name in tensors if re.search(rf"(^|\.){MARK}(_orig)?$", name)]
    prefixes = sorted({mark.removesuffix(MARK) for mark in marks}, key=len)
    if not prefixes:
        some = ", ".join(list(tensors)[:3])
        raise DwlthError(f"{path}: unknown content ({some} ...): no {MARK}, which every ResNet of torchvision has")
    networks: dict[str, State] = {prefix: {} for prefix in prefixes}
    for name in tensors.keys() - normaliser.keys():
        prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if prefix is None:
            raise DwlthError(f"{path}: {name} is not of the network, which is in {prefixes[0]}*, nor a normaliser")
        networks[prefix][name.removeprefix(prefix)] = tensors[name]
    main, *copies = prefixes
    for copy in copies:
        names = networks[main].keys() | networks[copy].keys()
        for name in sorted(names):
            one, other = networks[main].get(name), networks[copy].get(name)
            if one is None or other is None or not torch.equal(one, other):
                raise DwlthError(f"{path}: {main}{name} and {copy}{name} should be equal copies, but differ")
    order = [name.removeprefix(main) for name in tensors]
    return main, {name: networks[main][name] for name in order if name in networks[main]}, normaliser, copies


def _verify(path: Path, state: State) -> tuple[str, str, int]:
    """The network, stem and classes of a whole state dict."""
    stem = STEMS.get(tuple(state["conv1.weight"].shape)) if "conv1.weight" in state else "7x7"
    classes = state["fc.bias"].numel() if "fc.bias" in state else 1000  # what is missing is said below
    wanted = {network: _skeleton(network, classes, stem).state_dict() for network in NETWORKS}
    network = min(NETWORKS, key=lambda network: len(wanted[network].keys() ^ state.keys()))
    _compare(path, state, wanted[network], f" of a {network}")
    return network, stem, classes


def _float32(path: Path, state: State) -> tuple[State, list[str]]:
    """The state in float32, and which other types its tensors had; counters stay as they are."""
    floats, types = dict(state), set()
    for name, tensor in state.items():
        if name.endswith(COUNTER):
            continue
        if not tensor.is_floating_point():
            raise DwlthError(f"{path}: {name} is {tensor.dtype}, where floating-point numbers should be")
        types.add(str(tensor.dtype).removeprefix("torch."))
        floats[name] = tensor = tensor.float()
        wrong = int((~tensor.isfinite()).sum())
        if wrong:
            raise DwlthError(f"{path}: {wrong:,} of the {tensor.numel():,} numbers of {name} are NaN or infinite")
        if name.endswith("running_var") and (tensor < 0).any():
            raise DwlthError(f"{path}: the least number of {name} is {tensor.min():g}, where 0 or more should be")
    return floats, sorted(types - {"float32"})


def _zeros(path: Path, state: State) -> list[str]:
    """A note, and a warning, where many convolution weights are exactly 0: training a dense network leaves none."""
    weights = [tensor for tensor in state.values() if tensor.dim() == 4]
    part = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    if part <= ZEROS:
        return []
    note = f"{part:.2%} of its convolution weights are exactly 0, without a mask: a pruned network, made permanent?"
    warnings.warn(f"{path}: {note}", stacklevel=3)
    return [note]


def _skeleton(network: str, classes: int, stem: str | None = "7x7") -> nn.Module:
    """One of torchvision's networks without the memory for its weights."""
    with torch.device("meta"):
        return models.NETWORKS[network + ("-3x3" if stem == "3x3" else "")](classes)


def _compare(file: str | Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], whose: str = "") -> None:
    """Raise where names (but counters) or shapes differ."""
    missing = [name for name in wanted if name not in found and not name.endswith(COUNTER)]
    extra = [name for name in found if name not in wanted and not name.endswith(COUNTER)]
    if missing or extra:
        said = [
            f"{len(names)} {what} ({names[0]} ...)"
            for names, what in ((missing, "missing"), (extra, "too many"))
            if names
        ]
        raise DwlthError(f"{file}: not the {len(wanted)} tensors{whose}: {' and '.join(said)}")
    for name, tensor in found.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            raise DwlthError(
                f"{file}: {name} is {list(tensor.shape)}, where {list(wanted[name].shape)}{whose} should be"
            )


def _mask(path: Path, masks: State, state: State, network: str) -> Mask:
    weights = prunable(_skeleton(network, 1))
    _compare(f"{path}: mask", masks, {name: state[name] for name in weights}, f" of a {network}'s convolutions")
    for name, mask in masks.items():
        if not ((mask == 0) | (mask == 1)).all():
            raise DwlthError(f"{path}: mask of {name} holds more than 0 and 1")
    return Mask({name: masks[name].bool() for name in weights})


def _constants(path: Path, normaliser: State, known: tuple) -> tuple:
    """The mean and std that all normalisers of the file agree on, as written in `known`; None twice without one."""
    if not normaliser:
        return None, None
    values = [[t.flatten().float() for n, t in normaliser.items() if n.endswith(end)] for end in ("mean", "std")]
    for pair in known:
        if all(
            len(found) and all(v.shape == (3,) and torch.allclose(v, torch.tensor(right), atol=1e-4) for v in found)
            for found, right in zip(values, pair)
        ):
            return pair
    said = ", ".join(f"{n} {[round(v, 4) for v in t.flatten().tolist()[:3]]}" for n, t in normaliser.items())
    raise DwlthError(f"{path}: wrong normaliser: {said}; right is mean {list(known[0][0])}, std {list(known[0][1])}")
