"""Convolutions and products: channels end at a weight, groups go as a whole."""

from __future__ import annotations

import numpy as np
from few_ops import attributes, network
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich, values

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)


@settings(max_examples=50)
@given(
    group=st.sampled_from([1, 2, 3, 6]), wide=st.integers(1, 2), rank=st.integers(1, 3), bias=st.booleans(), squash=st.booleans(),
    stride=st.integers(1, 2), dilation=st.integers(1, 2), same=st.booleans(), transposed=st.booleans(), tail=st.sampled_from(["weight", "sum"]), seed=SEEDS,
)  # fmt: skip
def test_conv(
    group: int, wide: int, rank: int, bias: bool, squash: bool, stride: int, dilation: int, same: bool, transposed: bool, tail: str, seed: int
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    outputs, kernel = 6 * wide, (2,) * rank
    shape = (6, outputs // group, *kernel) if transposed else (outputs, 6 // group, *kernel)
    constants = {
        "w0": values(rng, 6, 3, *(1,) * rank),
        "w": values(rng, *shape),
        "b": values(rng, outputs),
        "w1": values(rng, 2, outputs, *(1,) * rank),
        "axis": np.array([1]),
    }
    options = {"group": group, "strides": [stride] * rank}
    options |= (
        {"auto_pad": "SAME_UPPER"}
        if same and not transposed
        else {"dilations": [dilation] * rank, "pads": [1] * 2 * rank}
    )
    nodes = [node("Conv", "x w0", "a"), node("Sigmoid" if squash else "Relu", "a", "r")]
    nodes.append(node("ConvTranspose" if transposed else "Conv", "r w b" if bias else "r w", "c", **options))
    nodes.append(node("Conv", "c w1", "y") if tail == "weight" else node("ReduceSum", "c axis", "y"))
    used = {i for n in nodes for i in n.input}
    model = network(
        nodes, {"x": (2, 3, *(6,) * rank)}, ["y"], {k: v for k, v in constants.items() if k in used}, opset=18
    )
    cuts = (
        "w0:0" + (" w" if group > 1 else " w:1" if not transposed else " w:0") + (" w1:1" if tail == "weight" else "")
    )
    cut, removed = check(model, seed, cuts=cuts, keeps="x", atol=1e-4)
    nodes_left = [n for n in cut.to_proto().graph.node if n.op_type in ("Conv", "ConvTranspose")]
    if group == 6:
        assert attributes(nodes_left[1])["group"] == 6 - len(removed["w0"]["0"])


@few
@given(
    first=st.booleans(),
    last=st.booleans(),
    form=st.sampled_from(["none", "row", "scalar", "whole", "column"]),
    tail=TAIL,
    seed=SEEDS,
)
def test_gemm(first: bool, last: bool, form: str, tail: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = {"row": (6,), "scalar": (1,), "whole": (4, 6), "column": (4, 1)}
    constants = {"w": values(rng, *((6, 3) if last else (3, 6)))} | ({"c": values(rng, *c[form])} if form in c else {})
    nodes = [
        node("Gemm", "x w c" if form in c else "x w", "g", transA=int(first), transB=int(last), alpha=0.5, beta=2.0)
    ]
    if tail == "weight":
        constants["w1"] = values(rng, 6, 2)
        nodes.append(node("Gemm", "g w1", "y"))
    else:
        nodes.append(node({"sum": "ReduceSum", "mean": "ReduceMean", "square": "ReduceSumSquare"}[tail], "g axis", "y"))
        constants["axis"] = np.array([1])
    cuts = f"w:{0 if last else 1}" if tail == "weight" or form in ("none", "row", "whole") else ""
    check(network(nodes, {"x": (3, 4) if first else (4, 3)}, ["y"], constants), seed, cuts=cuts)


@settings(max_examples=50)
@given(
    a=st.sampled_from([(6,), (4, 6), (2, 4, 6), (1, 2, 4, 6)]), b=st.sampled_from([(6,), (6, 5), (2, 6, 5), (3, 2, 6, 5), (1, 6, 5)]),
    channel=st.sampled_from(["inner", "row", "batch"]), squash=st.booleans(), tail=TAIL, seed=SEEDS,
)  # fmt: skip
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], channel: str, squash: bool, tail: str, seed: int) -> None:
    """Broadcast batches, vectors on either side; the weight's channels are the inner axis, the rows or a batch axis."""
    axis = {"inner": len(a) - 1, "row": len(a) - 2, "batch": len(a) - 3}[channel]
    if axis < 0 or a[axis] == 1:
        return
    out = np.matmul(np.zeros(a), np.zeros(b)).shape
    if not out:
        return
    where = len(out) - (len(b) > 1) - (1 if channel == "row" else 2) if channel != "inner" else len(out) - 1
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r"), node("MatMul", "r b", "z")]
    model = sandwich(
        nodes, a, axis, out, where, kind=tail, seed=seed, constants={"b": values(np.random.default_rng(seed), *b)}
    )
    check(model, seed, cuts="w0:1" if tail == "weight" and channel != "batch" else "", atol=1e-4)


@few
@given(squash=st.booleans(), seed=SEEDS)
def test_a_product_of_two_activations(squash: bool, seed: int) -> None:
    """Removing a channel of both is exact where either is zero there, and refused where neither is."""
    rng = np.random.default_rng(seed)
    constants = {k: values(rng, 3, 6) for k in "uv"}
    f = "Sigmoid" if squash else "Relu"
    nodes = [
        node("MatMul", "x u", "a"),
        node(f, "a", "p"),
        node("MatMul", "x v", "b"),
        node("Sigmoid", "b", "q"),
        node("Transpose", "q", "t", perm=[0, 2, 1]),
        node("MatMul", "p t", "y"),
    ]
    check(
        network(nodes, {"x": (2, 4, 3)}, ["y"], constants),
        seed,
        **({"keeps": "u v"} if squash else {"cuts": "u:1 v:1"}),
    )
