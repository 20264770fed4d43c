"""N of M inputs kept by each feature: which, in log2(M) bits per lane, and each lane picks its input.

The M inputs of a group lie in a vector, again and again if they do not fill it, so that bits of an index above those of M
do not matter and need not be cleared: a position is a shift and a permutation. AVX-512 up to M = 16, AVX2 up to 8, NEON up
to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.codegen.kernels.matvec.format import ahead
from spa.codegen.kernels.matvec.permutation import permute
from spa.codegen.kernels.matvec.stored import WORD, Stored
from spa.codegen.kernels.matvec.tiling import Tiling, repeated
from spa.codegen.kernels.vector import Expr, load, loop, put, splat
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

SIZES = (2, 4, 8, 16)  # M


@dataclass(frozen=True)
class Groups:
    """`n` of each `of` inputs; `together` groups per step share a word of positions per lane.
    Packed: positions [tiles][steps][width] vectors of int32, values [tiles][steps][together * n * width] vectors."""

    n: int
    of: int
    together: int
    stored: Stored
    isa: str

    chains = 2
    balance = -1

    @property
    def name(self) -> str:
        return f"{self.n}:{self.of}" + (f" int{self.stored.bits}" if self.stored.bits < 32 else "")

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("int32", self.stored.dtype)

    @property
    def factor(self) -> float:
        return self.stored.factor

    @property
    def bits(self) -> int:
        return self.of.bit_length() - 1

    @property
    def inputs(self) -> int:
        """Of a step."""
        return self.of * self.together

    def pack(self, matrix: Array, tiling: Tiling) -> tuple[Array, ...]:
        k, m = matrix.shape
        groups = matrix.reshape(k // self.of, self.of, m)
        order = np.argsort(groups == 0, axis=1, kind="stable")[:, : self.n]  # survivors first, then whatever is zero
        kept = np.take_along_axis(groups, order, axis=1).reshape(-1, m)
        slots = self.together * self.n
        shape = (tiling.tiles, k // self.inputs, slots, tiling.width, self.stored.lanes)
        places = tiling.split(order.reshape(-1, m)).reshape(shape).astype(np.uint64)
        shifts = (self.bits * np.arange(slots, dtype=np.uint64)).reshape(slots, 1, 1)
        words = (places << shifts).sum(2).astype(np.uint32).view(np.int32)
        rows = tiling.split(kept).reshape(*shape[:2], -1, self.stored.lanes)
        return words.reshape(-1), self.stored.pack(rows)

    def multiply(
        self, packed: Sequence[Any], x: Any, tile: Expr, k: int, begin: Expr, count: int, sums: list[list[Any]]
    ) -> None:
        positions, values = packed
        width, lanes, slots = len(sums[0]), self.stored.lanes, self.together * self.n
        with loop(count // self.inputs) as i:
            first = begin + i * self.inputs
            row = tile * (k // self.inputs) + begin // self.inputs + i
            words = [load(positions, (row * width + v) * lanes, lanes) for v in range(width)]
            for slot in range(slots):
                inputs = repeated(x, first + slot // self.n * self.of, self.of, lanes)
                for v, total in enumerate(sums[slot % self.chains]):
                    shift = splat(tirx.IntImm("int32", self.bits * slot), lanes)
                    value = permute(self.isa, inputs, words[v] >> shift if slot else words[v])
                    weight = self.stored.load(values, row, slot * width + v, slots * width)
                    put(total, weight * value + total[0])
            ahead(values, row * self.stored.stride(slots * width), int(slots * width * self.stored.nbytes))
            ahead(positions, row * width * lanes, width * lanes * 4)


def groups_of(matrix: Array, of: int, stored: Stored, shared: int, isa: str) -> Groups | None:
    """How W [k, m] is N of so many; None where inputs do not fall into such groups, or none of them loses any. `shared`:
    inputs with one scale; a step covers no others."""
    k, m = matrix.shape
    if shared % of or of > stored.lanes:
        return None
    n = max(int((matrix.reshape(k // of, of, m) != 0).sum(1).max()), 1)
    if n == of:
        return None
    most = WORD // (of.bit_length() - 1) // n
    together = next((t for t in range(most, 0, -1) if (shared // of) % t == 0), 0)
    if not together:
        return None
    return Groups(n, of, together, stored, isa)
