"""The command line, `python -m dwlth plan|run|autoattack|audit|connect|verdict|figures|verify|inspect|import|export`"""

import argparse
import contextlib
import math
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path

from dwlth import presets, verdict
from dwlth.errors import DwlthError, NotYet
from dwlth.outside import tickets
from dwlth.results import Folder, read_record
from dwlth.running import distributed, grid, machine, settings, verify
from dwlth.running.settings import override
from dwlth.runs import STAGES, Run
from dwlth.show import report
from dwlth.show.inspection import describe
from dwlth.training import OutOfTime

EPILOG = """Examples:
  python -m dwlth plan digits                          what is left of the runs, and how long it takes here
  python -m dwlth run digits --results quickstart      the whole road: sources, tickets, transfers, verdict, figures
  python -m dwlth run cifar-small --minutes 60 --set transfer.epochs=5    other numbers, for an hour; again to go on

Exit codes: 0 all done, 1 some runs failed (verify: something is damaged or missing), 2 bad input, 3 out of time
(--minutes, SIGUSR1), 130 interrupted (Ctrl-C), 143 terminated (SIGTERM)."""
STOPPED = {"SIGINT": 130, "SIGTERM": 143}
AGAIN = "the same command goes on from here"
UNSAFE = "unpickle the file in full, which can run code in it"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    before, warnings.formatwarning = warnings.formatwarning, lambda message, *_: f"warning: {message}\n"
    try:
        args = _parser().parse_args(argv)
        helpers = args.command in (run, under_autoattack)
        with distributed.several(helpers) as first:  # under torchrun the others help it meanwhile
            code = args.command(args) if first else 0
        if code == 3:
            print(f"dwlth: out of time; {AGAIN}", file=sys.stderr)
        return code
    except (DwlthError, OSError) as error:
        print(f"dwlth: error: {error}", file=sys.stderr)
        return 2
    except BrokenExecutor:
        print(f"dwlth: a worker process died (out of memory?); {AGAIN}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dwlth: interrupted; {AGAIN}", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = before


def _parser() -> argparse.ArgumentParser:
    texts = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m dwlth", description=__doc__, **texts)
    commands = parser.add_subparsers(required=True, metavar=__doc__.split("`")[1].split()[-1])
    for name, command, help_ in (
        ("plan", plan, "count the runs done and left, and estimate the time left"),
        ("run", run, "do the runs left, draw the figures, and say what came out"),
        ("autoattack", under_autoattack, "AutoAttack on the dense networks and the sparsest double-win tickets"),
        ("audit", check_robustness, "checks of the same networks' robustness: is it real?"),
        ("connect", connect, "the way between two trainings of the same network, for each transfer of IMP's tickets"),
        ("verdict", show_verdict, "the sparsest double-win tickets, their tests and the scoreboard, from the table"),
        ("figures", draw, "draw the figures from the table, the audit and the tickets"),
        ("verify", verify_folder, "check that the results are whole, of these settings, and that none is missing"),
        ("import", import_ticket, "take in a ticket of the paper's public code"),
        ("export", export_ticket, "write a ticket as the paper's public code reads it"),
    ):
        sub = commands.add_parser(name, help=help_, description=help_, **texts)
        sub.set_defaults(command=command, name=name)
        sub.add_argument("preset", help=", ".join(presets.PRESETS))
        sub.add_argument("--results", default="results", help="folder of the results (default: %(default)s)")
        sub.add_argument("--data", default="data", help="folder of the datasets (default: %(default)s)")
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. transfer.epochs=5")
        if name in ("plan", "run", "autoattack", "audit", "connect"):
            sub.add_argument("--seeds", type=int, help="number of seeds, from 0 (default: the preset's)")
            sub.add_argument("--source", action="append", help="only this pre-training source")
            sub.add_argument("--device", help="default: a GPU if there is one")
            sub.add_argument("--workers", type=int, help="processes (default: one per core, or one on a GPU)")
        if name in ("plan", "run"):
            sub.add_argument("--stage", action="append", help="only this stage: pretrain, imp, transfer")
        if name in ("import", "export"):
            sub.add_argument("file")
            sub.add_argument("--source", required=True, help="its pre-training source")
            sub.add_argument("--round", required=True, type=int, help="its IMP round")
            sub.add_argument("--seed", default=0, type=int)
        if name == "import":
            sub.add_argument("--force", action="store_true", help="whatever weights it belongs to")
            sub.add_argument("--unsafe", action="store_true", help=UNSAFE)
        if name == "export":
            sub.add_argument("--init", action="store_true", help="the pre-trained weights alone, for its --init")
            sub.add_argument("--legacy", action="store_true", help="in the file format of before torch 1.6")
        if name in ("run", "autoattack", "audit", "connect"):
            sub.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly after so long")
            sub.add_argument("--scheduler", help="address or file of a Dask scheduler, whose workers do the runs")
        if name == "verify":
            sub.add_argument("--files", action="store_true", help="each source, ticket and network must be there too")
        if name == "verdict":
            help_ = "tests of paired differences (default), or the means alone, as in papers with one seed"
            sub.add_argument("--rule", default="paired", choices=["paired", "mean"], help=help_)
            sub.add_argument("--tolerance", type=float, help="points that a ticket's mean may lose (--rule mean)")
            sub.add_argument("--all-four", action="store_true", help="judge RA after standard transfer too")
    sub = commands.add_parser("inspect", help="say what a file or folder is", **texts)
    sub.add_argument("file", help="a source, ticket, record, table or folder, or a checkpoint from elsewhere")
    sub.add_argument("--unsafe", action="store_true", help=UNSAFE)
    sub.set_defaults(command=lambda args: print(describe(args.file, args.unsafe)) or 0)
    return parser


def _places(args) -> dict[str, str]:
    """The folders that are not the usual ones, by option."""
    return {name: place for name in ("results", "data") if (place := getattr(args, name)) != name}


def _folder(args) -> Folder:
    by_hand = settings.command("run", args.preset, args.set, **_places(args))
    return Folder(override(presets.get(args.preset), args.set), args.results, args.data, command=by_hand)


def _select(args) -> tuple[Folder, list[Run]]:
    folder = _folder(args)
    if args.seeds is not None:
        folder = replace(folder, preset=replace(folder.preset, seeds=args.seeds, seeds_at={}))
    for kind, wanted, known in (
        ("source", args.source, folder.preset.pretrain),
        ("stage", getattr(args, "stage", None), STAGES[:3]),  # no grid has the others
    ):
        for name in wanted or ():
            if name not in known:
                raise DwlthError(f"unknown {kind} {name!r}: choose from {', '.join(known)}")
    runs = [
        run
        for run in folder.preset.grid()
        if (not args.source or run.source in args.source)
        and (not getattr(args, "stage", None) or run.stage in args.stage)
    ]
    if args.device and getattr(args, "scheduler", None):
        device = args.device  # the workers', who say if they have none such
    else:
        device, args.workers = machine.this_machine(args.device, args.workers)
    return replace(folder, device=device), runs


def plan(args) -> int:
    folder, runs = _select(args)
    print(grid.plan(folder, runs, args.workers))
    return 0


def run(args) -> int:
    ends = _do(args, *_select(args))
    folder = _folder(args)
    with contextlib.suppress(NotYet):
        table = folder.collect()  # what is done is in the table, also where a signal ended it
        if ends in STOPPED.values():
            return ends
        changed = [
            setting for setting in args.set if not setting.startswith("methods=")
        ]  # one's own is known here alone
        verdict = settings.command("verdict", args.preset, changed, **_places(args))
        with contextlib.suppress(NotYet):  # no ticket to judge
            print(report.screen(table, folder, verdict))
            if line := machine.activation():
                print(f"First, once in this shell, so that it finds this python: {line}")
        _draw(folder)
    return ends


def under_autoattack(args) -> int:
    folder, _ = _select(args)
    found = verdict.verdict(folder.collect(), folder.preset.margins)
    runs = [run for run in grid.for_autoattack(folder.preset, found) if not args.source or run.source in args.source]
    ends = _do(args, folder, runs)
    if ends in STOPPED.values():
        return ends
    print(report.report_autoattack(folder.collect()))
    return ends


def check_robustness(args) -> int:
    from dwlth.running.audit import audit_transfers  # late: torchvision's transforms take a while

    deadline, (folder, _) = time.time() + 60 * args.minutes, _select(args)
    here, workers = machine.this_machine(None if args.scheduler else args.device, args.workers)  # which audits
    found = verdict.verdict(folder.collect(), folder.preset.margins)
    runs = [replace(run, stage="transfer") for run in grid.for_autoattack(folder.preset, found)]
    # also the networks of other sources: their images are tried
    if ends := _do(args, folder, runs, files=True):  # those whose network was not kept are trained once more
        return ends
    try:
        with machine.stopping() as signals:
            where = replace(folder, device=here)
            found = audit_transfers(where, runs, args.source or (), workers, deadline, _command(args))
    except OutOfTime:
        return STOPPED.get(signals[0], 3) if signals else 3
    print(report.report_audit(found))
    return 0


def connect(args) -> int:
    folder, runs = _select(args)
    ends = _do(args, folder, grid.for_connect(runs))
    with contextlib.suppress(NotYet):
        rows = (folder.collect()["stage"] == "connect").sum()
        print(f"the ways between two trainings: {rows} rows of {folder.table}; `figures` draws them")
    return ends


def _do(args, folder: Folder, runs: list[Run], files: bool = False) -> int:
    """Do what is left of `runs`, say how they ended, and return the exit code."""
    if not args.minutes > 0:
        raise DwlthError(f"--minutes {args.minutes:g}: give a number above 0")
    if args.name != "run":  # the others read networks of transfers: those that are missing are trained once more
        folder = replace(folder, preset=replace(folder.preset, keep_networks=True))
    deadline = time.time() + 60 * args.minutes
    todo = grid.left(folder, runs, files)
    with machine.stopping() as signals:
        how = {"command": _command(args), "scheduler": args.scheduler}
        try:
            statuses = grid.run_all(folder, todo, args.workers or 1, deadline, **how)
        except BrokenExecutor:  # a worker that gets a signal while it starts dies of it
            if not signals:
                raise
            statuses = dict.fromkeys(todo, "stopped")
    ends = Counter(statuses.values())
    if todo:
        print(", ".join(f"{count} runs {status}" for status, count in ends.items()))
    for failed in (r for r in statuses if statuses[r] == "failed"):
        why = read_record(folder.record(failed))["result"]["error"]
        print(f"failed: {failed}: {why} ({folder.record(failed)})", file=sys.stderr)
    if signals and ends["stopped"]:
        left = f"{ends['stopped']} of {len(todo)} runs are left; {AGAIN}"
        print(f"dwlth: stopped by {signals[0]}: {left}", file=sys.stderr)
        return STOPPED.get(signals[0], 3)
    if ends["failed"] or ends["lost"]:
        return 1
    return 3 if ends["stopped"] else 0


def show_verdict(args) -> int:
    folder = _folder(args)
    print(report.report(folder.collect(), folder.preset, args.rule, args.tolerance, args.all_four, folder))
    return 0


def verify_folder(args) -> int:
    said, whole = verify.verify(_folder(args), args.files)
    print(said)
    return 0 if whole else 1


def draw(args) -> int:
    drawn = _draw(_folder(args))
    print(*drawn or ["no figure: no run that one needs is done yet"], sep="\n")
    return 0


def _draw(folder: Folder) -> list[Path]:
    from dwlth.show import figures  # late: matplotlib takes a while

    return figures.draw_all(folder.collect(), folder.figures, folder.preset.margins, folder)


def import_ticket(args) -> int:
    print(tickets.import_reference(args.file, *_ticket(args), args.force, args.unsafe))
    return 0


def export_ticket(args) -> int:
    tickets.export_reference(args.file, *_ticket(args), args.init, args.legacy)
    print(args.file)
    return 0


def _ticket(args) -> tuple[Folder, Run]:
    folder = _folder(args)
    if args.source not in folder.preset.pretrain:
        raise DwlthError(f"unknown source {args.source!r}: choose from {', '.join(folder.preset.pretrain)}")
    if args.round < 1:
        raise DwlthError(f"--round {args.round}: give 1 or more; round 0 is the dense network")
    return folder, Run("transfer", args.source, args.seed, args.round)


def _command(args) -> str:
    """The command to put into records; without the folder, which may be a path of this machine."""
    parts = {name: getattr(args, name, None) for name in ("seeds", "source", "stage")}
    return settings.command(args.name, args.preset, args.set, **parts)
