"""The notebooks run headless, say what their table says, and are committed as a reader should find them."""

import ast
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dwlth import presets
from dwlth.experiment import Experiment
from dwlth.results import KEY
from dwlth.show import claims, figures, report
from dwlth.verdict import transfers, verdict

pytest.importorskip("papermill", reason="the notebooks need the extra dwlth[notebooks]")
nbconvert = pytest.importorskip("nbconvert", reason="the notebooks need the extra dwlth[notebooks]")
nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra dwlth[notebooks]")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
TINY = ["pretrain.epochs=1", "imp.epochs=1", "transfer.epochs=1", "evaluation.steps=2", "rounds=0,2,3", "seeds=3"]
TINY += [f"{stage}.adversarial.attack.steps=2" for stage in ("pretrain", "imp", "transfer")]
TINY += [f"{name}.validation.steps=2" for name in ("pretrain.fast_adversarial", "pretrain.adversarial")]
TINY += ["transfer.adversarial.validation.steps=2"]
WANT_FILES = [path for path in NOTEBOOKS if path.name[:2] not in ("00", "05", "08")]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def named(number):
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    return path


def outputs(notebook, kind):
    """All outputs of a kind, `image/png` say, in the order of the cells."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output.data[kind] for cell in cells for output in cell.outputs if kind in output.get("data", {})]


def plain(html):
    """An HTML table as its words."""
    return " ".join(re.sub(r"<style.*?</style>|<[^>]+>|\s+", " ", html, flags=re.DOTALL).split())


def shows(notebook, table):
    """Whether one output has each cell of a table, row by row."""
    rows = [" ".join(row.split()) for row in table.astype(str).agg(" ".join, axis=1).str.replace("&", "&amp;")]
    return any(all(row in text for row in rows) for text in map(plain, outputs(notebook, "text/html")))


def run(path, out, results, *parameters):
    """Run a notebook with papermill, in a process of its own; returns that process when it is done."""
    out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "papermill", path, out / path.name, "--cwd", path.parent, "--no-progress-bar"]
    words += ["-p", "results", results, "-p", "data", out / "data", *parameters]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(out)}
    environment.pop("DWLTH_RESULTS", None)
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, timeout=600)


def run_all(jobs):
    """Several at a time; returns the processes, and what they wrote."""
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda job: run(*job), jobs))
    written = [job[1] / job[0].name for job in jobs]
    return [(process, nbformat.read(path, 4) if path.exists() else None) for process, path in zip(ended, written)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A `digits` that trains in a moment, with its results."""
    experiment = Experiment("digits", tmp_path_factory.mktemp("tiny"), settings=TINY)
    assert experiment.have(experiment.runs(), files=True)
    return experiment


@pytest.fixture(scope="module")
def executed(tiny, tmp_path_factory):
    """Each notebook, run on the tiny results."""
    out = tmp_path_factory.mktemp("executed")
    before = sorted((ROOT / "notebooks").iterdir())
    ended = run_all([(path, out, tiny.folder.root, "-y", f"settings: {TINY}") for path in NOTEBOOKS])
    assert sorted((ROOT / "notebooks").iterdir()) == before
    return dict(zip(NOTEBOOKS, ended))


@each
def test_runs_from_top_to_bottom(path, executed):
    process, notebook = executed[path]
    assert process.returncode == 0, process.stderr[-2000:]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_what_is_shown_is_what_the_table_says(executed, tiny):
    table, margins = tiny.table(), tiny.preset.margins
    notebook = {path.name[:2]: notebook for path, (_, notebook) in executed.items()}
    assert shows(notebook["01"], figures.summary(table[table["stage"] == "pretrain"], "source"))
    found = report.readable(verdict(table, margins))
    for number, rows in (("03", found[found["data"] == "100%"]), ("04", found), ("05", found)):
        assert shows(notebook[number], rows.drop(columns=["data", "source"])), number
    assert shows(
        notebook["05"],
        report.readable_tests(tiny.tests().query("in_sequence")).drop(columns=["data", "source", "sparsity"]),
    )
    assert shows(notebook["05"], report.readable_order(tiny.order())[["sparser", "tied", "less"]])
    for number in ("04", "05", "07"):
        assert shows(notebook[number], claims.scoreboard(table, margins)), number


def test_each_widget_has_a_static_twin(executed):
    for _, notebook in executed.values():
        pictures = len(outputs(notebook, "image/png"))
        html, _ = nbconvert.HTMLExporter(template_name="classic").from_notebook_node(notebook)
        assert len(re.findall(r"<img[^>]*?src=.data:image/png;base64,", html)) == pictures
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for i, cell in enumerate(cells):
            if "widgets.live(" in cell.source:
                assert outputs(nbformat.from_dict({"cells": cells[i + 1 : i + 2]}), "image/png"), cell.source


STRUCTURE = {"0", "10 %", "1 %", "20 %", "95 %", "256"}
"""Numbers that no table can make wrong: fractions that the paper names, IMP's rate, the level of a bound, a constant of
the code."""


@each
def test_prose_has_no_number_that_a_table_could_contradict(path):
    """And it makes no claim about one set of results: a number in prose is computed, in a cell of code."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "markdown":
            continue
        text = re.sub(
            r"\$\$.*?\$\$|\$.*?\$|`[^`]*`|\]\([^)]*\)|(?m:^    .*$)|(?m:^> \d\.)", " ", cell.source, flags=re.S
        )
        text = re.sub(r"\[\d\d\b|\b[A-Za-z]+-\d+\b|\b(19|20)\d\d\b", " ", text)  # a notebook, PGD-20, a year
        assert set(re.findall(r"\d[\d.,]*\d(?: ?%)?|\d(?: ?%)?", text)) <= STRUCTURE, cell.source
        assert "committed" not in text and not re.search(
            r"(?i)\b(half|third|fifth|tenth)s? of\b|points? (more|less)", text
        )


@pytest.fixture(scope="module")
def table_alone(tmp_path_factory):
    """The notebooks that want more than a table, at the preset `cifar-small`, of which there is a (planted) table and
    no other file: sources and tickets would take hours to make, and there are no images."""
    out, preset = tmp_path_factory.mktemp("table-alone"), presets.get("cifar-small")
    rng, rows = np.random.default_rng(0), []
    for run_ in preset.grid():
        row = {"id": preset.run_id(run_), **{column: getattr(run_, column) for column in KEY}}
        row |= {"source_seed": run_.source_seed, "status": "ok", "sparsity": 1 - 0.8**run_.round, "n_train": 100}
        level = 0.7 - 0.1 * (run_.fraction < 1) - 0.002 * run_.round + 0.01 * rng.standard_normal()
        rows.append(row | {"sa": level, "ra": level / 2, "seconds": 100.0})
    folder = out / "results" / preset.name
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    (out / "data" / "cifar10").mkdir(parents=True)  # a person's own, and empty: nothing is downloaded
    jobs = [(path, out, out / "results", "-p", "preset", "cifar-small") for path in WANT_FILES]
    return out, dict(zip(WANT_FILES, run_all(jobs)))


@pytest.mark.parametrize("path", WANT_FILES, ids=lambda path: path.stem)
def test_a_table_alone_is_enough_and_nothing_long_is_begun(path, table_alone):
    out, ended = table_alone
    process, notebook = ended[path]
    assert process.returncode == 0, process.stderr[-2000:]
    assert [file.name for file in (out / "results").rglob("*.*")] == ["table.csv"]
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ()))
    if path.name[:2] != "07":
        assert re.search(
            r"runs are left, about .* here .*`experiment.have\(..., files=True, minutes=1e6\)` does", printed
        )


@pytest.fixture(scope="module")
def with_other_parameters(tiny, tmp_path_factory):
    """Notebooks with parameters of their own: another source; two that find no results, and train at once; one that
    would take too long, and finds none."""
    out = tmp_path_factory.mktemp("parameters")
    one = [*TINY, "seeds=1"]
    jobs = {
        "another source": (named("03"), tiny.folder.root, "-y", f"settings: {TINY}", "-p", "source", "standard"),
        "transfers": (named("03"), out / "empty", "-y", f"settings: {one}"),
        "insides": (named("06"), out / "empty", "-y", f"settings: {one}", "-p", "ticket", "2"),
        "too long": (named("03"), out / "none", "-y", "settings: [transfer.epochs=100000]"),
    }
    ended = run_all([(path, out / name, *words) for name, (path, *words) in jobs.items()])
    return out, dict(zip(jobs, ended))


def test_another_source_is_another_parameter(with_other_parameters, tiny):
    process, notebook = with_other_parameters[1]["another source"]
    assert process.returncode == 0, process.stderr[-2000:]
    runs = transfers(tiny.table(), "digits5-9", 1.0)
    assert shows(notebook, figures.summary(runs[runs["source"] == "standard"], "regime", "sparsity"))


def test_two_notebooks_train_what_is_missing_and_lose_nothing(with_other_parameters, tiny):
    out, ended = with_other_parameters
    for name in ("transfers", "insides"):
        process, notebook = ended[name]
        assert process.returncode == 0, process.stderr[-2000:]
        assert outputs(notebook, "image/png")
    done = Experiment("digits", out / "empty", settings=[*TINY, "seeds=1"]).table()
    wanted = {tiny.preset.run_id(run_) for run_ in tiny.transfers(fraction=1.0, seed=0)}
    assert wanted <= set(done["id"])
    assert {"imp", "oneshot", "random"} <= set(done["method"])


def test_what_would_take_too_long_is_said_and_not_begun(with_other_parameters):
    out, ended = with_other_parameters
    process, notebook = ended["too long"]
    assert process.returncode != 0 and not (out / "none").exists()
    (error,) = (o for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "error")
    assert len(error.traceback) == 1 and "NotYet" in error.traceback[0]  # there is no table to go on with
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ()))
    assert re.search(r"\d+ runs are left, about .*`python -m dwlth run digits --set transfer.epochs=100000`", printed)


@each
def test_cells_are_short_and_name_runs_by_the_experiment(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in cells) == 1
    assert sum("experiment = Experiment(preset, results, data, settings=settings)" in c.source for c in cells) == 1
    for cell in cells:
        assert "Run(" not in cell.source and "Folder(" not in cell.source, cell.source
        if "parameters" not in cell.metadata.get("tags", ()):
            source = re.sub(r"(?m)^(\s*)[!%].*", r"\1pass", cell.source)
            statements = [s for s in ast.walk(ast.parse(source)) if isinstance(s, ast.stmt)]
            counted = [s for s in statements if not isinstance(s, (ast.Import, ast.ImportFrom))]
            assert len(counted) <= 9, f"{len(counted)} statements in a cell:\n{cell.source}"


@each
def test_is_committed_as_a_reader_should_find_it(path):
    text, notebook = path.read_text(encoding="utf-8"), nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "python notebooks/execute.py"
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert "widgets" not in notebook.metadata and '"papermill":' not in text and WIDGET not in text
    printed = [output.get("text", "") for cell in cells for output in cell.outputs]
    printed = "".join(printed + outputs(notebook, "text/plain") + outputs(notebook, "text/html"))
    assert not re.search(r"(?<![\w.:/])(/(home|root|tmp|work|mnt|opt|usr|var|content|Users)/|[A-Z]:\\)", printed)


def test_the_committed_outputs_are_those_of_the_committed_results(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("figures", "networks"))
    digits = Experiment("digits", tmp_path / "results")
    found = report.readable(digits.verdict())
    for number, rows in (("03", found[found["data"] == "100%"]), ("04", found), ("05", found)):
        assert shows(nbformat.read(named(number), 4), rows.drop(columns=["data", "source"])), number
    for number in ("04", "05", "07"):
        assert shows(nbformat.read(named(number), 4), digits.scoreboard()), number


@each
def test_colab_is_in_the_first_notebook_and_elsewhere_a_line(path):
    (repository,) = re.findall(r'^Repository = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    notebook = nbformat.read(path, 4)
    if path != NOTEBOOKS[0]:
        assert "On Colab, first run the set-up cell of [00](00_start_here.ipynb) here." in notebook.cells[0].source
        assert "Colab" not in "".join(cell.source for cell in notebook.cells[1:])
        return
    place = repository.removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name}"
    assert f"({address})" in notebook.cells[0].source
    first = next(cell for cell in notebook.cells if cell.cell_type == "code").source
    assert f'REPOSITORY = "{repository}"' in first and 'find_spec("dwlth") is None' in first


def test_links_between_the_notebooks_lead_somewhere():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            for link in re.findall(r"\]\(([^)#:]+\.ipynb)\)", cell.source):
                assert (path.parent / link).exists(), f"{path.name}: {link}"
