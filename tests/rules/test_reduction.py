"""Reductions, rankings and cumulations: sums forget zeros, means are rescaled, extrema are refused."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich

from spa.coupling.rules.reduction import OTHERS, SUMS

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)
SHAPE = (4, 5, 6)


@settings(max_examples=100)
@given(
    op=st.sampled_from([*SUMS, *OTHERS]), axes=st.sets(st.integers(-3, 2), min_size=0, max_size=2), keep=st.booleans(), noop=st.booleans(),
    old=st.booleans(), channel=st.integers(0, 2), squash=st.booleans(), tail=TAIL, seed=SEEDS,
)  # fmt: skip
def test_reduce(
    op: str, axes: set[int], keep: bool, noop: bool, old: bool, channel: int, squash: bool, tail: str, seed: int
) -> None:
    over = sorted({a % 3 for a in axes}) if axes else [] if noop and not old else [0, 1, 2]
    given_axes = sorted({a % 3: a for a in axes}.values())
    options: dict[str, object] = (
        {"keepdims": int(keep)}
        | ({"axes": given_axes} if old and axes else {})
        | ({} if old else {"noop_with_empty_axes": int(noop)})
    )
    opset = 12 if old and op == "ReduceSum" else 13 if old else 18
    constants = {} if old or not axes else {"axes": np.array(given_axes, np.int64)}
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r"), node(op, "r axes" if constants else "r", "s", **options)]
    out = [1 if a in over else n for a, n in enumerate(SHAPE) if keep or a not in over]
    where = channel if keep else channel - sum(a < channel for a in over)
    if channel in over:  # then what is read is what remains
        if not any(n > 1 for n in out):
            nodes.append(node("Identity", "s", "y"))
        else:
            where = next(i for i, n in enumerate(out) if n > 1)
    nodes[-1].output[0] = "z" if nodes[-1].output[0] == "s" else nodes[-1].output[0]
    if nodes[-1].output[0] == "y":
        nodes.pop()
        nodes[-1].output[0] = "s"
        nodes.append(node("Reshape", "s one", "z"))
        constants["one"] = np.array([1, 1])
        out, where = [1, 1], 0
    model = sandwich(
        nodes, SHAPE, channel, out, where, kind=tail, nonzero=False, seed=seed, constants=constants, opset=opset
    )
    summed = op in SUMS and not squash
    cuts = "w0:1" if (summed if channel in over else tail == "weight") else ""
    if op == "ReduceLogSum" or (op in ("ReduceLogSumExp",) and channel not in over):
        cuts = ""
    check(model, seed, cuts=cuts, keeps="w0:1" if channel in over and not summed else "", atol=1e-4)


@few
@given(
    op=st.sampled_from(["ArgMax", "ArgMin", "TopK", "CumSum"]),
    axis=st.integers(-3, 2),
    keep=st.booleans(),
    reverse=st.booleans(),
    channel=st.integers(0, 2),
    tail=TAIL,
    nonzero=st.booleans(),
    seed=SEEDS,
)
def test_along_an_axis(
    op: str, axis: int, keep: bool, reverse: bool, channel: int, tail: str, nonzero: bool, seed: int
) -> None:
    out, constants = [*SHAPE], {}
    if op == "TopK":
        middle, constants = node("TopK", "a k", "m i", axis=axis), {"k": np.array([2])}
        out[axis] = 2
    elif op == "CumSum":
        middle, constants = (
            node("CumSum", "a axis", "m", reverse=int(reverse), exclusive=int(keep)),
            {"axis": np.array(axis)},
        )
    else:
        middle = node(op, "a", "m", axis=axis, keepdims=int(keep))
        out[axis] = 1
        if not keep:
            del out[axis]
    mixed = axis % 3 == channel
    where = 0 if mixed else channel - (len(out) < 3 and channel > axis % 3)
    nodes = [middle, node("Cast", "m", "z", to=onnx.TensorProto.FLOAT)]
    model = sandwich(
        nodes, SHAPE, channel, out, where, kind=tail, nonzero=nonzero, seed=seed, constants=constants, opset=18
    )
    check(model, seed, keeps="w0:1" if mixed else "", cuts="w0:1" if tail == "weight" and not mixed else "")


def test_axes_that_depend_on_data_block() -> None:
    nodes = [node("ReduceSum", "a axes", "z", keepdims=1)]
    model = sandwich(nodes, SHAPE, 2, SHAPE, 2, inputs={"axes": (1,)}, types={"axes": onnx.TensorProto.INT64})
    from spa import analyze

    assert not any(g.id == "w0:1" for g in analyze(model).groups)
