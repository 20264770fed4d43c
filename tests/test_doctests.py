"""Examples in docstrings and in the documentation are run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from onnx_text import ops, parse

ROOT = Path(__file__).parent.parent
FOLDERS = {"spa": "spa", "passes": "spa.passes", "codegen": "spa.codegen", "runtime": "spa.runtime"}


def documented() -> list[str]:
    """Modules whose docstrings have examples."""
    found = []
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT / folder).with_suffix("")
            if (folder == "spa" and inside.parts[0] in FOLDERS) or ">>> " not in file.read_text("utf-8"):
                continue
            found.append(".".join([package, *inside.parts]))
    return found


@pytest.mark.parametrize("module", documented())
def test_docstrings(module: str) -> None:
    if module.startswith("spa.interop.torch"):
        pytest.importorskip("torch")
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


def test_the_pass_of_the_documentation_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from spa.pipeline import PASSES, Pipeline

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "passes.md").read_text("utf-8"), re.DOTALL)
    (code,) = blocks
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(compile(code, "docs/passes.md", "exec", dont_inherit=True), namespace)
    monkeypatch.setattr(importlib.import_module(__name__), "Rename", namespace["Rename"], raising=False)
    monkeypatch.setitem(PASSES, "rename", f"{__name__}:Rename")
    model = parse("agraph (float[N,3] x) => (float[N,3] y) { h = Identity(x)  y = Relu(h) }")
    result = Pipeline.parse("rename{to=net},fold").run(model)
    assert result.model.ir.graph.name == "net" and model.ir.graph.name == "agraph"
    assert ops(result.model) == ["Relu"]


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "models" / "README.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
