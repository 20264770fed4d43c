"""The rows from which kernels are chosen: format x tile. One row more is one kernel more to generate, test and compare.

Why these sizes: a warp of 64 x 32 or 64 x 64 sums loads little for what it multiplies; smaller tiles are for layers that
would not fill the multiprocessors otherwise. Depths are those at which a row of a stage is 64 or 128 bytes of what is read.
"""

from __future__ import annotations

from spa.codegen.cuda.simt import SimtTile
from spa.codegen.cuda.tile import Tile
from spa.codegen.cuda.wgmma_tile import WgmmaTile

DENSE = (
    Tile(128, 256, 32, 64, 64, 3),
    Tile(128, 128, 32, 64, 32, 3),
    Tile(64, 128, 32, 32, 32, 3),
    Tile(64, 64, 32, 32, 32, 3),
    Tile(32, 64, 32, 16, 32, 3),
    Tile(32, 32, 32, 16, 16, 3),
)
TWO_OF_FOUR = (
    Tile(128, 256, 64, 64, 64, 2),
    Tile(128, 128, 64, 64, 32, 3),
    Tile(64, 128, 64, 32, 32, 3),
    Tile(64, 64, 64, 32, 32, 3),
    Tile(32, 64, 64, 16, 32, 3),
)
WGMMA_DENSE = (  # big: few bytes from the L2 for what is multiplied; small: two blocks on a multiprocessor
    WgmmaTile(128, 256, 2, 4),
    WgmmaTile(256, 128, 2, 4),
    WgmmaTile(128, 128, 2, 3),
    WgmmaTile(64, 128, 1, 4),
    WgmmaTile(64, 64, 1, 6),
)
WGMMA_TWO_OF_FOUR = (
    WgmmaTile(256, 192, 2, 5),
    WgmmaTile(256, 128, 2, 6),
    WgmmaTile(128, 256, 2, 5),
    WgmmaTile(128, 128, 2, 4),
    WgmmaTile(64, 128, 1, 4),
    WgmmaTile(64, 64, 1, 6),
)
BLOCKS = (  # the size of a block is m and k of its tile
    Tile(32, 128, 32, 32, 32, 3),
    Tile(32, 64, 32, 16, 32, 3),
    Tile(16, 128, 16, 16, 32, 3),
    Tile(16, 64, 16, 16, 16, 3),
)
BATCHED = (  # products of two activations
    Tile(128, 128, 32, 64, 32, 3),
    Tile(64, 64, 32, 32, 32, 3),
    Tile(32, 64, 32, 16, 32, 3),
    Tile(16, 64, 32, 16, 16, 3),
)
SIMT = (
    SimtTile(128, 128, 8, 8, 8),
    SimtTile(64, 64, 16, 4, 4),
    SimtTile(32, 32, 16, 4, 4),
)
FEW_ROWS = (1, 4)  # of the blocks that products with few columns may store
PATTERNS = (4, 8, 16)  # M of the N:M that they may store
