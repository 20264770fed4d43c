"""Tiles of products, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A block of threads computes m x n, k at a time, in a ring of `stages`; a warp warp_m x warp_n of it."""

    m: int
    n: int
    k: int
    warp_m: int
    warp_n: int
    stages: int

    def __post_init__(self) -> None:
        assert self.m % self.warp_m == self.n % self.warp_n == self.warp_m % 16 == self.warp_n % 16 == 0
        assert self.stages >= 2

    @property
    def warps_n(self) -> int:
        return self.n // self.warp_n

    @property
    def warps(self) -> int:
        return self.m // self.warp_m * self.warps_n

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def rows(self) -> int:
        """m16 products of a warp."""
        return self.warp_m // 16

    @property
    def columns(self) -> int:
        """n8 products of a warp."""
        return self.warp_n // 8

    @property
    def name(self) -> str:
        return f"{self.m}x{self.n}x{self.k}-{self.stages}"
