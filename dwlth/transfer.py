"""Transfer: tickets, each alone, trained on a downstream task."""

from collections.abc import Sequence
from typing import Any

from dwlth import controls, models, sources, tickets
from dwlth.data import Dataset, subset
from dwlth.evaluation import evaluate
from dwlth.files import write_tensors
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.results import Folder
from dwlth.runs import Run, stream
from dwlth.training import fit_members


def start(folder: Folder, run: Run, task: Dataset) -> tuple[Classifier, Mask]:
    """The network a transfer starts from, and its mask: the pre-trained weights and batch-norm statistics (or random
    ones, see `dwlth.masks.Method.fresh`), a new head for the task, and the task's own normalisation."""
    source = sources.load(folder, run)
    mask = tickets.find(folder, run, source)
    model = models.build(folder.preset.network, task.classes, task.mean, task.std, stream(run.seed, "head"))
    if run.round == 0 or not controls.method(run.method).fresh:
        head = {name: tensor for name, tensor in model.net.state_dict().items() if name.startswith("fc.")}
        model.net.load_state_dict(source.net.state_dict() | head)
    return model.to(folder.device), mask


def transfer(folder: Folder, runs: Sequence[Run], **training) -> list[dict[str, Any]]:
    """Train tickets on their downstream task, and test of each the networks with the best validation SA and RA, each
    for SA and for RA. The headline `sa` and `ra` are those of one network: the best-RA one where training is
    adversarial and RA is validated, the best-SA one elsewhere (our choice; the paper does not say); that network is
    kept where the preset says so.

    Args:
        runs: with one recipe, downstream task and fraction between them; several are trained side by side.
        training: goes to `dwlth.training.fit_members`.

    Returns:
        The result of each run; `{"error": ...}` where its training broke down.
    """
    preset, first = folder.preset, runs[0]
    recipe = preset.recipe(first)
    tasks = [folder.dataset(first.downstream, run.seed) for run in runs]
    models_, masks = zip(*(start(folder, run, task) for run, task in zip(runs, tasks)))
    indices = [
        subset(task.train.labels, run.fraction, preset.subset, run.seed, preset.allow_empty_classes)
        for run, task in zip(runs, tasks)
    ]
    trains = [task.train.take(chosen) for task, chosen in zip(tasks, indices)]
    seeds = [stream(run.seed, run.stage) for run in runs]
    fits = fit_members(models_, recipe, trains, [task.val for task in tasks], seeds=seeds, masks=masks, **training)
    results = []
    for run, task, model, mask, seed, chosen, result in zip(runs, tasks, models_, masks, seeds, indices, fits):
        if result.error:
            results.append({"error": result.error, "history": result.history})
            continue
        tested: dict[int, tuple] = {}  # the two are often the same network
        best = {}
        for metric in [metric for metric in ("sa", "ra") if metric in result.best]:
            kept = result.best[metric]
            epoch = kept["epoch"]
            if epoch not in tested:
                model.net.load_state_dict(kept["state"])
                tested[epoch] = evaluate(model, task.test, preset.evaluation, seed, **recipe.measuring)
            sa, ra = tested[epoch]
            best[metric] = {"epoch": epoch, "val_sa": kept["val_sa"], "val_ra": kept["val_ra"], "sa": sa, "ra": ra}
        judged = "ra" if recipe.attack.steps and "ra" in best else "sa"
        sa, ra = best[judged]["sa"], best[judged]["ra"]
        if preset.keep_networks:
            about = {"id": preset.run_id(run), "run": str(run), "network": preset.network, "classes": task.classes}
            about |= {"mean": task.mean, "std": task.std, "sa": sa, "ra": ra}
            write_tensors(folder.network(run), result.best[judged]["state"], kind="network", **about)
        record = {"sa": sa, "ra": ra, "sparsity": mask.sparsity, "n_train": len(chosen)}
        record |= {f"best_{metric}": numbers for metric, numbers in best.items()}
        record["indices"] = chosen if len(chosen) < len(task.train) else "all"
        results.append(record | {"history": result.history})
    return results


def load(folder: Folder, run: Run) -> Classifier:
    """The network that a transfer ended with: the one whose SA and RA are its headline.

    Raises:
        DwlthError: where it was not kept.
    """
    return sources.read(folder.network(run), "network", folder.device, folder.preset.run_id(run)).eval()
