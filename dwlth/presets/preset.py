"""What a preset is: the numbers of an experiment, the runs they ask for, and what identifies a run."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dwlth import controls
from dwlth.attacks import Attack
from dwlth.data import check_name
from dwlth.errors import DwlthError, check
from dwlth.models import NETWORKS
from dwlth.recipe import Given, Recipe
from dwlth.runs import Run, digest, later, plain


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
    """AutoAttack, and the way between two trainings (`dwlth.controls.connectivity`), which take long, see the first so
    many test images (our choice)."""
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
    """So many alike runs train side by side (`dwlth.fast.stack`): for small networks, whose time is not arithmetic. All
    numbers above 1 give the same bits (but for the last ones on a CPU with AVX2 alone). 1 gives others, so whether it
    is above 1 is part of a run's id."""

    def __post_init__(self):
        right = {
            "prune_rate": (0 < self.prune_rate < 1, "a fraction above 0 and below 1"),
            "seeds": (self.seeds >= 1, "1 or more"),
            "together": (self.together >= 1, "1 or more"),
            "per_source": (self.per_source >= 1, "1 or more"),
            "order": (self.order in ("given", "content"), "given or content"),
            "subset": (self.subset in ("first", "random", "balanced"), "first, random or balanced"),
            "splits": (self.splits in ("fixed", "by seed"), "fixed or by seed"),
            "network": (self.network in NETWORKS, f"one of {', '.join(NETWORKS)}"),
            "rounds": (self.rounds and min(self.rounds) >= 0, "0 (the dense network) or more"),
            "autoattack_images": (self.autoattack_images >= 1, "1 or more"),
            "seeds_at": (
                all(
                    isinstance(fraction, (int, float)) and 0 < fraction <= 1 and type(count) is int and count >= 1
                    for fraction, count in self.seeds_at.items()
                ),
                "numbers of seeds, 1 or more, by fraction: {0.1: 5}",
            ),
            "margins": (
                self.margins.keys() == {"sa", "ra"} and min(self.margins.values()) >= 0,
                "points for sa and ra, 0 or more",
            ),
            "fractions": (all(0 < fraction <= 1 for fraction in self.fractions), "numbers above 0 and at most 1"),
        }
        for name, (fine, what) in right.items():
            check(name, getattr(self, name), fine, what)
        check(
            "bn of the evaluation", self.evaluation.bn, self.evaluation.bn == "eval", "eval: as networks are measured"
        )
        if self.evaluation.targeted:
            raise DwlthError("evaluation: a targeted attack takes targets, but tests give the true labels")
        for method in self.methods:
            controls.method(method)
            if (of := controls.other(method)) and of not in self.pretrain:
                raise DwlthError(f"method {method!r}: no source {of!r}: choose from {', '.join(self.pretrain)}")
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

    def ways(self) -> list[str]:
        """`methods`; one that is said of other sources, once for each of these."""
        named = [method for method in self.methods if controls.method(method).other and not controls.other(method)]
        return [
            way
            for method in self.methods
            for way in ([f"{method}@{source}" for source in self.pretrain] if method in named else [method])
        ]

    def _is_imp(self, way: str, source: str) -> bool:
        """Whether IMP itself finds these tickets: the mask is the source's own, or the training is."""
        of = controls.other(way)
        return of == source or (way.startswith("trained@") and self.imp[of] == self.imp[source])

    def grid(self) -> list[Run]:
        """All runs, once each, after those it needs."""
        ways = {source: [way for way in self.ways() if not self._is_imp(way, source)] for source in self.pretrain}
        seeds_of = {fraction: range(self.seeds_at.get(fraction, self.seeds)) for fraction in self.fractions}
        source_seeds = sorted({seed // self.per_source for seeds in seeds_of.values() for seed in seeds})
        runs = [Run("pretrain", source, seed) for seed in source_seeds for source in self.pretrain]
        runs += [
            Run("imp", source, seed, round_, method)
            for round_ in range(max(self.rounds))
            for seed in source_seeds
            for source in self.pretrain
            for method in dict.fromkeys(["imp", *ways[source]])
            if controls.method(method).scores is None
        ]
        runs += [
            Run("transfer", source, seed, round_, method, downstream, regime, fraction, self.source_of(seed))
            for method in self.ways()
            for fraction in self.fractions
            for regime in sorted(self.regimes, key=lambda name: -self.transfer[name].attack.steps)  # long runs first
            for round_ in self.rounds
            for seed in seeds_of[fraction]
            for source in self.pretrain
            for downstream in self.downstream
            if method in ways[source] and (method == "imp" or round_ > 0)  # the dense one is the same for all
        ]
        return list(dict.fromkeys(runs))

    def recipe(self, run: Run) -> Recipe | Given:
        """How the network of a run is trained, or where it is from."""
        if run.downstream:
            return self.transfer.get(f"{run.regime}@{run.downstream}", self.transfer[run.regime])
        if run.stage == "pretrain":
            return self.pretrain[run.source]
        return self.imp[controls.other(run.method) or run.source]

    def stacks(self, run: Run) -> bool:
        """Whether a run trains in a stack of networks, whose bits are others than those of a network on its own."""
        recipe = self.recipe(run)
        whole = isinstance(recipe, Recipe) and recipe.parts == 1  # a batch in parts has no members
        return self.together > 1 and whole and not (run.stage == "imp" and run.round == 0)

    def units(self, runs: Iterable[Run]) -> list[tuple[Run, ...]]:
        """The runs in what is done at a time: those that can train side by side, and each other run for itself."""
        found: list[list[Run]] = []
        open_: dict[tuple, list[Run]] = {}
        for run in runs:
            key = (run.stage, repr(self.recipe(run)), run.downstream, run.fraction, run.stage == "imp" and run.round)
            unit = open_.get(key) if self.stacks(run) and run.stage != "autoattack" else None
            if unit is None or len(unit) == self.together:
                found.append(unit := [])
                open_[key] = unit
            unit.append(run)
        return [tuple(unit) for unit in found]

    def config(self, run: Run) -> dict[str, Any]:
        """All that determines the result of a run, as plain JSON values; but for the views of the images that `snip`
        looks at, and those and the precision in which a given source is measured: both are of `imp`'s recipe, and
        would have changed ids."""
        run = dataclasses.replace(run, fraction=float(run.fraction))  # 1 is equal to 1.0, but other JSON
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
        if found_by := run if run.stage == "imp" else run.found_by:
            config["imp"] = self.recipe(found_by)
            if found_by.source != run.source:
                config["mask_source"] = self.pretrain[found_by.source]
        if run.downstream:
            config["transfer"] = self.recipe(run)
            config["subset"] = self.subset
        if run.stage in ("autoattack", "connect"):
            config["autoattack_images"] = self.autoattack_images
        config["evaluation"] = self.evaluation
        return plain(config)

    def run_id(self, run: Run) -> str:
        """12 hex digits: the hash of the whole configuration of the run."""
        return digest(self.config(run))

    def identity(self) -> dict[str, Any]:
        """Every number but those that only say how much is run, as plain JSON values."""
        return {key: value for key, value in plain(self).items() if key not in EXTENT}

    def is_of(self, found: dict[str, Any]) -> bool:
        """Whether these plain values, of a `preset.json`, have this identity, and train side by side as this does."""
        same = {key: value for key, value in found.items() if key not in EXTENT} == self.identity()
        return same and (found.get("together", 1) > 1) == (self.together > 1)


EXTENT = {"name", "downstream", "rounds", "fractions", "methods", "seeds", "seeds_at", "margins", "keep_networks"}
EXTENT |= {"together"}
"""The fields of a preset that only say how much is run; of `together`, also whether it is above 1."""


def training_attacks(eps: float, step: float) -> dict[str, Attack]:
    """The attack that each source, or regime, is trained with; in train mode, as in the reference code."""
    return {
        "standard": Attack(),
        "fast_adversarial": Attack(eps, 1.25 * eps, 1, bn="train"),  # step 1.25 eps: Wong et al., 2020
        "adversarial": Attack(eps, step, 10, bn="train"),  # PGD-10: paper
    }
