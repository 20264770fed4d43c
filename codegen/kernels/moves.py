"""Transposes that nothing reads in place: a view (`codegen/views.py`) written out, with what follows element by element.

Where the output's last axis lies along another axis in memory than the source's, squares of lanes x lanes are turned in
registers, so that both are read and written as vectors; they follow each other along a cache line of the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from spa.codegen.kernels.epilogue import Spot, evaluate, sizes_of, splits
from spa.codegen.kernels.isa import isa_of
from spa.codegen.kernels.parallel import MANY, WORTH, parallel
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    fits,
    function,
    load,
    loop,
    number,
    product,
    put,
    registers,
    shifted,
    span,
    splat,
    store,
    transposed,
)
from spa.codegen.layer import Kernel, Layer, Step
from spa.codegen.target import Target
from spa.codegen.views import contiguous, joined

LINE = 16  # floats of a cache line
SQUARE, WIDEST = 4, 8  # the smallest square worth turning, and the largest: beyond, code grows and time does not fall


@dataclass(frozen=True)
class Move:
    """All that a kernel's code depends on. `axes`: (extent, elements of x, rows of y from one to the next) of all but
    the last axis, which has `length` elements `stride` apart. `turned`: the one of `axes` along which x lies, or -1;
    then the steps are done on squares."""

    size: int
    offset: int
    axes: tuple[tuple[int, int, int], ...]
    length: int
    stride: int
    turned: int
    lanes: int
    scale: float
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]

    @property
    def rows(self) -> int:
        return product([n for n, _, _ in self.axes])


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Transpose of float32, over whatever view it reads."""
    if layer.op != "Transpose" or 0 not in layer.views or layer.output.dtype != "float32":
        return None
    view = layer.views[0]
    perm = layer.attributes.get("perm") or range(len(view.shape))[::-1]
    merged = joined((view.shape[i], view.strides[i]) for i in perm)
    *outer, (length, stride) = merged or [(1, 1)]
    if not splits(layer.epilogue, length):
        return None
    isa = isa_of(target)
    rows = contiguous([n for n, _ in outer])
    axes = tuple((n, s, r) for (n, s), r in zip(outer, rows, strict=True))
    along = [i for i, (n, s, _) in enumerate(axes) if s == 1 and n >= SQUARE]
    turned = along[0] if along and stride > 1 and length >= SQUARE and isa.lanes >= SQUARE else -1
    p = Move(
        size=view.size,
        offset=view.offset,
        axes=axes,
        length=length,
        stride=stride,
        turned=turned,
        lanes=fits(min(isa.lanes, WIDEST), min(length, axes[turned][0])) if turned >= 0 else fits(isa.lanes, length),
        scale=view.scale,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    way = f"{p.lanes}x{p.lanes}" if turned >= 0 else f"1x{p.lanes}"
    return Kernel(
        family="moves",
        format="dense",
        tile=f"{way}-{isa.name}",
        why="read in place by no kernel" + (", squares turned in registers" if turned >= 0 else ""),
        activations=(0, *layer.tensors),
        weights=layer.vectors(),
        build=partial(build_move, p),
        key=p,
        viewed=True,
    )


def build_move(p: Move) -> Any:
    """The PrimFunc: x, tensor operands, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc


class _Writer:
    def __init__(self, p: Move) -> None:
        self.p = p
        self.x = argument("x", p.size)
        self.tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        self.vectors = argument("vectors", p.vectors * p.length) if p.vectors else None
        self.y = argument("y", p.rows * p.length)

    def write(self) -> None:
        p = self.p
        others = [axis for i, axis in enumerate(p.axes) if i != p.turned]
        block = max(min(LINE, p.axes[p.turned][0]) // p.lanes, 1) * p.lanes if p.turned >= 0 else 1
        extent, _, apart = p.axes[p.turned] if p.turned >= 0 else (1, 0, 0)
        outer = product([n for n, _, _ in others])
        worth = p.rows * p.length >= WORTH
        by_outer, by_block = worth and outer >= MANY, covering(extent, block) >= MANY
        with parallel(outer, shared=by_outer) as i:
            x, row = self._place(others, i)
            with parallel(covering(extent, block), shared=worth and not by_outer and by_block) as j:
                first = shifted(j, block, block, extent) if p.turned >= 0 else 0
                columns = covering(p.length, p.lanes)
                with parallel(columns, shared=worth and not by_outer and not by_block) as k:
                    column = shifted(k, p.lanes, p.lanes, p.length)
                    if p.turned < 0:
                        self._finish(self._row(x, column), row, column)
                        return
                    with loop(block // p.lanes) as part:
                        at = first + part * p.lanes
                        self._square(x + at, row + at * apart, apart, column)

    def _place(self, axes: list[tuple[int, int, int]], i: Expr) -> tuple[Expr, Expr]:
        """Where place `i` of these axes, counted through, begins in x, and its row of y."""
        x: Expr = self.p.offset
        row: Expr = 0
        inner = 1
        for depth, (n, stride, rows) in enumerate(reversed(axes)):
            index = i if inner == 1 else i // inner
            index = index if depth == len(axes) - 1 else index % n
            x, row = x + index * stride, row + index * rows
            inner *= n
        return x, row

    def _row(self, x: Expr, column: Expr) -> Expr:
        p = self.p
        if p.stride == 0:
            return splat(self.x[x], p.lanes)
        return self.x[span(x + column * p.stride, p.lanes, p.stride)]

    def _square(self, x: Expr, row: Expr, apart: int, column: Expr) -> None:
        """Rows row, row + apart, ... of y from column on: as many as lanes."""
        p = self.p
        tile = [r[0] for r in registers(p.lanes, 1, p.lanes)]
        for j, register in enumerate(tile):
            put(register, load(self.x, x + (column + j) * p.stride, p.lanes))
        transposed(tile, p.lanes)
        for j, register in enumerate(tile):
            self._finish(register[0], row + j * apart, column)

    def _finish(self, value: Expr, row: Expr, column: Expr) -> None:
        p, lanes = self.p, self.p.lanes
        value = value if p.scale == 1 else value * number(p.scale, lanes)

        def vector(i: int) -> Expr:
            return load(self.vectors, i * p.length + column, lanes)

        at = row * p.length + column
        spot = Spot(row, column, p.length)
        store(self.y, evaluate(p.steps, value, at, vector, self.tensors, lanes, spot), at, lanes)
