"""Patterns: which weights of a matrix [rows, cols] may be there, as data.

A weight is read as a matrix whose rows are outputs and whose columns are inputs (`spa.sparsity.layers`). A pattern
cuts it into *units* (one weight, a block of `rows` x `cols`, or all taps of a kernel) and its units into *pools*, and
says how many units of each pool stay:

    text            unit                 pool                            stays
    unstructured:R  1 x 1                the matrix                      all but the share R
    N:M             1 x 1                M neighbours in a row           N
    blockAxB:R      A outputs x B inputs the matrix                      all but the share R
    gN:M, gGxN:M    G outputs (4)        M neighbours in a band of rows  N: all outputs of a band share their columns
    fanin:R         1 x 1                a row                           all but the share R, as many in each row
    kernel:R        all taps of (o, c)   the matrix                      all but the share R
    tapsK, tapsKxS  one tap              the taps of (o, c)              K, in one of 8 (S) shapes of the matrix's own

Where a matrix ends within a unit or a pool, what is there of it counts: a narrower block is a block, and of t < M
neighbours ceil(t N / M) stay. N:M runs along all columns of a row, in their order (of a convolution: tap by tap, the
inputs of a tap side by side).

N:M as in Mishra et al. 2021 (arXiv:2104.08378); shared by outputs as in STen (Ivanov et al. 2023, arXiv:2304.07613);
constant fan-in: SRigL (Lasby et al. 2024, arXiv:2305.02299); kernels: SparseByteNN (Xu et al. 2023, arXiv:2310.18509);
taps of kernels: PatDNN (`spa.sparsity.shapes`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spa.errors import UsageError
from spa.sparsity import shapes

Mask = npt.NDArray[np.bool_]
Matrix = npt.NDArray[Any]  # float64 or float32

FEW = 16  # units of a pool: up to so many are compared pair by pair
BAND = 4  # outputs that share their columns in gN:M
SHAPES = 8  # of kernels in tapsK, as PatDNN found enough
NINE = 9  # taps of a kernel, where a share is asked for without one
FORMS = "2:4, unstructured:0.5, block4x1:0.5, g2:4, fanin:0.5, kernel:0.5 or taps4"


@dataclass(frozen=True)
class Pattern:
    """One row of the table above. `n` of `m` units stay, or all but the share `ratio` of a pool; of taps `n`, in one of
    `m` shapes, which are found for each mask unless `shapes` gives them."""

    kind: str  # unstructured, nm, block, fanin, kernel, taps
    ratio: float
    rows: int = 1
    cols: int = 1
    n: int = 0
    m: int = 0
    shapes: tuple[tuple[bool, ...], ...] = ()

    def __str__(self) -> str:
        if self.kind == "nm":
            band = "" if self.rows == 1 else "g" if self.rows == BAND else f"g{self.rows}x"
            return f"{band}{self.n}:{self.m}"
        if self.kind == "taps":
            return f"taps{self.n}" + (f"x{self.m}" if self.m != SHAPES else "")
        size = f"{self.rows}x{self.cols}" if self.kind == "block" else ""
        return f"{self.kind}{size}:{self.ratio:g}"

    @property
    def density(self) -> float:
        """The share of weights that stays, tails aside."""
        return self.n / self.m if self.kind == "nm" else 1 - self.ratio

    @property
    def adjustable(self) -> bool:
        """Can every layer have a share of its own?"""
        return self.kind not in ("nm", "taps")

    @property
    def by_kernel(self) -> bool:
        """Are all taps of a kernel decided together?"""
        return self.kind in ("kernel", "taps")

    def settled(self, scores: Matrix, taps: int = 1) -> Pattern:
        """With the shapes that fit these scores best, for masks drawn bit by bit or again and again."""
        if self.kind != "taps" or self.shapes:
            return self
        found = shapes.find(by_taps(scores, taps), self.n, self.m)
        return replace(self, shapes=tuple(map(tuple, found.tolist())))

    def at(self, density: float) -> Pattern:
        """The same pattern with another share of weights that stay, to four digits."""
        return replace(self, ratio=max(0.0, round(1 - density, 4))) if self.adjustable else self

    def mask(self, scores: Matrix, taps: int = 1) -> Mask:
        """What stays of a matrix: the units with the largest sums of `scores` [rows, cols], ties to the first.

        `taps`: the columns are so many runs of the same inputs, one per tap of a kernel."""
        if self.kind == "taps":
            few = np.array(self.settled(scores, taps).shapes, bool)
            chosen = shapes.mask(by_taps(scores, taps), few).reshape(len(scores), -1, taps)
            return chosen.swapaxes(1, 2).reshape(scores.shape)
        units = self.units(scores, taps)
        return self._spread(self._top(units), scores.shape, taps)

    def check(self, weight: npt.NDArray[Any], taps: int = 1) -> bool:
        """Has a matrix [rows, cols] no more in any pool than the pattern lets stay?"""
        if self.kind == "taps":
            return shapes.fit(by_taps(weight != 0, taps), self.n, self.m)
        there = self.units((weight != 0).astype(np.float64), taps) > 0
        pools = self._pools(there, False)
        return bool((pools.sum(-1) <= self._kept(there.shape)).all())

    def pool_width(self, taps: int = 1) -> int:
        """Columns that must be decided together (0: any number may)."""
        return taps if self.by_kernel else self.m if self.kind == "nm" else self.cols

    def units(self, values: Matrix, taps: int) -> Matrix:
        """Sums per unit [unit rows, unit columns]."""
        rows, cols = values.shape
        if self.kind == "kernel":
            kernels: Matrix = values.reshape(rows, taps, cols // taps).sum(1)
            return kernels
        high, wide = -(-rows // self.rows), -(-cols // self.cols)
        if (self.rows, self.cols) == (1, 1):
            return values
        padded = np.zeros((high * self.rows, wide * self.cols))
        padded[:rows, :cols] = values
        summed: Matrix = padded.reshape(high, self.rows, wide, self.cols).sum((1, 3))
        return summed

    def _spread(self, units: Mask, shape: tuple[int, int], taps: int) -> Mask:
        if self.kind == "kernel":
            return np.tile(units, (1, taps))
        return np.repeat(np.repeat(units, self.rows, 0), self.cols, 1)[: shape[0], : shape[1]]

    def _pools(self, units: npt.NDArray[Any], fill: Any) -> npt.NDArray[Any]:
        """[pools, units of a pool], the last pool of a row filled up."""
        if self.kind == "fanin":
            return units
        if self.kind != "nm":
            return units.reshape(1, -1)
        wide = -(-units.shape[1] // self.m) * self.m
        padded = np.full((len(units), wide), fill, units.dtype)
        padded[:, : units.shape[1]] = units
        return padded.reshape(-1, self.m)

    def _kept(self, shape: tuple[int, int]) -> npt.NDArray[np.int64]:
        """How many units of each pool stay."""
        if self.kind == "fanin":
            return np.full(shape[0], keep(shape[1], self.ratio))
        if self.kind != "nm":
            return np.array([keep(shape[0] * shape[1], self.ratio)])
        per_row = np.full(-(-shape[1] // self.m), self.n)
        if tail := shape[1] % self.m:
            per_row[-1] = math.ceil(tail * self.n / self.m)
        return np.tile(per_row, shape[0])

    def _top(self, units: Matrix) -> Mask:
        chosen = largest(self._pools(units, -np.inf), self._kept(units.shape))
        return chosen.reshape(len(units), -1)[:, : units.shape[1]] if self.kind == "nm" else chosen.reshape(units.shape)


def by_taps(matrix: npt.NDArray[Any], taps: int) -> npt.NDArray[Any]:
    """[rows, taps x channels] -> [kernels, taps]"""
    turned = matrix.reshape(len(matrix), taps, -1).swapaxes(1, 2)
    return turned.reshape(-1, taps)


def largest(pools: npt.NDArray[np.floating[Any]], counts: npt.NDArray[np.int64]) -> Mask:
    """Of each pool [pools, units] the `counts` largest, ties to the first. Sorts nothing: this is most of a mask search.

    >>> largest(np.array([[1.0, 3, 3, 3]]), np.array([2])).tolist()
    [[False, True, True, False]]
    """
    width = pools.shape[1]
    if width <= FEW:
        lanes = np.ascontiguousarray(pools.T)
        rank = np.zeros(lanes.shape, np.int8)
        for a in range(width):
            for b in range(a):
                later = lanes[a] > lanes[b]
                rank[b] += later
                rank[a] += ~later
        return np.ascontiguousarray((rank < counts.astype(np.int8)).T)
    chosen = np.empty(pools.shape, bool)
    for kept in np.unique(counts):
        at = slice(None) if (counts == kept).all() else np.flatnonzero(counts == kept)
        own = pools[at]
        least = np.partition(own, width - kept, axis=1)[:, width - kept, None]
        above, tied = own > least, own == least
        room = kept - above.sum(1, keepdims=True)
        if (tied.sum(1, keepdims=True) > room).any():
            tied &= tied.cumsum(1) <= room
        chosen[at] = above | tied
    return chosen


def keep(count: int, ratio: float) -> int:
    """How many of `count` units stay when the share `ratio` goes; never none."""
    return max(1, count - math.floor(count * ratio + 1e-9)) if count else 0


_NM = re.compile(r"(?:(g)(?:(\d+)x)?)?(\d+):(\d+)")
_TAPS = re.compile(r"taps(\d+)(?:x(\d+))?")
_RATIO = re.compile(r"(unstructured|fanin|kernel|block(\d+)x(\d+)):(\d*\.?\d+)")


def parse(text: str) -> Pattern:
    """Read a pattern. Raises `UsageError` for what is none.

    >>> str(parse("2:4")), parse("block4x1:0.75").density, str(parse("g16x1:4"))
    ('2:4', 0.25, 'g16x1:4')
    """
    text = text.strip()
    if found := _NM.fullmatch(text):
        band = int(found[2] or BAND) if found[1] else 1
        n, m = int(found[3]), int(found[4])
        if not 0 < n <= m or band < 1:
            raise UsageError(f"'{text}': {n} of {m} is no pattern", hint="N:M with 0 < N <= M, such as 2:4")
        return Pattern("nm", 1 - n / m, rows=band, n=n, m=m)
    if found := _TAPS.fullmatch(text):
        n, m = int(found[1]), int(found[2] or SHAPES)
        if min(n, m) < 1:
            raise UsageError(f"'{text}': no taps, or no shapes", hint="taps4, or taps4x6 for six shapes")
        return Pattern("taps", max(0.0, 1 - n / NINE), n=n, m=m)
    if found := _RATIO.fullmatch(text):
        ratio = float(found[4])
        if not 0 <= ratio < 1:
            raise UsageError(f"'{text}': {found[4]} is no share to remove", hint="at least 0 and less than 1")
        kind = "block" if found[1].startswith("block") else found[1]
        rows, cols = (int(found[2]), int(found[3])) if kind == "block" else (1, 1)
        if min(rows, cols) < 1:
            raise UsageError(f"'{text}': an empty block", hint="block4x1:0.5")
        return Pattern(kind, ratio, rows, cols)
    raise UsageError(f"'{text}' is not a sparsity pattern", hint=FORMS)
