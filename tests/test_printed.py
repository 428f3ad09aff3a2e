"""Commands as they are printed, in the pages, the notebooks, the errors and on the last screen, work as printed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dwlth import presets
from dwlth.interface.commands import _parser, main
from dwlth.running import machine
from dwlth.running.settings import override

ROOT = Path(__file__).parents[1]
PROGRAMS = r"(?:python -m dwlth|papermill|voila|make|pip install|conda|source)"
STANDS_FOR = {"PRESET": "digits", "NAME=VALUE": "transfer.epochs=5", "pretrain.adversarial.where=FILE": "seeds=1"}


def texts():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield page, page.read_text()
    for page in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(page.read_text())["cells"]
        yield page, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for page in sorted((ROOT / "dwlth").rglob("*.py")):
        yield page, "\n".join(re.findall(r"`python -m dwlth [^`{}]*`", page.read_text()))
    yield ROOT / "help", _parser().format_help().partition("Examples:")[2].replace("\n  ", "\n    ")


def printed():
    found = {}
    for page, text in texts():
        for command in re.findall(rf"`({PROGRAMS} [^`]+)`|^ {{4}}({PROGRAMS} .+)$", text, re.M):
            if "plan|run" in "".join(command):  # the list of the commands
                continue
            for one in re.split(r"\s{2,}[#\w]", "".join(command))[0].split(" && "):
                found.setdefault(" ".join(one.split()), page)
    return sorted((command, page) for command, page in found.items())


COMMANDS = printed()


def test_there_are_commands_everywhere():
    pages = {page.suffix or page.name for _, page in COMMANDS}
    assert len(COMMANDS) > 20 and pages >= {".md", ".ipynb", ".py", "help"}
    words = {command.split()[0] for command, _ in COMMANDS}
    assert words >= {"python", "papermill", "voila", "make", "pip", "conda", "source"}


@pytest.mark.parametrize("command, page", COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_printed_command_is_one(command, page, monkeypatch):
    here = page.parent if command.startswith("papermill") and (page.parent / command.split()[1]).exists() else ROOT
    monkeypatch.chdir(here)
    words = [STANDS_FOR.get(word, word) for word in shlex.split(command)]
    if words[0] == "python":
        if "--help" in words:
            return
        args = _parser().parse_args(words[3:])
        if hasattr(args, "preset"):
            preset = override(presets.get(args.preset), args.set)
            assert set(getattr(args, "source", None) or []) <= {*preset.pretrain, *"".join(preset.pretrain)}
    elif words[0] == "papermill":
        context = pytest.importorskip("papermill.cli").papermill.make_context("papermill", words[1:])
        notebook = json.loads(Path(context.params["notebook_path"]).read_text())
        parameters = next(c["source"] for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
        for name, value in context.params["parameters"]:
            assert re.search(rf"^{name} *=", "".join(parameters), re.M), f"no parameter {name}"
            assert name != "preset" or value in presets.PRESETS
    elif words[0] == "voila":
        app = pytest.importorskip("voila.app").Voila()
        app.parse_command_line(words[1:])
        assert Path(app.extra_args[0]).exists()
    elif words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[0] == "pip":
        extra = re.fullmatch(r"\.\[(\w+)\]", words[-1]).group(1)
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    elif words[0] == "conda":
        file = (ROOT / "environment.yml").read_text()
        assert words[-1] == "environment.yml" or re.search(rf"^name: {words[-1]}$", file, re.M)
    else:
        assert words == ["source", ".venv/bin/activate"]


def test_the_commands_of_the_last_screen_run_in_a_new_shell(tmp_path, monkeypatch, capsys):
    """In a folder whose name has a space and an accent, with no environment active."""
    if not Path(sys.prefix, "bin", "activate").exists():
        pytest.skip("no virtual environment")
    here = tmp_path / "un été"
    (here / "my results" / "digits").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "digits" / "table.csv", here / "my results" / "digits")
    monkeypatch.chdir(here)
    monkeypatch.setattr("dwlth.interface.commands._draw", lambda folder: [])
    bare = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not p.startswith(sys.prefix))
    monkeypatch.setenv("PATH", bare)
    assert main(["run", "digits", "--results", "my results", "--data", "my data"]) == 0
    said = capsys.readouterr().out
    activate = re.search(r"^First, once in this shell.*: (source .*)$", said, re.M).group(1)
    verdict = re.search(r"all numbers: (.*)\)$", said, re.M).group(1)
    assert verdict == "python -m dwlth verdict digits --results 'my results' --data 'my data'"
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"} | {"PYTHONPATH": str(ROOT)}
    where = subprocess.run(["bash", "-c", f"{activate} && command -v python"], capture_output=True, text=True)
    assert Path(where.stdout.strip()).parent == Path(sys.prefix, "bin"), where.stderr
    shell = ["bash", "-c", f"{activate} && {verdict}"]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment, cwd=here)
    assert done.returncode == 0 and "Sparsest double-win tickets on digits5-9" in done.stdout, done.stderr


def test_nothing_is_said_of_activation_where_it_is_active(monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert machine.activation() == ""


def test_what_the_readme_runs_on_the_committed_results(tmp_path, monkeypatch, capsys):
    (tmp_path / "results" / "digits").mkdir(parents=True)
    for name in ("table.csv", "preset.json"):
        shutil.copy(ROOT / "results" / "digits" / name, tmp_path / "results" / "digits")
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text()
    for command in (
        "plan digits",
        "verdict digits",
        "inspect results/digits",
        "figures digits",
        "plan cifar-small --results mine",
    ):
        assert f"`python -m dwlth {command}`" in readme
        if command != "figures digits":  # the same as `Experiment.figures`, which tests/test_experiment.py draws
            assert main(command.split()) == 0, command


MAKES = [("VIRTUAL_ENV", {}), ("CONDA_PREFIX", {"CONDA_DEFAULT_ENV": "dwlth"})]


@pytest.mark.parametrize("name, more", MAKES, ids=["venv", "conda"])
def test_make_uses_the_environment_that_is_active(tmp_path, name, more):
    python = tmp_path / "un été" / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\n')
    python.chmod(0o755)
    kit = tmp_path / "kit été"
    kit.mkdir()
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / file, kit)
    bare = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHON") and not k.startswith("CONDA_")}
    environment = bare | {name: str(python.parents[1])} | more
    for _ in range(2):
        subprocess.run(["make", "quickstart"], cwd=kit, env=environment, check=True, capture_output=True)
    calls = (python.parent / "calls").read_text().splitlines()
    assert sum("pip install" in call for call in calls) == 2  # the package and the notebooks' extra, once each
    assert calls[-1] == "-m dwlth run digits --results quickstart" and not (kit / ".venv").exists()
    subprocess.run(["make", "clean"], cwd=kit, env=environment, check=True, capture_output=True)
    assert python.exists()


@pytest.mark.parametrize("active", [{}, {"CONDA_PREFIX": "/opt/conda", "CONDA_DEFAULT_ENV": "base"}])
def test_make_makes_its_own_environment_otherwise(active):
    bare = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHON") and not k.startswith("CONDA_")}
    for environment in (bare | active, bare | {"VIRTUAL_ENV": str(ROOT / ".venv")}):
        words = ["make", "--always-make", "-n", "quickstart"]
        said = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        assert "-m venv --clear .venv" in said and '".venv/bin/python" -m dwlth run digits' in said
    words = ["make", "--always-make", "-n", "PYTHON=python3.12", "quickstart"]
    said = subprocess.run(words, cwd=ROOT, env=bare | {"VIRTUAL_ENV": "/opt"}, capture_output=True, text=True).stdout
    assert "python3.12 -m venv --clear .venv" in said
