"""Products with few columns (batch 1 to 8): Y[n, m] = sum over k of W[m, k] X[n, k], as fast as W comes from memory.

A warp computes one row of W, or one row of blocks, for all n: its threads take turns along what is stored, then add up
their sums by exchanging registers.

    dense   W [m, k], four neighbours per thread
    block   R x 1 blocks (R = 1: CSR): ptr, columns, values [entry, R]; see `spa.sparsity.formats.bsr`
    N:M     values [m, group, N] and their positions, packed; see `spa.sparsity.formats.nm`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spa.codegen.cuda.pack import stored
from spa.codegen.cuda.sources import Rows
from spa.codegen.cuda.words import WARP, axis, both, local, named, only, shuffled, unrolled
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import FLOAT, Expr, argument, build, covering, function, load, loop
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx
from spa.sparsity.formats import NM, Bsr

LANES = 4  # values that a thread reads at once
WARPS = 4  # per block of threads
MOST_COLUMNS = 8  # sums that a thread keeps


@dataclass(frozen=True)
class Few:
    """All that a kernel's code depends on. `rows`: of a block (1 for dense and N:M). `stored`: values of W that are stored.
    `pattern`: (N, M)."""

    m: int
    source: Rows
    form: Literal["dense", "block", "N:M"]
    rows: int
    stored: int
    w_dtype: str
    ending: Ending
    pattern: tuple[int, int] = (0, 0)

    @property
    def warps(self) -> int:
        return covering(self.m, self.rows)


def pack_few_dense(w: Array, dtype: str) -> tuple[Array, ...]:
    """W [m, k], k padded to a multiple of what a thread reads at once."""
    return (stored(np.pad(w, ((0, 0), (0, -w.shape[1] % LANES))), dtype).reshape(-1),)


def pack_few_blocks(w: Array, rows: int, dtype: str) -> tuple[Array, ...]:
    bsr = Bsr.pack(w, (rows, 1))
    values, columns = stored(bsr.values, dtype).reshape(-1), bsr.columns.astype(np.int32)
    if not len(columns):  # a buffer is never empty
        values, columns = stored(np.zeros(rows, np.float32), dtype), np.zeros(1, np.int32)
    return bsr.block_ptr, columns, np.ascontiguousarray(values)


def pack_few_nm(w: Array, n: int, m: int, dtype: str) -> tuple[Array, ...]:
    packed = NM.pack(w, n, m)
    return stored(packed.values, dtype).reshape(-1), packed.packed.reshape(-1)


def build_few(p: Few) -> Any:
    """The PrimFunc: x, tensor operands, then w | (ptr, columns, values) | (values, positions), bias, vectors, then y."""
    with function() as f:
        _Few(p).write()
    return f.primfunc


class _Few:
    def __init__(self, p: Few) -> None:
        self.p, s = p, p.source
        self.x = argument("x", s.size, s.dtype)
        tensors = p.ending.operands()
        if p.form == "block":
            self.ptr = argument("ptr", p.warps + 1, "int32")
            self.columns = argument("columns", max(p.stored // p.rows, 1), "int32")
        self.w = argument("w", max(p.stored, p.rows), p.w_dtype)
        if p.form == "N:M":
            self.row_bytes = p.stored // p.m * self._bits // 8 + (p.stored // p.m * self._bits % 8 > 0)
            self.positions = argument("positions", p.m * self.row_bytes, "uint8")
        self.out = Writer.declare(p.m, 1, s, p.ending, tensors)

    @property
    def _bits(self) -> int:
        most = self.p.pattern[1]
        return 2 if most <= 4 else 4 if most <= 16 else 8

    def write(self) -> None:
        p = self.p
        with axis("blockIdx.x", covering(p.warps, WARPS)) as block, axis("threadIdx.x", WARPS * WARP) as thread:
            self.lane = named(thread % WARP)
            self.sums = local(p.rows * p.source.n, FLOAT)
            with unrolled(p.rows * p.source.n) as i:
                build.buffer_store(self.sums, tirx.const(0.0, FLOAT), [i])
            warp = named(block * WARPS + thread // WARP)
            inside: Any = True if p.warps % WARPS == 0 else warp < p.warps
            # threads beyond the last row compute the last one too: all threads of a warp must exchange
            row = warp if inside is True else named(tirx.Min(warp, p.warps - 1))
            {"dense": self._dense, "block": self._block, "N:M": self._nm}[p.form](row)
            with unrolled(p.rows * p.source.n) as i:
                for mask in (16, 8, 4, 2, 1):
                    other = named(shuffled(self.sums[i], mask))
                    build.buffer_store(self.sums, self.sums[i] + other, [i])
            with only(both(inside, self.lane < 1)), unrolled(p.source.n) as n, unrolled(p.rows) as r:
                m = row * p.rows + r
                with only(p.m % p.rows == 0 or m < p.m):
                    self.out.finish(self.sums[n * p.rows + r], 0, m, n)

    def _add(self, at: Expr, weight: Expr, n: Expr, k: Expr) -> None:
        x = self.x[n * self.p.source.k + k]
        value = tirx.Cast(FLOAT, weight) * tirx.Cast(FLOAT, x)
        build.buffer_store(self.sums, self.sums[at] + value, [at])

    def _dense(self, row: Expr) -> None:
        p, k = self.p, self.p.source.k
        padded = covering(k, LANES) * LANES
        weights = local(LANES, p.w_dtype)
        with loop(covering(padded, LANES * WARP)) as i:
            first = named((i * WARP + self.lane) * LANES)
            with only(padded % (LANES * WARP) == 0 or first < padded):
                value = load(self.w, row * padded + first, LANES)
                build.buffer_store(weights, value, [tirx.Ramp(0, 1, LANES)])
                with unrolled(LANES) as j, only(k == padded or first + j < k), unrolled(p.source.n) as n:
                    self._add(n, weights[j], n, first + j)

    def _block(self, row: Expr) -> None:
        p = self.p
        begin, end = named(self.ptr[row]), named(self.ptr[row + 1])
        with loop((end - begin - self.lane + (WARP - 1)) // WARP) as i:
            entry = named(begin + self.lane + i * WARP)
            column = named(self.columns[entry])
            with unrolled(p.source.n) as n, unrolled(p.rows) as r:
                self._add(n * p.rows + r, self.w[entry * p.rows + r], n, column)

    def _nm(self, row: Expr) -> None:
        p, (kept, size) = self.p, self.p.pattern
        groups = p.stored // p.m // kept
        with loop(covering(groups, WARP)) as i:
            group = named(i * WARP + self.lane)
            with only(groups % WARP == 0 or group < groups), unrolled(kept) as j:
                bit = (group * kept + j) * self._bits
                byte = tirx.Cast("int32", self.positions[row * self.row_bytes + bit // 8])
                position = (byte >> (bit % 8)) & ((1 << self._bits) - 1)
                k = named(group * size + position)
                # a group that is cut off by the last column may hold a filler beyond it
                with only(p.source.k % size == 0 or k < p.source.k), unrolled(p.source.n) as n:
                    self._add(n, self.w[(row * groups + group) * kept + j], n, k)
