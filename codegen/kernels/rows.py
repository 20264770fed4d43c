"""Along rows: softmax, normalisation, means and sums over the last axes, a few rows at a time.

Each row is read as vectors, the last of them shorter where the row is no multiple: first what is to be known of the
whole row (the greatest, the mean, the sum of squares), then its elements once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from spa.codegen.kernels.epilogue import Spot, evaluate, exp, overwritten, sizes_of, splits
from spa.codegen.kernels.isa import isa_of
from spa.codegen.kernels.parallel import WORTH, parallel
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    fits,
    fold,
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
from spa.codegen.tvm_api import tirx

Kind = Literal["softmax", "layer", "rms", "mean", "sum", "max", "min"]
TOGETHER = 4  # rows: their sums do not wait for each other


@dataclass(frozen=True)
class Rows:
    """All that a kernel's code depends on: `rows` rows of `length`. `scale`, `shift`: whether there are factors and
    summands (and vectors for the steps), one per element of a row or, with `per_row`, one per row: those of row i % `per_row`."""

    kind: Kind
    rows: int
    length: int
    lanes: int
    epsilon: float
    scale: bool
    shift: bool
    per_row: int
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]  # their elements

    @property
    def reduces(self) -> bool:
        return self.kind in ("mean", "sum", "max", "min")


REDUCTIONS: dict[str, Kind] = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max", "ReduceMin": "min"}
POOLS: dict[str, Kind] = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}
WINDOWS: dict[str, Kind] = {"AveragePool": "mean", "MaxPool": "max"}  # as large as the picture


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Softmax and LayerNormalization over the last axes, InstanceNormalization, reductions of the last axes, pools of the
    whole picture; float32."""
    x = layer.inputs[0] if layer.inputs else None
    if x is None or x.dtype != "float32" or layer.output.dtype != "float32" or 0 in layer.consts:
        return None
    found = _kind(layer, x.shape)
    if found is None:
        return None
    kind, length, weights, per_row = found
    rows = product(x.shape) // length
    if kind in ("mean", "sum", "max", "min") and layer.epilogue:
        return None
    if not splits(layer.epilogue, length):
        return None
    isa = isa_of(target)
    p = Rows(
        kind=kind,
        rows=rows,
        length=length,
        lanes=isa.lanes,
        epsilon=float(layer.attributes.get("epsilon", 1e-5)),
        scale=weights[0] is not None,
        shift=weights[1] is not None,
        per_row=per_row,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    return Kernel(
        family="rows",
        format="dense",
        tile=f"{min(rows, TOGETHER)}x{isa.lanes}-{isa.name}",
        why=f"{kind} of rows of {length}",
        activations=(0, *layer.tensors),
        weights=layer.vectors(*weights),
        build=partial(build_rows, p),
        key=p,
        in_place=_in_place(p, layer),
    )


def _in_place(p: Rows, layer: Layer) -> tuple[int, ...]:
    """The rows themselves, of which nothing is read again once it is written; other operands too where nothing is written
    before the end (exponentials are)."""
    if p.reduces or layer.strides or p.rows % min(TOGETHER, p.rows):
        return ()
    return (0, *(overwritten(layer, (0, *layer.tensors), True) if p.kind != "softmax" else ()))


def _kind(layer: Layer, shape: tuple[int, ...]) -> tuple[Kind, int, list[Array | None], int] | None:
    """What is done, the length of a row, factors and summands, and how many rows have factors of their own."""
    get, rank, none = layer.attributes, len(shape), [None, None]
    if layer.op == "Softmax":
        return ("softmax", shape[-1], [*none], 0) if get.get("axis", -1) % rank == rank - 1 else None
    if layer.op in ("LayerNormalization", "RMSNormalization"):
        axis = get.get("axis", -1) % rank
        length = product(shape[axis:])
        if any(i not in layer.consts for i, t in enumerate(layer.operands) if i and t is not None):
            return None
        if get.get("stash_type", 1) != 1 or any(layer.consts[i].shape != shape[axis:] for i in layer.consts):
            return None
        weights = [layer.consts.get(1), layer.consts.get(2)]
        kind: Kind = "layer" if layer.op == "LayerNormalization" else "rms"
        return kind, length, [None if w is None else w.reshape(-1) for w in weights], 0
    if layer.op == "InstanceNormalization":
        if not {1, 2} <= layer.consts.keys():
            return None
        return "layer", product(shape[2:]), [layer.consts[1], layer.consts[2]], shape[1]
    if layer.op in POOLS:
        return POOLS[layer.op], product(shape[2:]), [*none], 0
    if layer.op in WINDOWS:
        whole = tuple(get["kernel_shape"]) == shape[2:] and not any(get.get("pads", ()))
        return (WINDOWS[layer.op], product(shape[2:]), [*none], 0) if whole and len(get["kernel_shape"]) < 4 else None
    if layer.op in REDUCTIONS:
        axes = get.get("axes") if get.get("axes") is not None else layer.consts.get(1)
        if axes is None:
            return None
        reduced = sorted(int(a) % rank for a in np.reshape(axes, -1))
        if not reduced or reduced != list(range(rank - len(reduced), rank)):
            return None
        return REDUCTIONS[layer.op], product(shape[reduced[0] :]), [*none], 0
    return None


class _Writer:
    def __init__(self, p: Rows) -> None:
        self.p = p
        size = p.rows * p.length
        self.x = argument("x", size)
        self.tensors = [argument(f"t{i}", n) for i, n in enumerate(p.tensors)]
        weights = p.per_row or p.length
        self.scale = argument("scale", weights) if p.scale else None
        self.shift = argument("shift", weights) if p.shift else None
        self.vectors = argument("vectors", p.vectors * weights) if p.vectors else None
        self.y = argument("y", p.rows if p.reduces else size)

    def write(self) -> None:
        p = self.p
        together = min(TOGETHER, p.rows)
        with parallel(covering(p.rows, together), shared=p.rows * p.length >= WORTH) as i:
            first = shifted(i, together, together, p.rows)
            rows = [first + r for r in range(together)]
            if p.reduces:
                self._reduce(rows)
            elif p.kind == "softmax":
                self._softmax(rows)
            else:
                self._normalise(rows)

    def _pieces(self) -> Iterator[tuple[int, AbstractContextManager[Expr]]]:
        """The row as vectors: (lanes, a loop over where they begin). No element twice."""
        p, begin, lanes = self.p, 0, self.p.lanes
        while begin < p.length:
            lanes = fits(lanes, p.length - begin)
            count = (p.length - begin) // lanes
            yield lanes, _starts(begin, lanes, count)
            begin += count * lanes

    def _each(self, rows: list[Expr], body: Callable[[int, Expr, Expr, int], None]) -> None:
        """body(number of the row, row, column, lanes)."""
        for lanes, starts in self._pieces():
            with starts as column:
                for r, row in enumerate(rows):
                    body(r, row, column, lanes)

    def _load(self, row: Expr, column: Expr, lanes: int) -> Expr:
        return load(self.x, row * self.p.length + column, lanes)

    def _collect(
        self,
        rows: list[Expr],
        start: float,
        combine: Callable[[Expr, Expr], Expr],
        value: Callable[[int, Expr, Expr, int], Expr],
    ) -> list[Any]:
        """A register per row with `combine` over the values of all its elements."""
        widths = [lanes for lanes, _ in self._pieces()]
        partial = {lanes: [registers(1, 1, lanes)[0][0] for _ in rows] for lanes in widths}
        for lanes, column in partial.items():
            for register in column:
                put(register, number(start, lanes))

        def step(r: int, row: Expr, column: Expr, lanes: int) -> None:
            register = partial[lanes][r]
            put(register, combine(register[0], value(r, row, column, lanes)))

        self._each(rows, step)
        totals = []
        for r in range(len(rows)):
            total = registers(1, 1, 1)[0][0]
            put(total, number(start, 1))
            for lanes, column in partial.items():
                put(total, combine(total[0], fold(column[r][0], lanes, combine)))
            totals.append(total)
        return totals

    def _reduce(self, rows: list[Expr]) -> None:
        p = self.p
        start, combine = {
            "max": (-3.4028234e38, tirx.Max),
            "min": (3.4028234e38, tirx.Min),
        }.get(p.kind, (0.0, _add))
        totals = self._collect(rows, start, combine, lambda r, row, column, lanes: self._load(row, column, lanes))
        for row, total in zip(rows, totals, strict=True):
            value = total[0] * number(1 / p.length, 1) if p.kind == "mean" else total[0]
            store(self.y, value, row, 1)

    def _softmax(self, rows: list[Expr]) -> None:
        """exp(x - max) / sum, the exponentials kept in y meanwhile."""
        p = self.p
        top = self._collect(rows, -3.4028234e38, tirx.Max, lambda r, row, at, lanes: self._load(row, at, lanes))

        def kept(r: int, row: Expr, column: Expr, lanes: int) -> Expr:
            at = row * p.length + column
            store(self.y, exp(self._load(row, column, lanes) - splat(top[r][0], lanes), lanes), at, lanes)
            return load(self.y, at, lanes)

        totals = self._collect(rows, 0, _add, kept)
        for total in totals:
            put(total, number(1, 1) / total[0])

        def finish(r: int, row: Expr, column: Expr, lanes: int) -> None:
            at = row * p.length + column
            self._finish(load(self.y, at, lanes) * splat(totals[r][0], lanes), row, column, lanes)

        self._each(rows, finish)

    def _normalise(self, rows: list[Expr]) -> None:
        """(x - mean) / sqrt(mean of squares + epsilon) * scale + shift; `rms`: without the mean."""
        p, share = self.p, number(1 / self.p.length, 1)
        means: list[Any] = []
        if p.kind == "layer":
            means = self._collect(rows, 0, _add, lambda r, row, column, lanes: self._load(row, column, lanes))
            for mean in means:
                put(mean, mean[0] * share)

        def centred(r: int, row: Expr, column: Expr, lanes: int) -> Expr:
            value = self._load(row, column, lanes)
            return value - splat(means[r][0], lanes) if means else value

        def square(r: int, row: Expr, column: Expr, lanes: int) -> Expr:
            value = centred(r, row, column, lanes)
            return value * value

        factors = self._collect(rows, 0, _add, square)
        for factor in factors:
            put(factor, number(1, 1) / tirx.sqrt(factor[0] * share + number(p.epsilon, 1)))

        def finish(r: int, row: Expr, column: Expr, lanes: int) -> None:
            value = centred(r, row, column, lanes) * splat(factors[r][0], lanes)
            for weights, scales in ((self.scale, True), (self.shift, False)):
                if weights is not None:
                    own = splat(weights[row % p.per_row], lanes) if p.per_row else load(weights, column, lanes)
                    value = value * own if scales else value + own
            self._finish(value, row, column, lanes)

        self._each(rows, finish)

    def _finish(self, value: Expr, row: Expr, column: Expr, lanes: int) -> None:
        p = self.p
        at = row * p.length + column

        def vector(i: int) -> Expr:
            if p.per_row:
                assert self.vectors is not None
                return splat(self.vectors[i * p.per_row + row % p.per_row], lanes)
            return load(self.vectors, i * p.length + column, lanes)

        spot = Spot(row, column, p.length)
        store(self.y, evaluate(p.steps, value, at, vector, self.tensors, lanes, spot), at, lanes)


@contextmanager
def _starts(begin: int, lanes: int, count: int) -> Iterator[Expr]:
    with loop(count) as i:
        yield begin + i * lanes


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def build_rows(p: Rows) -> Any:
    """The PrimFunc: x, tensor operands, then scale, shift, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
