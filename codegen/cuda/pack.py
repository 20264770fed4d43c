"""Weights as the kernels of `product` and `simt` read them; the arrays of a kernel's `weights`, in order."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from spa.codegen.cuda.tile import Tile
from spa.codegen.cuda.words import BFLOAT, HALF
from spa.codegen.layer import Array
from spa.sparsity.formats import NM, Bsr
from spa.sparsity.formats.mma_sp import metadata


def stored(w: Array, dtype: str) -> Array:
    """Rounded to the type that a kernel reads; bfloat16 as its bits, which nobody on the way has to understand."""
    return w.astype(ml_dtypes.bfloat16).view(np.uint16) if dtype == BFLOAT else w.astype(dtype)


def is_exact(w: Array, dtype: str) -> bool:
    """Whether rounding to a type changes nothing."""
    kind = ml_dtypes.bfloat16 if dtype == BFLOAT else dtype
    return bool((w.astype(kind).astype(w.dtype) == w).all())


def _padded(w: Array, rows: int, columns: int) -> Array:
    """Each of [groups, m, k] with zeros up to multiples."""
    return np.pad(w, ((0, 0), (0, -w.shape[1] % rows), (0, -w.shape[2] % columns)))


def _tiled(w: Array, rows: int, columns: int) -> Array:
    """[groups, m, k] -> flat [group, m tile, k tile, row, column]."""
    g, m, k = w.shape
    parts = w.reshape(g, m // rows, rows, k // columns, columns)
    return np.ascontiguousarray(parts.transpose(0, 1, 3, 2, 4)).reshape(-1)


def pack_dense(w: Array, tile: Tile, dtype: str = HALF) -> tuple[Array, ...]:
    """W [groups, m, k], tile by tile."""
    return (_tiled(stored(_padded(w, tile.m, tile.k), dtype), tile.m, tile.k),)


def is_two_of_four(w: Array) -> bool:
    """Whether at most two of every four inputs of a row are kept."""
    padded = _padded(w, 1, 4)
    return bool(((padded != 0).reshape(*padded.shape[:2], -1, 4).sum(-1) <= 2).all())


def pack_two_of_four(w: Array, tile: Tile, dtype: str = HALF) -> tuple[Array, ...]:
    """What is stored of W, and its metadata words, tile by tile."""
    padded = _padded(w, tile.m, tile.k)
    packed = [NM.pack(matrix, 2, 4) for matrix in padded]
    values = stored(np.stack([p.values.reshape(padded.shape[1], -1) for p in packed]), dtype)
    words = np.stack([metadata(p) for p in packed])  # [groups, m / 16, k / 16, 8]
    g, rows, columns, _ = words.shape
    tr, tc = tile.m // 16, tile.k // 16
    parts = words.reshape(g, rows // tr, tr, columns // tc, tc, 8).transpose(0, 1, 3, 2, 4, 5)
    return _tiled(values, tile.m, tile.k // 2), np.ascontiguousarray(parts).reshape(-1)


def pack_blocks(w: Array, size: int, dtype: str = HALF) -> tuple[Array, ...]:
    """Blocks size x size of W [1, m, k] that are not zero, row by row inside; where each row of blocks begins; their columns."""
    bsr = Bsr.pack(_padded(w, size, size)[0], (size, size))
    blocks = stored(bsr.values, dtype).reshape(-1, size, size).transpose(0, 2, 1)
    if not len(blocks):  # a buffer is never empty
        return stored(np.zeros(size * size, np.float32), dtype), bsr.block_ptr, np.zeros(1, np.int32)
    return np.ascontiguousarray(blocks).reshape(-1), bsr.block_ptr, bsr.columns.astype(np.int32)
