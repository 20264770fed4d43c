"""Refit: the least squares solution of every row on the weights that its mask leaves.

With C the second moment of the inputs, S the survivors of a row and w the row as it was,

    w'_S = w_S + (C_SS + d I)^-1 C_SP w_P         (P: what goes; d shrinks the correction, not the weights)

which is `spa.passes.compensate` with a mask per row. Rows with equal masks are solved together; where factors for all
rows would take too long, conjugate gradients run on all rows at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg

from spa.sparsity.patterns import Mask
from spa.sparsity.sparsegpt import damped

Matrix = npt.NDArray[np.float64]
EXACT_FLOPS = 1e12  # of all factorisations of a layer
ITERATIONS = 15  # of conjugate gradients


def refit(weight: Matrix, moment: Matrix, mask: Mask, damping: float = 1e-3, start: Matrix | None = None) -> Matrix:
    """[rows, cols]: the closest weights with this mask, in the sense of the inputs' second `moment`."""
    patterns, which = np.unique(mask, axis=0, return_inverse=True)
    h = damped(moment, damping)
    if flops(patterns) > EXACT_FLOPS:
        return conjugate(weight, h, mask, start)
    out = np.zeros_like(weight)
    order = np.argsort(which.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(which.reshape(-1), minlength=len(patterns)))
    for kept, rows in zip(patterns, np.split(order, ends[:-1]), strict=True):
        if not kept.any():
            continue
        block = linalg.cho_factor(h[np.ix_(kept, kept)], lower=True, overwrite_a=True, check_finite=False)
        shift = linalg.cho_solve(block, moment[np.ix_(kept, ~kept)] @ weight[np.ix_(rows, ~kept)].T, check_finite=False)
        out[np.ix_(rows, kept)] = weight[np.ix_(rows, kept)] + shift.T
    return out


def conjugate(weight: Matrix, h: Matrix, mask: Mask, start: Matrix | None = None) -> Matrix:
    """Preconditioned conjugate gradients for min (x - w) h (x - w)^T over x within the mask, all rows at once."""
    h32, keep = h.astype(np.float32), mask.astype(np.float32)
    inverse = (1 / np.diag(h)).astype(np.float32)
    w = weight.astype(np.float32)
    x = (w if start is None else start.astype(np.float32)) * keep
    residual = ((w - x) @ h32) * keep
    z = residual * inverse
    p, rz = z, (residual * z).sum(1, keepdims=True)
    limit = 1e-8 * rz
    for _ in range(ITERATIONS):
        hp = (p @ h32) * keep
        step = rz / np.maximum((p * hp).sum(1, keepdims=True), 1e-30)
        x, residual = x + step * p, residual - step * hp
        z = residual * inverse
        rz, before = (residual * z).sum(1, keepdims=True), rz
        if (rz <= limit).all():
            break
        p = z + rz / np.maximum(before, 1e-30) * p
    return x.astype(np.float64)


def flops(mask: Mask) -> float:
    """Of the factorisations, one per row (fewer where rows share masks)."""
    return float((mask.sum(1, dtype=np.float64) ** 3).sum()) / 3
