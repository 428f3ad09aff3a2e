"""The benchmark runs, and its contenders do the same work. Its times are for a quiet machine, and are not looked at."""

import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = ["step", "evaluation", "last_step", "pruning", "ties", "tickets", "masking"]
ROWS += ["crops", "resized", "imports", "arithmetic", "small", "memory"]
PEERS = {  # of which none need be installed
    "step": ["torchattacks", "MadryLab robustness"],
    "evaluation": ["torchattacks", "foolbox", "cleverhans", "ART"],
    "last_step": ["torchattacks"],
}


def test_every_row_runs_and_its_contenders_agree(tmp_path):
    command = [sys.executable, "benchmarks/run.py", "--smoke", "--device", "cpu", "--out", str(tmp_path / "out.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["about"]["device"] and report["about"]["torch"] and report["about"]["sizes"]["batch"]
    rows = {name: row["summary"] for name, row in report["rows"].items()}
    assert list(rows) == ROWS
    for name, lines in rows.items():
        assert len(lines) > 1
        for contender, line in lines.items():
            if "absent" in line:
                assert contender in PEERS.get(name, ()) or "bfloat16" in line["absent"], line
                continue
            for value in (line["speed"], line["seconds"], line["ratio"], *line["range"]):
                assert math.isfinite(value) and value > 0
    for name in ("pruning", "ties", "tickets", "masking"):
        assert len({line["masks"] for line in rows[name].values()}) == 1
    for name in ("evaluation", "last_step"):
        ra = [line["ra"] for line in rows[name].values() if "ra" in line]
        assert len(ra) >= 2 and min(ra) > 0.1 and max(ra) - min(ra) <= 3.5 / report["about"]["sizes"]["test_images"]


def test_the_schedule_of_a_grid_is_that_of_a_hand_made_case():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from scaling import forward, schedule

    seconds = {"a1": 4.0, "a2": 4.0, "b": 3.0, "c": 3.0, "d": 2.0}  # a chain of two, and three that need nothing
    needs = {"a2": ["a1"]}
    assert schedule(seconds, needs, 1) == (16.0, 8.0)
    assert schedule(seconds, needs, 2) == (8.0, 8.0)  # the chain on one worker; b, c and d on the other
    assert schedule(seconds, needs, 64) == (8.0, 8.0)  # the chain is the limit
    assert schedule(seconds, {"a2": ["a1"], "b": ["a2"]}, 2) == (11.0, 11.0)
    assert 2 * 4.08e9 < forward("resnet50", 224) < 2 * 4.12e9  # 4.09 G products and sums, as torchvision's docs say


def test_the_page_on_scaling_holds_what_the_script_prints():
    ran = subprocess.run([sys.executable, "benchmarks/scaling.py"], cwd=ROOT, capture_output=True, text=True)
    page = (ROOT / "docs" / "scaling.md").read_text().splitlines()
    tables = [line for line in ran.stdout.splitlines() if line.startswith("|")]
    assert len(tables) > 20, ran.stderr
    assert [line for line in tables if line not in page] == []
