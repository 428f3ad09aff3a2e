"""Records of runs, and the table made of them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from dwlth.errors import DwlthError

KEY = ["stage", "source", "method", "downstream", "regime", "fraction", "round", "seed"]
"""Columns that tell the rows of a preset's table apart, and their order."""


BARRIERS = ["barrier_sa", "barrier_ra", "barrier_loss", "barrier_adversarial_loss"]
"""Columns of the stage `connect`; see `dwlth.connectivity`."""


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
    """A table of results: a row per run that has ended; its `status` is ok, or failed, and then it has no SA and RA.
    These are fractions in [0, 1]; `sa` and `ra` are those of the network that the verdict looks at (see
    `dwlth.transfer`), `sa_best_ra` is the SA of the network with the best validation RA, and so on; in rows of stage
    `autoattack`, `ra` is under AutoAttack and `ra_pgd` under the evaluation attack on the same images; in rows of stage
    `connect` they are those of the network trained once more, and `BARRIERS` say what the way to it costs. Empty text
    columns are empty strings.

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
    table = table.astype({column: object for column in text} | {"fraction": float}).fillna(
        {column: "" for column in text}
    )
    table["status"] = table.get("status", "ok")  # before, there were finished runs only
    own = table["source_seed"] if "source_seed" in table else pd.Series(float("nan"), table.index)
    table["source_seed"] = [None if pd.isna(seed) else int(seed) for seed in own]  # None: the run's own seed
    table["source_seed"] = table["source_seed"].astype(object).where(own.notna(), None)
    return table


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
