"""Second moments of what readers read, gathered batch by batch in float64; large convolutions are sampled, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spa.calibration.readers import Array, Matrix, Reader

MAX_FEATURES = 6144  # wider inputs are not gathered: their moments would not fit
ROWS = 24  # sampled rows per feature, at least
HELD = 4  # every fourth input is held back, to judge damping on what was not fitted


@dataclass(eq=False)
class Moments:
    """Sums over rows of x and x x^T, kept apart for fitted (0) and held-back (1) inputs; one matrix per group."""

    groups: int
    features: int
    count: list[float] = field(default_factory=lambda: [0.0, 0.0])
    first: Matrix = field(init=False)
    second: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.first = np.zeros((2, self.groups, self.features))
        self.second = np.zeros((2, self.groups, self.features, self.features))

    def add(self, rows: Sequence[Array], held: bool) -> None:
        self.count[held] += len(rows[0])
        for g, x in enumerate(rows):
            x = x.astype(np.float32, copy=False)
            self.first[int(held), g] += x.sum(0, dtype=np.float64)
            self.second[int(held), g] += x.T @ x

    def mean(self, g: int, part: int | None = None) -> Matrix:
        parts = [0, 1] if part is None else [part]
        total: Matrix = self.first[parts, g].sum(0) / max(1.0, sum(self.count[p] for p in parts))
        return total

    def covariance(self, g: int, part: int | None = None) -> Matrix:
        """[features, features], of all inputs, or of the fitted (0) or held-back (1) ones."""
        parts = [0, 1] if part is None else [part]
        mean = self.mean(g, part)
        total: Matrix = self.second[parts, g].sum(0) / max(1.0, sum(self.count[p] for p in parts))
        return total - np.outer(mean, mean)


def measure(reader: Reader, live: Sequence[dict[str, Array]], seed: int = 0) -> Moments:
    """Moments of what a reader reads, over the batches of a `Walk` that stands before it."""
    rng = np.random.default_rng(seed)
    moments = Moments(reader.groups, reader.features)
    name = reader.x.name or ""
    rows = max(256, ROWS * reader.features) // max(1, len(live))
    for number, values in enumerate(live):
        moments.add(reader.unfold(values[name], rng, max(1, rows)), held=number % HELD == HELD - 1)
    return moments
