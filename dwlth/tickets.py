"""Tickets: the masks of a source, by iterative magnitude pruning (IMP) with rewinding, one-shot or at random."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dwlth import checkpoints, data, masks, sources
from dwlth.errors import DwlthError
from dwlth.files import read_tensors, write_tensors
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.presets import Preset, Run
from dwlth.results import Folder
from dwlth.training import evaluate, fit, stream


def imp_round(preset: Preset, run: Run, folder: Folder, device: str, **training) -> dict[str, Any]:
    """One round of IMP. The network starts at the pre-trained weights, batch-norm statistics and head (it is
    rewound), is masked with ticket `run.round`, trained on the pre-training task, measured on its test set, and
    pruned to ticket `run.round + 1`, which is saved. Round 0 trains nothing: the first prune is that of the source,
    so ticket k has sparsity 1 - 0.8^k (paper). `training` goes to `dwlth.training.fit`."""
    task = data.load(preset.upstream, folder.data, preset.order).to(device)
    model = sources.load(preset, run, folder, device)
    sources.check_head(model, task)
    belongs_to = masks.fingerprint(masks.prunable(model.net))
    mask = find(preset, run, folder, model)
    seed = stream(run.seed, "imp", run.round)
    recipe, history = preset.recipe(run), []
    if run.round > 0:
        history = fit(model, recipe, task.train, task.val, seed=seed, mask=mask, **training).history
    sa, ra = evaluate(model, task.test, preset.evaluation, seed, **recipe.measuring)
    ticket = masks.prune(mask, masks.magnitude(model.net), preset.prune_rate)
    save(
        folder.ticket(run, run.round + 1),
        ticket,
        id=preset.run_id(run),
        preset=preset.name,
        source=run.source,
        method="imp",
        seed=run.seed,
        round=run.round + 1,
        belongs_to=belongs_to,
    )
    return {"sa": sa, "ra": ra, "sparsity": mask.sparsity, "n_train": len(task.train), "history": history}


def find(preset: Preset, run: Run, folder: Folder, source: Classifier) -> Mask:
    """The ticket of a run on its source's weights, on the CPU: read from disk if it is IMP's, made here if not.

    Raises:
        DwlthError: if the file is no ticket, or a ticket of other weights.
    """
    mask = masks.dense(source.net)
    if run.round == 0:
        return mask
    if run.method == "imp":
        path = folder.ticket(run, run.round)
        mask, about = load(path)
        found = masks.fingerprint(masks.prunable(source.net))
        if about["belongs_to"] != found:
            raise DwlthError(f"{path}: a ticket of the weights {about['belongs_to']}, but these are {found}")
        return mask
    scores = masks.magnitude(source.net) if run.method == "oneshot" else masks.random(source.net, run.seed)
    for _ in range(run.round):  # in steps, so that the counts are exactly those of IMP
        mask = masks.prune(mask, scores, preset.prune_rate)
    return mask


def import_reference(file: str | Path, preset: Preset, run: Run, folder: Folder, force: bool = False) -> Path:
    """Put a ticket of the paper's public code where `run` (a transfer of ticket `run.round`) will find it.

    Its file must hold the pre-trained weights it rewinds to, and they must be those of the source in the folder;
    `force` takes it on trust. Returns the ticket's path.

    Raises:
        DwlthError: if the file is no ticket, is one of another network, or belongs to other weights.
    """
    found = checkpoints.read(file)
    if found.mask is None:
        raise DwlthError(f"{file}: a dense {found.network} ({found.kind}), where a ticket should be")
    source = sources.load(preset, run, folder, "cpu")
    own = masks.prunable(source.net)
    belongs_to = masks.fingerprint(own)
    checkpoints.load_into(source.net, found.state, file, own_head=True)  # says where the networks differ
    theirs = "unknown" if found.init is None else masks.fingerprint({name: found.init[name] for name in own})
    if theirs != belongs_to and not force:
        path = folder.source(run)
        raise DwlthError(f"{file}: a ticket of the weights {theirs}, but those of {path} are {belongs_to}; --force")
    save(
        folder.ticket(run, run.round),
        found.mask,
        id=preset.run_id(Run("imp", run.source, run.from_seed, run.round - 1)),
        preset=preset.name,
        source=run.source,
        method=f"imported from {Path(file).name}",
        seed=run.seed,
        round=run.round,
        belongs_to=belongs_to,
    )
    return folder.ticket(run, run.round)


def export_reference(file: str | Path, preset: Preset, run: Run, folder: Folder) -> None:
    """Write the ticket of a run, on its pre-trained weights, as the paper's public code reads it."""
    source = sources.load(preset, run, folder, "cpu")
    checkpoints.write_reference_ticket(file, source.net.state_dict(), find(preset, run, folder, source))


def save(path: Path, mask: Mask, **about: Any) -> None:
    """A ticket on disk: one bit per weight, packed, with its shapes, its sparsity and what it belongs to."""
    packed = {name: torch.from_numpy(np.packbits(tensor.numpy(force=True))) for name, tensor in mask.items()}
    shapes = {name: list(tensor.shape) for name, tensor in mask.items()}
    write_tensors(path, packed, kind="ticket", shapes=shapes, sparsity=mask.sparsity, **about)


def load(path: Path) -> tuple[Mask, dict[str, Any]]:
    """The mask in a ticket's file, and what its header says.

    Raises:
        DwlthError: if there is no such file, or it is no ticket.
    """
    packed, about = read_tensors(path, "ticket")
    bits = {
        name: torch.from_numpy(np.unpackbits(packed[name].numpy(), count=int(np.prod(shape)))).bool().view(shape)
        for name, shape in about["shapes"].items()
    }
    return Mask(bits), about
