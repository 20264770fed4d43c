"""What a form of packed weights is to a kernel, and what all of them use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from spa.codegen.kernels.matvec.tiling import Tiling
from spa.codegen.kernels.vector import Expr, build, covering
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

AHEAD = 16 << 10  # bytes; hardware stops at the end of a page
LINE = 64


class Format(Protocol):
    """A frozen dataclass of all that its code depends on. `name`: as manifests have it. `dtypes`: of the packed arrays.
    `factor`: sums are so many times too large. `chains`: accumulators per vector of features. `balance`: which of the
    arrays is int32 and says how much lies before each tile, and in all; -1: all tiles are alike."""

    @property
    def name(self) -> str: ...
    @property
    def dtypes(self) -> tuple[str, ...]: ...
    @property
    def factor(self) -> float: ...
    @property
    def chains(self) -> int: ...
    @property
    def balance(self) -> int: ...

    def pack(self, matrix: Array, tiling: Tiling) -> tuple[Array, ...]:
        """W [k, m], floats or codes, as arrays of `dtypes`."""
        ...

    def multiply(
        self, packed: Sequence[Any], x: Any, tile: Expr, k: int, begin: Expr, count: int, sums: list[list[Any]]
    ) -> None:
        """Add what inputs begin .. begin + count give to `sums`, [chains][width] registers."""
        ...


def ahead(buffer: Any, at: Expr, nbytes: int) -> None:
    """Ask for so many bytes that will be read soon; `at`: the element that is read now."""
    size = buffer.dtype.bits // 8
    for line in range(max(covering(nbytes, LINE), 1)):
        address = tirx.address_of(buffer[at + (AHEAD + line * LINE) // size])
        build.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 3, 1))
