"""How weights lie in the order in which a kernel reads them, and how they become floats again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spa.codegen.kernels.isa import AVX512, NEON, Isa
from spa.codegen.kernels.matvec.permutation import permute
from spa.codegen.kernels.vector import FLOAT, Expr, covering, load, span, splat
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

Layout = Literal["bytes", "words", "permuted"]
WORD = 32


@dataclass(frozen=True)
class Stored:
    """Rows of `count` vectors of `lanes`: floats (32 `bits`), or codes of 8 or 4 bits, lowest bits first.

    `bytes`: lanes of 8 bits, which instruction sets convert. A 4-bit code is moved to the top of its byte, or the other
    in it cleared, which makes it `factor` times as large.
    `words`: lanes of 32 bits, the codes of several vectors in each. A code is moved to the top and the others cleared.
    `permuted` (4 bits, 16 lanes): as words, but sixteen values are looked up in a register, for which nothing need be
    cleared; codes lie there plus 8."""

    bits: Literal[4, 8, 32]
    lanes: int
    layout: Layout = "bytes"

    @property
    def dtype(self) -> str:
        if self.bits == 32:
            return FLOAT
        return "int8" if self.layout == "bytes" else "int32"

    @property
    def lane(self) -> int:
        """Bits of a lane of codes."""
        return 8 if self.layout == "bytes" else WORD

    @property
    def factor(self) -> float:
        """Value of a code of 1 as `load` gives it: scales are divided by it."""
        return 1.0 if self.bits == 32 or self.layout == "permuted" else 2.0 ** (self.lane - self.bits)

    @property
    def share(self) -> int:
        """Vectors of a row that share lanes."""
        return 1 if self.bits == 32 else self.lane // self.bits

    @property
    def nbytes(self) -> float:
        """Of a vector, where rows are full."""
        return self.bits * self.lanes / 8

    def stride(self, count: int) -> int:
        """Elements from one row of `count` vectors to the next."""
        return self.lanes * covering(count, self.share)

    def pack(self, rows: Array) -> Array:
        """[..., count, lanes] -> flat."""
        if self.bits == 32:
            return rows.reshape(-1).astype(self.dtype)
        codes = rows.astype(np.int64) + (8 if self.layout == "permuted" else 0)
        packed = np.zeros((*rows.shape[:-2], covering(rows.shape[-2], self.share), self.lanes), np.uint32)
        for i in range(rows.shape[-2]):
            code = (codes[..., i, :] & (1 << self.bits) - 1).astype(np.uint32)
            packed[..., i // self.share, :] |= code << np.uint32(i % self.share * self.bits)
        return packed.reshape(-1).astype(f"uint{self.lane}").view(self.dtype)

    def load(self, buffer: Any, row: Expr, i: int, count: int) -> Expr:
        """Vector i of a row, as floats, times `factor`."""
        lanes, at = self.lanes, row * self.stride(count) + i // self.share * self.lanes
        vector, place = load(buffer, at, lanes), i % self.share
        if self.bits == 32:
            return vector
        if self.layout == "permuted":
            table = tirx.Cast(f"{FLOAT}x{lanes}", span(_int32(-8), lanes))
            return permute(AVX512.name, table, vector >> splat(_int32(4 * place), lanes) if place else vector)
        kind = f"int{self.lane}"
        shift = self.lane - self.bits * (place + 1)
        vector = vector << splat(tirx.IntImm(kind, shift), lanes) if shift else vector
        vector = vector & splat(tirx.IntImm(kind, -1 << self.lane - self.bits), lanes) if place else vector
        return tirx.Cast(f"{FLOAT}x{lanes}", vector)


def _int32(value: int) -> Expr:
    return tirx.IntImm("int32", value)


@dataclass(frozen=True)
class Shape:
    """Lanes of a vector, vectors of a tile, and how codes lie in it."""

    lanes: int
    width: int
    layout: Layout


def shape_of(isa: Isa, bits: Literal[4, 8, 32]) -> Shape:
    """What suits an instruction set: bytes where it converts them in an instruction or two, else words. A tile has
    eight accumulators or so, which hides their latency."""
    if isa.name == AVX512.name:
        return Shape(16, 8, "permuted") if bits == 4 else Shape(16, 4, "bytes")
    return Shape(16, 2, "bytes") if isa.name == NEON.name else Shape(isa.lanes, 8, "words")
