"""A mask for the whole matrix at once, by the alternating direction method of multipliers.

min tr (W - W0) H (W - W0)^T over W with a pattern, split into a free W and a D that has the pattern:

    W = (W0 H + r D - V) (H + r I)^-1        D = P(W + V / r)        V = V + r (W - D)

with P the projection (the pattern's mask of the squares) and r growing until the mask stands (Meng et al. 2024, ALPS,
arXiv:2406.07831; Boza 2024, arXiv:2401.02938). Inputs are scaled to a second moment of one before, so that P weighs
them by what they carry. Better than a sweep that settles column after column, and dearer.

Only the mask is taken from here, so products are in float32; H is decomposed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spa.sparsity.patterns import Mask, Pattern
from spa.sparsity.sparsegpt import damped

Matrix = npt.NDArray[Any]  # float64 or float32
ROUNDS = 300
FIRST, GROWTH = 0.1, (1.3, 1.2, 1.1)  # r, and its growth where much, some or little of the mask changed
EVERY = 3  # rounds per r
STANDS = 1e-5  # of the mask: where less changes in a round, it stands


def search(weight: Matrix, moment: Matrix, pattern: Pattern, taps: int = 1, damping: float = 0.01) -> Mask:
    """The mask [rows, cols] of `weight` whose inputs have the second `moment` [cols, cols]."""
    h = damped(moment, damping)
    scale = np.sqrt(np.diag(h))
    exact, full = np.linalg.eigh(h / scale / scale[:, None])
    values, vectors = exact.astype(np.float32), full.astype(np.float32)
    w0 = (weight * scale).astype(np.float32)
    pattern = pattern.settled(np.square(w0), taps)
    target = ((w0 @ vectors) * values) @ vectors.T
    r, inverse = np.float32(FIRST), vectors
    d, v = w0, np.zeros_like(w0)
    mask = np.zeros(weight.shape, bool)
    for number in range(ROUNDS):
        if number % EVERY == 0:
            inverse = (vectors / (values + r)) @ vectors.T
        w = (target + r * d - v) @ inverse
        free = v / r
        free += w
        new = pattern.mask(np.square(free), taps)
        changed, mask = int((new != mask).sum()), new
        d = free * mask
        w -= d
        w *= r
        v += w
        if (number + 1) % EVERY == 0:
            share = changed / mask.sum()
            if share <= STANDS and number > 10 * EVERY:
                break
            r *= np.float32(GROWTH[0] if share > 0.1 else GROWTH[1] if share > 0.005 else GROWTH[2])
    return mask
