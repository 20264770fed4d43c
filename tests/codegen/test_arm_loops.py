"""Inner loops for ARM in llvm-mca's models, and how they are found in assembly; instructions counted under qemu."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import numpy_helper, parser

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


def benchmark(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def arm() -> ModuleType:
    return benchmark("arm")


@pytest.fixture(scope="module")
def instructions() -> ModuleType:
    return benchmark("arm_instructions")


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


def test_instructions_of_a_network_are_counted(instructions: ModuleType, tmp_path: Path) -> None:
    """Two convolutions, 8 x 12 x 12 and 16 x 12 x 12 outputs: at least one multiply-add instruction per four weights and
    pixels, and not many times as many of all kinds."""
    if instructions.missing():
        pytest.skip(instructions.missing())
    random = np.random.default_rng(0)
    shapes = {"a": (8, 4, 3, 3), "b": (16, 8, 1, 1)}
    weights = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,12,12] x) => (float[1,16,12,12] y) '
        "{ h = Conv<pads=[1,1,1,1]>(x, a) r = Sigmoid(h) y = Conv(r, b) }"
    )
    model.graph.initializer.extend(weights)
    rows = instructions.kinds_of(model)
    assert rows[-1].kind == "no kernel" and rows[0].kind == "conv dense"
    total, macs = instructions.together(rows), (8 * 4 * 9 + 16 * 8) * 144
    assert total.macs == macs and total.layers == sum(row.layers for row in rows)
    assert macs <= rows[0].count.lanes < 2 * macs
    assert rows[0].count.fused <= rows[0].count.instructions < 8 * rows[0].count.fused
    assert rows[0].count.memory > macs / 32  # a register of weights or pixels serves eight multiply-adds at the most


def test_instructions_are_told_apart(instructions: ModuleType) -> None:
    words = {
        "fmla v1.4s, v8.4s, v9.s[0]": 0x4F891101,
        "fmla v1.2s, v8.2s, v9.2s": 0x0E29CD01,
        "fmul v1.4s, v8.4s, v9.s[0]": 0x4F899101,
        "ldp q0, q1, [x2]": 0xAD400440,
        "str x0, [x1, #8]": 0xF9000420,
        "add x0, x1, x2": 0x8B020020,
        "b .": 0x14000000,
    }
    found = instructions.classified(np.array(list(words.values()), np.uint32), 10)
    assert (found.instructions, found.memory, found.fused, found.lanes) == (70, 20, 20, 60)
