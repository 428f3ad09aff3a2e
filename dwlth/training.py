"""The one training loop: pre-training, the rounds of IMP and transfer, standard and adversarial, all run here."""

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from dwlth.attacks import frozen
from dwlth.data import Split
from dwlth.errors import DwlthError, check
from dwlth.evaluation import evaluate, precision_of
from dwlth.fast import team
from dwlth.fast.stack import join
from dwlth.files import read_state, write_state
from dwlth.masks import Mask, fingerprint
from dwlth.models import Classifier
from dwlth.recipe import Recipe
from dwlth.runs import stream

CHECKPOINT_SECONDS = 60.0
"""A training that is killed loses at most this much work, and the step, validation or test under way (our choice)."""

STOP = threading.Event()
"""Set by a signal (`dwlth.running.machine.stopping`): a training ends after its step, saved, as at the deadline."""


@dataclass
class Fit:
    """What a training leaves behind, beside the trained model itself.

    `history` has a row per epoch: `epoch` (from 0), `lr` (at its start: 0 in the first of `onecycle`), `loss` and
    `accuracy` on the (attacked) training images, `val_sa`, `val_ra` and, in FGSM training, `val_fgsm` (RA under
    `Recipe.single_step`) in [0, 1], None where not measured, `overfits` (`catastrophic_overfitting` of the row), and
    `seconds`. `best` has, for `sa` and `ra`, the state dict of the network with the best validation value, its epoch
    and its row's `val_sa` and `val_ra`; the earliest wins. With `Recipe.keep="sound"` it has for `sound` those of the
    last one without catastrophic overfitting.
    `error` says where the loss stopped being a finite number, and is empty where all went well.
    """

    history: list[dict] = field(default_factory=list)
    best: dict[str, dict] = field(default_factory=dict)
    error: str = ""


class OutOfTime(Exception):
    """The deadline came before the training ended; its checkpoint is on disk, and the next call goes on from there."""


class TrainingFailed(Exception):
    """The loss stopped being a finite number."""


def catastrophic_overfitting(row: dict) -> bool:
    """Whether a row of the history shows a network that withstands the single step it was trained on, but not several
    (Wong et al., 2020): RA under the single step is at least 30 % and at least half of SA, and RA under PGD is at most
    a tenth of it. The thresholds are our choice; False where not all three were measured."""
    sa, fgsm, pgd = row["val_sa"], row["val_fgsm"], row["val_ra"]
    return None not in (sa, fgsm, pgd) and fgsm >= max(0.3, 0.5 * sa) and pgd <= 0.1 * fgsm


def fit(model: Classifier, recipe: Recipe, train: Split, val: Split, *, seed: int, **options) -> Fit:
    """`fit_members` for a single network.

    Raises:
        TrainingFailed: when the mean loss of an epoch is not finite.
    """
    mask = options.pop("mask", None)
    result = fit_members([model], recipe, [train], [val], seeds=[seed], masks=[mask] if mask else None, **options)[0]
    if result.error:
        raise TrainingFailed(result.error)
    return result


def fit_members(
    models: Sequence[Classifier],
    recipe: Recipe,
    trains: Sequence[Split],
    vals: Sequence[Split],
    *,
    seeds: Sequence[int],
    masks: Sequence[Mask] | None = None,
    stacked: bool = False,
    checkpoint: Path | None = None,
    deadline: float = math.inf,
    on_epoch: Callable[[dict], bool | None] | None = None,
    progress: bool = False,
) -> list[Fit]:
    """Train `models` (their networks in `model.net`) side by side, in place; they end with the last epoch's weights.
    Returns a `Fit` for each. Warns of the first epoch that shows catastrophic overfitting.

    Args:
        trains, vals: the images of each model, on its device; of equal numbers.
        seeds: of each model: of the order of its images and the random starts; the same seed on the same CPU
            repeats the result, on a GPU only under `torch.use_deterministic_algorithms`.
        masks: of each model: keeps its pruned weights at zero from before the first step to after the last.
        stacked: train them as one (`dwlth.fast.stack`), which rounds otherwise; needed for more than one model.
        checkpoint: a file of the caller's, for this training alone. Where it exists, training goes on from it, in the
            middle of an epoch too; it is written every `CHECKPOINT_SECONDS` and at the deadline. The caller deletes it
            when all is safe.
        deadline: a `time.time()`, at which the step under way is the last.
        on_epoch: called with each new row of the first model's history; returns True to stop there, as at the
            deadline.
        progress: show a bar over the epochs.

    Raises:
        OutOfTime: at the deadline, or when `on_epoch` says so.
        DwlthError: where the processes of a team cannot share the parts of a batch, or a stack has any; where a batch
            leaves so few images that batch norm refuses them; where networks side by side have not as many images;
            where the checkpoint is of a training that began with other weights.
    """
    model, mask = models[0], masks[0] if masks else None
    check("recipe: parts", recipe.parts, not stacked or recipe.parts == 1, "1 to networks side by side")
    if stacked:
        for name, splits in (("training", trains), ("validation", vals)):
            sizes = [len(split) for split in splits]
            check(f"{name} images of networks side by side", sizes, len({*sizes}) == 1, "each as many")
        model, mask, trains, vals, seeds = join(models, masks, trains, vals, seeds)
    keep_masked = mask.apply_(model.net) if mask else None
    parameters = list(model.parameters())
    groups: list = parameters
    if not recipe.decay_norms:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    optimizer = torch.optim.SGD(
        groups,
        recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=parameters[0].is_cuda,  # on a CPU it rounds the last few numbers of a tensor differently
    )
    if keep_masked:
        optimizer.register_step_post_hook(lambda *_: keep_masked())
    fits, within = [Fit() for _ in seeds], {}
    start = fingerprint(model.net.state_dict()) if checkpoint else ""
    if checkpoint and team.current.says(checkpoint.exists()):
        state = read_checkpoint(checkpoint, start)
        model.net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        fits, within = [Fit(**member) for member in state["fits"]], state.get("within", {})
        _check_device(checkpoint, within, trains[0].labels.device)
    saved = time.monotonic()

    def pause(stop: bool = False, **within) -> None:
        """After an epoch, or after a step, with how far `within` the epoch that is: save where it is time to; end at
        the deadline."""
        nonlocal saved
        out_of_time = team.current.says(bool(stop) or STOP.is_set() or time.time() > deadline)
        if checkpoint and (out_of_time or time.monotonic() - saved > CHECKPOINT_SECONDS):
            parts = {"net": model.net.state_dict(), "optimizer": optimizer.state_dict(), "fits": [*map(vars, fits)]}
            parts["within"] = within and within | {"seconds": time.monotonic() - began}
            write_state(checkpoint, parts | {"start": start})
            saved = time.monotonic()
        if out_of_time:
            raise OutOfTime

    done = len(fits[0].history)
    bar = tqdm(range(done, recipe.epochs), "epochs", recipe.epochs, leave=False, disable=not progress, initial=done)
    for epoch in bar:
        began = time.monotonic() - within.get("seconds", 0.0)
        rows = _train_epoch(model, recipe, trains, optimizer, epoch, seeds, within, pause)
        within = {}
        if recipe.validates(epoch):
            for result, row, one, val, seed in zip(fits, rows, model.alone(), vals, seeds):
                _validate(one, recipe, val, row, stream(seed, "validate", epoch))
                _keep_best(result.best, row, one.net.state_dict(), recipe)
        for result, row in zip(fits, rows):
            row["seconds"] = time.monotonic() - began
            if row["overfits"] and not any(earlier["overfits"] for earlier in result.history):
                warnings.warn(
                    f"catastrophic overfitting in epoch {epoch}: validation RA is {row['val_fgsm']:.1%} under the "
                    f"training's single step and {row['val_ra']:.1%} under PGD-{recipe.validation.steps}",
                    stacklevel=2,
                )
            if not math.isfinite(row["loss"]) and not result.error:
                result.error = f"the loss became {row['loss']} in epoch {epoch} (lr {row['lr']:g})"
            result.history.append(row)
        first = rows[0]
        bar.set_postfix({key: f"{first[key]:.3f}" for key in ("loss", "val_sa", "val_ra") if first[key] is not None})
        stop = on_epoch(first) if on_epoch else False
        if epoch + 1 == recipe.epochs or all(result.error for result in fits):
            break
        pause(stop)
    if stacked:
        for own, trained in zip(models, model.alone()):
            own.load_state_dict(trained.state_dict())
    return fits[: len(models)]


def read_checkpoint(path: Path, start: str = "") -> dict:
    """The state of a training under way: `net`, `optimizer`, `fits`, the fields of each member's `Fit`, `within`, how
    far the epoch under way is (empty after an epoch), and `start`, the fingerprint of the weights that the training
    began with. Older checkpoints lack the last two.

    Raises:
        DwlthError: for a file that is no such checkpoint, is damaged, or began with others than a given `start`.
    """
    state = read_state(path)
    if not isinstance(state, dict) or state.keys() - {"within", "start"} != {"net", "optimizer", "fits"}:
        raise DwlthError(f"{path}: not the checkpoint of a training of this project")
    if start and (found := state.get("start", start)) != start:
        what = f"a training under way that began with the weights {found}, but these are {start}"
        raise DwlthError(f"{path}: {what}: bring those back, or delete the file, and the training begins anew")
    return state


def _check_device(path: Path, within: dict, device: torch.device) -> None:
    """Raise `DwlthError` where an epoch was begun with generators of another kind of device, whose states differ."""
    drawn = [state for state in within.get("draws", ()) if state is not None]
    if drawn and len(drawn[0]) != len(torch.Generator(device).get_state()):
        own = "an epoch begun on another kind of device than this one"
        raise DwlthError(f"{path}: holds {own}, {device.type}: go on there (--device), or delete the file")


def _train_epoch(
    model: Classifier,
    recipe: Recipe,
    trains: Sequence[Split],
    optimizer: torch.optim.Optimizer,
    epoch: int,
    seeds: Sequence[int],
    within: dict,
    pause: Callable[..., None],
) -> list[dict]:
    """One epoch, or what is left of it `within` which an earlier call ended; a row of the history for each member, not
    validated yet. `pause` is called after each step, with how far the epoch is."""
    device, members, images = trains[0].labels.device, model.members, len(trains[0])
    generators = [torch.Generator(device).manual_seed(stream(seed, "train", epoch)) for seed in seeds]
    at = within or {"step": 0, "draws": [None] * members, "sums": torch.zeros(2, members)}
    sums = at["sums"].to(device)  # read once, at the end: a GPU is not kept waiting
    model.train()
    batches = math.ceil(images / recipe.batch_size)
    for i, (x, y) in enumerate(_batches(recipe, trains, generators, at["step"], at["draws"]), at["step"]):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch, i / batches)
        count = min(recipe.batch_size, images - i * recipe.batch_size)
        sums += _step(model, recipe, optimizer, _parts(recipe, x, y, count, generators), count)
        pause(step=i + 1, draws=[each.get_state() for each in generators], sums=sums)
    head = {"epoch": epoch, "lr": recipe.lr_at(epoch)}
    tail = {"val_sa": None, "val_ra": None, "val_fgsm": None, "overfits": False}
    return [head | {"loss": loss, "accuracy": right} | tail for loss, right in (sums / images).T.tolist()]


def _step(model: Classifier, recipe: Recipe, optimizer: torch.optim.SGD, parts: Sequence, count: int) -> Tensor:
    """One step on a batch of `count` images a member, of which this process has `parts`. Returns what each member has
    in the whole batch: the sum of its losses, and how many images are classified right ([2, members])."""
    sums = torch.zeros(2, model.members, device=model.mean.device)
    optimizer.zero_grad()
    for first, x, y, starts in reversed(parts):  # the first part comes last, so its running statistics stay
        with nullcontext() if first else frozen(model):
            try:
                with precision_of(recipe.precision, x.device):  # once for a part, which so casts the weights once
                    x = recipe.attack(model, x, y, starts=starts)
                    logits = model(x)
            except DwlthError:
                raise
            except ValueError as error:  # batch norm's: one image of one pixel has no variance
                what = f"recipe: batch_size is {recipe.batch_size}, which leaves a batch of {len(y) // model.members}"
                raise DwlthError(f"{what}: this network refuses it ({error}): give another batch_size") from None
            losses = F.cross_entropy(logits.float(), y, reduction="none").view(-1, model.members)
            with precision_of(recipe.precision, x.device), torch.autocast(x.device.type, enabled=False):
                (losses.sum() / count).backward()  # its convolutions read a GPU's flags too
        right = (logits.argmax(1) == y).view(-1, model.members)
        lost = losses.detach().T.contiguous().sum(1)  # in an order that the number of members does not change
        sums += torch.stack([lost, right.sum(0)])
    team.exchange(model.net, sums)
    optimizer.step()
    return sums


def _parts(
    recipe: Recipe, x: Tensor, y: Tensor, count: int, generators: Sequence[torch.Generator]
) -> list[tuple[bool, Tensor, Tensor, list[Tensor]]]:
    """This process's parts of a batch of `count` images a member, of which `x` and `y` hold its own: whether a part is
    the first of the batch, its images, their labels and the attack's random starts. The starts are drawn for the whole
    batch, so that every number of processes trains on the same."""
    parts, members = team.own(count, recipe.parts), len(generators)
    starts = recipe.attack.starts(x if team.current.size == 1 else x.new_empty(count, *x.shape[1:]), generators)
    starts = [start[parts[0].start * members : parts[-1].stop * members] for start in starts]
    pieces = zip(*(tensor.split([len(part) * members for part in parts]) for tensor in (x, y, *starts)))
    return [(part.start == 0, x, y, starts) for part, (x, y, *starts) in zip(parts, pieces) if len(y)]


def _batches(
    recipe: Recipe, trains: Sequence[Split], generators: Sequence[torch.Generator], first: int, states: Sequence
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's rows of the batches of all members, from batch `first` on: row n * members + m is image n of
    member m."""

    def rows(count: int) -> slice:
        parts = team.own(count, recipe.parts)
        return slice(parts[0].start, parts[-1].stop)

    streams = [
        train.batches(recipe.batch_size, generator, recipe.augment, first=first, state=state, rows=rows)
        for train, generator, state in zip(trains, generators, states)
    ]
    if len(streams) == 1:
        yield from streams[0]
        return
    for parts in zip(*streams):
        x, y = (torch.stack(part, 1).flatten(0, 1) for part in zip(*parts))
        yield x, y


def _validate(model: Classifier, recipe: Recipe, val: Split, row: dict, seed: int) -> None:
    """Fill in the validation of a row."""
    row["val_sa"], row["val_ra"] = evaluate(model, val, recipe.validation, seed, **recipe.measuring)
    if recipe.single_step.steps:
        row["val_fgsm"] = evaluate(model, val, recipe.single_step, seed, **recipe.measuring)[1]
        row["overfits"] = catastrophic_overfitting(row)


def _keep_best(best: dict[str, dict], row: dict, state: dict[str, Tensor], recipe: Recipe) -> None:
    kept = {key: row[key] for key in ("epoch", "val_sa", "val_ra")} | {"state": state}
    for metric in ("sa", "ra"):
        value = row[f"val_{metric}"]
        if value is not None and (metric not in best or value > best[metric][f"val_{metric}"]):
            best[metric] = kept
    if recipe.keep == "sound" and not row["overfits"]:
        best["sound"] = kept
