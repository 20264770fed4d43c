"""Second moments of what readers read and should give, gathered batch by batch in float64 (very wide ones in float32,
in which their products are computed anyway); large inputs are sampled.

With the inputs x of a reader in the network as it is now, and the outputs y that it gave in the dense network, all that
least squares needs are the sums of x, y, x xT, y xT and y^2. They are kept apart for fitted and held-back inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from spa.calibration.readers import Array, Matrix, Reader, Values

MAX_FEATURES = 6144  # wider inputs are not gathered: their moments would not fit
ROWS = 24  # sampled rows per feature, at least
WORK = 2e9  # multiply-accumulates per reader that more rows may cost
VALUES = 4e6  # unfolded numbers, likewise
WIDE = 2048  # features: beyond, float32
DOUBT = 1e-7  # of squared means: eigenvalues of a covariance this small may come out negative
HELD = 4  # every fourth input is held back, to judge by what was not fitted


@dataclass(frozen=True, eq=False)
class Statistics:
    """Means per group of x [F] and y [O]; second moments xx [G, F, F], yx [G, O, F], yy [G, O], central or not."""

    x: Matrix
    y: Matrix
    xx: Matrix
    yx: Matrix
    yy: Matrix

    def ordered(self, order: npt.NDArray[np.int64]) -> Statistics:
        """With the features in another order."""
        if np.array_equal(order, np.arange(len(order))):
            return self
        return Statistics(self.x[:, order], self.y, self.xx[:, order][:, :, order], self.yx[:, :, order], self.yy)


@dataclass(eq=False)
class Moments:
    """Sums over rows, for fitted (0) and held-back (1) inputs. Without `outputs` nothing is known of y."""

    groups: int
    features: int
    outputs: int = 0
    count: list[float] = field(default_factory=lambda: [0.0, 0.0])
    first: Matrix = field(init=False)
    second: Matrix = field(init=False)
    target: Matrix = field(init=False)
    cross: Matrix = field(init=False)
    energy: Matrix = field(init=False)

    def __post_init__(self) -> None:
        g, f, o = self.groups, self.features, self.outputs
        kind: Any = np.float32 if f > WIDE else np.float64
        self.first, self.second = np.zeros((2, g, f)), np.zeros((2, g, f, f), kind)
        self.target, self.cross, self.energy = np.zeros((2, g, o)), np.zeros((2, g, o, f), kind), np.zeros((2, g, o))

    def add(self, x: Array, held: bool, y: Array | None = None) -> None:
        """x [groups, rows, features], y [groups, rows, outputs]"""
        x, part = x.astype(np.float32, copy=False), int(held)
        self.count[part] += x.shape[1]
        self.first[part] += x.sum(1, dtype=np.float64)
        self.second[part] += x.transpose(0, 2, 1) @ x
        if y is not None:
            y = y.astype(np.float32, copy=False)
            self.target[part] += y.sum(1, dtype=np.float64)
            self.cross[part] += y.transpose(0, 2, 1) @ x
            self.energy[part] += np.square(y, dtype=np.float64).sum(1)

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        both = Moments(self.groups, self.features, self.outputs)
        both.count = [a + b for a, b in zip(self.count, other.count, strict=True)]
        for name in ("first", "second", "target", "cross", "energy"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def mean(self, g: int, part: int | None = None) -> Matrix:
        """[features]"""
        mean: Matrix = self.statistics(part).x[g]
        return mean

    def covariance(self, g: int, part: int | None = None) -> Matrix:
        """[features, features], of all inputs, or of the fitted (0) or held-back (1) ones."""
        parts = [0, 1] if part is None else [part]
        count = max(1.0, sum(self.count[p] for p in parts))
        mean = self.first[parts, g].sum(0) / count
        total: Matrix = self.second[parts, g].sum(0) / count
        return total - np.outer(mean, mean)

    def statistics(self, part: int | None = None, central: bool = True) -> Statistics:
        parts = [0, 1] if part is None else [part]
        count = max(1.0, sum(self.count[p] for p in parts))

        def mean(sums: Matrix) -> Matrix:
            total: Matrix = sums[0] + sums[1] if part is None else sums[part].copy()
            total /= count
            return total

        x, y, xx, yx, yy = map(mean, (self.first, self.target, self.second, self.cross, self.energy))
        if central:
            for g in range(self.groups):
                xx[g] -= np.outer(x[g], x[g])
                # products in float32 are not sure of what is left where means are far larger than what varies
                xx[g][np.diag_indices(self.features)] += DOUBT * float(x[g] @ x[g])
                yx[g] -= np.outer(y[g], x[g])
            yy -= y * y
        return Statistics(x, y, xx, yx, yy)


def measure(
    reader: Reader,
    live: Sequence[Values],
    dense: Sequence[Values] | None = None,
    weight: Array | None = None,
    seed: int = 0,
) -> Moments:
    """Moments of what a reader reads, over the batches of a `Walk` that stands before it; with the same of the dense
    network and its weight, also of what the reader gave there."""
    moments = Moments(reader.groups, reader.features, 0 if dense is None else reader.outputs)
    work = min(WORK / (reader.features + moments.outputs), VALUES) / (reader.groups * reader.features)
    rows = max(1, int(max(256, ROWS * reader.features, work)) // max(1, len(live)))
    matrix = None if weight is None else reader.matrix(weight).astype(np.float32).transpose(0, 2, 1)
    waiting: tuple[list[list[Array]], list[list[Array]]] = [], []  # together: a sum costs as much as so many rows

    def add(part: int) -> None:
        if waiting[part]:
            x, *same = (np.concatenate(arrays, axis=1) for arrays in zip(*waiting[part], strict=True))
            moments.add(x, bool(part), same[0] @ matrix if same else None)
            waiting[part].clear()

    for number, values in enumerate(live):
        part = int(number % HELD == HELD - 1)
        both = [values] if dense is None or matrix is None else [values, dense[number]]
        x = [reader.unfold(v, np.random.default_rng((seed, number)), rows) for v in both]
        waiting[part].append([a.astype(np.float32, copy=False) for a in x])
        if sum(a[0].shape[1] for a in waiting[part]) >= reader.features:
            add(part)
    add(0)
    add(1)
    return moments
