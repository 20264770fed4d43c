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

from spa.codegen.kernels.epilogue import Spot, evaluate, overwritten, sizes_of, splits
from spa.codegen.kernels.gemm import best_tile, constant_matrix, tile_cycles
from spa.codegen.kernels.isa import isa_of
from spa.codegen.kernels.parallel import MANY, parallel
from spa.codegen.kernels.spmm_choice import best_choice, chunk_of
from spa.codegen.kernels.tile import Columns, bucket, columns_of
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


@dataclass(frozen=True)
class Sparse:
    """All that a kernel's code depends on: X [t, k], W [m, k] in blocks of `rows` with `entries` in all, `depth` k in each part;
    `columns`: the rows of X as vectors."""

    t: int
    k: int
    m: int
    rows: int
    depth: int
    columns: Columns
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]
    bucket: int
    entries: int = field(compare=False)  # the code is the same for any number

    @property
    def chunk(self) -> int:
        """Features that are turned back at once."""
        return chunk_of(self.m, max(self.rows, self.columns.lanes))

    @property
    def chunks(self) -> int:
        return self.m // self.chunk

    @property
    def parts(self) -> int:
        return covering(self.k, self.depth)

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
    best = best_choice(isa, weight, t, dense)
    if best is None:
        return None
    p = Sparse(
        t=t,
        k=k,
        m=m,
        rows=best.rows,
        depth=best.depth,
        columns=columns_of(isa, t, best.widest),
        bucket=bucket(best.entries),
        entries=max(best.entries, 1),
        bias=bias is not None,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    density = np.count_nonzero(weight) / weight.size
    depth = "" if p.parts == 1 else f"x{p.depth}"
    return Kernel(
        family="spmm",
        format="csr" if p.rows == 1 else f"block{p.rows}x1",
        tile=f"{p.rows}x{best.widest * p.columns.lanes}{depth}-{isa.name}",
        why=f"density {density:.2f}: dense {dense:.3g} cycles, sparse {p.rows}x1 {best.cycles:.3g}",
        activations=(0, *layer.tensors),
        weights=(*pack(p, weight), *layer.vectors(bias)),
        build=partial(build_sparse, p),
        key=p,
        in_place=overwritten(layer, (0, *layer.tensors), p.columns.even),
    )


def pack(p: Sparse, weight: Array) -> tuple[Array, Array, Array, Array]:
    """(sums, ip, ix, va) of W [m, k]."""
    blocks = weight.reshape(p.m // p.rows, p.rows, p.k)
    block, k = np.nonzero((blocks != 0).any(1))
    each = p.chunk // p.rows  # blocks of a chunk
    place = (block // each * p.parts + k // p.depth) * each + block % each
    order = np.lexsort((k, place))
    ip = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(blocks) * p.parts))]).astype(np.int32)
    sums = np.ascontiguousarray(ip[:: each * p.parts])
    if not len(k):
        return sums, ip, np.zeros(1, np.int32), np.zeros(p.rows, np.float32)
    values = blocks[block, :, k].astype(np.float32)[order].reshape(-1)
    return sums, ip, (k[order] * p.pitch).astype(np.int32), values


class _Writer:
    def __init__(self, p: Sparse) -> None:
        self.p = p
        self.x = argument("x", p.t * p.k)
        self.tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        self.sums = argument("sums", p.chunks + 1, "int32")
        self.ip = argument("ip", p.m // p.rows * p.parts + 1, "int32")
        self.ix = argument("ix", p.entries, "int32")
        self.va = argument("va", p.entries * p.rows)
        self.bias = argument("bias", p.m) if p.bias else None
        self.vectors = argument("vectors", p.vectors * p.m) if p.vectors else None
        self.y = argument("y", p.t * p.m)

    def write(self) -> None:
        """Threads share the tiles of rows where there are many, else turning, then the chunks."""
        p, lanes = self.p, self.p.columns.lanes
        many = len(p.columns.tiles()) >= MANY
        for width, starts in p.columns.walk(shared=many):
            with starts as (at, _):
                self.turned = scratch_vectors(p.k * p.pitch, lanes)
                self._turn(at, not many)
                with parallel(p.chunks, "sums", shared=not many) as chunk:
                    self.result = scratch_vectors(p.chunk * p.pitch, lanes)
                    self._chunk(chunk, width)
                    self._turn_back(chunk, at)

    def _turn(self, at: list[Expr], shared: bool) -> None:
        """The rows of X from at[v] on, to [k][rows]."""
        p, lanes = self.p, self.p.columns.lanes
        if p.k < lanes:
            with parallel(p.k, shared=shared) as k, _each(at, lanes) as (v, start):
                store(self.turned, self.x[span(start * p.k + k, lanes, p.k)], k * p.pitch + v, 1)
            return
        with parallel(covering(p.k, lanes), shared=shared) as part, _each(at, lanes) as (v, start):
            k = shifted(part, lanes, lanes, p.k)
            tile = [row[0] for row in registers(lanes, 1, lanes)]
            for j, register in enumerate(tile):
                put(register, load(self.x, (start + j) * p.k + k, lanes))
            transposed(tile, lanes)
            for j, register in enumerate(tile):
                store(self.turned, register[0], (k + j) * p.pitch + v, 1)

    def _chunk(self, chunk: Expr, width: int) -> None:
        """All sums of a chunk; from part to part they wait in `result`."""
        p, lanes = self.p, self.p.columns.lanes
        each = p.chunk // p.rows
        if p.parts > 1:
            with loop(p.chunk * p.pitch) as i:
                store(self.result, number(0, lanes), i, 1)
        with loop(p.parts) as part, loop(each) as b:
            self._block((chunk * p.parts + part) * each + b, b * p.rows, width)

    def _block(self, block: Expr, row: Expr, width: int) -> None:
        p, lanes = self.p, self.p.columns.lanes
        tile = registers(p.rows, width, lanes)
        for r, registers_of_row in enumerate(tile):
            for v, register in enumerate(registers_of_row):
                put(register, number(0, lanes) if p.parts == 1 else self.result[(row + r) * p.pitch + v])
        begin = self.ip[block]
        with loop(self.ip[block + 1] - begin, begin) as e:
            for r, registers_of_row in enumerate(tile):
                weight = splat(self.va[e * p.rows + r], lanes)
                for v, register in enumerate(registers_of_row):
                    put(register, weight * self.turned[self.ix[e] + v] + register[0])
        for r, registers_of_row in enumerate(tile):
            for v, register in enumerate(registers_of_row):
                store(self.result, register[0], (row + r) * p.pitch + v, 1)

    def _turn_back(self, chunk: Expr, at: list[Expr]) -> None:
        """The features of a chunk, of the rows from at[v] on, to their places."""
        p, lanes = self.p, self.p.columns.lanes
        with loop(p.chunk // lanes) as part, _each(at, lanes) as (v, start):
            feature = chunk * p.chunk + part * lanes
            tile = [row[0] for row in registers(lanes, 1, lanes)]
            places = [(part * lanes + j) * p.pitch + v for j in range(lanes)]
            for place, register in zip(places, tile, strict=True):
                put(register, self.result[place])
            transposed(tile, lanes)
            if self.bias is None and not p.steps:
                for j, register in enumerate(tile):
                    store(self.y, register[0], (start + j) * p.m + feature, lanes)
                return
            for place, register in zip(places, tile, strict=True):
                store(self.result, register[0], place, 1)
            with loop(lanes) as j:  # what follows may be long: once in the code, not once per row
                self._finish(self.result[(part * lanes + j) * p.pitch + v], start + j, feature)

    def _finish(self, value: Expr, row: Expr, feature: Expr) -> None:
        p, lanes = self.p, self.p.columns.lanes
        at = row * p.m + feature

        def vector(i: int) -> Expr:
            return load(self.vectors, i * p.m + feature, lanes)

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
    """The PrimFunc: x, tensor operands, then sums, ip, ix, va, bias, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
