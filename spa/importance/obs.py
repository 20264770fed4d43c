"""Optimal Brain Surgeon over coupled channels: what removing a channel costs once its readers are repaired.

For a reader with weight W and input covariance C, removing the features p and re-solving the rest raises the squared
output error by tr(W_p [C^-1]_pp^-1 W_p^T) (Hassibi & Stork 1993, eq. 5; for groups of rows OBSPA, arXiv 2403.18955,
eq. 8). Channels are eliminated greedily, cheapest first, with W and C^-1 updated on the way, so that the order knows
that the second of two equal channels is dear once the first is gone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import linalg

from spa.execution import blas

Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

DAMPING = 0.01  # of the mean of the diagonal
CHUNKS = 48  # a group is eliminated in at most about this many steps


@dataclass(eq=False)
class Task:
    """One reader of a group: weight [outputs, features], covariance of its input, feature -> channel (-1: another's)."""

    weight: Matrix
    covariance: Matrix
    labels: Labels


@dataclass(frozen=True)
class Order:
    """Channels in the order in which they go, and per channel the error so far, relative to the outputs' variance;
    `weights`: number removed -> weight of each task then, re-solved, in float32."""

    channels: list[int]
    errors: list[float]
    weights: dict[int, list[npt.NDArray[np.float32]]] = field(default_factory=dict)


def damped(covariance: Matrix, damping: float = DAMPING) -> Matrix:
    scale = float(np.trace(covariance)) / max(1, len(covariance))
    return covariance + np.eye(len(covariance)) * (damping * scale + 1e-12)


def eliminate(
    tasks: list[Task], size: int, keep: Collection[int] = (), damping: float = DAMPING, stops: Collection[int] = ()
) -> Order:
    """Greedy elimination of all channels of a group but those in `keep`; several readers add up their relative errors.

    At each number of channels in `stops` the weights are noted."""
    with blas(max((len(t.labels) for t in tasks), default=0)):
        return _eliminate(tasks, size, keep, damping, stops)


def _eliminate(tasks: list[Task], size: int, keep: Collection[int], damping: float, stops: Collection[int]) -> Order:
    inverses = [linalg.inv(damped(t.covariance, damping)) for t in tasks]
    weights = [t.weight.copy() for t in tasks]
    energy = [max(1e-12, float(np.einsum("of,of->", t.weight @ t.covariance, t.weight))) for t in tasks]
    groups = [_members(t.labels, size) for t in tasks]
    alive = np.ones(size, bool)
    alive[list(keep)] = False
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    step = max(1, size // CHUNKS)
    noted: dict[int, list[npt.NDArray[np.float32]]] = {}
    while alive.any():
        to_stop = min((n - len(order) for n in stops if n > len(order)), default=size)
        costs = np.zeros(size)
        for w, inverse, members, norm in zip(weights, inverses, groups, energy, strict=True):
            costs += _costs(w, inverse, members, alive) / norm
        costs[~alive] = np.inf
        chosen = np.argsort(costs, kind="stable")[: min(step, to_stop, int(alive.sum()))]
        for w, inverse, members, norm in zip(weights, inverses, groups, energy, strict=True):
            index = np.concatenate([members[c] for c in chosen])
            if len(index):
                total += _remove(w, inverse, index) / norm
        for c in chosen:
            order.append(int(c))
            errors.append(total)
        alive[chosen] = False
        if len(order) in stops:
            noted[len(order)] = [w.astype(np.float32) for w in weights]
    return Order(order, errors, noted)


def _members(labels: Labels, size: int) -> list[Labels]:
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(size + 1))
    return [order[bounds[c] : bounds[c + 1]] for c in range(size)]


def _costs(w: Matrix, inverse: Matrix, members: list[Labels], alive: npt.NDArray[np.bool_]) -> Matrix:
    costs = np.zeros(len(members))
    live = np.flatnonzero(alive)
    sizes = {len(members[c]) for c in live}
    for n in sizes - {0}:
        same = np.array([c for c in live if len(members[c]) == n])
        index = np.array([members[c] for c in same])  # [channels, n]
        blocks = inverse[index[:, :, None], index[:, None, :]]
        rows = w[:, index].transpose(1, 2, 0)  # [channels, n, outputs]
        solved = np.linalg.solve(blocks, rows)
        costs[same] = np.einsum("cno,cno->c", rows, solved)
    return costs


def _remove(w: Matrix, inverse: Matrix, index: Labels) -> float:
    """Eliminate features in place; returns the error this adds."""
    block = inverse[np.ix_(index, index)]
    gain = linalg.solve(block, inverse[index], assume_a="pos")  # [n, features]
    error = float(np.einsum("on,no->", w[:, index], linalg.solve(block, w[:, index].T, assume_a="pos")))
    w -= w[:, index] @ gain
    inverse -= inverse[:, index] @ gain
    w[:, index] = 0
    inverse[index] = 0
    inverse[:, index] = 0
    inverse[index, index] = 1
    return max(0.0, error)
