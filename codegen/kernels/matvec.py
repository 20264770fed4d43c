"""One row times a constant matrix that is sparse or quantised: y[m] = sum over k of x[k] W[k, m], features m in vector lanes.

With one row every weight is used once, so the time is that of reading them: what counts is bytes per weight.

- `bitmap` (AVX-512): which of 16 features survive at an input, 16 bits, and the survivors one behind the other; they are
  spread over the lanes by the bits. 2 + 64 d bytes per 16 weights of density d.
- `2:4` in int8 (AVX2, AVX-512): of four inputs each feature keeps two. Their codes lie in two vectors, and which of the four they
  are in 2 bits per lane, by which each lane picks its input. 10 bits per weight that is kept, 5 on average.

Codes are multiplied as they are; a feature's scale comes at the end. Weights behind DequantizeLinear arrive here folded
to floats; that they lie on a grid of 255 steps is seen from their values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from spa.codegen.kernels.epilogue import Spot, evaluate, sizes_of, splits
from spa.codegen.kernels.gemm import constant_matrix
from spa.codegen.kernels.isa import AVX2, AVX512, Isa, isa_of
from spa.codegen.kernels.tile import bucket
from spa.codegen.kernels.vector import (
    FLOAT,
    Expr,
    argument,
    build,
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

Format = Literal["bitmap", "2:4"]
BITMAP_BELOW = 0.7  # density: above, what is saved in bytes is lost in instructions
GRID = 1e-3  # of a step: how far from the grid rounding in float32 leaves a value
WIDE = 4  # vectors of a tile
KEPT, OF = 2, 4
PERMUTE = {AVX512.name: "llvm.x86.avx512.vpermilvar.ps.512", AVX2.name: "llvm.x86.avx.vpermilvar.ps.256"}


@dataclass(frozen=True)
class Matvec:
    """All that a kernel's code depends on: W [k, m], tiles of `width` vectors of `isa.lanes` features."""

    format: Format
    k: int
    m: int
    width: int
    isa: Isa
    scaled: bool
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]
    bucket: int
    entries: int = field(compare=False)  # survivors in all

    @property
    def tiles(self) -> int:
        return self.m // (self.width * self.isa.lanes)


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Gemm, MatMul and 1x1 convolutions of one row and a constant matrix that is half zeros or more; float32 outside."""
    found = constant_matrix(layer)
    if found is None or layer.output.dtype != "float32" or layer.inputs[0] is None:
        return None
    matrix, bias = found
    k, m = matrix.shape
    isa = isa_of(target)
    width = next((w for w in range(WIDE, 0, -1) if m % (w * isa.lanes) == 0), 0)
    if product(layer.inputs[0].shape) != k or not width or isa.name not in PERMUTE or not splits(layer.epilogue, m):
        return None
    density = np.count_nonzero(matrix) / matrix.size
    quantised = on_grid(matrix) if _two_of_four(matrix) else None
    packed: tuple[Array, ...]
    if quantised is not None:
        kind: Format = "2:4"
        packed = (*pack_two_of_four(quantised[0], width, isa.lanes), quantised[1])
    elif density < BITMAP_BELOW and isa.name == AVX512.name:
        kind = "bitmap"
        packed = pack_bitmap(matrix, width, isa.lanes)
    else:
        return None
    extra = [] if bias is None else [bias]
    extra += [np.concatenate(layer.channels)] if layer.channels else []
    entries = packed[1].size
    p = Matvec(
        format=kind,
        k=k,
        m=m,
        width=width,
        isa=isa,
        scaled=quantised is not None,
        bias=bias is not None,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
        bucket=bucket(entries),
        entries=entries,
    )
    return Kernel(
        family="matvec",
        format=kind if kind == "bitmap" else "2:4 int8",
        tile=f"1x{width * isa.lanes}-{isa.name}",
        why=f"one row, density {density:.2f}: {sum(w.nbytes for w in packed) / matrix.size:.2f} bytes per weight",
        activations=(0, *layer.tensors),
        weights=(*(np.ascontiguousarray(w) for w in packed), *(np.ascontiguousarray(e, np.float32) for e in extra)),
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


def pack_bitmap(matrix: Array, width: int, lanes: int) -> tuple[Array, Array, Array]:
    """(bits [tiles, k, width], survivors, where each tile's begin) of W [k, m]; a vector more at the end may be read."""
    k, m = matrix.shape
    tiled = matrix.reshape(k, m // (width * lanes), width, lanes).transpose(1, 0, 2, 3)
    kept = tiled != 0
    bits = (kept * (1 << np.arange(lanes))).sum(-1).astype(np.uint16)
    counts = kept.reshape(len(kept), -1).sum(1)
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = np.concatenate([tiled[kept], np.zeros(lanes)]).astype(np.float32)
    return bits.reshape(-1), values, begins


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
        if p.format == "bitmap":
            self.bits = argument("bits", p.m // lanes * p.k, "uint16")
            self.values = argument("values", p.entries)
            self.begins = argument("begins", p.tiles + 1, "int32")
        else:
            self.bits = argument("positions", p.m // lanes * p.k // OF * KEPT, "int32")
            self.values = argument("codes", p.entries, "int8")
        self.scales = argument("scales", p.m) if p.scaled else None
        self.bias = argument("bias", p.m) if p.bias else None
        self.vectors = argument("vectors", p.vectors * p.m) if p.vectors else None
        self.y = argument("y", p.m)

    def write(self) -> None:
        p, lanes = self.p, self.p.isa.lanes
        with loop(p.tiles) as tile:
            sums = registers(KEPT if p.format == "2:4" else 1, p.width, lanes)
            for row in sums:
                for register in row:
                    put(register, number(0, lanes))
            if p.format == "bitmap":
                self._bitmap(tile, sums[0])
            else:
                self._two_of_four(tile, sums)
            for v in range(p.width):
                value = sums[0][v][0]
                for row in sums[1:]:
                    value = value + row[v][0]
                self._finish(value, (tile * p.width + v) * lanes)

    def _bitmap(self, tile: Expr, sums: list[Any]) -> None:
        p, lanes = self.p, self.p.isa.lanes
        at = build.alloc_buffer((1,), "int32", scope="global")
        build.buffer_store(at, self.begins[tile], [0])
        with loop(p.k) as k:
            words = [tirx.Cast("int32", self.bits[(tile * p.k + k) * p.width + v]) for v in range(p.width)]
            x, begin = splat(self.x[k], lanes), at[0]
            for v, word in enumerate(words):
                kept = tirx.NE(splat(word, lanes) & _lane_bits(lanes), splat(tirx.IntImm("int32", 0), lanes))
                data = load(self.values, begin, lanes)
                arguments = (data, number(0, lanes), kept)
                value = tirx.call_llvm_pure_intrin(f"{FLOAT}x{lanes}", "llvm.x86.avx512.mask.expand.v16f32", *arguments)
                put(sums[v], value * x + sums[v][0])
                begin = begin + tirx.popcount(word)
            build.buffer_store(at, begin, [0])

    def _two_of_four(self, tile: Expr, sums: list[list[Any]]) -> None:
        p, lanes = self.p, self.p.isa.lanes
        shifts = tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 2), lanes)
        with loop(p.k // OF) as group:
            four = lanes_of([load(self.x, group * OF, OF)] * (lanes // OF), range(lanes))
            for v in range(p.width):
                for i in range(KEPT):
                    place = ((tile * (p.k // OF) + group) * p.width + v) * KEPT + i
                    positions = splat(self.bits[place], lanes) >> shifts
                    x = tirx.call_llvm_pure_intrin(f"{FLOAT}x{lanes}", PERMUTE[p.isa.name], four, positions)
                    code = tirx.Cast(f"{FLOAT}x{lanes}", load(self.values, place * lanes, lanes))
                    put(sums[i][v], code * x + sums[i][v][0])

    def _finish(self, value: Expr, feature: Expr) -> None:
        p, lanes = self.p, self.p.isa.lanes

        def vector(i: int) -> Expr:
            return load(self.vectors, i * p.m + feature, lanes)

        if self.scales is not None:
            value = value * load(self.scales, feature, lanes)
        if self.bias is not None:
            value = value + load(self.bias, feature, lanes)
        value = evaluate(p.steps, value, feature, vector, self.tensors, lanes, Spot(0, feature, p.m))
        store(self.y, value, feature, lanes)


def _lane_bits(lanes: int) -> Expr:
    return splat(tirx.IntImm("int32", 1), lanes) << tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), lanes)


def build_matvec(p: Matvec) -> Any:
    """The PrimFunc: x, tensor operands, then bits, survivors, begins, or positions, codes, scales; bias, vectors, y."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
