"""Transfer: tickets, each alone, trained on a downstream task."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dwlth import data, models, sources, tickets
from dwlth.attacks import autoattack
from dwlth.files import write_tensors
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.presets import Preset, Run
from dwlth.results import Folder
from dwlth.training import evaluate, fit_members, stream


def start(preset: Preset, run: Run, folder: Folder, task: data.Dataset, device: str) -> tuple[Classifier, Mask]:
    """The network a transfer starts from, and its mask: the pre-trained weights and batch-norm statistics, a new
    head for the task, and the task's own normalisation."""
    source = sources.load(preset, run, folder, device)
    mask = tickets.find(preset, run, folder, source)
    model = models.build(preset.network, task.classes, task.mean, task.std, stream(run.seed, "head")).to(device)
    head = {name: tensor for name, tensor in model.net.state_dict().items() if name.startswith("fc.")}
    model.net.load_state_dict(source.net.state_dict() | head)
    return model, mask


def transfer(preset: Preset, runs: Sequence[Run], folder: Folder, device: str, **training) -> list[dict[str, Any]]:
    """Train tickets on their downstream task, and test of each the networks with the best validation SA and RA, each
    for SA and for RA. The headline `sa` and `ra` are those of one network: the best-SA one under standard training, the
    best-RA one under adversarial training (our choice; the paper does not say); that network is kept where the preset
    says so.

    Args:
        runs: transfers that differ in their source, round and method alone. They are trained side by side where the
            preset does so (then a lone one beside its double, to the same bits).
        training: goes to `dwlth.training.fit_members`.

    Returns:
        The result of each run; `{"error": ...}` where its training broke down.
    """
    first = runs[0]
    task = data.load(first.downstream, folder.data, preset.order).to(device)
    models_, masks = zip(*(start(preset, run, folder, task, device) for run in runs))
    model, mask = models_[0], masks[0]
    if preset.together > 1:
        doubled = 2 if len(runs) == 1 else 1
        model, mask = models.Stack(models_ * doubled), Mask(models.side_by_side(masks * doubled))
    indices = data.subset(task.train.labels, first.fraction, preset.subset, first.seed, preset.allow_empty_classes)
    seed = stream(first.seed, "transfer")
    train, recipe = task.train.take(indices), preset.recipe(first)
    fits = fit_members(model, recipe, train, task.val, seed=seed, mask=mask, **training)

    results = []
    for run, one, own_mask, result in zip(runs, models_, masks, fits):
        if result.error:
            results.append({"error": result.error})
            continue
        tested: dict[int, tuple] = {}  # the two are often the same network
        best = {}
        for metric in [metric for metric in ("sa", "ra") if metric in result.best]:
            kept = result.best[metric]
            epoch = kept["epoch"]
            if epoch not in tested:
                one.net.load_state_dict(kept["state"])
                tested[epoch] = evaluate(one, task.test, preset.evaluation, seed, **recipe.measuring)
            sa, ra = tested[epoch]
            best[metric] = {"epoch": epoch, "val_sa": kept["val_sa"], "val_ra": kept["val_ra"], "sa": sa, "ra": ra}
        judged = "ra" if run.regime == "adversarial" and "ra" in best else "sa"
        sa, ra = best[judged]["sa"], best[judged]["ra"]
        if preset.keep_networks:
            about = {"id": preset.run_id(run), "run": str(run), "network": preset.network, "classes": task.classes}
            about |= {"mean": task.mean, "std": task.std, "sa": sa, "ra": ra}
            write_tensors(folder.network(about["id"]), result.best[judged]["state"], kind="network", **about)
        record = {"sa": sa, "ra": ra, "sparsity": own_mask.sparsity, "n_train": len(train)}
        record |= {f"best_{metric}": numbers for metric, numbers in best.items()}
        record["indices"] = indices if len(train) < len(task.train) else "all"
        results.append(record | {"history": result.history})
    return results


def load(preset: Preset, run: Run, folder: Folder, device: str) -> Classifier:
    """The network that a transfer ended with: the one whose SA and RA are its headline.

    Raises:
        DwlthError: where it was not kept.
    """
    return sources.read(folder.network(preset.run_id(run)), "network", device).eval()


def under_autoattack(preset: Preset, run: Run, folder: Folder, device: str) -> dict[str, Any]:
    """SA, RA under AutoAttack (`ra`) and RA under the preset's evaluation attack (`ra_pgd`) of the network that a
    transfer ended with, all on the same first `preset.autoattack_images` test images.

    Raises:
        DwlthError: see `dwlth.attacks.autoattack`.
    """
    task = data.load(run.downstream, folder.data, preset.order).to(device)
    transferred = replace(run, stage="transfer")
    model = load(preset, transferred, folder, device)
    mask = tickets.find(preset, run, folder, sources.load(preset, run, folder, device))
    test = task.test.take(list(range(min(preset.autoattack_images, len(task.test)))))
    recipe, seed, attack = preset.recipe(run), stream(run.seed, "autoattack"), preset.evaluation
    sa, ra_pgd = evaluate(model, test, attack, seed, **recipe.measuring)
    right = 0
    for x, y in test.batches(250, augment=recipe.augment):
        adversarial = autoattack(model, x, y, attack.eps, attack.norm, seed=seed % 2**31)
        with torch.no_grad():
            right += (model(adversarial).argmax(1) == y).sum().item()
    return {"sa": sa, "ra": right / len(test), "ra_pgd": ra_pgd, "sparsity": mask.sparsity, "n_train": 0, "history": []}
