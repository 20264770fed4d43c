"""Sphinx: `make docs` builds docs/_build/html, warnings are errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from generated import PARTS  # noqa: E402  (beside this file)

from spa._version import __version__  # noqa: E402

project = "spa"
author = "the spa authors"
copyright = "the spa authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "schemas/README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

smartquotes = False  # two dashes are an option's

html_theme = "furo"
html_title = f"spa {version}"
html_static_path = ["_static"]
html_css_files = ["spa.css"]
html_extra_path = ["schemas"]  # served beside the pages, under the names that their $id has
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<to>[^)#\s:]+)\)")
GENERATED = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def outside(page: Path, text: str) -> str:
    """Links into the repository, which the pages on a server do not have, become the path as text."""

    def plain(found: re.Match[str]) -> str:
        target = (page.parent / found["to"]).resolve()
        if target.is_relative_to(HERE) and not target.is_dir() and target.suffix in (".md", ".svg", ".png"):
            return found[0]
        if not target.exists():
            return found[0]  # for Sphinx to warn of
        name = target.relative_to(HERE.parent).as_posix()
        return (
            f"`{name}`"
            if found["text"].strip("`") in (name, target.name, found["to"])
            else f"{found['text']} (`{name}`)"
        )

    return LINK.sub(plain, text)


def read(app: Any, name: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    if GENERATED.search(source[0]):
        app.env.note_reread()  # what it is read off changes without the page
    text = GENERATED.sub(lambda found: PARTS[found[1]](), source[0])
    text = re.sub(r"^<!-- docs: .*?-->\n", "", text, flags=re.MULTILINE | re.DOTALL)  # for the tests alone
    source[0] = outside(page, text)


def setup(app: Any) -> None:
    app.connect("source-read", read)
