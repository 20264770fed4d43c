"""Shapes of kernels: few ways in which the taps of a kernel may stay, found from the weights (PatDNN, Niu et al. 2020,
arXiv:2001.00138, section 4; SparseByteNN, Xu et al. 2023, arXiv:2310.18509).

Every kernel's own best shape, its k taps of largest score, is a candidate. Shapes are taken one after the other, each time
the one that adds most to the score that all kernels keep, each in the best shape taken so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Shapes = npt.NDArray[np.bool_]  # [shapes, taps]
CANDIDATES = 128  # the most valuable; 3 x 3 kernels have 126 shapes of 4 taps
SAMPLE = 1 << 14  # kernels that decide


def find(scores: npt.NDArray[Any], k: int, most: int) -> Shapes:
    """At most `most` shapes of `k` taps for kernels with these scores [kernels, taps]."""
    taps = scores.shape[1]
    if k >= taps:
        return np.ones((1, taps), bool)
    some = scores[:: max(1, len(scores) // SAMPLE)]
    natural = np.zeros(some.shape, bool)
    np.put_along_axis(natural, np.argsort(-some, axis=1, kind="stable")[:, :k], True, axis=1)
    candidates, which = np.unique(natural, axis=0, return_inverse=True)
    worth = np.bincount(which.reshape(-1), (some * natural).sum(1), len(candidates))
    candidates = candidates[np.argsort(-worth, kind="stable")[:CANDIDATES]]
    kept = some @ candidates.T.astype(some.dtype)  # [kernels, candidates]
    best, taken = np.zeros(len(some), kept.dtype), list[int]()
    for _ in range(min(most, len(candidates))):
        gains = np.maximum(kept - best[:, None], 0).sum(0)
        taken.append(int(np.argmax(gains)))
        best = np.maximum(best, kept[:, taken[-1]])
    return candidates[sorted(set(taken))]


def mask(scores: npt.NDArray[Any], shapes: Shapes) -> npt.NDArray[np.bool_]:
    """[kernels, taps]: every kernel in the shape that keeps most of its score."""
    found: npt.NDArray[np.bool_] = shapes[np.argmax(scores @ shapes.T.astype(scores.dtype), axis=1)]
    return found


def fit(there: npt.NDArray[np.bool_], k: int, most: int) -> bool:
    """Are `most` shapes of `k` taps enough for kernels whose taps [kernels, taps] are not zero?

    Kernels with fewer taps go into a shape that holds them; those left over are joined, the first that fits."""
    if k >= there.shape[1]:
        return True
    supports = np.unique(there, axis=0)
    supports = supports[np.argsort(-supports.sum(1), kind="stable")]
    shapes: list[npt.NDArray[np.bool_]] = []
    for support in supports:
        if support.sum() > k:
            return False
        home = next((i for i, s in enumerate(shapes) if (s | support).sum() <= max(k, s.sum())), None)
        if home is None:
            shapes.append(support.copy())
        else:
            shapes[home] |= support
    return len(shapes) <= most
