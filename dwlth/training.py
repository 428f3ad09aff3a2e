"""The one training loop: pre-training, the rounds of IMP and transfer, standard and adversarial, all run here."""

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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

CHECKPOINT_SECONDS = 60.0
"""A training that is killed loses at most this much work, plus one epoch (our choice)."""


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, a learning rate per epoch, and the attack that makes the training images.

    With `attack.steps == 0` training is standard; otherwise adversarial, on the attacked images alone.
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str = "constant"
    """`constant`; `step`: a tenth after each milestone; `cosine`: down to 0 over the epochs."""
    milestones: tuple[int, ...] = ()
    """Epochs (counted from 0) that start with a tenth of the learning rate before them."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Augment = Augment()
    """What the network sees of an image: random views in training, fixed ones in validation and test."""
    attack: Attack = Attack()
    validation: Attack = Attack()
    """The attack of the validation RA; none (the default) validates SA only."""
    validate_every: int = 1
    """Validate after every so many epochs, and after the last one."""
    validate_from: int = 0
    """The first epoch (counted from 0) that may be validated; the reference code's adversarial transfer has 45."""

    def __post_init__(self):
        for name in ("epochs", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise DwlthError(f"recipe: {name} is {getattr(self, name)}, not 1 or more")
        if self.attack.targeted or self.validation.targeted:
            raise DwlthError(
                "recipe: a targeted attack takes targets, but training and validation give the true labels"
            )
        if not self.lr > 0:
            raise DwlthError(f"recipe: lr is {self.lr}, not above 0")
        if self.schedule not in ("constant", "step", "cosine"):
            raise DwlthError(f"recipe: schedule is {self.schedule!r}, not one of constant, step, cosine")

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch (counted from 0)."""
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr

    def validates(self, epoch: int) -> bool:
        """Whether the network is validated after this epoch (counted from 0)."""
        due = epoch >= self.validate_from and (epoch + 1) % self.validate_every == 0
        return due or epoch + 1 == self.epochs

    @property
    def single_step(self) -> Attack:
        """The training attack as one of validation, where it is the single step beside a validation attack of several
        in the same ball (FGSM training); otherwise none."""
        ball, own = (self.validation.eps, self.validation.norm), (self.attack.eps, self.attack.norm)
        fgsm = self.attack.steps == 1 < self.validation.steps and own == ball
        return replace(self.attack, bn="eval") if fgsm else Attack()


@dataclass
class Fit:
    """What a training leaves behind, beside the trained model itself.

    `history` has a row per epoch: `epoch` (from 0), `lr`, `loss` and `accuracy` on the (attacked) training images,
    `val_sa`, `val_ra` and, in FGSM training, `val_fgsm` (RA under `Recipe.single_step`) in [0, 1], None where not
    measured, `overfits` (`catastrophic_overfitting` of the row), and `seconds`. `best` has, for `sa` and `ra`, the
    state dict of the network with the best validation value, its epoch and its row's `val_sa` and `val_ra`; the
    earliest wins.
    """

    history: list[dict] = field(default_factory=list)
    best: dict[str, dict] = field(default_factory=dict)


class OutOfTime(Exception):
    """The deadline came before the training ended; its checkpoint is on disk, and the next call goes on from there."""


class TrainingFailed(Exception):
    """The loss stopped being a finite number."""


def stream(seed: int, *names: object) -> int:
    """A seed of its own (63 bits) for each use of randomness, so that a resumed run needs no generator state."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def evaluate(
    model: nn.Module, split: Split, attack: Attack, seed: int, augment: Augment | None = None, batch_size: int = 512
) -> tuple[float, float | None]:
    """SA and RA of `model` on `split`, each the fraction in [0, 1] of images classified right: as they are, and
    under `attack` (None where the attack has no steps). The model is in eval mode meanwhile, and its mode is put
    back; the seed draws the attack's random starts."""
    mode = model.training
    folded = _folded(model.eval())
    device = split.labels.device
    generator = torch.Generator(device).manual_seed(stream(seed, "evaluate"))
    counts = torch.zeros(2, device=device)
    with torch.no_grad():
        for x, y in split.batches(batch_size, augment=augment):
            counts[0] += (folded(x).argmax(1) == y).sum()
            if attack.steps:
                counts[1] += (folded(attack(folded, x, y, generator)).argmax(1) == y).sum()
    model.train(mode)
    sa, ra = (counts / len(split)).tolist()
    return sa, ra if attack.steps else None


def _folded(model: nn.Module) -> nn.Module:
    """A copy, in eval mode, with each batch norm folded into the convolution registered before it: the same function
    for ResNets, faster. (torch.fx would find the pairs in any network, but while it traces one it patches all networks
    of the process, also those that other threads train.)"""
    model = copy.deepcopy(model)
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


def fit(
    model: nn.Module,
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
) -> Fit:
    """Train `model` (its network in `model.net`) in place; it ends with the last epoch's weights. Warns of the first
    epoch that shows catastrophic overfitting.

    Args:
        train, val: on the model's device.
        seed: of the order of images and the random starts; the same seed on the same device repeats the result.
        mask: keeps its pruned weights at zero from before the first step to after the last.
        checkpoint: a file of the caller's, for this training alone. Where it exists, training goes on from it;
            it is written every `CHECKPOINT_SECONDS` and at the deadline. The caller deletes it when all is safe.
        deadline: a `time.time()` after which no epoch is begun that would end later.
        on_epoch: called with each new row of the history; returns True to stop there, as at the deadline.
        progress: show a bar over the epochs.

    Raises:
        TrainingFailed: when the mean loss of an epoch is not finite.
        OutOfTime: at the deadline, or when `on_epoch` says so.
    """
    keep_masked = mask.apply_(model.net) if mask else None
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    if keep_masked:
        optimizer.register_step_post_hook(lambda *_: keep_masked())
    result = Fit()
    if checkpoint and checkpoint.exists():
        state = read_checkpoint(checkpoint)
        model.net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        result = Fit(state["history"], state["best"])

    def save() -> None:
        parts = {"net": model.net.state_dict(), "optimizer": optimizer.state_dict(), **vars(result)}
        write(checkpoint, lambda path: torch.save(parts, path))

    saved = time.time()
    epochs = range(len(result.history), recipe.epochs)
    bar = tqdm(epochs, "epochs", recipe.epochs, leave=False, disable=not progress, initial=len(result.history))
    for epoch in bar:
        began = time.time()
        row = _train_epoch(model, recipe, train, optimizer, epoch, seed)
        if recipe.validates(epoch):
            draws = stream(seed, "validate", epoch)
            row["val_sa"], row["val_ra"] = evaluate(model, val, recipe.validation, draws, recipe.augment)
            if recipe.single_step.steps:
                row["val_fgsm"] = evaluate(model, val, recipe.single_step, draws, recipe.augment)[1]
                row["overfits"] = catastrophic_overfitting(row)
                if row["overfits"] and not any(earlier["overfits"] for earlier in result.history):
                    warnings.warn(
                        f"catastrophic overfitting in epoch {epoch}: validation RA is {row['val_fgsm']:.1%} under the "
                        f"training's single step and {row['val_ra']:.1%} under PGD-{recipe.validation.steps}",
                        stacklevel=2,
                    )
            _keep_best(result.best, row, model.net)
        row["seconds"] = time.time() - began
        result.history.append(row)
        bar.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "val_sa", "val_ra") if row[key] is not None})
        stop = on_epoch(row) if on_epoch else False
        if epoch + 1 == recipe.epochs:
            break
        now = time.time()
        out_of_time = stop or now + row["seconds"] > deadline
        if checkpoint and (out_of_time or now - saved > CHECKPOINT_SECONDS):
            save()
            saved = now
        if out_of_time:
            raise OutOfTime
    return result


def read_checkpoint(path: Path) -> dict:
    """The state of a training under way: `net`, `optimizer`, and the `history` and `best` of its `Fit`.

    Raises:
        DwlthError: if the file is no such checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        why = str(error).partition("\n")[0] or type(error).__name__
        raise DwlthError(f"{path}: not a checkpoint (truncated or foreign): {why}") from None
    if not isinstance(state, dict) or state.keys() != {"net", "optimizer", "history", "best"}:
        raise DwlthError(f"{path}: not the checkpoint of a training of this project")
    return state


def _train_epoch(model: nn.Module, recipe: Recipe, train: Split, optimizer, epoch: int, seed: int) -> dict:
    device = train.labels.device
    generator = torch.Generator(device).manual_seed(stream(seed, "train", epoch))
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(epoch)
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    model.train()
    for x, y in train.batches(recipe.batch_size, generator, recipe.augment):
        x = recipe.attack(model, x, y, generator)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(y)
        correct += (logits.argmax(1) == y).sum()
    loss, accuracy = (torch.stack([loss_sum, correct]) / len(train)).tolist()
    if not math.isfinite(loss):
        raise TrainingFailed(f"the loss became {loss} in epoch {epoch} (lr {recipe.lr_at(epoch):g})")
    row = {"epoch": epoch, "lr": recipe.lr_at(epoch), "loss": loss, "accuracy": accuracy}
    return row | {"val_sa": None, "val_ra": None, "val_fgsm": None, "overfits": False}


def _keep_best(best: dict[str, dict], row: dict, net: nn.Module) -> None:
    for metric in ("sa", "ra"):
        value = row[f"val_{metric}"]
        if value is not None and (metric not in best or value > best[metric][f"val_{metric}"]):
            kept: dict[str, Tensor] = copy.deepcopy(net.state_dict())
            best[metric] = {key: row[key] for key in ("epoch", "val_sa", "val_ra")} | {"state": kept}
