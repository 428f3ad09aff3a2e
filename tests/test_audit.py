"""The audit flags networks whose robustness is not real, and passes an honest one."""

import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from dwlth import presets
from dwlth.attacks import Attack
from dwlth.errors import DwlthError, NotYet
from dwlth.files import write_json
from dwlth.interface import commands
from dwlth.interface.commands import main
from dwlth.recipe import Recipe
from dwlth.results import Folder, read_claims, read_record
from dwlth.results.records import write_table
from dwlth.running import audit as running_audit
from dwlth.running import checks as running_checks
from dwlth.running.audit import audit_transfers
from dwlth.running.checks import active_test, audit, calibration_error
from dwlth.running.settings import override
from dwlth.runs import Run, plain
from dwlth.show.audit import checks, draw_audit
from dwlth.show.report import report_audit
from dwlth.training import STOP, OutOfTime, fit_members

ATTACK = Attack(0.15, 0.04, 10)
CHECK = ("check", "found", "honest", "verdict")
LONG = Attack(0.15, 0.02, 40)
"""With it, more steps and restarts change little, however a processor rounds: 0 to 1.7 points of 60 images, in four
trainings (`ATTACK`: up to 5)."""


class Quantised(nn.Module):
    """Its inputs are rounded: the gradient is 0, and an attack that follows it goes nowhere."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((16 * x).round() / 16)


class Saturated(Quantised):
    """Its logits are so large that the softmax saturates, and the loss of what it gets right has no gradient."""

    def forward(self, x):
        return 1e4 * self.model(x)


@pytest.fixture(scope="module")
def honest():
    from dwlth import data, models

    task = data.load("digits0-4")
    model = models.build("small_resnet", task.classes, task.mean, task.std, seed=0)
    recipe = Recipe(12, 64, 0.1, "onecycle", attack=replace(ATTACK, steps=5), validate_every=12)
    fit_members([model], recipe, [task.train], [task.val], seeds=[0])
    return model.eval(), task.test.take(list(range(60)))


@pytest.fixture
def brief(monkeypatch):
    """AutoAttack with a fifth of its steps and queries: it takes half a minute to say of a mask what this says."""
    pyautoattack = pytest.importorskip("pyautoattack", reason="needs the extra dwlth[autoattack]")

    class Brief(pyautoattack.AutoAttack):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            self.square.n_queries = 1000
            for attack in (self.apgd, self.apgd_targeted, self.fab):
                attack.n_iter = 20

    monkeypatch.setattr(pyautoattack, "AutoAttack", Brief)


def failed(model, test, other):
    table = audit(model, test, LONG, others={"itself": other})
    return {check.partition(",")[0] for check in table["check"][table["verdict"] == "fails"]}, table


def test_an_honest_network_passes(honest, brief):
    from dwlth import models

    model, test = honest
    other = models.build("small_resnet", 5, model.mean.flatten().tolist(), model.std.flatten().tolist(), seed=1).eval()
    checks, table = failed(model, test, other)  # its own images, with other starts, may be an image of 60 stronger
    assert checks == set(), table.to_string()
    assert len(table) > 12 and (table["verdict"] == "passes").sum() >= 8


def test_each_check_can_fail(honest, monkeypatch):
    def evaluate(model, split, attack, seed, **_):  # rises with eps; 5 times the steps, or 5 restarts, find more
        stronger = attack.restarts > 1 or attack.steps == 5 * LONG.steps
        return 0.9, 0.5 if attack.eps in (0, 0.5) else 0.4 + attack.eps / 10 - 0.2 * stronger

    monkeypatch.setattr(running_checks, "evaluate", evaluate)
    monkeypatch.setattr(running_checks, "autoattack", lambda model, x, y, **_: 0 * x)
    monkeypatch.setattr(running_checks, "active_test", lambda *_: (90, 100))
    found, table = failed(*honest, honest[0])
    expected = {"RA at eps 0", "RA at 0.25", "RA at eps 0.5", "RA under 5 times the steps", "RA under 5 restarts"}
    expected |= {"RA under Square", "RA under AutoAttack", "planted weaknesses that the attack finds"}
    assert found - {"RA under images made for itself"} == expected, table.to_string()


@pytest.mark.parametrize("masked", [Quantised, Saturated])
def test_masked_gradients_are_flagged(honest, masked, brief):
    model, test = honest
    checks, table = failed(masked(model).eval(), test, model)
    assert {"RA at eps 0.5", "RA under Square", "RA under images made for itself"} <= checks, table.to_string()


def test_the_active_test_finds_what_it_planted_unless_gradients_are_masked(honest):
    model, test = honest
    x, before = next(iter(test.batches(60)))[0], [p.clone() for p in model.parameters()]
    found, planted = active_test(model, x, ATTACK)
    assert planted >= 5 and found >= 0.9 * planted
    hidden, of = active_test(Quantised(model).eval(), x, ATTACK)
    assert of >= 5 and hidden <= 0.2 * of
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert not any(module._forward_hooks for module in model.modules())


def test_calibration_error_of_hand_made_cases(honest):
    _, test = honest

    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[30.0, 0, 0, 0, 0]]).repeat(len(x), 1)

    share = (test.labels == 0).double().mean().item()
    assert calibration_error(Sure(), test) == pytest.approx(1 - share, abs=1e-6)  # always sure, right in that share

    class Unsure(Sure):
        def forward(self, x):
            return torch.log(torch.tensor([[share] + [(1 - share) / 4] * 4])).repeat(len(x), 1)

    assert calibration_error(Unsure(), test) == pytest.approx(0 if share > 0.2 else abs(share - 0.2), abs=0.05)


def test_an_attack_without_steps_is_refused(honest):
    with pytest.raises(DwlthError, match="audit: the attack has 0 steps"):
        audit(*honest, Attack())


def test_the_command_writes_a_table_and_claims(tiny_args, tmp_path, capsys, monkeypatch):
    """A small network is audited on one thread, as it is trained. At this eps nothing stands, so it takes seconds."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = []
    counted = lambda *args, **named: threads.append(torch.get_num_threads()) or audit(*args, **named)
    monkeypatch.setattr("dwlth.running.audit.audit", counted)
    small = [*tiny_args, "--set", "autoattack_images=40", "--set", "rounds=0,2", "--set", "fractions=1.0"]
    small += ["--set", "evaluation.eps=0.8"]
    place = ["--results", str(tmp_path), "--workers", "1"]
    assert main(["run", "digits", *small, *place]) == 0
    capsys.readouterr()
    assert main(["audit", "digits", *small, *place, "--source", "adversarial", "--seeds", "1"]) == 0
    printed, networks = capsys.readouterr().out, len(threads)
    assert "RA under AutoAttack" in printed and "checks failed" in printed and set(threads) == {1}
    (table,) = tmp_path.glob("*/audit.csv")
    claims = read_claims(table.parent / "claims.json")
    assert claims[0]["evaluation"] == "AutoAttack (standard), the first 40 test images"
    assert claims[0]["autoattack_acc"] <= claims[0]["clean_acc"]
    assert (table.parent / claims[0]["file"]).exists()
    record = read_record(next(table.parent.glob("runs/*.json")))["provenance"]
    same = "device", "threads", "python", "torch", "torchvision", "dwlth", "commit", "precision"
    assert {name: claims[0][name] for name in same} == {name: record[name] for name in same}
    assert claims[0]["command"].startswith("python -m dwlth audit digits") and claims[0]["seconds"] > 0
    before = table.read_bytes(), (table.parent / "claims.json").read_bytes()
    assert main(["audit", "digits", *small, *place, "--source", "adversarial", "--seeds", "1"]) == 0
    assert len(threads) == networks  # none is audited twice
    assert before == (table.read_bytes(), (table.parent / "claims.json").read_bytes())
    found = Folder(replace(presets.get("digits"), name=table.parent.name), tmp_path).audit()
    last = found[found["id"] == found["id"].iloc[-1]]
    write_json(table.parent / "claims.json", {"claims": claims[:-1]})  # as if it was stopped before the last
    monkeypatch.setattr("dwlth.running.audit.audit", lambda *_, **named: named["tell"]("all") or last[[*CHECK]])
    assert main(["audit", "digits", *small, *place, "--source", "adversarial", "--seeds", "1"]) == 0
    assert before[0] == table.read_bytes()
    timeless = lambda all_: [claim | {"seconds": 0.0} for claim in all_]
    assert timeless(read_claims(table.parent / "claims.json")) == timeless(claims)
    (table.parent / "claims.json").unlink()
    capsys.readouterr()
    assert main(["audit", "digits", *small, *place, "--source", "adversarial", "--seeds", "1"]) == 2
    assert f"{table.parent / 'claims.json'}: missing, though {table} is there: restore it" in capsys.readouterr().err
    assert before[0] == table.read_bytes()
    table.unlink()
    assert main(["audit", "digits", *small, *place, "--source", "adversarial", "--seeds", "1", "--workers", "2"]) == 0
    by = ["id", "check"]  # whichever was ready first
    again = Folder(replace(presets.get("digits"), name=table.parent.name), tmp_path).audit()
    again = again.sort_values(by, ignore_index=True)
    pd.testing.assert_frame_equal(again, found.sort_values(by, ignore_index=True), check_dtype=False)
    assert len(threads) == networks  # in processes of their own
    wide = checks(found)
    assert wide.index[0] == "SA and RA" and len(wide.columns) == 1 + len(claims)
    assert f"{claims[0]['autoattack_acc']:.1f} % (" in wide.loc["RA under AutoAttack"].iloc[1]
    radii = draw_audit(found).axes[0].get_lines()[0].get_ydata()
    assert len(radii) == 6 and radii[0] == claims[0]["clean_acc"] and radii[3] == claims[0]["pgd_acc"]


def test_an_audit_of_a_part_keeps_the_others_and_one_that_is_stopped_goes_on(tmp_path, monkeypatch):
    folder = Folder(replace(presets.get("digits"), seeds=2, fractions=(1.0, 0.1)), tmp_path)
    runs = [run for run in folder.preset.grid() if run.regime == "adversarial" and run.round == 0]
    rows = pd.DataFrame([{"check": "SA", "found": "1 %", "honest": "", "verdict": "passes"}])
    begun = []

    def entry(folder, run, evaluation, others, command, tell=None):
        begun.append(run)
        if len(begun) == 2:
            STOP.set()  # as a signal does
        about = {"id": folder.preset.run_id(run), "source": run.source, "sparsity": 0.0, "seed": run.seed}
        claim = {
            "evaluation": evaluation,
            "run": plain(run),
            "checks": len(rows),
            "file": f"networks/{about['id']}.safetensors",
        }
        return rows.assign(**about), claim

    monkeypatch.setattr("dwlth.running.audit._entry", entry)
    with pytest.raises(NotYet, match="no network to audit"):
        audit_transfers(folder, [])
    (tmp_path / "file").touch()
    with pytest.raises(DwlthError, match="file/digits: cannot be written"):  # before anything is audited
        audit_transfers(replace(folder, root=tmp_path / "file"), runs)
    assert not begun
    with pytest.raises(OutOfTime):
        audit_transfers(folder, runs)
    STOP.clear()
    with pytest.raises(OutOfTime):
        audit_transfers(folder, runs, deadline=0.0)
    assert folder.audit()["id"].nunique() == len(begun) == 2
    assert audit_transfers(folder, runs)["id"].nunique() == len(begun) == len(runs) == 12
    part = replace(folder, preset=replace(folder.preset, seeds=1, fractions=(0.1,), autoattack_images=20))
    few = [run for run in part.preset.grid() if run in runs]
    assert audit_transfers(part, few)["id"].nunique() == len(runs) and len(begun) == len(runs) + len(few)


def test_no_network_is_begun_once_it_is_time(monkeypatch):
    begun, gate = [], threading.Event()

    def entry(number):
        begun.append(number)
        assert gate.wait(60)
        return number, {}

    monkeypatch.setattr(running_audit, "_entry", entry)
    jobs = {Run("transfer", "standard", seed, 0): (seed,) for seed in range(6)}
    asked = itertools.count()
    with ThreadPoolExecutor(2) as pool:
        entries = running_audit._side_by_side(pool, 2, jobs, lambda: next(asked) >= 3)  # after the third
        gate.set()
        assert sorted(run.seed for run, _ in entries) == sorted(begun) == [0, 1, 2]
        entries = running_audit._side_by_side(pool, 2, jobs, lambda: False)
        assert sorted(entry[0] for _, entry in entries) == [0, 1, 2, 3, 4, 5]


def test_an_audit_is_of_linf():
    with pytest.raises(DwlthError, match="the attack's norm is 'l2': the checks here are those of linf"):
        audit(nn.Flatten(), None, Attack(0.5, 0.1, 10, norm="l2"))


def test_networks_have_the_mean_over_seeds_and_those_of_several_tasks_columns_of_their_own():
    one = pd.DataFrame({"check": ["SA and RA", "RA at 0.5, 1 eps"], "found": ["90.0 and 50.0 %", "60.0, 50.0 %"]})
    one = one.assign(honest="", verdict=["", "passes"], source="standard", sparsity=0.0, seed=0, id="a")
    other = one.assign(found=["91.0 and 54.0 %", "70.0, 54.0 %"], verdict=["", "fails"], seed=1, id="b")
    seeds = pd.concat([one, other])
    alone, both = checks(one)["Standard, dense"], checks(seeds)["Standard, dense"]
    assert alone.tolist() == ["90.0 and 50.0 %", "60.0, 50.0 % (passes)"]
    assert both.tolist() == ["90.5 and 52.0 %", "65.0, 52.0 % (1 of 2 pass)"]
    for found, title in ((one, "(one seed)"), (seeds, "one standard error over seeds")):
        assert draw_audit(found).get_suptitle().find(title) > 0
    (line,) = draw_audit(seeds).axes[0].get_lines()
    assert line.get_xydata().tolist() == [[0.0, 90.5], [0.5, 65.0], [1.0, 52.0]]
    tasks = pd.concat([one, one.assign(id="b")])
    assert checks(tasks).columns[1].endswith("id a") and len(draw_audit(tasks).axes[0].get_lines()) == 2
    said = report_audit(tasks)
    assert said.index("seed 0 (a)") < said.index("90.0") < said.index("seed 0 (b)") and said.count("90.0") == 2


def test_the_other_network_is_of_the_same_task_and_seed(tmp_path, monkeypatch):
    folder = Folder(override(presets.get("digits"), ["downstream=digits5-9,digits0-4"]), tmp_path)
    each = itertools.product(("digits5-9", "digits0-4"), (0, 1), ("standard", "adversarial"))
    runs = [Run("transfer", source, seed, 0, "imp", task, "adversarial") for task, seed, source in each]
    chosen = {}

    def entry(folder, run, evaluation, others, *_):
        chosen[run] = others
        row = {"check": "SA", "found": "1 %", "honest": "", "verdict": "", "id": folder.preset.run_id(run)}
        rows = pd.DataFrame([row | {"source": run.source, "sparsity": 0.0, "seed": run.seed}])
        claim = {"file": f"networks/{row['id']}.safetensors", "checks": 1, "evaluation": evaluation}
        return rows, claim | {"run": plain(run)}

    monkeypatch.setattr(running_audit, "_entry", entry)
    audit_transfers(folder, runs)
    assert len(chosen) == 8
    for run, (other,) in chosen.items():
        assert (other.downstream, other.seed, other.source != run.source) == (run.downstream, run.seed, True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: "", "does not end with a whole line"),
        (lambda text: "hello\n", "no column 'check'"),
        (lambda text: text[:-40], "does not end with a whole line"),
        (lambda text: text.splitlines(keepends=True)[0], "without a row"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-2]), "network b has 2 of 4 checks"),
        (lambda text: text.replace("passes", "fails", 1), "line 2 .SA. is not as it was written"),
    ],
)
def test_a_damaged_audit_is_named(spoil, says, tmp_path, capsys):
    folder = Folder(presets.get("digits"), tmp_path)
    names = [(id_, check) for id_ in "ab" for check in ("SA", "RA", "more steps", "more restarts")]
    rows = [{"check": check, "found": "1 %", "honest": "", "verdict": "passes", "id": id_} for id_, check in names]
    rows = pd.DataFrame(rows).assign(source="standard", sparsity=0.0, seed=0)
    write_table(folder.path / "audit.csv", rows)
    write_json(
        folder.path / "claims.json", {"claims": [{"file": f"networks/{id_}.x", "run": {}, "checks": 4} for id_ in "ab"]}
    )
    pd.testing.assert_frame_equal(folder.audit(), rows, check_dtype=False)
    path = folder.path / "audit.csv"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DwlthError, match=f"{path}.*{says}.*python -m dwlth audit digits|{path}.*{says}"):
        folder.audit()
    assert main(["verify", "digits", "--results", str(tmp_path)]) == 1
    assert re.search(f"audit.csv.*{says}", capsys.readouterr().out)


@pytest.mark.parametrize("claims", [{}, {"claims": {}}, {"claims": ["x"]}, {"claims": [{"file": "networks/a.x"}]}])
def test_a_foreign_file_of_claims_is_named(claims, tmp_path, capsys):
    folder = Folder(presets.get("digits"), tmp_path)
    write_json(path := folder.path / "claims.json", claims)
    assert main(["inspect", str(path)]) == 2
    assert f"{path}: JSON, but not the claims of an audit" in capsys.readouterr().err
    assert main(["verify", "digits", "--results", str(tmp_path)]) == 1
    assert "claims.json: JSON, but not the claims" in capsys.readouterr().out
    (folder.path / "audit.csv").touch()
    with pytest.raises(DwlthError, match="not the claims .*: restore it, or delete it and audit.csv to audit anew"):
        audit_transfers(folder, [])


def test_a_page_without_an_audit_names_the_command(tmp_path):
    with pytest.raises(NotYet, match="python -m dwlth audit digits"):
        Folder(presets.get("digits"), tmp_path).audit()


def test_an_audit_is_made_here_where_its_runs_are_a_schedulers(monkeypatch):
    devices = {}
    monkeypatch.setattr(commands, "_do", lambda args, folder, *_, **__: devices.update(runs=folder.device) or 0)
    monkeypatch.setattr(running_audit, "audit_transfers", lambda folder, *_: devices.update(audit=folder.device) or [])
    monkeypatch.setattr(commands.report, "report_audit", str)
    monkeypatch.setattr(commands.machine.torch.cuda, "is_available", lambda: False)
    assert main(["audit", "digits", "--scheduler", "tcp://node1:8786", "--device", "cuda"]) == 0
    assert devices == {"runs": "cuda", "audit": "cpu"}
