"""AutoAttack, by its authors' code, and the stage of the grid that runs it."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dwlth import sources, tickets
from dwlth.attacks import Attack
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate, precision_of
from dwlth.fast import team
from dwlth.fast.folding import fold
from dwlth.files import write_state
from dwlth.masks import fingerprint
from dwlth.results import Folder
from dwlth.runs import Run, stream
from dwlth.training import STOP, OutOfTime, read_checkpoint
from dwlth.transfer import load

BATCH = 250
"""Images attacked at a time (the authors' code)."""


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: str = "linf",
    *,
    seed: int = 0,
    batch_size: int = BATCH,
    attacks: Sequence[str] | None = None,
) -> Tensor:
    """Adversarial images by the standard version of AutoAttack (Croce & Hein, 2020: APGD-CE, targeted APGD-DLR,
    targeted FAB, Square), for an RA that no choice of step sizes flatters: the accuracy of `model.eval()` on them.

    Runs the authors' own code in the package `pyautoattack` (chosen because it is that code, has no dependencies and
    runs on current torch; torchattacks pins `requests` to 2020, and ART's ensemble is not the standard one).

    Args:
        model, x, y, eps, norm: as for an `Attack`; a copy of the model in eval mode is attacked.
        seed: of all its random draws; the global generators are left alone.
        batch_size: images attacked at a time.
        attacks: only these of `apgd-ce`, `apgd-t`, `fab-t` and `square`.

    Returns:
        Images like `x`; those that withstand all four attacks, or are misclassified anyway, are as they were.

    Raises:
        DwlthError: if the package is missing, or the model has fewer than 4 classes (the targeted DLR loss needs 4).
    """
    Attack(eps, norm=norm)  # refuses bad values
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        raise DwlthError(
            "autoattack: the package pyautoattack is missing: install the extra dwlth[autoattack]"
        ) from None

    model = fold(model, x[:8]).requires_grad_(False)  # FAB calls backward(): not for the weights
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    if classes < 4:
        raise DwlthError(f"autoattack: the model has {classes} classes, and the targeted DLR loss needs 4")
    trace = sys.gettrace()  # a check of its own ends debuggers' traces
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            attack = AutoAttack(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=seed, device=x.device)
            attack.attacks_to_run = list(attacks or attack.attacks_to_run)
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
            return attack.run_standard_evaluation(x.contiguous(), y, batch_size=batch_size)[0]
    finally:
        sys.settrace(trace)


def _withstand(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int) -> int:
    """How many of these images AutoAttack, with the norm and eps of `attack`, leaves classified right; in float32."""
    with precision_of("float32", x.device):
        adversarial = autoattack(model, x, y, attack.eps, attack.norm, seed=seed)
        with torch.no_grad():
            return int((model(adversarial).argmax(1) == y).sum())


def under_autoattack(
    folder: Folder,
    runs: Sequence[Run],
    checkpoint: Path | None = None,
    deadline: float = math.inf,
    progress: bool = False,
    **_,
) -> list[dict[str, Any]]:
    """SA, RA under AutoAttack (`ra`) and RA under the preset's evaluation attack (`ra_pgd`) of the network that a
    transfer (one) ended with, all on the same first `preset.autoattack_images` test images. AutoAttack is always in
    float32. Of several processes, the first one runs it.

    Args:
        checkpoint, deadline, progress: as of `dwlth.training.fit`; what a batch of images gave is kept in the file,
            in place of what an epoch did.

    Raises:
        OutOfTime: at the deadline or at a signal, after the batch under way.
        DwlthError: see `dwlth.outside.autoattack.autoattack`.
    """
    (run,), preset = runs, folder.preset
    transferred = replace(run, stage="transfer")
    model = load(folder, transferred)
    mask = tickets.find(folder, run, sources.load(folder, run))
    test = folder.sample(run)
    recipe, seed, attack = preset.recipe(run), stream(run.seed, "autoattack"), preset.evaluation
    found = checkpoint and team.current.says(checkpoint.exists())
    start = fingerprint(model.net.state_dict())
    history = read_checkpoint(checkpoint, start)["fits"][0]["history"] if found else []
    done = sum(row["images"] for row in history)
    left = test.take(list(range(done, len(test))))
    bar = tqdm(desc="AutoAttack, images", total=len(test), initial=done, leave=False, disable=not progress)
    for x, y in left.batches(BATCH, augment=recipe.augment):
        if team.current.says(bool(history) and (STOP.is_set() or time.time() > deadline)):
            raise OutOfTime
        began = time.monotonic()
        right = team.current.same(partial(_withstand, model, x, y, attack, seed % 2**31))
        history.append({"images": len(y), "right": right, "seconds": time.monotonic() - began})
        if checkpoint:
            state = {"net": {}, "optimizer": {}, "fits": [{"history": history}], "start": start}
            write_state(checkpoint, state)
        bar.update(len(y))
    sa, ra_pgd = evaluate(model, test, attack, seed, **recipe.measuring)
    counts = {"sparsity": mask.sparsity, "n_train": 0, "history": []}
    return [{"sa": sa, "ra": sum(row["right"] for row in history) / len(test), "ra_pgd": ra_pgd} | counts]
