"""Pooling and resizing: channels pass, positions do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich

import spa

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)


@few
@given(
    op=st.sampled_from(["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]), rank=st.integers(1, 3),
    padded=st.booleans(), channel=st.integers(0, 1), tail=TAIL, nonzero=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_pool(op: str, rank: int, padded: bool, channel: int, tail: str, nonzero: bool, seed: int) -> None:
    shape = (4, 6, *(4,) * rank)
    windows = not op.startswith("Global")
    options = (
        {"kernel_shape": [3] * rank, "strides": [1] * rank, "pads": [1] * 2 * rank if padded else [0] * 2 * rank}
        if windows
        else {}
    )
    out = (4, 6, *((4 if padded else 2) if windows else 1 for _ in range(rank)))
    model = sandwich(
        [node(op, "a", "z", **options)], shape, channel, out, channel, kind=tail, nonzero=nonzero, seed=seed, opset=18
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "", atol=1e-4)


@few
@given(
    opset=st.sampled_from([9, 10, 11, 13, 18, 19]), by=st.sampled_from(["scales", "sizes"]), mode=st.sampled_from(["nearest", "linear"]),
    subset=st.booleans(), channel=st.integers(0, 2), tail=TAIL, nonzero=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_resize(
    opset: int, by: str, mode: str, subset: bool, channel: int, tail: str, nonzero: bool, seed: int
) -> None:
    """Sizes name the channels too: they follow."""
    shape, out = (2, 6, 4, 3), (2, 6, 8, 6)
    subset = subset and opset >= 18
    axes = [2, 3] if subset else [0, 1, 2, 3]
    scales = np.array([out[a] / shape[a] for a in axes], np.float32)
    sizes = np.array([out[a] for a in axes], np.int64)
    options = {"mode": mode} | ({"axes": axes} if subset else {})
    if opset == 9:
        middle, constants = node("Upsample", "a scales", "z", **options), {"scales": scales}
    elif opset == 10:
        middle, constants = node("Resize", "a scales", "z", **options), {"scales": scales}
    elif by == "scales":
        middle, constants = (
            node("Resize", "a roi scales", "z", **options),
            {"scales": scales, "roi": np.zeros(0, np.float32)},
        )
    else:
        middle = node("Resize", "a roi none sizes" if opset < 13 else "a _ _ sizes", "z", **options)
        constants = {"sizes": sizes} | (
            {"roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32)} if opset < 13 else {}
        )
    model = sandwich(
        [middle], shape, channel, out, channel, kind=tail, nonzero=nonzero, seed=seed, constants=constants, opset=opset
    )
    check(
        model,
        seed,
        keeps="w0:1" if channel == 2 else "",
        cuts="w0:1" if tail == "weight" and channel < 2 else "",
        checked=opset > 9,
    )


def test_flat_indices_of_a_pool_block_its_channels() -> None:
    nodes = [
        node("MaxPool", "a", "p i", kernel_shape=[2, 2], strides=[2, 2]),
        node("MaxUnpool", "p i", "z", kernel_shape=[2, 2], strides=[2, 2]),
    ]  # fmt: skip
    model = sandwich(nodes, (2, 6, 4, 4), 1)
    check(model, keeps="w0:1")
    assert any("flat indices" in str(r) for b in spa.analyze(model).blocked for r in b.reasons)


@pytest.mark.parametrize("channel", [2, 3])
def test_positions_are_not_channels(channel: int) -> None:
    check(sandwich([node("MaxPool", "a", "z", kernel_shape=[1, 1])], (2, 3, 6, 6), channel), keeps="w0:1")
