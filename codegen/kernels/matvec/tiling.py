"""How a kernel for one row walks through its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.codegen.kernels.vector import Expr, covering, lanes_of, load, shifted, splat
from spa.codegen.layer import Array


@dataclass(frozen=True)
class Tiling:
    """`m` features as tiles of `width` vectors of `lanes`; the last tile is shifted back so that it ends with them."""

    m: int
    lanes: int
    width: int

    @property
    def size(self) -> int:
        return self.width * self.lanes

    @property
    def tiles(self) -> int:
        return covering(self.m, self.size)

    def start(self, tile: Expr) -> Expr:
        """The first feature of a tile."""
        return shifted(tile, self.size, self.size, self.m)

    def split(self, values: Array) -> Array:
        """[rows, m] -> [tiles, rows, width, lanes]."""
        starts = np.minimum(np.arange(self.tiles) * self.size, self.m - self.size)
        features = starts[:, None] + np.arange(self.size)
        return values[:, features].swapaxes(0, 1).reshape(self.tiles, len(values), self.width, self.lanes)


def tiling_of(m: int, lanes: int, widest: int) -> Tiling | None:
    """As few vectors as possible, in tiles as wide as possible; None for fewer features than lanes."""
    fitting = [Tiling(m, lanes, width) for width in range(widest, 0, -1) if width * lanes <= m]
    return min(fitting, key=lambda t: t.tiles * t.width, default=None)


def repeated(x: Any, at: Expr, count: int, lanes: int) -> Expr:
    """x[at .. at + count] again and again in a vector."""
    return lanes_of([load(x, at, count)] * (lanes // count), range(lanes)) if count > 1 else splat(x[at], lanes)
