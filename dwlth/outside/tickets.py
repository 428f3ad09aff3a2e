"""Tickets of the paper's public code: taken in, and written as it reads them."""

from dataclasses import replace
from pathlib import Path

from dwlth import masks, sources, tickets
from dwlth.errors import DwlthError
from dwlth.outside import checkpoints, torchfiles
from dwlth.results import Folder
from dwlth.runs import Run

TOLERANCE = 0.01
"""The surviving weights of an imported ticket may be this part more or fewer than its round leaves. Rounding to whole
weights costs a ResNet-18 less than 0.01 % at round 19; the next round is 20 % away."""


def import_reference(file: str | Path, folder: Folder, run: Run, force: bool = False, unsafe: bool = False) -> Path:
    """Put a ticket of the paper's public code where `run` (a transfer of ticket `run.round`) will find it.

    Its file must hold the pre-trained weights it rewinds to, and they must be those of the source in the folder;
    `force` takes that, but not the sparsity, on trust; `unsafe` unpickles it in full. Returns the ticket's path.

    Raises:
        DwlthError: if the file is no ticket, is one of another network or another round, or belongs to other weights;
            or if another ticket is in its place.
    """
    found = checkpoints.read(file, unsafe)
    if found.mask is None:
        raise DwlthError(f"{file}: a dense {found.network} ({found.kind}), where a ticket should be")
    source = sources.load(replace(folder, device="cpu"), run)
    own = masks.prunable(source.net)
    belongs_to = masks.fingerprint(own)
    checkpoints.load_into(source.net, found.state, file, own_head=True)  # says where the networks differ
    survive = (1 - folder.preset.prune_rate) ** run.round
    if abs(found.mask.kept / found.mask.total - survive) > TOLERANCE * survive:
        raise DwlthError(
            f"{file}: its sparsity is {found.mask.sparsity:.2%}, where that of round {run.round} is {1 - survive:.2%}: "
            "give the round of this ticket"
        )
    theirs = "unknown" if found.init is None else masks.fingerprint({name: found.init[name] for name in own})
    if theirs != belongs_to and not force:
        path = folder.source(run)
        raise DwlthError(f"{file}: a ticket of the weights {theirs}, but those of {path} are {belongs_to}; --force")
    path = folder.ticket(run)
    there = tickets.load(path)[0] if path.exists() else found.mask
    if any((there[name] != found.mask[name]).any() for name in found.mask):
        raise DwlthError(f"{path}: another ticket is there, of which transfers may be done: give another --results")
    tickets.save(
        path,
        found.mask,
        id=folder.preset.run_id(Run("imp", run.source, run.from_seed, run.round - 1)),
        preset=folder.preset.name,
        source=run.source,
        method=f"imported from {Path(file).name}",
        seed=run.seed,
        round=run.round,
        belongs_to=belongs_to,
    )
    return path


def export_reference(file: str | Path, folder: Folder, run: Run, init: bool = False, legacy: bool = False) -> None:
    """Write the ticket of a run, on its pre-trained weights, as the paper's public code reads it (`--tickets_file`).

    Args:
        init: write the pre-trained weights alone instead, as its `--init` reads them. It loads them strictly, into
            torchvision's network of 1000 classes.
        legacy: in the format of before torch 1.6; the public code runs on 1.5.

    Raises:
        DwlthError: for a network that the public code does not have.
    """
    if (network := folder.preset.network) not in checkpoints.NETWORKS:
        raise DwlthError(
            f"the network is a {network}, which the public code has not: {', '.join(checkpoints.NETWORKS)}"
        )
    source = sources.load(replace(folder, device="cpu"), run)
    state = source.net.state_dict()
    if init:
        torchfiles.write(file, state, legacy)
    else:
        checkpoints.write_reference_ticket(file, state, tickets.find(folder, run, source), legacy)
