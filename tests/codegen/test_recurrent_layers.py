"""LSTM, GRU and RNN against onnxruntime without optimisations: directions, initial states, lengths, peepholes, every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.bundle import compile
from spa.errors import Unsupported
from spa.runtime.run import run

pytestmark = pytest.mark.codegen

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# operator, hidden size, what else: `states`, `lengths`, `peepholes`, `bare` (without biases), and attributes
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("LSTM", 16, {}),
    ("LSTM", 7, {"direction": "bidirectional", "states": True}),
    ("LSTM", 24, {"direction": "reverse", "peepholes": True}),
    ("LSTM", 12, {"direction": "bidirectional", "lengths": [5, 3], "states": True}),
    ("LSTM", 5, {"activations": ["HardSigmoid", "Relu", "Tanh"], "bare": True}),
    ("GRU", 16, {"direction": "bidirectional"}),
    ("GRU", 30, {"linear_before_reset": 1, "states": True}),
    ("GRU", 9, {"direction": "bidirectional", "linear_before_reset": 1, "lengths": [2, 5]}),
    ("GRU", 8, {"direction": "reverse", "bare": True}),
    ("RNN", 20, {"direction": "bidirectional", "states": True}),
    ("RNN", 6, {"activations": ["LeakyRelu"], "activation_alpha": [0.2], "lengths": [4, 4]}),
]
STEPS, BATCH, FEATURES = 5, 2, 6


def network(cases: list[tuple[str, int, dict[str, Any]]]) -> Any:
    """All of them side by side over inputs of their own."""
    nodes, inputs, outputs, stored = [], [], [], []
    for i, (op, hidden, given) in enumerate(cases):
        more, random = dict(given), np.random.default_rng(i)
        directions, gates = 2 if more.get("direction") == "bidirectional" else 1, GATES[op]
        names = [f"x{i}"]

        def weight(*shape: int, i: int = i, names: list[str] = names, random: Any = random) -> None:
            names.append(f"w{i}_{len(names)}")
            stored.append(numpy_helper.from_array((random.standard_normal(shape) * 0.5).astype(np.float32), names[-1]))

        weight(directions, gates * hidden, FEATURES)
        weight(directions, gates * hidden, hidden)
        if more.pop("bare", False):
            names.append("")
        else:
            weight(directions, 2 * gates * hidden)
        lengths = more.pop("lengths", None)
        names.append(f"lengths{i}" if lengths else "")
        if lengths:
            stored.append(numpy_helper.from_array(np.array(lengths, np.int32), f"lengths{i}"))
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [STEPS, BATCH, FEATURES]))
        if more.pop("states", False):
            for state in ("h", "c")[: 2 if op == "LSTM" else 1]:
                names.append(f"{state}{i}")
                inputs.append(helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [directions, BATCH, hidden]))
        if more.pop("peepholes", False):
            names += [""] * (7 - len(names))
            weight(directions, 3 * hidden)
        results = [f"{name}{i}" for name in ("y", "last_h", "last_c")[: 3 if op == "LSTM" else 2]]
        nodes.append(helper.make_node(op, names, results, hidden_size=hidden, name=f"n{i}", **more))
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def everything() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = network(CASES)
    values = zoo.feeds(model)
    return model, values, zoo.reference(model, values)


@zoo.everywhere
def test_everywhere(everything: Any, place: zoo.Place) -> None:
    model, values, expected = everything
    zoo.assert_same(place.run(place.compile(model), values), expected)


def test_threads_give_the_same_bits(everything: Any) -> None:
    model, values, _ = everything
    bundle = compile(model, "host")
    alone, shared = (run(bundle.path, values, "host", threads=n) for n in (1, 3))
    for name, value in alone.items():
        np.testing.assert_array_equal(value, shared[name])


def test_batch_first() -> None:
    """`layout` 1, which onnxruntime cannot run: the same as 0 between Transposes."""
    model = network(CASES[1:2])
    values = zoo.feeds(model)
    expected = zoo.reference(model, values)
    model.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    for value in model.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [dims[1], dims[0], dims[2]]))
    turned = {name: value.transpose(1, 0, 2) for name, value in values.items()}
    got = compile(model, "host").run(turned)
    orders = {"y": (1, 2, 0, 3), "last_h": (1, 0, 2), "last_c": (1, 0, 2)}
    back = {name: value.transpose(orders[name.rstrip("0123456789")]) for name, value in got.items()}
    zoo.assert_same({name: np.ascontiguousarray(value) for name, value in back.items()}, expected)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (("LSTM", 4, {"activations": ["Sigmoid", "Softsign", "Tanh"]}), "activation Softsign"),
        (("RNN", 4, {"clip": 1.0}), "clip"),
        (
            ("GRU", 4, {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Sigmoid", "Relu"]}),
            "directions",
        ),
    ],
)
def test_refusals_name_the_node(case: Any, why: str) -> None:
    with pytest.raises(Unsupported, match=why) as refused:
        compile(network([case]), "host")
    assert case[0] in str(refused.value) and "n0" in str(refused.value)


def test_computed_weights_are_refused() -> None:
    model = network([("GRU", 4, {})])
    tensor = next(t for t in model.graph.initializer if t.name == "w0_1")
    model.graph.input.append(helper.make_tensor_value_info("w0_1", TensorProto.FLOAT, list(tensor.dims)))
    model.graph.initializer.remove(tensor)
    with pytest.raises(Unsupported, match="weights are computed"):
        compile(model, "host")
