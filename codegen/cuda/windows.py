"""Pixels of NHWC pictures seen through windows: n = (picture, row, column), k = (tap, channel), channels innermost.

The channels of one tap lie side by side, so that a tile is fetched 16 bytes at a time, by cp.async where the pictures have
the type that is multiplied; what lies outside a picture arrives as zeros. A thread keeps its pixels over all k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spa.codegen.cuda.moving import Place, Registers, Seen, Tiling, bounds, inside
from spa.codegen.cuda.words import NARROW, both, copy_async, named, only
from spa.codegen.kernels.vector import Expr, covering, product
from spa.codegen.kernels.window import Window

CHUNK = 8  # channels that are fetched at once


@dataclass(frozen=True)
class Windows(Seen):
    """Pictures [batch, height, width, channels], channels a multiple of 8; k = taps * channels. `groups` is 1, or of
    depthwise convolutions as many as channels."""

    window: Window
    dtype: str
    groups: int = 1

    def __post_init__(self) -> None:
        assert self.window.channels % CHUNK == 0

    @property
    def k_last(self) -> bool:
        return True


class WindowMover:
    def __init__(self, source: Windows, x: Any, t: Tiling, shared: Any, place: Place) -> None:
        assert t.depth % CHUNK == 0
        self.source, self.x, self.t, self.shared, self.place_of = source, x, t, shared, place
        narrow = source.dtype in NARROW
        self.is_async = narrow and str(shared.dtype) == source.dtype
        self.lanes = CHUNK if self.is_async else 1 if narrow else 4
        self.per_row = t.depth // self.lanes
        self.units = self.per_row * t.width
        if not self.is_async:
            self.r = Registers(x, t.threads, t.thread, shared, self.lanes, self.units, source.dtype)
        # threads that share a row of the tile differ in k only, if they are a divisor: then each has few pixels
        assert t.threads % self.per_row == 0
        self.count = covering(self.units, t.threads)
        self.kk = named(t.thread % self.per_row * self.lanes)
        self.rows = [named(t.thread // self.per_row + i * (t.threads // self.per_row)) for i in range(self.count)]
        self.pixels = [self._pixel(row) for row in self.rows]

    def _pixel(self, row: Expr) -> tuple[Any, Expr, Expr, Expr]:
        """Whether the pixel exists; its picture's first element; its window's top and left."""
        s, w, t = self.source, self.source.window, self.t
        n = named(t.first + row)
        picture = 0 if w.batch == 1 else n // s.pixels
        pixel = n if w.batch == 1 else named(n % s.pixels)
        top = named(pixel // w.out[1] * w.strides[0] - w.pads[0])
        left = named(pixel % w.out[1] * w.strides[1] - w.pads[1])
        exists = both(inside(n, s.n, t.width), True if self.units % t.threads == 0 else row < t.width)
        return exists, named(picture * (product(w.size) * w.channels)), top, left

    def fetch(self, k: Expr, to: Expr) -> None:
        s, w = self.source, self.source.window
        at_k = named(k + self.kk)
        tap, channel = named(at_k // s.channels), named(at_k % s.channels)
        down, right = named(tap // w.kernel[1] * w.dilations[0]), named(tap % w.kernel[1] * w.dilations[1])
        for i, (row, (exists, base, top, left)) in enumerate(zip(self.rows, self.pixels, strict=True)):
            y, x = top + down, left + right
            there = both(exists, inside(at_k, s.k, self.t.depth), *bounds(y, w, 0), *bounds(x, w, 1))
            at = base + (y * w.size[1] + x) * w.channels + channel
            if self.is_async:
                with only(True if self.units % self.t.threads == 0 else row < self.t.width):
                    copy_async(self.shared, to + self.place_of(self.kk, row), self.x, at, there)
            else:
                self.r.load(i, there, at)

    def place(self, to: Expr) -> None:
        if self.is_async:
            return
        for i, row in enumerate(self.rows):
            with only(True if self.units % self.t.threads == 0 else row < self.t.width):
                self.r.store(i, to + self.place_of(self.kk, row))
