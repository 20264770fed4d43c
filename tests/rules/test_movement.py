"""Transpose, Expand, Tile, DepthToSpace, SpaceToDepth, ConstantOfShape."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)


@few
@given(
    perm=st.none() | st.permutations(range(4)), channel=st.integers(0, 3), tail=TAIL, nonzero=st.booleans(), seed=SEEDS
)
def test_transpose(perm: list[int] | None, channel: int, tail: str, nonzero: bool, seed: int) -> None:
    shape = (2, 3, 4, 5)
    order = perm or [3, 2, 1, 0]
    middle = node("Transpose", "a", "z", **({"perm": perm} if perm else {}))
    model = sandwich(
        [middle], shape, channel, [shape[i] for i in order], order.index(channel), kind=tail, nonzero=nonzero, seed=seed
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(
    target=st.sampled_from([(2, 6, 3), (1, 6, 1), (5, 1, 6, 3), (1, 1, 1), (3,), (2, 6, 4)]),
    wide=st.booleans(),
    channel=st.integers(0, 2),
    tail=TAIL,
    nonzero=st.booleans(),
    seed=SEEDS,
)
def test_expand(target: tuple[int, ...], wide: bool, channel: int, tail: str, nonzero: bool, seed: int) -> None:
    """Sizes that name the channel follow; an axis that is repeated is nobody's channel."""
    shape = (2, 6, 1 if target[-1] == 4 or not wide else 3)
    if shape[channel] == 1:
        return
    out = np.broadcast_shapes(shape, target)
    read = channel + len(out) - 3
    model = sandwich(
        [node("Expand", "a target", "z")],
        shape,
        channel,
        out,
        read,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants={"target": np.array(target)},
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(
    repeats=st.tuples(*[st.integers(1, 3)] * 3), channel=st.integers(0, 2), squash=st.booleans(), tail=TAIL, seed=SEEDS
)
def test_tile(repeats: tuple[int, ...], channel: int, squash: bool, tail: str, seed: int) -> None:
    shape = (2, 6, 3)
    out = [n * r for n, r in zip(shape, repeats, strict=True)]
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r"), node("Tile", "r repeats", "z")]
    model = sandwich(
        nodes, shape, channel, out, channel, kind=tail, seed=seed, constants={"repeats": np.array(repeats)}
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(
    op=st.sampled_from(["DCR", "CRD", "SpaceToDepth"]),
    block=st.sampled_from([2, 3]),
    channel=st.sampled_from([0, 1]),
    squash=st.booleans(),
    tail=TAIL,
    seed=SEEDS,
)
def test_blocks(op: str, block: int, channel: int, squash: bool, tail: str, seed: int) -> None:
    wide = block * block * 3
    shape = (4, 3, 2 * block, block) if op == "SpaceToDepth" else (4, wide, 2, 1)
    out = (4, wide, 2, 1) if op == "SpaceToDepth" else (4, 3, 2 * block, block)
    middle = (
        node("SpaceToDepth", "r", "z", blocksize=block)
        if op == "SpaceToDepth"
        else node("DepthToSpace", "r", "z", blocksize=block, mode=op)
    )
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r"), middle]
    model = sandwich(nodes, shape, channel, out, channel, kind=tail, nonzero=False, seed=seed)
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(
    fill=st.sampled_from([0.0, 1.5]),
    computed=st.booleans(),
    channel=st.integers(0, 2),
    op=st.sampled_from(["Add", "Mul", "Concat"]),
    tail=TAIL,
    nonzero=st.booleans(),
    seed=SEEDS,
)
def test_a_tensor_as_wide_as_the_channels(
    fill: float, computed: bool, channel: int, op: str, tail: str, nonzero: bool, seed: int
) -> None:
    """ConstantOfShape of a shape that names the channels, or is computed from them."""
    shape = (2, 6, 3)
    value = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [fill])
    nodes = [node("Shape", "a", "s")] if computed else []
    nodes += [
        node("ConstantOfShape", "s", "c", value=value),
        node(op, "a c", "z", **({"axis": (channel + 1) % 3} if op == "Concat" else {})),
    ]
    out = [2 * n if op == "Concat" and i == (channel + 1) % 3 else n for i, n in enumerate(shape)]
    model = sandwich(
        nodes,
        shape,
        channel,
        out,
        channel,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants={} if computed else {"s": np.array(shape)},
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")
