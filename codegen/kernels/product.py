"""The product behind convolutions: Y[m, n] = sum over k of W[m, k] X[k, n], pixels n in vector lanes, NCHW as it lies.

A tile of `rows` output channels x `columns` vectors of pixels stays in registers while k runs: each vector of X that is
loaded serves all rows, each weight all columns. k runs over input channels and taps. Three ways to the pixels:

- `direct`: they are read where they lie (in the input, or in its phases, see `window`), row by row of the output;
- `packed`: the tile's pixels of all k are first copied one behind the other, since rows of X lie as far apart as the
  picture is large, which neither caches nor their prefetchers like, and since taps cost arithmetic in addresses;
- `flat`: rows of the phases are taken as one long row, so that small pictures fill vectors. What falls between the
  rows is computed too, and left behind when the block's result is copied to its place.

Weights: dense, W packed [block][k][rows]; or sparse blocks of `rows` x 1: those of block b are e = ip[b] .. ip[b + 1],
with their `rows` values at va[e] and the place of their k in X at ix[e].
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from spa.codegen.kernels.epilogue import evaluate
from spa.codegen.kernels.parallel import MANY, parallel
from spa.codegen.kernels.tile import Columns
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    fetch,
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
from spa.codegen.kernels.window import Planes, Taps, Window, stage
from spa.codegen.layer import Step

Way = Literal["direct", "packed", "flat"]


@dataclass(frozen=True)
class Product:
    """All that a kernel's code depends on. `m` output channels per group in `blocks` blocks of `rows`; `columns`: the
    vectors of a row of pixels; `entries`: of the sparse weights, 0 if dense, of which only the `bucket` matters to the
    code; `ahead`: how many weights before their use they are asked for; `vectors`: rows of channel operands."""

    window: Window
    planes: Planes
    taps: tuple[Taps, ...]
    groups: int
    m: int
    rows: int
    columns: Columns
    way: Way
    blocks_outside: bool
    ahead: int
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: int
    bucket: int
    entries: int = field(compare=False)

    @property
    def blocks(self) -> int:
        return covering(self.m, self.rows)

    @property
    def k(self) -> int:
        return self.window.channels // self.groups * product(self.window.kernel)

    @property
    def even(self) -> bool:
        """Every output is computed once: neither blocks nor vectors of pixels are shifted back."""
        width = self.window.out[1]
        pixels = width % fits(self.columns.full, width) == 0 if self.way == "flat" else self.columns.even
        return pixels and self.m % self.rows == 0

    @property
    def pitch(self) -> int:
        """Elements from one k to the next in a packed tile."""
        return self.columns.widest * self.columns.lanes


class _Writer:
    """The kernel while it is written: its buffers, and where in the loops it stands."""

    def __init__(self, p: Product) -> None:
        self.p, w = p, p.window
        self.image = w.out[0] * w.out[1]
        total, size = p.groups * p.m, w.batch * p.groups * p.m * self.image
        self.x = argument("x", w.batch * w.channels * w.size[0] * w.size[1])
        self.tensors = [argument(f"t{i}", size) for i in range(p.tensors)]
        if p.entries:
            self.ip = argument("ip", p.groups * p.blocks + 1, "int32")
            self.ix = argument("ix", p.entries, "int32")
            self.weights = argument("va", p.entries * p.rows)
        else:
            self.weights = argument("w", p.groups * p.blocks * p.k * p.rows)
        self.bias = argument("bias", total) if p.bias else None
        self.vectors = argument("vectors", p.vectors * total) if p.vectors else None
        self.y = argument("y", size)

    def write(self) -> None:
        p, w = self.p, self.p.window
        staged = None if w.dense else scratch(w.channels * p.planes.channel)
        self.packed = self.flat = None
        with loop(w.batch) as n:
            self.n, self.source, self.base = n, self.x, n * (w.channels * w.size[0] * w.size[1])
            if staged is not None:
                stage(w, p.planes, self.x, self.base, staged, w.channels, p.columns.full)
                self.source, self.base = staged, 0
            with loop(p.groups) as g:
                self.g = g
                if p.way == "flat" or p.blocks_outside:
                    self._blocks_outside()
                else:
                    self._pixels_outside()

    def _rows(self) -> int:
        """Rows of pixels that are walked one by one."""
        return 1 if self.p.way == "flat" or self._one_row() else self.p.window.out[0]

    def _one_row(self) -> bool:
        return self.p.planes.pitch == self.p.window.out[1]

    def _blocks_outside(self) -> None:
        with self._shared_blocks() as b:
            if self.p.way == "flat":
                self.flat = scratch(self.p.rows * self.p.columns.padded)
            with loop(self._rows()) as row:
                for columns, starts in self.p.columns.walk():
                    with starts as (at, _):
                        self._tile(b, row, columns, at)
            if self.flat is not None:
                self._leave(b)

    def _pixels_outside(self) -> None:
        """Threads share the rows, or the tiles of one row, where there are many; else the blocks."""
        rows, tiles = self._rows(), len(self.p.columns.tiles())
        with parallel(rows, shared=rows >= MANY) as row:
            for columns, starts in self.p.columns.walk(shared=rows < MANY <= tiles):
                with starts as (at, _):
                    if self.p.way == "packed":
                        self.packed = scratch(self.p.k * self.p.pitch)
                        self._pack(row, columns, at)
                    with self._shared_blocks(max(rows, tiles) < MANY) as b:
                        self._tile(b, row, columns, at)

    def _shared_blocks(self, shared: bool = True) -> AbstractContextManager[Expr]:
        return parallel(self.p.blocks, "ip" if self.p.entries and self.p.groups == 1 else None, shared)

    def _channel(self) -> Expr:
        """Where the group's first channel begins."""
        return self.base + self.g * (self.p.window.channels // self.p.groups * self.p.planes.channel)

    def _pack(self, row: Expr, columns: int, at: list[Expr]) -> None:
        """The tile's pixels of every k, one k behind the other."""
        p, lanes = self.p, self.p.columns.lanes

        def copy(k: Expr, place: Expr) -> None:
            for v in range(columns):
                store(self.packed, load(self.source, place + at[v], lanes), k * p.pitch + v * lanes, lanes)

        self._each_k(row, copy, shared=True)

    def _each_k(self, row: Expr, body: Callable[[Expr, Expr], None], shared: bool = False) -> None:
        """Loops over channels and taps: `body(k, where its row of pixels begins)`. `shared`: among threads."""
        p, taps = self.p, product(self.p.window.kernel)
        with parallel(p.window.channels // p.groups, shared=shared) as c:
            place = self._channel() + c * p.planes.channel + row * p.planes.pitch
            done = 0
            for group in p.taps:
                with loop(group.count) as i:
                    for t, offset in enumerate(group.offsets):
                        body(c * taps + done + i * len(group.offsets) + t, place + i * group.step + offset)
                done += group.count * len(group.offsets)

    def _first(self, b: Expr) -> Expr:
        """The first channel of a block, within its group."""
        return shifted(b, self.p.rows, self.p.rows, self.p.m)

    def _tile(self, b: Expr, row: Expr, columns: int, at: list[Expr]) -> None:
        p, lanes = self.p, self.p.columns.lanes
        tile = registers(p.rows, columns, lanes)
        m = self.g * p.m + self._first(b)
        for r in range(p.rows):
            for v in range(columns):
                put(tile[r][v], splat(self.bias[m + r], lanes) if self.bias is not None else number(0, lanes))
        if p.entries:
            self._sparse(tile, b, row, columns, at)
        else:
            self._dense(tile, b, row, columns, at)
        for r in range(p.rows):
            for v in range(columns):
                if self.flat is not None:
                    store(self.flat, tile[r][v][0], r * p.columns.padded + at[v], lanes)
                else:
                    self._finish(tile[r][v][0], m + r, row * p.window.out[1] + at[v], lanes)

    def _step(self, tile: Any, weight: Expr, x: Any, where: list[Expr]) -> None:
        lanes = self.p.columns.lanes
        if self.p.ahead:
            fetch(self.weights, weight + self.p.ahead)
        for r, row in enumerate(tile):
            w = splat(self.weights[weight + r], lanes)
            for v, register in enumerate(row):
                put(register, w * load(x, where[v], lanes) + register[0])

    def _dense(self, tile: Any, b: Expr, row: Expr, columns: int, at: list[Expr]) -> None:
        p, lanes = self.p, self.p.columns.lanes
        first = (self.g * p.blocks + b) * p.k
        if self.packed is not None:
            with loop(p.k) as k:
                where = [k * p.pitch + v * lanes for v in range(columns)]
                self._step(tile, (first + k) * p.rows, self.packed, where)
            return

        def step(k: Expr, place: Expr) -> None:
            self._step(tile, (first + k) * p.rows, self.source, [place + at[v] for v in range(columns)])

        self._each_k(row, step)

    def _sparse(self, tile: Any, b: Expr, row: Expr, columns: int, at: list[Expr]) -> None:
        p, lanes = self.p, self.p.columns.lanes
        block = self.g * p.blocks + b
        begin = self.ip[block]
        with loop(self.ip[block + 1] - begin, begin) as e:
            if self.packed is not None:
                where = [self.ix[e] + v * lanes for v in range(columns)]
                self._step(tile, e * p.rows, self.packed, where)
            else:
                place = self._channel() + row * p.planes.pitch
                self._step(tile, e * p.rows, self.source, [place + self.ix[e] + at[v] for v in range(columns)])

    def _leave(self, b: Expr) -> None:
        """The block's result, without what fell between the rows, to its place."""
        p, (height, width) = self.p, self.p.window.out
        lanes = fits(p.columns.full, width)
        m = self.g * p.m + self._first(b)
        with loop(p.rows) as r, loop(height) as row, loop(covering(width, lanes)) as i:
            j = shifted(i, lanes, lanes, width)
            value = load(self.flat, r * p.columns.padded + row * p.planes.pitch + j, lanes)
            self._finish(value, m + r, row * width + j, lanes)

    def _finish(self, value: Expr, channel: Expr, pixel: Expr, lanes: int) -> None:
        p = self.p
        total = p.groups * p.m
        at = (self.n * total + channel) * self.image + pixel

        def vector(i: int) -> Expr:
            assert self.vectors is not None
            return splat(self.vectors[i * total + channel], lanes)

        store(self.y, evaluate(p.steps, value, at, vector, self.tensors, lanes), at, lanes)


def build_product(p: Product) -> Any:
    """The PrimFunc: x, tensor operands, then w or (ip, ix, va), bias, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
