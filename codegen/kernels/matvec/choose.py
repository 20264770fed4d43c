"""Which form of the weights one row is multiplied by: all that can hold them, compared by time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from spa.codegen.kernels.epilogue import sizes_of, splits
from spa.codegen.kernels.gemm import constant_matrix
from spa.codegen.kernels.isa import Isa, isa_of
from spa.codegen.kernels.matvec import permutation, spread
from spa.codegen.kernels.matvec.bits import Bits
from spa.codegen.kernels.matvec.codes import Codes
from spa.codegen.kernels.matvec.cost import decoding, reading
from spa.codegen.kernels.matvec.format import Format
from spa.codegen.kernels.matvec.grid import Grid, on_grid
from spa.codegen.kernels.matvec.groups import SIZES, groups_of
from spa.codegen.kernels.matvec.stored import Shape, Stored, shape_of
from spa.codegen.kernels.matvec.tiling import Tiling, tiling_of
from spa.codegen.kernels.matvec.writer import Matvec, build_matvec
from spa.codegen.kernels.vector import product
from spa.codegen.layer import Array, Kernel, Layer
from spa.codegen.target import Target

WORTH = 0.9  # of the dense time that a form may be predicted to take: predictions are not exact
WIDE = 4  # vectors of a tile


@dataclass(frozen=True, eq=False)
class Candidate:
    """A form, the values it packs (floats or codes), and the cycles it is predicted to take."""

    format: Format
    tiling: Tiling
    values: Array
    grid: Grid | None
    cycles: float


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Gemm, MatMul and 1x1 convolutions of one row and a constant matrix that is sparse or lies on a grid; float32
    outside."""
    found = constant_matrix(layer)
    if found is None or layer.output.dtype != "float32" or layer.inputs[0] is None:
        return None
    matrix, bias = found
    k, m = matrix.shape
    if product(layer.inputs[0].shape) != k or not splits(layer.epilogue, m):
        return None
    isa = isa_of(target)
    dense = reading(isa, 4 * matrix.size, 4 * matrix.size)
    best = min(candidates(isa, matrix), key=lambda c: c.cycles, default=None)
    if best is None or best.cycles > WORTH * dense:
        return None
    return _kernel(layer, best, k, bias, isa, dense)


def candidates(isa: Isa, matrix: Array) -> Iterator[Candidate]:
    """Every form that holds W [k, m]."""
    grid = on_grid(matrix)
    values = matrix if grid is None else grid.codes
    bits: Literal[4, 8, 32] = 32 if grid is None else grid.bits
    shared = len(values) // (grid.groups if grid is not None else 1)  # inputs that share a scale
    density = np.count_nonzero(values) / values.size
    forms: list[tuple[Shape, Format, float]] = []  # with its bytes per weight
    shape = shape_of(isa, bits)
    if grid is not None:
        forms.append((shape, Codes(Stored(bits, shape.lanes, shape.layout)), bits / 8))
    lanes = permutation.LANES.get(isa.name, 0)
    layout = shape.layout if lanes == shape.lanes else "words"
    for of in SIZES:
        picked = Shape(lanes, WIDE, layout)
        groups = groups_of(values, of, Stored(bits, lanes, layout), shared, isa.name) if lanes else None
        if groups is not None:
            forms.append((picked, groups, groups.n / of * bits / 8 + 4 / groups.inputs))
    if isa.name in spread.LANES:
        lanes = spread.LANES[isa.name]
        forms.append((Shape(lanes, WIDE, "bytes"), Bits.of(lanes, density), 1 / 8 + 4 * density))
    for shape, form, nbytes in forms:
        tiling = tiling_of(matrix.shape[1], shape.lanes, shape.width)
        if tiling is not None:
            own = grid if not isinstance(form, Bits) else None
            scales = 4 * own.scales.size if own is not None else 0
            weights = len(matrix) * tiling.tiles * tiling.size
            took = max(decoding(isa, form, weights), reading(isa, 4 * matrix.size, weights * nbytes + scales))
            yield Candidate(form, tiling, values if own is not None else matrix, own, took)


def _kernel(layer: Layer, chosen: Candidate, k: int, bias: Array | None, isa: Isa, dense: float) -> Kernel:
    tiling, grid = chosen.tiling, chosen.grid
    packed = chosen.format.pack(chosen.values, tiling)
    scales = () if grid is None else (tiling.split(grid.scales / np.float32(chosen.format.factor)).reshape(-1),)
    p = Matvec.of(
        tuple(w.size for w in packed),
        k=k,
        tiling=tiling,
        format=chosen.format,
        groups=0 if grid is None else grid.groups,
        bias=bias is not None,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    nbytes = sum(w.nbytes for w in (*packed, *scales)) / chosen.values.size
    return Kernel(
        family="matvec",
        format=chosen.format.name,
        tile=f"1x{tiling.size}-{isa.name}",
        why=f"one row, {nbytes:.2f} bytes per weight: dense {dense:.3g} cycles, {chosen.format.name} {chosen.cycles:.3g}",
        activations=(0, *layer.tensors),
        weights=(*(np.ascontiguousarray(w) for w in (*packed, *scales)), *layer.vectors(bias)),
        build=partial(build_matvec, p),
        key=p,
    )
