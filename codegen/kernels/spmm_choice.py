"""What blocks, tiles and parts a product of many rows with a sparse matrix (`spmm`) is to have: all that fit, compared by their
cycles."""

from __future__ import annotations

from dataclasses import dataclass

from spa.codegen.kernels.isa import Isa
from spa.codegen.kernels.tile import NEAR, Columns, columns_of, step_cycles, tiles
from spa.codegen.kernels.vector import covering
from spa.codegen.layer import Array

BLOCKS = (16, 8, 4, 2, 1)  # heights
MOST = 128  # features of a chunk
SPARSE_BELOW = 0.8  # of the dense time that a sparse kernel may be predicted to take: predictions are not exact


def chunk_of(m: int, unit: int) -> int:
    """Features of a chunk, a multiple of `unit`: enough that a part of X is read often once it is in the first cache, few
    enough that threads can share them evenly.

    >>> chunk_of(384, 16), chunk_of(1536, 16), chunk_of(48, 16), chunk_of(16, 16)
    (48, 128, 16, 16)
    """
    most = min(max(m // 8, unit), MOST)
    return max(size for size in range(unit, most + 1, unit) if m % size == 0)


@dataclass(frozen=True)
class Choice:
    """Blocks of `rows`, `widest` vectors of rows of X, `depth` k in each part; `entries` in all."""

    cycles: float
    rows: int
    widest: int
    depth: int
    entries: int


def best_choice(isa: Isa, weight: Array, t: int, dense: float) -> Choice | None:
    """The cheapest blocks and tiles, if they are worth it."""
    m, k = weight.shape
    lanes = columns_of(isa, t, 1).lanes
    turned = t * (k + m) * (2 * isa.load + lanes.bit_length() - 1) / lanes
    found = []
    for height in BLOCKS:
        if m % max(height, lanes) or height > isa.registers // 2:
            continue
        entries = int((weight.reshape(m // height, height, k) != 0).any(1).sum())
        for rows, widest in tiles(isa):
            if rows == height:
                for depth in _depths(isa, k, widest):
                    columns = columns_of(isa, t, widest)
                    cycles = turned + _cycles(isa, columns, entries, m, k, height, depth)
                    found.append(Choice(cycles, height, widest, depth, entries))
    cheapest = min(found, key=lambda c: (c.cycles, c.rows, c.widest, -c.depth), default=None)
    return cheapest if cheapest is not None and cheapest.cycles < SPARSE_BELOW * dense else None


def _depths(isa: Isa, k: int, widest: int) -> list[int]:
    """All k at once, or parts as long as fit the first cache, all about as long."""
    most = int(NEAR * isa.l1) // (4 * isa.lanes * widest)
    return [k] if k <= most or not most else [k, covering(k, covering(k, most))]


def _cycles(isa: Isa, columns: Columns, entries: int, m: int, k: int, rows: int, depth: int) -> float:
    """Of the product itself: steps of each part, what its blocks cost beside them (sums are loaded and stored, a loop
    begins), and where there are several parts, fetching each for every chunk."""
    blocks, parts, chunks = m // rows, covering(k, depth), m // chunk_of(m, max(rows, columns.lanes))
    total = 0.0
    for width, count in columns.widths():
        steps = entries * (step_cycles(isa, rows, width, depth) + 0.5)
        sums = rows * width * (1.5 if parts == 1 else 1.5 + isa.load)
        fetched = chunks * k * width * isa.far if parts > 1 else 0
        total += count * (steps + blocks * parts * (sums + 24) + fetched)
    return total
