"""From rows per tensor to one score per channel, and scores of different groups on one scale (SPA, arXiv 2403.18955,
section 3.3: aggregation over a coupled group, then normalisation within it)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spa.importance.tensors import Score

# rows [tensors, channels] -> [channels]
AGGREGATES: dict[str, Callable[[Score], Score]] = {
    "sum": lambda rows: rows.sum(0),
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0),
    "median": lambda rows: np.median(rows, 0),
    "product": lambda rows: geometric(rows),
}


def geometric(rows: Score) -> Score:
    """The product's root, so that a hundred tensors neither overflow nor vanish; the order is the product's.

    A channel one of whose rows is zero gets zero."""
    with np.errstate(divide="ignore"):
        found: Score = np.exp(np.log(np.maximum(rows, 0)).mean(0))
    return found


def lamp(score: Score) -> Score:
    """LAMP (Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, arXiv 2010.07611, eq. 4), over channels
    in place of weights: s_c² over the sum of s_j² of all channels that would still be there, those with s_j >= s_c.

    >>> lamp(np.array([1.0, 3.0, 2.0])).round(3).tolist()
    [0.071, 1.0, 0.308]
    """
    order = np.argsort(score, kind="stable")
    ordered = score[order] ** 2
    left = np.cumsum(ordered[::-1])[::-1]
    out = np.empty_like(score)
    out[order] = np.divide(ordered, left, out=np.zeros_like(ordered), where=left > 0)
    return out


def over(score: Score, by: float) -> Score:
    return score / by if by > 0 else score


# [channels] -> [channels]
NORMALISATIONS: dict[str, Callable[[Score], Score]] = {
    "none": lambda s: s,
    "mean": lambda s: over(s, float(s.mean())),
    "max": lambda s: over(s, float(s.max())),
    "sum": lambda s: over(s, float(s.sum())),
    "gaussian": lambda s: over(s - s.mean(), float(s.std())),
    "lamp": lamp,
}
