"""The hottest loop of a kernel per family and instruction set, as text: a change of it is seen in a diff.

pytest tests/codegen/test_golden_code.py --update-golden     after a change that is meant
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.codegen
ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent / "golden"
LINES = 48  # of a loop that are written out
TVM = "0.27.0.post1"  # the code of another one is another


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("replay")
    finally:
        sys.path.pop(0)


CASES = (
    "pointwise",
    "blocks",
    "unstructured",
    "window",
    "winograd",
    "depthwise",
    "row",
    "rows",
    "batched",
    "softmax",
    "chain",
)


def shortened(code: str) -> str:
    """The first lines, and of what follows its length and hash."""
    lines = code.splitlines()
    rest = "\n".join(lines[LINES:])
    digest = hashlib.sha256(rest.encode()).hexdigest()[:16]
    return "\n".join([*lines[:LINES], *([f"... {len(lines) - LINES} more, sha256 {digest}"] if rest else [])])


@pytest.mark.parametrize("case", CASES)
def test_generated_code(replay: ModuleType, case: str, request: pytest.FixtureRequest) -> None:
    try:
        if version("apache-tvm") != TVM:
            pytest.skip(f"written with TVM {TVM}")
    except PackageNotFoundError:
        pytest.skip("TVM is not installed")
    parts = []
    for isa in replay.ISAS:
        rows = replay.compiled(case, isa)
        parts += [f"== {isa}: {row['kernel']}\n{shortened(replay.hottest_loop(row['code']))}\n" for row in rows]
    found, path = "\n".join(parts), GOLDEN / f"{case}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert path.read_text() == found, f"if it is meant: pytest {Path(__file__).name} --update-golden"


def test_every_case_is_here(replay: ModuleType) -> None:
    assert tuple(replay.CASES) == CASES
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def test_loops_of_every_kind_of_assembly_are_found(replay: ModuleType) -> None:
    x86 = ".LBB0_1:\nmov eax, 1\n.LBB0_2:\nvfmadd231ps zmm0, zmm1, zmm2\ndec rax\njne .LBB0_2\nret"
    wasm = "loop\nlocal.get 0\nloop\nf32x4.mul\nf32x4.add\nbr_if 0\nend_loop\nend_loop"
    assert replay.hottest_loop(x86).splitlines()[0].startswith("vfmadd")
    assert replay.hottest_loop(wasm).splitlines() == ["f32x4.mul", "f32x4.add", "br_if 0"]
    assert replay.plain("\tret\t# c\n\t.loc 1 2 3\n.Ltmp3:\n\tadd\tx0, x1 // d") == "ret\nadd x0, x1"
