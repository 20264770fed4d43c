"""Refit: the least squares solution of every row on the weights that its mask leaves.

With C the second moment of the inputs, S the survivors of a row and w the row as it was,

    w'_S = w_S + (C_SS + d I)^-1 C_SP w_P         (P: what goes; d shrinks the correction, not the weights)

which is `spa.passes.compensate` with a mask per row. Rows with equal masks are solved together; where factors for all
rows would take longer than that, conjugate gradients run on all rows at once, until they gain nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from spa.sparsity.patterns import Mask
from spa.sparsity.sparsegpt import NOISE, damped

Matrix = npt.NDArray[Any]  # float64 or float32
WIDE = 1024  # columns: beyond, rows are not searched for equal masks
EXACT_FLOPS = 2e10  # of all factorisations of a layer
ITERATIONS = 60  # of conjugate gradients, at most
ENOUGH = 1e-3  # of what they gained so far: two steps that gain less are the last


def is_exact(mask: Mask) -> bool:
    """Is a layer with this mask solved exactly?"""
    return flops(mask) <= EXACT_FLOPS or (mask.shape[1] <= WIDE and flops(np.unique(mask, axis=0)) <= EXACT_FLOPS)


def refit(
    weight: Matrix,
    moment: Matrix,
    mask: Mask,
    damping: float = 1e-3,
    start: Matrix | None = None,
    exact: bool | None = None,
) -> Matrix:
    """[rows, cols]: the closest weights with this mask, in the sense of the inputs' second `moment`. `exact`: by factors
    (decided by `is_exact` without), else by conjugate gradients from `start`."""
    if not (is_exact(mask) if exact is None else exact):
        return conjugate(weight, damped(moment, damping), mask, start)
    patterns, which = np.unique(mask, axis=0, return_inverse=True)
    h = damped(moment, damping)
    out = np.zeros_like(weight)
    order = np.argsort(which.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(which.reshape(-1), minlength=len(patterns)))
    for kept, rows in zip(patterns, np.split(order, ends[:-1]), strict=True):
        if not kept.any():
            continue
        try:
            block = linalg.cho_factor(h[np.ix_(kept, kept)], lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:  # rounding left the moment indefinite: then only more damping will do
            if damping > 1:
                raise
            return refit(weight, moment, mask, max(10 * damping, NOISE), start, exact=True)
        shift = linalg.cho_solve(block, moment[np.ix_(kept, ~kept)] @ weight[np.ix_(rows, ~kept)].T, check_finite=False)
        out[np.ix_(rows, kept)] = weight[np.ix_(rows, kept)] + shift.T
    return out


def conjugate(weight: Matrix, h: Matrix, mask: Mask, start: Matrix | None = None) -> Matrix:
    """Preconditioned conjugate gradients for min (x - w) h (x - w)^T over x within the mask, all rows at once."""
    inverse = (1 / np.diag(h)).astype(np.float32)
    h32, keep, w = h.astype(np.float32), mask.astype(np.float32), weight.astype(np.float32, copy=False)
    x = (w if start is None else start.astype(np.float32, copy=False)) * keep
    residual = (w - x) @ h32
    residual *= keep
    p = residual * inverse
    rz = dots(residual, p)
    gained, idle = 0.0, 0
    for _ in range(ITERATIONS):
        hp = p @ h32
        hp *= keep
        step = rz / np.maximum(dots(p, hp), 1e-30)
        x += step * p
        hp *= step
        residual -= hp
        gain = float((step * rz).sum(dtype=np.float64))
        gained += gain
        idle = idle + 1 if gain <= ENOUGH * gained else 0
        if idle == 2:
            break
        z = residual * inverse
        rz, before = dots(residual, z), rz
        p *= rz / np.maximum(before, 1e-30)
        p += z
    return x


def dots(a: Matrix, b: Matrix) -> Matrix:
    """[rows, 1]"""
    found: Matrix = np.einsum("rc,rc->r", a, b)[:, None]
    return found


def flops(mask: Mask) -> float:
    """Of the factorisations, one per row (fewer where rows share masks)."""
    return float((mask.sum(1, dtype=np.float64) ** 3).sum()) / 3
