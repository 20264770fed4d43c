"""Scores and masks: which weights of a matrix stay, from the weights alone or with what their inputs carry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spa.sparsity.patterns import Mask, Pattern

Matrix = npt.NDArray[np.float64]
CRITERIA = ("magnitude", "wanda", "sparsegpt", "admm")


def magnitude(weight: Matrix) -> Matrix:
    """w^2, which sums over blocks as the error of dropping them does (inputs alike and uncorrelated)."""
    return weight**2


def wanda(weight: Matrix, power: npt.NDArray[np.float64]) -> Matrix:
    """w^2 E[x^2]: the square of |w| ||x|| (Sun et al. 2024, arXiv:2306.11695, eq. 1). `power` [cols] is E[x^2]."""
    scores: Matrix = weight**2 * power
    return scores


def lamp(weight: Matrix) -> Matrix:
    """w^2 / sum of v^2 over all weights v of the layer that are no smaller (Lee et al. 2021, arXiv:2010.07611, eq. 1).

    Comparable across layers; the largest weight of each scores one, so that none is emptied."""
    square = np.sort(weight.reshape(-1) ** 2)
    order = np.argsort(weight.reshape(-1) ** 2, kind="stable")
    rest = np.cumsum(square[::-1])[::-1]
    scores = np.empty(weight.size)
    scores[order] = square / np.maximum(rest, 1e-300)
    return scores.reshape(weight.shape)


def prune_and_grow(
    weight: Matrix, moment: Matrix, mean: npt.NDArray[np.float64], mask: Mask, pattern: Pattern, rounds: int = 50
) -> Mask:
    """A better mask for weights that stay as they are: DSnoT (Zhang et al. 2024, arXiv:2310.08915).

    In each row one weight comes back, that which brings the expected output error e = (w - m w) E[x] closest to zero
    by the most (over the spread of its input), and one goes: of those whose loss moves e the same way the one with
    the least |w| ||x||. Rows stop when their e would no longer shrink. Masks whose rows depend on each other (blocks,
    bands, kernels) are left alone; in N:M both weights are of the same M."""
    if pattern.kind not in ("unstructured", "nm", "fanin") or pattern.rows > 1:
        return mask
    mask = mask.copy()
    rows, at = np.arange(len(weight)), np.arange(weight.shape[1])
    power, spread = np.diag(moment) + mean**2, np.sqrt(np.maximum(np.diag(moment), 1e-12))
    flow = weight * mean  # what each weight adds to the expected output
    cheap = wanda(weight, power)
    error = np.where(mask, 0, flow).sum(1)
    active = np.ones(len(weight), bool)
    for _ in range(rounds):
        gain = np.where(mask, -np.inf, flow * np.sign(error)[:, None] / spread)
        grow = gain.argmax(1)
        same = (at // pattern.m == (grow // pattern.m)[:, None]) if pattern.m else True
        allowed = mask & same & (flow * np.sign(error)[:, None] < 0)
        prune = np.where(allowed, cheap, np.inf).argmin(1)
        after = error - flow[rows, grow] + flow[rows, prune]
        active &= allowed[rows, prune] & np.isfinite(gain[rows, grow]) & (np.abs(after) < np.abs(error))
        if not active.any():
            break
        mask[rows[active], grow[active]] = True
        mask[rows[active], prune[active]] = False
        error = np.where(active, after, error)
    return mask
