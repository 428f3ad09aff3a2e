"""Pre-training sources: the dense networks that tickets are cut from, trained here or brought along."""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from dwlth import checkpoints, data, models
from dwlth.errors import DwlthError
from dwlth.files import read_tensors, write_tensors
from dwlth.models import Classifier
from dwlth.presets import Given, Preset, Run
from dwlth.results import Folder
from dwlth.training import TrainingFailed, evaluate, fit, stream


def pretrain(preset: Preset, run: Run, folder: Folder, device: str, **training) -> dict[str, Any]:
    """Train a source from scratch with its recipe (`Recipe.keep` says which weights are kept), or fetch and verify the
    checkpoint it is given by; save it, and measure it on the test set of the pre-training task. `training` goes to
    `dwlth.training.fit`."""
    recipe = preset.recipe(run)
    seed = stream(run.seed, "pretrain")
    history, n_train = [], 0
    if isinstance(recipe, Given):
        model = _given(recipe, preset, folder).to(device)
        sa, ra = _measure_if_possible(preset, run, folder, model, seed)
    else:
        task = data.load(preset.upstream, folder.data, preset.order).to(device)
        model = models.build(preset.network, task.classes, task.mean, task.std, stream(run.seed, "init")).to(device)
        result = fit(model, recipe, task.train, task.val, seed=seed, **training)
        history, n_train = result.history, len(task.train)
        if recipe.keep == "sound":
            if "sound" not in result.best:
                raise TrainingFailed("catastrophic overfitting in every validated epoch")
            model.net.load_state_dict(result.best["sound"]["state"])
        if preset.half_sources:
            model.net.load_state_dict(_half(model.net.state_dict()))
        sa, ra = evaluate(model, task.test, preset.evaluation, seed, **recipe.measuring)
    write_tensors(
        folder.source(run),
        _half(model.net.state_dict()) if preset.half_sources and history else model.net.state_dict(),
        kind="source",
        id=preset.run_id(Run("pretrain", run.source, run.seed)),
        preset=preset.name,
        source=run.source,
        seed=run.seed,
        network=preset.network,
        task=preset.upstream,
        classes=model.net.fc.out_features,
        mean=model.mean.flatten().tolist(),
        std=model.std.flatten().tolist(),
        sa=sa,
        ra=ra,
    )
    return {"sa": sa, "ra": ra, "sparsity": 0.0, "n_train": n_train, "history": history}


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as float16; what is small, and may have a wide range, as it is."""
    return {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}


def _given(given: Given, preset: Preset, folder: Folder) -> Classifier:
    """The network in a checkpoint, in front of it the normaliser of its file, or ImageNet's where it has none."""
    path = checkpoints.fetch(given.where, folder.path / "downloads", given.sha256, given.size or None)
    found = checkpoints.read(path, given.unsafe)
    mean, std = (found.mean, found.std) if found.mean else checkpoints.IMAGENET
    model = models.build(preset.network, found.classes, mean, std, seed=0)
    checkpoints.load_into(model.net, found.state, path)
    return model


def _measure_if_possible(preset: Preset, run: Run, folder: Folder, model: Classifier, seed: int) -> tuple:
    """SA and RA on the pre-training task; None and None, with a warning, without its data: transfers need none."""
    try:
        task = data.load(preset.upstream, folder.data, preset.order)
    except DwlthError as error:
        warnings.warn(f"the {run.source} source is not measured: {error}", stacklevel=2)
        return None, None
    check_head(model, task)
    test = task.test.to(model.mean.device)
    return evaluate(model, test, preset.evaluation, seed, **preset.imp[run.source].measuring)


def check_head(model: Classifier, task: data.Dataset) -> None:
    """Raise `DwlthError` where a source's head and its pre-training task differ in their number of classes."""
    if model.net.fc.out_features != task.classes:
        raise DwlthError(f"the source has {model.net.fc.out_features} classes, but its task {task.name} {task.classes}")


def load(preset: Preset, run: Run, folder: Folder, device: str) -> Classifier:
    """The pre-trained network that `run` starts from, with its head and its normalisation."""
    return read(folder.source(run), "source", device)


def read(path: Path, kind: str, device: str) -> Classifier:
    """The network in a file of ours (`source`, or `network`: a transferred one), which says how it is built.

    Raises:
        DwlthError: if there is no such file.
    """
    weights, about = read_tensors(path, kind)
    model = models.build(about["network"], about["classes"], about["mean"], about["std"], seed=0)
    model.net.load_state_dict(weights)
    return model.to(device)
