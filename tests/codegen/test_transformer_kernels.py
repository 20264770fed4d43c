"""Kernels of transformers against onnxruntime without optimisations: products read in place, rows, element-wise chains."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from spa.codegen.bundle import Bundle, compile
from spa.codegen.fusion import broadcast_axes
from spa.codegen.views import contiguous, reshaped

pytestmark = pytest.mark.codegen

# body of a network over x; `y` is the output
PRODUCTS = {
    "plain": "float[2,5,7] x, float[2,7,9] z | y = MatMul(x, z)",
    "batch is broadcast": "float[3,1,5,7] x, float[2,7,33] z | y = MatMul(x, z)",
    "one row": "float[4,1,16] x, float[4,16,40] z | y = MatMul(x, z)",
    "one column": "float[2,37,20] x, float[2,20,1] z | y = MatMul(x, z)",
    "one column of many rows": "float[3,67,37] x, float[3,37,1] z, float[3,67,1] r | m = MatMul(x, z) a = Add(m, r) y = Relu(a)",
    "one column, by a channel": "float[2,40,33] x, float[2,33,1] z <float[1] w> | m = MatMul(x, z) y = Mul(m, w)",
    "few rows, turned": "float[2,3,2,37] x, float[2,3,65,37] z | t = Transpose<perm=[0,1,3,2]>(z) y = MatMul(x, t)",
    "one row, turned, and a mask": """float[4,1,64] x, float[4,130,64] z, float[4,1,130] m | t = Transpose<perm=[0,2,1]>(z)
      a = MatMul(x, t) c = Constant<value_float=0.3>() b = Mul(a, c) y = Add(b, m)""",
    "K = 1": "float[2,6,1] x, float[2,1,18] z | y = MatMul(x, z)",
    "turned": "float[2,19,17] x, float[2,23,17] z | t = Transpose<perm=[0,2,1]>(z) y = MatMul(x, t)",
    "turned, K below a vector": "float[19,3] x, float[23,3] z | t = Transpose<perm=[1,0]>(z) y = MatMul(x, t)",
    "both turned": "float[17,19] x, float[23,17] z | a = Transpose(x) b = Transpose(z) y = MatMul(a, b)",
    "attention": """float[1,13,48] x, float[1,13,48] z | s = Constant<value_ints=[1,13,3,16]>() f = Constant<value_ints=[1,13,48]>()
      h = Reshape(x, s) q = Transpose<perm=[0,2,1,3]>(h) g = Reshape(z, s) k = Transpose<perm=[0,2,3,1]>(g)
      r = Constant<value_float=4.0>() d = MatMul(q, k) e = Div(d, r) p = Softmax<axis=-1>(e) v = Transpose<perm=[0,2,1,3]>(g)
      m = MatMul(p, v) t = Transpose<perm=[0,2,1,3]>(m) y = Reshape(t, f)""",
    "packed heads": """float[2,11,72] x | s = Constant<value_ints=[2,11,3,2,12]>() h = Reshape(x, s) t = Transpose<perm=[2,0,3,1,4]>(h)
      i = Constant<value_int=0>() j = Constant<value_int=2>() q = Gather<axis=0>(t, i) k = Gather<axis=0>(t, j)
      c = Constant<value_float=0.3>() n = Mul(c, k) w = Transpose<perm=[0,1,3,2]>(n) y = MatMul(q, w)""",
    "slices and splits": """float[2,10,12] x | a, b = Split<axis=2, num_outputs=2>(x) o = Constant<value_ints=[1]>() e = Constant<value_ints=[9]>()
      ax = Constant<value_ints=[1]>() st = Constant<value_ints=[2]>() s = Slice(b, o, e, ax, st) t = Transpose<perm=[0,2,1]>(s) y = MatMul(a, t)""",
    "shared keys": """float[1,6,5,8] x, float[1,2,7,8] z | u = Constant<value_ints=[2]>() s = Constant<value_ints=[1,2,3,7,8]>()
      f = Constant<value_ints=[1,6,7,8]>() a = Unsqueeze(z, u) b = Expand(a, s) c = Reshape(b, f) t = Transpose<perm=[0,1,3,2]>(c) y = MatMul(x, t)""",
    "heads split behind the product": """float[3,5,7] x, float[3,7,6] z | a = MatMul(x, z) s = Constant<value_ints=[1,3,5,6]>()
      b = Reshape(a, s) t = Transpose<perm=[0,2,1,3]>(b) f = Constant<value_ints=[5,18]>() y = Reshape(t, f)""",
    "constant on the left": "float[2,9,20] x <float[6,9] w> | y = MatMul(w, x)",
    "mask and more": """float[2,3,6,8] x, float[2,3,8,10] z, float[2,1,1,10] m, float[6,10] n | a = MatMul(x, z) b = Add(a, m) c = Mul(n, b) y = Tanh(c)""",
}
ROWS = {
    "softmax": "float[3,5,37] x | y = Softmax<axis=-1>(x)",
    "softmax of one": "float[4,1] x | y = Softmax<axis=-1>(x)",
    "softmax, large": "float[2,50] x | c = Constant<value_float=80.0>() a = Mul(x, c) y = Softmax<axis=-1>(a)",
    "layer norm": "float[1,7,45] x <float[45] w, float[45] b> | y = LayerNormalization<axis=-1, epsilon=0.001>(x, w, b)",
    "layer norm, two axes": "float[3,4,6] x <float[4,6] w> | y = LayerNormalization<axis=1>(x, w)",
    "layer norm and after": "float[5,32] x, float[5,32] z <float[32] w> | n = LayerNormalization(x, w) a = Add(n, z) y = Relu(a)",
    "instance norm": "float[2,5,3,7] x <float[5] w, float[5] b> | y = InstanceNormalization(x, w, b)",
    "instance norm and after": "float[2,5,21] x <float[5] w, float[5] b, float[5,1] s> | n = InstanceNormalization(x, w, b) y = Mul(n, s)",
    "mean": "float[2,3,70] x | a = Constant<value_ints=[-1]>() y = ReduceMean<keepdims=0>(x, a)",
    "sum over two": "float[2,3,5,9] x | a = Constant<value_ints=[2,3]>() y = ReduceSum(x, a)",
    "greatest": "float[6,21] x | a = Constant<value_ints=[1]>() y = ReduceMax(x, a)",
    "least": "float[1,6,21] x | a = Constant<value_ints=[-1]>() y = ReduceMin<keepdims=0>(x, a)",
    "pool": "float[2,9,7,7] x | y = GlobalAveragePool(x)",
    "greatest of a picture": "float[2,3,6,9] x | y = GlobalMaxPool(x)",
}
CHAINS = {
    "one": "float[3,7,5] x | y = Sigmoid(x)",
    "three and more": "float[3,41] x, float[3,41] z | a = Add(x, z) b = Exp(a) c = Sqrt(b) y = Sub(c, x)",
    "rows": "float[3,5,41] x, float[41] z | y = Mul(x, z)",
    "columns": "float[2,5,9] x, float[2,5,1] z | y = Mul(x, z)",
    "channels": "float[2,6,5,7] x, float[2,6,1,1] z | a = Sigmoid(x) y = Mul(a, z)",
    "channels, constant": "float[1,6,5,7] x <float[6,1,1] w> | a = Mul(x, w) y = Relu(a)",
    "between": "float[3,8,4] x, float[8,1] z | y = Div(x, z)",
    "powers": """float[4,11] x | a = Abs(x) o = Constant<value_float=1.0>() b = Add(a, o) p = Constant<value_float=-0.5>()
      c = Pow(b, p) q = Constant<value_float=3.0>() y = Pow(c, q)""",
    "small": "float[1] x, float[1] z | y = Add(x, z)",
    "reshaped within": "float[4,6,10] x | a = Relu(x) s = Constant<value_ints=[24,10]>() b = Reshape(a, s) y = Exp(b)",
    "elu": "float[4,10] x | y = Elu<alpha=0.7>(x)",
    "reciprocal": "float[30] x | a = Exp(x) y = Reciprocal(a)",
}
LINEAR = {
    "gelu behind a reshape": """float[2,7,12] x, float[2,7,20] r <float[12,20] w, float[20] b> | s = Constant<value_ints=[14,12]>()
      f = Constant<value_ints=[2,7,20]>() a = Reshape(x, s) g = Gemm(a, w, b) h = Reshape(g, f) c = Constant<value_float=1.4142135>()
      o = Constant<value_float=1.0>()
      t = Constant<value_float=0.5>() d = Div(h, c) e = Erf(d) i = Add(e, o) j = Mul(h, i) k = Mul(j, t) y = Add(r, k)""",
}
CASES = {**PRODUCTS, **ROWS, **CHAINS, **LINEAR}
FAMILY = {
    name: f
    for f, names in (("batched", PRODUCTS), ("rows", ROWS), ("elementwise", CHAINS), ("gemm", LINEAR))
    for name in names
}


def parse(index: int, text: str) -> tuple[str, str, str]:
    """(inputs, weights, body) of a case, every name with the number of the case behind it."""
    head, body = (part.strip() for part in text.split("|"))
    weights = re.search(r"<(.*)>", head)
    inputs = re.sub(r"<.*>", "", head).strip()

    def renamed(code: str) -> str:
        code = re.sub(r"\b([a-z]{1,2})\b(?=\s*(,[^=]*)?=\s*[A-Z])", rf"\1_{index}", code)
        return re.sub(r"(?<=[(,])\s*([a-z]{1,2})\b(?=[,)])", rf" \1_{index}", code)

    declared = re.sub(r"\] ([a-z]+)", rf"] \1_{index}", inputs)
    stored = re.sub(r"\] ([a-z]+)", rf"] \1_{index}", weights.group(1)) if weights else ""
    return declared, stored, renamed(body)


def network(names: list[str]) -> Any:
    parts = [parse(i, CASES[name]) for i, name in enumerate(names)]
    outputs = ", ".join(f"float[] y_{i}" for i in range(len(parts)))
    stored = ", ".join(p[1] for p in parts if p[1])
    text = f"g ({', '.join(p[0] for p in parts)}) => ({outputs}) {f'<{stored}>' if stored else ''} {{ {' '.join(p[2] for p in parts)} }}"
    model = zoo.network(text, check=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return zoo.onnx.shape_inference.infer_shapes(model, strict_mode=True)


@pytest.fixture(scope="module")
def everything() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = network(list(CASES))
    values = zoo.feeds(model)
    return model, values, zoo.reference(model, values)


def families(bundle: Bundle, target: str) -> set[str]:
    return {row["family"] for row in bundle.manifest["targets"][target]["kernels"]}


@zoo.everywhere
def test_everywhere(everything: Any, place: zoo.Place) -> None:
    model, values, expected = everything
    zoo.assert_same(place.run(place.compile(model), values), expected)


MIXED = {"attention", "softmax, large", "shared keys"}  # of several kernels; shared keys repeat, which is no stride


@pytest.mark.parametrize("name", sorted(CASES.keys() - MIXED))
def test_nothing_is_left_to_tvm(name: str) -> None:
    from spa.codegen import dispatch, kernels, tvm_api
    from spa.codegen.prepare import prepare
    from spa.codegen.target import resolve

    prepared = prepare(network([name]), {}, tvm_api.imported_ops())
    chosen = dispatch.dispatch(prepared, resolve("host"), kernels.FAMILIES)
    used = {kernel.family for served in chosen.kernels.values() for _, kernel in served}
    assert used == {FAMILY[name]} and {n.op_type for n in chosen.model.graph.node} <= chosen.kernels.keys() | {
        "Reshape"
    }


def test_attention_moves_nothing() -> None:
    """Heads are strides: two products, one softmax, and neither Transpose nor a scaling."""
    rows = compile(network(["attention"]), "host").manifest["targets"]["host"]["kernels"]
    assert [row["family"] for row in rows] == ["batched", "rows", "batched"]


def test_kernels_of_the_same_operands_stay_apart() -> None:
    model = zoo.network("g (float[5,9] x) => (float[5,9] y, float[5,9] z) { y = Tanh(x) z = Exp(x) }")
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "host").run(values), zoo.reference(model, values))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False), st.data())
@settings(max_examples=80)
def test_a_reshaped_view_is_numpys(shape: list[int], random: Any, data: Any) -> None:
    """Where numpy reshapes a transposed array without a copy, so do we, to the same strides; elsewhere neither."""
    order = list(range(len(shape)))
    random.shuffle(order)
    base = np.arange(int(np.prod(shape))).reshape(shape).transpose(order)
    rest, new = base.size, []
    while rest > 1:
        n = data.draw(st.sampled_from([d for d in range(2, rest + 1) if rest % d == 0]))
        new.append(n)
        rest //= n
    strides = tuple(s // 8 for s in base.strides)
    found = reshaped(base.shape, strides, new)
    copied = base.reshape(new)
    if found is None:
        assert not np.shares_memory(copied, base)
    else:
        view = np.lib.stride_tricks.as_strided(base, new, [s * 8 for s in found])
        assert (view == copied).all()


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4), st.integers(0, 2))
def test_broadcast_axes_are_numpys(axes: list[tuple[int, bool]], dropped: int) -> None:
    result = [n for n, _ in axes]
    shape = [n if kept else 1 for n, kept in axes][dropped:]
    operand = np.arange(int(np.prod(shape))).reshape(shape)
    merged = broadcast_axes(shape, result)
    assert merged is not None
    want = np.broadcast_to(operand, result).reshape(-1)
    extents = [n for n, _ in merged] or [want.size]
    strides = [s for _, s in merged] or [1]
    index = sum(i * s for i, s in zip(np.indices(extents), strides, strict=True))
    assert (operand.reshape(-1)[np.reshape(index, -1)] == want).all()
    assert contiguous(result)[-1] == 1
