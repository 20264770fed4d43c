"""What all packed forms share: which entry every stored value belongs to, in the order in which kernels read them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spa.sparsity.formats.encoding import Array, Coded, Grid, Index, decode, pack_bits, unpack_bits


@dataclass(frozen=True, eq=False)
class Format:
    """A packed matrix [outputs, inputs]. `values` as kernels read them, 4-bit codes two to a byte.

    A family adds its index arrays and says by `slots` where every stored value belongs. A slot inside the matrix
    holds what the matrix holds there, so fillers need no special value; one outside (padding) holds code 0.
    """

    shape: tuple[int, int]
    values: Array
    grid: Grid | None

    @property
    @abstractmethod
    def name(self) -> str:
        """As `spa.sparsity.formats.pack` reads it: csr8, bsr4x1, 2:4, fan_in, bitmap, dense."""

    @abstractmethod
    def slots(self) -> tuple[Index, Index]:
        """Row and column of every stored value, each shaped like the values before 4-bit packing."""

    @abstractmethod
    def indices(self) -> dict[str, Array]:
        """The index arrays by name, as kernels read them."""

    def arrays(self) -> dict[str, Array]:
        """Everything a kernel reads: index arrays, `values`, `scales`, `zero_points`."""
        return {**self.indices(), "values": self.values, **self.steps()}

    def steps(self) -> dict[str, Array]:
        """Scales and zero points, [rows, groups] or one row for all rows."""
        return self.grid.arrays() if self.grid else {}

    @property
    def bytes(self) -> int:
        """Exactly what the arrays take."""
        return sum(a.nbytes for a in self.arrays().values())

    @property
    def stored(self) -> int:
        """Values that are stored, fillers and padding counted."""
        return int(self.slots()[0].size)

    def entries(self) -> tuple[Index, Index, npt.NDArray[np.float32]]:
        """Row, column and value of everything stored inside the matrix, in kernel order."""
        rows, columns = self.slots()
        codes = self.values
        if self.grid is not None and self.grid.bits < 8:
            codes = unpack_bits(codes, self.grid.bits, rows.shape[-1], signed=self.grid.signed)
        values = decode(codes.reshape(rows.shape), self.grid, rows, columns)
        inside = (rows < self.shape[0]) & (columns < self.shape[1])
        return rows[inside], columns[inside], values[inside]

    def unpack(self) -> npt.NDArray[np.float32]:
        """The matrix again, bit for bit (fp16 and quantised values as the float32 they stand for; -0.0 as +0.0)."""
        dense = np.zeros(self.shape, np.float32)
        rows, columns, values = self.entries()
        dense[rows, columns] = values
        return dense

    def matmul(self, x: Array) -> npt.NDArray[np.float32]:
        """W x for x [columns, n], entry by entry in kernel order: the reference of the kernels. Sums in float64."""
        rows, columns, values = self.entries()
        y = np.zeros((self.shape[0], x.shape[1]))
        np.add.at(y, rows, values[:, None].astype(np.float64) * x[columns])
        return y.astype(np.float32)


def gather(weight: Coded, rows: Index, columns: Index) -> Array:
    """Codes at these slots, 0 outside the matrix, 4-bit ones packed along the last axis."""
    inside = (rows < weight.shape[0]) & (columns < weight.shape[1])
    codes = np.zeros(rows.shape, weight.codes.dtype)
    codes[inside] = weight.codes[rows[inside], columns[inside]]
    return pack_bits(codes, weight.bits) if weight.bits < 8 else codes


def pointers(counts: Array) -> npt.NDArray[np.int32]:
    """Where every row starts, and the end: [rows + 1]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
