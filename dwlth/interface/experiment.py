"""An experiment to hold in a notebook or a REPL: its runs, networks and tickets by name, its verdict and its figures.

This is the top layer: nothing of the method imports it.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dwlth import controls, presets, sources, tickets, transfer, verdict
from dwlth.errors import DwlthError, NotYet
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.presets import Preset
from dwlth.results import Folder, read_record
from dwlth.running import cost, grid, machine
from dwlth.running.settings import command, override
from dwlth.runs import Run
from dwlth.show import attacked, audit, claims, crossing, figures, inspection, order, pretraining, sentences, sparsity
from dwlth.show import controls as pictures

COMMAND = "dwlth.Experiment.have"
"""What the records of runs that are done here name as their command."""


class Experiment:
    """A preset and its results on disk:

        experiment = Experiment("digits")
        experiment.scoreboard()
        experiment.have(experiment.runs(stage="imp", seed=0), files=True)
        experiment.ticket("adversarial", 6).sparsity

    Wherever a downstream task may be left out, it is the preset's first. A method that takes a source, a round or
    another name raises `DwlthError` for one that the preset does not have, with the choices; one that reads a file
    raises it for a file that is not there.

    Args:
        preset: a name in `dwlth.presets.PRESETS`, or a preset.
        results: the folder of the results of all presets.
        data: the folder of the datasets.
        device: where torch computes, "cpu" or "cuda"; None: a GPU where there is one.
        settings: changes to the preset, as after `--set`: ["transfer.epochs=20"].

    From then on torch computes in this process on as many threads as suit the network: see
    `dwlth.running.machine.threads`.
    """

    def __init__(
        self,
        preset: str | Preset = "digits",
        results: str | Path = "results",
        data: str | Path = "data",
        device: str | None = None,
        settings: Iterable[str] = (),
    ):
        preset, settings = presets.get(preset) if isinstance(preset, str) else preset, list(settings)
        places = {"results": _from_the_kit(results), "data": _from_the_kit(data)}
        places = {option: None if place == option else place for option, place in places.items()}
        own = preset.name not in presets.PRESETS
        by_hand = "experiment.have(..., minutes=1e6)" if own else command("run", preset.name, settings, **places)
        self.folder = Folder(override(preset, settings), results, data, machine.this_machine(device)[0], by_hand)
        torch.set_num_threads(machine.threads(self.preset.network))
        self._stamp, self._table = [], pd.DataFrame()

    def __repr__(self) -> str:
        return f"Experiment({self.preset.name!r}, results={str(self.folder.root)!r})"

    @property
    def preset(self) -> Preset:
        return self.folder.preset

    # runs: which there are, and having them

    def runs(self, **fields: Any) -> list[Run]:
        """The runs of the preset's grid whose fields have these values, or one of them where a list is given, as in
        `runs(stage="transfer", source="adversarial", round=[0, 6])`."""
        chosen = grid_ = self.preset.grid()
        for name, wanted in fields.items():
            _choose("field of a run", name, Run.__dataclass_fields__)
            wanted = list(wanted) if isinstance(wanted, (list, tuple, set, range)) else [wanted]
            known = dict.fromkeys(getattr(run, name) for run in grid_)
            for value in wanted:
                _choose(name, value, [each for each in known if each != ""])
            chosen = [run for run in chosen if getattr(run, name) in wanted]
        return chosen

    def transfers(self, **fields: Any) -> list[Run]:
        """`runs` of stage `transfer`."""
        return self.runs(stage="transfer", **fields)

    def transfer(
        self,
        source: str,
        round: int,
        regime: str,
        fraction: float = 1.0,
        seed: int = 0,
        method: str = "imp",
        downstream: str | None = None,
    ) -> Run:
        """The transfer of one ticket (round 0: of the dense network), also where the grid does not ask for it."""
        self._check(source, round, method)
        _choose("regime", regime, self.preset.regimes)
        own = self.preset.source_of(seed)
        return Run("transfer", source, seed, round, method, self.task(downstream), regime, fraction, own)

    def task(self, downstream: str | None = None) -> str:
        """A downstream task of the preset; None: the first."""
        return _choose("downstream", downstream or self.preset.downstream[0], self.preset.downstream)

    def fraction(self, fraction: float | None = None, downstream: str | None = None) -> float:
        """A fraction of the downstream data; None: that with the most transfers of IMP's tickets in the table, of
        several the largest."""
        known, counts = sorted(self.preset.fractions, reverse=True), {}
        with suppress(NotYet):  # the table may have more than the preset
            counts = verdict.transfers(self.table(), self.task(downstream))["fraction"].value_counts()
        if fraction is None:
            fraction = max(known, key=lambda each: counts.get(each, 0))
        return _choose("fraction", fraction, sorted({*known, *dict(counts)}, reverse=True))

    def rung(self, ticket: int | None, default: int) -> int:
        """The round of IMP whose ticket is meant; None: `default`. 0 is the dense network."""
        return _choose("ticket", default if ticket is None else ticket, self._rounds())

    def have(self, runs: Iterable[Run], files: bool = False, images: bool = False, minutes: float = 10.0) -> bool:
        """Have these runs done, by doing what is left of them; prints what is in the way where that cannot be.

        Args:
            files: have their sources, tickets or networks on disk too.
            images: have the images of their tasks on disk too.
            minutes: at most so much work is begun, by an estimate for this machine.

        Returns:
            Whether they are done now, and all that is asked for is there.
        """
        runs = list(runs)
        try:
            # the command line does the preset's grid, and does not do again what is done, for its files
            by_hand = "" if files or not set(runs) <= set(self.preset.grid()) else self.folder.by_hand()
            grid.complete(self.folder, runs, files=files, minutes=minutes, by_hand=by_hand, command=COMMAND)
            for name in {run.downstream or self.preset.upstream for run in runs} if images else ():
                self.folder.dataset(name, 0)
        except DwlthError as error:
            print(error)
            return False
        return not grid.left(self.folder, runs, files)

    def plan(self, runs: Iterable[Run] | None = None) -> str:
        """How many of these runs, by default of all, are done and left, and what that costs on this machine."""
        return grid.plan(self.folder, self.preset.grid() if runs is None else list(runs))

    def seconds(self, runs: Iterable[Run]) -> float:
        """What these runs would take here, one after the other, by a few timed steps of each kind."""
        return sum(cost.estimate(self.folder, list(runs)).values())

    def banner(self) -> sentences.Sentences:
        """Which results these are, of how many seeds, and how to see others."""
        try:
            return sentences.banner(self.folder, self.table())
        except NotYet:
            return sentences.banner(self.folder, None)

    # networks, tickets and images by name

    def source(self, name: str, seed: int = 0) -> Classifier:
        """A pre-trained network, in evaluation mode."""
        self._check(name)
        return sources.load(self.folder, Run("pretrain", name, seed)).eval()

    def ticket(self, source: str, round: int, seed: int = 0, method: str = "imp") -> Mask:
        """A ticket of the source with this seed; round 0 keeps every weight."""
        self._check(source, round, method)
        return tickets.find(self.folder, Run("transfer", source, seed, round, method), self.source(source, seed))

    def tickets(self, source: str, seed: int = 0, method: str = "imp") -> dict[int, Mask]:
        """All tickets of a source by round, from 1 to the preset's last."""
        self._check(source, 0, method)
        model, rounds = self.source(source, seed), range(1, max(self.preset.rounds) + 1)
        return {k: tickets.find(self.folder, Run("transfer", source, seed, k, method), model) for k in rounds}

    def network(
        self,
        source: str,
        round: int,
        regime: str,
        fraction: float = 1.0,
        seed: int = 0,
        method: str = "imp",
        downstream: str | None = None,
    ) -> Classifier:
        """The network that the `transfer` of the same arguments ended with, in evaluation mode."""
        return transfer.load(self.folder, self.transfer(source, round, regime, fraction, seed, method, downstream))

    def images(self, task: str | None = None, seed: int = 0, limit: int = 256) -> tuple[Tensor, Tensor]:
        """The first test images of a task (float [N, C, H, W] in [0, 1]) and their labels (int64 [N]), on the device,
        as networks see them; with `splits` by seed, those of this seed."""
        augment = next(iter(self.preset.transfer.values())).augment
        test = self.folder.dataset(task or self.task(), seed).test
        return next(test.batches(limit, augment=augment))

    def examples(self, task: str | None = None, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
        """One of the `images` for each of the first 8 classes: the images, their labels, and the names of all
        classes by label."""
        images, labels = self.images(task, seed)
        first = [(labels == label).nonzero()[0, 0].item() for label in labels.unique()[:8]]
        classes = self.folder.dataset(task or self.task(), seed).classes
        return images[first], labels[first], attacked.class_names(task or self.task(), classes)

    def histories(self, seed: int = 0) -> dict[str, list[dict]]:
        """What the training of each source recorded after each epoch, by source: of those whose record is on disk."""
        paths = {name: self.folder.record(Run("pretrain", name, seed)) for name in self.preset.pretrain}
        return {name: read_record(path)["result"]["history"] for name, path in paths.items() if path.exists()}

    # what the results say

    def table(self) -> pd.DataFrame:
        """A row for each finished run; see `dwlth.results.read_table`.

        Raises:
            NotYet: where there is none.
        """
        paths = (self.folder.table, self.folder.path / "runs")
        stamp = [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
        if stamp != self._stamp:  # thousands of runs take a while to collect
            self._stamp, self._table = stamp, self.folder.collect()
        return self._table.copy()

    def tests(self, margins: Mapping[str, float] | None = None, **options: Any) -> pd.DataFrame:
        """`dwlth.verdict.tests` of the table, with the preset's margins or others."""
        return verdict.tests(self.table(), margins or self.preset.margins, **options)

    def verdict(self, margins: Mapping[str, float] | None = None, **options: Any) -> pd.DataFrame:
        """`dwlth.verdict.verdict` of the table, with the preset's margins or others."""
        return verdict.verdict(self.table(), margins or self.preset.margins, **options)

    def order(self, margins: Mapping[str, float] | None = None) -> pd.DataFrame:
        """`dwlth.show.order.order` of the table, with the preset's margins or others."""
        return order.order(self.table(), margins or self.preset.margins)

    def scoreboard(self, margins: Mapping[str, float] | None = None) -> pd.DataFrame:
        """`dwlth.show.claims.scoreboard` of the table, with the preset's margins or others."""
        return claims.scoreboard(self.table(), margins or self.preset.margins, folder=self.folder)

    def environment(self) -> pd.Series:
        """What there is on this machine: versions, device, results and datasets."""
        return inspection.environment(self.folder)

    # figures

    def curves(
        self, fraction: float | None = None, downstream: str | None = None, sources: Sequence[str] | None = None
    ) -> Figure:
        """SA and RA of the tickets against their sparsity, of all sources or of these; see `fraction`."""
        fraction = self.fraction(fraction, downstream)
        sources = presets.in_order(self.preset.pretrain) if sources is None else sources
        return figures.curves(self.table(), self.task(downstream), fraction, self.preset.margins, sources)

    def double_wins(self, downstream: str | None = None, paper: bool = False) -> Figure:
        """The sparsest double-win ticket of each source, by the fraction of the data; with `paper` also the paper's."""
        return figures.double_wins(self.table(), self.task(downstream), self.preset.margins, paper=paper)

    def differences(self, fraction: float | None = None, downstream: str | None = None) -> Figure:
        """What the verdict looks at: each ticket minus its dense network, in points, with bounds and margins."""
        fraction = self.fraction(fraction, downstream)
        return figures.differences(self.table(), self.task(downstream), fraction, self.preset.margins)

    def gain(self, *rounds: int, downstream: str | None = None) -> Figure:
        """What robust pre-training is worth, by the fraction of the data, for the dense network or these tickets."""
        return pretraining.gain(self.table(), self.task(downstream), *rounds)

    def methods(
        self, source: str, fraction: float | None = None, downstream: str | None = None, of: Sequence[str] = ()
    ) -> Figure:
        """The tickets of a source by each way to prune, or by those `of` a selection."""
        self._check(source)
        fraction = self.fraction(fraction, downstream)
        return pictures.draw_methods(self.table(), self.task(downstream), source, fraction, of)

    def controls(
        self, round: int | None = None, fraction: float | None = None, downstream: str | None = None
    ) -> Figure:
        """How many points better than IMP's the tickets of the other methods are, at one round (below 0: worse)."""
        return pictures.draw_controls(self.table(), self.task(downstream), round, fraction)

    def crossing(self, kind: str = "crossed", fraction: float | None = None, downstream: str | None = None) -> Figure:
        """SA and RA of masks of each source on the weights of each; of kind `trained`, of masks that IMP found on these
        weights with the training of each source."""
        return pictures.draw_crossing(self.table(), self.task(downstream), fraction, kind)

    def variance(self, kind: str = "crossed", fraction: float | None = None, downstream: str | None = None) -> Figure:
        """What the spread of a crossing is due to."""
        return pictures.draw_variance(self.table(), self.task(downstream), fraction, kind)

    def connectivity(self, fraction: float | None = None, downstream: str | None = None) -> Figure:
        """The barriers between two trainings from one start."""
        return pictures.draw_connectivity(self.table(), self.task(downstream), fraction)

    def audit(self) -> pd.DataFrame:
        """What `python -m dwlth audit PRESET` found: a row for each check, a column for each network."""
        return audit.checks(self.folder.audit())

    def robustness(self) -> Figure:
        """The audited networks under attacks of other radii, and under corruptions."""
        return audit.draw_audit(self.folder.audit())

    def savings(self, seed: int = 0) -> Figure:
        """What the sparsity of IMP's tickets buys: smaller files, and channels that can be removed."""
        return sparsity.draw_savings(sparsity.savings(self.folder, seed))

    def mask_or_weights(self, fraction: float | None = None, downstream: str | None = None) -> sentences.Sentences:
        """What the crossing shows at its sparsest ticket, in two sentences."""
        return sentences.Sentences(crossing.words(self.table(), self.task(downstream), fraction))

    def pretraining(self) -> Figure:
        """SA and RA on the pre-training task after each round of IMP."""
        return pretraining.pretraining(self.table())

    def figures(self, path: str | Path | None = None) -> list[Path]:
        """Draw every figure that the table has the runs for, as PNG and PDF, into a folder, by default that of the
        results; returns the paths of the PNGs."""
        return figures.draw_all(self.table(), Path(path or self.folder.figures), self.preset.margins, self.folder)

    def _check(self, source: str, round_: int = 0, method: str = "imp") -> None:
        _choose("source", source, self.preset.pretrain)
        controls.method(method)
        if of := controls.other(method):
            _choose("source", of, self.preset.pretrain)
        _choose("round", round_, self._rounds())

    def _rounds(self) -> range:
        """The rounds of IMP of the preset, or of the table, which may have more."""
        rounds = list(self.preset.rounds)
        with suppress(NotYet):
            rounds.append(int(self.table()["round"].max()))
        return range(max(rounds) + 1)


def _from_the_kit(path: str | Path) -> str:
    """A folder as a command names it that is given where README.md lies: what is relative belongs there."""
    whole = Path(path).resolve()
    return whole.relative_to(sentences.KIT).as_posix() if whole.is_relative_to(sentences.KIT) else str(path)


def _choose(what: str, value: Any, known: Iterable) -> Any:
    """The value, where it is known; or else an error that lists the choices."""
    if value not in list(known):
        raise DwlthError(f"unknown {what} {value!r}: choose from {', '.join(map(str, known))}")
    return value
