"""The table of operators in the documentation is what the rules say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from spa.coupling.rules import FAMILIES, table

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_operators", DOCS / "make_operators.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_up_to_date(generator: ModuleType) -> None:
    written = (DOCS / "operators.md").read_text(encoding="utf-8")
    version = ".".join(onnx.__version__.split(".")[:2])
    if f"with onnx {version}." not in written:
        pytest.skip("written with another release of onnx, which knows other operators")
    assert generator.render() == written, "run python docs/make_operators.py"


def test_every_rule_is_listed_with_its_family(generator: ModuleType) -> None:
    text = generator.render()
    for (domain, op), family in generator.family_of().items():
        assert f"| {op} | " in text and family in FAMILIES, (domain, op)
    for domain, op in generator.since():
        assert f"| {op} | " in text, (domain, op)


def test_notes_tell_what_is_blocked() -> None:
    """A rule that blocks everything it touches must not be called exact."""
    for (_, op), rule in table().items():
        if rule.couple.__name__ == "blocked":
            assert rule.note != "exact", op
