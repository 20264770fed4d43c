"""The emulator itself: what it must not let pass. A test that runs kernels without a GPU is worth what its emulator sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import emulator
import numpy as np
import pytest
from instructions import expanded, fragment_a, fragment_b, fragment_c
from machine import OutOfBounds, Race

pytestmark = pytest.mark.codegen

from spa.codegen.cuda import words  # noqa: E402
from spa.codegen.kernels.vector import argument, build, function  # noqa: E402
from spa.codegen.tvm_api import tirx  # noqa: E402
from spa.codegen.tvm_api.cuda import emit_cuda  # noqa: E402

N = 128


def run(body: Callable[[Any, Any, Any, Any], None], threads: int = N) -> np.ndarray[Any, Any]:
    """A kernel of two blocks that moves x through shared memory to y."""
    with function() as f:
        x, y = argument("x", 2 * N), argument("y", 2 * N)
        with words.axis("blockIdx.x", 2) as block, words.axis("threadIdx.x", threads) as thread:
            shared = words.static_shared(2 * N, "float32")
            body(shared, x, y, (block, thread))
    device = emit_cuda({"k": f.primfunc}, {"k"}, "sm_80", {"k": "k"})
    (launch,) = device.launches["k"]
    arrays = [np.arange(2 * N, dtype=np.float32), np.zeros(2 * N, np.float32)]
    emulator.launch(
        device.functions["k_kernel"],
        [arrays[p.index] for p in launch.arguments],
        launch.grid,
        launch.block,
        launch.shared,
    )
    return arrays[1]


def reverse(barrier: bool) -> Callable[..., None]:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        block, thread = at
        build.buffer_store(shared, x[block * N + thread], [thread])
        if barrier:
            words.barrier()
        build.buffer_store(y, shared[(N - 1) - thread], [block * N + thread])

    return body


def test_a_barrier_orders_threads() -> None:
    expected = np.arange(2 * N).reshape(2, N)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(run(reverse(True)), expected)


def test_a_missing_barrier_is_seen() -> None:
    with pytest.raises(Race, match="written by"):
        run(reverse(False))


def test_overwriting_what_others_still_read_is_seen() -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        reverse(True)(shared, x, y, at)
        build.buffer_store(shared, x[at[1]], [at[1]])

    with pytest.raises(Race, match="read by"):
        run(body)


def test_two_threads_writing_one_cell_are_seen() -> None:
    with pytest.raises(Race, match="one cell at once"):
        run(lambda shared, x, y, at: build.buffer_store(shared, x[at[1]], [at[1] // 2]))


def test_blocks_writing_over_each_other_are_seen() -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        build.buffer_store(y, x[at[0] * N + at[1]], [at[1]])

    with pytest.raises(Race):
        run(body)


def test_a_barrier_that_some_threads_miss_is_seen() -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        with words.when(at[1] < 64):
            words.barrier()

    with pytest.raises(Race, match="only some threads"):
        run(body)


def test_leaving_a_buffer_is_seen() -> None:
    with pytest.raises(OutOfBounds):
        run(lambda shared, x, y, at: build.buffer_store(y, x[at[0] * N + at[1] + 1], [at[0] * N + at[1]]))


@pytest.mark.parametrize("waits", [True, False])
def test_copies_arrive_when_they_are_waited_for(waits: bool) -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        block, thread = at
        words.copy_async(shared, thread * 4, x, block * N + thread * 4)
        words.commit()
        if waits:
            words.wait_for_all_but(0)
        words.barrier()
        for i in range(4):
            build.buffer_store(y, shared[thread * 4 + i], [block * N + thread * 4 + i])
        words.wait_for_all_but(0)

    if waits:
        np.testing.assert_array_equal(run(body, 32), np.arange(2 * N))
    else:
        with pytest.raises(Race, match="waited for"):
            run(body, 32)


def test_a_copy_needs_a_barrier_before_others_read_it() -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        words.copy_async(shared, at[1] * 4, x, at[1] * 4)
        words.commit()
        words.wait_for_all_but(0)
        build.buffer_store(y, shared[at[1]], [at[0] * N + at[1]])

    with pytest.raises(Race, match="written by"):
        run(body, 32)


def test_what_does_not_arrive_is_zeros() -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        block, thread = at
        words.copy_async(shared, thread * 4, x, block * N + thread * 4, thread < 8)
        words.commit()
        words.wait_for_all_but(0)
        for i in range(4):
            build.buffer_store(y, shared[thread * 4 + i], [block * N + thread * 4 + i])

    expected = np.where(np.arange(2 * N) % N < 32, np.arange(2 * N), 0)
    np.testing.assert_array_equal(run(body, 32), expected)


def test_sums_over_a_warp() -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        total = words.local(1, "float32")
        build.buffer_store(total, x[at[0] * N + at[1]], [0])
        for mask in (16, 8, 4, 2, 1):
            other = words.named(words.shuffled(total[0], mask))
            build.buffer_store(total, total[0] + other, [0])
        build.buffer_store(y, total[0], [at[0] * N + at[1]])

    expected = np.repeat(np.arange(2 * N).reshape(-1, 32).sum(1), 32)
    np.testing.assert_array_equal(run(body), expected)


def test_divergent_branches_and_loops() -> None:
    def body(shared: Any, x: Any, y: Any, at: Any) -> None:
        block, thread = at
        total = words.local(1, "float32")
        build.buffer_store(total, tirx.const(0.0, "float32"), [0])
        with build.serial(0, thread % 5) as i, words.when(i % 2 < 1):
            build.buffer_store(total, total[0] + x[i] + 1.0, [0])
        build.buffer_store(y, total[0], [block * N + thread])

    expected = [sum(i + 1 for i in range(t % N % 5) if i % 2 == 0) for t in range(2 * N)]
    np.testing.assert_array_equal(run(body), expected)


# Fragments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "count", "shape"),
    [(fragment_a, 8, (16, 16)), (fragment_b, 4, (16, 8)), (fragment_b, 8, (32, 8)), (fragment_c, 4, (16, 8))],
)
def test_fragments_cover_their_matrix_once(place: Any, count: int, shape: tuple[int, int]) -> None:
    seen = np.zeros(shape, int)
    for i in range(count):
        np.add.at(seen, place(i), 1)
    assert (seen == 1).all()


def test_metadata_by_hand() -> None:
    """Row 1 of a 16 x 32 tile keeps inputs 1 and 3 of its first group of four, and 0 and 2 of the last."""
    words_ = np.full((1, 32), 0x44444444, np.uint32)  # positions 0, 1 everywhere
    words_[0, 4 * 1 + 0] = 0x4444_444D  # quad 1, inputs 0..15, low half: row 1; first nibble 0b1101
    words_[0, 4 * 1 + 1] = 0x4444_8444  # quad 1, inputs 16..31; last nibble of the low half 0b1000
    stored = np.arange(1, 257, dtype=np.float32).reshape(1, 16, 16)
    dense = expanded(stored, words_, 0)[0]
    expected = np.zeros((16, 32))
    expected.reshape(16, 8, 4)[..., :2] = stored.reshape(16, 8, 2)
    expected[1, :4] = 0, stored[0, 1, 0], 0, stored[0, 1, 1]
    expected[1, 28:] = stored[0, 1, 14], 0, stored[0, 1, 15], 0
    np.testing.assert_array_equal(dense, expected)
