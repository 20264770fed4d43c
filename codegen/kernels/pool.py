"""Windowed pooling: one channel at a time, its padded picture in scratch, a tile of rows x vectors of pixels in registers.

Large windows are taken in two steps, along rows and then along columns: kh + kw reads for each pixel instead of
kh * kw. An average is a sum times one over the elements counted; how many those are where the window leaves the picture
is a product of a number per row and one per column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from spa.codegen.kernels.epilogue import evaluate
from spa.codegen.kernels.isa import isa_of
from spa.codegen.kernels.parallel import WORTH, everyone, parallel
from spa.codegen.kernels.tile import Columns, columns_of
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    evens,
    function,
    load,
    loop,
    number,
    product,
    put,
    registers,
    scratch,
    shifted,
    splat,
    store,
)
from spa.codegen.kernels.window import Planes, Window, borders, interior, planes_of, tap_offset, unsplit, window_of
from spa.codegen.layer import Array, Kernel, Layer, Step
from spa.codegen.target import Target
from spa.codegen.tvm_api import tirx

Kind = Literal["max", "mean"]
POOLS: dict[str, Kind] = {"MaxPool": "max", "AveragePool": "mean"}
LOWEST = -3.4028234e38
SMALL = 9  # taps: up to a 3x3 window all at once
LARGEST = 49  # taps that are spelled out where two steps are none


@dataclass(frozen=True)
class Pool:
    """All that a kernel's code depends on. `staged`: the window as it lies in scratch, where `strides` are left to the
    kernel. `factor`: of every sum; 0 if rows and columns have factors of their own. `rows`: of a tile."""

    kind: Kind
    window: Window
    staged: Window
    strides: tuple[int, int]
    planes: Planes
    factor: float
    rows: int
    columns: Columns
    steps: tuple[Step, ...]
    vectors: int
    tensors: int

    @property
    def start(self) -> float:
        return LOWEST if self.kind == "max" else 0.0

    @property
    def two_steps(self) -> bool:
        return product(self.window.kernel) > SMALL and min(self.window.kernel) > 1 and self.staged.strides == (1, 1)

    def combine(self, a: Expr, b: Expr) -> Expr:
        return tirx.Max(a, b) if self.kind == "max" else a + b


def offer(layer: Layer, target: Target) -> Kernel | None:
    """MaxPool and AveragePool of one- and two-dimensional pictures, float32, without indices."""
    if layer.op not in POOLS or layer.output.dtype != "float32" or layer.attributes.get("storage_order", 0):
        return None
    w = window_of(layer, tuple(layer.attributes["kernel_shape"]))
    if w is None or 0 in layer.consts or w.kernel == w.size:  # of a whole picture: see `rows`
        return None
    isa, kind = isa_of(target), POOLS[layer.op]
    stepping = w.strides[1] <= 2
    staged = unsplit(w) if stepping else w
    down, across = _factors(layer, w) if kind == "mean" else (np.ones(1), np.ones(1))
    even = bool((down == down[0]).all() and (across == across[0]).all())
    tile_rows = min(4, w.out[0])
    p = Pool(
        kind=kind,
        window=w,
        staged=staged,
        strides=w.strides if stepping else (1, 1),
        planes=planes_of(staged),
        factor=float(down[0] * across[0]) if even else 0.0,
        rows=tile_rows,
        columns=columns_of(isa, w.out[1], max(1, min(isa.registers // 3 // tile_rows, 2))),
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=len(layer.tensors),
    )
    if product(w.kernel) > LARGEST and not p.two_steps and min(w.kernel) > 1:
        return None
    return Kernel(
        family="pool",
        format="dense",
        tile=f"{tile_rows}x{p.columns.widest * p.columns.lanes}-{isa.name}",
        why=f"{kind} of {w.kernel[0]}x{w.kernel[1]}" + (", rows then columns" if p.two_steps else ""),
        activations=(0, *layer.tensors),
        weights=layer.vectors(*(() if even else (down, across))),
        build=partial(build_pool, p),
        key=p,
    )


def _factors(layer: Layer, w: Window) -> tuple[Array, Array]:
    """One over the elements that count, for each row and each column of the output."""
    rank = len(layer.attributes["kernel_shape"])
    auto = layer.attributes.get("auto_pad", b"NOTSET") or b"NOTSET"
    include = bool(layer.attributes.get("count_include_pad", 0))
    given = [int(n) for n in layer.attributes.get("pads") or [0] * 2 * rank][rank:]
    ends = [0] * (2 - rank) + (given if auto == b"NOTSET" else [0] * rank)
    factors = []
    for axis in (0, 1):
        n, pad, step = w.size[axis], w.pads[axis], w.strides[axis]
        taps = np.arange(w.kernel[axis]) * w.dilations[axis]
        places = np.arange(w.out[axis])[:, None] * step - pad + taps
        end = ends[axis] if auto in (b"NOTSET", b"VALID") else int(places.max()) + 1 - n
        inside = (places < n + end) if include else (places >= 0) & (places < n)
        factors.append(1 / np.maximum(inside.sum(axis=1), 1))
    return factors[0], factors[1]


def build_pool(p: Pool) -> Any:
    """The PrimFunc: x, tensor operands, then factors of rows and of columns, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc


class _Writer:
    def __init__(self, p: Pool) -> None:
        w = p.window
        self.p, self.lanes = p, p.columns.lanes
        self.channels, self.image = w.batch * w.channels, w.out[0] * w.out[1]
        self.x = argument("x", self.channels * w.size[0] * w.size[1])
        self.tensors = [argument(f"t{i}", self.channels * self.image) for i in range(p.tensors)]
        self.down = None if p.factor else argument("down", w.out[0])
        self.across = None if p.factor else argument("across", w.out[1])
        self.vectors = argument("vectors", p.vectors * w.channels) if p.vectors else None
        self.y = argument("y", self.channels * self.image)

    def write(self) -> None:
        p, w = self.p, self.p.window
        height = p.planes.rows
        with everyone():
            staged = None if p.staged.dense else scratch(p.planes.channel)
            lines = scratch(height * w.out[1]) if p.two_steps else None
            if staged is not None:
                borders(p.staged, p.planes, staged, 1, p.columns.full, p.start)
            with parallel(self.channels, shared=self.channels * w.size[0] * w.size[1] >= WORTH) as c:
                base = c * (w.size[0] * w.size[1])
                if staged is not None:
                    interior(p.staged, p.planes, self.x, base, staged, 1, p.columns.full)
                source, start = (self.x, base) if staged is None else (staged, 0)
                if lines is not None:
                    across = [s * w.dilations[1] for s in range(w.kernel[1])]
                    self._combine(source, start, height, (p.planes.pitch, p.strides[1]), across, lines, None)
                    down = [r * w.dilations[0] * w.out[1] for r in range(w.kernel[0])]
                    self._combine(lines, 0, w.out[0], (p.strides[0] * w.out[1], 1), down, self.y, c)
                    return
                taps = [tap_offset(p.staged, p.planes, r, s) for r in range(w.kernel[0]) for s in range(w.kernel[1])]
                steps = (p.strides[0] * p.planes.pitch, p.strides[1])
                self._combine(source, start, w.out[0], steps, taps, self.y, c)

    def _combine(
        self, source: Any, start: Expr, height: int, steps: tuple[int, int], taps: list[int], to: Any, c: Expr | None
    ) -> None:
        """`height` rows of the output's columns: of each pixel its taps. `steps`: elements of `source` from one row,
        and one column, to the next; `c`: the channel that is finished, or None for what is only half of it."""
        p, columns = self.p, self.p.columns
        rows = min(p.rows, height)
        with loop(covering(height, rows)) as i:
            row = shifted(i, rows, rows, height)
            for width, starts in columns.walk():
                with starts as (at, _):
                    tile = registers(rows, width, self.lanes)
                    for t, tap in enumerate(taps):
                        for r in range(rows):
                            for v in range(width):
                                place = start + (row + r) * steps[0] + at[v] * steps[1] + tap
                                read = evens if steps[1] == 2 else load
                                value, register = read(source, place, self.lanes), tile[r][v]
                                put(register, value if t == 0 else p.combine(register[0], value))
                    for r in range(rows):
                        for v in range(width):
                            self._store(tile[r][v][0], row + r, at[v], to, c)

    def _store(self, value: Expr, row: Expr, column: Expr, to: Any, c: Expr | None) -> None:
        p, w, lanes = self.p, self.p.window, self.lanes
        at = row * w.out[1] + column
        if c is None:
            store(to, value, at, lanes)
            return
        if self.down is not None:
            value = value * splat(self.down[row], lanes) * load(self.across, column, lanes)
        elif p.factor != 1:
            value = value * number(p.factor, lanes)

        def vector(k: int) -> Expr:
            assert self.vectors is not None
            return splat(self.vectors[k * w.channels + c % w.channels], lanes)

        at = c * self.image + at
        store(to, evaluate(p.steps, value, at, vector, self.tensors, lanes), at, lanes)
