"""Warpgroup products computed on the CPU: every tile of the tables, shapes that no tile divides, both forms; and the packing
of their weights against an independent reading of the specification."""

from __future__ import annotations

from typing import Any

import emulator
import ml_dtypes
import numpy as np
import pytest
from instructions import expanded
from layers import exact
from machine import WARP, Array, Race
from test_cuda_code import STEPS
from test_cuda_kernels import two_of_four
from warpgroup import Descriptor

pytestmark = pytest.mark.codegen

from spa.codegen.cuda import table, wgmma, wgmma_pack  # noqa: E402
from spa.codegen.cuda.sources import Rows, Windows  # noqa: E402
from spa.codegen.cuda.wgmma import WgmmaProduct, build_wgmma  # noqa: E402
from spa.codegen.cuda.wgmma_layout import k_major_descriptor  # noqa: E402
from spa.codegen.cuda.wgmma_tile import DEPTH, WgmmaTile  # noqa: E402
from spa.codegen.cuda.writer import Ending  # noqa: E402
from spa.codegen.kernels.window import Window  # noqa: E402
from spa.codegen.tvm_api.cuda import emit_cuda  # noqa: E402

TILES = [("dense", t) for t in table.WGMMA_DENSE] + [("2:4", t) for t in table.WGMMA_TWO_OF_FOUR]
KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


PLAIN = Ending(False, (), 0, (), "float32")


def weights(random: np.random.Generator, form: str, m: int, k: int) -> Array:
    w = exact(random, (m, k + -k % 4))
    return (two_of_four(w) if form == "2:4" else w)[:, :k]


def compute(
    form: Any, tile: WgmmaTile, w: Array, x: Array, operand: str, ending: Ending = PLAIN, *more: Array
) -> Array:
    """Y [n, m]; `more`: tensors that follow X, and the bias."""
    return compute_from(Rows(*x.shape, str(x.dtype)), form, tile, w, x, operand, ending, *more)


def compute_from(
    source: Any, form: Any, tile: WgmmaTile, w: Array, x: Array, operand: str, ending: Ending = PLAIN, *more: Array
) -> Array:
    m, n = len(w), source.n
    product = WgmmaProduct(m, 1, source, tile, form, ending, operand)
    pack = wgmma_pack.pack_two_of_four if form == "2:4" else wgmma_pack.pack_dense
    packed = [a.view(KINDS[operand]) if a.dtype != np.uint32 else a for a in pack(w[None], tile, operand)]
    device = emit_cuda({"k": build_wgmma(product)}, {"k"}, "sm_90a", {"k": "k"})
    (launch,) = device.launches["k"]
    tensors = len(ending.tensors)
    y = np.full(n * m, np.nan, KINDS[ending.dtype])
    arrays = [x.reshape(-1), *(a.reshape(-1) for a in more[:tensors]), *packed, *more[tensors:], y]
    flat = [arrays[p.index] for p in launch.arguments]
    emulator.launch(device.functions[launch.symbol], flat, launch.grid, launch.block, launch.shared)
    return arrays[-1].reshape(n, m)


@pytest.mark.parametrize(("form", "tile"), TILES, ids=lambda v: getattr(v, "name", v))
@pytest.mark.parametrize(("operand", "kind"), [("float16", "float16"), ("bfloat16", "float32")])
def test_products_of_rows(form: str, tile: WgmmaTile, operand: str, kind: str) -> None:
    """Copied as they are, or converted on the way; more steps than stages, a k that no step divides; several tiles."""
    random = np.random.default_rng(1)
    m, n, k = tile.m + 24, tile.n - 7, DEPTH * (tile.stages + 1) + 24
    w, x = weights(random, form, m, k), exact(random, (n, k)).astype(KINDS[kind])
    np.testing.assert_array_equal(compute(form, tile, w, x, operand), x.astype(np.float32) @ w.T)


@pytest.mark.parametrize("k", [8, 64, 72, 128])
@pytest.mark.parametrize("form", ["dense", "2:4"])
def test_fewer_steps_than_stages(form: str, k: int) -> None:
    random = np.random.default_rng(2)
    w, x = weights(random, form, 70, k), exact(random, (30, k)).astype(np.float16)
    tile = table.WGMMA_DENSE[-1] if form == "dense" else table.WGMMA_TWO_OF_FOUR[-1]
    np.testing.assert_array_equal(compute(form, tile, w, x, "float16"), x.astype(np.float32) @ w.T)


@pytest.mark.parametrize(("form", "tile"), TILES, ids=lambda v: getattr(v, "name", v))
@pytest.mark.parametrize("less", [0, 24], ids=["whole tiles", "parts"])
def test_halves_leave_through_shared_memory(form: str, tile: WgmmaTile, less: int) -> None:
    """Turned over on the way; with a bias, a residual and an activation."""
    random = np.random.default_rng(5)
    m, n, k = tile.m - less, tile.n - less // 8, 64
    w, x, residual = weights(random, form, m, k), exact(random, (n, k)), exact(random, (n, m))
    x, residual, bias = x.astype(np.float16), residual.astype(np.float16), exact(random, m)
    ending = Ending(True, STEPS, 0, (n * m,), "float16", ("float16",))
    got = compute(form, tile, w, x, "float16", ending, residual, bias)
    expected = np.maximum(x.astype(np.float32) @ w.T + bias + residual.astype(np.float32), 0)
    np.testing.assert_array_equal(got, expected.astype(np.float16))


@pytest.mark.parametrize(("form", "kind"), [("dense", "float16"), ("2:4", "float16"), ("dense", "float32")])
def test_pictures_with_channels_last(form: str, kind: str) -> None:
    """NHWC: pixels are rows of channels, and Y is too."""
    random = np.random.default_rng(9)
    window = Window(2, 72, (9, 7), (5, 4), (3, 3), (2, 2), (1, 1), (1, 1))
    w, x = weights(random, form, 136, 72 * 9), exact(random, (2, 9, 7, 72)).astype(KINDS[kind])
    ending = Ending(False, (), 0, (), kind)
    got = compute_from(Windows(window, kind), form, WgmmaTile(128, 64, 2, 4), w, x, "float16", ending)
    padded = np.pad(x.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = [
        padded[b, i : i + 3, j : j + 3].reshape(-1) for b in range(2) for i in range(0, 9, 2) for j in range(0, 7, 2)
    ]
    np.testing.assert_array_equal(got, (np.stack(seen) @ w.T).astype(KINDS[kind]))


def test_bfloat16_leaves_as_it_came() -> None:
    random = np.random.default_rng(6)
    w, x = weights(random, "dense", 72, 80), exact(random, (33, 80)).astype(ml_dtypes.bfloat16)
    got = compute("dense", table.WGMMA_DENSE[-1], w, x, "bfloat16", Ending(False, (), 0, (), "bfloat16"))
    np.testing.assert_array_equal(got, (x.astype(np.float32) @ w.T).astype(ml_dtypes.bfloat16))


def test_many_tiles_in_bands() -> None:
    """More rows of tiles than a band holds: every tile of Y is computed once."""
    random = np.random.default_rng(3)
    tile = WgmmaTile(64, 64, 1, 3)
    w, x = weights(random, "dense", 64 * 35, 16), exact(random, (64 * 3 - 1, 16)).astype(np.float16)
    np.testing.assert_array_equal(compute("dense", tile, w, x, "float16"), x.astype(np.float32) @ w.T)


@pytest.mark.parametrize(
    "left_out", ["barrier", "seen_by_products", "ready", "wait_for_all_but", "finish_all_but", "settle"]
)
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_whatever_orders_a_kernel_is_needed(left_out: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wgmma, left_out, lambda *arguments: None)
    random = np.random.default_rng(7)
    w, x = weights(random, "2:4", 64, 64 * 6), exact(random, (64, 64 * 6)).astype(KINDS[kind])
    with pytest.raises(AssertionError):
        compute("2:4", WgmmaTile(64, 64, 1, 4), w, x, "float16")


def test_a_stage_is_not_filled_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stage more ahead, and copies meet products of the step before."""
    monkeypatch.setattr(WgmmaTile, "ahead", property(lambda tile: tile.stages - 1))
    random = np.random.default_rng(8)
    w, x = weights(random, "dense", 64, 64 * 6), exact(random, (64, 64 * 6)).astype(np.float16)
    with pytest.raises(Race, match="written while a product reads it"):
        compute("dense", WgmmaTile(64, 64, 1, 4), w, x, "float16")


# Packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", table.WGMMA_TWO_OF_FOUR, ids=lambda t: t.name)
def test_every_stage_expands_to_the_matrix(tile: WgmmaTile) -> None:
    """A stage as the tensor cores read it: values by their descriptor, positions from the lanes that a selector names."""
    m, k = tile.m + 8, 2 * DEPTH + 20
    w = weights(np.random.default_rng(4), "2:4", m, k).astype(np.float16)
    padded = np.pad(w, ((0, -m % tile.m), (0, -k % DEPTH)))
    values, words = wgmma_pack.pack_two_of_four(w[None], tile, "float16")
    stages = values.reshape(-1, tile.m * DEPTH // 2)
    lanes = words.reshape(len(stages), tile.m // 16, WARP)
    for stage, (row, column) in enumerate(np.ndindex(len(padded) // tile.m, padded.shape[1] // DEPTH)):
        for step in range(2):
            there = Descriptor.decode(k_major_descriptor(32) | 32 * step >> 4).k_major(tile.m, 16) // 2
            stored = stages[stage][there].reshape(-1, 16, 16).astype(np.float32)
            got = expanded(stored, lanes[stage], step).reshape(tile.m, 32)
            first = column * DEPTH + 32 * step
            np.testing.assert_array_equal(got, padded[row * tile.m : (row + 1) * tile.m, first : first + 32])
