"""The one training loop: pre-training, the rounds of IMP and transfer, standard and adversarial, all run here."""

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from dwlth.attacks import Attack
from dwlth.augment import Augment
from dwlth.data import Split
from dwlth.errors import DwlthError
from dwlth.files import write
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.recipe import Recipe

CHECKPOINT_SECONDS = 60.0
"""A training that is killed loses at most this much work, plus one epoch (our choice)."""


@dataclass
class Fit:
    """What a training leaves behind, beside the trained model itself.

    `history` has a row per epoch: `epoch` (from 0), `lr`, `loss` and `accuracy` on the (attacked) training images,
    `val_sa`, `val_ra` and, in FGSM training, `val_fgsm` (RA under `Recipe.single_step`) in [0, 1], None where not
    measured, `overfits` (`catastrophic_overfitting` of the row), and `seconds`. `best` has, for `sa` and `ra`, the
    state dict of the network with the best validation value, its epoch and its row's `val_sa` and `val_ra`; the
    earliest wins. With `Recipe.keep="sound"` it has for `sound` those of the last one without catastrophic overfitting.
    `error` says where the loss stopped being a finite number, and is empty where all went well.
    """

    history: list[dict] = field(default_factory=list)
    best: dict[str, dict] = field(default_factory=dict)
    error: str = ""


class OutOfTime(Exception):
    """The deadline came before the training ended; its checkpoint is on disk, and the next call goes on from there."""


class TrainingFailed(Exception):
    """The loss stopped being a finite number."""


def stream(seed: int, *names: object) -> int:
    """A seed of its own (63 bits) for each use of randomness, so that a resumed run needs no generator state."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def available_precision(wanted: str, device: str | torch.device) -> str:
    """The precision that is used where `wanted` is asked for: float32 for bfloat16 where the device has no units for
    it, and for tf32 on a CPU."""
    if torch.device(device).type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        wanted = wanted.replace("tf32", "float32")
    return wanted if has_bf16 or wanted != "bfloat16" else "float32"


@contextmanager
def _precision(name: str, device: torch.device):
    """Convolutions and products in this precision; on a GPU by its fastest algorithms, or its deterministic ones where
    torch.use_deterministic_algorithms says so."""
    name = available_precision(name, device)
    matmul, tf32 = torch.backends.cuda.matmul, name == "tf32"
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    flags = dict(enabled=True, benchmark=not deterministic, deterministic=deterministic, allow_tf32=tf32)
    try:
        with (
            torch.backends.cudnn.flags(**flags),
            torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"),
        ):
            yield
    finally:
        matmul.allow_tf32 = before


def evaluate(
    model: Classifier,
    split: Split,
    attack: Attack,
    seed: int,
    augment: Augment | None = None,
    batch_size: int = 512,
    precision: str = "float32",
    exact: bool = False,
) -> tuple[float, float | None]:
    """SA and RA of `model` on `split`, each a fraction in [0, 1] of the images: SA of those classified right as they
    are, RA of those classified right as they are, at the start of `attack` and after each of its steps (None where it
    has none), so that an image once misclassified is attacked no further. The model is looked at in eval mode, and left
    as it is; the seed draws the attack's random starts.

    Args:
        exact: attack every image to the end, and let RA be the fraction classified right there, as in the reference
            code: that also counts images which the attack, or its last steps, turn from wrong to right.
        precision: see `Recipe.precision`.
    """
    folded, device, ra = _folded(model), split.labels.device, None
    with torch.no_grad(), _precision(precision, device):
        batches = split.batches(batch_size, augment=augment)
        right = torch.cat([folded(x).argmax(1) == y for x, y in batches])
        sa = (right.sum() / len(right)).item()
        if attack.steps:
            attacked = split if exact else split.take(right.nonzero().flatten().tolist())  # again in full batches
            generator = torch.Generator(device).manual_seed(stream(seed, "evaluate"))
            robust = 0
            for x, y in attacked.batches(batch_size, augment=augment):
                if exact:
                    robust += int((folded(attack(folded, x, y, generator)).argmax(1) == y).sum())
                else:
                    robust += attack.survivors(folded, x, y, generator)
            ra = robust / len(split)
    return sa, ra


def _folded(model: nn.Module) -> nn.Module:
    """A copy, in eval mode, with each batch norm folded into the convolution registered before it: the same function
    for ResNets, faster. (torch.fx would find the pairs in any network, but while it traces one it patches all networks
    of the process, also those that other threads train.)"""
    model = copy.deepcopy(model).eval()
    modules = list(model.named_modules())
    for (name, conv), (after, norm) in zip(modules, modules[1:]):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            model.set_submodule(name, fuse_conv_bn_eval(conv, norm))
            model.set_submodule(after, nn.Identity())
    return model


def catastrophic_overfitting(row: dict) -> bool:
    """Whether a row of the history shows a network that withstands the single step it was trained on, but not several
    (Wong et al., 2020): RA under the single step is at least 30 % and at least half of SA, and RA under PGD is at most
    a tenth of it. The thresholds are our choice; False where not all three were measured."""
    sa, fgsm, pgd = row["val_sa"], row["val_fgsm"], row["val_ra"]
    return None not in (sa, fgsm, pgd) and fgsm >= max(0.3, 0.5 * sa) and pgd <= 0.1 * fgsm


def fit(model: Classifier, recipe: Recipe, train: Split, val: Split, **options) -> Fit:
    """`fit_members` for a single network.

    Raises:
        TrainingFailed: when the mean loss of an epoch is not finite.
    """
    result = fit_members(model, recipe, train, val, **options)[0]
    if result.error:
        raise TrainingFailed(result.error)
    return result


def fit_members(
    model: Classifier,
    recipe: Recipe,
    train: Split,
    val: Split,
    *,
    seed: int,
    mask: Mask | None = None,
    checkpoint: Path | None = None,
    deadline: float = math.inf,
    on_epoch: Callable[[dict], bool | None] | None = None,
    progress: bool = False,
) -> list[Fit]:
    """Train `model` (its network in `model.net`), or all members of a `dwlth.models.Stack` on the same batches, in
    place; it ends with the last epoch's weights. Returns a `Fit` for each member. Warns of the first epoch that shows
    catastrophic overfitting.

    Args:
        train, val: on the model's device.
        seed: of the order of images and the random starts; the same seed on the same device repeats the result.
        mask: keeps its pruned weights at zero from before the first step to after the last.
        checkpoint: a file of the caller's, for this training alone. Where it exists, training goes on from it;
            it is written every `CHECKPOINT_SECONDS` and at the deadline. The caller deletes it when all is safe.
        deadline: a `time.time()` after which no epoch is begun that would end later.
        on_epoch: called with each new row of the (first member's) history; returns True to stop there, as at the
            deadline.
        progress: show a bar over the epochs.

    Raises:
        OutOfTime: at the deadline, or when `on_epoch` says so.
    """
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
    fits = [Fit() for _ in range(model.members)]
    if checkpoint and checkpoint.exists():
        state = read_checkpoint(checkpoint)
        model.net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        fits = [Fit(**member) for member in state["fits"]]

    def save() -> None:
        parts = {"net": model.net.state_dict(), "optimizer": optimizer.state_dict(), "fits": [*map(vars, fits)]}
        write(checkpoint, lambda path: torch.save(parts, path))

    saved = time.time()
    done = len(fits[0].history)
    bar = tqdm(range(done, recipe.epochs), "epochs", recipe.epochs, leave=False, disable=not progress, initial=done)
    for epoch in bar:
        began = time.time()
        rows = _train_epoch(model, recipe, train, optimizer, epoch, seed)
        if recipe.validates(epoch):
            for result, row, one in zip(fits, rows, model.alone()):
                _validate(one, recipe, val, row, stream(seed, "validate", epoch))
                _keep_best(result.best, row, one.net.state_dict(), recipe)
        for result, row in zip(fits, rows):
            row["seconds"] = time.time() - began
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
        now = time.time()
        out_of_time = stop or now + first["seconds"] > deadline
        if checkpoint and (out_of_time or now - saved > CHECKPOINT_SECONDS):
            save()
            saved = now
        if out_of_time:
            raise OutOfTime
    return fits


def read_checkpoint(path: Path) -> dict:
    """The state of a training under way: `net`, `optimizer`, and `fits`, the fields of each member's `Fit`.

    Raises:
        DwlthError: if the file is no such checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        why = str(error).partition("\n")[0] or type(error).__name__
        raise DwlthError(f"{path}: not a checkpoint (truncated or foreign): {why}") from None
    if not isinstance(state, dict) or state.keys() != {"net", "optimizer", "fits"}:
        raise DwlthError(f"{path}: not the checkpoint of a training of this project")
    return state


def _train_epoch(
    model: Classifier,
    recipe: Recipe,
    train: Split,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    seed: int,
) -> list[dict]:
    """One epoch; a row of the history for each member, not validated yet."""
    device, members = train.labels.device, model.members
    generator = torch.Generator(device).manual_seed(stream(seed, "train", epoch))
    sums = torch.zeros(2, members, device=device)  # read once, at the end: a GPU is not kept waiting

    model.train()
    batches = math.ceil(len(train) / recipe.batch_size)
    for i, (x, y) in enumerate(train.batches(recipe.batch_size, generator, recipe.augment)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch, i / batches)
        x, y = x.repeat_interleave(members, 0), y.repeat_interleave(members)
        with _precision(recipe.precision, device):  # once for a step, which so casts its weights once
            x = recipe.attack(model, x, y, generator, members)
            logits = model(x)
        losses = F.cross_entropy(logits.float(), y, reduction="none").view(-1, members)
        optimizer.zero_grad()
        losses.mean(0).sum().backward()
        optimizer.step()
        right = (logits.argmax(1) == y).view(-1, members)
        sums += torch.stack([losses.detach().sum(0), right.sum(0)])
    head = {"epoch": epoch, "lr": recipe.lr_at(epoch)}
    tail = {"val_sa": None, "val_ra": None, "val_fgsm": None, "overfits": False}
    return [head | {"loss": loss, "accuracy": right} | tail for loss, right in (sums / len(train)).T.tolist()]


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
