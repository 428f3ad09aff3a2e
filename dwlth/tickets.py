"""Tickets: the masks of a source, by iterative magnitude pruning (IMP) with rewinding, or another method."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwlth import controls, masks, sources
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.files import read_tensors, write_tensors
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.results import Folder
from dwlth.runs import Run, stream
from dwlth.training import Fit, fit_members


def imp_round(folder: Folder, runs: Sequence[Run], **training) -> list[dict[str, Any]]:
    """One round of IMP. Each network starts at the pre-trained weights, batch-norm statistics and head (it is
    rewound), is masked with ticket `run.round`, trained on the pre-training task, measured on its test set, and
    pruned to ticket `run.round + 1`, which is saved. Round 0 trains nothing: the first prune is that of the source,
    so ticket k has sparsity 1 - 0.8^k (paper).

    Args:
        runs: with one recipe between them; several are trained side by side.
        training: goes to `dwlth.training.fit_members`.

    Returns:
        The result of each run; `{"error": ...}` where its training broke down.
    """
    preset, first = folder.preset, runs[0]
    tasks = [folder.dataset(preset.upstream, run.seed) for run in runs]
    models = [sources.load(folder, run) for run in runs]
    for model, task in zip(models, tasks):
        sources.check_head(model, task)
    belongs_to = [masks.fingerprint(masks.prunable(model.net)) for model in models]
    tickets = [find(folder, run, model) for run, model in zip(runs, models)]
    seeds = [stream(run.seed, "imp", run.round) for run in runs]
    recipe, fits = preset.recipe(first), [Fit()] * len(runs)
    if first.round > 0:
        trains, vals = [task.train for task in tasks], [task.val for task in tasks]
        fits = fit_members(models, recipe, trains, vals, seeds=seeds, masks=tickets, **training)
    results = []
    for run, task, model, mask, seed, source, result in zip(runs, tasks, models, tickets, seeds, belongs_to, fits):
        if result.error:
            results.append({"error": result.error, "history": result.history})
            continue
        sa, ra = evaluate(model, task.test, preset.evaluation, seed, **recipe.measuring)
        save(
            folder.ticket(run.pruned),
            masks.prune(mask, masks.magnitude(model.net), preset.prune_rate),
            id=preset.run_id(run),
            preset=preset.name,
            source=run.source,
            method=run.method,
            seed=run.seed,
            round=run.round + 1,
            belongs_to=source,
        )
        counts = {"sparsity": mask.sparsity, "n_train": len(task.train)}
        results.append({"sa": sa, "ra": ra} | counts | {"history": result.history})
    return results


def find(folder: Folder, run: Run, source: Classifier) -> Mask:
    """The ticket of a run on its source's weights, on the CPU: read from disk if it is IMP's, made here if not.

    Raises:
        DwlthError: if the file is no ticket, or a ticket of other weights, or of another architecture.
    """
    mask, method = masks.dense(source.net), controls.method(run.method)
    if run.round == 0:
        return mask
    given: tuple = ()
    if found_by := run.found_by:
        path = folder.ticket(found_by.pruned)
        ticket, about = load(path)
        owner = source if found_by.source == run.source else sources.load(folder, found_by)
        found = masks.fingerprint(masks.prunable(owner.net))
        if about["belongs_to"] != found:
            raise DwlthError(
                f"{path}: a ticket of the weights {about['belongs_to']}, but these are {found}: bring back the source "
                f"it was cut from, or delete {path.parent}, and `run` makes the tickets of this one"
            )
        try:
            ticket.check(masks.prunable(source.net))
        except DwlthError as error:
            raise DwlthError(f"{path} on the weights of {folder.source(run)}: {error}") from None
        if method.scores is None:
            return ticket
        given = (ticket,)
    elif method.takes == "batch":
        given = _batch(folder, run, source)
    net = copy.deepcopy(source.net)
    scores = method.scores(net, run.seed, *given)
    if isinstance(scores, Mask):
        return scores
    for step in range(run.round):  # in steps, so that the counts are exactly those of IMP
        if step and method.again:
            mask.apply_(net)
            scores = method.scores(net, run.seed, *given)
        mask = masks.prune(mask, scores, folder.preset.prune_rate)
    return mask


def _batch(folder: Folder, run: Run, source: Classifier) -> tuple[Tensor, Tensor]:
    """Training images of the pre-training task, as the network behind the normalisation takes them, and labels."""
    train, draws = folder.dataset(folder.preset.upstream, run.from_seed).train, torch.Generator(folder.device)
    augment = folder.preset.imp[run.source].augment
    draws.manual_seed(stream(run.seed, "batch"))
    chosen = torch.randperm(len(train), generator=draws, device=folder.device)[: controls.BATCH].tolist()
    images, labels = next(train.take(chosen).batches(controls.BATCH, augment=augment))
    return (images - source.mean) / source.std, labels


def save(path: Path, mask: Mask, **about: Any) -> None:
    """A ticket on disk: one bit per weight, packed, with its shapes, its sparsity and what it belongs to."""
    packed = {name: torch.from_numpy(np.packbits(tensor.numpy(force=True))) for name, tensor in mask.items()}
    shapes = {name: list(tensor.shape) for name, tensor in mask.items()}
    write_tensors(path, packed, kind="ticket", shapes=shapes, sparsity=mask.sparsity, **about)


def load(path: Path) -> tuple[Mask, dict[str, Any]]:
    """The mask in a ticket's file, and what its header says.

    Raises:
        DwlthError: if there is no such file, or it is no ticket, damaged, or that of another round.
    """
    packed, about = read_tensors(path, "ticket")
    if path.stem.isdigit() and about.get("round", int(path.stem)) != int(path.stem):
        raise DwlthError(f"{path}: not ticket {path.stem}, but that of round {about['round']}")
    if {name: (math.prod(shape) + 7) // 8 for name, shape in about["shapes"].items()} != {
        name: tensor.numel() for name, tensor in packed.items()
    }:
        raise DwlthError(f"{path}: not a ticket: its bits are more or fewer than the shapes in its header say")
    bits = {
        name: torch.from_numpy(np.unpackbits(packed[name].numpy(), count=int(np.prod(shape)))).bool().view(shape)
        for name, shape in about["shapes"].items()
    }
    return Mask(bits), about
