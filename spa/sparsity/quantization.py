"""Weights on a grid: 8 or 4 bits with a scale per group of columns, pruned weights exactly zero.

Scales are chosen group by group for the least squared error, columns weighed by the variance of what they read: the
range is narrowed step by step, and what lies outside is clipped. With the second moment H of the inputs the codes are
then found column by column (GPTQ, arXiv 2210.17323, eq. 2 and 3): with U the upper Cholesky factor of H^-1,

    e_j = (w_j - q_j) / U_jj         w_k -= e_j U_jk   for all k > j

so that later columns make up for the rounding of earlier ones. A pruned entry is rounded to zero in the same sweep
(GQSA, arXiv 2412.17560, does both on blocks). Columns are taken by falling variance; scales are fixed before, so the
order does not matter to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spa.errors import UsageError
from spa.sparsity.formats.encoding import Array, Coded, Grid
from spa.sparsity.sparsegpt import factor

Matrix = npt.NDArray[np.float64]
DAMPING = 0.01  # of the mean variance
SHRINK = np.concatenate([np.linspace(1, 0.8, 11), np.linspace(0.77, 0.4, 12)])  # of the range, tried in this order
CHUNK = 128  # columns whose updates are gathered
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Encoding:
    """`group`: columns that share a scale; "channel": a whole row; "tensor": everything."""

    bits: int = 8
    group: int | str = "channel"
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"no weights of {self.bits} bits", hint="8 or 4; `halve` stores 16")
        if not (self.group in ("channel", "tensor") or (isinstance(self.group, int) and self.group > 0)):
            raise UsageError(f"no groups of {self.group}", hint="a number of columns, channel or tensor")

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest code. Of 8 bits with sign -128 stays unused: products of kernels may overflow by it."""
        if not self.symmetric:
            return 0, (1 << self.bits) - 1
        return (-127, 127) if self.bits == 8 else (-8, 7)

    def width(self, columns: int) -> int:
        """Of a group: at most `group` columns, all groups equal where a divisor of at least half as many allows it.

        >>> Encoding(group=64).width(144), Encoding(group=64).width(131)
        (48, 64)
        """
        if isinstance(self.group, str) or self.group >= columns:
            return max(1, columns)
        return next((g for g in range(self.group, self.group // 2, -1) if columns % g == 0), self.group)


def fit_grid(weight: Array, encoding: Encoding, importance: Array | None = None, width: int | None = None) -> Grid:
    """The grid of least squared error for weight [rows, columns]; `importance` [rows | 1, columns] weighs the entries."""
    rows, columns = weight.shape
    width = width or encoding.width(columns)
    by_tensor = encoding.group == "tensor"
    groups = -(-columns // width)
    share = np.ones((1, columns)) if importance is None else importance
    blocks, share = (
        np.pad(np.asarray(a, np.float32), ((0, 0), (0, groups * width - columns))).reshape(len(a), groups, width)
        for a in (weight, share)
    )
    if by_tensor:
        blocks, share = blocks.reshape(1, 1, -1), np.broadcast_to(share, blocks.shape).reshape(1, 1, -1)
    low, high = encoding.range
    bottom, top = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    best = None
    for shrink in SHRINK:
        if encoding.symmetric:
            scale, zero = shrink * np.maximum(top / high, bottom / low), np.zeros_like(top)
        else:
            scale = shrink * (top - bottom) / high
            zero = np.clip(np.round(-shrink * bottom / np.maximum(scale, TINY)), low, high)
        scale = np.where(scale < TINY, 1, scale).astype(np.float32)
        error = np.einsum("rgw,rgw->rg", share * np.ones_like(blocks), miss(blocks, scale, zero, low, high) ** 2)
        if best is None:
            best = error, scale, zero
        else:
            better = error < best[0]
            best = tuple(np.where(better, n, o) for n, o in zip((error, scale, zero), best, strict=True))
    _, scale, zero = best or (0, np.ones((rows, 0), np.float32), np.zeros((rows, 0)))
    return Grid(encoding.bits, width, scale, None if encoding.symmetric else zero.astype(np.uint8))


def miss(blocks: Array, scale: Array, zero: Array, low: int, high: int) -> Array:
    """What rounding leaves of blocks [rows, groups, width]."""
    z, s = zero[..., None], scale[..., None]
    missed: Array = blocks - (np.clip(np.round(blocks / s) + z, low, high) - z) * s
    return missed


def round_to(weight: Array, grid: Grid, encoding: Encoding) -> Coded:
    """The nearest code of every weight [rows, columns]."""
    scale, zero = grid.over((weight.shape[0], weight.shape[1]))
    codes = np.clip(np.round(weight / scale) + zero, *encoding.range)
    return Coded(codes.astype(np.int8 if grid.signed else np.uint8), grid)


def quantise(weight: Array, encoding: Encoding, moment: Matrix | None = None, width: int | None = None) -> Coded:
    """weight [rows, columns] on a grid; with the inputs' second `moment` [columns, columns], errors are compensated.

    Exact zeros stay. Rows where the sweep does not lower the error tr((W - Q) H (W - Q)^T) are rounded."""
    if not np.isfinite(weight).all():
        raise UsageError("a weight is not finite: there is no grid for it")
    importance = None if moment is None else np.diag(moment)[None]
    if importance is not None and not importance.any():
        moment = importance = None
    grid = fit_grid(weight, encoding, importance, width)
    rounded = round_to(weight, grid, encoding)
    if moment is None:
        return rounded
    swept = sweep(weight, grid, encoding, moment)
    better = row_errors(weight, swept, moment) < row_errors(weight, rounded, moment)
    return Coded(np.where(better[:, None], swept.codes, rounded.codes), grid)


def sweep(weight: Array, grid: Grid, encoding: Encoding, moment: Matrix, damping: float = DAMPING) -> Coded:
    """Column by column, see above. Entries that are zero before the sweep are zero after it."""
    low, high = encoding.range
    order = np.argsort(-np.diag(moment), kind="stable")
    upper = factor(np.ascontiguousarray(moment[np.ix_(order, order)]), damping)
    dtype = np.float64 if weight.size < 1 << 20 else np.float32
    w: Array = weight[:, order].astype(dtype)
    upper = upper.astype(dtype)
    pruned = weight[:, order] == 0
    scale, zero = (np.broadcast_to(a, weight.shape)[:, order] for a in grid.over((len(weight), len(order))))
    codes = np.empty(w.shape, np.int16)
    columns = w.shape[1]
    for start in range(0, columns, CHUNK):
        end = min(columns, start + CHUNK)
        errors = np.empty((len(w), end - start), dtype)
        for j in range(start, end):
            s, z = scale[:, j], zero[:, j]
            code = np.where(pruned[:, j], z, np.clip(np.round(w[:, j] / s) + z, low, high))
            codes[:, j] = code
            error = (w[:, j] - (code - z) * s) / upper[j, j]
            w[:, j + 1 : end] -= np.outer(error, upper[j, j + 1 : end])
            errors[:, j - start] = error
        w[:, end:] -= errors @ upper[start:end, end:]
    back = np.argsort(order)
    return Coded(codes[:, back].astype(np.int8 if grid.signed else np.uint8), grid)


def row_errors(weight: Array, found: Coded, moment: Matrix) -> Matrix:
    """Squared error of every output: diag((W - Q) H (W - Q)^T)."""
    delta = weight - found.dense().astype(np.float64)
    errors: Matrix = np.einsum("rc,rc->r", delta @ moment, delta)
    return errors
