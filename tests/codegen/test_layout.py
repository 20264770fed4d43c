"""Transposes pushed about by `layout`: how many are left, and that numbers stay what onnxruntime says of the original."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from spa.codegen.bundle import compile
from spa.codegen.layout import settle

pytestmark = pytest.mark.codegen

TO, BACK = "Transpose<perm=[0,3,1,2]>", "Transpose<perm=[0,2,3,1]>"
HEAD = "g (float[1,8,6,4] x) => (float[] y)"

# (network channels last, how many Transposes are left of it)
CASES = {
    "a pair": (f"{HEAD} {{ a = {TO}(x) y = {BACK}(a) }}", 0),
    "element-wise between": (f"{HEAD} <float[4,1,1] w> {{ a = {TO}(x) b = Mul(a, w) c = Relu(b) y = {BACK}(c) }}", 0),
    "bias channels last": (f"{HEAD} <float[4,8] w> {{ a = {BACK}(x) b = Add(a, w) y = {TO}(b) }}", 0),
    "two branches": (f"{HEAD} {{ a = {TO}(x) b = Relu(a) c = {TO}(x) d = Sigmoid(c) e = Add(b, d) y = {BACK}(e) }}", 0),
    "concatenation": (f"{HEAD} {{ a = {TO}(x) b = Exp(x) c = {TO}(b) d = Concat<axis=1>(a, c) y = {BACK}(d) }}", 0),
    "split": (
        f"{HEAD} {{ a = {TO}(x) b, c = Split<axis=1, num_outputs=2>(a) d = {BACK}(b) e = {BACK}(c) y = Mul(d, e) }}",
        0,
    ),
    "softmax": (f"{HEAD} {{ a = {TO}(x) b = Softmax<axis=1>(a) y = {BACK}(b) }}", 0),
    "padding": (
        f"{HEAD} {{ a = {TO}(x) p = Constant<value_ints=[0,0,1,2,0,0,3,4]>() b = Pad(a, p) y = {BACK}(b) }}",
        0,
    ),
    "reduction kept": (
        f"{HEAD} {{ a = {TO}(x) i = Constant<value_ints=[1]>() b = ReduceMax(a, i) c = Sub(a, b) y = {BACK}(c) }}",
        0,
    ),
    "reduction gone": (
        f"{HEAD} {{ a = {TO}(x) b = Relu(a) i = Constant<value_ints=[2,3]>() y = ReduceMean<keepdims=0>(b, i) }}",
        0,
    ),
    "reduction that mixes": (
        f"{HEAD} {{ a = {TO}(x) i = Constant<value_ints=[0]>() y = ReduceMean<keepdims=0>(a, i) }}",
        1,
    ),
    "slice": (
        f"""{HEAD} {{ a = {TO}(x) s = Constant<value_ints=[1,2]>() e = Constant<value_ints=[3,6]>() i = Constant<value_ints=[1,2]>()
        b = Slice(a, s, e, i) y = {BACK}(b) }}""",
        0,
    ),
    "largest": (f"g (float[1,8,6,4] x) => (int64[] y) {{ a = {TO}(x) b = ArgMax<axis=1>(a) y = {BACK}(b) }}", 0),
    "the middle is read too": (
        f"g (float[1,8,6,4] x) => (float[] y, float[] z) {{ a = {TO}(x) z = Relu(a) y = {BACK}(z) }}",
        1,
    ),
    "other order behind": (f"{HEAD} {{ a = {TO}(x) b = Relu(a) y = Transpose<perm=[1,0,2,3]>(b) }}", 1),
    "axes of one element": ("g (float[1,1,8,4] x) => (float[] y) { y = Transpose<perm=[1,2,0,3]>(x) }", 0),
    "into weights": (
        f"{HEAD} <float[192,7] w> {{ a = Relu(x) b = {TO}(a) s = Constant<value_ints=[1,192]>() f = Reshape(b, s) y = MatMul(f, w) }}",
        0,
    ),
    "into weights, turned": (
        f"{HEAD} <float[7,192] w, float[7] v> {{ b = {BACK}(x) f = Flatten(b) y = Gemm<transB=1>(f, w, v) }}",
        0,
    ),
    "into weights of two": (
        """g (float[1,8,6,4] x) => (float[] y, float[] z) <float[192,7] w, float[3,192] v>
        { b = Transpose<perm=[0,2,3,1]>(x) f = Flatten(b) y = MatMul(f, w) z = Gemm<transB=1>(f, v) }""",
        0,
    ),
    "network channels last": (
        f"""g (float[1,12,10,3] x) => (float[] y) <float[8,3,3,3] u, float[8] b, float[8,8,3,3] v, float[8,5] w>
        {{ a = {TO}(x) c = Conv<pads=[1,1,1,1]>(a, u) d = {BACK}(c) e = Add(d, b) f = Relu(e) g = {TO}(f)
          h = Conv<pads=[1,1,1,1]>(g, v) i = {BACK}(h) j = Add(i, f) k = Relu(j) m = Constant<value_ints=[1,2]>()
          n = ReduceMean<keepdims=0>(k, m) y = MatMul(n, w) }}""",
        1,
    ),
}


def network(text: str) -> Any:
    model = zoo.network(text, check=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    constants = [n for n in model.graph.node if n.op_type == "Constant"]
    for node in constants:  # as onnxruntime's folding leaves them
        value = zoo.onnx.helper.get_attribute_value(node.attribute[0])
        model.graph.initializer.append(zoo.numpy_helper.from_array(np.array(value), node.output[0]))
        model.graph.node.remove(node)
    return zoo.onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def ops(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", list(CASES))
def test_fewer_and_equal(name: str) -> None:
    text, left = CASES[name]
    model = network(text)
    values = zoo.feeds(model)
    expected = zoo.reference(model, values)
    settled = settle(model)
    assert ops(settled)["Transpose"] == left, zoo.onnx.printer.to_text(settled.graph)
    zoo.onnx.checker.check_model(zoo.onnx.shape_inference.infer_shapes(settled, strict_mode=True), full_check=True)
    zoo.assert_same(zoo.reference(settled, values), expected)
    before = settled.SerializeToString()
    assert settle(settled).SerializeToString() == before


def test_nothing_is_rewritten_for_what_products_read_in_place() -> None:
    text = """g (float[1,5,2,8] x, float[1,5,2,8] z) => (float[] y) { a = Transpose<perm=[0,2,1,3]>(x)
      b = Transpose<perm=[0,2,3,1]>(z) s = Constant<value_float=0.5>() c = Mul(a, s) y = MatMul(c, b) }"""
    model = network(text)
    before = model.SerializeToString()
    assert settle(model).SerializeToString() == before


STEPS = ("Relu", "Neg", "Exp", "Sigmoid")
PERMS = ([0, 3, 1, 2], [0, 2, 3, 1], [0, 2, 1, 3], [3, 0, 1, 2])


@st.composite
def networks(draw: Any) -> str:
    """Random element-wise nodes, Transposes, sums, concatenations and reductions over values of four axes."""
    values: dict[str, tuple[int, ...]] = {"x": (2, 3, 4, 5)}
    body = []
    for i in range(draw(st.integers(3, 12))):
        name, kind = f"v{i}", draw(st.sampled_from(["move", "move", "step", "sum", "join", "reduce", "softmax"]))
        source = draw(st.sampled_from(list(values)))
        shape = values[source]
        same = [n for n, s in values.items() if s == shape]
        axis = draw(st.integers(0, 3))
        if kind == "move":
            perm = draw(st.sampled_from(PERMS))
            body.append(f"{name} = Transpose<perm={perm}>({source})")
            shape = tuple(shape[p] for p in perm)
        elif kind == "step":
            body.append(f"{name} = {draw(st.sampled_from(STEPS))}({source})")
        elif kind == "sum":
            body.append(f"{name} = Add({source}, {draw(st.sampled_from(same))})")
        elif kind == "join":
            body.append(f"{name} = Concat<axis={axis}>({source}, {draw(st.sampled_from(same))})")
            shape = tuple(2 * n if j == axis else n for j, n in enumerate(shape))
        elif kind == "reduce":
            body.append(f"c{i} = Constant<value_ints=[{axis}]>() {name} = ReduceMean({source}, c{i})")
            shape = tuple(1 if j == axis else n for j, n in enumerate(shape))
        else:
            body.append(f"{name} = Softmax<axis={axis}>({source})")
        values[name] = shape
    outputs = draw(st.lists(st.sampled_from([n for n in values if n != "x"]), min_size=1, max_size=3, unique=True))
    declared = ", ".join(f"float[] {n}" for n in outputs)
    return f"g (float[2,3,4,5] x) => ({declared}) {{ {' '.join(body)} }}"


@settings(max_examples=150)
@given(networks())
def test_any_network_stays_what_it_is(text: str) -> None:
    model = network(text)
    values = zoo.feeds(model)
    expected = zoo.reference(model, values)
    count = ops(model)["Transpose"]
    settled = settle(model)
    assert ops(settled)["Transpose"] <= count + len(model.graph.output)
    zoo.assert_same(zoo.reference(settled, values), expected)


def test_compiled() -> None:
    model = network(CASES["network channels last"][0])
    values = zoo.feeds(model)
    bundle = compile(model, "host")
    families = [row["family"] for row in bundle.manifest["targets"]["host"]["kernels"]]
    assert families.count("moves") == 1 and "tvm" not in families
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))
