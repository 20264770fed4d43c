"""Normalisations that exporters wrote out: found, in every order of factors, and the same numbers as onnxruntime's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import zoo

from spa.codegen.bundle import compile
from spa.codegen.norms import whole

pytestmark = pytest.mark.codegen

MEAN = "i = Constant<value_ints=[-1]>() m = ReduceMean(x, i)"
EPSILON = "e = Constant<value_float=0.001>()"
LAYER, RMS, NONE = "LayerNormalization", "RMSNormalization", ""
# (body over x and constants w, b of its last axis; what it must become)
CASES = {
    "torch": (
        f"""{MEAN} {EPSILON} t = Constant<value_float=2.0>() d = Sub(x, m) q = Pow(d, t) v = ReduceMean(q, i) a = Add(v, e)
        s = Sqrt(a) n = Div(d, s) k = Mul(n, w) y = Add(k, b)""",
        LAYER,
    ),
    "turned about": (
        f"{MEAN} {EPSILON} d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, i) a = Add(e, v) s = Sqrt(a) n = Div(d, s) k = Mul(w, n) y = Add(b, k)",
        LAYER,
    ),
    "without a shift": (
        f"{MEAN} {EPSILON} d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, i) a = Add(v, e) s = Sqrt(a) n = Div(d, s) y = Mul(n, w)",
        LAYER,
    ),
    "alone": (
        f"{MEAN} {EPSILON} d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, i) a = Add(v, e) s = Sqrt(a) y = Div(d, s)",
        LAYER,
    ),
    "flax": (
        f"""{MEAN} {EPSILON} z = Constant<value_float=0.0>() q = Mul(x, x) p = ReduceMean(q, i) r = Mul(m, m) g = Sub(p, r)
        v = Max(g, z) a = Add(v, e) s = Sqrt(a) d = Sub(x, m) n = Div(d, s) k = Mul(n, w) y = Add(k, b)""",
        LAYER,
    ),
    "factor first": (
        f"""{MEAN} {EPSILON} d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, i) a = Add(v, e) s = Sqrt(a) r = Reciprocal(s)
        f = Mul(r, w) k = Mul(d, f) y = Add(k, b)""",
        LAYER,
    ),
    "tensorflow": (
        """p = GlobalAveragePool(x) d = Sub(x, p) q = Mul(d, d) v = GlobalAveragePool(q) e = Constant<value_float=0.001>()
        a = Add(v, e) s = Sqrt(a) r = Reciprocal(s) f = Mul(r, w) n = Neg(p) h = Mul(n, f) o = Add(h, b) k = Mul(x, f) y = Add(k, o)""",
        LAYER,
    ),
    "root of the mean square": (
        f"""i = Constant<value_ints=[-1]>() {EPSILON} t = Constant<value_float=2.0>() q = Pow(x, t) v = ReduceMean(q, i)
        a = Add(v, e) s = Sqrt(a) r = Reciprocal(s) n = Mul(x, r) y = Mul(w, n)""",
        RMS,
    ),
    "one over": (
        f"""i = Constant<value_ints=[-1]>() {EPSILON} o = Constant<value_float=1.0>() q = Mul(x, x) v = ReduceMean(q, i)
        a = Add(v, e) s = Sqrt(a) r = Div(o, s) y = Mul(r, x)""",
        RMS,
    ),
    "another axis": (
        f"""i = Constant<value_ints=[1]>() {EPSILON} m = ReduceMean(x, i)
        d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, i) a = Add(v, e) s = Sqrt(a) y = Div(d, s)""",
        NONE,
    ),
    "another value centred": (
        f"{MEAN} {EPSILON} c = Exp(m) d = Sub(x, c) q = Mul(x, d) v = ReduceMean(q, i) a = Add(v, e) s = Sqrt(a) y = Div(d, s)",
        NONE,
    ),
    "epsilon per row": (
        f"{MEAN} d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, i) a = Add(v, u) s = Sqrt(a) y = Div(d, s)",
        NONE,
    ),
}


def network(body: str, outputs: str = "float[] y") -> Any:
    text = f"g (float[2,5,12] x) => ({outputs}) <float[12] w, float[12] b, float[5,1] positive> {{ {body.replace(', u)', ', positive)')} }}"
    model = zoo.network(text, check=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    constants = [n for n in model.graph.node if n.op_type == "Constant"]
    for node in constants:
        value = zoo.onnx.helper.get_attribute_value(node.attribute[0])
        kind = zoo.np.float32 if isinstance(value, float) else zoo.np.int64
        model.graph.initializer.append(zoo.numpy_helper.from_array(zoo.np.array(value, kind), node.output[0]))
        model.graph.node.remove(node)
    return zoo.onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


@pytest.mark.parametrize("name", list(CASES))
def test_found(name: str) -> None:
    body, op = CASES[name]
    model = network(body)
    before = [n.SerializeToString() for n in model.graph.node]
    found = whole(model).graph.node
    if op:
        assert [n.op_type for n in found] == [op]
    else:
        assert [n.SerializeToString() for n in found] == before


def test_compiled_as_one_kernel_each() -> None:
    parts, outputs = [], []
    for i, (body, op) in enumerate(CASES.values()):
        if op:
            words = body.replace("(", " ( ").replace(",", " , ").replace(")", " ) ").split(" ")
            inner = {w for w, after in pairwise(words) if after == "="}
            parts.append(" ".join(f"{w}_{i}" if w in inner else w for w in words))
            outputs.append(f"float[] y_{i}")
    model = network(" ".join(parts), ", ".join(outputs))
    values = zoo.feeds(model)
    expected = zoo.reference(model, values)
    bundle = compile(model, "host")
    assert {row["family"] for row in bundle.manifest["targets"]["host"]["kernels"]} == {"rows"}
    zoo.assert_same(bundle.run(values), expected)


def test_what_others_read_stays() -> None:
    body, _ = CASES["torch"]
    model = network(body, "float[] y, float[] s")
    values = zoo.feeds(model)
    expected = zoo.reference(model, values)
    bundle = compile(model, "host")
    assert "rows" in {row["family"] for row in bundle.manifest["targets"]["host"]["kernels"]}
    zoo.assert_same(bundle.run(values), expected)
