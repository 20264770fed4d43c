"""Weights as warpgroup products read them: every tile is the image of its place in shared memory.

    dense   [group, m tile, k tile] of [row, 64], K-major, rows of 128 bytes, swizzled
    2:4     what is stored, [row, 32], K-major, rows of 64 bytes, swizzled; and metadata [row / 16, lane] of every tile

A lane's word of metadata holds the positions for 16 inputs of row lane / 4 (low half) and of row lane / 4 + 8: those of inputs
16 (lane % 4) and up. A product of 32 inputs reads the lanes with lane % 4 in (0, 1), selector 0, or in (2, 3), selector 1.
"""

from __future__ import annotations

import numpy as np

from spa.codegen.cuda.pack import stored
from spa.codegen.cuda.wgmma_layout import k_major
from spa.codegen.cuda.wgmma_tile import DEPTH, WgmmaTile
from spa.codegen.layer import Array
from spa.sparsity.formats import NM
from spa.sparsity.formats.mma_sp import metadata


def pack_dense(w: Array, tile: WgmmaTile, operand: str) -> tuple[Array, ...]:
    """W [groups, m, k] -> one flat array."""
    return (_images(stored(_padded(w, tile), operand), tile.m, DEPTH),)


def pack_two_of_four(w: Array, tile: WgmmaTile, operand: str) -> tuple[Array, ...]:
    """W [groups, m, k] of 2:4 -> what is stored, and the words of metadata."""
    padded = _padded(w, tile)
    packed = [NM.pack(matrix, 2, 4) for matrix in padded]
    values = stored(np.stack([p.values.reshape(padded.shape[1], -1) for p in packed]), operand)
    words = np.stack([metadata(p) for p in packed])  # [groups, m / 16, k / 16, 8]
    g, rows, columns, quads = words.shape
    tr, tc = tile.m // 16, DEPTH // 16
    parts = words.reshape(g, rows // tr, tr, columns // tc, tc, quads).transpose(0, 1, 3, 2, 5, 4)
    return _images(values, tile.m, DEPTH // 2), np.ascontiguousarray(parts).reshape(-1)


def _padded(w: Array, tile: WgmmaTile) -> Array:
    return np.pad(w, ((0, 0), (0, -w.shape[1] % tile.m), (0, -w.shape[2] % DEPTH)))


def _images(w: Array, rows: int, width: int) -> Array:
    """[groups, m, k] -> flat [group, m tile, k tile, place in shared memory]."""
    g, m, k = w.shape
    tiles = w.reshape(g, m // rows, rows, k // width, width).transpose(0, 1, 3, 2, 4).reshape(-1, rows * width)
    row, column = np.divmod(np.arange(rows * width), width)
    images = np.empty_like(tiles)
    images[:, k_major(row, column, width)] = tiles
    return images.reshape(-1)
