"""Depthwise convolutions: one channel at a time, its padded planes in scratch, a tile of rows x vectors in registers.

Neighbouring rows of a tile share what they load: with a 3x3 window, four rows load six rows of the picture, not twelve.
With stride 2 the even elements of two vectors are shuffled into one; only larger strides split the picture (`window`).

Long activations (those with exp) come after a channel is done, over its pixels as one row: small pictures fill vectors so, and
compilers left with both at once finish one sum after the other and spill what the next ones need.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spa.codegen.kernels.epilogue import LONG, evaluate
from spa.codegen.kernels.isa import Isa, isa_of
from spa.codegen.kernels.parallel import everyone, parallel
from spa.codegen.kernels.tile import Columns, columns_of
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    evens,
    fits,
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
from spa.codegen.kernels.window import Planes, Taps, Window, borders, interior, planes_of, taps_of, unsplit, window_of
from spa.codegen.layer import Kernel, Layer, Step
from spa.codegen.target import Target

UNROLLED = 25  # taps: a 5x5 window


@dataclass(frozen=True)
class Depthwise:
    """All that a kernel's code depends on. `multiplier`: outputs per channel; `rows`: of a tile; `strides`: those left
    to the kernel, where `staged` describes the picture without."""

    window: Window
    staged: Window
    strides: tuple[int, int]
    planes: Planes
    taps: tuple[Taps, ...]
    multiplier: int
    rows: int
    columns: Columns
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: int

    @property
    def afterwards(self) -> bool:
        """Whether what follows waits until a channel is done."""
        return any(s.op in LONG for s in self.steps)


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Conv with as many groups as input channels, constant weights, float32."""
    if layer.op != "Conv" or 1 not in layer.consts or layer.output.dtype != "float32":
        return None
    weight = layer.consts[1]
    w = window_of(layer, weight.shape[2:])
    if w is None or w.channels != layer.attributes.get("group", 1) or w.channels == 1 or product(w.kernel) == 1:
        return None
    if len(layer.operands) > 2 and layer.operands[2] is not None and 2 not in layer.consts:
        return None
    isa = isa_of(target)
    stepping = w.strides[1] == 2
    staged = unsplit(w) if stepping else w
    planes = planes_of(staged)
    rows, widest = _tile(isa, w)
    p = Depthwise(
        window=w,
        staged=staged,
        strides=w.strides if stepping else (1, 1),
        planes=planes,
        taps=taps_of(staged, planes, UNROLLED),
        multiplier=weight.shape[0] // w.channels,
        rows=rows,
        columns=columns_of(isa, w.out[1], widest),
        bias=2 in layer.consts,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=len(layer.tensors),
    )
    order = [r * w.kernel[1] + s for group in p.taps for r, s in group.order]
    packed = weight.reshape(weight.shape[0], -1)[:, order].reshape(-1)
    return Kernel(
        family="depthwise",
        format="dense",
        tile=f"{rows}x{widest * p.columns.lanes}-{isa.name}",
        why="one input channel per output",
        activations=(0, *layer.tensors),
        weights=(np.ascontiguousarray(packed, np.float32), *layer.vectors(layer.consts.get(2))),
        build=partial(build_depthwise, p),
        key=p,
    )


def _tile(isa: Isa, w: Window) -> tuple[int, int]:
    """Rows and vectors: enough of them to hide the latency, few enough to leave registers for weights."""
    rows = min(4, w.out[0])
    return rows, max(1, min(isa.registers // 4 // rows, 2))


def build_depthwise(p: Depthwise) -> Any:
    """The PrimFunc: x, tensor operands, then weights [channels][taps], bias, vectors, then y; all flat."""
    w = p.window
    image, total, taps = w.out[0] * w.out[1], w.channels * p.multiplier, product(w.kernel)
    with function() as f:
        x = argument("x", w.batch * w.channels * w.size[0] * w.size[1])
        tensors = [argument(f"t{i}", w.batch * total * image) for i in range(p.tensors)]
        weights = argument("w", total * taps)
        bias = argument("bias", total) if p.bias else None
        vectors = argument("vectors", p.vectors * total) if p.vectors else None
        y = argument("y", w.batch * total * image)
        with everyone():
            staged = None if p.staged.dense else scratch(p.planes.channel)
            if staged is not None:
                borders(p.staged, p.planes, staged, 1, p.columns.full)
            sums = scratch(image) if p.afterwards else None
            with loop(w.batch) as n, parallel(w.channels) as c:
                _channel(p, n, c, x, staged, sums, weights, bias, vectors, tensors, y)
    return f.primfunc


def _channel(
    p: Depthwise,
    n: Expr,
    c: Expr,
    x: Any,
    staged: Any,
    sums: Any,
    weights: Any,
    bias: Any,
    vectors: Any,
    tensors: list[Any],
    y: Any,
) -> None:
    """The outputs of one channel of one picture."""
    w, lanes = p.window, p.columns.lanes
    image, total, taps = w.out[0] * w.out[1], w.channels * p.multiplier, product(w.kernel)
    base = (n * w.channels + c) * (w.size[0] * w.size[1])
    if staged is not None:
        interior(p.staged, p.planes, x, base, staged, 1, p.columns.full)
    source, start = (x, base) if staged is None else (staged, 0)
    with loop(p.multiplier) as q:
        channel = c * p.multiplier + q
        first = (n * total + channel) * image

        def finish(value: Expr, at: Expr, lanes: int) -> None:
            def vector(k: int) -> Expr:
                assert vectors is not None
                return splat(vectors[k * total + channel], lanes)

            store(y, evaluate(p.steps, value, first + at, vector, tensors, lanes), first + at, lanes)

        with loop(covering(w.out[0], p.rows)) as i:
            row = shifted(i, p.rows, p.rows, w.out[0])
            for width, starts in p.columns.walk():
                with starts as (at, _):
                    tile = registers(p.rows, width, lanes)
                    for r in range(p.rows):
                        for v in range(width):
                            initial = splat(bias[channel], lanes) if bias is not None else number(0, lanes)
                            put(tile[r][v], initial)
                    place = start + row * (p.strides[0] * p.planes.pitch)
                    _accumulate(p, tile, source, place, weights, channel * taps, at)
                    for r in range(p.rows):
                        for v in range(width):
                            to = (row + r) * w.out[1] + at[v]
                            if sums is None:
                                finish(tile[r][v][0], to, lanes)
                            else:
                                store(sums, tile[r][v][0], to, lanes)
        if sums is not None:
            full = fits(p.columns.full, image)
            with loop(covering(image, full)) as i:
                to = shifted(i, full, full, image)
                finish(load(sums, to, full), to, full)


def _accumulate(p: Depthwise, tile: Any, source: Any, place: Expr, weights: Any, first: Expr, at: list[Expr]) -> None:
    lanes, done = p.columns.lanes, 0
    for group in p.taps:
        with loop(group.count) as i:
            for t, offset in enumerate(group.offsets):
                weight = splat(weights[first + done + i * len(group.offsets) + t], lanes)
                for r, row in enumerate(tile):
                    for v, register in enumerate(row):
                        where = place + (r * p.strides[0]) * p.planes.pitch + i * group.step + offset
                        where += at[v] * p.strides[1]
                        value = evens(source, where, lanes) if p.strides[1] == 2 else load(source, where, lanes)
                        put(register, weight * value + register[0])
        done += group.count * len(group.offsets)
