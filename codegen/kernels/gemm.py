"""Products with a constant matrix: Y[t, m] = sum over k of X[t, k] W[k, m], features m in vector lanes.

A tile of rows of X x vectors of features stays in registers while k runs; W lies packed in the order in which tiles
read it. With one row (batch 1) the product is as fast as W comes from memory, and W is read once, in a line.
Gemm, MatMul, and 1x1 convolutions of single pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spa.codegen.kernels.epilogue import Spot, evaluate, overwritten, sizes_of, splits
from spa.codegen.kernels.isa import Isa, isa_of
from spa.codegen.kernels.parallel import MANY, parallel
from spa.codegen.kernels.tile import Columns, columns_of, step_cycles, tiles
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
    shifted,
    splat,
    store,
)
from spa.codegen.layer import Array, Kernel, Layer, Step
from spa.codegen.target import Target

FAR = 1 << 20  # packed weights are as good as never in the first cache


@dataclass(frozen=True)
class Gemm:
    """All that a kernel's code depends on: X [t, k], W [k, columns.length], tiles of `rows` rows."""

    t: int
    k: int
    rows: int
    columns: Columns
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]  # their elements


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Gemm and MatMul with a constant second matrix, Conv of single pixels; float32."""
    found = constant_matrix(layer)
    if found is None or layer.output.dtype != "float32" or layer.inputs[0] is None:
        return None
    weight, bias = found
    k, m = weight.shape
    if not splits(layer.epilogue, m):
        return None
    t = product(layer.inputs[0].shape) // k
    isa = isa_of(target)
    rows, widest = best_tile(isa, t, m, k)
    columns = columns_of(isa, m, widest)
    p = Gemm(t, k, rows, columns, bias is not None, layer.epilogue, len(layer.channels), sizes_of(layer))
    packed = np.concatenate([weight[:, _features(columns, tile)].reshape(-1) for tile in columns.tiles()])
    return Kernel(
        family="gemm",
        format="dense",
        tile=f"{rows}x{widest * columns.lanes}-{isa.name}",
        why=f"{t} rows, features in lanes",
        activations=(0, *layer.tensors),
        weights=(np.ascontiguousarray(packed, np.float32), *layer.vectors(bias)),
        build=partial(build_gemm, p),
        key=p,
        in_place=overwritten(layer, (0, *layer.tensors), t % rows == 0 and columns.even),
    )


def constant_matrix(layer: Layer) -> tuple[Array, Array | None] | None:
    """W [k, m] and the bias [m] of a layer that is such a product."""
    weight = layer.consts.get(1)
    if weight is None or weight.dtype != np.float32 or 0 in layer.consts:
        return None
    x, get = layer.inputs[0], layer.attributes
    given = layer.consts.get(2)
    if x is None or (given is None and any(i is not None for i in layer.operands[2:])):
        return None
    if layer.op == "MatMul":
        return (weight, None) if weight.ndim == 2 and len(x.shape) >= 2 else None
    if layer.op == "Gemm":
        if get.get("transA", 0) or weight.ndim != 2:
            return None
        matrix = (weight.T if get.get("transB", 0) else weight) * np.float32(get.get("alpha", 1.0))
        if given is None:
            return matrix, None
        if given.size != 1 and (given.size != matrix.shape[1] or given.shape[-1] != given.size):
            return None
        return matrix, np.broadcast_to(given.reshape(-1) * np.float32(get.get("beta", 1.0)), (matrix.shape[1],))
    if layer.op == "Conv" and get.get("group", 1) == 1 and product(x.shape[2:]) == product(weight.shape[2:]) == 1:
        return (weight.reshape(weight.shape[0], -1).T, given) if product(layer.output.shape[2:]) == 1 else None
    return None


def _features(columns: Columns, starts: list[int]) -> list[int]:
    return [start + lane for start in starts for lane in range(columns.lanes)]


def tile_cycles(isa: Isa, t: int, m: int, k: int, rows: int, widest: int) -> float:
    """Cycles of a dense product [t, k] x [k, m] with tiles of rows x widest vectors."""
    columns = columns_of(isa, m, widest)
    return covering(t, rows) * sum(
        count * (k * step_cycles(isa, rows, width, FAR) + rows * width * 1.5 + 8) for width, count in columns.widths()
    )


def best_tile(isa: Isa, t: int, m: int, k: int) -> tuple[int, int]:
    """Every tile that fits, by its cycles."""
    fitting = (x for x in tiles(isa) if x[0] <= min(t, 16) and x[1] <= 16)
    return min(fitting, key=lambda x: (tile_cycles(isa, t, m, k, *x), x))


def build_gemm(p: Gemm) -> Any:
    """The PrimFunc: x, tensor operands, then w, bias, vectors, then y; all flat."""
    m, lanes = p.columns.length, p.columns.lanes
    with function() as f:
        x = argument("x", p.t * p.k)
        tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        w = argument("w", sum(len(tile) for tile in p.columns.tiles()) * lanes * p.k)
        bias = argument("bias", m) if p.bias else None
        vectors = argument("vectors", p.vectors * m) if p.vectors else None
        y = argument("y", p.t * m)
        rows, tiles = covering(p.t, p.rows), len(p.columns.tiles())
        for width, starts in p.columns.walk(shared=tiles >= min(rows, MANY)):
            with starts as (at, unshifted), parallel(rows, shared=tiles < min(rows, MANY)) as i:
                row = shifted(i, p.rows, p.rows, p.t)
                tile = registers(p.rows, width, lanes)
                for r in range(p.rows):
                    for v in range(width):
                        put(tile[r][v], load(bias, at[v], lanes) if bias is not None else number(0, lanes))
                with loop(p.k) as k:
                    place = unshifted * p.k + k * (width * lanes)
                    for r in range(p.rows):
                        value = splat(x[(row + r) * p.k + k], lanes)
                        for v in range(width):
                            put(tile[r][v], value * load(w, place + v * lanes, lanes) + tile[r][v][0])
                for v in range(width):
                    _finish(p, [tile[r][v][0] for r in range(p.rows)], row, at[v], vectors, tensors, y)
    return f.primfunc


def _finish(p: Gemm, values: list[Expr], row: Expr, at: Expr, vectors: Any, tensors: list[Any], y: Any) -> None:
    """One vector of features of each row: what follows, and to its place."""
    m, lanes = p.columns.length, p.columns.lanes

    def vector(i: int) -> Expr:
        return load(vectors, i * m + at, lanes)

    for r, value in enumerate(values):
        to = (row + r) * m + at
        store(y, evaluate(p.steps, value, to, vector, tensors, lanes, Spot(row + r, at, m)), to, lanes)
