"""Where each file of the results lies, and the table made of the records."""

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from dwlth.data import Dataset, Split, Streamed, load
from dwlth.errors import DwlthError, NotYet
from dwlth.files import read_about, read_json, set_aside, write_json
from dwlth.presets import Preset
from dwlth.results.records import KEY, read_claims, read_record, read_rows, read_table, row, write_table
from dwlth.runs import Run, plain


@dataclass(frozen=True)
class Folder:
    """The results of one preset, in `ROOT/NAME/`:

    - `sources/SOURCE-sSEED.safetensors`: the weights of a pre-trained network
    - `tickets/SOURCE-METHOD-sSEED/ROUND.safetensors`: a mask that IMP found, packed to bits
    - `networks/ID.safetensors`: the network that a transfer ended with, where it is kept
    - `runs/ID.json`: the record of a finished (or failed) run
    - `checkpoints/ID.pt`: a training, or AutoAttack, under way
    - `table.csv`: a row per finished (or failed) run; the verdict and the curves read nothing else
    - `audit.csv`, `claims.json`: what an audit found, and the same as RobustBench asks for it
    - `preset.json`: every number of the preset
    - `figures/`
    """

    preset: Preset
    root: str | Path = "results"
    data: str | Path = "data"
    """Where the datasets are."""
    device: str = "cpu"
    """Where torch computes."""
    command: str = ""
    """The command that does its runs, for messages, where it is another than `run` with the preset's name."""

    def by_hand(self, verb: str = "run") -> str:
        """The command line that does this with these results."""
        return (self.command or f"python -m dwlth run {self.preset.name}").replace("dwlth run", f"dwlth {verb}", 1)

    @property
    def path(self) -> Path:
        return Path(self.root) / self.preset.name

    @property
    def table(self) -> Path:
        return self.path / "table.csv"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def source(self, run: Run) -> Path:
        """Of the source that a run starts from."""
        return self.path / "sources" / f"{run.source}-s{run.from_seed}.safetensors"

    def ticket(self, run: Run) -> Path:
        """Of the ticket, found by IMP, that a run starts from."""
        return self.path / "tickets" / f"{run.source}-{run.method}-s{run.from_seed}" / f"{run.round:02d}.safetensors"

    def network(self, run: Run) -> Path:
        """Of the network that a transfer ended with."""
        return self.path / "networks" / f"{self.preset.run_id(run)}.safetensors"

    def record(self, run: Run) -> Path:
        return self.path / "runs" / f"{self.preset.run_id(run)}.json"

    def checkpoint(self, run: Run, company: str = "") -> Path:
        """Of a training under way; `company` names the runs beside which it trains."""
        return self.path / "checkpoints" / f"{self.preset.run_id(run)}{company and f'-{company}'}.pt"

    def made(self, run: Run) -> Path | None:
        """The file that later runs read from this one; None of `autoattack` and `connect`, of which none does."""
        if run.stage in ("autoattack", "connect"):
            return None
        if run.stage == "transfer":
            return self.network(run)
        return self.source(run) if run.stage == "pretrain" else self.ticket(run.pruned)

    def has(self, run: Run) -> bool:
        """Whether the file that later runs read from this one is on disk, and of this run. A file that is not what it
        should be is named in a warning and set aside."""
        path = self.made(run)
        if path is None:
            return True
        if not path.exists():
            return False
        try:
            now = path.stat()
            stamp = now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
            return bool(_whole(path, self.preset.run_id(run), stamp))
        except FileNotFoundError:  # another process set it aside
            return False
        except DwlthError as error:
            set_aside(path, error)
            return False

    def imported(self, run: Run) -> bool:
        """Whether the ticket that this run would make was brought from elsewhere, and is not to be made here."""
        return (
            run.stage == "imp"
            and self.has(run)
            and read_about(self.ticket(run.pruned))["method"].startswith("imported")
        )

    def dataset(self, name: str, seed: int) -> Dataset:
        """A dataset with the preset's order, and with splits of their own for each seed where the preset says so, on
        the device; see `dwlth.data.load`."""
        split = seed if self.preset.splits == "by seed" else None
        return load(name, self.data, self.preset.order, split).to(self.device)

    def sample(self, run: Run) -> Split | Streamed:
        """The first `preset.autoattack_images` test images of the run's task, for what takes long for each image."""
        test = self.dataset(run.downstream, run.seed).test
        return test.take(list(range(min(self.preset.autoattack_images, len(test)))))

    def audit(self) -> pd.DataFrame:
        """`audit.csv`; see `dwlth.running.audit.audit_transfers`.

        Raises:
            NotYet: if there is none.
            DwlthError: if it is damaged.
        """
        path, command = self.path / "audit.csv", f"`{self.by_hand('audit')}`"
        if not path.exists():
            raise NotYet(f"no audit in {self.path}: {command} makes it")
        columns = ["check", "found", "honest", "verdict", "id", "source", "sparsity", "seed"]
        again = f"restore the file, or delete it and call {command}"
        found = read_rows(path, "an audit", columns, again, keep_default_na=False)
        claims = self.path / "claims.json"
        for claim in read_claims(claims) if claims.exists() else ():
            id_, had = Path(claim["file"]).stem, claim["checks"]
            if (has := (found["id"] == id_).sum()) != had:
                raise DwlthError(f"{path}: damaged: network {id_} has {has} of {had} checks; {again}")
        return found

    def write_preset(self) -> None:
        """Write `preset.json`, unless it is there with the same numbers: a part of the grid is no other preset."""
        path = self.path / "preset.json"
        if path.exists():
            try:
                if self.preset.is_of(read_preset(path)):
                    return
            except DwlthError as error:
                set_aside(path, error)
        write_json(path, plain(self.preset))

    def records(self) -> Iterator[dict[str, Any]]:
        """All readable records, oldest first; one that is no record is named in a warning and set aside."""
        for path in sorted((self.path / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            try:
                yield read_record(path)
            except DwlthError as error:
                set_aside(path, error)

    def seconds(self) -> dict[str, float]:
        """The wall time of each finished run, by its id: of those with a record, and those in the table."""
        table = read_table(self.table) if self.table.exists() else pd.DataFrame(columns=["id", "seconds", "status"])
        table = table[table["status"] == "ok"]
        ended = {rec["id"]: rec["provenance"]["seconds"] for rec in self.records() if rec["status"] == "ok"}
        return ended | dict(zip(table["id"], table["seconds"]))

    def done(self) -> set[str]:
        """The ids of the runs that are finished."""
        return set(self.seconds())

    def collect(self) -> pd.DataFrame:
        """Add the records of this preset's runs to `table.csv`, and return its rows of this preset's runs. The row of a
        finished run stays as it is when its run is done once more; that of a failed one gives way. Records and rows of
        other settings (an older version of the preset) stay on disk; a warning says how many, and they are not
        returned. A row of theirs gives way to a run of this preset of the same name.

        Raises:
            NotYet: without a run that has ended.
        """
        id_of = cache(self.id_of)  # of a record, and of its row
        ended = (record for record in self.records() if record["status"] != "refused")  # bad input is no result
        found = [id_of(run_of(record["config"])) == record["id"] and row(record) for record in ended]
        rows = pd.DataFrame(own).drop_duplicates(KEY, keep="last") if (own := [*filter(None, found)]) else None
        table = read_table(self.table) if self.table.exists() else None
        if table is not None and rows is not None:
            failed = rows["id"][rows["status"] == "failed"]
            rows = rows[~rows["id"].isin(table["id"][(table["status"] == "ok") | table["id"].isin(failed)])]
        if rows is not None and len(rows):
            rows = pd.concat([part for part in (table, rows) if part is not None], ignore_index=True)
            rows = rows.drop_duplicates(KEY, keep="last").sort_values(KEY, kind="stable").reset_index(drop=True)
            write_table(self.table, rows)
            table = read_table(self.table)
        if table is None:
            raise NotYet(f"{self.path}: no finished run yet; `{self.by_hand()}` makes them")
        current = [id_of(run_of(fields)) == fields["id"] for fields in table.to_dict("records")]
        others = len(table) - sum(current) + len(found) - len(own)
        if others:
            warnings.warn(
                f"{self.path}: {others} rows or records are left out: they are of other settings than those of "
                f"{self.preset.name} now",
                stacklevel=2,
            )
        return table[current].drop_duplicates(KEY, keep="last", ignore_index=True)  # two tables may be put together

    def owns(self, fields: dict[str, Any], id_: str) -> bool:
        """Whether a run, given by fields of `Run`, has this id in this preset."""
        return self.id_of(run_of(fields)) == id_

    def id_of(self, run: Run) -> str:
        """The id of a run; empty of one that this preset cannot have."""
        try:
            return self.preset.run_id(run)
        except KeyError:  # a source or a regime that the preset has no more
            return ""


def run_of(fields: dict[str, Any]) -> Run:
    return Run(**{name: fields[name] for name in Run.__dataclass_fields__ if name in fields})


def read_preset(path: Path) -> dict[str, Any]:
    """The numbers in a `preset.json`.

    Raises:
        DwlthError: if it is none, or damaged.
    """
    found = read_json(path, "preset")
    if strange := sorted(found.keys() - {field.name for field in dataclasses.fields(Preset)}):
        raise DwlthError(f"{path}: not a preset: it has {strange[0]!r}, which no preset has")
    return found


@lru_cache(10_000)
def _whole(path: Path, id_: str, stamp: tuple[int, ...]) -> str:
    """The kind of a file that is whole and made by this run, read once while its `stamp` stays; see `read_about`."""
    return read_about(path, id_=id_)["kind"]
