"""Saying what a file is, and what there is on this machine."""

from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open

from dwlth import results
from dwlth.data import DATASETS
from dwlth.errors import DwlthError
from dwlth.files import read_about
from dwlth.outside import checkpoints
from dwlth.results import Folder
from dwlth.results.folder import read_preset, run_of
from dwlth.results.records import read_rows
from dwlth.running.machine import this_machine
from dwlth.tickets import load

FILES = ("preset.json", "table.csv")
"""Of a preset's results: those that a folder is known by."""


def describe(file: str | Path, unsafe: bool = False) -> str:
    """One paragraph about a source, a ticket, a transferred network, a record, a table, a `preset.json`, an audit's
    `audit.csv` or `claims.json`, the paper's numbers, or a checkpoint from elsewhere; or about a folder of results, of
    one preset or of several, or of images.

    Args:
        unsafe: for a checkpoint, see `dwlth.outside.checkpoints.read`.

    Raises:
        DwlthError: if the file is missing, truncated or none of these.
    """
    path = Path(file)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DwlthError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors" and not _foreign(path):
        about = read_about(path)
        if about["kind"] == "ticket":
            mask, about = load(path)
            return (
                f"{path}: ticket {about['round']} of the {about['source']} source, seed {about['seed']}, by "
                f"{about['method']} (preset {about['preset']}, run {about['id']}): keeps {mask.kept:,} of "
                f"{mask.total:,} convolution weights in {len(mask)} layers, a sparsity of {mask.sparsity:.2%}; "
                f"belongs to the weights {about['belongs_to']}."
            )
        if about["kind"] == "network":
            return (
                f"{path}: the network of {about['run']}, with SA {_percent(about['sa'])}, RA {_percent(about['ra'])}."
            )
        return (
            f"{path}: the {about['source']} pre-training source, seed {about['seed']} (preset {about['preset']}, run "
            f"{about['id']}): a {about['network']} for the {about['classes']} classes of {about['task']}, with SA "
            f"{_percent(about['sa'])} and RA {_percent(about['ra'])} on its test set."
        )
    if path.name == "preset.json":
        return _preset(path)
    if path.name == "claims.json":
        claims = results.read_claims(path)
        files = ", ".join(claim["file"] for claim in claims)
        return f"{path}: what an audit found of {len(claims)} networks, in RobustBench's fields: {files}."
    if path.name == "audit.csv":
        rows = read_rows(path, "an audit", ["check", "verdict", "id"], "restore the file", keep_default_na=False)
        count = f"{(rows['verdict'] != '').sum()} checks of {rows['id'].nunique()} networks"
        return f"{path}: an audit: {count}, of which {(rows['verdict'] == 'fails').sum()} fail."
    if path.suffix == ".json":
        record = results.read_record(path)
        run = run_of(record["config"])
        result = record["result"]
        measured = record["status"] == "ok"
        said = f"SA {_percent(result['sa'])}, RA {_percent(result['ra'])}" if measured else result["error"]
        return f"{path}: record of run {record['id']}, {run}: {record['status']}, {said}."
    if path.suffix == ".csv" and path.read_bytes().startswith(b"source,downstream,round,sparsity,provenance\n"):
        paper = read_rows(path, "tickets of the paper", ["source", "downstream", "sparsity"], "restore the file")
        tickets = "; ".join(f"{row.source} on {row.downstream} {_percent(row.sparsity)}" for row in paper.itertuples())
        return f"{path}: {len(paper)} sparsest double-win tickets that the paper names: {tickets}."
    if path.suffix == ".csv":
        table = results.read_table(path)
        ended = results.ended(table)
        stages = ", ".join(f"{count} {stage}" for stage, count in ended["stage"].value_counts().items())
        lost = f" and {len(table) - len(ended)} failed ones" if len(ended) < len(table) else ""
        return f"{path}: a table of {len(ended)} finished runs ({stages}){lost}, {table['seed'].nunique()} seeds."
    return checkpoints.describe(path, unsafe)


def _preset(path: Path) -> str:
    """About the numbers of a preset, as `Folder.write_preset` writes them."""
    try:
        numbers = read_preset(path)
        about = {name: numbers[name] for name in ("name", "network", "upstream", "pretrain", "transfer", "rounds")}
        tasks = ", ".join(numbers["downstream"])
        percents = ", ".join(f"{fraction:.4g}" for fraction in (100 * each for each in numbers["fractions"]))
        seeds = numbers["seeds"]
    except (KeyError, TypeError) as error:
        raise DwlthError(f"{path}: not the numbers of a preset (truncated or foreign): {error}") from None
    return (
        f"{path}: the numbers of the preset {about['name']}: a {about['network']}, {about['upstream']} to {tasks}; "
        f"sources {', '.join(about['pretrain'])}; transfers {', '.join(about['transfer'])}; rounds "
        f"{', '.join(map(str, about['rounds']))}; {percents} % of the data; {seeds} seeds."
    )


def _folder(path: Path) -> str:
    """About a folder: of a preset's results, of the results of several, or of images."""
    counted = {"records of runs": "runs/*.json", "sources": "sources/*.safetensors"}
    counted |= {"tickets": "tickets/*/*.safetensors", "networks": "networks/*.safetensors"}
    counted |= {"trainings under way": "checkpoints/*.pt", "figures": "figures/*.png"}
    counted |= {"files set aside as unreadable": "**/*.bad"}
    if any((path / name).exists() for name in ("preset.json", "table.csv", "runs")):
        found = {what: len(list(path.glob(pattern))) for what, pattern in counted.items()}
        files = ", ".join(f"{count} {what}" for what, count in found.items() if count)
        lines = [f"{path}: results of a preset: {files or 'no finished run yet'}."]
        return "\n".join(lines + [describe(path / name) for name in FILES if (path / name).exists()])
    inner = [part for part in sorted(path.iterdir()) if part.is_dir()]
    presets = [part.name for part in inner if any((part / name).exists() for name in FILES)]
    if presets:
        return f"{path}: results of {len(presets)} presets: {', '.join(presets)}. Inspect one: {path / presets[0]}"
    if (path / "train").is_dir():
        classes = [part for part in (path / "train").iterdir() if part.is_dir()]
        images = sum(1 for part in classes for file in part.iterdir() if file.is_file())
        return f"{path}: a folder of images: train/ has {images:,} files in {len(classes)} classes."
    raise DwlthError(f"{path}: neither a folder of results (with table.csv or preset.json) nor of images (with train/)")


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"


def _foreign(path: Path) -> bool:
    """Whether this is a whole safetensors file that this project did not write."""
    try:
        with safe_open(path, "pt") as file:
            return "dwlth" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def environment(folder: Folder) -> pd.Series:
    """What there is to run a preset with here: versions, device, results and datasets. Downloads nothing."""
    device, workers = this_machine()
    about, preset = results.provenance(device, "", 1, 0.0, ""), folder.preset
    found = {key: about[key] for key in ("python", "torch", "torchvision", "dwlth")}
    found["device"] = f"{about['device']} ({device}, {workers} runs at a time)"
    rows = len(results.ended(results.read_table(folder.table))) if folder.table.exists() else 0
    found["results"] = f"{rows} finished runs of {preset.name}"
    for name in (preset.upstream, *preset.downstream):
        on_disk = DATASETS[name].on_disk if name in DATASETS else name.removeprefix("folder:")
        places = [Path(folder.data, on_disk), Path(folder.data, name)]
        here = "on disk" if any(place.exists() for place in places) else "not on disk"
        found[f"data: {name}"] = here if on_disk else "comes with scikit-learn"
    return pd.Series(found)
