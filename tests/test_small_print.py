"""What the papers around the code say is true: commands, names, links, layers, environments and examples."""

import ast
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
import tokenize
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pandas as pd
import pytest

from dwlth import masks, models, presets, verdict
from dwlth.controls import METHODS
from dwlth.interface.commands import _parser
from dwlth.results import Folder, read_table
from dwlth.results.folder import read_preset
from dwlth.running import checks
from dwlth.running.settings import override
from dwlth.show.claims import scoreboard
from dwlth.show.crossing import against_imp, crossed, variance
from dwlth.show.order import order
from dwlth.show.style import interval

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dwlth"
README = (ROOT / "README.md").read_text()
TEXT = " ".join(README.split())
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

FLOORS = {  # what the modules of a floor may import of the package, as prefixes; "method" is every module at the top
    "method": ["method", "data", "fast", "outside.checkpoints", "outside.downloads"],
    "data": ["data", "errors"],
    "fast": ["fast", "errors", "masks", "models"],
    "outside": ["outside", "method", "data", "fast"],
    "running": ["running", "method", "data", "fast", "outside"],
    "show": ["show", "running", "method", "data", "fast", "outside"],
    "interface": ["interface", "show", "running", "method", "data", "fast", "outside"],
}
READERS = {
    "outside.checkpoints",
    "outside.downloads",
    "outside.torchfiles",
}  # of others' files; they know nothing of runs and results
READERS_MAY = READERS | {"data", "errors", "files", "masks", "models"}


def floor(module: str) -> str:
    top = module.partition(".")[0]
    return "interface" if top == "__main__" else top if top in FLOORS else "method"


@cache
def imports() -> dict[str, set[str]]:
    """For each module of the package (its name without "dwlth."), the modules that it imports at module level."""
    paths = {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    found = {}
    for module, path in paths.items():
        found[module] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in (name.removeprefix("dwlth.") for name in names if name.startswith("dwlth.")):
                found[module].add(name if name in paths else name.rpartition(".")[0])
        found[module].discard("")  # names of the package itself
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_no_import_goes_up_the_floors():
    for module, needs in imports().items():
        for need in needs:
            near = any(need == name or need.startswith(f"{name}.") for name in FLOORS[floor(module)])
            assert near or floor(need) in FLOORS[floor(module)], f"dwlth.{module} imports dwlth.{need}"
            if module in READERS:
                assert need.partition(".")[0] in READERS_MAY or need in READERS, f"dwlth.{module} imports dwlth.{need}"


def test_no_import_circle():
    whole = {
        module: {need for need in needs if need != module.partition(".")[0]}  # a folder's __init__ and its modules
        for module, needs in imports().items()
    }
    try:
        TopologicalSorter(whole).prepare()
    except CycleError as circle:
        pytest.fail(f"these import each other: {circle.args[1]}")


def test_import_is_light():
    code = "import dwlth, sys; print(*{'pandas', 'matplotlib', 'ipywidgets', 'seaborn'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == []


def code_lines(path: Path) -> int:
    """Lines of a file that are not blank, nor comment, nor docstring."""
    text, lines = path.read_text(), set()
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_method_is_small_and_in_reading_order():
    section = README.partition("## Reading order")[2].partition("\n## ")[0]
    named = re.findall(r"^\d\. `(dwlth/\w+\.py)`", section, re.M)
    assert len(named) == 7 and all((ROOT / name).is_file() for name in named)
    assert "Seven files, fewer than 1,000 lines of code" in section
    assert sum(code_lines(ROOT / name) for name in named) < 1000
    method = [*PACKAGE.glob("*.py")]
    assert sum(len(path.read_text().splitlines()) for path in method) < 2000  # all lines, docstrings and blanks too
    docstring = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text()))
    described = re.findall(r"^    (\w+)/? ", docstring, re.M) + re.findall(r"; (\w+): ", docstring)
    assert [f"dwlth/{name}.py" for name in described[:7]] == named
    parts = {path.stem for path in method} | {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    assert set(described) >= parts - {"__init__", "__main__"}


def commands(text: str) -> list[str]:
    """The commands of this package in a page: in code spans and indented or fenced blocks."""
    spans = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4}(.+)$", text, re.M)
    return [span.partition("#")[0].strip() for span in spans if "python -m dwlth " in span]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_parse(page):
    found = commands(page.read_text())
    assert found or page.name != "README.md"
    for command in found:
        words = shlex.split(command.partition("python -m dwlth ")[2])
        if {"--help", "-h"} & {*words}:
            continue
        args = _parser().parse_args(words)  # leaves by SystemExit where it does not know a command or a flag
        if hasattr(args, "preset"):
            override(presets.get(args.preset), args.set)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_settings_and_links_exist(page):
    text = page.read_text()
    for setting in re.findall(r"`--set ([^`\s]+=[^`\s]+)", text):
        override(presets.get("paper" if ".where=" in setting else "digits"), [setting])  # raises for one unknown
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for path in re.findall(r"`((?:dwlth|docs|tests|benchmarks|notebooks)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_presets_of_the_readme_are_those_of_the_kit():
    section = README.partition("## Presets")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \|", section, re.M)
    assert rows == list(presets.PRESETS)
    for target in re.findall(r"^    make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_numbers_of_the_pages_are_those_of_the_presets():
    digits, page = presets.get("digits"), (ROOT / "docs" / "digits.md").read_text()
    for number in (
        f"eps {digits.evaluation.eps}, steps of {digits.evaluation.step_size}",
        f"batches of {digits.transfer['standard'].batch_size} ",
        f"{digits.transfer['standard'].epochs} epochs",
        f"rounds {', '.join(map(str, digits.rounds))} ",
        f"fractions {' and '.join(f'{100 * fraction:g} %' for fraction in digits.fractions)} ",
        f"{digits.seeds} seeds",
        f"{digits.together} networks side by side",
    ):
        assert f"| {number}" in page, number
    for preset in presets.PRESETS.values():
        assert preset.margins == {"sa": 1.0, "ra": 2.0} and "1 point of SA, 2 points of RA" in " ".join(README.split())
    for name in ("digits", "cifar-small"):
        net = models.NETWORKS[presets.get(name).network](10)
        row = re.search(rf"^\| `{name}` \|.*", README, re.M).group()
        assert f"{masks.dense(net).total:,} convolution weights" in row


def test_results_of_the_readme_are_those_of_the_tables():
    for name, block in re.findall(r"<!-- scoreboard ([\w-]+) -->\n(.*?)<!-- end -->", README, re.S):
        table = read_table(str(ROOT / "results" / name / "table.csv"))
        preset = presets.get(name)
        board = scoreboard(table, preset.margins, folder=Folder(preset, ROOT / "results"))
        rows = [f"| {row.claim} | **{row.answer}** | {row.effect} |" for row in board.itertuples()]
        header, _, *shown = block.splitlines()
        numbers = dict(enumerate(("four", "five", "six"), start=4))
        assert shown == rows, name
        assert header.startswith(f"| claim of the paper's abstract, and {numbers[len(rows) - 6]} questions of ours |")
        if name == "cifar-small":
            effects = board.set_index("claim")["effect"]["They are more data-efficient (with 10% and 1% of the data)"]
            gains = re.findall(
                r"standard -(\S+) .*?adversarial \+(\S+) (\(.*?\)); RA adversarial \+(\S+) (\(.*?\))", effects
            )
            (cost, sa, sa_range, ra, ra_range), (cost_1, sa_1, sa_1_range, ra_1, ra_1_range) = gains
            said = TEXT
            assert (
                f"have {sa} points more SA {sa_range} and {ra} points more RA {ra_range} than the standard ones" in said
            )
            assert f"With 1 % they have {sa_1} {sa_1_range} and {ra_1} {ra_1_range} points more" in said
            assert f"{cost} points with 10 % of the data, {cost_1} with 1 %" in said
    small = read_table(ROOT / "results" / "cifar-small" / "table.csv").query(
        "stage == 'transfer' and regime == 'adversarial' and fraction == 0.1 and method == 'imp'"
    )
    means = 100 * small.groupby(["source", "round"])[["sa", "ra"]].mean().unstack("round")
    lost = {source: (means["sa"][0] - means["sa"][6])[source] for source in ("standard", "adversarial")}
    gained = (means["ra"][6] - means["ra"][0])["adversarial"]
    said = re.search(r"adversarial ticket has ([\d.]+) points more RA and ([\d.]+) points less SA", TEXT)
    assert [float(number) for number in said.groups()] == pytest.approx([gained, lost["adversarial"]], abs=0.0501)
    assert f"The standard one loses {lost['standard']:.1f} points of SA." in TEXT
    early = (means["sa"][0] - means["sa"][3])["standard"]
    assert f"that ticket loses {early:.1f} points of SA after adversarial transfer" in TEXT
    photographs = read_table(ROOT / "results" / "cifar-small" / "table.csv")
    sparsest = verdict.verdict(photographs, presets.get("cifar-small").margins).set_index(["fraction", "source"])
    assert sparsest["sparsity"][0.01, "standard"] == 0 and "none with the standard source" in TEXT
    for source in ("adversarial", "fast_adversarial"):
        assert f"{100 * sparsest['sparsity'][0.01, source]:.2f} % with the adversarial and the fast" in TEXT
    scarce = photographs.query("fraction == 0.01 or stage == 'imp'")
    ordered = order(scarce, presets.get("cifar-small").margins).set_index(["fraction", "a", "b"])
    few = ordered.loc[0.01, "adversarial", "standard"]
    assert (
        f"in {few['sparser']:.0%} of resamples of the seeds, and less sparse in {few['less']:.0%}".replace("%", " %")
        in TEXT
    )
    under = photographs[photographs["stage"] == "autoattack"].set_index(["source", "round"])[["ra", "ra_pgd"]] * 100
    assert len(under) == 4 and (100 * (under["ra_pgd"] - under["ra"])).round(-2).isin([300, 400]).all()
    three = [under["ra"][source, 0] for source in ("adversarial", "fast_adversarial", "standard")]
    said = (
        "{:.1f} % (adversarial), {:.1f} % (fast adversarial) and {:.1f} % (standard) for the dense networks, {:.1f} %"
    )
    assert said.format(*three, under["ra"]["adversarial", 3]) in TEXT
    whole = read_table(ROOT / "results" / "cifar-small-97a8fb" / "table.csv").query("stage == 'autoattack'")
    dense, sparse = (100 * whole.sort_values("round")[["ra", "ra_pgd"]]).to_numpy()
    assert f"leaves {dense[0]:.2f} % RA to the dense" in TEXT and f"and {sparse[0]:.2f} % to its" in TEXT
    assert f": {dense[1] - dense[0]:.2f} and {sparse[1] - sparse[0]:.2f} points less than PGD-20." in TEXT
    for column in ("command", "commit"):
        assert whole[column].nunique() == 1 and whole[column].iloc[0] in TEXT
    assert read_preset(ROOT / "results" / "cifar-small-97a8fb" / "preset.json")["autoattack_images"] == 10_000
    assert photographs.query("regime == 'standard' and method == 'imp' and fraction >= 0.1")["ra"].max() < 0.01
    assert (
        "after standard transfer is not judged; on `cifar-small` it is below 1 %, except with 1 % of the data." in TEXT
    )
    few = photographs.query("stage == 'transfer' and method != 'imp' and round not in [6, 11]")
    assert len(few) == 12 and {*few["round"]} == {3} and {*few["seed"]} == {0} and "(twelve more, of one" in TEXT
    gain = photographs.query("stage == 'transfer' and regime == 'adversarial' and method == 'imp' and fraction < 1")
    gain = 100 * gain.set_index(["source", "fraction", "round", "seed"])["ra"]
    gain = gain["adversarial"] - gain["standard"]
    grown = (gain[0.01] - gain[0.1]).groupby("round")
    low, high = interval(grown.get_group(0))
    tickets = sorted(grown.mean()[1:])
    words = "by {:.1f} points in dense networks ({:.1f} to {:.1f}), by {:.1f} to {:.1f} in tickets."
    assert words.format(grown.mean()[0], low, high, tickets[0], tickets[-1]) in TEXT
    best = photographs.assign(sa=photographs["sa_best_sa"].fillna(photographs["sa"]))
    best = crossed(best, "cifar10").query("round == 11").set_index(["weights", "mask", "seed"])
    shown = [
        interval(best.loc[source].loc[source][name] - best.loc[source].loc[mask][name])[0] > 0
        for name in ("SA, standard transfer", "SA, adversarial transfer")
        for source in best.index.unique("weights")
        for mask in best.index.unique("mask").difference([source])
    ]
    assert len(shown) == 12 and all(shown) and "Each of the 12 differences is shown, if" in TEXT
    cells = crossed(photographs, "cifar10").query("round == 11").groupby(["weights", "mask"])[list(verdict.CRITERIA)]
    for criterion in ("SA, standard transfer", "SA, adversarial transfer"):
        of = cells.mean()[criterion].unstack("mask")
        assert (of.idxmax(axis=1) == of.index).all()
    plain = cells.mean()["SA, standard transfer"]["standard"]
    lost = sorted(plain["standard"] - plain[["adversarial", "fast_adversarial"]])
    assert "lose {:.1f} to {:.1f} points of SA after standard".format(*lost) in TEXT
    parts = variance(photographs, "cifar10").query("round == 11 and criterion == 'RA, adversarial transfer'")
    share = parts.set_index("part")["share"]
    words = f"explain {share['weights']:.0%} of its spread (the mask: {share['mask']:.0%})".replace("%", " %")
    assert words in TEXT
    effect = scoreboard(photographs, presets.get("cifar-small").margins).set_index("claim")["effect"]
    shuffled = r"SA standard \+(\S+) (\(.*?\)); .*RA adversarial \+(\S+) (\(.*?\))"
    words = "have {} points less SA after standard transfer {} and {} points less RA {} than IMP's"
    words = words.format(*re.search(shuffled, effect["IMP's mask beats a shuffled one"]).groups())
    assert words in TEXT
    both, names = against_imp(photographs, "cifar10"), ["SA, standard transfer", "RA, adversarial transfer"]
    both, pruned = both.query("round in [6, 11]"), both.query("round == 11")
    per = both.groupby(["method", "round", "criterion"])["points"]
    assert (per.count() == 9).all() and len(per) == 7 * 2 * 3
    per = per.mean().unstack(["criterion", "round"])
    assert (per < 0.05).all(axis=None) and per.mean(axis=1).idxmax() == "oneshot"
    for name, points in per.iterrows():
        cells = (f"{points[criterion, 6]:.1f} / {points[criterion, 11]:.1f}" for criterion in verdict.CRITERIA)
        assert f"| {METHODS[name].label} | {' | '.join(cells)} |" in TEXT
    of = pruned.set_index(["criterion", "method", "source"])["points"]
    lost = -of["SA, adversarial transfer", "oneshot", "adversarial"].mean()
    words = f"has {-per['SA, adversarial transfer', 11]['oneshot']:.1f} points less SA after adversarial transfer: "
    assert f"{words}{lost:.1f} for the adversarial source, one of whose three networks kept epoch 6;" in TEXT
    transfers = photographs.query("stage == 'transfer' and regime == 'adversarial' and fraction == 0.1")
    transfers = transfers.query("round == 11").set_index(["method", "source", "seed"])
    ones = transfers.loc["oneshot"]
    assert sorted(ones.index[ones["epoch_best_ra"] == 5]) == [("adversarial", 0)] and len(ones) == 9
    gap = 100 * (transfers["sa_best_sa"]["imp"] - ones["sa_best_sa"]).mean()
    assert f"where all keep their best SA the mean is {gap:.1f}." in TEXT
    of_one = both[both["method"] == "oneshot"].groupby(["criterion", "round", "seed"])["points"].mean()
    spans = {key: interval(points) for key, points in of_one.groupby(level=[0, 1])}
    (low, high), *others = sorted(spans.values(), key=lambda span: span[1])
    assert spans["SA, adversarial transfer", 11] == (low, high) and high < 0 and len(others) == 5
    assert all(span[0] < 0 < span[1] for span in others)
    assert f"whose interval does not hold 0 ({low:.1f} to {high:.1f})." in TEXT
    mean = -pruned.groupby(["source", "criterion", "method"])["points"].mean()
    sa, ra = (mean["adversarial", name] for name in names)
    own = pruned[pruned["source"] == "adversarial"].assign(points=-pruned["points"])
    span = {
        key: "{:.1f} ({:.1f} to {:.1f})".format(points.mean(), *interval(points))
        for key, points in own.groupby(["method", "criterion"])["points"]
    }
    far, near = span["shuffled", names[1]], span["shuffled", names[0]]
    far, near = (
        words.replace(" (", f" points less {of} (") for words, of in ((far, "RA"), (near, "SA after standard transfer"))
    )
    assert f"the adversarial ticket has {far} and {near} once its mask is shuffled." in TEXT
    words = f"{span['reinit', names[1]]} and {span['reinit', names[0]]} points less (three seeds)."
    assert f"under its own mask it has {words}" in TEXT
    gain = -mean["standard", names[1], "reinit"]
    of_random = pruned.query(f"source == 'standard' and criterion == '{names[1]}' and method == 'reinit'")
    low, high = interval(of_random["points"])
    assert f"with random weights it has {gain:.1f} points more ({low:.1f} to {high:.1f})" in TEXT
    words = (
        f"has {ra['narrow']:.1f} points less RA and {sa['narrow']:.1f} points less SA after standard transfer than the"
    )
    assert words in TEXT
    dense = pruned.query("source == 'standard' and method == 'narrow' and criterion == @names[1]")["points"]
    low, high = interval(dense)
    words = (
        f"After standard transfer it has {mean['standard', names[0], 'narrow']:.1f} points less SA than the standard "
    )
    words += f"ticket; it has {dense.mean():.1f} points more RA ({low:.1f} to {high:.1f})"
    assert words in TEXT
    trained = (
        crossed(photographs, "cifar10", kind="trained").set_index(["weights", "mask", "seed", "round"]).sort_index()
    )
    standard, robust = trained.loc["standard"], trained.loc["adversarial"]
    own, other = (standard.xs(name, level="mask")[list(verdict.CRITERIA)] for name in ("standard", "adversarial"))
    assert other.equals(standard.xs("fast_adversarial", level="mask")[list(verdict.CRITERIA)])  # which trains alike
    gains = {
        "standard": other - own,
        "adversarial": (robust.xs("standard", level="mask") - robust.xs("adversarial", level="mask"))[own.columns],
    }
    assert all(set(of.index) == {(seed, k) for seed in range(3) for k in (6, 11)} for of in gains.values())
    means = pd.concat(gains).groupby(level=[0, 2]).mean()
    assert (means.xs(6, level=1) / means.xs(11, level=1)).stack().between(0, 1).all()
    spans = [interval(points) for _, points in pd.concat(gains).xs(6, level=2).stack().groupby(level=[0, 2])]
    assert len(spans) == 6 and sum(low > 0 or high < 0 for low, high in spans) == 1
    assert {*photographs.query("method.str.startswith('trained') and stage == 'imp'")["seed"]} == {0}
    of = dict(iter(pd.concat(gains).xs(11, level=2).stack().groupby(level=[0, 2])))
    said = lambda key, sign=1: (sign * of[key].mean(), *interval(sign * of[key]))
    plain, attacked, ra = verdict.CRITERIA
    words = "{:.1f} points more RA ({:.1f} to {:.1f}) and {:.1f} points more SA ({:.1f} to {:.1f}) after adversarial"
    assert words.format(*said(("standard", ra)), *said(("standard", attacked))) in TEXT
    words = "its own, and {:.1f} points less SA after standard transfer ({:.1f} to {:.1f})."
    assert words.format(*said(("standard", plain), -1)) in TEXT
    words = "from standard rounds has {:.1f} points more SA after standard transfer ({:.1f} to {:.1f})."
    assert words.format(*said(("adversarial", plain))) in TEXT
    few, less = (said(("adversarial", name), -1) for name in (ra, attacked))
    assert f"it has {few[0]:.1f} points less RA and {less[0]:.1f} points less SA, whose intervals hold 0." in TEXT
    assert few[1] < 0 < few[2] and less[1] < 0 < less[2]
    ways = photographs.query("stage == 'connect'")
    assert (ways.groupby(["source", "round", "regime"])["seed"].nunique() == 3).all() and len(ways) == 3 * 2 * 2 * 3
    words = "they lose {} points of SA after standard transfer {}, and {} points of SA and of RA after adversarial"
    found = re.findall(r"\+(\S+) (\(.*?\))", effect["No barrier parts two trainings from one start"])
    assert words.format(*found[0], found[1][0]) in TEXT and found[1][0] == found[2][0]
    lost = 100 * ways.set_index(["source", "round", "regime", "seed"])[["barrier_sa", "barrier_ra"]].stack()
    lost = dict(iter(lost.groupby(level=[0, 1, 2, 4])))
    most, fast = (lost.pop((source, 11, "standard", "barrier_sa")) for source in ("adversarial", "fast_adversarial"))
    said = "{:.1f} points (adversarial, {:.1f} to {:.1f}) and {:.1f} points (fast adversarial, {:.1f} to {:.1f})."
    assert said.format(most.mean(), *interval(most), fast.mean(), *interval(fast)) in TEXT
    assert all(interval(of)[0] < 1 < interval(of)[1] for of in (most, fast))
    assert f"All other networks lose {max(of.mean() for of in lost.values()):.1f} points at most, in the mean" in TEXT
    audited = pd.read_csv(ROOT / "results" / "cifar-small" / "audit.csv")
    assert (audited.groupby(["source", "sparsity"])["seed"].nunique() == 3).all()
    passed, judged = (audited["verdict"] == "passes").sum(), audited["verdict"].count()
    assert f"{passed} of {judged} checks of {audited['id'].nunique()} networks pass, on the first" in TEXT
    ra = audited.assign(ra=audited["found"].str.extract(r"([\d.]+) %$", expand=False).astype(float))
    ra = ra.pivot(index="id", columns="check", values="ra")
    lost = (ra["SA and RA"] - ra["RA under AutoAttack"]).round(1)
    assert f"AutoAttack costs them {lost.min()} to {lost.max()} points more than PGD-20" in TEXT
    epochs = photographs.query("fraction == 0.1 and regime == 'adversarial' and source == 'fast_adversarial'")
    (early,) = epochs.query("method == 'imp' and stage == 'transfer' and epoch_best_ra == 5").itertuples()
    words = f"has {100 * early.sa:.1f} % SA because epoch 6 was kept; epoch 12 has {100 * early.sa_best_sa:.1f} %"
    assert words in TEXT and (early.round, early.epoch_best_sa) == (0, 11)
    imp = photographs.query("fraction < 1 and regime == 'adversarial' and stage == 'transfer' and method == 'imp'")
    robust = imp["source"] != "standard"
    sixth, few = imp["epoch_best_ra"] == 5, imp["fraction"] == 0.01
    words = "{} of {} networks of the two robust sources kept epoch 6, and {} of {} of the standard source."
    counts = [n for part in (few & robust, few & ~robust) for n in ((sixth & part).sum(), part.sum())]
    assert words.format(*counts) in TEXT
    two = imp[few & (imp["epoch_best_sa"] != imp["epoch_best_ra"])]
    more = 100 * (two["sa_best_sa"] - two["sa_best_ra"]).mean(), 100 * (two["ra_best_ra"] - two["ra_best_sa"]).mean()
    words = "is another one ({} times), it has {:.1f} points more SA and {:.1f} points less RA."
    assert words.format(len(two), *more) in TEXT
    best = photographs.assign(sa=photographs["sa_best_sa"].fillna(photographs["sa"]))
    best = verdict.tests(best, presets.get("cifar-small").margins).set_index(["fraction", "source", "round"])
    most = -best.loc[(0.01, "adversarial", 6), "SA, adversarial transfer low"]
    assert f"is shown to lose at most {most:.2f} points of SA after adversarial transfer, where 1 is allowed." in TEXT
    judged = [
        verdict.tests(rows, presets.get("cifar-small").margins).query("source == 'fast_adversarial' and round == 3")
        for rows in (photographs, photographs[(photographs["seed"] != early.seed) | (photographs["stage"] == "imp")])
    ]
    name = "SA, adversarial transfer"
    wide, narrow = ((of[f"{name} high"] - of[f"{name} low"])[of["fraction"] == 0.1].item() for of in judged)
    assert wide > 3 * narrow and "This is why that source's intervals are wide." in TEXT
    measured = photographs[photographs["device"].str.contains("Xeon") & (photographs["method"] == "imp")]
    seconds, small = measured.groupby(["stage", "regime", "fraction"])["seconds"].mean(), presets.get("cifar-small")
    hours = sum(seconds[run.stage, run.regime, run.fraction] for run in small.grid()) / 2 / 3600
    assert f"the Xeon's times in our table come to {hours:.0f}, beside other work" in TEXT
    images = photographs.query("stage == 'transfer' and fraction == 0.1")["n_train"].max()
    assert f"10 % ({images:,} images)" in TEXT
    whole = read_table(ROOT / "results" / "cifar-small" / "table.csv").query("fraction == 1 and stage == 'transfer'")
    whole = 100 * whole.query("round == 0 and seed == 0").set_index(["source", "regime"])[["sa", "ra"]]
    full = photographs.query("fraction == 1 and regime == 'standard' and round in [0, 11] and stage == 'transfer'")
    full = 100 * full.groupby(["source", "round"])["sa"].mean()
    words = "has {0[11]:.1f} % SA (dense: {0[0]:.1f} %), the adversarial one {1[11]:.1f} % ({1[0]:.1f} %)"
    assert words.format(full["standard"], full["adversarial"]) in TEXT
    kept = photographs.query("fraction == 1 and regime == 'adversarial' and stage == 'transfer'")
    last = kept[kept["source"] != "fast_adversarial"].set_index(["source", "round"])
    assert ((last["epoch_best_ra"] == 11) | (last["epoch_best_sa"] == 11)).all()
    last = 100 * last["ra_best_ra"].where(last["epoch_best_ra"] == 11, last["ra_best_sa"])
    standard, adversarial = (last[source, 0] - last[source, 11] for source in ("standard", "adversarial"))
    assert (
        f"to that sparsity, {standard:.1f} and {adversarial:.1f} points, where all networks are those of epoch" in TEXT
    )
    late = kept["epoch_best_ra"].eq(11) == (kept["round"].eq(0) == kept["source"].ne("standard"))
    assert late.all() and kept["epoch_best_ra"].isin([5, 11]).all()
    (dense_,) = kept.query("source == 'standard' and round == 0").itertuples()
    page = " ".join((ROOT / "docs" / "cifar-small.md").read_text().split())
    assert f"whose SA at epoch {dense_.epoch_best_sa + 1:.0f} is {100 * dense_.sa_best_sa:.1f} %." in page
    near = (
        100 * photographs.query("stage == 'imp' and round == 5 and method == 'imp'").set_index("source")[["sa", "ra"]]
    )
    words = "at round 5 the PGD-10 source has SA {:.1f} % and RA {:.1f} %, the other {:.1f} and {:.1f} %"
    assert words.format(*near.loc["adversarial"], *near.loc["fast_adversarial"]) in page
    rough = photographs.query("precision == 'float32' and stage in ('transfer', 'connect')")
    rough = rough.assign(way=rough["method"].str.partition("@")[0]).groupby(["stage", "way", "round", "seed"]).groups
    assert set(rough) == {  # which the table of the page names
        *(("transfer", "synflow", k, seed) for k in (6, 11) for seed in (0, 1)),
        *(("transfer", way, 11, seed) for way in ("oneshot", "random") for seed in (1, 2)),
        *(("transfer", "trained", k, 0) for k in (6, 11)),
        *(("connect", "imp", k, 0) for k in (0, 11)),  # of the fast adversarial source
    }
    for source in whole.index.unique("source"):
        plain, attacked = whole.loc[source, "standard"], whole.loc[source, "adversarial"]
        row = f"| {source.replace('_', ' ')} | {plain['sa']:.1f} % | {attacked['sa']:.1f} % | {attacked['ra']:.1f} % |"
        assert row in (ROOT / "docs" / "cifar-small.md").read_text()


def test_results_on_digits_in_the_readme_are_those_of_its_table():
    table, section = read_table(ROOT / "results" / "digits" / "table.csv"), TEXT
    preset, imp = presets.get("digits"), table[table["method"] == "imp"]
    found = verdict.verdict(table, preset.margins).set_index(["fraction", "source"])["sparsity"]
    sparsities = [f"{100 * found[1.0, source]:.2f} %" for source in ("adversarial", "fast_adversarial")]
    assert found[1.0, "standard"] == 0 and (found[0.1] == 0).all()
    assert f"adversarial {sparsities[0]}, fast adversarial {sparsities[1]}, standard none" in section
    runs = imp[imp["stage"] == "transfer"]
    mean = 100 * runs.groupby(["fraction", "regime", "source", "round"])[["sa", "ra"]].mean()
    robust = mean["ra"][1.0, "adversarial"].unstack("source")
    sparse, dense = robust.loc[15], robust.loc[0]
    assert (
        f"{sparse['adversarial']:.1f} % (adversarial), {sparse['fast_adversarial']:.1f} % (fast adversarial) and "
        f"{sparse['standard']:.1f} % (standard); dense it is {dense['adversarial']:.1f}, "
        f"{dense['fast_adversarial']:.1f} and {dense['standard']:.1f} %" in section
    )
    ten = table.query("stage == 'transfer' and regime == 'adversarial' and fraction == 1 and seed < 10")
    ten = 100 * ten.set_index(["method", "source", "round", "seed"]).sort_index()["ra"]
    gain = ten["random"] - ten["imp"]
    of = [gain[source, k].dropna() for source in ("standard", "adversarial") for k in (4, 11)]
    assert [len(points) for points in of] == [10] * 4
    words = (
        "they keep {:.1f} points more RA than IMP's at 59.04 % sparsity ({:.1f} to {:.1f}) and {:.1f} points more at"
    )
    words += " 91.41 % ({:.1f} to {:.1f})."
    assert words.format(*(n for points in of[:2] for n in (points.mean(), *interval(points)))) in section
    assert all(interval(points)[0] < 0 < interval(points)[1] for points in of[2:])
    random = table.query("stage == 'transfer' and fraction == 1 and method == 'random' and round == 15 and seed == 3")
    assert len(random) == 6 and random[["sa", "ra"]].stack().round(6).nunique() == 1
    net = models.NETWORKS["small_resnet"](5)
    dead = masks.dense(net)
    for _ in range(15):
        dead = masks.prune(dead, masks.random(net, 3), preset.prune_rate)
    assert [name for name, kept in dead.items() if not kept.any()] == ["conv1.weight"]
    ahead = order(table.query("fraction == 1 or stage == 'imp'"), preset.margins).set_index(["a", "b"])["sparser"]
    ahead = [f"{100 * ahead['adversarial', other]:.1f} %" for other in ("standard", "fast_adversarial")]
    assert f"In {ahead[0]} of resamples of the seeds the adversarial ticket is sparser than" in section
    assert f"and in {ahead[1]} sparser than the fast adversarial one" in section
    shuffled = against_imp(table, "digits5-9").query("method == 'shuffled' and criterion == 'RA, adversarial transfer'")
    shuffled = shuffled.groupby("source")["points"].mean()
    assert f"from the standard source alone ({shuffled['standard']:.1f} points)" in section
    assert shuffled.drop("standard").abs().max() < 1
    ten = table.query("stage == 'transfer' and regime == 'adversarial' and source == 'adversarial' and seed < 10")
    ten = 100 * ten.query("round == 11 and fraction == 1").groupby("method")["ra"].mean()
    assert f"{ten['imp'] - ten['reinit']:.1f} points less RA than the adversarial ticket of 91.41 %" in section
    assert f"and a dense network of as few weights has {ten['imp'] - ten['narrow']:.1f} points less" in section
    under = 100 * table[table["stage"] == "autoattack"].groupby(["source", "round"])["ra"].mean()
    cost = 100 * table[table["stage"] == "autoattack"].eval("ra_pgd - ra")
    assert f"and {cost.min():.1f} to {cost.max():.1f} in single ones:" in section
    dense = [f"{under[source, 0]:.1f} %" for source in ("adversarial", "fast_adversarial", "standard")]
    assert "{} (adversarial), {} (fast adversarial) and {} (standard) for the dense".format(*dense) in section
    assert f"{under['adversarial', 4]:.1f} % and {under['fast_adversarial', 2]:.1f} % for the sparsest" in section
    scarce = mean.xs((0.1, 0), level=("fraction", "round"))
    of = {
        regime: scarce.loc[regime].loc["adversarial"] - scarce.loc[regime].loc["standard"] for regime in preset.regimes
    }
    assert f"has {of['adversarial']['ra']:.1f} points more RA" in section
    assert f"but {-of['standard']['sa']:.1f} points less SA" in section


def test_the_speeds_that_are_said_first_are_those_of_the_page_s_table():
    page = (ROOT / "docs" / "performance.md").read_text()
    of = lambda row: float(re.search(rf"^\| {row}[^|]*\|[^|]*\| ([\d.]+) \|", page, re.M)[1])
    step, speed = of("time of a step over that of its bare passes"), of("PGD-20 evaluation: ours in bfloat16")
    words = " ".join(page.split())
    assert f"takes {100 * (step - 1):.0f} % more time than its forward and backward passes alone." in words
    assert f"**{speed:.1f} times** as fast as the faster of torchattacks and foolbox" in words
    assert f"PGD-20 evaluation is {speed:.1f} times as fast as the faster of torchattacks and foolbox" in TEXT


def test_conda_has_what_the_extras_have():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "environment.yml").read_text().splitlines()
    entries = [line.partition("#")[0].strip(" -") for line in lines if line.startswith("  - ")]
    conda = dict(re.fullmatch(r"([\w-]+) ?(.*)", entry.removesuffix(":")).groups() for entry in entries)
    conda.pop("conda-forge")
    by_pip = re.search(r"- -e \.\[([\w,]+)\]", "\n".join(lines)).group(1).split(",")
    names = {"torch": "pytorch", "playwright": "playwright-python"}  # where conda-forge's differs from PyPI's
    wanted = {"python": project["requires-python"]}
    for requirement in [
        *project["dependencies"],
        *(item for extra, items in project["optional-dependencies"].items() if extra not in by_pip for item in items),
    ]:
        name, version = re.fullmatch(r"([\w-]+)(?:\[.*\])?(.*)", requirement).groups()
        if name != "dwlth":
            wanted[names.get(name, name)] = version
    assert set(by_pip) <= project["optional-dependencies"].keys()
    assert conda.keys() == wanted.keys() | {"pip", "make"}
    for name, version in wanted.items():
        assert conda[name].startswith(version), f"{name}: {version} here, {conda[name]} in environment.yml"


@pytest.mark.parametrize("section", ["Your own pruning method", "Your own data set"])
def test_ten_lines_of_the_readme_run(section, tmp_path, tiny_args):
    text = README.partition(f"## {section}")[2].partition("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    assert len([line for line in code.splitlines() if line]) <= 12
    (tmp_path / "mine.py").write_text(code)
    few = ["--source", "standard", "--workers", "2", *tiny_args, "--set", "rounds=0,2", "--set", "fractions=1.0"]
    command = [sys.executable, "mine.py", *few]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (path,) = (tmp_path / "mine").glob("*/table.csv")
    transfers = read_table(path).query("stage == 'transfer'")
    if "pruning" in section:
        assert {"imp", "scaled"} == {*transfers["method"]}
    else:
        assert {"negatives"} == {*transfers["downstream"]}


def test_a_folder_of_images_needs_no_code(tmp_path, tiny_args):
    """As in the README, with the handwritten digits for pre-training, and small images in colour for both tasks."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in "ab":
            folder = tmp_path / "data" / "pets" / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                level = 60 + 120 * (label == "b")
                pixels = rng.integers(level - 40, level + 40, size=(16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    settings = ["downstream=folder:pets", "upstream=folder:pets", "network=small_resnet32"]
    few = ["--source", "standard", "--workers", "1", *tiny_args, "--set", "rounds=0", "--set", "fractions=1.0"]
    few += [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "dwlth", "run", "digits", "--results", "mine", *few]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (path,) = (tmp_path / "mine").glob("*/table.csv")
    assert {"folder:pets"} == {*read_table(path).query("stage == 'transfer'")["downstream"]}


def test_the_audit_of_the_readme_is_the_committed_one():
    found = pd.read_csv(ROOT / "results" / "digits" / "audit.csv", keep_default_na=False)
    judged, failed = found[found["verdict"] != ""], found[found["verdict"] == "fails"]
    assert (found.groupby(["source", "sparsity"])["seed"].nunique() == 10).all()
    passed = f"{len(judged) - len(failed)} of {len(judged)} checks"
    assert f"{passed} of {found['id'].nunique()} networks pass" in TEXT
    planted = found[found["check"].str.startswith("planted")]
    tried = failed[failed["check"].str.startswith("planted")]
    assert len(tried) == 12 and "Twelve of the others are active tests" in TEXT
    dense = (planted["source"] == "fast_adversarial") & (planted["sparsity"] == 0)
    assert (planted[dense]["verdict"] == "fails").sum() == 7 and "Seven are dense networks of the fast" in TEXT
    hits, weak = planted[dense]["found"].str.split(" of ", expand=True).astype(int).sum()
    assert f"in its ten dense networks the attack finds {hits} of {weak} weaknesses." in TEXT
    percents = found.assign(ra=found["found"].str.extract(r"([\d.]+) %$", expand=False).astype(float))
    ra = percents.pivot(index=["source", "sparsity", "seed"], columns="check", values="ra")
    lost = ra.rsub(ra["SA and RA"], axis=0).round(1)
    square, again = (lost[name] for name in ("RA under Square, a black-box attack", "RA under 5 restarts"))
    few, two = square[square > 1], sorted(again[again > 3])
    assert len(failed) == len(tried) + len(few) + len(two)
    assert len(few) == 3 and {*few.index.get_level_values(0)} == {"adversarial"}
    assert f"Square leaves three networks of the adversarial source {few.min()} to {few.max()} points less" in TEXT
    assert {*again[again > 3].index.get_level_values(0)} == {"fast_adversarial"}
    assert "cost two networks of the fast adversarial source {} and {} points".format(*two) in TEXT
    assert f"AutoAttack costs up to {lost['RA under AutoAttack'].max()} points more" in TEXT
    assert again.min() == 0
    assert f"networks of `results/digits/audit.csv` 0 to {again.max()}" in inspect.getsource(checks)
    for name in ("digits", "cifar-small"):
        claims = json.loads((ROOT / "results" / name / "claims.json").read_text())["claims"]
        networks = pd.read_csv(ROOT / "results" / name / "audit.csv")["id"].nunique()
        commits = dict.fromkeys(of["commit"] for of in sorted(claims, key=lambda of: -of["run"]["seed"]))
        assert len(claims) == networks
        assert f"commit {', seed 0 at '.join(commits)}; in `results/{name}/audit.csv`" in TEXT
