"""Packed forms: what comes out is what went in, bit for bit, and scipy agrees with arrays and products."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spa.errors import UsageError
from spa.sparsity.formats import NM, Bsr, Coded, Csr, Dense, Grid, best, pack
from spa.sparsity.formats.encoding import pack_bits, unpack_bits
from spa.sparsity.formats.mma_sp import metadata

Array = npt.NDArray[Any]
NAMES = [
    "dense",
    "csr",
    "csr8",
    "csr16",
    "csr32",
    "bitmap",
    "fan_in",
    "bsr1x1",
    "bsr4x1",
    "bsr1x4",
    "bsr3x5",
    "bsr16x2",
    "4:4",
    "8:8",
    "16:16",
    "5:5",
    "33:33",
]
SIDE = st.sampled_from([1, 2, 3, 7, 8, 13, 31])


@st.composite
def matrices(draw: st.DrawFn) -> npt.NDArray[np.float32]:
    """All-zero, full and in between; -0.0, the smallest and the largest numbers among the values."""
    shape = draw(SIDE), draw(st.sampled_from([1, 2, 3, 5, 16, 37, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    weight = rng.standard_normal(shape).astype(np.float32) * (rng.random(shape) < density)
    special = draw(hnp.arrays(np.float32, 4, elements=st.floats(-(2.0**127), 2.0**127, width=32)))
    weight.flat[: min(4, weight.size)] = special[: min(4, weight.size)]
    return weight


def bits(a: Array) -> Array:
    return np.ascontiguousarray(a).view(f"u{a.itemsize}")


@given(weight=matrices(), name=st.sampled_from(NAMES))
@settings(max_examples=150)
def test_unpacked_is_packed(weight: Array, name: str) -> None:
    packed = pack(weight, name)
    positive = np.where(weight == 0, np.float32(0), weight)  # -0.0 is a pruned weight
    np.testing.assert_array_equal(bits(packed.unpack()), bits(positive))
    assert packed.bytes == sum(a.nbytes for a in packed.arrays().values())
    assert packed.name.startswith(name)


@given(weight=matrices(), name=st.sampled_from(NAMES), wide=st.integers(1, 4))
def test_the_product_is_scipys(weight: Array, name: str, wide: int) -> None:
    weight = np.clip(weight, -10, 10)
    x = np.random.default_rng(1).standard_normal((weight.shape[1], wide)).astype(np.float32)
    expected = sp.csr_array(weight.astype(np.float64)) @ x.astype(np.float64)
    np.testing.assert_allclose(pack(weight, name).matmul(x), expected, rtol=1e-5, atol=1e-5)


@given(weight=matrices())
def test_csr_has_scipys_arrays(weight: Array) -> None:
    expected = sp.csr_array(weight)
    packed = pack(weight, "csr32")
    assert isinstance(packed, Csr)
    np.testing.assert_array_equal(packed.row_ptr, expected.indptr)
    np.testing.assert_array_equal(packed.values, expected.data)
    columns = [np.cumsum(packed.deltas[a:b]) for a, b in zip(packed.row_ptr, packed.row_ptr[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate(columns), expected.indices)


@given(weight=matrices(), block=st.sampled_from([(1, 1), (4, 1), (1, 4), (2, 3), (16, 1)]))
def test_bsr_has_scipys_arrays(weight: Array, block: tuple[int, int]) -> None:
    padded = np.pad(weight, [(0, -n % b) for n, b in zip(weight.shape, block, strict=True)])
    expected = sp.bsr_array(padded, blocksize=block)
    expected.sort_indices()
    packed = Bsr.pack(weight, block)
    np.testing.assert_array_equal(packed.block_ptr, expected.indptr)
    np.testing.assert_array_equal(packed.columns, expected.indices)
    own = packed.values.reshape(-1, block[1], block[0]).transpose(0, 2, 1)  # ours: input by input
    np.testing.assert_array_equal(own, expected.data.reshape(own.shape))


def test_gaps_wider_than_a_delta_are_walked() -> None:
    weight = np.zeros((2, 1000), np.float32)
    weight[0, [0, 255, 999]] = 1, 2, 3
    weight[1, 256] = 4
    packed = Csr.pack(weight, 8)
    assert packed.deltas.tolist() == [0, 255, 255, 255, 234, 255, 1]
    assert packed.values.tolist() == [1, 2, 0, 0, 3, 0, 4]
    assert packed.row_ptr.tolist() == [0, 5, 7]


def test_n_of_m_by_hand() -> None:
    weight = np.array([[0, 1, 0, 2, 0, 0, 0, 3], [4, 5, 0, 0, 0, 0, 0, 0]], np.float32)
    packed = NM.pack(weight, 2, 4)
    assert packed.positions.tolist() == [[[1, 3], [0, 3]], [[0, 1], [0, 1]]]
    assert packed.values.tolist() == [[1, 2, 0, 3], [4, 5, 0, 0]]
    assert packed.packed.tolist() == [[0b11_00_11_01], [0b01_00_01_00]]
    assert packed.bytes == 2 + 32
    with pytest.raises(UsageError, match="not 1:4: 2 of 4"):
        NM.pack(weight, 1, 4)
    assert NM.pack(weight, None, 8).name == "3:8"


@given(weight=matrices(), m=st.sampled_from([3, 4, 8, 16]))
def test_positions_increase_and_stay_in_their_group(weight: Array, m: int) -> None:
    place = NM.pack(weight, None, m).positions.astype(int)
    assert (np.diff(place, axis=2) > 0).all() and place.max(initial=0) < m


def decode_mma(words: Array, rows: int, columns: int) -> Array:
    """Positions [rows, columns / 4, 2], lane by lane as the PTX manual draws m16n8k16 with selector 0."""
    found = np.zeros((rows, columns // 4, 2), int)
    for i in range(rows // 16):
        for k in range(columns // 16):
            for lane in range(0, 32, 4):
                word = int(words[i, k, lane // 4])
                for half in range(2):
                    for chunk in range(4):
                        nibble = word >> (16 * half + 4 * chunk) & 15
                        found[16 * i + lane // 4 + 8 * half, 4 * k + chunk] = nibble & 3, nibble >> 2
    return found


def test_the_order_of_tensor_cores() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 64)).astype(np.float32).reshape(32, 16, 4)
    np.put_along_axis(weight, np.argsort(rng.random(weight.shape), axis=2)[..., :2], 0, axis=2)
    packed = NM.pack(weight.reshape(32, 64), 2, 4)
    words = metadata(packed)
    np.testing.assert_array_equal(decode_mma(words, 32, 64), packed.positions)
    every_other = np.zeros((16, 16), np.float32)
    every_other[:, ::2] = 1
    assert metadata(NM.pack(every_other, 2, 4)).tolist() == [[[0x88888888] * 8]]  # positions 0 and 2, as in LLVM's test
    with pytest.raises(UsageError, match="2:4"):
        metadata(NM.pack(every_other, 4, 8))


# Values that are codes -------------------------------------------------------------------------------------------


@st.composite
def quantised(draw: st.DrawFn) -> tuple[Coded, Array]:
    """Codes on a grid, and the matrix they stand for, by the formula."""
    n, bits_, symmetric = draw(SIDE), draw(st.sampled_from([4, 8])), draw(st.booleans())
    k, group = draw(st.sampled_from([1, 4, 21, 64])), draw(st.sampled_from([1, 4, 16, 64]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows, groups = draw(st.sampled_from([1, n])), -(-k // group)
    low, high = (-(1 << bits_ - 1), 1 << bits_ - 1) if symmetric else (0, 1 << bits_)
    codes = rng.integers(low, high, (n, k)).astype(np.int8 if symmetric else np.uint8)
    scale = rng.random((rows, groups)).astype(np.float32) + np.float32(0.1)
    zero = None if symmetric else rng.integers(low, high, (rows, groups)).astype(np.uint8)
    spread = [
        np.repeat(a, group, 1)[:, :k] for a in (scale, np.zeros((rows, groups), np.uint8) if zero is None else zero)
    ]
    pruned = rng.random((n, k)) < 0.6
    codes = np.where(pruned, spread[1].astype(codes.dtype), codes)
    dense = (codes.astype(np.int32) - spread[1].astype(np.int32)).astype(np.float32) * spread[0]
    assert not dense[pruned].any()
    return Coded(codes, Grid(bits_, group, scale, zero)), dense


@given(given_=quantised(), name=st.sampled_from(NAMES))
@settings(max_examples=150)
def test_codes_survive_every_format(given_: tuple[Coded, Array], name: str) -> None:
    weight, dense = given_
    packed = pack(weight, name)
    np.testing.assert_array_equal(weight.dense(), dense)
    np.testing.assert_array_equal(packed.unpack(), dense)
    assert packed.bytes == sum(a.nbytes for a in packed.arrays().values())


def test_only_surviving_blocks_have_scales() -> None:
    codes = np.zeros((4, 32), np.int8)
    codes[1, 8:16] = 3
    weight = Coded(codes, Grid(4, 8, np.ones((4, 4), np.float32)))
    packed = Bsr.pack(weight, (1, 8))
    assert packed.arrays()["scales"].shape == (1, 1)
    assert packed.bytes == 4 + 4 + 1 + 5 * 4  # eight 4-bit values, a scale, a column, five pointers


def test_float16_is_stored_as_such() -> None:
    weight = np.array([[0.5, 0, 3]], np.float16)
    packed = pack(weight, "bitmap")
    assert packed.values.dtype == np.float16 and packed.unpack().tolist() == [[0.5, 0, 3]]
    assert packed.bytes == 2 * 2 + 1 + 8


@given(codes=hnp.arrays(np.int8, st.tuples(st.integers(0, 3), st.integers(0, 9)), elements=st.integers(-8, 7)))
def test_nibbles_come_back(codes: Array) -> None:
    packed = pack_bits(codes, 4)
    assert packed.shape == (codes.shape[0], -(-codes.shape[1] // 2))
    np.testing.assert_array_equal(unpack_bits(packed, 4, codes.shape[1], signed=True), codes)


# Choosing, refusing ----------------------------------------------------------------------------------------------


@given(weight=matrices())
def test_the_best_is_never_more_than_dense(weight: Array) -> None:
    found = best(weight)
    assert found.bytes <= min(weight.nbytes, *(pack(weight, n).bytes for n in ("csr", "bitmap", "bsr4x1", "fan_in")))
    np.testing.assert_array_equal(found.unpack(), weight)


def test_the_best_follows_the_pattern() -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal((64, 64)).astype(np.float32)
    assert isinstance(best(full), Dense)
    two_of_four = full.copy().reshape(64, 16, 4)
    two_of_four[..., 2:] = 0
    assert best(two_of_four.reshape(64, 64)).name in ("2:4", "bsr16x1")
    blocks = full * np.repeat(rng.random((16, 64)) < 0.1, 4, axis=0)
    assert best(blocks).name == "bsr4x1"
    assert best(full * (rng.random((64, 64)) < 0.03)).name == "csr8"
    assert best(full * (rng.random((64, 64)) < 0.6)).name == "bitmap"


def test_what_cannot_be_packed_is_refused() -> None:
    good = np.ones((2, 2), np.float32)
    with pytest.raises(UsageError, match="NaN"):
        pack(good * np.float32("nan"), "csr")
    with pytest.raises(UsageError, match="cannot pack"):
        pack(good[0], "csr")
    with pytest.raises(UsageError, match="cannot pack float64"):
        pack(good.astype(np.float64), "dense")
    with pytest.raises(UsageError, match="no format is called"):
        pack(good, "coo")
