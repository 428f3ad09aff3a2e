"""Transfer: a ticket, alone, trained on a downstream task."""

from typing import Any

from dwlth import data, models, sources, tickets
from dwlth.files import read_tensors, write_tensors
from dwlth.models import Classifier
from dwlth.presets import Preset, Run
from dwlth.results import Folder
from dwlth.training import evaluate, fit, stream


def start(preset: Preset, run: Run, folder: Folder, task: data.Dataset, device: str) -> tuple[Classifier, tickets.Mask]:
    """The network a transfer starts from, and its mask: the pre-trained weights and batch-norm statistics, a new
    head for the task, and the task's own normalisation."""
    source = sources.load(preset, run, folder, device)
    mask = tickets.find(preset, run, folder, source)
    model = models.build(preset.network, task.classes, task.mean, task.std, stream(run.seed, "head")).to(device)
    head = {name: tensor for name, tensor in model.net.state_dict().items() if name.startswith("fc.")}
    model.net.load_state_dict(source.net.state_dict() | head)
    return model, mask


def transfer(preset: Preset, run: Run, folder: Folder, device: str, **training) -> dict[str, Any]:
    """Train a ticket on its downstream task, and test the networks with the best validation SA and RA, each for SA
    and for RA. The headline `sa` and `ra` are those of one network: the best-SA one under standard training, the
    best-RA one under adversarial training (our choice; the paper does not say); that network is kept where the preset
    says so. `training` goes to `dwlth.training.fit`."""
    task = data.load(run.downstream, folder.data).to(device)
    model, mask = start(preset, run, folder, task, device)
    indices = data.subset(task.train.labels, run.fraction, preset.subset, run.seed, preset.allow_empty_classes)
    seed = stream(run.seed, "transfer")
    train = task.train.take(indices)
    recipe = preset.recipe(run)
    result = fit(model, recipe, train, task.val, seed=seed, mask=mask, **training)

    tested: dict[int, tuple] = {}  # the two are often the same network
    best = {}
    for metric, kept in result.best.items():
        if kept["epoch"] not in tested:
            model.net.load_state_dict(kept["state"])
            tested[kept["epoch"]] = evaluate(model, task.test, preset.evaluation, seed, recipe.augment)
        sa, ra = tested[kept["epoch"]]
        best[f"best_{metric}"] = {"epoch": kept["epoch"], "val_sa": kept["val_sa"], "val_ra": kept["val_ra"]}
        best[f"best_{metric}"] |= {"sa": sa, "ra": ra}
    judged = "ra" if run.regime == "adversarial" and "ra" in result.best else "sa"
    sa, ra = best[f"best_{judged}"]["sa"], best[f"best_{judged}"]["ra"]
    if preset.keep_networks:
        id_ = preset.run_id(run)
        about = dict(id=id_, run=str(run), network=preset.network, classes=task.classes, mean=task.mean, std=task.std)
        write_tensors(folder.network(id_), result.best[judged]["state"], kind="network", sa=sa, ra=ra, **about)
    record = {"sa": sa, "ra": ra, "sparsity": mask.sparsity, "n_train": len(train), **best}
    return record | {"indices": indices if len(train) < len(task.train) else "all", "history": result.history}


def load(preset: Preset, run: Run, folder: Folder, device: str) -> Classifier:
    """The network that a transfer ended with: the one whose SA and RA are its headline.

    Raises:
        DwlthError: where it was not kept.
    """
    weights, about = read_tensors(folder.network(preset.run_id(run)), "network")
    model = models.build(about["network"], about["classes"], about["mean"], about["std"], seed=0)
    model.net.load_state_dict(weights)
    return model.to(device).eval()
