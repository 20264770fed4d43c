"""The emulator of warpgroup products: descriptors and fragments against examples by hand, and what must not pass."""

from __future__ import annotations

from typing import Any

import emulator
import numpy as np
import pytest
from machine import Race
from warpgroup import Descriptor, fragment

pytestmark = pytest.mark.codegen

from spa.codegen.cuda import wgmma_words, words  # noqa: E402
from spa.codegen.cuda.wgmma_layout import (  # noqa: E402
    k_major,
    k_major_descriptor,
    mn_major,
    mn_major_descriptor,
)
from spa.codegen.kernels.vector import argument, build, function  # noqa: E402
from spa.codegen.tvm_api import tirx  # noqa: E402
from spa.codegen.tvm_api.cuda import emit_cuda  # noqa: E402

SIZE = 64  # of the three sides of a product


def described(flags: int, address: int) -> Descriptor:
    return Descriptor.decode(flags | address >> 4)


# Layouts ---------------------------------------------------------------------------------------------------------


def test_swizzle_of_128_bytes_by_hand() -> None:
    """Row r of eight: the 16 bytes that come at place c lie at place c ^ r."""
    got = described(k_major_descriptor(64), 2048).k_major(16, 64)
    assert got[0].tolist() == [2048 + 2 * k for k in range(64)]
    assert got[3, 0] == 2048 + 3 * 128 + 3 * 16
    assert got[3, 8] == 2048 + 3 * 128 + 2 * 16
    assert got[8 + 5, 63] == 2048 + 1024 + 5 * 128 + (7 ^ 5) * 16 + 14


def test_swizzle_of_64_bytes_by_hand() -> None:
    """Rows are 64 bytes: two of them lie in one line of 128 bytes, and the pattern begins anew after 8 rows."""
    got = described(k_major_descriptor(32), 1024).k_major(16, 32)
    assert got[1, 0] == 1024 + 64
    assert got[2, 0] == 1024 + 2 * 64 + 1 * 16
    assert got[7, 8] == 1024 + 7 * 64 + (1 ^ 3) * 16
    assert got[8, 0] == 1024 + 512


@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize("first", [0, 16])
def test_kernels_place_rows_where_descriptors_say(width: int, first: int) -> None:
    row, k = np.mgrid[:128, :16]
    placed = 4096 + 2 * k_major(row, first + k, width)
    np.testing.assert_array_equal(described(k_major_descriptor(width), 4096 + 2 * first).k_major(128, 16), placed)


@pytest.mark.parametrize("first", [0, 16, 48])
def test_kernels_place_columns_where_descriptors_say(first: int) -> None:
    n, k = np.mgrid[:192, :16]
    placed = 1024 + 2 * mn_major(first + k, n, 64)
    np.testing.assert_array_equal(described(mn_major_descriptor(64), 1024 + 2 * 64 * first).mn_major(192, 16), placed)


def test_layouts_hold_everything_once() -> None:
    n, k = np.mgrid[:256, :64]
    for places in (k_major(n, k, 64), k_major(n, k % 32, 32)[:, :32], mn_major(k, n, 64)):
        assert np.sort(places.reshape(-1)).tolist() == list(range(places.size))


@pytest.mark.parametrize("n", [64, 128, 256])
def test_fragments_cover_the_sums_once(n: int) -> None:
    seen = np.zeros((64, n), int)
    for i in range(n // 2):
        np.add.at(seen, fragment(i), 1)
    assert (seen == 1).all()


# Order -----------------------------------------------------------------------------------------------------------


def run(**faults: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A kernel of one warpgroup and one product 64 x 64 x 64, with something left out; what it gave, and what is right."""
    with function() as f:
        a, b, y = (
            argument(name, SIZE * SIZE, kind) for name, kind in (("a", "float16"), ("b", "float16"), ("y", "float32"))
        )
        with words.axis("blockIdx.x", 1), words.axis("threadIdx.x", wgmma_words.WARPGROUP) as thread:
            _body(faults, a, b, y, thread)
    device = emit_cuda({"k": f.primfunc}, {"k"}, "sm_90a", {"k": "k"})
    (launch,) = device.launches["k"]
    random = np.random.default_rng(0)
    left, right = (random.integers(-8, 9, (SIZE, SIZE)).astype(np.float16) for _ in range(2))
    row, k = np.mgrid[:SIZE, :SIZE]
    images = [np.zeros(SIZE * SIZE, np.float16) for _ in range(2)]
    for image, matrix in zip(images, (left, right), strict=True):
        image[k_major(row, k, SIZE)] = matrix
    arrays: list[Any] = [*images, np.zeros(SIZE * SIZE, np.float32)]
    flat = [arrays[p.index] for p in launch.arguments]
    emulator.launch(device.functions[launch.symbol], flat, launch.grid, launch.block, launch.shared)
    got = np.zeros((SIZE, SIZE), np.float32)
    for i in range(SIZE // 2):
        got[fragment(i)] = arrays[2].reshape(SIZE // 2, -1)[i]
    return got, left.astype(np.float32) @ right.astype(np.float32).T


def _body(faults: Any, a: Any, b: Any, y: Any, thread: Any) -> None:
    shared = words.dynamic_shared(2 * SIZE * SIZE + 512, "float16")
    sums = words.local(SIZE // 2, "float32")
    with words.unrolled(SIZE // 2) as i:
        build.buffer_store(sums, tirx.const(0.0, "float32"), [i])
    number = wgmma_words.shared_number(shared, 0)
    slack = (tirx.const(0, "uint32") - number) & tirx.const(1023, "uint32")
    origin = words.named(tirx.Cast("int32", slack) // 2)
    for to, source in ((0, a), (SIZE * SIZE, b)):
        with words.unrolled(SIZE * SIZE // 8 // 128) as j:
            at = (j * 128 + thread) * 8
            words.copy_async(shared, origin + to + at, source, at)
    words.commit()
    if faults.get("copies", True):
        words.wait_for_all_but(0)
    if faults.get("proxy", True) is True:
        wgmma_words.seen_by_products()
    if faults.get("barrier", True):
        words.barrier()
    if faults.get("proxy") == "late":
        wgmma_words.seen_by_products()
    if faults.get("ready", True):
        wgmma_words.ready()
    place = wgmma_words.described(number + slack)
    flags = tirx.const(k_major_descriptor(SIZE), "uint64")
    for s in range(SIZE // 16):
        left = wgmma_words.moved(place, 32 * s) + flags
        right = wgmma_words.moved(place, 2 * SIZE * SIZE + 32 * s) + flags
        wgmma_words.multiply([sums[i] for i in range(SIZE // 2)], left, right, "float16", False)
    wgmma_words.commit_products()
    if faults.get("overwrite") == "before":
        build.buffer_store(shared, tirx.const(0.0, "float16"), [origin + thread])
    if faults.get("touch"):
        build.buffer_store(sums, tirx.const(0.0, "float32"), [3])
    if faults.get("wait", True):
        wgmma_words.finish_all_but(0)
    if faults.get("overwrite") == "after":
        build.buffer_store(shared, tirx.const(0.0, "float16"), [origin + thread])
    if faults.get("again"):
        wgmma_words.multiply([sums[i] for i in range(SIZE // 2)], left, right, "float16", False)
    with words.unrolled(SIZE // 2) as i:
        build.buffer_store(y, sums[i], [i * 128 + thread])
    words.wait_for_all_but(0)


def test_a_product() -> None:
    got, expected = run()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ({"copies": False}, "nobody has written, or waited for"),
        ({"proxy": False}, "not fenced"),
        ({"proxy": "late"}, "not fenced"),
        ({"barrier": False}, "since the last barrier"),
        ({"ready": False}, "no wgmma.fence"),
        ({"overwrite": "before"}, "written while a product reads"),
        ({"overwrite": "after"}, "read by"),
        ({"touch": True}, "nobody has waited for them"),
        ({"wait": False}, "nobody has waited for them"),
        ({"again": True}, "no wgmma.fence"),
    ],
    ids=str,
)
def test_what_is_left_out_is_seen(faults: dict[str, Any], says: str) -> None:
    with pytest.raises(Race, match=says):
        run(**faults)
