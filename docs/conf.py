"""The site: README, notebooks with their outputs as committed, docs, figures and code as pages that need no network.

`make site` writes it to site/html/. The root of the source is that of the kit, so links are those that GitHub follows.
"""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from IPython.lib.lexers import IPython3Lexer
from sphinx.parsers import Parser
from sphinx.util import logging

from dwlth import Experiment
from dwlth.show import playground

ROOT = Path(__file__).resolve().parents[1]

project = html_title = "dwlth"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "notebooks/*.ipynb", "dwlth/**.py", "benchmarks/*.py"]
exclude_patterns = [".*", "data", "mine", "my-notebooks", "quickstart", "results", "site", "tests"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".py": "code"}
html_theme = "furo"
html_copy_source = html_show_copyright = False
html_math_renderer = "mathml"  # which docutils writes, and browsers draw without a script
html_static_path = html_css_files = ["site.css"]
pygments_dark_style = "a11y-dark"
myst_enable_extensions = ["dollarmath", "html_image"]
myst_dmath_double_inline = True  # $$ need not be a paragraph
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # by default from a server
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them

FIRST = ["docs/playground.md", "docs/gallery.md"]
LATER = sorted({str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")} - {*FIRST})
LATER.sort(key=lambda path: path != "docs/method.md")
CONTENTS = """
```{toctree}
:caption: %s
:glob:
:hidden:

%s
```
"""
PARTS = {"See": "\n".join(FIRST), "Notebooks": "notebooks/*", "Read": "\n".join(LATER)}


class Code(Parser):
    """A file of code as a page, so that links to it stay in the site."""

    supported = ("code",)

    def parse(self, text, document):
        path = str(Path(document["source"]).relative_to(ROOT))
        code = nodes.literal_block(text, text, language="python")
        document += nodes.section("", nodes.title(path, path), code, ids=["code"], names=["code"])


def read(app, name, source):
    """Add the table of contents to README.md, and the figures to the gallery, each under what it shows."""
    if name == root_doc:
        source[0] += "".join(CONTENTS % part for part in PARTS.items())
    elif name == "docs/gallery":
        source[0] = re.sub("<!-- figures (.*) -->", lambda match: figures(match[1]), source[0])


def figures(kind):
    """Markdown: each figure of one kind, of every preset, the most data first."""
    text = ""
    for path in sorted(ROOT.glob(f"results/*/figures/{kind}.png"), key=lambda path: (path.parts[-3], path.stem))[::-1]:
        where = f"../{path.relative_to(ROOT)}"
        pdf = f" ([PDF]({where[:-3]}pdf))" if path.with_suffix(".pdf").exists() else ""
        text += f"![{path.stem}]({where})\n\n*Preset `{path.parts[-3]}`: {path.name}*{pdf}\n\n"
    return text or "*No results yet.*"


def resolved(app, document, name):
    """Remote pictures become their text, and paths of files that are pages become links."""
    for image in [image for image in document.findall(nodes.image) if "://" in image["uri"]]:
        image.replace_self(nodes.Text(image.get("alt", "")))
    for literal in list(document.findall(nodes.literal)):
        page = app.project.path2doc(str(ROOT / literal.astext()))
        if page in app.env.found_docs and page != name and not isinstance(literal.parent, nodes.reference):
            link = nodes.reference("", "", literal.deepcopy(), refuri=app.builder.get_relative_uri(name, page))
            literal.replace_self(link)


def mathml(self, node):
    tex = re.sub(r"\\[bB]igg?[lr]?(?![a-z])", "", node.astext()).replace(r"\dots", r"\ldots")  # docutils lacks these
    try:
        written = tex2mathml(tex, as_block=isinstance(node, nodes.math_block))
        self.body.append(re.sub("<mo>([{}‖])", r'<mo stretchy="false">\1', written))
    except MathError as error:
        logging.getLogger(__name__).warning("%s: %s", tex, error, location=node)
    raise nodes.SkipNode


def docstring(app, what, name, thing, options, lines):
    """Code is marked as in Markdown; reStructuredText wants two backticks."""
    lines[:] = re.sub("`+", "``", "\n".join(lines)).split("\n")


def finished(app, exception):
    """The playground, and the front page: README, at whose own address its links are right."""
    if exception is None:
        results, *settings = app.config.playground_from.split()
        experiment = Experiment("digits", ROOT / results, device="cpu", settings=settings)
        playground.page(experiment, app.outdir / "playground.html")
        target = app.builder.get_target_uri(root_doc)
        (app.outdir / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={target}">\n')


def setup(app):
    app.add_source_parser(Code)
    app.add_config_value("playground_from", "results", "", str)  # the folder of its networks; after it, as after --set
    app.add_lexer("python", IPython3Lexer)  # cells have lines with ! too
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring, priority=0)  # before napoleon
    app.connect("doctree-resolved", resolved)
    app.connect("build-finished", finished)
