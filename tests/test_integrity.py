"""Damaged and hostile files, full disks and read-only folders: named, set aside, made again or refused, and never a
wrong number in the table."""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from dataclasses import replace

import pandas as pd
import pytest
import torch

from dwlth import files, sources, tickets, training
from dwlth.errors import DwlthError
from dwlth.files import disk
from dwlth.interface.commands import main
from dwlth.outside import checkpoints
from dwlth.results import Folder, read_record, read_table
from dwlth.results.provenance import _commit
from dwlth.results.records import write_table
from dwlth.running import grid
from dwlth.running.verify import verify
from dwlth.runs import Run

DAMAGES = 200


def small(preset):
    """One source, its tickets of rounds 1 and 2, and four transfers."""
    return replace(
        preset,
        pretrain={"standard": preset.pretrain["standard"]},
        rounds=(0, 2),
        fractions=(0.01,),
        keep_networks=True,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """That preset, run from start to end, with the checkpoints of two trainings under way."""
    from conftest import TINY

    from dwlth import presets
    from dwlth.running.settings import override

    folder = Folder(small(override(presets.get("digits"), TINY)), tmp_path_factory.mktemp("done"))
    runs = folder.preset.grid()
    assert set(grid.run_all(folder, grid.left(folder, runs)).values()) == {"ok"}
    folder.collect()
    for seed, run in enumerate(runs[-2:]):
        files.write_state(folder.checkpoint(run), {"net": {"w": torch.randn(50 + seed)}, "optimizer": {}, "fits": []})
    return folder


@pytest.fixture
def copy(done, tmp_path):
    """A copy to spoil."""
    shutil.copytree(done.path, tmp_path / done.preset.name)
    return replace(done, root=tmp_path)


def by_kind(folder):
    """All files of results, by kind."""
    kinds = {"sources": "*", "tickets": "*/*", "networks": "*", "checkpoints": "*", "runs": "*"}
    found = {kind: sorted((folder.path / kind).glob(pattern)) for kind, pattern in kinds.items()}
    return found | {"table": [folder.table], "preset": [folder.path / "preset.json"]}


def damage(path, others, how, draw):
    """Spoil a file so that it says something else; False where that is not possible."""
    before = path.read_bytes()
    if how == "swapped":
        others = [other for other in others if other != path]
        if not others:
            return False
        path.write_bytes(draw.choice(others).read_bytes())
    elif how == "truncated":
        path.write_bytes(before[: draw.randrange(len(before))])
    else:
        spoiled = bytearray(before)
        spoiled[draw.randrange(len(before))] ^= 1 << draw.randrange(8)
        path.write_bytes(spoiled)
        if path.suffix == ".json":  # 1e-5 may have become 1E-5, which is the same number
            with contextlib.suppress(ValueError):
                return json.loads(spoiled) != json.loads(before)
    return path.read_bytes() != before


def test_damaged_files_are_named_and_never_believed(copy):
    """200 damages: truncated, one flipped bit, swapped with another's content, over all kinds of files."""
    draw, kinds, expected = random.Random(0), by_kind(copy), copy.collect()
    makes = {copy.made(run): run for run in copy.preset.grid()}
    assert {kind: len(paths) for kind, paths in kinds.items()} == {
        "sources": 1,
        "tickets": 2,
        "networks": 4,
        "checkpoints": 2,
        "runs": 7,
        "table": 1,
        "preset": 1,
    }
    tried = 0
    while tried < DAMAGES:
        kind, how = draw.choice(list(kinds)), draw.choice(["truncated", "flipped", "swapped"])
        path = draw.choice(kinds[kind])
        before, bad = path.read_bytes(), path.with_name(path.name + ".bad")
        if not damage(path, kinds[kind], how, draw):
            path.write_bytes(before)
            continue
        tried += 1
        text, whole = verify(copy)
        assert not whole and str(path) in text, (path, how)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if kind == "table":
                with contextlib.suppress(DwlthError):  # a table cut at the end of a line is a smaller one
                    assert len(read_table(path)) < len(expected), how
                    said.append(path)
                    assert copy.collect().equals(expected)
                said = said or [path]
            elif kind == "runs":
                copy.table.rename(copy.table.with_suffix(".kept"))
                found = copy.collect()
                assert len(found) == len(expected) - 1
                assert found.equals(expected[expected["id"].isin(found["id"])].reset_index(drop=True))
                copy.table.with_suffix(".kept").replace(copy.table)
            elif kind == "checkpoints":
                assert grid._earlier_seconds(path) == 0 and not path.exists()
            elif kind == "preset":
                copy.write_preset()
                assert path.read_bytes() == before
            else:
                assert not copy.has(makes[path]) and not path.exists()
                assert makes[path] in grid.left(copy, copy.preset.grid(), files=True)
        assert len(said) == 1 and path.name in str(getattr(said[0], "message", said[0])), (path, how)
        assert kind == "table" or bad.exists()
        bad.unlink(missing_ok=True)
        path.write_bytes(before)
    assert verify(copy)[1] and copy.collect().equals(expected)


def test_what_cannot_be_moved_is_left_out(copy, monkeypatch):
    table, path = copy.collect(), next(copy.path.glob("runs/*.json"))
    path.write_text("{")

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(
        UserWarning, match=rf"{path.name}: not a .*; left out, and not moved .*\(read-only file system\)"
    ):
        assert copy.collect().equals(table) and path.exists()


def test_what_was_set_aside_is_made_again(copy):
    draw, expected = random.Random(1), copy.collect()
    shutil.rmtree(copy.path / "checkpoints")
    spoiled = [paths[0] for kind, paths in by_kind(copy).items() if kind not in ("table", "preset", "checkpoints")]
    for path in spoiled:
        assert damage(path, [], "truncated", draw)
    copy.table.unlink()
    with pytest.warns(UserWarning, match="made again"):
        assert set(grid.run_all(copy, grid.left(copy, copy.preset.grid(), files=True)).values()) == {"ok"}
    assert all(path.exists() for path in spoiled)
    science = [column for column in expected if column.startswith(("id", "sa", "ra", "val", "epoch", "sparsity"))]
    assert copy.collect()[science].equals(expected[science])


def test_files_without_a_checksum_stay_valid(copy):
    """Those of earlier versions."""
    expected = copy.collect()
    for run in copy.preset.grid():
        record = files.read_json(copy.record(run), "record")
        copy.record(run).write_text(json.dumps(record, indent=1) + "\n")
        path = copy.made(run)
        tensors, about = files.read_tensors(path)
        files.save_file(tensors, path, {"dwlth": json.dumps(about)})
    for path in by_kind(copy)["checkpoints"]:
        torch.save(files.read_state(path), path)
        assert training.read_checkpoint(path)["fits"] == []
    expected.to_csv(copy.table, index=False, lineterminator="\n", float_format="%.10g")
    assert all(copy.has(run) for run in copy.preset.grid()) and copy.collect().equals(expected)
    text, whole = verify(copy)
    assert whole and all(f"{kind} " in text for kind in ("sources", "records")), text
    numbers = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert numbers["records"] == ["0", "7", "0", "0", "0"] and numbers["networks"] == ["0", "4", "0", "0", "0"]


def test_a_record_without_a_checksum_that_lacks_a_name_is_set_aside(copy):
    run = copy.preset.grid()[-1]
    record = files.read_json(copy.record(run), "record")
    copy.record(run).write_text(json.dumps(record).replace('"fraction"', '"fractioo"'))
    with pytest.warns(UserWarning, match="its config has no 'fraction'; moved to"):
        assert len(copy.collect()) == len(copy.preset.grid())  # the table still has it
    assert not copy.record(run).exists()


def test_verify_changes_nothing_and_says_what_is_wrong(copy, capsys):
    args = [copy.preset.name.partition("-")[0], "--results", str(copy.root)]
    text, whole = verify(copy)
    assert whole and "all there, and nothing wrong" in text
    counts = pd.read_csv(io.StringIO("\n".join(text.splitlines()[:10])), sep=r"\s{2,}", engine="python")
    assert counts["whole"].sum() > 20 and not counts["without checksum"].any(), text
    run = copy.preset.grid()[-1]
    copy.record(run).unlink()
    lines = copy.table.read_text().splitlines(keepends=True)
    copy.table.write_text("".join([*lines, lines[-1]]))
    assert "table.csv: 1 rows are of a run that an earlier row is of" in verify(copy)[0]
    copy.table.write_text("".join(line for line in lines if copy.preset.run_id(run) not in line))
    copy.network(run).write_bytes(b"")
    copy.source(run).unlink()
    state = lambda: {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in copy.path.rglob("*")}
    before = state()
    text, whole = verify(copy)
    assert not whole and f"missing: {run}" in text and f"{copy.network(run)}: not a network" in text
    assert "2 faults" in text and "3 faults" in verify(copy, files=True)[0]
    assert state() == before
    assert main(["verify", *args]) == 1  # nothing of the whole preset is there
    assert "missing: pretrain adversarial seed 0" in capsys.readouterr().out
    other = replace(copy, preset=replace(copy.preset, prune_rate=0.3))
    text, whole = verify(other)
    assert not whole and "rows are of other settings" in text


def mounted(path, *options):
    """A small disk of memory, where this process may have one."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=64k", *options]), "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount")
    return path


@pytest.mark.parametrize("limit", ["disk", "file size"])
def test_a_full_disk_leaves_what_is_there(tmp_path, limit):
    import resource

    place, before = tmp_path / "place", resource.getrlimit(resource.RLIMIT_FSIZE)
    large = torch.rand(100_000)
    writers = {
        "a.json": lambda path, n: files.write_json(path, {"list": large[: n // 8].tolist()}),
        "b.safetensors": lambda path, n: files.write_tensors(path, {"w": large[:n]}, kind="source"),
        "c.pt": lambda path, n: files.write_state(path, {"w": large[:n].clone()}),
    }
    try:
        mounted(place) if limit == "disk" else place.mkdir()
        for name, writer in writers.items():
            writer(place / name, 10)
        kept = {name: (place / name).read_bytes() for name in writers}
        if limit == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        for name, writer in writers.items():
            with pytest.raises(OSError, match=name):
                writer(place / name, len(large))
        assert {path.name: path.read_bytes() for path in place.iterdir()} == kept
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if limit == "disk":
            subprocess.run(["umount", str(place)], capture_output=True)


def test_a_folder_that_cannot_be_written_to(done, tmp_path, tiny_args, capsys):
    place = mounted(tmp_path / "place", "ro")
    try:
        args = ["--results", str(place), "--workers", "1", "--device", "cpu", *tiny_args]
        assert main(["run", "digits", *args]) == 2
        said = capsys.readouterr().err
        assert "cannot be written (read-only file system)" in said and str(place) in said and "Traceback" not in said
    finally:
        subprocess.run(["umount", str(place)], capture_output=True)


def test_temporary_files_go_when_their_writer_is_surely_dead(tmp_path, monkeypatch):
    names = {
        "another process of this number": f".a.json.{disk._place()}-{os.getpid()}-1-7.tmp",
        "no process": f".b.json.{disk._place()}-{2**22 + 1}-1-7.tmp",
        "this process": f".c.json.{disk._place()}-{os.getpid()}-{disk._born(os.getpid())}-7.tmp",
        "another machine": f".d.json.00000000-{2**22 + 1}-1-7.tmp",
        "another machine, long ago": f".e.json.00000000-{os.getpid()}-1-7.tmp",
        "an earlier version": f".f.json.{2**22 + 1}-7.tmp",
        "an earlier version, long ago": f".g.json.{2**22 + 1}-7.tmp",
    }
    if not disk._born(os.getpid()):
        pytest.skip("this system has no /proc")
    (tmp_path / "runs").mkdir()
    for who, name in names.items():
        (tmp_path / "runs" / name).touch()
        if "long ago" in who:
            os.utime(tmp_path / "runs" / name, (time.time() - 2 * disk.DAY,) * 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000 * disk.DAY)  # the clock is set back
    files.sweep(tmp_path)
    left = lambda: {who for who, name in names.items() if (tmp_path / "runs" / name).exists()}
    assert left() == names.keys() - {"another process of this number", "no process"}
    monkeypatch.undo()
    files.sweep(tmp_path)
    assert left() == {"this process", "another machine", "an earlier version"}


def test_collectors_and_writers_at_once_lose_nothing(done, tmp_path):
    """Four collect while two write the records; the clock goes back all the while."""
    folder = replace(done, root=tmp_path)
    expected, runs, now = done.collect(), done.preset.grid(), time.time()
    errors, writing, numbers = [], threading.Event(), ["id", "sa", "ra", "seconds"]

    def put(part):
        for i, run in enumerate(part):
            record = files.read_json(done.record(run), "record")
            files.write_json(folder.record(run), record)
            os.utime(folder.record(run), (now - i * disk.DAY,) * 2)
            time.sleep(0.01)

    def collect():
        while not writing.is_set():
            with contextlib.suppress(DwlthError):  # none yet
                found = folder.collect()
                if not found[numbers].equals(
                    expected[expected["id"].isin(found["id"])][numbers].reset_index(drop=True)
                ):
                    errors.append(found)

    writers = [threading.Thread(target=put, args=(runs[i::2],)) for i in (0, 1)]
    collectors = [threading.Thread(target=collect) for _ in range(4)]
    for thread in writers + collectors:
        thread.start()
    for thread in writers:
        thread.join()
    writing.set()
    for thread in collectors:
        thread.join()
    assert not errors and folder.collect().equals(expected)
    assert not list(folder.path.rglob("*.tmp")) and not list(folder.path.rglob("*.bad"))


def test_ten_thousand_records_are_collected_in_five_seconds(done, tmp_path):
    """Of a quiet core, which needs a third of that to read as many files of JSON. So the test is of this ratio, on any
    core, and of a quarter of the records: each is read once, and takes the same time."""
    folder, (run, *_) = replace(done, root=tmp_path), done.preset.grid()[-1:]
    record = files.read_json(done.record(run), "record")
    record["result"]["history"] *= 8
    folder.record(run).parent.mkdir(parents=True)
    for seed in range(2_500):
        own = replace(run, seed=seed, source_seed=None)
        config = record["config"] | {"seed": seed}
        new = record | {"id": folder.preset.run_id(own), "config": config}
        folder.record(own).write_text(json.dumps(new | {"checksum": files.digest(new, 64)}, indent=1))
    assert folder.record(own).stat().st_size > 5_000  # as those of `digits`
    paths, took, bare = list(folder.record(own).parent.glob("*.json")), [], []
    for _ in range(3):
        folder.table.unlink(missing_ok=True)
        began = time.process_time()
        assert len(folder.collect()) == 2_500
        took.append(time.process_time() - began)
        began = time.process_time()
        assert len([json.loads(path.read_text()) for path in paths]) == 2_500
        bare.append(time.process_time() - began)
    ratio = min(took) / min(bare)
    print(f"10,000 records: {4 * min(took):.1f} s of a core, {ratio:.1f} times their reading as JSON")
    assert ratio < 6


class Bomb:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def hostile(path, kind):
    """A file of ours, in the hands of someone who means harm."""
    if kind == "pickle":
        torch.save({"net": Bomb(), "optimizer": {}, "fits": []}, path)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "zip bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/version", "3\n")
            with archive.open("x/data.pkl", "w", force_zip64=True) as member:
                for _ in range(200):
                    member.write(bytes(1 << 20))
    elif kind == "..":
        torch.save({"net": {}, "optimizer": {}, "fits": []}, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("../../harmed", "here I am")


@pytest.mark.parametrize("kind", ["pickle", "bare pickle", "zip bomb", ".."])
def test_hostile_checkpoints_are_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x" / "0123456789ab.pt"
    path.parent.mkdir()
    hostile(path, kind)
    before = memory()
    for read in (training.read_checkpoint, checkpoints.read):
        with pytest.raises(DwlthError, match=str(path)):
            read(path)
    assert memory() - before < 100e6
    assert not (tmp_path / "harmed").exists() and not list(tmp_path.parent.glob("harmed"))


def memory():
    """The most that this process has held, in bytes; a later reading cannot be smaller."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_tensors_that_claim_more_than_their_file_holds_are_refused(tmp_path, copy):
    before = memory()
    path = tmp_path / "lie.safetensors"
    for length in (2**63, 2**40, 99_000_000):  # of the header
        path.write_bytes(struct.pack("<Q", length) + b'{"__metadata__":{"dwlth":"{}"}}')
        with pytest.raises(DwlthError, match="lie.safetensors"):
            files.read_tensors(path)
    for shape, end in (([10**12], 4), ([2**62, 8], 8), ([1], 10**12)):
        header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        with pytest.raises(DwlthError, match="lie.safetensors"):
            files.read_tensors(path)
    run = Run("transfer", "standard", 0, 2)
    packed, about = files.read_tensors(copy.ticket(run))
    about["shapes"]["conv1.weight"] = [10**12]
    files.write_tensors(copy.ticket(run), packed, **about)
    with pytest.raises(DwlthError, match="02.safetensors: not a ticket: its bits"):
        tickets.load(copy.ticket(run))
    weights, about = files.read_tensors(copy.source(run))
    files.write_tensors(copy.source(run), weights, **about | {"classes": 10**12})
    with pytest.raises(DwlthError, match="s0.safetensors: not the weights of a network"):
        sources.load(copy, run)
    state = {"model": {"layer1.0.conv1.weight": torch.zeros(1).expand(10**12)}}
    torch.save(state, tmp_path / "foreign.pth")
    with pytest.raises(DwlthError, match="claims 1,000,000,000,000 numbers"):
        checkpoints.read(tmp_path / "foreign.pth")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    with pytest.raises(DwlthError, match="deep.json: not a record"):
        files.read_json(deep, "record")
    assert memory() - before < 200e6


@pytest.mark.parametrize("spoil", ["value", "column", "short"])
def test_a_changed_row_of_the_table_is_named(copy, spoil):
    lines = copy.table.read_text().splitlines()
    if spoil == "value":
        lines[3] = lines[3].replace(",0.", ",0.1", 1)
    elif spoil == "column":
        lines[0] = lines[0].replace("ra_pgd", "ra_pge")  # a column that is empty in every row
    else:
        lines[3] = lines[3].rpartition(",")[0]
    copy.table.write_text("\n".join(lines) + "\n")
    with pytest.raises(DwlthError, match=r"table.csv: damaged: line \d"):
        read_table(copy.table)


def test_an_empty_line_is_no_damage(copy):
    expected, text = copy.collect(), copy.table.read_text()
    for lines in (f"{text}\n", f"\n{text}", text.replace("\n", "\n\n", 3)):
        copy.table.write_text(lines)
        pd.testing.assert_frame_equal(copy.collect(), expected)
    copy.table.write_text("\n" + text.replace(",0.", ",0.1", 1))
    with pytest.raises(DwlthError, match=r"table.csv: damaged: line \d"):
        read_table(copy.table)


def test_any_reader_of_csv_reads_the_table_in_any_order(copy):
    expected = copy.collect()
    assert pd.read_csv(io.BytesIO(copy.table.read_bytes()))["sa"].tolist() == expected["sa"].tolist()
    header, *lines = copy.table.read_text().splitlines(keepends=True)
    copy.table.write_text("".join([header, *reversed(lines)]))
    assert read_table(copy.table)["id"].tolist() == expected["id"].tolist()[::-1]
    copy.table.write_text("".join([header, *lines, *lines[:2]]))  # two tables put together
    assert sorted(copy.collect()["id"]) == sorted(expected["id"])
    write_table(copy.table, pd.concat([expected, expected.head(1).assign(id="0" * 12)]))
    with pytest.warns(UserWarning, match="1 rows or records are left out"):
        assert copy.collect().equals(expected)  # a row of other settings does not stand for one of these


def test_numbers_and_names_that_look_like_numbers_survive(copy):
    table = copy.collect()
    fractions, commits = [1 / 3, 500 / 45000, 1.0], ["79047530e450", "004753045012", "123456789012"]
    table = table.head(3).assign(fraction=fractions, commit=commits, id=commits[::-1])
    for _ in range(2):  # what is read is written again
        write_table(copy.table, table)
        table = read_table(copy.table)
    assert table["fraction"].tolist() == fractions
    assert table["commit"].tolist() == commits == table["id"].tolist()[::-1]


def test_a_row_stays_as_it_was_written_when_rows_without_its_numbers_join(copy):
    table = copy.collect().head(2).assign(barrier_sa=[0.5, 1.0], epoch_best_ra=[float("nan"), 3.0])
    write_table(copy.table, table)
    before = copy.table.read_text()
    joins = table.head(1).astype(object).assign(id="0" * 12, barrier_sa=None, epoch_best_ra=None)
    write_table(copy.table, pd.concat([read_table(copy.table), joins]))
    assert copy.table.read_text().startswith(before)


def test_files_are_utf8_in_every_locale(tmp_path):
    script = """
import sys
from pathlib import Path
import pandas as pd
from dwlth import files
from dwlth.results.records import read_rows, write_table
assert open(sys.argv[1] + "/a", "w").encoding.lower().replace("-", "") != "utf8"
table, path = pd.DataFrame({"downstream": ["folder:\\u00dcbung"]}), Path(sys.argv[1], "table.csv")
write_table(path, table)
assert read_rows(path, "a table", ["downstream"], "").equals(table)
files.write_json(path, {"downstream": "folder:\\u00dcbung"})
assert files.read_json(path, "record")["downstream"] == "folder:\\u00dcbung"
"""
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(words, env=os.environ | locale, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_table_without_rows_and_a_record_of_no_known_end_are_named(copy, capsys):
    copy.collect()
    record = by_kind(copy)["runs"][0]
    files.write_json(record, files.read_json(record, "record") | {"status": "okk"})
    with pytest.raises(DwlthError, match=f"{record}: not a record of a run: its status is 'okk'"):
        read_record(record)
    copy.table.write_text(copy.table.read_text().splitlines(keepends=True)[0])
    with pytest.raises(DwlthError, match=f"{copy.table}: a table of results without a row; restore the file"):
        read_table(copy.table)


def test_a_checkout_without_git_records_its_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _commit.__wrapped__() == ""


def test_a_disk_is_told_to_keep_each_file_and_its_name(tmp_path, monkeypatch):
    flushed, replace_ = [], os.replace
    monkeypatch.setattr(disk, "_flush", lambda path, mode: flushed.append(path.name))
    monkeypatch.setattr(os, "replace", lambda *args: (flushed.append("renamed"), replace_(*args)))
    files.write_json(tmp_path / "folder" / "a.json", {})
    assert flushed[0].startswith(".a.json.") and flushed[1:] == ["renamed", "folder"]


def test_a_preset_of_the_same_name_that_goes_back_to_a_default_is_another_one(copy, capsys):
    changed = replace(copy, preset=replace(copy.preset, per_source=4, order="content"))
    changed.write_preset()
    assert files.read_json(copy.path / "preset.json", "preset")["per_source"] == 4
    said, whole = verify(copy)  # both fields are later ones, and left out where they are as before
    assert "preset.json: of other settings" in said and not whole
    copy.write_preset()
    assert "per_source" not in files.read_json(copy.path / "preset.json", "preset")
