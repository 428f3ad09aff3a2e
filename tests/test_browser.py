"""JupyterLab and Voila in headless Chromium, used as a reader would. DWLTH_SCREENSHOTS names a folder for pictures."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_playground import NINE, after, answers, draw

from dwlth.interface.experiment import Experiment
from dwlth.results import read_record

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[test]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = ("standard", "fast_adversarial", "adversarial")
TINY = ["pretrain.epochs=1", "imp.epochs=1", "transfer.epochs=5", "evaluation.steps=2", "rounds=0,2,3", "seeds=2"]
TINY += ["fractions=1.0", *(f"{stage}.adversarial.attack.steps=2" for stage in ("pretrain", "imp"))]
STEP = 60  # seconds that nothing in a newcomer's first hour may exceed, on two busy cores
MINUTES = float(os.environ.get("DWLTH_MINUTES", 10))  # for anything to happen; slow machines are slow

RUN_ALL = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    const notebook = app.shell.currentWidget;
    await notebook.context.ready;
    await notebook.sessionContext.ready;
    await app.commands.execute("notebook:run-all-cells");
    return [...notebook.content.model.cells].flatMap(cell => cell.type === "code" ? cell.toJSON().outputs : [])
        .filter(output => output.output_type === "error").map(output => output.ename + ": " + output.evalue);
}"""
DIGEST = """async image => {
    const bytes = await (await fetch(image.src)).arrayBuffer();
    const digest = await crypto.subtle.digest("SHA-256", bytes);
    return [...new Uint8Array(digest)].map(byte => byte.toString(16)).join();
}"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What a clone of the kit holds, in a path that is no plain word. Its notebooks have the settings above."""
    place = tmp_path_factory.mktemp("reader") / "Zoë's kit"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs git and a clone")
    for name in filter(None, listed.stdout.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    for path in (place / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8").replace("settings = []", f"settings = {TINY}")
        path.write_text(text, encoding="utf-8")
    (place / ".gitignore").open("a").write("/home/\n")  # of the server below
    git = ["git", "-c", "user.name=Zoë", "-c", "user.email=zoe@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "the kit"]):
        subprocess.run([*git, *words], cwd=place, check=True)
    for name in (".made", ".package", ".notebooks"):  # make's set-up is done: what runs the tests has all packages
        (place / ".made" / "here").mkdir(parents=True, exist_ok=True)
        (place / ".made" / "here" / name).touch()
    return place


@pytest.fixture(scope="module")
def experiment(place):
    """The quickstart's results, of a `digits` that trains in a moment."""
    experiment = Experiment("digits", place / "quickstart", device="cpu", settings=TINY)
    assert experiment.have(experiment.runs(), files=True, minutes=1e6)  # a busy machine makes the estimate high
    (place / "quickstart" / "digits").symlink_to(experiment.folder.path)  # whose name has a hash of the settings
    return experiment


@contextlib.contextmanager
def serve(place, command):
    """The address of a server that runs meanwhile; the command is given the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, settings in {
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # also what is scrolled away is in the page
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    }.items():
        path = place / "home" / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(settings)
    home = {name: str(place / "home" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    home |= {"JUPYTERLAB_SETTINGS_DIR": str(place / "home" / "settings")}
    home |= {"JUPYTERLAB_WORKSPACES_DIR": str(place / "home" / "workspaces")}
    env = os.environ | home | {"PYTHONPATH": str(place), "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    with open(place / "home" / "server.log", "ab") as log:
        server = subprocess.Popen(command(port), cwd=place, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        address, limit = f"http://127.0.0.1:{port}", time.time() + 60 * MINUTES
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=60).close()
                break
            assert server.poll() is None and time.time() < limit, (place / "home" / "server.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # ends its kernels too
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def lab(place, experiment):
    """`make lab`, on the quickstart's results."""
    options = "--no-browser --allow-root --expose-app-in-browser --LabApp.news_url=None"
    options += " --IdentityProvider.token= --ServerApp.password= --ServerApp.port_retries=0"
    with serve(place, lambda port: ["make", "lab", "MADE=.made/here", f"LAB={options} --port={port}"]) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as chromium:
        browser = chromium.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 2400})
    page.set_default_timeout(60_000 * MINUTES)
    yield page
    page.close()


@pytest.fixture
def picture(page, tmp_path):
    folder = Path(os.environ.get("DWLTH_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name, part=None: (page.locator(part) if part else page).screenshot(path=folder / f"{name}.png")


def run_all(page, lab, name):
    began = time.monotonic()
    page.goto(f"{lab}/lab/tree/my-notebooks/{name}?reset")
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.content?.model")
    assert page.evaluate(RUN_ALL) == []
    assert time.monotonic() - began < STEP * max(1, os.getloadavg()[0] / os.cpu_count())  # longer beside others


class Shown:
    """What a group of widgets shows: its pictures, as hashes, and its tables and texts."""

    def __init__(self, page, part):
        self.page, self.part = page, page.locator(part).first
        self.part.locator(".dwlth-figure").first.wait_for()

    def now(self):
        pictures = [image.evaluate(DIGEST) for image in self.part.locator(".dwlth-figure").all()]
        words = [words.inner_text() for words in self.part.locator(".dwlth-table, .dwlth-text").all()]
        return pictures, words

    def settled(self):
        """What is shown once nothing is being drawn and nothing has changed for a while."""
        self.page.wait_for_function("part => !part.querySelector('.dwlth-drawing')", arg=self.part.element_handle())
        before, same = self.now(), 0
        while same < 4:
            self.page.wait_for_timeout(300)
            now = self.now()
            before, same = now, same + 1 if now == before else 0
        return before

    def after(self, act):
        """What is shown once it has changed and settled after `act`."""
        before, limit = self.now(), time.time() + 60 * MINUTES
        act()
        while self.now() == before:
            assert time.time() < limit, "nothing has changed"
            self.page.wait_for_timeout(100)
        return self.settled()

    def pick(self, name, value):
        return self.after(lambda: self.part.locator(f".dwlth-{name} select").select_option(label=value))

    def slide(self, name, key):
        return self.after(lambda: self.part.locator(f".dwlth-{name} .noUi-handle").press(key))


def pick_each_source(shown, begin):
    """Pick the three sources, then each again: each shows something else, and the same thing every time."""
    first = {begin: shown.settled()}
    others = [source for source in SOURCES if source != begin]
    for source in others:
        first[source] = shown.pick("source", source)
    for i, part in enumerate(("picture", "words")):
        assert len({str(seen[i]) for seen in first.values()}) == 3, part
    for source in (begin, *others, begin):
        assert shown.pick("source", source) == first[source]


def test_the_lab_opens_on_the_first_notebook(page, lab, picture):
    page.goto(lab)
    page.locator(".jp-RenderedMarkdown").first.wait_for()
    assert page.url.endswith("/lab/tree/my-notebooks/00_start_here.ipynb")
    page.locator(".jp-DirListing").get_by_text("README.md").wait_for()  # the file browser shows the whole kit
    picture("lab")


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS if path.name[:2] in ("00", "04", "06")])
def test_a_notebook_runs_as_a_page(name, page, lab, picture):
    run_all(page, lab, name)
    picture(f"{name[:2]}-page")


def test_03_shows_each_source(page, lab, picture):
    run_all(page, lab, "03_standard_vs_adversarial_transfer.ipynb")
    pick_each_source(Shown(page, ".dwlth-live"), "adversarial")
    picture("03", ".dwlth-live")
    picture("03-page")


def test_07_explores_and_trains(page, lab, experiment, picture):
    run_all(page, lab, "07_explorer.ipynb")
    shown = Shown(page, ".dwlth-explorer")
    picture("07-page")
    picture("07-explorer", ".dwlth-explorer")
    pick_each_source(shown, "adversarial")
    begin = shown.settled()
    right = shown.slide("round", "ArrowRight")
    picture("07-slid", ".dwlth-explorer")
    assert page.locator(".dwlth-headline b").count() == 3
    assert all(one != other for one, other in zip(begin[0], right[0])) and begin[1] != right[1]  # all three pictures
    assert shown.slide("round", "ArrowLeft") == begin
    assert shown.slide("ra_margin", "ArrowRight")[0][0] != begin[0][0]  # the band of the margin
    assert shown.slide("ra_margin", "ArrowLeft") == begin
    assert "Double-win tickets exist" in page.locator(".dwlth-scoreboard").inner_text()

    first = answers(page)
    after(page, page.locator(".pg-clear").click)
    assert after(page, lambda: draw(page, NINE)) != first
    drawn = answers(page)
    assert after(page, lambda: page.locator(".pg-round").press("Home")) != drawn
    picture("07-playground", ".dwlth-playground[data-milliseconds]")

    cells = "() => window.jupyterapp.shell.currentWidget.content.widgets.length"
    there = page.evaluate(cells)
    page.locator(".pg-board").press("x")  # the notebook's key for cutting a cell
    eps = page.locator(".pg-eps")
    strength = int(eps.input_value())
    eps.press("ArrowRight")  # and for the next cell
    assert int(eps.input_value()) == strength + 1 and page.evaluate(cells) == there
    page.locator(".pg-choose-seed").press("ArrowDown")
    page.wait_for_function("() => document.activeElement.className === 'pg-choose-seed'")
    assert page.get_by_role("slider", name="Attack strength").count() == 1

    folder = experiment.folder
    panel = page.locator(".dwlth-training")
    page.set_viewport_size({"width": 1280, "height": 720})
    page.locator(".dwlth-scoreboard").evaluate("part => part.scrollIntoView({block: 'end'})")
    for name in ("source", "round", "ra_margin", "headline"):  # in sight while one reads what is below
        above = "name => document.querySelector(`.dwlth-explorer .dwlth-${name}`).getBoundingClientRect().top"
        page.wait_for_function(f"name => (top => top >= 0 && top < 360)(({above})(name))", arg=name)
    picture("07-scrolled")
    page.set_viewport_size({"width": 1400, "height": 2400})
    assert not page.locator(".dwlth-asleep").first.is_visible()

    status = lambda: panel.locator(".dwlth-text").first.inner_text()
    seed = int(re.search(r"seed (\d+): not done yet", status())[1])  # the first that the results do not have
    run = experiment.transfer("adversarial", 2, "adversarial", seed=seed)
    picture("07-training-before", ".dwlth-training")
    panel.locator(".dwlth-start").click()
    panel.get_by_text(re.compile(r"\(run \d of \d\), epoch 2 of \d")).wait_for()
    picture("07-training", ".dwlth-training")
    assert panel.locator(".dwlth-start").is_disabled()
    panel.locator(".dwlth-stop").click()
    page.wait_for_function("() => !document.querySelector('.dwlth-start').disabled")
    if not folder.record(run).exists():  # the machine was not faster than the click
        assert "Start does what is left" in status()
        assert experiment.preset.run_id(run) not in set(experiment.table()["id"])
        picture("07-training-stopped", ".dwlth-training")
        panel.locator(".dwlth-start").click()
        panel.get_by_text(re.compile(r"\(run \d of \d\), epoch \d of \d")).wait_for()
        width = panel.locator(".dwlth-progress .progress-bar").evaluate("bar => bar.getBoundingClientRect().width")
        assert width > 0
    assert shown.slide("round", "ArrowRight") != begin  # the kernel answers meanwhile
    page.get_by_text(f"Just trained: transfer adversarial, seed {seed}").wait_for()
    assert "done, SA" in status()
    picture("07-training-done", ".dwlth-training")
    records = [read_record(path) for path in (folder.path / "runs").glob("*.json")]  # each complete
    assert all(record["status"] == "ok" for record in records)

    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    page.evaluate(f"() => {kernel}.restart()")
    page.get_by_text(re.compile("Asleep.*Run All Cells wakes", re.DOTALL)).first.wait_for()
    picture("07-asleep")


def test_07_is_a_page_of_voila(page, place, picture):
    options = ["notebooks/07_explorer.ipynb", "--no-browser", "--Voila.ip=127.0.0.1"]
    program = ["env", "DWLTH_RESULTS=../quickstart", sys.executable, "-m", "voila", *options]
    with serve(place, lambda port: [*program, f"--port={port}"]) as address:
        page.goto(address)
        shown = Shown(page, ".dwlth-explorer")
        first = shown.settled()
        assert shown.pick("source", "standard") != first
        assert shown.pick("source", "adversarial") == first
        page.locator(".dwlth-training .dwlth-start").wait_for()
        page.locator(".pg-board").wait_for()
        assert page.get_by_text("from dwlth import Experiment").count() == 0  # no code
        picture("voila")


def test_git_has_seen_nothing_of_all_this(place):
    said = subprocess.run(["git", "status", "--porcelain"], cwd=place, capture_output=True, text=True, check=True)
    assert said.stdout == ""
