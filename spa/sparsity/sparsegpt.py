"""SparseGPT: one sweep of Optimal Brain Surgeon over the columns of a matrix.

With U the upper Cholesky factor of H^-1 (H the second moment of the inputs, damped), U U^T = H^-1 taken from the last
column on, removing w_j costs w_j^2 / U_jj^2 given that all columns before j are settled, and is best made up for by

    w_k -= w_j / U_jj * U_jk          for all k > j

(Frantar & Alistarh 2023, arXiv:2301.00774, eq. 4 and algorithm 1). Updates beyond a chunk of columns are gathered and
applied as one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from spa.sparsity.patterns import Mask, Pattern

Matrix = npt.NDArray[Any]  # float64 or float32
DAMPING = 0.01  # of the mean of the diagonal
CHUNK = 128  # columns
NOISE = 2e-7  # of the trace


def damped(moment: Matrix, damping: float) -> Matrix:
    """`moment` with a multiple of its mean variance added to the diagonal, and what its sums in float32 are not sure of."""
    total = float(np.trace(moment, dtype=np.float64))
    found = moment.astype(np.float64)
    found[np.diag_indices(len(found))] += damping * total / max(1, len(found)) + NOISE * total + 1e-12
    return found


def factor(moment: Matrix, damping: float) -> Matrix:
    """U [cols, cols], upper triangular, with U^T U the inverse of the damped moment; more damped where rounding has left
    that indefinite."""
    try:
        return _factor(damped(moment, damping))
    except linalg.LinAlgError:
        if damping > 1:
            raise
        return factor(moment, max(10 * damping, NOISE))


def _factor(h: Matrix) -> Matrix:
    # LAPACK works on columns, in place: the transposed array is what it reads
    lower = linalg.cholesky(h.T, lower=True, overwrite_a=True, check_finite=False)
    inverse, _ = linalg.lapack.dpotri(lower, lower=1, overwrite_c=1)  # its lower half
    upper: Matrix = linalg.cholesky(inverse, lower=True, overwrite_a=True, check_finite=False).T
    return upper


def sweep(
    weight: Matrix, moment: Matrix, pattern: Pattern, taps: int = 1, damping: float = DAMPING
) -> tuple[Mask, Matrix]:
    """The mask [rows, cols] and the weights that the sweep leaves. `moment` [cols, cols] is that of the inputs."""
    cols = weight.shape[1]
    dtype = np.dtype(np.float64 if weight.size < 1 << 20 else np.float32)
    order = np.arange(cols)
    pattern = pattern.settled(weight**2 * np.diag(moment), taps)
    if pattern.by_kernel:  # what is decided together must stand together
        order = order.reshape(taps, -1).T.reshape(-1)
        weight, moment = weight[:, order], moment[np.ix_(order, order)]
    upper: Matrix = factor(moment, damping).astype(dtype)
    w: Matrix = np.array(weight, dtype, order="C")
    mask: Mask = np.zeros(w.shape, bool)
    shares = pattern.adjustable
    saliency = np.zeros(w.shape if shares else (0, cols), dtype)
    pool = pattern.pool_width(taps) * (pattern.cols if pattern.kind == "nm" else 1)
    width = max(pool, CHUNK // pool * pool)
    for start in range(0, cols, width):
        end = min(cols, start + width)
        chunk, u = w[:, start:end], upper[start:end, start:end]
        errors = np.zeros_like(chunk)
        step = end - start if shares else pool
        for j in range(end - start):
            if j % step == 0:
                part = slice(j, min(j + step, end - start))
                scores: Matrix = (chunk[:, part] / np.diag(u)[part]) ** 2
                if shares:
                    saliency[:, start:end][:, part] = scores
                mask[:, start:end][:, part] = _decide(scores, pattern, taps)
            errors[:, j] = np.where(mask[:, start + j], 0, chunk[:, j]) / u[j, j]
            chunk[:, j:] -= np.outer(errors[:, j], u[j, j:])
        w[:, end:] -= errors @ upper[start:end, end:]
    w *= mask
    if pattern.by_kernel:
        back = np.argsort(order)
        mask, saliency, w = mask[:, back], saliency[:, back], w[:, back]
    if shares:  # they were rounded chunk by chunk
        mask &= pattern.mask(np.where(mask, saliency + np.finfo(np.float32).tiny, 0), taps)
        w *= mask
    return mask, w


def _decide(scores: Matrix, pattern: Pattern, taps: int) -> Mask:
    if pattern.by_kernel:  # here the taps of a kernel stand side by side
        turned = scores.reshape(len(scores), -1, taps).swapaxes(1, 2).reshape(scores.shape)
        mask = pattern.mask(turned, taps)
        return mask.reshape(len(scores), taps, -1).swapaxes(1, 2).reshape(scores.shape)
    return pattern.mask(scores, taps)
