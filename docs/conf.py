"""The documentation site: `make docs` writes it to build/site.

The source folder is the repository's root, so that a link between two files works here as it does in a checkout.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

project = "cls2det"
author = "the authors of cls2det"
version = release = importlib.metadata.version("cls2det")
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**",
    "benchmarks/NOTES.md",
    "benchmarks/results/*.md",
]
exclude_patterns = [".venv", ".git", "build", "runs", "cls2det*", "csrc", "tests"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # the signature has them, and the docstrings say more: shapes, units
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"  # fonts of the system: nothing is fetched
html_title = f"cls2det {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_copyright = html_copy_source = html_show_sourcelink = False
html_additional_pages = {"index": "index.html"}  # leads to README.html
templates_path = ["_templates"]

CONTENTS = {
    "Guide": ("own-trainer", "trainers", "own-data", "faults", "command-line", "teachers", "methods", "install"),
    "Background": ("architecture", "performance", "study", "testing", "release"),
    "Reference": ("api/ops", "api/losses", "api/cls2det", "api/distill"),
}
MORE = ("CONTRIBUTING", "CHANGELOG", "benchmarks/NOTES")
# pages below the page that explains them, most of them dated
RECORDS = {"docs/study": "study/*", "docs/trainers": "trainers/*", "docs/performance": "/benchmarks/results/*"}


def toctree(option: str, pages: Sequence[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", option, "", *pages, "```", ""])


def add_generated(app, docname: str, source: list[str]) -> None:
    """What would be noise in the file itself: contents below README.md, titles, a section for each file of distillers."""
    if docname == root_doc:
        groups = {title: [f"docs/{page}" for page in pages] for title, pages in CONTENTS.items()} | {"Project": MORE}
        for title, pages in groups.items():
            source[0] += toctree(f":caption: {title}", pages)
    if docname.startswith("benchmarks/results/2"):
        source[0] = f"# {Path(docname).name}\n\n{source[0]}"  # the benchmarks write tables alone
    if docname in RECORDS:
        source[0] += toctree(":glob:", [RECORDS[docname]])
    if docname == "docs/api/distill":
        for path in sorted(Path(app.srcdir, "cls2det", "distill").glob("[a-z]*.py")):
            title = f"{path.stem}\n{'-' * len(path.stem)}"
            source[0] += f"\n{title}\n\n.. automodule:: cls2det.distill.{path.stem}\n   :members:\n"


def mark_code(app, kind: str, name: str, member: object, options: object, lines: list[str]) -> None:
    """Indented lines in a module's docstring are code, also where no "::" says so."""
    if kind == "module":
        for place in range(len(lines) - 1, 1, -1):
            before = lines[place - 2]
            if (
                lines[place].startswith("    ")
                and not lines[place - 1]
                and not before.startswith("    ")
                and before[-2:] != "::"
            ):
                lines[place:place] = ["::", ""]


def skip_field(app, kind: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Fields of a named tuple, of which Python says only that they are the first, the second …"""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def visit_math(self, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw themselves: no script and no font is fetched."""
    block = isinstance(node, nodes.math_block)
    math = convert(node.astext(), display="block" if block else "inline")
    self.body.append(f'<div class="math">{math}</div>' if block else math)
    raise nodes.SkipNode


def setup(app) -> None:
    app.connect("source-read", add_generated)
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("autodoc-skip-member", skip_field)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
