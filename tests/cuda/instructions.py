"""PTX instructions by their meaning in the PTX ISA: asynchronous copies, ldmatrix, mma and sparse mma.

Fragment layouts are those of the chapters "Warp-level matrix load instruction: ldmatrix", "Matrix Fragments for
mma.m16n8k16 with floating point type" and "Matrix Fragments for sparse mma.m16n8k32 with .f16 and .bf16 types", written
down here anew: kernels and packing must agree with this file, and it looks at neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from expressions import expression
from machine import WARP, Array
from state import Place, State, Statement, everyone

from spa.codegen.tvm_api import tvm as tvm_module

KINDS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
LANE = np.arange(WARP)
GROUP, IN_GROUP = LANE // 4, LANE % 4  # groupID, threadID_in_group


def instruction(call: Any) -> Statement:
    tokens = [str(a.value) for a in call.args if isinstance(a, tvm_module.ir.StringImm)]
    operands = [a for a in call.args if not isinstance(a, tvm_module.ir.StringImm)]
    mnemonic = call.op.name.removeprefix("tirx.ptx.")
    if mnemonic.startswith(("wgmma", "fence")):
        from warpgroup import ordering

        return ordering(tokens, operands)
    if "async" in tokens and "commit_group" in tokens:
        return _commit
    if "async" in tokens and "wait_group" in tokens:
        return _wait(int(operands[0]))
    if "async" in tokens and "wait_all" in tokens:
        return _wait(0)
    if "async" in tokens and tokens[1] in ("ca", "cg") and mnemonic.startswith("cp"):
        return _copy(operands)
    if mnemonic == "ldmatrix":
        return _ldmatrix(operands, "trans" in tokens)
    kind = next((kind for name, kind in KINDS.items() if tokens.count(name) == 2), None)
    if mnemonic.startswith("mma") and kind and "m16n8k16" in tokens and not any(t.startswith("sp") for t in tokens):
        return _mma(operands, kind, sparse=False)
    if mnemonic.startswith("mma") and kind and "m16n8k32" in tokens:
        return _mma(operands, kind, sparse=True)
    raise NotImplementedError(f"{mnemonic} {tokens}")


# cp.async --------------------------------------------------------------------------------------------------------


def _copy(operands: list[Any]) -> Statement:
    """Bytes land when the group is waited for, not before."""
    target, source, count = expression(operands[0]), expression(operands[1]), int(operands[2])
    filled = expression(operands[3]) if len(operands) == 4 else None  # src-size: what lies beyond arrives as zeros

    def run(s: State) -> None:
        to, at, lanes = target(s), source(s), s.active()
        size = to.memory.cells.itemsize
        assert size == at.memory.cells.itemsize
        span = np.arange(count // size)
        into, out_of = to.index[lanes][:, None] + span, at.index[lanes][:, None] + span
        assert not (into[:, 0] * size % count).any(), "cp.async: shared address not aligned"
        assert not (out_of[:, 0] * size % count).any(), "cp.async: global address not aligned"
        to.memory.reserve(lanes, into)
        to.memory.fly(lanes, into, True)
        if filled is None:
            value = at.memory.read(lanes, out_of)
        else:
            size_of = s.spread(filled(s))[lanes]
            assert np.isin(size_of, (0, count)).all()
            value = np.zeros(into.shape, to.memory.cells.dtype)
            value[size_of > 0] = at.memory.read(lanes[size_of > 0], out_of[size_of > 0])
        s.issued.append((to.memory, lanes, into, value))

    return run


def _commit(s: State) -> None:
    everyone(s)
    s.groups.append(s.issued)
    s.issued = []


def _wait(left: int) -> Statement:
    def run(s: State) -> None:
        everyone(s)
        while len(s.groups) > left:
            for memory, lanes, index, value in s.groups.pop(0):
                memory.write(lanes, index, value)
                memory.fly(lanes, index, False)

    return run


# ldmatrix --------------------------------------------------------------------------------------------------------


def _ldmatrix(operands: list[Any], transposed: bool) -> Statement:
    """Matrix i of 8 x 8 halves: its row r begins where thread 8 i + r says. Thread t gets of each matrix the elements
    2 (t % 4) and the next of row t / 4; transposed, of column t / 4."""
    *registers, address = operands
    targets, place = [_register(r) for r in registers], expression(address)

    def run(s: State) -> None:
        everyone(s)
        at: Place = place(s)
        assert at.memory.cells.itemsize == 2
        warps = s.threads.count // WARP
        begin = at.index.reshape(warps, WARP)
        assert not (begin[:, : 8 * len(targets)] % 8).any(), "ldmatrix: rows are aligned to 16 bytes"
        for i, write in enumerate(targets):
            rows = begin[:, 8 * i : 8 * i + 8]  # [warps, 8]
            low, high = (
                ((2 * IN_GROUP, GROUP), (2 * IN_GROUP + 1, GROUP))
                if transposed
                else ((GROUP, 2 * IN_GROUP), (GROUP, 2 * IN_GROUP + 1))
            )
            cells = np.stack([rows[:, row] + column for row, column in (low, high)], -1).reshape(s.threads.count, 2)
            halves = at.memory.read(s.threads.lane, cells)
            write(s, np.ascontiguousarray(halves).view(np.uint32)[:, 0])

    return run


def _register(load: Any) -> Callable[[State, Array], None]:
    """An operand that is written: an element of a local buffer."""
    buffer, index = load.source, expression(load.indices[0])

    def write(s: State, value: Array) -> None:
        s.memories[buffer].write(s.threads.lane, s.spread(index(s)), value)

    return write


# mma -------------------------------------------------------------------------------------------------------------


def _halves(registers: list[Array], warps: int, kind: np.dtype[Any]) -> Array:
    """Registers of two halves each, as [warps, 32 threads, elements]."""
    stacked = np.stack([np.ascontiguousarray(r) for r in registers], -1).astype(np.uint32)
    return stacked.view(kind).reshape(warps, WARP, 2 * len(registers)).astype(np.float32)


def fragment_a(i: int) -> tuple[Array, Array]:
    """Row and column of element i of A 16 x 16 (of sparse m16n8k32: as stored)."""
    row = GROUP + 8 * (i // 2 % 2)
    return row, 2 * IN_GROUP + i % 2 + 8 * (i // 4)


def fragment_b(i: int) -> tuple[Array, Array]:
    """Row k and column n of element i of B 16 x 8, or 32 x 8."""
    return 2 * IN_GROUP + i % 2 + 8 * (i // 2), GROUP


def fragment_c(i: int) -> tuple[Array, Array]:
    return GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2


def _matrix(elements: Array, place: Callable[[int], tuple[Array, Array]], shape: tuple[int, int]) -> Array:
    """[warps, rows, columns] from [warps, threads, elements]."""
    result = np.zeros((len(elements), *shape), np.float32)
    for i in range(elements.shape[2]):
        row, column = place(i)
        result[:, row, column] = elements[:, :, i]
    return result


def expanded(stored: Array, words: Array, selector: int) -> Array:
    """A 16 x 32 of 2:4 from its stored 16 x 16 and the metadata registers [warps, 32 threads].

    For 16-bit types of m16n8k32, threads 4 q + 2 f and 4 q + 2 f + 1 (f the selector) hold the positions of rows q (low half)
    and q + 8 (high half), the first of inputs 0..15, the second of inputs 16..31: two bits for each stored element."""
    dense = np.zeros((len(stored), 16, 32), np.float32)
    for row in range(16):
        before = np.zeros(len(stored), np.uint32)
        for column in range(16):  # as stored
            word = words[:, 4 * (row % 8) + 2 * selector + column // 8].astype(np.uint32)
            bits = word >> np.uint32(16 * (row // 8) + 2 * (column % 8)) & np.uint32(3)
            assert column % 2 == 0 or (bits > before).all(), "positions of a group must increase"
            dense[np.arange(len(stored)), row, 4 * (column // 2) + bits] = stored[:, row, column]
            before = bits
    return dense


def _mma(operands: list[Any], kind: np.dtype[Any], sparse: bool) -> Statement:
    """D = A B + C with products of halves added in fp32."""
    targets = [_register(d) for d in operands[:4]]
    count = 4 if sparse else 2
    a, b, c = ([expression(o) for o in operands[i:j]] for i, j in ((4, 8), (8, 8 + count), (8 + count, 12 + count)))
    words = expression(operands[12 + count]) if sparse else None
    selector = int(operands[13 + count]) if sparse else 0

    def run(s: State) -> None:
        everyone(s)
        assert s.threads.per_block % WARP == 0, "mma: all threads of a warp take part"
        warps = s.threads.count // WARP

        def gather(parts: list[Any]) -> list[Array]:
            return [s.spread(p(s)) for p in parts]

        left = _matrix(_halves(gather(a), warps, kind), fragment_a, (16, 16))
        if words is not None:
            left = expanded(left, s.spread(words(s)).reshape(warps, WARP), selector)
        right = _matrix(_halves(gather(b), warps, kind), fragment_b, (left.shape[2], 8))
        sums = np.stack(gather(c), -1).reshape(warps, WARP, 4)
        result = left @ right + _matrix(sums, fragment_c, (16, 8))
        for i, write in enumerate(targets):
            row, column = fragment_c(i)
            write(s, result[:, row, column].reshape(-1))

    return run
