"""Where the activations of a product come from: X[k, n] as tiles of `depth` x `width` in shared memory.

    Rows    X[n, k]: rows of features (Gemm, MatMul)
    Planes  pixels of NCHW pictures (Conv): n = (picture, row, column), k = (tap, channel), channels innermost; gathered,
            zero outside the picture, so that no copy of the picture is made (implicit GEMM)
    Windows the same of NHWC pictures, see `windows`

A tile takes two steps, so that it can travel while another is computed: `fetch` (cp.async, or loads into registers) and
`place` (registers to shared memory, converted). Its first k is any expression, which is how block-sparse weights skip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spa.codegen.cuda.moving import Mover, Place, Registers, Seen, Tiling, bounds, inside
from spa.codegen.cuda.windows import WindowMover, Windows
from spa.codegen.cuda.words import NARROW, both, copy_async, named, only, unrolled
from spa.codegen.kernels.vector import Expr, build, fits, product
from spa.codegen.kernels.window import Window
from spa.codegen.tvm_api import tirx

__all__ = [
    "Mover",
    "Place",
    "Planes",
    "Registers",
    "Rows",
    "Source",
    "Tiling",
    "Windows",
    "at_once",
    "bounds",
    "inside",
    "mover",
]


@dataclass(frozen=True)
class Rows:
    """X [n, k] of `dtype`. `groups` is 1."""

    n: int
    k: int
    dtype: str

    @property
    def size(self) -> int:
        return self.n * self.k

    @property
    def k_last(self) -> bool:
        """Neighbours in memory differ in k."""
        return True


@dataclass(frozen=True)
class Planes(Seen):
    """Pictures [batch, groups * channels, height, width] seen through a window; k = taps * channels, of one group."""

    window: Window
    groups: int
    dtype: str

    @property
    def k_last(self) -> bool:
        return False

    @property
    def pointwise(self) -> bool:
        w = self.window
        return product(w.kernel) == 1 and w.strides == (1, 1) and w.pads == (0, 0) and w.size == w.out


Source = Rows | Planes | Windows


def at_once(source: Source) -> int:
    """Activations that a thread fetches with one address."""
    if isinstance(source, Planes):
        return fits(8 if source.dtype in NARROW else 4, source.pixels & -source.pixels) if source.pointwise else 1
    return fits(8 if source.dtype in NARROW else 4, source.k & -source.k)


def mover(source: Source, x: Any, t: Tiling, shared: Any, place: Place, k_last: bool) -> Mover:
    """`place` says where an element of a tile belongs in its stage; `k_last`: neighbours there differ in k."""
    if isinstance(source, Windows):
        return WindowMover(source, x, t, shared, place)
    if isinstance(source, Planes):
        lanes = fits(8, source.pixels & -source.pixels)
        if source.pointwise and lanes > 1 and source.dtype in NARROW and str(shared.dtype) == source.dtype:
            return _AsyncPixelMover(source, x, t, shared, place, lanes)
        return _PlaneMover(source, x, t, shared, place)
    if source.dtype in NARROW and str(shared.dtype) == source.dtype and source.k % 8 == 0 and k_last:
        return _AsyncRowMover(source, x, t, shared, place)
    return _RowMover(source, x, t, shared, place, k_last)


class _AsyncRowMover:
    """Halves, eight at a time, without a stop in registers."""

    def __init__(self, source: Rows, x: Any, t: Tiling, shared: Any, place: Place) -> None:
        self.source, self.x, self.t, self.shared, self.place_of = source, x, t, shared, place

    def fetch(self, k: Expr, to: Expr) -> None:
        t, s = self.t, self.source
        per_row = t.depth // 8
        with unrolled(-(-per_row * t.width // t.threads)) as i:
            unit = i * t.threads + t.thread
            row, kk = unit // per_row, unit % per_row * 8
            n = t.first + row
            condition = both(inside(n, s.n, t.width), inside(k + kk, s.k, t.depth))
            assert per_row * t.width % t.threads == 0
            copy_async(self.shared, to + self.place_of(kk, row), self.x, n * s.k + k + kk, condition)

    def place(self, to: Expr) -> None: ...


class _RowMover:
    def __init__(self, source: Rows, x: Any, t: Tiling, shared: Any, place: Place, k_last: bool) -> None:
        self.source, self.t, self.place_of, self.k_last = source, t, place, k_last
        lanes = 4 if source.k % 4 == 0 and source.dtype not in NARROW else 1
        self.per_row = t.depth // lanes
        self.r = Registers(x, t.threads, t.thread, shared, lanes, self.per_row * t.width, source.dtype)

    def _at(self, i: Expr) -> tuple[Expr, Expr]:
        unit = self.r.unit(i)
        return unit % self.per_row * self.r.lanes, unit // self.per_row

    def fetch(self, k: Expr, to: Expr) -> None:
        s, t = self.source, self.t
        with unrolled(self.r.count) as i:
            kk, row = self._at(i)
            n = t.first + row
            condition = both(self.r.mine(i), inside(n, s.n, t.width), inside(k + kk, s.k, t.depth))
            self.r.load(i, condition, n * s.k + k + kk)

    def place(self, to: Expr) -> None:
        with unrolled(self.r.count) as i, only(self.r.mine(i)):
            kk, row = self._at(i)
            if self.k_last or self.r.lanes == 1:
                self.r.store(i, to + self.place_of(kk, row))
                return
            for lane in range(self.r.lanes):
                value = tirx.Shuffle([self.r.registers[i]], [tirx.IntImm("int32", lane)])
                build.buffer_store(self.r.shared, value, [to + self.place_of(kk + lane, row)])


class _AsyncPixelMover:
    """Narrow pixels of pointwise convolutions, `lanes` neighbours at a time, without a stop in registers."""

    def __init__(self, source: Planes, x: Any, t: Tiling, shared: Any, place: Place, lanes: int) -> None:
        self.source, self.x, self.t, self.shared, self.place_of, self.lanes = source, x, t, shared, place, lanes
        per_row = t.width // lanes
        assert t.threads % per_row == 0, "threads walk over k in equal steps"
        self.step = t.threads // per_row
        self.column, self.row = named(t.thread % per_row * lanes), named(t.thread // per_row)
        w, n = source.window, named(t.first + self.column)
        picture = 0 if w.batch == 1 else n // source.pixels
        pixel = n if w.batch == 1 else n % source.pixels
        self.base = named((picture * w.channels + t.group * source.channels) * source.pixels + pixel)
        self.inside = inside(n, source.n, t.width)

    def fetch(self, k: Expr, to: Expr) -> None:
        s, t = self.source, self.t
        with unrolled(-(-t.depth // self.step)) as i:
            kk = self.row + i * self.step
            exists = both(self.inside, inside(k + kk, s.k, t.depth))
            with only(t.depth % self.step == 0 or kk < t.depth):
                to_pixel = to + self.place_of(kk, self.column)
                copy_async(self.shared, to_pixel, self.x, self.base + (k + kk) * s.pixels, exists, 2 * self.lanes)

    def place(self, to: Expr) -> None: ...


class _PlaneMover:
    """A thread keeps its pixel and walks over k, so that what depends on the pixel is computed once."""

    def __init__(self, source: Planes, x: Any, t: Tiling, shared: Any, place: Place) -> None:
        self.source, self.t, self.place_of = source, t, place
        w = source.window
        lanes = 4 if source.pointwise and source.pixels % 4 == 0 and source.dtype not in NARROW else 1
        assert t.threads % (t.width // lanes) == 0, "threads walk over k in equal steps"
        self.step = t.threads // (t.width // lanes)
        self.r = Registers(x, t.threads, t.thread, shared, lanes, t.depth * t.width // lanes, source.dtype)
        self.column = named(t.thread % (t.width // lanes) * lanes)
        self.row = named(t.thread // (t.width // lanes))
        n = named(t.first + self.column)
        picture = 0 if w.batch == 1 else n // source.pixels
        pixel = n if w.batch == 1 else n % source.pixels
        self.base = named((picture * w.channels + t.group * source.channels) * product(w.size))
        self.inside = inside(n, source.n, t.width)
        self.pixel = named(pixel)
        self.top = named(pixel // w.out[1] * w.strides[0] - w.pads[0])
        self.left = named(pixel % w.out[1] * w.strides[1] - w.pads[1])

    def fetch(self, k: Expr, to: Expr) -> None:
        s, w = self.source, self.source.window
        with unrolled(self.r.count) as i:
            kk = self.row + i * self.step
            at_k = k + kk
            exists = both(self.inside, inside(at_k, s.k, self.t.depth), self._in_tile(kk))
            if s.pointwise:
                self.r.load(i, exists, self.base + at_k * product(w.size) + self.pixel)
                return
            if s.channels % self.t.depth == 0:  # a tile lies within one tap: its place is computed once
                tap, channel = k // s.channels, k % s.channels + kk
            else:
                tap, channel = at_k // s.channels, at_k % s.channels
            y = self.top + tap // w.kernel[1] * w.dilations[0]
            x = self.left + tap % w.kernel[1] * w.dilations[1]
            within = both(exists, *bounds(y, w, 0), *bounds(x, w, 1))
            self.r.load(i, within, self.base + (channel * w.size[0] + y) * w.size[1] + x)

    def _in_tile(self, kk: Expr) -> Any:
        return True if self.t.depth % self.step == 0 else kk < self.t.depth

    def place(self, to: Expr) -> None:
        with unrolled(self.r.count) as i:
            kk = self.row + i * self.step
            with only(self._in_tile(kk)):
                self.r.store(i, to + self.place_of(kk, self.column))
