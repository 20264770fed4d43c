"""Products of two activations, in batches: Y[b, t, n] = s * sum over k of A[b, t, k] B[b, k, n], n in vector lanes.

Both operands are read through views (`codegen/views.py`): heads, slices and transposes are strides here, and where a
Transpose follows, the result is written where it belongs. Of every batch B is first copied to the order in which
tiles read it, as packed weights lie; columns of B that lie along k are turned in registers. With few rows that does not
pay: B is read where it lies, line by line if its rows lie in memory as such, else as dot products along k. A product with
one column is that with one row, turned over.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from spa.codegen.kernels.epilogue import Spot, evaluate, sizes_of, splits
from spa.codegen.kernels.gemm import best_tile
from spa.codegen.kernels.isa import Isa, isa_of
from spa.codegen.kernels.parallel import MANY, parallel
from spa.codegen.kernels.tile import Columns, columns_of
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
    scratch,
    shifted,
    span,
    splat,
    store,
    transposed,
)
from spa.codegen.layer import Kernel, Layer, Step
from spa.codegen.target import Target
from spa.codegen.views import contiguous, joined

FEW_ROWS = 6  # of A, for which B is not worth copying
FEW = 4  # products: below, threads share the rows of each

Way = Literal["packed", "direct", "dots"]


@dataclass(frozen=True)
class Operand:
    """`size` elements of which the one of row i, column j of a batch lies at offset + i * rows + j * columns."""

    size: int
    offset: int
    rows: int
    columns: int

    @property
    def turned(self) -> Operand:
        return Operand(self.size, self.offset, self.columns, self.rows)


@dataclass(frozen=True)
class Batched:
    """All that a kernel's code depends on. `batch`: (extent, stride in A, in B, in Y) of each axis; `row`: elements from
    one row of Y to the next; `rows`: of a tile; `way`: B is copied, or read where it lies, its rows or its columns."""

    batch: tuple[tuple[int, ...], ...]
    t: int
    k: int
    a: Operand
    b: Operand
    row: int
    rows: int
    columns: Columns
    way: Way
    scale: float
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]


def offer(layer: Layer, target: Target) -> Kernel | None:
    """MatMul of two float32 operands of at least two axes, each an activation or a constant."""
    if layer.op != "MatMul" or not {0, 1} <= layer.views.keys() or layer.output.dtype != "float32":
        return None
    a, b = layer.views[0], layer.views[1]
    if min(len(a.shape), len(b.shape)) < 2 or not splits(layer.epilogue, b.shape[-1]):
        return None
    t, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    outer = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    there = layer.strides or contiguous((*outer, t, n))
    left = Operand(a.size, a.offset, a.strides[-2], a.strides[-1])
    right = Operand(b.size, b.offset, b.strides[-2], b.strides[-1])
    beside = [a.leading(outer), b.leading(outer)]
    turned = n == 1 < t and not layer.strides and not layer.channels and splits(layer.epilogue, t)
    if turned:
        t, n, left, right, beside = 1, t, right.turned, left.turned, beside[::-1]
    isa = isa_of(target)
    way = _way(isa, t, k, n, left, right)
    rows, widest = best_tile(isa, t, n, k) if way != "dots" else (1, 1)
    columns = columns_of(isa, n, widest)
    p = Batched(
        batch=tuple(joined(zip(outer, *beside, there[:-2], strict=True))),
        t=t,
        k=k,
        a=left,
        b=right,
        row=there[-2] if t > 1 else 0,
        rows=rows,
        columns=columns,
        way=way,
        scale=a.scale * b.scale,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    return Kernel(
        family="batched",
        format="dense",
        tile=f"{rows}x{widest * columns.lanes}-{way}-{isa.name}",
        why=f"{product(outer)} products [{t}, {k}] x [{k}, {n}], read in place",
        activations=(*((1, 0) if turned else (0, 1)), *layer.tensors),
        weights=layer.vectors(),
        build=partial(build_batched, p),
        key=p,
        viewed=True,
    )


def _way(isa: Isa, t: int, k: int, n: int, a: Operand, b: Operand) -> Way:
    if t <= FEW_ROWS and b.columns == 1:
        return "direct"
    along = b.rows == 1 and a.columns == 1 and min(k, n) >= isa.lanes
    return "dots" if t <= FEW_ROWS and along else "packed"


class _Writer:
    def __init__(self, p: Batched) -> None:
        self.p = p
        n = p.columns.length
        self.batches = product([axis[0] for axis in p.batch])
        self.a, self.b = argument("a", p.a.size), argument("b", p.b.size)
        self.tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        self.vectors = argument("vectors", p.vectors * n) if p.vectors else None
        self.y = argument("y", self.batches * p.t * n)
        self.packed: Any = None

    def write(self) -> None:
        p = self.p
        by_batch = bool(p.batch) and p.batch[0][0] >= FEW
        with ExitStack() as loops:
            a: Expr = p.a.offset
            b: Expr = p.b.offset
            y: Expr = 0
            batch: Expr = 0
            for axis, (extent, *strides) in enumerate(p.batch):
                i = loops.enter_context(parallel(extent, shared=by_batch and axis == 0))
                a, b, y = (place + i * stride for place, stride in zip((a, b, y), strides, strict=True))
                batch = batch * extent + i
            if p.way == "packed":
                self.packed = scratch(sum(len(tile) for tile in p.columns.tiles()) * p.columns.lanes * p.k)
                self._pack(b, shared=not by_batch)
            rows, tiles = covering(p.t, p.rows), len(p.columns.tiles())
            by_tile = not by_batch and tiles >= min(rows, MANY)
            for width, starts in p.columns.walk(shared=by_tile):
                with starts as (at, unshifted), parallel(rows, shared=not by_batch and not by_tile) as i:
                    row = shifted(i, p.rows, p.rows, p.t)
                    if p.way == "dots":
                        self._finish([self._dots(a + row * p.a.rows, b + at[0] * p.b.columns)], batch, y, row, at[0])
                        continue
                    tile = registers(p.rows, width, p.columns.lanes)
                    self._multiply(tile, a, b, row, at, unshifted)
                    for v in range(width):
                        self._finish([tile[r][v][0] for r in range(p.rows)], batch, y, row, at[v])

    def _pack(self, b: Expr, shared: bool) -> None:
        """B of one batch, tile by tile, k by k; `shared`: by threads."""
        p, lanes = self.p, self.p.columns.lanes
        turned = p.b.rows == 1 and p.b.columns != 1 and lanes > 1 and p.k >= lanes
        for width, starts in p.columns.walk(shared):
            with starts as (at, unshifted):
                for v in range(width):
                    if not turned:
                        with loop(p.k) as k:
                            place = b + k * p.b.rows + at[v] * p.b.columns
                            value = (
                                self.b[span(place, lanes, p.b.columns)] if p.b.columns else splat(self.b[place], lanes)
                            )
                            store(self.packed, value, unshifted * p.k + (k * width + v) * lanes, lanes)
                        continue
                    with loop(covering(p.k, lanes)) as part:
                        k = shifted(part, lanes, lanes, p.k)
                        tile = [row[0] for row in registers(lanes, 1, lanes)]
                        for j, register in enumerate(tile):
                            put(register, load(self.b, b + (at[v] + j) * p.b.columns + k, lanes))
                        transposed(tile, lanes)
                        for j, register in enumerate(tile):
                            store(self.packed, register[0], unshifted * p.k + ((k + j) * width + v) * lanes, lanes)

    def _multiply(self, tile: Any, a: Expr, b: Expr, row: Expr, at: list[Expr], unshifted: Expr) -> None:
        p, lanes, width = self.p, self.p.columns.lanes, len(at)
        for registers_of_row in tile:
            for register in registers_of_row:
                put(register, number(0, lanes))
        with loop(p.k) as k:
            for r, registers_of_row in enumerate(tile):
                value = splat(self.a[a + (row + r) * p.a.rows + k * p.a.columns], lanes)
                for v, register in enumerate(registers_of_row):
                    if self.packed is None:
                        other = load(self.b, b + k * p.b.rows + at[v], lanes)
                    else:
                        other = load(self.packed, unshifted * p.k + (k * width + v) * lanes, lanes)
                    put(register, value * other + register[0])

    def _dots(self, a: Expr, b: Expr) -> Expr:
        """A row of A with as many columns of B as lanes: vectors along k, turned once at the end to be added up; what is
        left of k one by one."""
        p, lanes = self.p, self.p.columns.lanes
        tile = [row[0] for row in registers(lanes, 1, lanes)]
        for register in tile:
            put(register, number(0, lanes))
        with loop(p.k // lanes) as part:
            row = load(self.a, a + part * lanes, lanes)
            for j, register in enumerate(tile):
                put(register, row * load(self.b, b + j * p.b.columns + part * lanes, lanes) + register[0])
        if lanes > 1:
            transposed(tile, lanes)
        parts = [register[0] for register in tile]
        while len(parts) > 1:
            parts = [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]
        for k in range(p.k // lanes * lanes, p.k):
            parts[0] = parts[0] + splat(self.a[a + k], lanes) * self.b[span(b + k, lanes, p.b.columns)]
        return parts[0]

    def _finish(self, values: list[Expr], batch: Expr, y: Expr, row: Expr, column: Expr) -> None:
        p, n, lanes = self.p, self.p.columns.length, self.p.columns.lanes

        def vector(i: int) -> Expr:
            return load(self.vectors, i * n + column, lanes)

        for r, value in enumerate(values):
            value = value if p.scale == 1 else value * number(p.scale, lanes)
            flat = batch * p.t + row + r
            spot = Spot(flat, column, n)
            value = evaluate(p.steps, value, flat * n + column, vector, self.tensors, lanes, spot)
            store(self.y, value, y + (row + r) * p.row + column, lanes)


def build_batched(p: Batched) -> Any:
    """The PrimFunc: a, b, tensor operands, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
