"""Run the notebooks in place, top to bottom, and leave them as a reader should find them:

    python notebooks/execute.py                             # all of them
    python notebooks/execute.py 03_standard 05_paper        # those whose names begin so

Outputs stay; what belongs to this one execution goes (see `clean`). The table of the first notebook gets the runtimes.
Needs papermill (the extra `notebooks`).
"""

import re
import sys
import time
from pathlib import Path

import nbformat
import papermill

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop widgets' state, which GitHub may refuse to show, and widgets' views, which are nothing without it: a cell
    shows widgets of ours keeps their text, a progress bar keeps nothing. Drop papermill's notes and times."""
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)} | {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        if cell.cell_type != "code":
            continue
        ours = lambda output: WIDGET not in output.get("data", {}) or output.data["text/plain"].startswith("(widgets")
        cell.outputs = [output for output in cell.outputs if ours(output)]
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def execute(path: Path) -> None:
    """Run one notebook and write it back; where a cell fails, it stays as it was."""
    notebook = clean(papermill.execute_notebook(path, None, cwd=HERE, progress_bar=False))
    path.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8")


def note(name: str, seconds: float) -> None:
    """Write the runtime of a notebook into the table of the first one."""
    first = HERE / "00_start_here.ipynb"
    row = re.compile(rf"(\({re.escape(name)}\)[^\n]*\| )\d+ s \|")
    first.write_text(row.sub(rf"\g<1>{seconds:.0f} s |", first.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if len(sys.argv) == 1 or path.name.startswith(tuple(sys.argv[1:])):
            began = time.time()
            execute(path)
            note(path.name, time.time() - began)
            print(f"{path.name}: {time.time() - began:.0f} seconds")
