"""The notebooks run headless, say what their table says, and are committed as a reader should find them."""

import ast
import base64
import importlib.util
import io
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
from PIL import Image

from dwlth import presets
from dwlth.interface.experiment import Experiment
from dwlth.results import KEY
from dwlth.show import idea, report, sentences
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
    words += ["-p", "results", results, "-p", "data", out / "data", "-p", "save_to", out / "figures", *parameters]
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
    assert experiment.have(experiment.runs(), files=True, minutes=1e6)
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
    assert shows(notebook["01"], report.summary(table[table["stage"] == "pretrain"], "source"))
    found = report.readable(verdict(table, margins))
    for number, rows in (("03", found[found["data"] == "100%"]), ("04", found), ("05", found)):
        assert shows(notebook[number], rows.drop(columns=["data", "source"])), number
    assert shows(
        notebook["05"],
        report.readable_tests(tiny.tests().query("in_sequence")).drop(columns=["data", "source", "sparsity"]),
    )
    assert shows(notebook["05"], report.readable_order(tiny.order())[["sparser", "tied", "less"]])
    for number in ("04", "05", "07"):
        assert shows(notebook[number], tiny.scoreboard()), number


def test_a_widget_is_a_picture_where_no_kernel_runs_and_never_both(executed):
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    for _, notebook in executed.values():
        for cell in notebook.cells:
            if "widgets.live(" in cell.source:
                (output,) = (output for output in cell.outputs if WIDGET in output.get("data", {}))
                assert {WIDGET, "image/png"} <= output.data.keys(), cell.source  # JupyterLab shows the first
        html, _ = nbconvert.HTMLExporter(template_name="classic").from_notebook_node(execute.clean(notebook))
        shown = re.findall(r"<img[^>]*?src=.data:image/png;base64,", html)
        assert len(shown) == len(outputs(notebook, "image/png")) and WIDGET not in html


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
            r"\$\$.*?\$\$|\$.*?\$|`[^`]*`|\| \d+ s \||\]\([^)]*\)|(?m:^    .*$)|(?m:^> \d\.)",
            " ",
            cell.source,
            flags=re.S,
        )
        text = re.sub(r"\[\d\d\b|\b[A-Za-z]+-\d+\b|\b(19|20)\d\d\b", " ", text)  # a notebook, PGD-20, a year
        assert set(re.findall(r"\d[\d.,]*\d(?: ?%)?|\d(?: ?%)?", text)) <= STRUCTURE, cell.source
        assert "committed" not in text and not re.search(
            r"(?i)\b(half|third|fifth|tenth)s? of\b|points? (more|less)", text
        )


@pytest.fixture(scope="module")
def table_alone(tmp_path_factory):
    """The notebooks that want more than a table, at the preset `cifar-small`, of which there is a (planted) table and
    no other file: sources and tickets would take hours to make, and there are no images. With all the data it has the
    dense networks alone, as a table has whose run is under way."""
    out, preset = tmp_path_factory.mktemp("table-alone"), presets.get("cifar-small")
    rng, rows = np.random.default_rng(0), []
    for run_ in preset.grid():
        if run_.stage == "transfer" and run_.fraction == 1 and run_.round:
            continue
        row = {"id": preset.run_id(run_), **{column: getattr(run_, column) for column in KEY}}
        row |= {"source_seed": run_.source_seed, "status": "ok", "sparsity": 1 - 0.8**run_.round, "n_train": 100}
        level = 0.7 - 0.1 * (run_.fraction < 1) - 0.002 * run_.round + 0.01 * rng.standard_normal()
        level += {"standard": 0.2, "fast_adversarial": 0.1, "adversarial": 0.0}[run_.source]  # unlike the kit's results
        rows.append(row | {"sa": level, "ra": level / 2, "seconds": 100.0})
    folder = out / "results" / preset.name
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False, float_format="%.10g")  # a source's seed is whole
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


def numbers(text):
    """The numbers in a text, without their signs."""
    return set(re.findall(r"\d[\d,]*(?:\.\d+)?", text))


@pytest.mark.parametrize("number", ["01", "03", "04"])
def test_sentences_say_what_another_table_says(number, table_alone):
    out, ended = table_alone
    _, notebook = ended[named(number)]
    table = pd.read_csv(out / "results" / "cifar-small" / "table.csv")
    said = re.sub(r"`[^`]*`", "", " ".join(outputs(notebook, "text/markdown")))
    shown = set().union(*(numbers(plain(html)) for html in outputs(notebook, "text/html")))
    seeds, runs = str(table["seed"].nunique()), f"{len(table):,}"
    assert f"{seeds} seeds, {runs} runs" in said  # the banner
    assert numbers(said) <= shown | {seeds, runs, "3.1"}, said  # the paper's eps
    if number != "04":
        assert said.count("highest with standard pre-training") >= 2 and "highest with adv" not in said
    else:
        changes = re.findall(r"changes RA after adversarial transfer by (.)\S+ points, and SA .*? by (.)\S+", said)
        assert changes == [("-", "-")] * 2 * table["fraction"].nunique()


def test_the_banner_names_the_results_and_where_the_others_are(tmp_path, monkeypatch):
    for name in ("results", "quickstart", "my-notebooks"):
        (tmp_path / name / "digits").mkdir(parents=True)
    (tmp_path / "results" / "digits" / "table.csv").touch()
    monkeypatch.chdir(tmp_path / "my-notebooks")
    table, quickstart = pd.DataFrame({"seed": [0, 1, 1]}), Experiment("digits", "../quickstart").folder
    said = sentences.banner(quickstart, table, tmp_path)
    assert "`../quickstart/digits`: 2 seeds, 3 runs" in said and "They are those of your quickstart." in said
    assert 'those that come with the kit, write `results = "../results"`' in said
    said = sentences.banner(Experiment("digits", "../results").folder, table[:1], tmp_path)
    assert "1 seed, 1 run." in said and "They are those that come with the kit." in said and "write" not in said
    assert "no results in `../mine/digits` yet" in sentences.banner(
        Experiment("digits", "../mine").folder, None, tmp_path
    )


@pytest.fixture(scope="module")
def with_other_parameters(tiny, tmp_path_factory):
    """Notebooks with parameters of their own: another source; two that find no results, and train at once; one that
    would take too long, and finds none."""
    out = tmp_path_factory.mktemp("parameters")
    one = [*TINY, "seeds=1"]
    for path in (ROOT / "results" / "digits").glob("**/*-s0*"):  # what comes with the kit
        if path.parent.name in ("sources", "tickets"):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            (place := out / "kit" / "digits" / path.parent.name).mkdir(parents=True, exist_ok=True)
            copy(path, place / path.name)
    shutil.copy(ROOT / "results" / "digits" / "table.csv", out / "kit" / "digits")
    jobs = {
        "another source": (named("03"), tiny.folder.root, "-y", f"settings: {TINY}", "-p", "source", "standard"),
        "transfers": (named("03"), out / "empty", "-y", f"settings: {one}"),
        "insides": (named("06"), out / "empty", "-y", f"settings: {one}", "-p", "ticket", "2"),
        "no such ticket": (named("06"), tiny.folder.root, "-y", f"settings: {TINY}", "-p", "ticket", "99"),
        "as it comes": (named("06"), out / "kit"),
        "too long": (named("03"), out / "none", "-y", "settings: [transfer.epochs=100000]"),
    }
    ended = run_all([(path, out / name, *words) for name, (path, *words) in jobs.items()])
    return out, dict(zip(jobs, ended))


def test_another_source_is_another_parameter(with_other_parameters, tiny):
    process, notebook = with_other_parameters[1]["another source"]
    assert process.returncode == 0, process.stderr[-2000:]
    runs = transfers(tiny.table(), "digits5-9", 1.0)
    assert shows(notebook, report.summary(runs[runs["source"] == "standard"], "regime", "sparsity"))


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


def test_a_ticket_that_does_not_exist_is_an_error_that_names_those_that_do(with_other_parameters):
    process, _ = with_other_parameters[1]["no such ticket"]
    assert process.returncode != 0 and "unknown ticket 99: choose from 0, 1, 2, 3" in process.stderr


def test_what_comes_with_the_kit_is_enough_and_its_table_stays_as_it_is(with_other_parameters):
    out, ended = with_other_parameters
    process, _ = ended["as it comes"]
    assert process.returncode == 0, process.stderr[-2000:]
    ours = (ROOT / "results" / "digits" / "table.csv").read_bytes()
    assert (out / "kit" / "digits" / "table.csv").read_bytes() == ours


def test_what_would_take_too_long_is_said_and_not_begun(with_other_parameters):
    out, ended = with_other_parameters
    process, notebook = ended["too long"]
    assert process.returncode != 0 and not (out / "none").exists()
    (error,) = (o for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "error")
    assert len(error.traceback) == 1 and "NotYet" in error.traceback[0]  # there is no table to go on with
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ()))
    assert re.search(r"\d+ runs are left, about .*`python -m dwlth run digits .*--set transfer.epochs=100000`", printed)


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
    assert shows(nbformat.read(named("04"), 4), Experiment("cifar-small", tmp_path / "results").scoreboard())


@each
def test_set_up_is_one_cell_and_the_same_everywhere(path):
    code = lambda path: [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert code(path)[1] == code(NOTEBOOKS[0])[1] and "experiment.banner()" in code(path)[1]
    assert "colab.research" not in path.read_text(encoding="utf-8")  # there is no address yet


@each
def test_ends_with_three_things_to_try_and_folded_answers(path):
    last = nbformat.read(path, 4).cells[-1].source
    assert last.startswith("## Three things to try")
    assert last.count("<details><summary>") == last.count("</summary>\n\n") == last.count("\n</details>") == 3


@each
def test_is_readable_at_1280_pixels_and_on_a_dark_page(path):
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or max(map(len, cell.source.splitlines())) <= 104, cell.source
    for png in outputs(notebook, "image/png"):
        picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
        assert picture.getpixel((0, 0)) == picture.getpixel((picture.width - 1, 0)) == (255, 255, 255, 255)


def test_the_first_notebook_shows_the_idea_and_every_notebook():
    cells = nbformat.read(NOTEBOOKS[0], 4).cells
    picture = ROOT / "docs" / "idea.png"
    assert "](../docs/idea.png)" in cells[0].source and "(07_explorer.ipynb)" in cells[0].source
    width, height = idea.idea().get_size_inches()  # `python -m dwlth.show.idea docs/idea.png`
    assert Image.open(picture).size == (150 * width, 150 * height)
    rows = re.findall(r"(?m)^\| \[\d\d\]\((.*?)\) [\w -]+ \|.*\| (\d+) s \|$", cells[1].source)
    assert [name for name, _ in rows] == [path.name for path in NOTEBOOKS] and all(int(s) for _, s in rows)
    assert len(re.findall(r"(?m)^\| \*\*\w+\*\* \|", cells[1].source)) == 10  # the words


def test_make_lab_works_on_copies_that_git_ignores(tmp_path):
    place = tmp_path / "Zoë's kit"
    (place / "notebooks").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, place)
    for path in NOTEBOOKS:
        shutil.copy(path, place / "notebooks")
    make = lambda *words: subprocess.run(["make", *words], cwd=place, capture_output=True, text=True, check=True).stdout
    copy = place / "my-notebooks" / NOTEBOOKS[0].name
    make(f"my-notebooks/{copy.name}")
    assert copy.read_bytes() == NOTEBOOKS[0].read_bytes()
    copy.write_text("mine")
    assert "cp notebooks/01" in (said := make("-n", "lab")) and "cp notebooks/00" not in said and "DWLTH" not in said
    (place / "quickstart" / "digits").mkdir(parents=True)
    (place / "quickstart" / "digits" / "table.csv").touch()
    assert re.search(r'DWLTH_RESULTS=../quickstart "?[^"]*bin/python"? -m jupyterlab', make("-n", "lab"))
    assert "quickstart" not in make("-n", "lab", "DWLTH_RESULTS=../mine")  # which make hands on
    assert {"/my-notebooks/", "/notebooks/figures/"} <= set((ROOT / ".gitignore").read_text().split())


def test_links_between_the_notebooks_lead_somewhere():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            for link in re.findall(r"\]\(([^)#:]+\.ipynb)\)", cell.source):
                assert (path.parent / link).exists(), f"{path.name}: {link}"
