"""Results on disk: where each file lies, the record of a run, and the table made of the records."""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import dwlth
from dwlth.errors import DwlthError, NotYet
from dwlth.files import set_aside, write, write_json
from dwlth.ids import plain
from dwlth.presets import Preset, Run

KEY = ["stage", "source", "method", "downstream", "regime", "fraction", "round", "seed"]
"""Columns that tell the rows of a preset's table apart, and their order."""


class Folder:
    """The results of one preset, `ROOT/PRESET/`:

    - `sources/SOURCE-sSEED.safetensors`: the weights of a pre-trained network
    - `tickets/SOURCE-imp-sSEED/ROUND.safetensors`: a mask, packed to bits
    - `networks/ID.safetensors`: the network that a transfer ended with, where it is kept
    - `runs/ID.json`: the record of a finished (or failed) run
    - `checkpoints/ID.pt`: a training under way
    - `table.csv`: a row per finished run; all that the verdict and the figures read
    - `preset.json`: every number of the preset
    - `figures/`

    `data` is where the datasets are.
    """

    def __init__(self, root: str | Path, preset: str, data: str | Path = "data"):
        self.data = Path(data)
        self.path = Path(root) / preset
        self.table = self.path / "table.csv"
        self.figures = self.path / "figures"

    def source(self, run: Run) -> Path:
        return self.path / "sources" / f"{run.source}-s{run.from_seed}.safetensors"

    def ticket(self, run: Run, round_: int) -> Path:
        return self.path / "tickets" / f"{run.source}-imp-s{run.from_seed}" / f"{round_:02d}.safetensors"

    def network(self, id_: str) -> Path:
        return self.path / "networks" / f"{id_}.safetensors"

    def record(self, id_: str) -> Path:
        return self.path / "runs" / f"{id_}.json"

    def checkpoint(self, id_: str) -> Path:
        return self.path / "checkpoints" / f"{id_}.pt"

    def write_preset(self, preset: Preset) -> None:
        """Write `preset.json`, unless it is there with the same numbers: a part of the grid is no other preset."""
        path = self.path / "preset.json"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if json.loads(path.read_text()).items() >= preset.identity().items():
                return
        write_json(path, plain(preset))

    def records(self) -> list[dict[str, Any]]:
        """All readable records, oldest first; one that is no record is named in a warning and set aside."""
        found = []
        for path in sorted((self.path / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            try:
                found.append(read_record(path))
            except DwlthError as error:
                set_aside(path, error)
        return found

    def seconds(self) -> dict[str, float]:
        """The wall time of each finished run, by its id: of those with a record, and those in the table."""
        table = read_table(self.table) if self.table.exists() else pd.DataFrame({"id": [], "seconds": []})
        ended = {rec["id"]: rec["provenance"]["seconds"] for rec in self.records() if rec["status"] == "ok"}
        return ended | dict(zip(table["id"], table["seconds"]))

    def done(self) -> set[str]:
        """The ids of the runs that are finished."""
        return set(self.seconds())

    def collect(self) -> pd.DataFrame:
        """Add the finished records to `table.csv` and return it. A row stays as it is when its run is done once more; a
        run with other settings takes the place of its namesake; rows whose records are elsewhere stay.

        Raises:
            NotYet: without a finished run.
        """
        rows = pd.DataFrame([_row(record) for record in self.records() if record["status"] == "ok"])
        if len(rows):
            rows = rows.drop_duplicates(KEY, keep="last")
        if self.table.exists():
            table = read_table(self.table)
            rows = rows[~rows["id"].isin(table["id"])] if len(rows) else rows
            if not len(rows):
                return table
            rows = pd.concat([table, rows], ignore_index=True).drop_duplicates(KEY, keep="last")
        if not len(rows):
            raise NotYet(f"{self.path}: no finished run yet; `python -m dwlth run` makes them")
        rows = rows.sort_values(KEY, kind="stable").reset_index(drop=True)
        write(self.table, lambda path: rows.to_csv(path, index=False, lineterminator="\n", float_format="%.10g"))
        return read_table(self.table)


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        DwlthError: if it is none.
    """
    try:
        record = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise DwlthError(f"{path}: not a record of a run (truncated?): {error}") from None
    if not isinstance(record, dict) or record.keys() != {"id", "status", "config", "result", "provenance"}:
        raise DwlthError(f"{path}: JSON, but not a record of a run")
    return record


def read_table(path: Path) -> pd.DataFrame:
    """A table of results: a row per finished run. SA and RA are fractions in [0, 1]; `sa` and `ra` are those of the
    network that the verdict looks at (see `dwlth.transfer`), `sa_best_ra` is the SA of the network with the best
    validation RA, and so on; in rows of stage `autoattack`, `ra` is under AutoAttack and `ra_pgd` under the evaluation
    attack on the same images. Empty text columns are empty strings.

    Raises:
        DwlthError: if the file is missing or no such table.
    """
    if not path.exists():
        raise DwlthError(f"{path}: no results here yet; `python -m dwlth run` makes them")
    if not path.read_bytes().endswith(b"\n"):
        raise DwlthError(f"{path}: not a table of results, or a truncated one: it does not end with a whole line")
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise DwlthError(f"{path}: not a table of results: {error}") from None
    missing = [column for column in ["id", *KEY, "sparsity", "sa", "ra", "seconds"] if column not in table]
    if missing:
        raise DwlthError(f"{path}: not a table of results: no column {missing[0]!r}")
    text = ["downstream", "regime"]
    return table.astype({column: object for column in text} | {"fraction": float}).fillna(
        {column: "" for column in text}
    )


def _row(record: dict[str, Any]) -> dict[str, Any]:
    config, result = record["config"], record["result"]
    row = {"id": record["id"]} | {column: config[column] for column in KEY}
    row |= {key: result[key] for key in ("sparsity", "n_train", "sa", "ra")} | {"ra_pgd": result.get("ra_pgd")}
    for best in ("best_sa", "best_ra"):
        values = result.get(best) or {}
        for key in ("epoch", "val_sa", "val_ra", "sa", "ra"):
            row[f"{key}_{best}"] = values.get(key)
    return row | record["provenance"]


def provenance(device: str, precision: str, together: int, seconds: float, command: str) -> dict[str, Any]:
    """Where a result comes from: its share of the wall time of so many runs `together`, hardware, versions, commit and
    command."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu()
    return {
        "seconds": round(seconds, 3),
        "together": together,
        "precision": precision,
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "dwlth": dwlth.__version__,
        "commit": _commit(),
        "command": command,
    }


@cache
def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _commit() -> str:
    """The commit of the checkout this package runs from, with a + where it has changes; empty outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return ""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "dwlth") else "")
