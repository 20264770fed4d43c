"""Products of many rows with a sparse constant matrix: Y[t, m] = sum over k of X[t, k] W[m, k], rows t in vector lanes.

A weight that is not zero serves all rows alike, so rows are what lanes hold. X and Y have features side by side, though:
a tile of rows is first turned ([k][rows], in registers, lanes x lanes elements at a time), multiplied block by block of
W, and what results is turned back, where bias and activation find features in their lanes again.

Weights are blocks of `rows` x 1: those of block b are e = ip[b] .. ip[b + 1], with their `rows` values at va[e] and the place
of their k in the turned tile at ix[e].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from spa.codegen.kernels.epilogue import Spot, evaluate, sizes_of, splits
from spa.codegen.kernels.gemm import best_tile, constant_matrix, tile_cycles
from spa.codegen.kernels.isa import Isa, isa_of
from spa.codegen.kernels.tile import Columns, bucket, columns_of, sparse_columns, sparse_cost
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    function,
    load,
    loop,
    number,
    product,
    put,
    registers,
    scratch_vectors,
    shifted,
    span,
    splat,
    store,
    transposed,
)
from spa.codegen.layer import Array, Kernel, Layer, Step
from spa.codegen.target import Target
from spa.codegen.tvm_api import tirx

BLOCKS = (16, 8, 4, 2, 1)  # heights
SPARSE_BELOW = 0.8  # of the dense time that a sparse kernel may be predicted to take: predictions are not exact


@dataclass(frozen=True)
class Sparse:
    """All that a kernel's code depends on: X [t, k], W [m, k] in blocks of `rows` with `entries` in all; `columns`: the rows
    of X as vectors."""

    t: int
    k: int
    m: int
    rows: int
    columns: Columns
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]
    bucket: int
    entries: int = field(compare=False)  # the code is the same for any number

    @property
    def together(self) -> int:
        """Features that are turned back at once."""
        return max(self.rows, self.columns.lanes)

    @property
    def pitch(self) -> int:
        """Vectors from one k to the next in a turned tile."""
        return self.columns.widest


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Gemm and MatMul with a sparse constant second matrix and enough rows to fill a vector; float32."""
    found = constant_matrix(layer)
    if found is None or layer.output.dtype != "float32" or layer.inputs[0] is None:
        return None
    matrix, bias = found
    k, m = matrix.shape
    weight = matrix.T
    t = product(layer.inputs[0].shape) // k
    isa = isa_of(target)
    if t < 4 or not splits(layer.epilogue, m):
        return None
    dense = tile_cycles(isa, t, m, k, *best_tile(isa, t, m, k))
    best = _best(isa, weight, t, dense)
    if best is None:
        return None
    rows, widest, entries, cycles = best
    p = Sparse(
        t=t,
        k=k,
        m=m,
        rows=rows,
        columns=columns_of(isa, t, widest),
        bucket=bucket(entries),
        entries=max(entries, 1),
        bias=bias is not None,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    density = np.count_nonzero(weight) / weight.size
    return Kernel(
        family="spmm",
        format="csr" if rows == 1 else f"block{rows}x1",
        tile=f"{rows}x{widest * p.columns.lanes}-{isa.name}",
        why=f"density {density:.2f}: dense {dense:.3g} cycles, sparse {rows}x1 {cycles:.3g}",
        activations=(0, *layer.tensors),
        weights=(*pack(p, weight), *layer.vectors(bias)),
        build=partial(build_sparse, p),
        key=p,
    )


def _best(isa: Isa, weight: Array, t: int, dense: float) -> tuple[int, int, int, float] | None:
    """(height, columns, entries, cycles) of the cheapest blocks that are worth it."""
    m, k = weight.shape
    lanes = columns_of(isa, t, 1).lanes
    best: tuple[int, int, int, float] | None = None
    for height in BLOCKS:
        if m % max(height, lanes) or height > isa.registers // 2:
            continue
        entries, blocks = int((weight.reshape(m // height, height, k) != 0).any(1).sum()), m // height
        widest = sparse_columns(isa, blocks, entries, t, k, height)
        turned = t * (k + m) * (2 * isa.load + lanes.bit_length() - 1) / lanes
        cycles = sparse_cost(isa, blocks, entries, t, k, height, widest) + turned
        if cycles < SPARSE_BELOW * dense and (best is None or cycles < best[3]):
            best = height, widest, entries, cycles
    return best


def pack(p: Sparse, weight: Array) -> tuple[Array, Array, Array]:
    """(ip, ix, va) of W [m, k]."""
    blocks = weight.reshape(p.m // p.rows, p.rows, p.k)
    block, k = np.nonzero((blocks != 0).any(1))
    ip = np.concatenate([[0], np.cumsum(np.bincount(block, minlength=len(blocks)))]).astype(np.int32)
    if not len(k):
        return ip, np.zeros(1, np.int32), np.zeros(p.rows, np.float32)
    return ip, (k * p.pitch).astype(np.int32), blocks[block, :, k].astype(np.float32).reshape(-1)


class _Writer:
    def __init__(self, p: Sparse) -> None:
        self.p = p
        self.x = argument("x", p.t * p.k)
        self.tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        self.ip = argument("ip", p.m // p.rows + 1, "int32")
        self.ix = argument("ix", p.entries, "int32")
        self.va = argument("va", p.entries * p.rows)
        self.bias = argument("bias", p.m) if p.bias else None
        self.vectors = argument("vectors", p.vectors * p.m) if p.vectors else None
        self.y = argument("y", p.t * p.m)

    def write(self) -> None:
        p = self.p
        lanes = p.columns.lanes
        self.turned = scratch_vectors(p.k * p.pitch, lanes)
        self.result = scratch_vectors(p.together * p.pitch, lanes)
        for width, starts in p.columns.walk():
            with starts as (at, _):
                self._turn(at)
                with loop(p.m // p.together) as group:
                    with loop(p.together // p.rows) as b:
                        self._block(group * (p.together // p.rows) + b, b * p.rows, width)
                    self._turn_back(group, at)

    def _turn(self, at: list[Expr]) -> None:
        """The rows of X from at[v] on, to [k][rows]."""
        p, lanes = self.p, self.p.columns.lanes
        with _each(at, lanes) as (v, start):
            if p.k < lanes:
                with loop(p.k) as k:
                    store(self.turned, self.x[span(start * p.k + k, lanes, p.k)], k * p.pitch + v, 1)
                return
            with loop(covering(p.k, lanes)) as part:
                k = shifted(part, lanes, lanes, p.k)
                tile = [row[0] for row in registers(lanes, 1, lanes)]
                for j, register in enumerate(tile):
                    put(register, load(self.x, (start + j) * p.k + k, lanes))
                transposed(tile, lanes)
                for j, register in enumerate(tile):
                    store(self.turned, register[0], (k + j) * p.pitch + v, 1)

    def _block(self, block: Expr, row: Expr, width: int) -> None:
        p, lanes = self.p, self.p.columns.lanes
        tile = registers(p.rows, width, lanes)
        for registers_of_row in tile:
            for register in registers_of_row:
                put(register, number(0, lanes))
        begin = self.ip[block]
        with loop(self.ip[block + 1] - begin, begin) as e:
            for r, registers_of_row in enumerate(tile):
                weight = splat(self.va[e * p.rows + r], lanes)
                for v, register in enumerate(registers_of_row):
                    put(register, weight * self.turned[self.ix[e] + v] + register[0])
        for r, registers_of_row in enumerate(tile):
            for v, register in enumerate(registers_of_row):
                store(self.result, register[0], (row + r) * p.pitch + v, 1)

    def _turn_back(self, group: Expr, at: list[Expr]) -> None:
        """`together` features of the rows from at[v] on, to their places."""
        p, lanes = self.p, self.p.columns.lanes
        with loop(p.together // lanes) as part, _each(at, lanes) as (v, start):
            feature = group * p.together + part * lanes
            tile = [row[0] for row in registers(lanes, 1, lanes)]
            for j, register in enumerate(tile):
                put(register, self.result[(part * lanes + j) * p.pitch + v])
            transposed(tile, lanes)
            for j, register in enumerate(tile):
                store(self.y, register[0], (start + j) * p.m + feature, lanes)
            if self.bias is not None or p.steps:
                with loop(lanes) as j:  # what follows may be long: once in the code, not once per row
                    self._finish(start + j, feature)

    def _finish(self, row: Expr, feature: Expr) -> None:
        p, lanes = self.p, self.p.columns.lanes
        at = row * p.m + feature

        def vector(i: int) -> Expr:
            return load(self.vectors, i * p.m + feature, lanes)

        value = load(self.y, at, lanes)
        if self.bias is not None:
            value = value + load(self.bias, feature, lanes)
        value = evaluate(p.steps, value, at, vector, self.tensors, lanes, Spot(row, feature, p.m))
        store(self.y, value, at, lanes)


@contextmanager
def _each(at: list[Expr], lanes: int) -> Iterator[tuple[Expr, Expr]]:
    """A loop over the vectors of a tile: which it is, and where it begins."""
    last = at[-1]
    with loop(len(at)) as v:
        start = at[0] + v * lanes
        short = isinstance(last, int) and last != at[0] + (len(at) - 1) * lanes
        yield v, tirx.Min(start, last) if short else start


def build_sparse(p: Sparse) -> Any:
    """The PrimFunc: x, tensor operands, then ip, ix, va, bias, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
