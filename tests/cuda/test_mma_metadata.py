"""2:4 weights packed for mma.sp against the PTX ISA's layout, as the emulator has it, and against torch's compressed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from instructions import expanded
from test_cuda_kernels import two_of_four

pytestmark = pytest.mark.codegen

from spa.codegen.cuda.pack import is_two_of_four, pack_two_of_four  # noqa: E402
from spa.codegen.cuda.table import TWO_OF_FOUR  # noqa: E402
from spa.sparsity.formats import NM  # noqa: E402
from spa.sparsity.formats.mma_sp import metadata  # noqa: E402


def thinned(rows: int, columns: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(rows)
    w = two_of_four((random.integers(1, 60, (rows, columns))).astype(np.float16))
    w[random.random(w.shape) < 0.1] = 0  # fewer than two survive in some groups
    return w


@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (48, 96), (20, 40), (1, 4)])
def test_every_tile_expands_to_the_matrix(rows: int, columns: int) -> None:
    w = thinned(rows, columns)
    padded = np.pad(w, ((0, -rows % 16), (0, -columns % 32)))
    packed = NM.pack(padded, 2, 4)
    words, stored = metadata(packed), packed.values.reshape(len(padded), -1)
    for i in range(len(padded) // 16):
        for j in range(padded.shape[1] // 32):
            lanes = np.zeros((1, 32), np.uint32)
            for quad in range(8):
                lanes[0, 4 * quad : 4 * quad + 2] = words[i, 2 * j : 2 * j + 2, quad]
            part = stored[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
            dense = expanded(part[None].astype(np.float32), lanes, 0)[0]
            np.testing.assert_array_equal(dense, padded[16 * i : 16 * i + 16, 32 * j : 32 * j + 32])


@pytest.mark.parametrize("tile", TWO_OF_FOUR, ids=lambda t: t.name)
def test_tiles_hold_every_weight_once(tile: Any) -> None:
    w = thinned(200, 150 + 2)[None]
    stored, words = pack_two_of_four(w, tile)
    tiles = -(-200 // tile.m) * -(-152 // tile.k)
    assert stored.size == tiles * tile.m * tile.k // 2
    assert words.size == tiles * tile.m * tile.k // 32
    assert np.sort(stored[stored != 0]).tolist() == np.sort(w[w != 0]).tolist()


def test_what_is_two_of_four() -> None:
    w = thinned(8, 16)[None]
    assert is_two_of_four(w)
    w[0, 3, 4:7] = 1
    assert not is_two_of_four(w)


def test_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="needs torch: its compressed form of 2:4")
    semi = pytest.importorskip("torch.sparse._semi_structured_conversions", reason="needs a torch with 2:4 conversions")
    w = thinned(64, 128)
    values, meta = semi.sparse_semi_structured_from_dense_cutlass(torch.from_numpy(w.copy()))
    packed = NM.pack(w, 2, 4)
    back = semi.sparse_semi_structured_to_dense_cutlass(values, meta)
    np.testing.assert_array_equal(back.numpy(), packed.unpack().astype(np.float16))
    # CUTLASS stores 16-bit halves: 32 rows x 2 columns at a time, rows q, q + 8, q + 16, q + 24 side by side, and the
    # 2 x 2 blocks of (row, column) turned over: two neighbouring halves make one of our words
    ours = metadata(packed)  # [rows / 16, columns / 16, 8]
    theirs = meta.numpy().astype(np.uint16).reshape(-1)
    halves = np.stack([ours & 0xFFFF, ours >> 16], -1).astype(np.uint16)
    assert np.sort(theirs).tolist() == np.sort(halves.reshape(-1)).tolist()
