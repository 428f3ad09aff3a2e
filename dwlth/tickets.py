"""Tickets: the masks of a source, by iterative magnitude pruning (IMP) with rewinding, one-shot or at random."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dwlth import masks, sources
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.files import read_tensors, write_tensors
from dwlth.masks import METHODS, Mask
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
            method="imp",
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
        DwlthError: if the file is no ticket, or a ticket of other weights.
    """
    mask = masks.dense(source.net)
    if run.round == 0:
        return mask
    make = METHODS[run.method].scores
    if make is None:
        path = folder.ticket(run)
        mask, about = load(path)
        found = masks.fingerprint(masks.prunable(source.net))
        if about["belongs_to"] != found:
            raise DwlthError(f"{path}: a ticket of the weights {about['belongs_to']}, but these are {found}")
        return mask
    scores = make(source.net, run.seed)
    for _ in range(run.round):  # in steps, so that the counts are exactly those of IMP
        mask = masks.prune(mask, scores, folder.preset.prune_rate)
    return mask


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
