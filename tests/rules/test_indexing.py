"""Concat, Split, Slice, Gather, Pad: index maps of every kind, and the constants that follow."""

from __future__ import annotations

import numpy as np
import onnx
from few_ops import network
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich, values

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)
SHAPE = (4, 6, 5)


@few
@given(
    axis=st.integers(-3, 2),
    channel=st.integers(0, 2),
    squash=st.booleans(),
    constant=st.booleans(),
    tail=TAIL,
    nonzero=st.booleans(),
    seed=SEEDS,
)
def test_concat(axis: int, channel: int, squash: bool, constant: bool, tail: str, nonzero: bool, seed: int) -> None:
    """A tensor beside a function of itself, or beside a constant."""
    rng = np.random.default_rng(seed)
    other = [3 if i == axis % 3 else n for i, n in enumerate(SHAPE)]
    nodes = [] if constant else [node("Sigmoid" if squash else "Relu", "a", "r")]
    nodes.append(node("Concat", "a c a" if constant else "a r", "z", axis=axis))
    out = [2 * n + 3 * constant if i == axis % 3 else n for i, n in enumerate(SHAPE)]
    constants = {"c": values(rng, *other)} if constant else {}
    check(
        sandwich(nodes, SHAPE, channel, out, channel, kind=tail, nonzero=nonzero, seed=seed, constants=constants),
        seed,
        cuts="w0:1" if tail == "weight" else "",
    )


@few
@given(
    axis=st.integers(-3, 2), parts=st.sampled_from([(1, 3, 2), (2, 2, 2), (4, 2), None]), opset=st.sampled_from([11, 13, 18]), channel=st.integers(0, 2),
    join=st.sampled_from(["Add", "Concat", "first"]), tail=TAIL, nonzero=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_split(
    axis: int, parts: tuple[int, ...] | None, opset: int, channel: int, join: str, tail: str, nonzero: bool, seed: int
) -> None:
    """Parts of given or equal sizes, added, joined in another order, or left unread."""
    shape = tuple(6 if i == axis % 3 else n for i, n in enumerate((4, 3, 5)))
    sizes = parts or (3, 3)
    names = [f"p{k}" for k in range(len(sizes))]
    options: dict[str, object] = {"axis": axis}
    constants = {}
    if opset == 11:
        options |= {"split": list(sizes)} if parts else {}
        middle = node("Split", "a", " ".join(names), **options)
    elif parts:
        middle, constants = node("Split", "a sizes", " ".join(names), **options), {"sizes": np.array(sizes)}
    else:
        options |= {"num_outputs": 2} if opset == 18 else {}
        middle = node("Split", "a", " ".join(names), **options)
    if join == "Add" and len(set(sizes)) > 1:
        join = "Concat"
    last = {
        "Add": node("Sum", " ".join(names), "z"),
        "Concat": node("Concat", " ".join(names[::-1]), "z", axis=axis),
        "first": node("Identity", "p0", "z"),
    }[join]
    wide = {"Add": sizes[0], "Concat": 6, "first": sizes[0]}[join]
    out = [wide if i == axis % 3 else n for i, n in enumerate(shape)]
    model = sandwich(
        [middle, last],
        shape,
        channel,
        out,
        channel,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants=constants,
        opset=opset,
    )
    check(model, seed, cuts="w0:1" if tail == "weight" and wide > 1 else "")


@few
@given(
    axis=st.integers(0, 2), start=st.integers(-7, 7), end=st.sampled_from([-20, -3, -1, 0, 2, 4, 5, 100, 2**62]), step=st.sampled_from([-2, -1, 1, 2, 3]),
    old=st.booleans(), narrow=st.booleans(), named=st.booleans(), channel=st.integers(0, 2), tail=TAIL, nonzero=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_slice(
    axis: int,
    start: int,
    end: int,
    step: int,
    old: bool,
    narrow: bool,
    named: bool,
    channel: int,
    tail: str,
    nonzero: bool,
    seed: int,
) -> None:
    step, start = (1, max(start, -SHAPE[axis])) if old else (step, start)
    n = SHAPE[axis]
    lower = -1 if step < 0 else 0
    begin = min(max(start + n if start < 0 else start, 0), n - (step < 0))
    stop = min(max(end + n if end < 0 else end, lower), n - (step < 0)) if end >= 0 or end + n >= 0 else lower
    taken = list(range(begin, stop, step))
    if not taken:
        return
    all_axes = not named and axis == 0
    if old:
        middle, constants = (
            node("Slice", "a", "z", starts=[start], ends=[min(end, 2**31)], **({} if all_axes else {"axes": [axis]})),
            {},
        )
    else:
        given_ = {
            "starts": np.array([start]),
            "ends": np.array([end]),
            "axes": np.array([axis - 3 if named else axis]),
            "steps": np.array([step]),
        }
        operands = (
            "a starts ends"
            if all_axes and step == 1
            else "a starts ends axes"
            if step == 1
            else "a starts ends axes steps"
        )
        middle, constants = node("Slice", operands, "z"), {k: v for k, v in given_.items() if k in operands}
        if narrow:  # starts, ends, axes and steps are of one type, whichever it is
            constants = {k: np.clip(v, -(2**31), 2**31 - 1).astype(np.int32) for k, v in constants.items()}
    out = [len(taken) if i == axis else m for i, m in enumerate(SHAPE)]
    model = sandwich(
        [middle],
        SHAPE,
        channel,
        out,
        channel,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants=constants,
        opset=9 if old else 13,
    )
    # a single index that is left stands alone: it stays, the others have no reader
    check(model, seed, cuts="w0:1" if tail == "weight" and (channel != axis or len(taken) > 1) else "")


@few
@given(
    axis=st.integers(-3, 2), rank=st.integers(0, 2), data=st.booleans(), twice=st.booleans(), channel=st.integers(0, 2),
    tail=TAIL, nonzero=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_gather(
    axis: int, rank: int, data: bool, twice: bool, channel: int, tail: str, nonzero: bool, seed: int
) -> None:
    """Permutations, repetitions, negative indices, matrices of indices, a single one, or data."""
    rng = np.random.default_rng(seed)
    n, inner = SHAPE[axis], (3, 2)[:rank]
    index = (
        rng.integers(-n, n, inner)
        if twice or rank > 1
        else rng.permutation(n)[:3]
        if rank
        else np.array(int(rng.integers(n)))
    )
    at = axis % 3
    out = [*SHAPE[:at], *inner, *SHAPE[at + 1 :]]
    read = channel if channel < at else channel + rank - 1 if channel > at else at
    given_ = (
        {"inputs": {"i": inner}, "types": {"i": onnx.TensorProto.INT64}}
        if data
        else {"constants": {"i": np.asarray(index, np.int64)}}
    )
    if read >= len(out):
        return
    model = sandwich(
        [node("Gather", "a i", "z", axis=axis)],
        SHAPE,
        channel,
        out,
        read,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        **given_,
    )
    check(
        model,
        seed,
        given={"i": np.asarray(index, np.int64)} if data else {},
        cuts="w0:1" if tail == "weight" and channel != at else "",
    )


@few
@given(
    begin=st.tuples(*[st.integers(-1, 2)] * 3), end=st.tuples(*[st.integers(-1, 2)] * 3),
    mode=st.sampled_from(["constant", "reflect", "edge"]), fill=st.sampled_from([None, 0.0, 0.7]),
    opset=st.sampled_from([10, 13, 18]), channel=st.integers(0, 2), tail=TAIL, nonzero=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_pad(
    begin: tuple[int, ...],
    end: tuple[int, ...],
    mode: str,
    fill: float | None,
    opset: int,
    channel: int,
    tail: str,
    nonzero: bool,
    seed: int,
) -> None:
    """Padding of channels, of positions, or both; negative widths crop."""
    if mode != "constant":
        begin, end = (tuple(max(0, n) for n in side) for side in (begin, end))
    out = [n + b + e for n, b, e in zip(SHAPE, begin, end, strict=True)]
    constants = {}
    if opset == 10:
        middle = node("Pad", "a", "z", pads=[*begin, *end], mode=mode, **({"value": fill} if fill is not None else {}))
    else:
        constants = {"pads": np.array([*begin, *end])} | (
            {"fill": np.array(fill, np.float32)} if fill is not None else {}
        )
        middle = node("Pad", "a pads" + (" fill" if fill is not None else ""), "z", mode=mode)
        if opset == 18 and begin[0] == end[0] == 0:
            constants |= {"axes": np.array([1, -1]), "pads": np.array([*begin[1:], *end[1:]])}
            middle = node("Pad", "a pads fill axes" if fill is not None else "a pads _ axes", "z", mode=mode)
    model = sandwich(
        [middle], SHAPE, channel, out, channel, kind=tail, nonzero=nonzero, seed=seed, constants=constants, opset=opset
    )
    plain = begin[channel] == end[channel] == 0
    check(model, seed, cuts="w0:1" if tail == "weight" and plain else "")


@few
@given(shift=st.integers(1, 5), groups=st.sampled_from([2, 3]), squash=st.booleans(), seed=SEEDS)
def test_rolls_and_shuffles(shift: int, groups: int, squash: bool, seed: int) -> None:
    """A roll by two slices and a Concat, then a channel shuffle by reshapes."""
    rng = np.random.default_rng(seed)
    constants = {
        "w0": values(rng, 3, 6), "w1": values(rng, 6, 2), "zero": np.array([0]), "shift": np.array([shift]), "end": np.array([6]), "axis": np.array([1]),
        "split": np.array([2, groups, 6 // groups]), "flat": np.array([2, 6]),
    }  # fmt: skip
    nodes = [
        node("MatMul", "x w0", "h"), node("Sigmoid" if squash else "Relu", "h", "a"), node("Slice", "a shift end axis", "p"),
        node("Slice", "a zero shift axis", "q"),
        node("Concat", "p q", "rolled", axis=1), node("Reshape", "rolled split", "s"), node("Transpose", "s", "t", perm=[0, 2, 1]),
        node("Reshape", "t flat", "z"), node("MatMul", "z w1", "y"),
    ]  # fmt: skip
    check(network(nodes, {"x": (2, 3)}, ["y"], constants), seed)
