"""Where operands of warpgroup products lie in shared memory, and the descriptors that say so (PTX ISA, wgmma, "Shared memory
matrix layout", "Matrix descriptor"). 16-bit elements.

The tensor cores read 16 bytes at a time. In a swizzled layout rows of 128 (or 64) bytes lie one behind the other, and bits 4
and up of a byte's address are exclusive-ored with bits 7 and up: so that a column of eight rows lies in all banks.

    K-major    rows along m or n, each `width` neighbouring k
    MN-major   rows along k, each 64 neighbouring n; 8 k make a square of 1 KB, the squares of all k follow, then the next 64 n

The functions take ints, arrays and TIR expressions alike, and count in elements.
"""

from __future__ import annotations

from typing import Any

Index = Any  # int, array, or TIR expression
SQUARE = 64  # elements in 128 bytes
CHUNK = 8  # elements in 16 bytes
ALIGNMENT = 1024  # bytes after which the pattern of a swizzle begins anew
MODES = {64: 1, 32: 2}  # bits 62 and 63 of a descriptor, by elements of a row: 128 bytes, 64 bytes
UNUSED = 16  # bytes: the leading offset of K-major swizzled layouts is not read


def k_major(row: Index, k: Index, width: int) -> Index:
    """Element k of a row of `width` elements, 64 or 32."""
    chunk = (k // CHUNK) ^ (row // (SQUARE // width) % (width // CHUNK))
    return row * width + chunk * CHUNK + k % CHUNK


def mn_major(k: Index, n: Index, depth: int) -> Index:
    """Element n of row k of a tile of `depth` rows."""
    chunk = (n % SQUARE // CHUNK) ^ (k % CHUNK)
    return n // SQUARE * (SQUARE * depth) + k * SQUARE + chunk * CHUNK + n % CHUNK


def descriptor(width: int, leading: int, stride: int) -> int:
    """All of a descriptor but the address: rows of `width` elements, offsets in bytes.

    `stride`: from 8 rows to the next 8. `leading`: from 64 n to the next (MN-major only)."""
    return (leading >> 4) << 16 | (stride >> 4) << 32 | MODES[width] << 62


def k_major_descriptor(width: int) -> int:
    return descriptor(width, UNUSED, 8 * 2 * width)


def mn_major_descriptor(depth: int) -> int:
    return descriptor(SQUARE, 2 * SQUARE * depth, 8 * 2 * SQUARE)
