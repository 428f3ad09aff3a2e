"""Every number of an experiment: presets, the runs they ask for, and what identifies a run."""

import ast
import dataclasses
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dwlth.attacks import Attack
from dwlth.augment import Augment
from dwlth.errors import DwlthError
from dwlth.ids import digest, later, plain
from dwlth.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

SOURCES = ("standard", "fast_adversarial", "adversarial")
STAGES = ("pretrain", "imp", "transfer", "autoattack")
METHODS = ("imp", "oneshot", "random")


@dataclass(frozen=True)
class Run:
    """One unit of work, and one record.

    `pretrain` trains a source. `imp` trains ticket `round` of a source on the pre-training task, measures it, and
    prunes it to ticket `round + 1`; round 0 is the dense source itself, pruned as it is. `transfer` trains ticket
    `round` on a downstream task; round 0 is the dense network. `autoattack` attacks the network of the transfer of
    the same name; no grid has these, see `Preset.under_autoattack`.
    """

    stage: str
    source: str
    seed: int
    round: int = 0
    method: str = "imp"
    downstream: str = ""
    regime: str = ""
    fraction: float = 1.0
    source_seed: int | None = later(None)
    """The seed of the source that it starts from; None: the run's own."""

    @property
    def from_seed(self) -> int:
        """The seed of the source."""
        return self.seed if self.source_seed is None else self.source_seed

    def needs(self) -> list["Run"]:
        """The runs whose files this one reads."""
        if self.stage == "pretrain":
            return []
        if self.stage == "autoattack":
            return [replace(self, stage="transfer")]
        source = Run("pretrain", self.source, self.from_seed)
        if self.method == "imp" and self.round > 0:
            return [source, Run("imp", self.source, self.from_seed, self.round - 1)]
        return [source]

    def __str__(self) -> str:
        words = [self.stage, self.source]
        if self.downstream:
            words += ["to", self.downstream, self.regime, f"{self.fraction:.0%}", self.method]
        if self.stage != "pretrain":
            words += [f"round {self.round}"]
        words += [f"seed {self.seed}"]
        if self.from_seed != self.seed:
            words += [f"of source {self.from_seed}"]
        return " ".join(words)


@dataclass(frozen=True)
class Given:
    """A source that is not trained here: a checkpoint, as `dwlth.checkpoints` reads it."""

    where: str
    """A path, a URL, `hf:OWNER/REPO/FILE` or `torchvision:WEIGHTS`; see `dwlth.downloads.fetch`."""
    sha256: str = ""
    """What the file must hash to; empty: not checked."""
    size: int = 0
    """Its bytes; 0: not checked."""
    unsafe: bool = False
    """Unpickle it in full where it holds more than tensors, which can run code; see `dwlth.checkpoints.read`."""


@dataclass(frozen=True)
class Preset:
    """An experiment: what is trained, how, and how much of it."""

    name: str
    network: str
    """A name in `dwlth.models.NETWORKS`."""
    upstream: str
    """The dataset of the pre-training task, a name in `dwlth.data.DATASETS`."""
    pretrain: dict[str, Recipe | Given]
    """By source. RA on the pre-training task is measured under `evaluation` too."""
    imp: dict[str, Recipe]
    """By source: the training of one round of iterative magnitude pruning."""
    transfer: dict[str, Recipe]
    """By regime, `standard` and `adversarial`; `REGIME@TASK` takes its place for one downstream task."""
    evaluation: Attack
    """The attack behind every RA that is reported."""
    subset: str = "balanced"
    """How a fraction of the training images is chosen: `first`, `random` or `balanced`; see `dwlth.data.subset`."""
    allow_empty_classes: bool = False
    """Let a fraction leave classes without images (the paper's first 450 of CIFAR-100 do)."""
    prune_rate: float = 0.2
    """Fraction of the surviving weights that each round prunes (paper)."""
    half_sources: bool = False
    """Round the weights of trained sources to float16, on disk and in what starts from them: half the size to carry."""
    autoattack_images: int = 1000
    """AutoAttack, which takes long, is run on the first so many test images (our choice)."""
    order: str = later("given")
    """Of the images of CIFAR and SVHN: `given`: torchvision's (the paper's splits are its first 45,000 and last 5,000);
    `content`: by a hash of the pixels, the same for every way to store them; see `dwlth.data.load`."""
    per_source: int = later(1)
    """So many seeds of transfers start from one source (and its tickets): seeds 0 to per_source - 1 from that of seed
    0, and so on. The spread over the seeds of one source is that of the transfer alone."""

    # What follows says how much is run, and identifies no run: a grid can be widened and keeps what it has.
    downstream: tuple[str, ...] = ()
    rounds: tuple[int, ...] = (0,)
    """Tickets that are transferred; 0 is the dense network, and IMP goes on to the largest. The paper's last, 19, has
    a sparsity of 1 - 0.8^19 = 98.56 %."""
    fractions: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Parts of the downstream training data (paper)."""
    methods: tuple[str, ...] = ("imp",)
    seeds: int = 1
    """Seeds of transfers, from 0."""
    seeds_at: dict[float, int] = dataclasses.field(default_factory=dict)
    """Seeds of the transfers with a fraction of the data, where these have their own number."""
    keep_networks: bool = False
    """Keep the network that each transfer ends with."""
    together: int = 1
    """So many transfers train side by side (`dwlth.models.Stack`): for small networks, whose time is not arithmetic."""

    def __post_init__(self):
        if not 0 < self.prune_rate < 1:
            raise DwlthError(f"prune_rate is {self.prune_rate}: give a fraction above 0 and below 1")
        if self.evaluation.targeted:
            raise DwlthError("evaluation: a targeted attack takes targets, but tests give the true labels")
        for name in ("seeds", "together", "per_source"):
            if getattr(self, name) < 1:
                raise DwlthError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.order not in ("given", "content"):
            raise DwlthError(f"order is {self.order!r}, not one of given, content")
        for method in self.methods:
            if method not in METHODS:
                raise DwlthError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise DwlthError(f"fractions holds {fraction}: give numbers above 0 and at most 1")
        for round_ in self.rounds:
            if round_ < 0:
                raise DwlthError(f"rounds holds {round_}: give 0 (the dense network) or more")

    def source_of(self, seed: int) -> int | None:
        """The seed of the source that transfers with this seed start from, as `Run.source_seed` has it."""
        return None if seed // self.per_source == seed else seed // self.per_source

    def grid(self) -> list[Run]:
        """All runs, each after those it needs."""
        seeds_of = {fraction: range(self.seeds_at.get(fraction, self.seeds)) for fraction in self.fractions}
        source_seeds = sorted({seed // self.per_source for seeds in seeds_of.values() for seed in seeds})
        runs = [Run("pretrain", source, seed) for seed in source_seeds for source in self.pretrain]
        runs += [
            Run("imp", source, seed, round_)
            for round_ in range(max(self.rounds))
            for seed in source_seeds
            for source in self.pretrain
        ]
        runs += [
            Run("transfer", source, seed, round_, method, downstream, regime, fraction, self.source_of(seed))
            for method in self.methods
            for fraction in self.fractions
            for regime in ("adversarial", "standard")  # the long runs first
            for round_ in self.rounds
            for seed in seeds_of[fraction]
            for source in self.pretrain
            for downstream in self.downstream
            if method == "imp" or round_ > 0  # the dense network is the same for every method
        ]
        return runs

    def under_autoattack(self, found: "pd.DataFrame") -> list[Run]:
        """AutoAttack on the adversarially transferred dense network and sparsest double-win ticket of each row of a
        verdict (`dwlth.verdict.verdict`) with all the data, for each seed."""
        return [
            Run("autoattack", row.source, seed, round_, "imp", row.downstream, "adversarial", 1.0, self.source_of(seed))
            for row in found[found["fraction"] == 1].itertuples()
            for round_ in sorted({0, int(row.round)})
            for seed in range(self.seeds)
        ]

    def recipe(self, run: Run) -> Recipe | Given:
        """How the network of a run is trained, or where it is from."""
        if run.downstream:
            return self.transfer.get(f"{run.regime}@{run.downstream}", self.transfer[run.regime])
        return (self.pretrain if run.stage == "pretrain" else self.imp)[run.source]

    def config(self, run: Run) -> dict[str, Any]:
        """All that determines the result of a run, as plain JSON values."""
        config = plain(run) | {"network": self.network, "upstream": self.upstream}
        if self.order != "given":
            config["order"] = self.order
        config["pretrain"] = self.pretrain[run.source]
        config["half_sources"] = self.half_sources
        if run.stage == "imp" or run.round > 0:
            config["prune_rate"] = self.prune_rate
        if run.stage == "imp" or (run.round > 0 and run.method == "imp"):
            config["imp"] = self.imp[run.source]
        if run.downstream:
            config["transfer"] = self.recipe(run)
            config["subset"] = self.subset
        if run.stage == "autoattack":
            config["autoattack_images"] = self.autoattack_images
        config["evaluation"] = self.evaluation
        return plain(config)

    def run_id(self, run: Run) -> str:
        """12 hex digits: the hash of the whole configuration of the run."""
        return digest(self.config(run))

    def override(self, settings: list[str]) -> "Preset":
        """This preset with settings like `transfer.epochs=5` (every recipe of that stage), `imp.adversarial.lr=0.1`
        or `fractions=1.0,0.1`. Where a setting changes what a run is, the name gets a suffix, so that results of
        different settings lie in different folders.

        Raises:
            DwlthError: for a name that does not exist or a value of the wrong kind.
        """
        preset = self
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise DwlthError(f"--set {setting}: write it as name=value")
            preset = _set(preset, path.split("."), text, setting)
        if preset.identity() != self.identity():
            preset = replace(preset, name=f"{self.name}-{digest(preset.identity(), 6)}")
        return preset

    def identity(self) -> dict[str, Any]:
        """Every number but those that only say how much is run, as plain JSON values."""
        extent = (
            "name",
            "downstream",
            "rounds",
            "fractions",
            "methods",
            "seeds",
            "seeds_at",
            "keep_networks",
            "together",
        )
        return {key: value for key, value in plain(self).items() if key not in extent}


def _set(target: Any, path: list[str], text: str, setting: str) -> Any:
    """A copy of a dataclass, dict or value with what lies at `path` replaced by the value in `text`."""
    names = list(target) if isinstance(target, dict) else []
    if dataclasses.is_dataclass(target):
        names = [f.name for f in dataclasses.fields(target) if f.name != "name"]
    if not path:
        if names:
            raise DwlthError(f"--set {setting}: this is a group: go on with .{' or .'.join(names)}")
        return _value(target, text, setting)
    key, *rest = path
    if isinstance(target, dict):
        if key in target:
            return target | {key: _set(target[key], rest, text, setting)}
        return {name: _set(item, path, text, setting) for name, item in target.items()}
    if key not in names:
        raise DwlthError(f"--set {setting}: no setting {key!r}: choose from {', '.join(names)}")
    return replace(target, **{key: _set(getattr(target, key), rest, text, setting)})


def _value(old: Any, text: str, setting: str) -> Any:
    """`text` read as a value of the kind of `old`."""
    if isinstance(old, str):
        return text
    if isinstance(old, tuple):
        one = old[0] if old else 0
        return tuple(_value(one, part, setting) for part in text.strip("(),").split(","))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(old):
        raise DwlthError(f"--set {setting}: {text!r} is no {type(old).__name__}")
    return value


def _training_attacks(eps: float, step: float) -> dict[str, Attack]:
    """The attack that each source, or regime, is trained with; in train mode, as in the reference code."""
    return {
        "standard": Attack(),
        "fast_adversarial": Attack(eps, 1.25 * eps, 1, bn="train"),  # step 1.25 eps: Wong et al., 2020
        "adversarial": Attack(eps, step, 10, bn="train"),  # PGD-10: paper
    }


def _digits() -> Preset:
    eps, step = 0.2, 0.05  # a quarter of eps, as the paper's 2/255 of 8/255
    pgd20, attacks = Attack(eps, step, 20), _training_attacks(eps, step)
    base = Recipe(epochs=8, batch_size=32, lr=0.1, schedule="cosine", validation=pgd20, validate_every=4)
    rewound = replace(base, epochs=3, validate_every=3, lr=0.02, schedule="constant", validation=Attack())
    return Preset(
        name="digits",
        network="small_resnet",
        upstream="digits0-4",
        pretrain={source: replace(base, attack=attack) for source, attack in attacks.items()},
        imp={source: replace(rewound, attack=attack) for source, attack in attacks.items()},
        transfer={regime: replace(base, attack=attacks[regime]) for regime in ("standard", "adversarial")},
        evaluation=pgd20,
        downstream=("digits5-9",),
        rounds=(0, 2, 6, 10, 14, 17, 19),
        seeds=2,
        keep_networks=True,
        together=7,
    )


def _cifar_small() -> Preset:
    eps, step = 8 / 255, 2 / 255  # paper
    pgd20, attacks = Attack(eps, step, 20), _training_attacks(eps, step)
    pgd3 = Attack(eps, 16 / (3 * 255), 3, bn="train")  # reference code, for IMP
    base = Recipe(
        12,
        64,
        0.2,
        "onecycle",
        warm_up=0.2,
        nesterov=True,
        decay_norms=False,
        augment=Augment("pad", flip=True),  # reference code at 32 px
        validation=pgd20,
        validate_every=4,
        precision="bfloat16",
    )
    rewound = replace(base, epochs=1, lr=0.05, validation=Attack(), validate_every=1)
    return Preset(
        name="cifar-small",
        network="small_resnet32",
        upstream="cifar100",
        pretrain={
            "standard": replace(base, epochs=16),
            "fast_adversarial": replace(base, attack=attacks["fast_adversarial"], keep="sound", validate_every=1),
            "adversarial": replace(base, attack=attacks["adversarial"]),
        },
        imp={s: replace(rewound, attack=Attack() if s == "standard" else pgd3) for s in attacks},
        transfer={
            "standard": replace(base, epochs=10, validate_every=5, validation=Attack()),
            "adversarial": replace(base, epochs=10, validate_every=5, attack=attacks["adversarial"]),
        },
        evaluation=pgd20,
        order="content",
        per_source=4,
        downstream=("cifar10",),
        rounds=(0, 3, 6, 9, 11),
        fractions=(0.1, 0.01, 1.0),
        seeds=4,
        seeds_at={1.0: 1},
    )


def _cifar() -> Preset:
    eps, step = 8 / 255, 2 / 255
    pgd20, attacks = Attack(eps, step, 20), _training_attacks(eps, step)
    augment = Augment("pad", flip=True)  # reference code at 32 px
    base = Recipe(24, 128, 0.1, "cosine", augment=augment, validation=pgd20, validate_every=8, precision="bfloat16")
    rewound = replace(base, epochs=2, lr=0.01, validation=Attack(), validate_every=2)
    transfer = {
        "standard": replace(base, epochs=8, lr=0.02, validate_every=4),
        "adversarial": replace(base, epochs=5, lr=0.02, validate_every=5, attack=attacks["adversarial"]),
    }
    return Preset(
        name="cifar",
        network="resnet18-3x3",
        upstream="cifar100",
        pretrain={source: replace(base, attack=attack) for source, attack in attacks.items()},
        imp={source: replace(rewound, attack=attack) for source, attack in attacks.items()},
        transfer=transfer,
        evaluation=pgd20,
        order="content",
        half_sources=True,
        downstream=("cifar10",),
        rounds=(0, 2, 4, 6, 8, 10, 11, 12, 14),
        seeds=3,
    )


def _paper() -> Preset:
    eps, step = 8 / 255, 2 / 255  # paper
    pgd20 = Attack(eps, step, 20)  # paper
    pgd3 = Attack(eps, 16 / (3 * 255), 3, bn="train")  # reference code, for IMP
    view = Augment("resized", flip=True)  # reference code
    # as in the reference code: float32, and RA over all images; --set transfer.precision=bfloat16 is faster
    as_theirs = partial(Recipe, augment=view, precision="float32", exact_ra=True)
    imp = as_theirs(30, 2048, 5e-4, weight_decay=1e-4, validate_every=30)  # reference code
    standard = as_theirs(150, 64, 1e-3, "step", (50, 100))  # reference code; it validates SA alone
    adversarial = as_theirs(  # reference code
        100, 128, 0.1, "step", (50, 75), attack=Attack(eps, step, 10, bn="train"), validation=pgd20
    )
    return Preset(
        name="paper",
        network="resnet50",
        upstream="imagenet",
        pretrain={  # the paper names its three kinds of pre-training; these files are our choice of each
            "standard": Given("torchvision:ResNet50_Weights.IMAGENET1K_V1"),
            "fast_adversarial": Given("data/imagenet_model_weights_4px.pth.tar"),  # Wong et al.; by hand, from Drive
            "adversarial": Given("hf:madrylab/robust-imagenet-models/resnet50_linf_eps4.0.ckpt"),  # Salman et al.
        },
        # the reference code has one adversarial script for IMP; that both robust sources used it is our inference
        imp={"standard": imp, **{s: replace(imp, attack=pgd3) for s in ("fast_adversarial", "adversarial")}},
        transfer={
            "standard": standard,
            "adversarial": adversarial,
            "adversarial@svhn": replace(adversarial, epochs=80, lr=0.01, schedule="cosine", milestones=()),
        },
        evaluation=pgd20,
        subset="first",  # reference code
        allow_empty_classes=True,
        downstream=("cifar10", "cifar100", "svhn"),
        rounds=tuple(range(20)),
        seeds=1,
    )


PRESETS = {preset.name: preset for preset in (_digits(), _cifar_small(), _cifar(), _paper())}
"""- `digits`: a small ResNet from handwritten digits 0-4 to 5-9, minutes on 2 CPU cores. All its numbers but those
  marked are our choice, by experiment (README, "Why these numbers").
- `cifar`: ResNet-18 with a 3x3 stem from CIFAR-100 to CIFAR-10 at 32 px, for one GPU. Attacks and augmentation are the
  paper's; epochs, batches and learning rates are our choice, and have not been tried on a GPU yet. The whole grid is
  some 1.4e18 floating-point operations by count (1.1e9 for an image's forward pass): an hour at 400 TFLOP/s.
- `paper`: ResNet-50 from ImageNet to CIFAR-10, CIFAR-100 and SVHN at 224 px, with the numbers of the paper and of its
  public code, as marked where they stand. Momentum 0.9 and weight decay 5e-4, where none is said, are theirs too."""


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        DwlthError: for a name that is not in `PRESETS`.
    """
    if name not in PRESETS:
        raise DwlthError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
