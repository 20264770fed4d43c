"""Heads that share keys: no copies of them, and the same numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import zoo

from spa.codegen.bundle import compile
from spa.codegen.heads import shared

pytestmark = pytest.mark.codegen

# six query heads, two of keys
ATTENTION = """g (float[1,6,5,8] q, float[1,2,7,8] k, float[1,2,7,8] v, float[1,1,5,7] m) => (float[1,5,48] y)
{ a = Unsqueeze(k, two) b = Expand(a, five) c = Reshape(b, four) t = Transpose<perm=[0,1,3,2]>(c) s = Mul(t, scale)
  d = MatMul(q, s) e = Add(d, m) p = Softmax<axis=-1>(e) f = Unsqueeze(v, two) g2 = Expand(f, five) h = Reshape(g2, four)
  o = MatMul(p, h) n = Transpose<perm=[0,2,1,3]>(o) y = Reshape(n, flat) }"""
CONSTANTS = {
    "two": np.array([2]),
    "five": np.array([1, 2, 3, 7, 8]),
    "four": np.array([1, 6, 7, 8]),
    "flat": np.array([1, 5, 48]),
    "scale": np.array(0.35, np.float32),
}


def network(text: str = ATTENTION, **more: Any) -> Any:
    model = zoo.onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
    model.graph.initializer.extend(zoo.numpy_helper.from_array(v, k) for k, v in {**CONSTANTS, **more}.items())
    return zoo.onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def test_no_copies() -> None:
    model = network()
    values = zoo.feeds(model)
    expected = zoo.reference(model, values)
    changed = shared(model)
    ops = Counter(n.op_type for n in changed.graph.node)
    assert ops["Expand"] == 0 and ops["MatMul"] == 2
    zoo.onnx.checker.check_model(changed)
    zoo.assert_same(zoo.reference(changed, values), expected)


def test_compiled_in_place() -> None:
    model = network()
    values = zoo.feeds(model)
    bundle = compile(model, "host")
    families = Counter(row["family"] for row in bundle.manifest["targets"]["host"]["kernels"])
    assert families == {"batched": 2, "rows": 1}
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


def test_other_repetitions_stay() -> None:
    """Heads repeated whole, 0 1 0 1: neighbours do not share."""
    text = ATTENTION.replace("Unsqueeze(k, two)", "Unsqueeze(k, one)").replace("Unsqueeze(v, two)", "Unsqueeze(v, one)")
    before = network(text, one=np.array([1]), five=np.array([1, 3, 2, 7, 8]))
    values = zoo.feeds(before)
    expected = zoo.reference(before, values)
    nodes = [n.SerializeToString() for n in before.graph.node]
    assert [n.SerializeToString() for n in shared(before).graph.node] == nodes
    zoo.assert_same(compile(before, "host").run(values), expected)
