"""How values are stored: floating-point as they are, or integer codes on a grid with a step per group of columns.

    value[r, c] = (code[r, c] - zero[r, c // group]) * scale[r, c // group]

A pruned weight holds the zero point, so it is exactly zero. Which entries a format stores is another question: every
format (`spa.sparsity.formats`) takes every encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spa.errors import UsageError

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Grid:
    """`scale` float32 [rows, groups], `zero` the same in the codes' type (None: all 0); one row stands for all rows."""

    bits: int  # 8 or 4
    group: int  # columns that share a scale; the last group may be shorter
    scale: Array
    zero: Array | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.group < 1 or self.scale.ndim != 2:
            raise UsageError(f"no such grid: {self.bits} bits, groups of {self.group}, scales {self.scale.shape}")

    @property
    def signed(self) -> bool:
        return self.zero is None

    def at(self, rows: Index, columns: Index) -> tuple[Array, Array]:
        """Scale and zero point (int32) of these entries; entries outside take those of the nearest inside."""
        r, g = np.minimum(rows, len(self.scale) - 1), np.minimum(columns // self.group, self.scale.shape[1] - 1)
        zero = np.int32(0) if self.zero is None else self.zero[r, g].astype(np.int32)
        return self.scale[r, g], np.asarray(zero)

    def over(self, shape: tuple[int, int]) -> tuple[Array, Array]:
        """Scale and zero point of every entry of a matrix."""
        rows, columns = np.indices(shape, sparse=True)
        return self.at(rows, columns)

    def of(self, rows: Index) -> Grid:
        """The grid of these rows of a matrix."""
        if len(self.scale) == 1:
            return self
        return Grid(self.bits, self.group, self.scale[rows], None if self.zero is None else self.zero[rows])

    def arrays(self) -> dict[str, Array]:
        found = {"scales": self.scale}
        if self.zero is not None:
            found["zero_points"] = pack_bits(self.zero, self.bits) if self.bits < 8 else self.zero
        return found


@dataclass(frozen=True, eq=False)
class Coded:
    """A matrix [rows, columns] as it is stored: float32, float16, or codes of a grid (int8 signed, uint8 otherwise)."""

    codes: Array
    grid: Grid | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bits(self) -> int:
        return self.grid.bits if self.grid else self.codes.itemsize * 8

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Which entries are not zero."""
        zero: Any = 0
        if self.grid is not None and self.grid.zero is not None:
            zero = self.grid.over(self.shape)[1]
        return np.asarray(self.codes != zero)

    def dense(self) -> npt.NDArray[np.float32]:
        rows, columns = np.indices(self.shape, sparse=True)
        return decode(self.codes, self.grid, rows, columns)


def coded(weight: Array | Coded) -> Coded:
    """The matrix itself, checked: two axes, float32 or float16, no NaN. -0.0 counts as pruned and becomes +0.0, since
    masking by a product leaves -0.0 where a negative weight was."""
    if isinstance(weight, Coded):
        return weight
    if weight.ndim != 2 or weight.dtype not in (np.float32, np.float16):
        raise UsageError(
            f"cannot pack {weight.dtype} {list(weight.shape)}", hint="a float32 or float16 matrix [outputs, inputs]"
        )
    if np.isnan(weight).any():
        r, c = np.argwhere(np.isnan(weight))[0]
        raise UsageError("NaN cannot be packed", f"row {r}, column {c}", "look for the node that made it")
    return Coded(weight + weight.dtype.type(0))


def decode(codes: Array, grid: Grid | None, rows: Index, columns: Index) -> npt.NDArray[np.float32]:
    """Values of stored codes that belong to these entries; one float32 product, as DequantizeLinear computes it."""
    if grid is None:
        return codes.astype(np.float32)
    scale, zero = grid.at(rows, columns)
    return np.asarray((codes.astype(np.int32) - zero).astype(np.float32) * scale, np.float32)


def index_type(limit: int) -> type[np.generic]:
    """The smallest type for indices below `limit`."""
    return np.uint8 if limit <= 1 << 8 else np.uint16 if limit <= 1 << 16 else np.int32


def pack_bits(codes: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 2 or 4 bits along the last axis into bytes, the first in the lowest bits; every row starts a byte.

    >>> pack_bits(np.array([[1, 2, -1]], np.int8), 4).tolist()
    [[33, 15]]
    """
    per = 8 // bits
    n = codes.shape[-1]
    padded = np.zeros((*codes.shape[:-1], -(-n // per) * per), np.uint8)
    padded[..., :n] = codes.astype(np.uint8) & ((1 << bits) - 1)
    parts = padded.reshape(*codes.shape[:-1], -(-n // per), per) << (np.arange(per, dtype=np.uint8) * bits)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(parts, axis=-1).astype(np.uint8)
    return packed


def unpack_bits(packed: Array, bits: int, n: int, *, signed: bool = False) -> Array:
    """The first n codes of every row, as uint8 or int8.

    >>> unpack_bits(np.array([[33, 15]], np.uint8), 4, 3, signed=True).tolist()
    [[1, 2, -1]]
    """
    per = 8 // bits
    parts = (packed[..., None] >> (np.arange(per, dtype=np.uint8) * bits)) & ((1 << bits) - 1)
    codes = parts.reshape(*packed.shape[:-1], packed.shape[-1] * per)[..., :n]
    if not signed:
        return codes.astype(np.uint8)
    return ((codes.astype(np.int8) ^ (1 << (bits - 1))) - (1 << (bits - 1))).astype(np.int8)
