"""A run, the unit of work: what it is, what identifies it, and where its random numbers come from."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from dwlth.controls import METHODS, other

STAGES = ("pretrain", "imp", "transfer", "autoattack", "connect")


def later(before: Any) -> Any:
    """A dataclass field that was added after results existed. `before`, its default, means "as before": at this value
    the field is left out of `plain`, so the ids of earlier results stay what they are."""
    return dataclasses.field(default=before, metadata={"before": before})


def plain(value: Any) -> Any:
    """Dataclasses and tuples as plain dicts and lists, as JSON has them, without `later` fields at their `before`."""
    if isinstance(value, (str, int, float)):  # most are, and the next question takes long
        return value
    if dataclasses.is_dataclass(value):
        held = [(field.name, getattr(value, field.name), field.metadata) for field in dataclasses.fields(value)]
        return {name: plain(item) for name, item, about in held if "before" not in about or item != about["before"]}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def digest(config: Any, length: int = 12) -> str:
    """So many hex digits that name a plain value: the start of the SHA-256 of its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:length]


def stream(seed: int, *names: object) -> int:
    """A seed of its own (63 bits) for each use of randomness, so that a resumed run needs no generator state."""
    digest = hashlib.sha256(repr((int(seed), *names)).encode()).digest()  # NumPy's integers have another repr
    return int.from_bytes(digest[:8], "little") >> 1


def percent(fraction: float) -> str:
    """A fraction in percent: "10%", "0.5%"."""
    return f"{100 * fraction:.4g}%"


@dataclass(frozen=True)
class Run:
    """One unit of work, and one record.

    `pretrain` trains a source. `imp` trains ticket `round` of a source on the pre-training task, measures it, and
    prunes it to ticket `round + 1`; round 0 is the dense source itself, pruned as it is. `transfer` trains ticket
    `round` on a downstream task; round 0 is the dense network. `autoattack` attacks the network of the transfer of
    the same name. `connect` trains the network of that transfer once more, with other random numbers, and looks at the
    way between the two. No grid has these two stages.
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

    def __post_init__(self):
        for name in ("seed", "round", "source_seed"):
            value = getattr(self, name)  # also NumPy's, as tables have them, and 1.0
            if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()):
                object.__setattr__(self, name, int(value))

    @property
    def from_seed(self) -> int:
        """The seed of the source."""
        return self.seed if self.source_seed is None else self.source_seed

    @property
    def pruned(self) -> "Run":
        """The next round of the same ticket: the one that a run of stage `imp` ends with."""
        return replace(self, round=self.round + 1)

    @property
    def found_by(self) -> "Run | None":
        """The round of IMP that left the ticket which this run's mask is, or is made of; None where it takes none."""
        method, name = METHODS.get(self.method.partition("@")[0]), self.method
        if self.round == 0 or method is None or (method.scores and method.takes != "mask"):
            return None
        if method.scores:  # of IMP as it is
            return Run("imp", other(name) or self.source, self.from_seed, self.round - 1)
        return Run("imp", self.source, self.from_seed, self.round - 1, name)

    def needs(self) -> list["Run"]:
        """The runs whose files this one reads."""
        if self.stage == "pretrain":
            return []
        needs = [Run("pretrain", self.source, self.from_seed)]
        if found_by := self.found_by:
            needs += [found_by] if found_by.source == self.source else [*found_by.needs()[:1], found_by]
        return [replace(self, stage="transfer"), *needs] if self.stage in ("autoattack", "connect") else needs

    def __str__(self) -> str:
        words = [self.stage, self.source]
        if self.downstream:
            words += ["to", self.downstream, self.regime, f"{percent(self.fraction)}", self.method]
        if self.stage == "imp" and self.method != "imp":
            words += [self.method]
        if self.stage != "pretrain":
            words += [f"round {self.round}"]
        words += [f"seed {self.seed}"]
        if self.from_seed != self.seed:
            words += [f"of source {self.from_seed}"]
        return " ".join(words)
