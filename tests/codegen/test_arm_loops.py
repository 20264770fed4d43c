"""Inner loops for ARM in llvm-mca's models, and how they are found in assembly."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.codegen
ROOT = Path(__file__).parent.parent.parent

TEXT = """
kernel:
	mov	x1, #0
.LBB0_1:
	ldr	q0, [x0]
	fmla	v1.4s, v0.4s, v2.4s
.LBB0_2:                                // inner
	ldp	q3, q4, [x0], #32
.Ltmp1:
	.loc	1 2 3
	fmla	v5.4s, v3.4s, v2.s[0]
	fmla	v6.4s, v4.4s, v2.s[0]
	subs	x3, x3, #1
	b.ne	.LBB0_2
	fmla	v7.4s, v0.4s, v2.4s
	fmla	v8.4s, v0.4s, v2.4s
	fmla	v9.4s, v0.4s, v2.4s
	b.ne	.LBB0_1
.LBB0_3:
	fmul	v1.4s, v0.4s, v2.4s
	b	.LBB0_1
"""


@pytest.fixture(scope="module")
def arm() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("arm")
    finally:
        sys.path.pop(0)


def test_only_the_innermost_loop_is_taken(arm: ModuleType) -> None:
    body = arm.innermost_loop(TEXT)
    assert [line.split()[0] for line in body] == ["ldp", "fmla", "fmla", "subs", "b.ne"]
    assert len(arm.loops(TEXT)) == 1


def test_a_loop_of_multiply_adds_alone_is_at_the_peak(arm: ModuleType) -> None:
    if shutil.which("llvm-mca") is None:
        pytest.skip("llvm-mca is not installed")
    for core in arm.CORES:
        chains = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(12)]
        assert 0.8 < len(chains) * arm.peak_cycles(core) / arm.cycles(chains, core) <= 1.01
        loads = [f"ldr q{i}, [x0, #{16 * i}]" for i in range(12)]
        assert arm.cycles([*chains, *loads], core) >= arm.cycles(chains, core)


@pytest.mark.parametrize("index", [0, 3, 5])
def test_inner_loops_reach_what_is_aimed_at(arm: ModuleType, index: int) -> None:
    if shutil.which("llvm-mca") is None:
        pytest.skip("llvm-mca is not installed")
    case = arm.CASES[index]
    text, form, _ = arm.assembly(case)
    assert form == ("dense", "block4x1", "csr")[(0, 3, 5).index(index)]
    aim = next(share for start, share in arm.AIMS.items() if form.startswith(start))
    assert arm.shares(text)["cortex-a76"] >= aim
