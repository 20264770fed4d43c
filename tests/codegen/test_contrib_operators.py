"""com.microsoft and ai.onnx.ml operators by ONNX's own, against onnxruntime's kernels for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.bundle import compile
from spa.codegen.contrib import RULES
from spa.errors import Unsupported

pytestmark = pytest.mark.codegen

MS, ML = "com.microsoft", "ai.onnx.ml"
# operator, shapes of its operands (a tuple: an input, a list: a weight, an array: itself, None: left out), attributes
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "skip": ("SkipLayerNormalization", [(1, 5, 12), (1, 5, 12), [12], [12], [12]], {"epsilon": 1e-5}),
    "skip, no bias": ("SkipLayerNormalization", [(1, 5, 12), (1, 5, 12), [12], [12]], {}),
    "skip, no shift": ("SkipLayerNormalization", [(1, 5, 12), (1, 5, 12), [12], None, [12]], {}),
    "skip rms": ("SkipSimplifiedLayerNormalization", [(1, 5, 12), (1, 5, 12), [12]], {"epsilon": 1e-6}),
    "bias gelu": ("BiasGelu", [(2, 3, 8), [8]], {}),
    "gelu": ("Gelu", [(2, 30)], {}),
    "fast gelu": ("FastGelu", [(2, 30)], {}),
    "fast gelu, bias": ("FastGelu", [(2, 30), [30]], {}),
    "quick gelu": ("QuickGelu", [(2, 30)], {"alpha": 1.3}),
    "fused product": ("FusedMatMul", [(2, 3, 5), (2, 7, 5)], {"alpha": 0.5, "transB": 1}),
    "fused product, A": ("FusedMatMul", [(5, 3), [5, 7]], {"transA": 1}),
    "fused conv": (
        "FusedConv",
        [(1, 3, 9, 9), [4, 3, 3, 3], [4]],
        {"activation": "LeakyRelu", "activation_params": [0.2], "pads": [1] * 4},
    ),
    "fused conv, clip": (
        "FusedConv",
        [(1, 3, 9, 9), [4, 3, 1, 1]],
        {"activation": "Clip", "activation_params": [0.0, 0.5]},
    ),
    "fused gemm": ("FusedGemm", [(3, 8), [5, 8], [5]], {"activation": "Relu", "transB": 1}),
    "attention": ("Attention", [(2, 7, 16), [16, 48], [48]], {"num_heads": 4}),
    "attention, causal": ("Attention", [(1, 7, 16), [16, 48], [48]], {"num_heads": 2, "unidirectional": 1}),
    "attention, lengths": ("Attention", [(2, 7, 16), [16, 48], [48], np.array([3, 7], np.int32)], {"num_heads": 2}),
    "attention, mask": (
        "Attention",
        [(2, 3, 16), [16, 48], [48], np.array([[1, 1, 0], [1, 1, 1]], np.int32)],
        {"num_heads": 2},
    ),
    "embedding": (
        "EmbedLayerNormalization",
        [np.array([[1, 4, 2]], np.int32), np.array([[0, 1, 1]], np.int32), [9, 8], [5, 8], [2, 8], [8], [8]],
        {"epsilon": 1e-5},
    ),
    "embedding, no segments": (
        "EmbedLayerNormalization",
        [np.array([[1, 4, 2]], np.int32), None, [9, 8], [5, 8], None, [8], [8]],
        {},
    ),
    "scaler": ("Scaler", [(3, 4)], {"offset": [0.1, 0.2, 0.3, 0.4], "scale": [2.0, 1.0, 0.5, 3.0]}),
    "columns": ("ArrayFeatureExtractor", [(3, 6), np.array([[4, 1]], np.int64)], {}),
}


def network(names: list[str], opset: int) -> tuple[Any, dict[str, Any]]:
    nodes, inputs, outputs, stored, values = [], [], [], [], {}
    for i, case in enumerate(names):
        op, operands, attributes = CASES[case]
        random, given = np.random.default_rng(i), []
        for j, operand in enumerate(operands):
            given.append("" if operand is None else f"v{i}_{j}")
            if isinstance(operand, tuple):
                values[given[-1]] = random.standard_normal(operand).astype(np.float32)
                inputs.append(helper.make_tensor_value_info(given[-1], TensorProto.FLOAT, operand))
            elif isinstance(operand, np.ndarray):
                values[given[-1]] = operand
                kind = helper.np_dtype_to_tensor_dtype(operand.dtype)
                inputs.append(helper.make_tensor_value_info(given[-1], kind, operand.shape))
            elif operand is not None:
                stored.append(numpy_helper.from_array(random.standard_normal(operand).astype(np.float32), given[-1]))
        domain = ML if op in ("Scaler", "ArrayFeatureExtractor") else MS
        results = [f"y{i}", f"mask{i}"] if op == "EmbedLayerNormalization" else [f"y{i}"]
        nodes.append(helper.make_node(op, given, results, domain=domain, name=f"n{i}", **attributes))
        outputs += [
            helper.make_tensor_value_info(name, TensorProto.INT32 if name[0] == "m" else TensorProto.FLOAT, None)
            for name in results
        ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1), helper.make_opsetid(ML, 3)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8), values


@pytest.mark.parametrize("opset", [13, 18])
def test_as_onnxruntime(opset: int) -> None:
    model, values = network(list(CASES), opset)
    expected = zoo.reference(model, values)
    zoo.assert_same(compile(model, "host").run(values), expected)


def test_every_rule_is_tried() -> None:
    assert {op for op, _, _ in CASES.values()} == set(RULES)


def test_two_layers_wait_for_each_other() -> None:
    """The shape behind one operator is known only when that is replaced."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[1,6,16] x) => (float[1,6,16] y)
      <float[16,48] w, float[48] b, float[16,16] u>
      { a = com.microsoft.Attention<num_heads=2>(x, w, b) m = MatMul(a, u)
        y = com.microsoft.Attention<num_heads=4>(m, w, b) }"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for value in model.graph.value_info:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        tensor = numpy_helper.from_array(random.standard_normal(dims).astype(np.float32) * np.float32(0.3), value.name)
        model.graph.initializer.append(tensor)
    del model.graph.value_info[:]
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "host").run(values), zoo.reference(model, values))


@pytest.mark.parametrize(
    ("op", "operands", "attributes"),
    [
        ("Attention", [(1, 4, 8), [8, 24], [24], None, (2, 1, 2, 3, 4)], {"num_heads": 2}),
        ("FusedConv", [(1, 3, 9, 9), [4, 3, 1, 1]], {"activation": "Softsign"}),
        ("FusedMatMul", [(2, 3, 5), (2, 7, 5)], {"transBatchA": 1}),
    ],
)
def test_refusals_name_the_node(op: str, operands: list[Any], attributes: dict[str, Any]) -> None:
    CASES["refused"] = (op, operands, attributes)
    try:
        model, _ = network(["refused"], 17)
    finally:
        del CASES["refused"]
    with pytest.raises(Unsupported, match=op) as refused:
        compile(model, "host")
    assert "'n0'" in str(refused.value)
