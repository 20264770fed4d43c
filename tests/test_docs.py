"""Every code block of README.md and docs/ runs, and prints what the page shows (docs_blocks.py says how)."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from docs_blocks import REASONS, blocks, illustrations, pages
from docs_runner import run
from docs_update import updated

ROOT = Path(__file__).parent.parent
MODULES = {"torch": ["torch"], "codegen": ["tvm", "ziglang", "wasmtime"], "sklearn": ["sklearn"], "pillow": ["PIL"]}
NAMES = [page.relative_to(ROOT).as_posix() for page in pages(ROOT)]


def missing(needed: str) -> list[str]:
    """Those of the names that are neither an installed module nor a program."""
    return [
        name
        for name in needed.split()
        if not all(map(importlib.util.find_spec, MODULES[name]) if name in MODULES else [shutil.which(name)])
    ]


@pytest.mark.parametrize("name", [n for n in NAMES if blocks((ROOT / n).read_text("utf-8"))])
def test_the_blocks_of(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    page = ROOT / name
    for block in blocks(page.read_text("utf-8")):
        if block.language == "needs" and (absent := missing(block.text)):
            pytest.skip(f"{name} needs {', '.join(absent)}")
    if request.config.getoption("--update-docs"):
        page.write_text(updated(page, tmp_path), "utf-8")
    else:
        run(page, tmp_path)


def test_what_is_not_run_has_a_reason() -> None:
    listed = illustrations(ROOT)
    assert {reason for _, _, reason in listed} <= set(REASONS)
    total = sum(len(blocks(page.read_text("utf-8"))) for page in pages(ROOT))
    assert len(listed) < total / 3, "too much of the documentation is not run"


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_seen(name: str) -> None:
    """A fence inside a list would be passed over."""
    text = (ROOT / name).read_text("utf-8")
    assert not re.search(r"^ +```", text, re.MULTILINE)
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        assert re.match(r"https?:|mailto:", link) or (page.parent / link).exists(), f"{name}: {link}"
