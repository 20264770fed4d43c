"""Agreement of two networks' outputs, counted while the inputs stream by: relative error, answers that stay, classes and
inputs that change theirs, Kullback-Leibler divergence."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
BROKEN = (
    1e6  # relative error of outputs that are NaN or infinite where the dense ones are numbers: sorts, sums, is JSON
)
CLASSES, EXEMPLARS = 20, 20  # how many are named; all are counted
TOP = 5
Z = 1.959964  # two-sided 95 %
FLOOR = float(np.log(np.finfo(np.float32).tiny))  # of log-probabilities: a zero is one that float32 could not hold
CHUNK = 1 << 21  # scores that are widened to float64 at a time


@dataclass(frozen=True)
class Forgotten:
    """A class (of the dense network's answers): `changed` of its `count` rows get another answer; `low`, `high`: Wilson's
    95 % interval of that rate."""

    label: int
    count: int
    changed: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Exemplar:
    """An input whose answer changed: sample `input`, `position` where an output has several rows per sample. Margins are
    the probability of the class `was` minus that of the best other class, in the dense and the pruned network."""

    input: int
    position: int
    was: int
    now: int
    margin_before: float
    margin_after: float


@dataclass(frozen=True)
class Scores:
    """Agreement over `rows` decisions. `top5`: the dense answer is among the pruned network's five best (None for five
    classes and fewer). `kl`: mean of KL(dense || pruned) in nats. `accuracy`: before and after, where labels were given."""

    classes: int
    rows: int
    top1: float
    top5: float | None
    kl: float
    probabilities: bool  # the rows are probabilities already: no softmax was applied
    forgotten: tuple[Forgotten, ...]  # worst first, by the lower end of the interval
    exemplars: tuple[Exemplar, ...]  # most margin lost first
    accuracy: tuple[float, float] | None = None


@dataclass(frozen=True)
class Output:
    """`error`: || y - y' || / || y ||, None where it is not floating-point; `reshaped`: inputs for which the shapes differ."""

    name: str
    error: float | None
    reshaped: int
    scores: Scores | None


class Deviation:
    """Sums for || y - y' ||_2 / || y ||_2, in float64, over the numbers that are finite in y."""

    def __init__(self) -> None:
        self.error = self.norm = 0.0
        self.broken = self.seen = False

    def add(self, a: Any, b: Any) -> None:
        """Arrays of one floating-point output; anything else, or other shapes, do not count."""
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.shape != np.shape(b):
            return
        self.seen = True
        finite = np.isfinite(a)
        a64, b64 = a[finite].astype(np.float64), np.asarray(b)[finite].astype(np.float64)
        self.broken |= not np.isfinite(b64).all()
        self.norm += float(a64 @ a64)
        a64 -= b64
        self.error += float(a64 @ a64)

    @property
    def relative(self) -> float:
        if self.broken:
            return BROKEN
        if self.norm == 0:
            return BROKEN if self.error > 0 else 0.0
        return min(BROKEN, math.sqrt(self.error / self.norm))


class Tally:
    """What is counted of one output while the inputs stream by."""

    def __init__(self, name: str, labels: npt.NDArray[Any] | None = None) -> None:
        self.name, self.labels = name, labels
        self.deviation = Deviation()
        self.reshaped = self.rows = self.top1 = self.top5 = 0
        self.kl = 0.0
        self.classes: int | None = None  # 0 once it turned out that these are no class scores
        self.probabilities = False
        self.worst: list[tuple[float, int, Exemplar]] = []  # a heap of the EXEMPLARS with the most margin lost
        self.right = [0, 0]
        self.labelled = 0

    def add(self, a: Any, b: Any, first: int, count: int) -> None:
        """One feed's output, dense and pruned: `count` samples, the first of them number `first`."""
        if np.shape(a) != np.shape(b):
            self.reshaped += 1
            self.classes = 0
            return
        self.deviation.add(a, b)
        self.look(a)
        if not self.classes or not a.size:
            return
        x, y = a.reshape(-1, self.classes), b.reshape(-1, self.classes)
        step = max(1, CHUNK // self.classes)
        per = len(x) // count if a.shape[0] == count else len(x)
        if self.labels is not None and a.ndim == 2 and a.shape[0] == count:
            truth = self.labels[first : first + count]
            self.labelled += len(truth)
            for k, scores in enumerate((x, y)):
                self.right[k] += int((scores[: len(truth)].argmax(1) == truth).sum())
        for start in range(0, len(x), step):
            self.decide(x[start : start + step], y[start : start + step], start, first, per)

    def look(self, a: Any) -> None:
        """Do these look like class scores, and like those seen before?"""
        fits = isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.ndim in (2, 3) and a.shape[-1] > 1
        if self.classes is None and fits:
            self.classes = int(a.shape[-1])
            self.probabilities = are_probabilities(a.reshape(-1, self.classes))
            self.count, self.changed = np.zeros(self.classes, np.int64), np.zeros(self.classes, np.int64)
        elif not fits or self.classes != a.shape[-1]:
            self.classes = 0

    def decide(self, x: npt.NDArray[Any], y: npt.NDArray[Any], start: int, first: int, per: int) -> None:
        """Rows [n, classes] from row `start` of a feed on, `per` of them to a sample; rows that the dense
        network leaves undecided (NaN, infinite) do not count, such rows of the pruned one are changed."""
        sound = np.isfinite(x.max(1))
        place = np.flatnonzero(sound) + start
        p, q = (log_probabilities(s[sound], self.probabilities) for s in (x, y))
        lost = np.isnan(q).any(1)
        q[lost] = -np.log(q.shape[1])  # says nothing
        row = np.arange(len(p))
        was, now = x[sound].argmax(1), y[sound].argmax(1)
        rank = (y[sound] > y[sound][row, was][:, None]).sum(1)
        change = (was != now) | lost
        self.rows += len(p)
        self.top1 += int((~change).sum())
        self.top5 += int(((rank < TOP) & ~lost).sum())
        self.kl += float((np.exp(p) * (p - q)).sum(1).clip(min=0).sum())
        np.add.at(self.count, was, 1)
        np.add.at(self.changed, was[change], 1)
        at = np.flatnonzero(change)
        before, after = margins(p[at], was[at]), margins(q[at], was[at])
        for k in np.argsort(after - before, kind="stable")[:EXEMPLARS]:
            i, where = at[k], int(place[at[k]])
            found = Exemplar(
                first + where // per,
                where % per,
                int(was[i]),
                int(now[i]),
                round(float(before[k]), 6),
                round(float(after[k]), 6),
            )
            entry = (float(before[k] - after[k]), -(first * per + where), found)  # of equal ones the first stays
            (heapq.heappush if len(self.worst) < EXEMPLARS else heapq.heappushpop)(self.worst, entry)

    def output(self) -> Output:
        error = self.deviation.relative if self.deviation.seen else None
        return Output(self.name, error, self.reshaped, self.scores() if self.classes and self.rows else None)

    def scores(self) -> Scores:
        low, high = wilson(self.changed, self.count)
        order = np.lexsort((np.arange(len(low)), -self.changed, -low))
        named = [int(c) for c in order[:CLASSES] if self.changed[c]]
        return Scores(
            classes=len(self.count),
            rows=self.rows,
            top1=self.top1 / self.rows,
            top5=self.top5 / self.rows if len(self.count) > TOP else None,
            kl=self.kl / self.rows,
            probabilities=self.probabilities,
            forgotten=tuple(
                Forgotten(
                    c,
                    int(self.count[c]),
                    int(self.changed[c]),
                    round(float(self.changed[c] / self.count[c]), 6),
                    round(float(low[c]), 6),
                    round(float(high[c]), 6),
                )
                for c in named
            ),
            exemplars=tuple(e for _, _, e in sorted(self.worst, key=lambda entry: (-entry[0], -entry[1]))),
            accuracy=(self.right[0] / self.labelled, self.right[1] / self.labelled) if self.labelled else None,
        )


def are_probabilities(rows: npt.NDArray[Any]) -> bool:
    """[n, classes]: does every row sum to one, with nothing below zero?"""
    return (
        bool(len(rows)) and bool((rows >= 0).all()) and bool((np.abs(rows.sum(1, dtype=np.float64) - 1) < 1e-2).all())
    )


def log_probabilities(rows: npt.NDArray[Any], probabilities: bool) -> Matrix:
    """[n, classes] class scores -> log-probabilities; where one is minus infinity, the logarithm of the smallest float32."""
    from scipy.special import log_softmax

    x = rows.astype(np.float64)
    if probabilities:
        x = np.maximum(x, np.finfo(np.float32).tiny)
        log: Matrix = np.log(x / x.sum(1, keepdims=True))
    else:
        log = log_softmax(x, axis=1)
    return np.where(np.isneginf(log), FLOOR, log)


def margins(log: Matrix, label: npt.NDArray[np.intp]) -> Matrix:
    """[n]: the probability of each row's label minus that of the best other class."""
    p = np.exp(log)
    row = np.arange(len(p))
    own = p[row, label]
    p[row, label] = -np.inf
    found: Matrix = own - p.max(1) if len(p) else own
    return found


def wilson(changed: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """95 % score interval of a rate (Wilson 1927): (r + z^2/2n -+ z sqrt(r(1-r)/n + z^2/4n^2)) / (1 + z^2/n), with r = changed/n;
    nothing (0 to 1) is known of a class never seen.

    >>> [f"{end[0]:.3f}" for end in wilson(np.array([2]), np.array([5]))]
    ['0.118', '0.769']
    """
    n = np.maximum(count, 1)
    r, z = changed / n, Z**2 / n
    half = Z * np.sqrt(r * (1 - r) / n + z / (4 * n))
    low, high = (r + z / 2 - half) / (1 + z), (r + z / 2 + half) / (1 + z)
    return np.where(count > 0, np.clip(low, 0, 1), 0.0), np.where(count > 0, np.clip(high, 0, 1), 1.0)
