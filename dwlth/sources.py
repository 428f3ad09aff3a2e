"""Pre-training sources: the dense networks that tickets are cut from, trained here or brought along."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dwlth import models
from dwlth.data import Dataset
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.fast import team
from dwlth.files import read_tensors, write_tensors
from dwlth.models import Classifier
from dwlth.outside import checkpoints
from dwlth.recipe import Given
from dwlth.results import Folder
from dwlth.runs import Run, stream
from dwlth.training import fit_members


def pretrain(folder: Folder, runs: Sequence[Run], **training) -> list[dict[str, Any]]:
    """Train sources from scratch with their recipe (`Recipe.keep` says which weights are kept), or fetch and verify the
    checkpoints they are given by; save them, and measure them on the test set of the pre-training task.

    Args:
        runs: with one recipe between them; several are trained side by side.
        training: goes to `dwlth.training.fit_members`.

    Returns:
        The result of each run; `{"error": ...}` where its training broke down.
    """
    recipe = folder.preset.recipe(runs[0])
    if isinstance(recipe, Given):
        return [_take(folder, run, recipe) for run in runs]
    tasks = [folder.dataset(folder.preset.upstream, run.seed) for run in runs]
    models_ = [
        models.build(folder.preset.network, task.classes, task.mean, task.std, stream(run.seed, "init")).to(
            folder.device
        )
        for run, task in zip(runs, tasks)
    ]
    seeds = [stream(run.seed, "pretrain") for run in runs]
    trains, vals = [task.train for task in tasks], [task.val for task in tasks]
    fits = fit_members(models_, recipe, trains, vals, seeds=seeds, **training)
    results = []
    for run, task, model, seed, result in zip(runs, tasks, models_, seeds, fits):
        error = result.error
        if recipe.keep == "sound" and not error:
            if "sound" in result.best:
                model.net.load_state_dict(result.best["sound"]["state"])
            else:
                error = "catastrophic overfitting in every validated epoch"
        if error:
            results.append({"error": error, "history": result.history})
            continue
        if folder.preset.half_sources:
            model.net.load_state_dict(_half(model.net.state_dict()))
        sa, ra = evaluate(model, task.test, folder.preset.evaluation, seed, **recipe.measuring)
        _save(folder, run, model, sa, ra, half=folder.preset.half_sources)
        results.append({"sa": sa, "ra": ra, "sparsity": 0.0, "n_train": len(task.train), "history": result.history})
    return results


def _take(folder: Folder, run: Run, given: Given) -> dict[str, Any]:
    """A source from a checkpoint: saved, and measured where the data of its task are to be had."""
    model = _given(given, folder).to(folder.device)
    sa, ra = _measure_if_possible(folder, run, model, stream(run.seed, "pretrain"))
    _save(folder, run, model, sa, ra, half=False)
    return {"sa": sa, "ra": ra, "sparsity": 0.0, "n_train": 0, "history": []}


def _save(folder: Folder, run: Run, model: Classifier, sa: float | None, ra: float | None, half: bool) -> None:
    state = model.net.state_dict()
    write_tensors(
        folder.source(run),
        _half(state) if half else state,
        kind="source",
        id=folder.preset.run_id(run),
        preset=folder.preset.name,
        source=run.source,
        seed=run.seed,
        network=folder.preset.network,
        task=folder.preset.upstream,
        classes=model.net.fc.out_features,
        mean=model.mean.flatten().tolist(),
        std=model.std.flatten().tolist(),
        sa=sa,
        ra=ra,
    )


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as float16; what is small, and may have a wide range, as it is."""
    return {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}


def _given(given: Given, folder: Folder) -> Classifier:
    """The network in a checkpoint, in front of it the normaliser of its file, or ImageNet's where it has none."""
    where = given.where
    if where.startswith("data/"):
        where = str(Path(folder.data) / where.removeprefix("data/"))
    fetch = partial(checkpoints.fetch, where, folder.path / "downloads", given.sha256, given.size or None)
    path = team.current.same(fetch)
    found = checkpoints.read(path, given.unsafe)
    if found.mask is not None:
        raise DwlthError(f"{path}: a ticket, where a dense network should be; tickets are taken in by import")
    mean, std = (found.mean, found.std) if found.mean else checkpoints.IMAGENET
    model = models.build(folder.preset.network, found.classes, mean, std, seed=0)
    checkpoints.load_into(model.net, found.state, path)
    return model


def _measure_if_possible(folder: Folder, run: Run, model: Classifier, seed: int) -> tuple:
    """SA and RA on the pre-training task; None and None, with a warning, without its data: transfers need none."""
    try:
        task = folder.dataset(folder.preset.upstream, run.seed)
    except DwlthError as error:
        warnings.warn(f"the {run.source} source is not measured: {error}", stacklevel=2)
        return None, None
    check_head(model, task)
    return evaluate(model, task.test, folder.preset.evaluation, seed, **folder.preset.imp[run.source].measuring)


def check_head(model: Classifier, task: Dataset) -> None:
    """Raise `DwlthError` where a source's head and its pre-training task differ in their number of classes."""
    if model.net.fc.out_features != task.classes:
        raise DwlthError(f"the source has {model.net.fc.out_features} classes, but its task {task.name} {task.classes}")


def load(folder: Folder, run: Run) -> Classifier:
    """The pre-trained network that `run` starts from, with its head and its normalisation."""
    made_by = Run("pretrain", run.source, run.from_seed)
    return read(folder.source(run), "source", folder.device, folder.preset.run_id(made_by))


def read(path: Path, kind: str, device: str, id_: str = "") -> Classifier:
    """The network in a file of ours (`source`, or `network`: a transferred one), which says how it is built.

    Args:
        id_: of the run that should have made it.

    Raises:
        DwlthError: if there is no such file, or it is damaged, or of another run.
    """
    weights, about = read_tensors(path, kind, id_)
    try:
        if weights["fc.bias"].shape != (about["classes"],):
            raise DwlthError(f"its head is not one of {about['classes']} classes")
        model = models.build(about["network"], about["classes"], about["mean"], about["std"], seed=0)
        model.net.load_state_dict(weights)
    except (DwlthError, KeyError, TypeError, RuntimeError) as error:
        raise DwlthError(f"{path}: not the weights of a network: {error}") from None
    return model.to(device)
