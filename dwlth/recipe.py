"""How a network is trained, or where a trained one comes from."""

import math
from dataclasses import dataclass, replace

from dwlth.attacks import Attack
from dwlth.data.augment import Augment
from dwlth.errors import DwlthError, check
from dwlth.runs import later


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, a learning rate per epoch, and the attack that makes the training images.

    With `attack.steps == 0` training is standard; otherwise adversarial, on the attacked images alone.
    """

    epochs: int
    batch_size: int
    lr: float
    schedule: str = "constant"
    """`constant`; `step`: a tenth after each milestone; `cosine`: down to 0 over the epochs; `onecycle`: step by step
    straight up from 0 to `lr` over the first `warm_up` of all steps, and straight down to 0 over the rest."""
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
    precision: str = "float32"
    """Of convolutions and products, in training, validation and test: `float32`; `tf32`; or `bfloat16`, where weights,
    batch norm statistics, losses and steps stay float32, and which is float32 on hardware without bfloat16 units (the
    column `precision` of the table says what was used)."""
    exact_ra: bool = False
    """RA as the reference code has it; see `dwlth.evaluation.evaluate`."""
    warm_up: float = later(0.0)
    """Fraction of all steps over which `onecycle` rises."""
    nesterov: bool = later(False)
    """Nesterov's momentum instead of the plain one."""
    decay_norms: bool = later(True)
    """Weight decay on batch norm and biases too, as in the reference code; otherwise on weights of layers alone."""
    keep: str = later("last")
    """The weights that a pre-training ends with: `last`: those of the last epoch; `sound`: of the last validated epoch
    that shows no catastrophic overfitting."""
    parts: int = later(1)
    """Parts of a batch, each with batch-norm statistics of its own, as so many GPUs have them under
    DistributedDataParallel; the gradient is that of the whole batch's mean loss, and the running statistics are those
    of the first part (DDP saves rank 0's). One process goes through the parts one after the other, in the memory of
    one; processes of a number that divides it share them; the result is the same, to rounding."""

    def __post_init__(self):
        choices = {
            "precision": ("float32", "tf32", "bfloat16"),
            "schedule": ("constant", "step", "cosine", "onecycle"),
            "keep": ("last", "sound"),
        }
        counts = ("epochs", "batch_size", "validate_every", "parts")
        momentum = 0 <= self.momentum < 1 and (self.momentum or not self.nesterov)
        warm_up = 0 <= self.warm_up < 1 and (not self.warm_up or self.schedule == "onecycle")
        right = {
            **{name: (getattr(self, name) >= 1, "1 or more") for name in counts},
            **{name: (getattr(self, name) in words, f"one of {', '.join(words)}") for name, words in choices.items()},
            "momentum": (momentum, "0 or more (nesterov: above 0) and less than 1"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "lr": (self.lr > 0, "a number above 0"),
            "warm_up": (warm_up, "0, or for the schedule onecycle a number between 0 and 1"),
        }
        for name, (fine, what) in right.items():
            check(f"recipe: {name}", getattr(self, name), fine, what)
        check("recipe: bn of the validation", self.validation.bn, self.validation.bn == "eval", "eval")
        if self.attack.targeted or self.validation.targeted:
            raise DwlthError(
                "recipe: a targeted attack takes targets, but training and validation give the true labels"
            )
        if self.keep == "sound" and not self.single_step.steps:
            raise DwlthError(
                "recipe: keep='sound' watches FGSM training, with a validation attack of several steps in the same ball"
            )

    def lr_at(self, epoch: int, part: float = 0.0) -> float:
        """The learning rate in an epoch (counted from 0), of which so much (in [0, 1)) is done; only `onecycle` changes
        within an epoch."""
        if self.schedule == "onecycle":
            done = (epoch + part) / self.epochs
            return self.lr * (done / self.warm_up if done < self.warm_up else (1 - done) / (1 - self.warm_up))
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
    def measuring(self) -> dict:
        """How networks trained so are measured: `evaluate(model, split, attack, seed, **recipe.measuring)`."""
        return {"augment": self.augment, "precision": self.precision, "exact": self.exact_ra}

    @property
    def single_step(self) -> Attack:
        """The training attack as one of validation, where it is the single step beside a validation attack of several
        in the same ball (FGSM training); otherwise none."""
        ball, own = (self.validation.eps, self.validation.norm), (self.attack.eps, self.attack.norm)
        fgsm = self.attack.steps == 1 < self.validation.steps and own == ball
        return replace(self.attack, bn="eval") if fgsm else Attack()


@dataclass(frozen=True)
class Given:
    """A source that is not trained here: a checkpoint, as `dwlth.outside.checkpoints` reads it."""

    where: str
    """A path (at its start, `data/` is the folder of the datasets), a URL, `hf:OWNER/REPO/FILE` or
    `torchvision:WEIGHTS`; see `dwlth.outside.downloads.fetch`."""
    sha256: str = ""
    """What the file must hash to; empty: not checked."""
    size: int = 0
    """Its bytes; 0: not checked."""
    unsafe: bool = False
    """Unpickle it in full where it holds more than tensors, which can run code."""
