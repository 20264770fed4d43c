"""Reshapes of any factorisation: what goes is a product of factors, and the target follows."""

from __future__ import annotations

import math

import numpy as np
from few_ops import network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich, values

SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)
FACTORS = st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=5)


def cut_up(factors: list[int], cuts: list[bool]) -> list[int]:
    """Neighbouring factors multiplied, a cut between two where `cuts` says so."""
    sizes = [factors[0]]
    for n, cut in zip(factors[1:], cuts, strict=False):
        if cut:
            sizes.append(n)
        else:
            sizes[-1] *= n
    return sizes


@settings(max_examples=120)
@given(
    factors=FACTORS, before=st.lists(st.booleans(), min_size=4, max_size=4), after=st.lists(st.booleans(), min_size=4, max_size=4),
    channel=st.integers(0, 4), read=st.integers(0, 4), wild=st.integers(0, 5), zero=st.booleans(), squash=st.booleans(), tail=TAIL, seed=SEEDS,
)  # fmt: skip
def test_reshape(
    factors: list[int], before: list[bool], after: list[bool], channel: int, read: int, wild: int, zero: bool, squash: bool, tail: str, seed: int
) -> None:  # fmt: skip
    """Both shapes are cuts of one list of factors. -1 and 0 may stand in the target."""
    shape, out = cut_up(factors, before), cut_up(factors, after)
    channel, read = channel % len(shape), read % len(out)
    target = [*out]
    for i, n in enumerate(out):
        if zero and i < len(shape) and shape[i] == n:
            target[i] = 0
    if wild < len(out):
        target[wild] = -1
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r"), node("Reshape", "r target", "z")]
    model = sandwich(
        nodes, shape, channel, out, read, kind=tail, seed=seed, constants={"target": np.array(target, np.int64)}
    )
    check(model, seed)


@settings(max_examples=40)
@given(
    heads=st.integers(2, 4),
    dim=st.integers(2, 4),
    places=st.integers(1, 3),
    order=st.permutations(range(4)),
    seed=SEEDS,
)
def test_split_transpose_merge(heads: int, dim: int, places: int, order: list[int], seed: int) -> None:
    """(.., heads * dim) -> (.., heads, dim) -> any order -> all merged: a weight reads the flat result."""
    rng = np.random.default_rng(seed)
    shape = (2, places, heads, dim)
    assume(math.prod(shape) > 4)
    constants = {
        "w0": values(rng, 3, heads * dim),
        "split": np.array([0, 0, heads, dim]),
        "flat": np.array([1, -1]),
        "w1": values(rng, math.prod(shape), 2),
    }
    nodes = [
        node("MatMul", "x w0", "a"),
        node("Reshape", "a split", "s"),
        node("Transpose", "s", "t", perm=order),
        node("Reshape", "t flat", "f"),
        node("MatMul", "f w1", "y"),
    ]
    check(network(nodes, {"x": (2, places, 3)}, ["y"], constants), seed, cuts="w0:1 w1:0")


@settings(max_examples=40)
@given(
    op=st.sampled_from(["Flatten", "Squeeze", "Unsqueeze"]), axis=st.integers(0, 3), old=st.booleans(), named=st.booleans(), channel=st.integers(0, 1),
    nonzero=st.booleans(), tail=TAIL, seed=SEEDS,
)  # fmt: skip
def test_same_elements_other_axes(
    op: str, axis: int, old: bool, named: bool, channel: int, nonzero: bool, tail: str, seed: int
) -> None:
    opset = 11 if old else 13
    shape: tuple[int, ...] = (2, 6, 3)
    channel += 1
    constants = {}
    if op == "Flatten":
        middle = node(op, "a", "z", axis=axis)
        out = [math.prod(shape[:axis]), math.prod(shape[axis:])]
        read = int(channel >= axis)
    else:
        if op == "Squeeze":
            shape = (1, 6, 1, 3)
            channel = (1, 3)[channel - 1]
            axes, out, read = [0, 2], [6, 3], int(channel == 3)
        else:
            axes = sorted({axis, 1})
            out = [*shape]
            for a in axes:
                out.insert(a, 1)
            read = next(i for i, n in enumerate(out) if n == shape[channel]) if shape[channel] != 2 else 0
        given_axes = op == "Unsqueeze" or named
        middle = node(
            op, "a axes" if given_axes and not old else "a", "z", **({"axes": axes} if given_axes and old else {})
        )
        constants = {"axes": np.array(axes)} if given_axes and not old else {}
    model = sandwich(
        [middle], shape, channel, out, read, kind=tail, nonzero=nonzero, seed=seed, constants=constants, opset=opset
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


def test_a_squeezed_axis_is_named_when_another_comes_down_to_one() -> None:
    for opset in (11, 13):
        model = sandwich([node("Squeeze", "a", "z")], (2, 1, 2), 2, (2, 2), 1, opset=opset, constants={})
        check(model, cuts="w0:1 w1:0")


def test_shapes_without_common_factors_block() -> None:
    check(
        sandwich([node("Reshape", "a target", "z")], (4, 6), 1, (6, 4), 0, constants={"target": np.array([6, 4])}),
        keeps="w0:1",
    )


@settings(max_examples=30)
@given(channel=st.sampled_from([1, 2]), how=st.sampled_from(["all", "last", "inferred"]), seed=SEEDS)
def test_a_target_that_is_computed(channel: int, how: str, seed: int) -> None:
    """Shape -> Gather -> Concat -> Reshape, as exporters write `x.reshape(x.shape[0], -1)`."""
    shape = (2, 6, 4)
    pieces = {"all": "n0 flat", "last": "one flat2", "inferred": "n0 wild"}[how]
    constants = {
        "i0": np.array([0]),
        "i1": np.array([1]),
        "i2": np.array([2]),
        "one": np.array([1]),
        "wild": np.array([-1]),
    }
    nodes = [
        node("Shape", "a", "s"),
        *(node("Gather", f"s i{k}", f"n{k}") for k in range(3)),
        node("Mul", "n1 n2", "flat"),
        node("Mul", "n0 flat", "flat2"),
    ]
    nodes += [node("Concat", pieces, "target", axis=0), node("Reshape", "a target", "z")]
    out = (1, 48) if how == "last" else (2, 24)
    needed = {i for n in nodes for i in n.input}
    model = sandwich(
        nodes, shape, channel, out, 1, seed=seed, constants={k: v for k, v in constants.items() if k in needed}
    )
    check(model, seed, cuts="w0:1 w1:0")
