"""Pre-training sources: the dense networks that tickets are cut from."""

from typing import Any

from dwlth import data, models
from dwlth.files import read_tensors, write_tensors
from dwlth.models import Classifier
from dwlth.presets import Preset, Run
from dwlth.results import Folder
from dwlth.training import evaluate, fit, stream


def pretrain(preset: Preset, run: Run, folder: Folder, device: str, **training) -> dict[str, Any]:
    """Train a source from scratch with its recipe, save the last epoch's weights, and measure them on the test set
    of the pre-training task. `training` goes to `dwlth.training.fit`."""
    task = data.load(preset.upstream).to(device)
    model = models.build(preset.network, task.classes, task.mean, task.std, stream(run.seed, "init")).to(device)
    seed = stream(run.seed, "pretrain")
    result = fit(model, preset.recipe(run), task.train, task.val, seed=seed, **training)
    sa, ra = evaluate(model, task.test, preset.evaluation, seed)
    write_tensors(
        folder.source(run),
        model.net.state_dict(),
        kind="source",
        id=preset.run_id(Run("pretrain", run.source, run.seed)),
        preset=preset.name,
        source=run.source,
        seed=run.seed,
        network=preset.network,
        task=preset.upstream,
        classes=task.classes,
        mean=task.mean,
        std=task.std,
        sa=sa,
        ra=ra,
    )
    return {"sa": sa, "ra": ra, "sparsity": 0.0, "n_train": len(task.train), "history": result.history}


def load(preset: Preset, run: Run, folder: Folder, device: str) -> Classifier:
    """The pre-trained network that `run` starts from, with its head and its normalisation."""
    weights, about = read_tensors(folder.source(run), "source")
    model = models.build(about["network"], about["classes"], about["mean"], about["std"], seed=0)
    model.net.load_state_dict(weights)
    return model.to(device)
