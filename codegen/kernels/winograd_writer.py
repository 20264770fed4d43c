"""The code of Winograd's minimal filtering: see `winograd` for what it computes, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spa.codegen.kernels.epilogue import evaluate
from spa.codegen.kernels.parallel import parallel
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    build,
    covering,
    fetch,
    fits,
    function,
    lanes_of,
    load,
    loop,
    number,
    put,
    registers,
    scratch,
    shifted,
    splat,
    store,
)
from spa.codegen.tvm_api import tirx

if TYPE_CHECKING:
    from spa.codegen.kernels.winograd import Winograd

OUT = 4  # outputs of a tile along an axis
IN = 6  # its pixels
PLACES = IN * IN


def _input_line(d: Sequence[Expr], lanes: int) -> list[Expr]:
    """B^T d."""
    two, four, five = (number(n, lanes) for n in (2, 4, 5))
    a, b, c, e = d[4] - four * d[2], d[3] - four * d[1], d[4] - d[2], two * (d[3] - d[1])
    return [four * d[0] - five * d[2] + d[4], a + b, a - b, c + e, c - e, four * d[1] - five * d[3] + d[5]]


def _output_line(m: Sequence[Expr], lanes: int) -> list[Expr]:
    """A^T m."""
    two, four, eight = (number(n, lanes) for n in (2, 4, 8))
    a, b, c, d = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [m[0] + a + c, b + two * d, a + four * c, b + eight * d + m[5]]


class _Writer:
    """The kernel while it is written."""

    def __init__(self, p: Winograd) -> None:
        self.p, w = p, p.window
        self.image = w.out[0] * w.out[1]
        self.x = argument("x", w.batch * w.channels * w.size[0] * w.size[1])
        self.tensors = [argument(f"t{i}", w.batch * p.m * self.image) for i in range(p.tensors)]
        self.u = argument("u", PLACES * p.blocks * w.channels * p.rows)
        self.bias = argument("bias", p.m) if p.bias else None
        self.vectors = argument("vectors", p.vectors * p.m) if p.vectors else None
        self.y = argument("y", w.batch * p.m * self.image)

    def write(self) -> None:
        p, w = self.p, self.p.window
        self.v, self.sums = scratch(PLACES * p.apart(w.channels)), scratch(PLACES * p.apart(p.m))
        with loop(w.batch) as self.n, loop(covering(p.tiles[0], p.band)) as band:
            first = shifted(band, p.band, p.band, p.tiles[0])
            with parallel(w.channels) as c:
                self._transform(c, first)
            with parallel(PLACES) as place:
                self._multiply(place)
            with parallel(p.m) as m:
                self._leave(m, first)

    def _transform(self, c: Expr, first: Expr) -> None:
        """V of a channel: its rows of the band, padded, then tile by tile."""
        p, lanes = self.p, self.p.lanes
        pitch = OUT * p.tiles[1] + OUT
        strip = scratch((OUT * p.band + 2) * pitch)
        self._stage(c, first, strip, pitch)
        full = p.columns.lanes
        with loop(PLACES) as place:  # what no tile falls on is multiplied too
            store(self.v, number(0, full), place * p.apart(p.window.channels) + (c + 1) * p.pitch - full, full)
        with loop(p.band) as row, loop(covering(p.tiles[1], lanes)) as part:
            column = shifted(part, lanes, lanes, p.tiles[1])
            pixels, halfway = registers(IN, IN, lanes), registers(IN, IN, lanes)
            for i in range(IN):
                at = (row * OUT + i) * pitch + column * OUT
                for j, pixel in enumerate(self._pixels(strip, at)):
                    put(pixels[i][j], pixel)
            for j in range(IN):
                for i, value in enumerate(_input_line([pixels[i][j][0] for i in range(IN)], lanes)):
                    put(halfway[i][j], value)
            for i in range(IN):
                for j, value in enumerate(_input_line([r[0] for r in halfway[i]], lanes)):
                    line = (i * IN + j) * p.apart(p.window.channels) + c * p.pitch
                    store(self.v, value, line + row * p.tiles[1] + column, lanes)

    def _stage(self, c: Expr, first: Expr, strip: Any, pitch: int) -> None:
        """The rows of a channel that a band meets, with zeros around."""
        w, full = self.p.window, self.p.columns.full
        zeros, wide = fits(full, pitch), fits(full, w.size[1])
        base = (self.n * w.channels + c) * (w.size[0] * w.size[1])
        with loop(OUT * self.p.band + 2) as i:
            with loop(covering(pitch, zeros)) as part:
                store(strip, number(0, zeros), i * pitch + shifted(part, zeros, zeros, pitch), zeros)
            row = first * OUT + i - w.pads[0]
            with build.If(tirx.all(row >= 0, row < w.size[0])), build.Then(), loop(covering(w.size[1], wide)) as part:
                column = shifted(part, wide, wide, w.size[1])
                value = load(self.x, base + row * w.size[1] + column, wide)
                store(strip, value, i * pitch + w.pads[1] + column, wide)

    def _pixels(self, strip: Any, at: Expr) -> list[Expr]:
        """The six pixels of a row of each of the tiles, `OUT` apart."""
        lanes = self.p.lanes
        if lanes == 1:
            return [strip[at + j] for j in range(IN)]
        four, next_four = ([load(strip, at + step + q * lanes, lanes) for q in range(OUT)] for step in (0, OUT))
        picked = [[OUT * t + j for t in range(lanes)] for j in range(OUT)]
        return [lanes_of(four, picked[j]) for j in range(OUT)] + [
            lanes_of(next_four, picked[j]) for j in range(IN - OUT)
        ]

    def _multiply(self, place: Expr) -> None:
        p, channels, lanes = self.p, self.p.window.channels, self.p.columns.lanes
        with loop(p.blocks) as b:
            weights = (place * p.blocks + b) * (channels * p.rows)
            for width, starts in p.columns.walk():
                with starts as (at, _):
                    tile = registers(p.rows, width, lanes)
                    for row in tile:
                        for register in row:
                            put(register, number(0, lanes))
                    with loop(channels) as k:
                        if p.ahead:
                            fetch(self.u, weights + k * p.rows + p.ahead)
                        line = place * p.apart(channels) + k * p.pitch
                        for r, row in enumerate(tile):
                            w = splat(self.u[weights + k * p.rows + r], lanes)
                            for v, register in enumerate(row):
                                put(register, w * load(self.v, line + at[v], lanes) + register[0])
                    m = shifted(b, p.rows, p.rows, p.m)
                    for r, row in enumerate(tile):
                        for v, register in enumerate(row):
                            store(self.sums, register[0], place * p.apart(p.m) + (m + r) * p.pitch + at[v], lanes)

    def _leave(self, m: Expr, first: Expr) -> None:
        """The outputs of a channel of the band: tile by tile, then to their place."""
        p, lanes = self.p, self.p.lanes
        pitch = OUT * p.tiles[1]
        strip = scratch(OUT * p.band * pitch)
        with loop(p.band) as row, loop(covering(p.tiles[1], lanes)) as part:
            column = shifted(part, lanes, lanes, p.tiles[1])
            halfway = registers(OUT, IN, lanes)
            for j in range(IN):
                lines = [(i * IN + j) * p.apart(p.m) + m * p.pitch + row * p.tiles[1] + column for i in range(IN)]
                for i, value in enumerate(_output_line([load(self.sums, at, lanes) for at in lines], lanes)):
                    put(halfway[i][j], value)
            outputs = registers(OUT, OUT, lanes)
            for i in range(OUT):
                for j, value in enumerate(_output_line([r[0] for r in halfway[i]], lanes)):
                    put(outputs[i][j], value)
                at = (row * OUT + i) * pitch + column * OUT
                for q in range(OUT):
                    store(strip, self._neighbours([r[0] for r in outputs[i]], q), at + q * lanes, lanes)
        self._finish(m, first, strip, pitch)

    def _neighbours(self, outputs: list[Expr], q: int) -> Expr:
        """The q-th vector of a row of outputs, from those of each tile."""
        lanes = self.p.lanes
        if lanes == 1:
            return outputs[q]
        return lanes_of(outputs, [i % OUT * lanes + i // OUT for i in range(q * lanes, (q + 1) * lanes)])

    def _finish(self, m: Expr, first: Expr, strip: Any, pitch: int) -> None:
        """Rows of outputs with what follows; the last tiles may reach beyond the picture."""
        p, (height, width) = self.p, self.p.window.out
        together = OUT * p.band if pitch == width and OUT * p.tiles[0] == height else 1
        lanes = fits(p.columns.full, together * width)
        base = (self.n * p.m + m) * self.image

        def vector(i: int) -> Expr:
            assert self.vectors is not None
            return splat(self.vectors[i * p.m + m], lanes)

        with loop(OUT * p.band // together) as row:
            at = first * OUT + row
            with build.If(at < height), build.Then(), loop(covering(together * width, lanes)) as part:
                column = shifted(part, lanes, lanes, together * width)
                value = load(strip, row * pitch + column, lanes)
                if self.bias is not None:
                    value = value + splat(self.bias[m], lanes)
                to = base + at * width + column
                store(self.y, evaluate(p.steps, value, to, vector, self.tensors, lanes), to, lanes)


def build_winograd(p: Winograd) -> Any:
    """The PrimFunc: x, tensor operands, then u, bias, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
