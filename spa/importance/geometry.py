"""Criteria of how channels lie to each other, in the weights they come out of."""

from __future__ import annotations

import numpy as np

from spa.importance.table import Criterion
from spa.importance.tensors import GroupTensors, Matrix, Rows, Score

MAX_WORK = 1e10  # multiply-accumulates of a matrix of inner products, beyond which rows are sketched


def fpgm(group: GroupTensors) -> list[Score]:
    """sum_j |w_c - w_j|_2 per tensor: a channel near the geometric median can be replaced by the others
    (He et al., Filter Pruning via Geometric Median, arXiv 1811.00250, eq. 4 and 8)."""
    return [distances(gram(t.rows())).sum(1) for t in group.producers()]


def cosine(group: GroupTensors) -> list[Score]:
    """What is left of a channel once the most similar other stands in for it: |w_c| sin(w_c, w_k), |w_c| where no other
    points its way; over all producers together. The cheapest goes first, and the others then look again, so that the
    second of two equal channels is dear (after Mussay et al. and Srinivas & Babu, Data-free Parameter Pruning,
    arXiv 1507.06149, eq. 4, with a scale in place of equality)."""
    products = np.zeros((group.size, group.size))
    for t in group.producers():
        products += gram(t.rows())
    return [redundancy(products)]


def gram(rows: Rows) -> Matrix:
    """[channels, channels] inner products, in double precision; of signed sums of random blocks of entries where the
    rows are too long (count sketch: unbiased, relative error about sqrt(2 / blocks))."""
    size, entries = rows.shape
    blocks = max(64, int(MAX_WORK / size**2))
    if entries > 2 * blocks:
        rng = np.random.default_rng(0)
        signs = rng.choice(np.array([-1, 1], np.float32), entries)
        starts = np.linspace(0, entries, blocks, endpoint=False).astype(np.int64)
        rows = np.add.reduceat((rows * signs)[:, rng.permutation(entries)], starts, axis=1)
    double = rows.astype(np.float64)
    products: Matrix = double @ double.T
    return products


def distances(products: Matrix) -> Matrix:
    squared = np.diag(products)
    between: Matrix = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * products, 0))
    np.fill_diagonal(between, 0)
    return between


def redundancy(products: Matrix) -> Score:
    """Greedy elimination by distance to the ray of the nearest channel left; scores never fall along the order."""
    size = len(products)
    norm = np.sqrt(np.maximum(np.diag(products), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        similar = np.nan_to_num(products / np.outer(norm, norm), nan=0.0, posinf=0.0, neginf=0.0)
    np.fill_diagonal(similar, -np.inf)
    nearest = similar.argmax(1)
    cost = residual(norm, similar[np.arange(size), nearest])
    score, highest = np.zeros(size), 0.0
    for _ in range(size):
        gone = int(np.argmin(cost))
        highest = max(highest, cost[gone])
        score[gone] = highest
        cost[gone] = np.inf
        similar[:, gone] = -np.inf
        orphans = np.flatnonzero((nearest == gone) & np.isfinite(cost))
        nearest[orphans] = similar[orphans].argmax(1)
        cost[orphans] = residual(norm[orphans], similar[orphans, nearest[orphans]])
    return score


def residual(norm: Score, similarity: Score) -> Score:
    along = np.clip(similarity, 0, 1)
    left: Score = norm * np.sqrt(1 - along**2)
    return left


FPGM = Criterion(fpgm)
COSINE = Criterion(cosine)
