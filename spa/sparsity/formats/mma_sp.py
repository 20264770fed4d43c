"""2:4 positions in the order of NVIDIA's sparse tensor-core instructions (PTX ISA, mma.sp, "Sparse matrix storage").

For 16-bit values. A 16 x 16 tile of W (before compression) has 4 bits for every 4 inputs: the position of the first
survivor in the low two, of the second in the high two; 16 bits a row, the first inputs lowest.
`mma.sp.m16n8k16` reads them from one thread of every four (the sparsity selector f = 0..3 says which): thread
4 q + f holds row q in its low half and row q + 8 in its high half. `m16n8k32` reads two such tiles, inputs 0..15 from
thread 4 q + 2 f, inputs 16..31 from thread 4 q + 2 f + 1, f = 0 or 1. Both are the same words: word [tile, tile of 16
inputs, q]. Other value types have other layouts, which are not given here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spa.errors import UsageError
from spa.sparsity.formats.nm import NM


def metadata(weight: NM) -> npt.NDArray[np.uint32]:
    """[ceil(rows / 16), ceil(columns / 16), 8]: the word of quad q for every 16 x 16 tile. Padding holds the positions 0, 1."""
    if (weight.n, weight.m) != (2, 4):
        raise UsageError(f"mma.sp takes 2:4, not {weight.name}")
    place = weight.positions.astype(np.uint32)
    rows, groups, _ = place.shape
    nibbles = np.full((rows + -rows % 16, groups + -groups % 4), 0b0100, np.uint32)
    nibbles[:rows, :groups] = place[..., 0] | place[..., 1] << 2
    tiles = nibbles.reshape(len(nibbles) // 16, 2, 8, nibbles.shape[1] // 4, 4)  # tile, half, quad, inputs, nibble
    halves = np.bitwise_or.reduce(tiles << (4 * np.arange(4, dtype=np.uint32)), axis=-1)
    words: npt.NDArray[np.uint32] = (halves[:, 0] | halves[:, 1] << 16).transpose(0, 2, 1)
    return np.ascontiguousarray(words)
