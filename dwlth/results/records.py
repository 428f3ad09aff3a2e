"""Records of runs, and the table made of them."""

import csv
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd

from dwlth.errors import DwlthError
from dwlth.files import read_json, write

KEY = ["stage", "source", "method", "downstream", "regime", "fraction", "round", "seed"]
"""Columns that tell the rows of a preset's table apart, and their order."""
SEAL = "checksum"
"""The last column of a table on disk."""
AGAIN = "restore the file, or delete it: rows whose record is there are made again at once, others by `run`"


BARRIERS = ["barrier_sa", "barrier_ra", "barrier_loss", "barrier_adversarial_loss"]
"""Columns of the stage `connect`; see `dwlth.controls.connectivity`."""


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        DwlthError: if it is none, is damaged, or has the name of another run's.
    """
    record = read_json(path, "record of a run")
    if record.keys() != {"id", "status", "config", "result", "provenance"}:
        raise DwlthError(f"{path}: JSON, but not a record of a run")
    if missing := [name for name in KEY if name not in record["config"]]:  # of an earlier version, without a checksum
        raise DwlthError(f"{path}: not a record of a run: its config has no {missing[0]!r}")
    if record["status"] not in ("ok", "failed", "refused"):
        raise DwlthError(
            f"{path}: not a record of a run: its status is {record['status']!r}, not ok, failed or refused"
        )
    if path.stem != record["id"] and re.fullmatch("[0-9a-f]{12}", path.stem):
        raise DwlthError(f"{path}: not a record of the run {path.stem}, but of {record['id']}")
    return record


def read_table(path: Path | str) -> pd.DataFrame:
    """A table of results: a row per run that has ended; its `status` is ok, or failed, and then it has no SA and RA.
    These are fractions in [0, 1]; `sa` and `ra` are those of the network that the verdict looks at (see
    `dwlth.transfer`), `sa_best_ra` is the SA of the network with the best validation RA, and so on; in rows of stage
    `autoattack`, `ra` is under AutoAttack, always in float32, and `ra_pgd` under the evaluation attack on the same
    images; in rows of stage `connect` they are those of the network trained once more, and `BARRIERS` say what the way
    to it costs. Empty text columns are empty strings.

    Raises:
        DwlthError: if the file is missing or no such table, or a row is not as it was written.
    """
    path = Path(path)
    if not path.exists():
        raise DwlthError(f"{path}: no results here yet; `python -m dwlth run PRESET` makes them")
    table = read_rows(path, "a table of results", ["id", *KEY, "sparsity", "sa", "ra", "seconds"], AGAIN)
    text = ["downstream", "regime"]
    table = table.astype({column: object for column in text} | {"fraction": float}).fillna(
        {column: "" for column in text}
    )
    table["status"] = table.get("status", "ok")  # before, there were finished runs only
    own = table["source_seed"] if "source_seed" in table else pd.Series(float("nan"), table.index)
    whole = [None if pd.isna(seed) else int(seed) for seed in own]  # None: the run's own seed
    table["source_seed"] = pd.Series(whole, table.index, dtype=object)  # or else 0 becomes 0.0, and the id another one
    return table


def read_rows(path: Path, what: str, columns: list[str], again: str, **how: Any) -> pd.DataFrame:
    """The rows in a file of `write_table`, which has these columns and others; `how` is for `pandas.read_csv`.

    Raises:
        DwlthError: if it is none, has no row, or a row is not as it was written; `again` says how to make it again.
    """
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        raise DwlthError(f"{path}: not {what}, or a truncated one: it does not end with a whole line")
    try:
        # a commit such as 79047530e450 is no number; of a fraction the last digit counts, which pandas 2 reads roughly
        table = pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(("id", "commit", "fraction"), str), **how)
        if "fraction" in table:
            table["fraction"] = table["fraction"].map(float)
        lines = [line for line in csv.reader(io.StringIO(content.decode(), newline="")) if line]  # as pandas has them
    except (ValueError, csv.Error) as error:
        raise DwlthError(f"{path}: not {what}: {error}") from None
    if SEAL in lines[0]:
        _check_rows(path, lines, again)
        table = table.drop(columns=SEAL)
    elif len(lines) > 1 and re.fullmatch("[0-9a-f]{16}", lines[1][-1]):
        raise DwlthError(f"{path}: damaged: its last column is called {lines[0][-1]!r}, not {SEAL!r}; {again}")
    if missing := [column for column in columns if column not in table]:
        raise DwlthError(f"{path}: not {what}: no column {missing[0]!r}")
    if table.empty:
        raise DwlthError(f"{path}: {what} without a row; {again}")
    return table


def read_claims(path: Path) -> list[dict[str, Any]]:
    """The claims in the `claims.json` of an audit (`dwlth.running.audit`): one of each network.

    Raises:
        DwlthError: if the file is none, or is damaged.
    """
    claims = read_json(path, "file with the claims of an audit").get("claims")
    whole = lambda claim: isinstance(claim, dict) and {"file", "run", "checks"} <= claim.keys()
    if not isinstance(claims, list) or not all(map(whole, claims)):
        raise DwlthError(f"{path}: JSON, but not the claims of an audit, each with `file`, `run` and `checks`")
    return claims


def ended(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that did not fail."""
    return table[table["status"] == "ok"] if "status" in table else table


def percents(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that did not fail, with SA and RA in percent."""
    return ended(table).assign(sa=lambda rows: 100 * rows["sa"], ra=lambda rows: 100 * rows["ra"])


def sparsity_by_round(rows: pd.DataFrame) -> dict[int, float]:
    """The sparsity (a fraction) of the tickets in these rows, by IMP round."""
    return rows.groupby("round")["sparsity"].first().to_dict()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, each row with a checksum of its own, in the last column: rows can be sorted, filtered and put
    together, other programs read the file as any CSV, and no second file can be left behind."""
    table = table.infer_objects()  # numbers beside cells that are empty, which pandas else writes as 0.0, not 0
    if "source_seed" in table:  # as a whole number, whatever pandas made of it
        table = table.assign(source_seed=table["source_seed"].astype(float).astype("Int64"))
    if "fraction" in table:  # which the id is made of: in full where ten digits are another number, as of 1/3
        short = table["fraction"].map("{:.10g}".format)
        table = table.assign(
            fraction=short.where(short.astype(float) == table["fraction"], table["fraction"].map(repr))
        )
    text = table.to_csv(index=False, lineterminator="\n", float_format="%.10g")
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    sealed = io.StringIO(newline="")
    rows = ([*line, _row_seal(header, line)] for line in lines)
    csv.writer(sealed, lineterminator="\n").writerows([[*header, SEAL], *rows])
    write(path, lambda beside: beside.write_text(sealed.getvalue(), "utf-8", newline="\n"))


def _row_seal(header: list[str], cells: list[str]) -> str:
    """16 hex digits: the start of the SHA-256 of a row's cells with their columns' names, in any order."""
    named = sorted(f"{name}={cell}" for name, cell in zip(header, cells))
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]


def _check_rows(path: Path, lines: list[list[str]], again: str) -> None:
    """Raise where a row differs from its checksum; one without, of an earlier version, passes."""
    header, at = [name for name in lines[0] if name != SEAL], lines[0].index(SEAL)
    for number, line in enumerate(lines[1:], 2):
        cells, seal = line[:at] + line[at + 1 :], line[at] if len(line) > at else "none"
        if len(line) != len(lines[0]) or seal not in ("", _row_seal(header, cells)):
            raise DwlthError(f"{path}: damaged: line {number} ({cells[0]}) is not as it was written; {again}")


def row(record: dict[str, Any]) -> dict[str, Any]:
    config, result = record["config"], record["result"]
    row = {"id": record["id"]} | {column: config[column] for column in KEY}
    row["source_seed"] = config.get("source_seed")
    row["status"] = record["status"]
    row |= {key: result.get(key) for key in ("sparsity", "n_train", "sa", "ra", "ra_pgd")}  # a failed run has none
    row |= {key: result.get(key) for key in BARRIERS}
    for best in ("best_sa", "best_ra"):
        values = result.get(best) or {}
        for key in ("epoch", "val_sa", "val_ra", "sa", "ra"):
            row[f"{key}_{best}"] = values.get(key)
    return row | record["provenance"]
