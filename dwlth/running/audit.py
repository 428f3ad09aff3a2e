"""The audit of a preset: `dwlth.running.checks` on the networks that its transfers ended with, in one table."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from dwlth.errors import DwlthError, NotYet
from dwlth.evaluation import precision_of
from dwlth.files import check_writable, write_json
from dwlth.results import Folder, provenance, read_claims
from dwlth.results.records import write_table
from dwlth.running.checks import audit
from dwlth.running.machine import processes, threads, torch_threads
from dwlth.runs import Run, plain, stream
from dwlth.training import STOP, OutOfTime
from dwlth.transfer import load


def audit_transfers(
    folder: Folder,
    runs: Sequence[Run],
    sources: Collection[str] = (),
    workers: int = 1,
    deadline: float = math.inf,
    command: str = "dwlth.running.audit.audit_transfers",
) -> pd.DataFrame:
    """The checks of the networks that transfers ended with, on the first `preset.autoattack_images` test images. The
    images made for the dense network of another source are tried on each. Writes `audit.csv`, and `claims.json` with
    what RobustBench asks of an entry and where it comes from, into the results' folder, after each network. One that is
    in both is not audited again; so an audit that was stopped goes on.

    Args:
        runs: transfers under adversarial training, whose networks are on disk.
        sources: audit only the networks of these; by default of all.
        workers: processes, with a network at a time each.
        deadline: no further network is begun after it (seconds, as of `time.time`), or after a signal.
        command: for the claims.

    Returns:
        `audit.csv`: the rows of the checks for each network, with its run's `id`, `source`, `sparsity` and `seed`.

    Raises:
        OutOfTime: if one is left because of that; those that are audited are written.
        NotYet: if there is none to audit.
        DwlthError: for a network that was not kept, or a damaged `audit.csv` or `claims.json`.
    """
    audited, todo = _audited(folder), {}
    for run in runs:
        evaluation = f"AutoAttack (standard), the first {len(folder.sample(run))} test images"
        _, claim = audited.get(folder.preset.run_id(run), (None, {}))
        if (not sources or run.source in sources) and claim.get("evaluation") != evaluation:
            same = [other for other in runs if (other.downstream, other.seed) == (run.downstream, run.seed)]
            others = [other for other in same if other.source != run.source and not other.round][:1]
            todo[run] = evaluation, others, command
    if not todo and not audited:
        raise NotYet(f"no network to audit: the table has no transfer that is asked for; {folder.table}")
    ended = lambda: STOP.is_set() or time.time() > deadline
    done = 0
    if todo:
        check_writable(folder.path)
    with tqdm(total=len(todo), desc="audit") as bar, ExitStack() as stack:
        if (workers := min(workers, len(todo))) > 1:
            pool = stack.enter_context(processes(workers, threads(folder.preset.network, workers)))
            entries = _side_by_side(pool, workers, {run: (folder, run, *of) for run, of in todo.items()}, ended)
        else:
            stack.enter_context(torch_threads(threads(folder.preset.network)))
            begun = takewhile(lambda _: not ended(), todo.items())
            entries = ((run, _entry(folder, run, *of, bar.set_postfix_str)) for run, of in begun)
        for run, entry in entries:
            audited = _audited(folder)  # once more: another process may have added to it
            audited[folder.preset.run_id(run)] = entry
            table = pd.concat([rows for rows, _ in audited.values()], ignore_index=True)
            write_table(folder.path / "audit.csv", table)
            write_json(folder.path / "claims.json", {"claims": [claim for _, claim in audited.values()]})
            bar.update()
            done += 1
    if done < len(todo):
        raise OutOfTime
    return pd.concat([rows for rows, _ in _audited(folder).values()], ignore_index=True)


def _side_by_side(
    pool: Executor, workers: int, jobs: Mapping[Run, tuple], ended: Callable[[], bool]
) -> Iterator[tuple[Run, tuple]]:
    """The runs whose `_entry` is done, and what it gave, so many at a time. Once it is time, no other is
    begun: one that the pool has cannot be taken back."""
    left, under_way = dict(jobs), {}
    while left or under_way:
        while left and len(under_way) < workers and not ended():
            run = next(iter(left))
            under_way[pool.submit(_entry, *left.pop(run))] = run
        if not under_way:
            return
        for job in wait(under_way, return_when=FIRST_COMPLETED).done:
            yield under_way.pop(job), job.result()


def _entry(
    folder: Folder,
    run: Run,
    evaluation: str,
    others: Sequence[Run],
    command: str,
    tell: Callable[[str], object] = lambda check: None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows and the claim of one network."""
    begun = time.perf_counter()
    preset, recipe, attack = folder.preset, folder.preset.recipe(run), folder.preset.evaluation
    measuring = recipe.measuring | {"seed": stream(run.seed, "audit"), "tell": tell}
    measuring |= {"others": {str(other.source): load(folder, other) for other in others}}
    test = folder.sample(run)
    with precision_of("float32", test.labels.device):  # but for SA and RA, which are in the recipe's
        found = audit(load(folder, run), test, attack, **measuring)
    sparsity = round(1 - (1 - preset.prune_rate) ** run.round, 4)
    measured = found.set_index("check")["found"]
    clean, _, pgd = measured["SA and RA"].removesuffix(" %").partition(" and ")
    claim = {
        "architecture": preset.network,
        "dataset": run.downstream,
        "threat_model": attack.norm,
        "eps": attack.eps,
        "clean_acc": float(clean),
        "autoattack_acc": float(measured["RA under AutoAttack"].removesuffix(" %")),
        "pgd_acc": float(pgd),
        "evaluation": evaluation,
        "sparsity": sparsity,
        "run": plain(run),
        "checks": len(found),
        "pretraining": run.source,
        "failed_checks": found["check"][found["verdict"] == "fails"].tolist(),
        "file": folder.network(run).relative_to(folder.path).as_posix(),
    } | provenance(folder.device, recipe.precision, 1, time.perf_counter() - begun, command)
    return found.assign(id=preset.run_id(run), source=run.source, sparsity=sparsity, seed=run.seed), claim


def _audited(folder: Folder) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """The rows and the claim of each network that an earlier audit ended with, by its run's id; those of other settings
    than the preset's now are left out."""
    table, claims = folder.path / "audit.csv", folder.path / "claims.json"
    if not (table.exists() or claims.exists()):
        return {}
    for lacks, other in ((table, claims), (claims, table)):
        if not lacks.exists():
            raise DwlthError(f"{lacks}: missing, though {other} is there: restore it, or delete that too to audit anew")
    try:
        of = {Path(claim["file"]).stem: claim for claim in read_claims(claims)}
    except DwlthError as error:
        raise DwlthError(f"{error}: restore it, or delete it and {table.name} to audit anew") from None
    rows = folder.audit()
    own = [id_ for id_ in rows["id"].unique() if id_ in of and folder.owns(of[id_]["run"], id_)]
    return {id_: (rows[rows["id"] == id_], of[id_]) for id_ in own}
