"""One row times a constant matrix that is sparse and quantised: y[m] = sum over k of x[k] W[k, m], features m in vector lanes.

With one row every weight is used once, so the time is that of reading them: what counts is bytes per weight.

- `2:4` in int8 (AVX2, AVX-512): of four inputs each feature keeps two. Their codes lie in two vectors, and which of the four they
  are in 2 bits per lane, by which each lane picks its input. 10 bits per weight that is kept, 5 on average.

Half the weights gone without a pattern gain nothing this way: bits that say which of 16 features survive, and AVX-512's expand to
spread the survivors, took twice the time of dense weights (10 cycles per vector where reading 16 weights takes 5).

Codes are multiplied as they are; a feature's scale comes at the end. Weights behind DequantizeLinear arrive here folded
to floats; that they lie on a grid of 255 steps is seen from their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spa.codegen.kernels.epilogue import Spot, evaluate, sizes_of, splits
from spa.codegen.kernels.gemm import constant_matrix
from spa.codegen.kernels.isa import AVX2, AVX512, Isa, isa_of
from spa.codegen.kernels.vector import (
    FLOAT,
    Expr,
    argument,
    function,
    lanes_of,
    load,
    loop,
    number,
    product,
    put,
    registers,
    splat,
    store,
)
from spa.codegen.layer import Array, Kernel, Layer, Step
from spa.codegen.target import Target
from spa.codegen.tvm_api import tirx

GRID = 1e-3  # of a step: how far from the grid rounding in float32 leaves a value
WIDE = 4  # vectors of a tile
KEPT, OF = 2, 4
PERMUTE = {AVX512.name: "llvm.x86.avx512.vpermilvar.ps.512", AVX2.name: "llvm.x86.avx.vpermilvar.ps.256"}


@dataclass(frozen=True)
class Matvec:
    """All that a kernel's code depends on: W [k, m], tiles of `width` vectors of `isa.lanes` features."""

    k: int
    m: int
    width: int
    isa: Isa
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]

    @property
    def tiles(self) -> int:
        return self.m // (self.width * self.isa.lanes)


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Gemm, MatMul and 1x1 convolutions of one row and a constant matrix of int8 codes, 2 of 4; float32 outside."""
    found = constant_matrix(layer)
    if found is None or layer.output.dtype != "float32" or layer.inputs[0] is None:
        return None
    matrix, bias = found
    k, m = matrix.shape
    isa = isa_of(target)
    width = next((w for w in range(WIDE, 0, -1) if m % (w * isa.lanes) == 0), 0)
    if product(layer.inputs[0].shape) != k or not width or isa.name not in PERMUTE or not splits(layer.epilogue, m):
        return None
    quantised = on_grid(matrix) if _two_of_four(matrix) else None
    if quantised is None:
        return None
    packed = (*pack_two_of_four(quantised[0], width, isa.lanes), quantised[1])
    p = Matvec(
        k=k,
        m=m,
        width=width,
        isa=isa,
        bias=bias is not None,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    return Kernel(
        family="matvec",
        format="2:4 int8",
        tile=f"1x{width * isa.lanes}-{isa.name}",
        why=f"one row: {sum(w.nbytes for w in packed) / matrix.size:.2f} bytes per weight",
        activations=(0, *layer.tensors),
        weights=(*(np.ascontiguousarray(w) for w in packed), *layer.vectors(bias)),
        build=partial(build_matvec, p),
        key=p,
    )


def on_grid(matrix: Array) -> tuple[Array, Array] | None:
    """int8 codes and a scale per feature of W [k, m], if its values are those of such a grid: then nothing is lost,
    however the network says that it is quantised. The greatest code of a feature is 127, as symmetric quantisation
    leaves it."""
    scales = np.abs(matrix).max(0) / 127
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    codes = np.round(matrix / scales)
    return (codes.astype(np.int8), scales) if (np.abs(codes * scales - matrix) <= GRID * scales).all() else None


def _two_of_four(matrix: Array) -> bool:
    k, m = matrix.shape
    return k % OF == 0 and bool(((matrix.reshape(k // OF, OF, m) != 0).sum(1) <= KEPT).all())


def pack_two_of_four(codes: Array, width: int, lanes: int) -> tuple[Array, Array]:
    """(positions, codes) of W [k, m]: [tiles][k / 4][width][2] words of 2 bits per lane, and vectors of int8 codes."""
    k, m = codes.shape
    groups = codes.reshape(k // OF, OF, m)
    order = np.argsort(groups == 0, axis=1, kind="stable")[:, :KEPT]  # survivors first, then whatever is zero
    kept = np.take_along_axis(groups, order, axis=1)

    def tiled(x: Array) -> Array:
        return x.reshape(k // OF, KEPT, m // (width * lanes), width, lanes).transpose(2, 0, 3, 1, 4)

    shifts = (2 * np.arange(lanes)).astype(np.uint64)
    words = (tiled(order).astype(np.uint64) << shifts).sum(-1).astype(np.uint32).view(np.int32)
    return words.reshape(-1), tiled(kept).astype(np.int8).reshape(-1)


class _Writer:
    def __init__(self, p: Matvec) -> None:
        self.p, lanes = p, p.isa.lanes
        self.x = argument("x", p.k)
        self.tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        self.positions = argument("positions", p.m // lanes * p.k // OF * KEPT, "int32")
        self.codes = argument("codes", p.m * p.k // OF * KEPT, "int8")
        self.scales = argument("scales", p.m)
        self.bias = argument("bias", p.m) if p.bias else None
        self.vectors = argument("vectors", p.vectors * p.m) if p.vectors else None
        self.y = argument("y", p.m)

    def write(self) -> None:
        p, lanes = self.p, self.p.isa.lanes
        with loop(p.tiles) as tile:
            sums = registers(KEPT, p.width, lanes)
            for row in sums:
                for register in row:
                    put(register, number(0, lanes))
            self._multiply(tile, sums)
            for v in range(p.width):
                self._finish(sums[0][v][0] + sums[1][v][0], (tile * p.width + v) * lanes)

    def _multiply(self, tile: Expr, sums: list[list[Any]]) -> None:
        p, lanes = self.p, self.p.isa.lanes
        shifts = tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 2), lanes)
        with loop(p.k // OF) as group:
            four = lanes_of([load(self.x, group * OF, OF)] * (lanes // OF), range(lanes))
            for v in range(p.width):
                for i in range(KEPT):
                    place = ((tile * (p.k // OF) + group) * p.width + v) * KEPT + i
                    positions = splat(self.positions[place], lanes) >> shifts
                    x = tirx.call_llvm_pure_intrin(f"{FLOAT}x{lanes}", PERMUTE[p.isa.name], four, positions)
                    code = tirx.Cast(f"{FLOAT}x{lanes}", load(self.codes, place * lanes, lanes))
                    put(sums[i][v], code * x + sums[i][v][0])

    def _finish(self, value: Expr, feature: Expr) -> None:
        p, lanes = self.p, self.p.isa.lanes

        def vector(i: int) -> Expr:
            return load(self.vectors, i * p.m + feature, lanes)

        value = value * load(self.scales, feature, lanes)
        if self.bias is not None:
            value = value + load(self.bias, feature, lanes)
        value = evaluate(p.steps, value, feature, vector, self.tensors, lanes, Spot(0, feature, p.m))
        store(self.y, value, feature, lanes)


def build_matvec(p: Matvec) -> Any:
    """The PrimFunc: x, tensor operands, then positions, codes, scales, bias, vectors, then y."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
