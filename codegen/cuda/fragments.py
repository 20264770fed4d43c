"""What a warp holds in registers while it multiplies: m16n8 sums, and the operands of `mma` as ldmatrix brings them.

W (or the first factor) lies in shared memory with k side by side; X (the second) with k side by side (`k_last`), or with n.
Rows there begin at multiples of 16 bytes, eight neighbouring ones in different banks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spa.codegen.cuda.tile import Tile
from spa.codegen.cuda.words import BFLOAT, HALF, WORD, address, local, ptx, unrolled
from spa.codegen.kernels.vector import FLOAT, Expr, build
from spa.codegen.tvm_api import tirx

PAD = 8  # elements of two bytes behind each row in shared memory
PTX_NAMES = {HALF: "f16", BFLOAT: "bf16"}


class Fragments:
    """Of a warp that computes warp_m x warp_n of a tile. `sparse`: the first factor is stored 2:4."""

    def __init__(self, tile: Tile, operand: str, lane: Expr, warp_m: Expr, warp_n: Expr, sparse: bool = False) -> None:
        self.tile, self.kind, self.sparse = tile, PTX_NAMES[operand], sparse
        self.lane, self.warp_m, self.warp_n = lane, warp_m, warp_n
        self.b_words = 4 if sparse else 2
        self.a = local(tile.rows * 4, WORD)
        self.b = local(tile.columns * self.b_words, WORD)
        self.e = local(tile.rows, WORD) if sparse else None
        self.sums = local(tile.rows * tile.columns * 4, FLOAT)

    @property
    def depth(self) -> int:
        """k of one instruction."""
        return 32 if self.sparse else 16

    def clear(self) -> None:
        with unrolled(self.tile.rows * self.tile.columns * 4) as i:
            build.buffer_store(self.sums, tirx.const(0.0, FLOAT), [i])

    def load_a(self, shared: Any, at: Expr, length: int, k: Expr) -> None:
        """From rows of `length` that begin at `at`; `k` counts what is stored."""
        with unrolled(self.tile.rows) as i:
            row = self.warp_m + i * 16 + self.lane % 16
            self._load(self.a, i * 4, shared, at + row * length + k + self.lane // 16 * 8, "")

    def load_metadata(self, shared: Any, at: Expr, step: Expr) -> None:
        """Of step `step` of a tile whose words [row / 16, k / 16, 8] begin at `at`."""
        t = self.tile
        with unrolled(t.rows) as i:
            quad = ((self.warp_m // 16 + i) * (t.k // 16) + step * 2 + self.lane % 2) * 8 + self.lane // 4
            build.buffer_store(self.e, shared[at + quad], [i])

    def load_b(self, shared: Any, at: Expr, length: int, k: Expr, k_last: bool) -> None:
        """All columns of the warp: four matrices of 8 x 8 at a time, of one n8 (2:4) or of two."""
        lane = self.lane
        if self.sparse:
            along_k, along_n, at_once = lane // 8 * 8 + lane % 8, 0, 1
            row_k, row_n = lane // 8 * 8, lane % 8
        else:
            along_k, along_n, at_once = lane % 16, lane // 16 * 8, 2
            row_k, row_n = lane // 8 % 2 * 8, lane // 16 * 8 + lane % 8
        with unrolled(self.tile.columns // at_once) as j:
            n = self.warp_n + j * (8 * at_once)
            row, column = (n + row_n, k + row_k) if k_last else (k + along_k, n + along_n)
            self._load(self.b, j * 4, shared, at + row * length + column, "" if k_last else ".trans")

    def _load(self, target: Any, first: Expr, source: Any, at: Expr, how: str) -> None:
        registers = [target[first + r] for r in range(4)]
        ptx(f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16", *registers, address(source, at))

    def multiply(self) -> None:
        """All of what is loaded, added to the sums."""
        t, kind = self.tile, self.kind
        with unrolled(t.rows) as i, unrolled(t.columns) as j:
            d = [self.sums[(i * t.columns + j) * 4 + r] for r in range(4)]
            a = [self.a[i * 4 + r] for r in range(4)]
            b = [self.b[j * self.b_words + r] for r in range(self.b_words)]
            if self.e is None:
                ptx(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32", *d, *a, *b, *d)
            else:
                name = f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32"
                ptx(name, *d, *a, *b, *d, self.e[i], 0)

    @contextmanager
    def each(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """Around what is done with every sum: its value, its row and its column in the tile."""
        t = self.tile
        with unrolled(t.rows) as i, unrolled(t.columns) as j, unrolled(4) as r:
            m = self.warp_m + i * 16 + self.lane // 4 + r // 2 * 8
            n = self.warp_n + j * 8 + self.lane % 4 * 2 + r % 2
            yield self.sums[(i * t.columns + j) * 4 + r], m, n
