"""Whether the values of a matrix lie on a grid of few steps: then codes say all that floats would.

Weights behind DequantizeLinear arrive folded to floats, with whatever scaled, transposed or sliced them on the way. That
they were quantised is seen from their values, however the network says it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Bits = Literal[4, 8]

WITHIN = 1e-4  # of a step: rounding in float32 leaves 127 steps by 3e-5
LEAST = 16  # inputs that share a scale: with fewer, the scales outweigh the codes
FEATURES = 8  # that are looked at first: most matrices lie on no grid, and that is seen at once


@dataclass(frozen=True, eq=False)
class Grid:
    """W [k, m] = codes * scales: int8 `codes` [k, m] of so many `bits`, `scales` [groups, m] of k / groups inputs each."""

    codes: Array
    scales: Array
    bits: Bits

    @property
    def groups(self) -> int:
        return len(self.scales)


def on_grid(matrix: Array) -> Grid | None:
    """The coarsest grid that holds W [k, m]: 4 bits before 8, few groups of inputs before many; symmetric, with a scale per
    feature and group. None if there is none."""
    k, m = matrix.shape
    sample = matrix[:, :: max(m // FEATURES, 1)]
    for bits in (4, 8):
        for groups in _groups(k):
            if _fit(sample, groups, bits) is not None and (found := _fit(matrix, groups, bits)) is not None:
                return found
    return None


def _groups(k: int) -> Iterator[int]:
    """Into how many groups of equal size k inputs may fall.

    >>> list(_groups(96)), list(_groups(7))
    ([1, 2, 3, 4, 6], [1])
    """
    return (n for n in range(1, max(k // LEAST, 1) + 1) if k % n == 0)


def _fit(matrix: Array, groups: int, bits: Bits) -> Grid | None:
    """Of each group and feature the greatest value is some code, of which all are tried, greatest first; the first that
    takes the others to whole numbers is it."""
    k, m = matrix.shape
    blocks = matrix.reshape(groups, k // groups, m)
    low, high = blocks.min(1), blocks.max(1)
    top = 2 ** (bits - 1)
    negative = -low > high * (1 + 1e-6)  # two's complement has a code more there
    peak = np.where(negative, -low, high)
    scales = np.ones_like(peak)
    open_ = peak > 0
    for less in range(top):
        group, feature = np.nonzero(open_)
        if not len(group):
            break
        codes = top - 1 - less + negative[group, feature]
        tried = (peak[group, feature] / np.maximum(codes, 1)).astype(np.float32)
        values = blocks[group, :, feature]
        steps = values / tried[:, None]
        fits = (np.abs(steps - np.round(steps)) <= WITHIN).all(1) & (codes > 0)
        scales[group[fits], feature[fits]] = tried[fits]
        open_[group[fits], feature[fits]] = False
    if open_.any():
        return None
    codes = np.round(blocks / scales[:, None]).astype(np.int8).reshape(k, m)
    return Grid(codes, scales.astype(np.float32), bits)
