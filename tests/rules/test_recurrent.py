"""LSTM, GRU, RNN: hidden units go in all gates, directions and states at once."""

from __future__ import annotations

import numpy as np
from few_ops import attributes, find, network, node
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import check, reference, values

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
few = settings(max_examples=50)
NAMES = st.sampled_from(["Sigmoid", "Tanh", "Relu", "Softsign", "HardSigmoid", "Softplus", "Elu"])


@few
@given(
    kind=st.sampled_from(["LSTM", "GRU", "RNN"]), way=st.sampled_from(["forward", "reverse", "bidirectional"]),
    units=st.integers(2, 6), bias=st.booleans(), start=st.sampled_from(["none", "constant", "input"]), lengths=st.booleans(),
    peepholes=st.booleans(), last=st.booleans(), before=st.booleans(), clip=st.booleans(), names=st.none() | st.lists(NAMES, min_size=6, max_size=6),
    tail=st.sampled_from(["weight", "sum"]), seed=st.integers(0, 999),
)  # fmt: skip
def test_layer(
    kind: str, way: str, units: int, bias: bool, start: str, lengths: bool, peepholes: bool, last: bool, before: bool, clip: bool,
    names: list[str] | None, tail: str, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    steps, batch, width, dirs, gates = 4, 2, 3, 1 + (way == "bidirectional"), GATES[kind]
    constants = {
        "w0": values(rng, 5, width), "w": values(rng, dirs, gates * units, width), "r": values(rng, dirs, gates * units, units),
        "b": values(rng, dirs, 2 * gates * units), "p": values(rng, dirs, 3 * units), "h0": values(rng, dirs, batch, units),
        "c0": values(rng, dirs, batch, units), "lengths": np.array([2, 4], np.int32), "w1": values(rng, units, 2), "axis": np.array([-1]),
    }  # fmt: skip
    inputs = {"x": (steps, batch, 5)}
    if start == "input":
        inputs |= {k: constants.pop(k).shape for k in ("h0", "c0")}
    states = "h0 c0" if start != "none" else "_ _"
    operands = f"a w r {'b' if bias else '_'} {'lengths' if lengths else '_'} {states}"
    if kind != "LSTM":
        operands = operands.removesuffix(" c0").removesuffix(" _")
    elif peepholes:
        operands += " p"
    options: dict[str, object] = {"hidden_size": units, "direction": way}
    if kind == "GRU":
        options["linear_before_reset"] = int(before)
    if clip:
        options["clip"] = 0.4
    if names:
        options["activations"] = names[: ACTIVATIONS[kind]] * dirs
    used = set(operands.split())
    nodes = [node("MatMul", "x w0", "a"), node(kind, operands, "full h" + (" c" if kind == "LSTM" else ""), **options)]
    read = "h" if last else "full"
    nodes.append(
        node("MatMul", f"{read} w1", "y") if tail == "weight" else node("ReduceSum", f"{read} axis", "y", keepdims=0)
    )
    used |= {"w0", "w1"} if tail == "weight" else {"w0", "axis"}
    model = network(nodes, inputs, ["y"], {k: v for k, v in constants.items() if k in used}, opset=17)
    cuts = "w0:1" + (" w:1 r:1 r:2" if start != "input" and tail == "weight" else "")
    cut, removed = check(model, seed, cuts=cuts, keeps="w:0 r:0 b:0", atol=1e-4)
    gone = len(removed.get("r", {}).get("2", []))
    assert attributes(find(cut, kind))["hidden_size"] == units - gone


@few
@given(
    kind=st.sampled_from(["LSTM", "GRU"]), way=st.sampled_from(["forward", "bidirectional"]), seed=st.integers(0, 999)
)
def test_stacked(kind: str, way: str, seed: int) -> None:
    """As exported: Y is transposed and reshaped to (time, batch, dirs * hidden) for the next layer."""
    rng = np.random.default_rng(seed)
    steps, batch, units, dirs, gates = 3, 2, 4, 1 + (way == "bidirectional"), GATES[kind]
    nodes, x, width = [], "x", 3
    constants = {"flat": np.array([0, 0, -1], np.int64), "last": values(rng, dirs * units, 2)}
    for k in range(2):
        constants |= {
            f"w{k}": values(rng, dirs, gates * units, width), f"r{k}": values(rng, dirs, gates * units, units),
            f"b{k}": values(rng, dirs, 2 * gates * units),
        }  # fmt: skip
        nodes += [
            node(kind, f"{x} w{k} r{k} b{k}", f"y{k}", hidden_size=units, direction=way),
            node("Transpose", f"y{k}", f"t{k}", perm=[0, 2, 1, 3]),
            node("Reshape", f"t{k} flat", f"f{k}"),
        ]
        x, width = f"f{k}", dirs * units
    model = network([*nodes, node("MatMul", f"{x} last", "y")], {"x": (steps, batch, 3)}, ["y"], constants, opset=17)
    check(model, seed, cuts="w0:1 r0:2 b0:1 w1:1 w1:2 r1:1 last:0", atol=1e-4)


@few
@given(kind=st.sampled_from(["LSTM", "GRU", "RNN"]), seed=st.integers(0, 99))
def test_batch_first(kind: str, seed: int) -> None:
    """layout=1, which onnxruntime does not run."""
    rng = np.random.default_rng(seed)
    units, gates = 4, GATES[kind]
    constants = {
        "w": values(rng, 1, gates * units, 3),
        "r": values(rng, 1, gates * units, units),
        "b": values(rng, 1, 2 * gates * units),
        "w1": values(rng, units, 2),
    }
    nodes = [node(kind, "x w r b", "full h", hidden_size=units, layout=1), node("MatMul", "full w1", "y")]
    check(network(nodes, {"x": (2, 4, 3)}, ["y"], constants, opset=17), seed, cuts="w:1 r:2 b:1 w1:0", runner=reference)


def test_a_cell_that_forgets_nothing_is_summed_only_where_it_is_zero() -> None:
    """tanh(0) = 0, sigmoid(0) is not: a sum over hidden units is exact for one and refused for the other."""
    rng = np.random.default_rng(0)
    constants = {"w": values(rng, 1, 4, 3), "r": values(rng, 1, 4, 4), "axis": np.array([-1])}
    for activation, cut in (("Tanh", True), ("Sigmoid", False)):
        nodes = [
            node("RNN", "x w r", "full", hidden_size=4, activations=[activation]),
            node("ReduceSum", "full axis", "y", keepdims=0),
        ]
        model = network(nodes, {"x": (3, 2, 3)}, ["y"], constants, opset=17)
        check(model, **({"cuts": "r:2"} if cut else {"keeps": "r:2"}))
