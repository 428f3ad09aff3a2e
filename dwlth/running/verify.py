"""Checking the results of a preset: whole, of these settings, and none missing. Nothing is changed on disk."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dwlth.errors import DwlthError
from dwlth.files import read_about
from dwlth.results import Folder, read_claims, read_record, read_table
from dwlth.results.folder import read_preset
from dwlth.results.records import SEAL
from dwlth.runs import Run
from dwlth.training import read_checkpoint

COLUMNS = ("whole", "without checksum", "damaged", "of other settings", "missing")
"""What is counted of each kind. Files without a checksum are of an earlier version: read, but not known to be whole."""
MARKS = {".json": b'"checksum": "', ".safetensors": rb"\"sha256\": \"", ".pt": b"\nsha256 ", ".csv": b",checksum\n"}
SHOWN = 20
"""So many faults are listed."""


def verify(folder: Folder, files: bool = False) -> tuple[str, bool]:
    """A table of what is there, the faults below it, and whether there is none.

    A run of the grid is missing if neither the table nor a record has it. Its source, ticket or network is missing if
    it is not on disk; only with `files` is that a fault, as `run` makes again what it needs.
    """
    preset, counts, faults = folder.preset, {}, []
    runs = {preset.run_id(run): run for run in preset.grid()}

    def look(kind: str, paths: list[Path], fault: Callable[[Path], str | None]) -> None:
        """Count files; `fault` reads one, raises where it is damaged, and says which settings it is of if others."""
        counts[kind] = Counter()
        for path in paths:
            try:
                said = fault(path)
                sealed = MARKS[path.suffix] in path.read_bytes()
                column = "of other settings" if said else "whole" if sealed else "without checksum"
            except (DwlthError, OSError, KeyError, TypeError) as error:
                column, said = "damaged", str(error) if isinstance(error, (DwlthError, OSError)) else repr(error)
            counts[kind][column] += 1
            if said:
                faults.append(said if str(path) in said else f"{path}: {said}")

    done, brought, rows = set(), set(), Counter()

    def of_record(path: Path) -> str | None:
        record = read_record(path)
        if not folder.owns(record["config"], record["id"]):
            return "of other settings"
        if record["status"] in ("ok", "failed"):
            done.add(record["id"])
        return None

    def of_preset(path: Path) -> str | None:
        return None if preset.is_of(read_preset(path)) else "of other settings"

    ends = {
        **{folder.source(run): run for run in runs.values() if run.stage == "pretrain"},
        **{folder.ticket(run.pruned): run for run in runs.values() if run.stage == "imp"},
        **{folder.network(run): run for run in runs.values() if run.stage == "transfer"},
    }

    def of_file(kind: str) -> Callable[[Path], str | None]:
        def fault(path: Path) -> str | None:
            about = read_about(path, kind)
            if about.get("method", "imp").startswith("imported"):
                brought.add(path)
            if path in ends:
                wanted = preset.run_id(ends[path])
            elif kind == "network":  # beyond this grid, as after --seeds
                wanted = path.stem
            else:
                stage, round_ = ("pretrain", 0) if kind == "source" else ("imp", about["round"] - 1)
                method = about.get("method", "imp")
                method = "imp" if kind == "source" or method.startswith("imported") else method
                wanted = folder.id_of(Run(stage, about["source"], about["seed"], round_, method))
            return None if about["id"] == wanted else f"of the run {about['id']}, where {wanted} should be"

        return fault

    look("preset.json", list(folder.path.glob("preset.json")), of_preset)
    look("sources", sorted((folder.path / "sources").glob("*.safetensors")), of_file("source"))
    look("tickets", sorted((folder.path / "tickets").glob("*/*.safetensors")), of_file("ticket"))
    look("networks", sorted((folder.path / "networks").glob("*.safetensors")), of_file("network"))
    look("checkpoints", sorted((folder.path / "checkpoints").glob("*.pt")), lambda path: read_checkpoint(path) and None)
    look("records", sorted((folder.path / "runs").glob("*.json")), of_record)

    look("audit.csv", list(folder.path.glob("audit.csv")), lambda path: len(folder.audit()) and None)
    look("claims.json", list(folder.path.glob("claims.json")), lambda path: read_claims(path) and None)

    if folder.table.exists():
        try:
            table = read_table(folder.table)
            seals = pd.read_csv(folder.table).get(SEAL, pd.Series(index=table.index)).notna()
            for fields, sealed in zip(table.to_dict("records"), seals):
                own = folder.owns(fields, fields["id"])
                rows["of other settings" if not own else "whole" if sealed else "without checksum"] += 1
                done |= {fields["id"]} if own else set()
            if others := rows["of other settings"]:
                faults.append(f"{folder.table}: {others} rows are of other settings")
            if twice := int(table["id"].duplicated().sum()):
                faults.append(f"{folder.table}: {twice} rows are of a run that an earlier row is of")
        except DwlthError as error:
            rows["damaged"] += 1
            faults.append(str(error))
    absent = [run for id_, run in runs.items() if id_ not in done and folder.made(run) not in brought]
    rows["missing"] = len(absent)
    counts["rows of the table"] = rows
    faults += [f"missing: {run}" for run in absent]
    keeps = {"sources": "pretrain", "tickets": "imp"} | ({"networks": "transfer"} if preset.keep_networks else {})
    for kind, stage in keeps.items():
        lost = [path for path, run in ends.items() if run.stage == stage and not path.exists()]
        counts[kind]["missing"] = len(lost)
        faults += [f"{path}: missing" for path in lost] if files else []

    shown = pd.DataFrame({kind: [found[column] for column in COLUMNS] for kind, found in counts.items()}, COLUMNS).T
    lines = [shown.to_string(), *faults[:SHOWN]]
    lines += [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    aside = len(list(folder.path.rglob("*.bad")))
    lines += [f"{aside} files were set aside as *.bad"] if aside else []
    where = f"{folder.path}, {len(runs)} runs"
    fine = f"{where}: all there, and nothing wrong"
    fine += (
        "" if files else "; `run` makes a missing file again where a run that is left needs it (`--files` lists all)"
    )
    lines.append(f"{where}: {len(faults)} faults" if faults else fine)
    return "\n".join(lines), not faults
