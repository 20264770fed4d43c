"""Tiles of warpgroup products, as data."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = 64  # k of a stage: rows of 128 bytes


@dataclass(frozen=True)
class WgmmaTile:
    """A block of threads computes m x n, 64 k at a time, in a ring of `stages`; a warpgroup m / `groups` rows of it.

    While one stage is multiplied, the one before may still be, and `ahead` others are on their way."""

    m: int
    n: int
    groups: int
    stages: int

    def __post_init__(self) -> None:
        assert self.m % (64 * self.groups) == 0 and self.n % 64 == 0 and self.n <= 256 and self.stages >= 3

    @property
    def k(self) -> int:
        return DEPTH

    @property
    def threads(self) -> int:
        return 128 * self.groups

    @property
    def ahead(self) -> int:
        return self.stages - 2

    @property
    def rows(self) -> int:
        """m64 products of a warpgroup."""
        return self.m // (64 * self.groups)

    @property
    def sums(self) -> int:
        """Of a thread."""
        return self.rows * self.n // 2

    @property
    def name(self) -> str:
        return f"{self.m}x{self.n}x{self.k}-{self.stages}"
