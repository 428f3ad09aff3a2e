"""`make site`, every page opened in Chromium. DWLTH_SCREENSHOTS names a folder for pictures of each page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import TINY

pytest.importorskip("furo", reason="needs what builds the site: pip install -e '.[site]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[test]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

ROOT = Path(__file__).resolve().parents[1]
LINKS = "() => [...document.querySelectorAll('a[href], img[src]')].map(one => one.href || one.src)"
IDS = "() => [...document.querySelectorAll('[id]')].map(one => one.id)"
DOLLARS = "() => [...document.querySelectorAll('p')].map(one => one.textContent).filter(text => text.includes('$'))"
WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
LOOK = "() => getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What the recipe of `make site` writes, into another folder."""
    recipe = re.search(r'^site:.*\n(?:\t.*\n)*\t"\$\(BIN\)/python" (.*)', (ROOT / "Makefile").read_text(), re.M)[1]
    assert recipe.startswith("-m sphinx ") and " -W " in recipe
    place = tmp_path_factory.mktemp("place")
    arguments = [str(place / word) if word.startswith("site/") else word for word in recipe.split()]
    tiny = " ".join([*TINY, "pretrain.epochs=1", "transfer.epochs=1", "rounds=0,1", "fractions=1.0"])
    command = [sys.executable, *arguments, "-D", f"playground_from={place / 'results'} {tiny}"]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return place / "site" / "html"


def test_every_source_has_its_page(site):
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("dwlth/**/*.py")]
    missing = [path for path in pages if not (site / path.relative_to(ROOT).with_suffix(".html")).exists()]
    assert missing == [] and len(pages) > 50
    gallery = (site / "docs" / "gallery.html").read_text()
    figures = [path.name for path in ROOT.glob("results/*/figures/*.png")]
    assert figures and [name for name in figures if name not in gallery] == []
    assert "<math" in (site / "notebooks" / "01_pretraining_sources.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome")
def test_pages_open_and_their_links_lead_somewhere(site):
    """A dark browser gets dark pages. The page as a whole does not scroll sideways, on a small screen too."""
    address = f"{site.as_uri()}/"  # without a server, as one opens it after `make site`
    pictures = os.environ.get("DWLTH_SCREENSHOTS")
    problems, links, anchors = [], {}, {}
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        complain = lambda text: problems.append(f"{page.url}: {text}")
        page.on("console", lambda said: said.type in ("error", "warning") and complain(said.text))
        page.on("pageerror", complain)
        page.on("request", lambda asked: asked.url.startswith((address, "data:")) or complain(asked.url))
        for path in sorted(site.rglob("*.html")):
            name = path.relative_to(site).as_posix()
            page.goto(address + name)
            if name == "index.html":
                page.wait_for_url(f"{address}README.html")
            for width in (1280, 380):
                page.set_viewport_size({"width": width, "height": 720})
                if page.evaluate(WIDE) > 0:
                    complain(f"{page.evaluate(WIDE)} pixels too wide for {width}")
            links[name], anchors[name] = page.evaluate(LINKS), page.evaluate(IDS)
            for text in page.evaluate(DOLLARS):
                complain(f"a formula is shown as it is written: {text}")
            for look in ("dark", "light"):
                page.emulate_media(color_scheme=look)
                shade = int(re.search(r"\d+", page.evaluate(LOOK))[0])
                assert (shade < 60) is (look == "dark"), name
                for width in (380, 1280) if pictures and not name.startswith(("dwlth/", "benchmarks/")) else ():
                    page.set_viewport_size({"width": width, "height": 720})
                    picture = Path(pictures) / f"{name.replace('/', '-')}-{look}-{width}.png"
                    page.screenshot(path=picture, full_page=True)
        browser.close()
    for name, found in links.items():
        for link in set(found):
            target, _, anchor = link.partition("#")
            if not target.startswith(address):
                continue
            target = unquote(target.removeprefix(address))
            if not (site / target).is_file():
                problems.append(f"{name} links to {target}, which is not there")
            elif anchor and anchor not in anchors.get(target, ()):
                problems.append(f"{name} links to {target}#{anchor}, which is not there")
    assert problems == []
    assert len(links) > 70 and any("#" in link for found in links.values() for link in found)
