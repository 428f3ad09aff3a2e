"""Every number of an experiment: the presets, and the runs they ask for."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dwlth.attacks import Attack
from dwlth.data import Augment, check_name
from dwlth.errors import DwlthError
from dwlth.masks import METHODS
from dwlth.models import NETWORKS
from dwlth.recipe import Given, Recipe
from dwlth.runs import Run, digest, later, plain

SOURCES = {"standard": "Standard", "fast_adversarial": "Fast adversarial", "adversarial": "Adversarial"}
"""The paper's pre-training sources, in its order, with their names in figures; a preset may have others."""


def in_order(sources: Iterable[str]) -> list[str]:
    """Each of these sources once: the paper's first, in its order, then others by name."""
    return [name for name in SOURCES if name in set(sources)] + sorted(set(sources) - SOURCES.keys())


@dataclass(frozen=True)
class Preset:
    """An experiment: what is trained, how, and how much of it."""

    name: str
    network: str
    """A name in `dwlth.models.NETWORKS`."""
    upstream: str
    """The dataset of the pre-training task, a name that `dwlth.data.load` knows."""
    pretrain: dict[str, Recipe | Given]
    """By source. RA on the pre-training task is measured under `evaluation` too."""
    imp: dict[str, Recipe]
    """By source: the training of one round of iterative magnitude pruning."""
    transfer: dict[str, Recipe]
    """By regime, such as `standard` and `adversarial`; `REGIME@TASK` takes its place for one downstream task."""
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
    splits: str = later("fixed")
    """Of datasets that have none of their own, the handwritten digits: `fixed` for all seeds, or drawn `by seed`, so
    that the spread over the seeds holds the choice of the test images too."""
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
    margins: dict[str, float] = dataclasses.field(default_factory=lambda: {"sa": 1.0, "ra": 2.0})
    """Points of SA and of RA that a double-win ticket may lose (`dwlth.verdict`; our choice, as the paper names none).
    They were chosen with the rule, before the runs that it judges now, though older results of `digits` were known. One
    point of SA is about what a practitioner gives up for a network a tenth of the size, and about three standard errors
    of 90 % on 10,000 test images; RA, measured near 50 %, has standard errors nearly twice those, and gets twice the
    margin. Smaller margins ask for more seeds: about four times as many for half the margin."""
    keep_networks: bool = False
    """Keep the network that each transfer ends with."""
    together: int = 1
    """So many alike runs train side by side (`dwlth.fast.stack`): for small networks, whose time is not arithmetic. How
    many changes no bits; that there are more than one does, and is part of the id."""

    def __post_init__(self):
        def check(name: str, right: bool, what: str) -> None:
            if not right:
                raise DwlthError(f"{name} is {getattr(self, name)}: give {what}")

        check("prune_rate", 0 < self.prune_rate < 1, "a fraction above 0 and below 1")
        check("seeds", self.seeds >= 1, "1 or more")
        check("together", self.together >= 1, "1 or more")
        check("per_source", self.per_source >= 1, "1 or more")
        check("order", self.order in ("given", "content"), "given or content")
        check("splits", self.splits in ("fixed", "by seed"), "fixed or by seed")
        check("network", self.network in NETWORKS, f"one of {', '.join(NETWORKS)}")
        check("rounds", min(self.rounds) >= 0, "0 (the dense network) or more")
        check("fractions", all(0 < fraction <= 1 for fraction in self.fractions), "numbers above 0 and at most 1")
        check(
            "margins", self.margins.keys() == {"sa", "ra"} and min(self.margins.values()) >= 0, "points for sa and ra"
        )
        if self.evaluation.targeted:
            raise DwlthError("evaluation: a targeted attack takes targets, but tests give the true labels")
        for method in self.methods:
            if method not in METHODS:
                raise DwlthError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
        for source in self.pretrain:
            if source not in self.imp:
                raise DwlthError(f"imp has no recipe for the source {source!r}, which pretrain has")
        for name in self.transfer:
            regime, _, task = name.partition("@")
            if regime not in self.transfer:
                raise DwlthError(f"transfer has {name!r}, but no regime {regime!r}: it has {', '.join(self.regimes)}")
            if task:
                check_name(task)
        for task in (self.upstream, *self.downstream):
            check_name(task)

    @property
    def regimes(self) -> list[str]:
        """The kinds of transfer: the keys of `transfer` that stand for all tasks."""
        return [name for name in self.transfer if "@" not in name]

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
            for regime in sorted(self.regimes, key=lambda name: -self.transfer[name].attack.steps)  # long runs first
            for round_ in self.rounds
            for seed in seeds_of[fraction]
            for source in self.pretrain
            for downstream in self.downstream
            if method == "imp" or round_ > 0  # the dense network is the same for every method
        ]
        return runs

    def recipe(self, run: Run) -> Recipe | Given:
        """How the network of a run is trained, or where it is from."""
        if run.downstream:
            return self.transfer.get(f"{run.regime}@{run.downstream}", self.transfer[run.regime])
        return (self.pretrain if run.stage == "pretrain" else self.imp)[run.source]

    def stacks(self, run: Run) -> bool:
        """Whether a run trains in a stack of networks, whose bits are others than those of a network on its own."""
        recipe = self.recipe(run)
        return self.together > 1 and isinstance(recipe, Recipe) and not (run.stage == "imp" and run.round == 0)

    def config(self, run: Run) -> dict[str, Any]:
        """All that determines the result of a run, as plain JSON values."""
        config = plain(run) | {"network": self.network, "upstream": self.upstream}
        if self.order != "given":
            config["order"] = self.order
        if self.splits != "fixed":
            config["splits"] = self.splits
        if self.stacks(run):
            config["stacked"] = True
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
            "margins",
            "keep_networks",
            "together",
        )
        return {key: value for key, value in plain(self).items() if key not in extent}


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
    trained = {source: replace(base, attack=attack) for source, attack in attacks.items()}
    trained["standard"] = replace(base, validation=Attack())  # SA alone, as in the reference code
    rewound = replace(base, epochs=3, validate_every=3, lr=0.02, schedule="constant", validation=Attack())
    return Preset(
        name="digits",
        network="small_resnet",
        upstream="digits0-4",
        pretrain=trained,
        imp={source: replace(rewound, attack=attack) for source, attack in attacks.items()},
        transfer={regime: trained[regime] for regime in ("standard", "adversarial")},
        evaluation=pgd20,
        splits="by seed",
        downstream=("digits5-9",),
        rounds=(0, 1, 2, 4, 7, 11, 15, 19),  # close where the verdict's sequence begins
        fractions=(1.0, 0.1),  # 1 % would be five images
        seeds=6,
        keep_networks=True,
        together=10,
    )


def _cifar_small() -> Preset:
    eps, step = 8 / 255, 2 / 255  # paper
    pgd20, attacks = Attack(eps, step, 20), _training_attacks(eps, step)
    pgd3 = Attack(eps, 16 / (3 * 255), 3, bn="train")  # reference code, for IMP
    # by experiment (docs/cifar-small.md): crops cost a network of this size 4 points of SA and 2 of RA in adversarial
    # training, so only standard training has them
    flips = Augment(flip=True)
    base = Recipe(
        12,
        64,
        0.2,
        "onecycle",
        warm_up=0.2,
        nesterov=True,
        decay_norms=False,
        augment=flips,
        validation=pgd20,
        validate_every=4,
        precision="bfloat16",
    )
    standard = replace(base, augment=Augment("pad", flip=True))  # reference code at 32 px
    rewound = replace(base, epochs=2, lr=0.05, validation=Attack(), validate_every=2)
    tuned = replace(base, lr=0.1, validate_every=6)
    return Preset(
        name="cifar-small",
        network="small_resnet32",
        upstream="cifar100",
        pretrain={
            "standard": replace(standard, epochs=16),
            "fast_adversarial": replace(base, attack=attacks["fast_adversarial"], keep="sound", validate_every=2),
            "adversarial": replace(base, attack=attacks["adversarial"]),
        },
        imp={
            "standard": replace(rewound, augment=standard.augment),
            "fast_adversarial": replace(rewound, attack=pgd3),  # as in `paper`
            "adversarial": replace(rewound, attack=pgd3),
        },
        transfer={
            "standard": replace(tuned, augment=standard.augment, validation=Attack()),
            "adversarial": replace(tuned, attack=attacks["adversarial"]),
        },
        evaluation=pgd20,
        half_sources=True,
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
  marked are our choice, by experiment (docs/digits.md).
- `cifar-small`: a ResNet of 306,016 convolution weights from CIFAR-100 to CIFAR-10 at 32 px, a night on 2 CPU cores.
  Attacks, fractions and IMP's way are the paper's; epochs, batches and learning rates are our choice, by experiment
  (docs/cifar-small.md).
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
