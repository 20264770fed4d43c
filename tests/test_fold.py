"""`fold`: each rewrite in four parts (see `onnx_text`), and the guards of each."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import check_rewrite, feeds_for, ops, parse, run

import spa
from spa.model import Model
from spa.passes.fold import Fold

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(sum(shape) + 1).standard_normal(shape).astype(dtype)


def norm_weights(channels: int, dtype: Any = np.float32, prefix: str = "") -> dict[str, Any]:
    """gamma, beta, mean and a positive variance."""
    rng = np.random.default_rng(channels)
    names = ("gamma", "beta", "mean")
    found = {prefix + n: rng.standard_normal(channels).astype(dtype) for n in names}
    return {**found, f"{prefix}var": rng.uniform(0.2, 2, channels).astype(dtype)}


def reasons(model: Model) -> list[str]:
    return [d["reason"] for d in Fold().run(model).facts["fold"]["declined"]]


# 1 constants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "arithmetic",
            """agraph (float[N,3] x) => (float[N,3] y) {
                a = Constant<value = float[3] {1., 2., 3.}>()  b = Exp(a)  c = Mul(a, b)  y = Add(x, c) }""",
            ["Add"],
        ),
        (
            "constant attributes of every kind",
            """agraph (float[N,4] x) => (float[N,2] y, float[N,4] z) {
                s = Constant<value_ints = [0, 1]>()  i = Constant<value_int = 1>()  f = Constant<value_floats = [2.0]>()
                g = Constant<value_float = 3.0>()  y = Gather<axis = 1>(x, s)  a = Mul(x, f)  b = Mul(a, g)
                c = Cast<to = 1>(i)  z = Add(b, c) }""",
            ["Gather", "Mul", "Mul", "Add"],
        ),
        (
            "static shape chain",
            """agraph (float[2,3,4] x) => (float[2,12] y) {
                s = Shape(x)  zero = Constant<value_ints = [0]>()  n = Gather(s, zero)
                m = Constant<value_ints = [-1]>()  t = Concat<axis = 0>(n, m)  y = Reshape(x, t) }""",
            ["Reshape"],
        ),
        (
            "dynamic batch: the target becomes [-1, 12]",
            """agraph (float[N,3,4] x) => (float[N,12] y) {
                s = Shape(x)  zero = Constant<value_int = 0>()  n = Gather(s, zero)  axes = Constant<value_ints = [0]>()
                u = Unsqueeze(n, axes)  m = Constant<value_ints = [12]>()  t = Concat<axis = 0>(u, m)
                y = Reshape(x, t) }""",
            ["Reshape"],
        ),
        (
            "two dynamic dimensions: the target becomes [0, 0, 2, 2]",
            """agraph (float[N,T,4] x) => (float[N,T,2,2] y) {
                s = Shape(x)  a = Constant<value_ints = [0]>()  b = Constant<value_ints = [2]>()
                n = Slice(s, a, b)  h = Constant<value_ints = [2, 2]>()  t = Concat<axis = 0>(n, h)
                y = Reshape(x, t) }""",
            ["Reshape"],
        ),
        (
            "a dimension in the middle is fixed",
            """agraph (float[N,6,T] x) => (float[N,T,6] y) {
                s = Shape(x)  one = Constant<value_int = 1>()  c = Gather(s, one)  two = Constant<value_int = 2>()
                h = Div(c, two)  axes = Constant<value_ints = [0]>()  hu = Unsqueeze(h, axes)
                k = Constant<value_ints = [2]>()  z = Constant<value_ints = [0]>()  l = Constant<value_ints = [-1]>()
                t = Concat<axis = 0>(z, hu, k, l)  r = Reshape(x, t)  q = Constant<value_ints = [0, 6, -1]>()
                v = Reshape(r, q)  y = Transpose<perm = [0, 2, 1]>(v) }""",
            ["Reshape", "Reshape", "Transpose"],
        ),
        (
            "a static Reshape makes the next Shape static",
            """agraph (float[2,8] x) => (float[2,8] y) {
                t = Constant<value_ints = [2, 2, 4]>()  r = Reshape(x, t)  s = Shape(r)  f = Cast<to = 1>(s)
                p = ReduceProd<keepdims = 0>(f)  d = Sqrt(p)  y = Div(x, d) }""",
            ["Div"],
        ),
        (
            "Shape with start and end, Size",
            """agraph (float[N,3,4] x) => (int64[1] y, int64[2] z) {
                z = Shape<start = 1>(x)  s = Shape<start = -2, end = -1>(x)  y = Identity(s) }""",
            ["Constant", "Constant"],
        ),
        (
            "CastLike needs only the type",
            """agraph (float[N,3] x) => (float[N,3] y) {
                c = Constant<value = double[1] {2.5}>()  l = CastLike(c, x)  y = Mul(x, l) }""",
            ["Mul"],
        ),
        (
            "several outputs",
            """agraph (float[N,2] x) => (float[N,2] y) {
                c = Constant<value = float[4] {1., 2., 3., 4.}>()  a, b = Split<num_outputs = 2>(c)
                p = Mul(x, a)  y = Add(p, b) }""",
            ["Mul", "Add"],
        ),
        (
            "NonZero: the size depends on data, but is bounded",
            """agraph (float[N,2] x) => (float[N,2] y) {
                c = Constant<value = int64[2] {1, 1}>()  n = NonZero(c)  z = Constant<value_ints = [-1]>()
                i = Reshape(n, z)  y = Gather<axis = 1>(x, i) }""",
            ["Gather"],
        ),
    ],
    ids=lambda v: v.replace(" ", "-")[:40] if isinstance(v, str) and len(v) < 80 else "",
)
def test_constants(name: str, text: str, expected: list[str]) -> None:
    check_rewrite(Fold(), parse(text), expected)


def test_old_slice_and_squeeze_with_attributes() -> None:
    text = """agraph (float[N,3,4] x) => (float[N,12] y) {
        s = Shape(x)  n = Slice<starts = [0], ends = [1]>(s)  q = Squeeze<axes = [0]>(n)  u = Unsqueeze<axes = [0]>(q)
        m = Constant<value = int64[1] {12}>()  t = Concat<axis = 0>(u, m)  y = Reshape(x, t) }"""
    check_rewrite(Fold(), parse(text, opset=9), ["Reshape"])


def test_the_dynamic_target_keeps_the_meaning_for_every_size() -> None:
    text = """agraph (float[N,T,4] x) => (float[N,T,2,2] y) {
        s = Shape(x)  a = Constant<value_ints = [0]>()  b = Constant<value_ints = [2]>()
        n = Slice(s, a, b)  h = Constant<value_ints = [2, 2]>()  t = Concat<axis = 0>(n, h)  y = Reshape(x, t) }"""
    model = parse(text)
    folded = Fold().run(model).model
    for n, t in itertools.product([0, 1, 5], [1, 3]):
        feeds = feeds_for(model, N=n, T=t)
        assert run(folded, feeds)[0].shape == run(model, feeds)[0].shape == (n, t, 2, 2)


def test_a_target_of_minus_one_works_for_an_empty_batch() -> None:
    text = """agraph (float[N,3,4] x) => (float[N,12] y) {
        s = Shape<start = 0, end = 1>(x)  m = Constant<value_ints = [12]>()  t = Concat<axis = 0>(s, m)
        y = Reshape(x, t) }"""
    model = parse(text)
    folded = check_rewrite(Fold(), model, ["Reshape"])
    empty = {"x": np.zeros((0, 3, 4), np.float32)}
    assert run(folded, empty)[0].shape == run(model, empty)[0].shape == (0, 12)


def test_swapped_dynamic_dimensions_stay_computed() -> None:
    """[T, N] over data [N, T] is neither 0 nor -1."""
    text = """agraph (float[N,T,4] x) => (float[T,N,4] y) {
        s = Shape(x)  a = Constant<value_ints = [1, 0, 2]>()  t = Gather(s, a)  y = Reshape(x, t) }"""
    check_rewrite(Fold(), parse(text), ["Shape", "Gather", "Reshape"], feeds={"x": normal(2, 3, 4)})


def test_a_comparison_of_a_dynamic_size_is_never_decided() -> None:
    """It is false for most sizes, but not for all."""
    text = """agraph (float[N,3] x) => (float[N,3] y) {
        s = Shape(x)  zero = Constant<value_int = 0>()  n = Gather(s, zero)  one = Constant<value_int = 1>()
        e = Equal(n, one)  a = Constant<value_float = 2.0>()  b = Constant<value_float = 3.0>()  w = Where(e, a, b)
        y = Mul(x, w) }"""
    model = parse(text)
    folded = check_rewrite(Fold(), model, ["Shape", "Gather", "Equal", "Where", "Mul"])
    for n in (1, 2):
        feeds = feeds_for(model, N=n)
        np.testing.assert_array_equal(run(folded, feeds)[0], run(model, feeds)[0])


def test_wrong_value_info_is_not_believed() -> None:
    text = """agraph (float[N,6] x) => (int64[2] y) <float[7,6] h> { h = Relu(x)  y = Shape(h) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>{text}')
    assert ops(Fold().run(spa.load(proto)).model) == ["Relu", "Shape"]


@pytest.mark.parametrize(
    "text",
    [
        """c = Constant<value_ints = [1000, 1000]>()  k = ConstantOfShape(c)
           r = ReduceSum<keepdims = 0>(k)  y = Add(x, r)""",
        """c = Constant<value_ints = [1000, 1000]>()  o = Constant<value_floats = [1.0]>()  k = Expand(o, c)
           r = ReduceMax<keepdims = 0>(k)  y = Add(x, r)""",
        """c = Constant<value_ints = [1000000]>()  o = Constant<value_floats = [1.0]>()  k = Tile(o, c)
           r = ReduceMax<keepdims = 0>(k)  y = Add(x, r)""",
    ],
    ids=["ConstantOfShape", "Expand", "Tile"],
)
def test_large_expansions_stay(text: str) -> None:
    folded = Fold().run(parse(f"agraph (float[N,3] x) => (float[N,3] y) {{ {text} }}")).model
    assert len(folded.to_proto().SerializeToString()) < 10_000
    assert ops(folded)[-1] == "Add" and len(ops(folded)) == 3


def test_small_expansions_are_computed() -> None:
    text = """agraph (float[N,3] x) => (float[N,3] y) {
        c = Constant<value_ints = [3]>()  k = ConstantOfShape<value = float[1] {2.}>(c)  y = Add(x, k) }"""
    check_rewrite(Fold(), parse(text), ["Add"])


def test_a_large_weight_is_transposed_once_but_a_shared_one_is_not_doubled() -> None:
    one = "agraph (float[N,300] x) => (float[N,200] y) { t = Transpose<perm = [1, 0]>(w)  y = MatMul(x, t) }"
    check_rewrite(Fold(), parse(one, {"w": normal(200, 300)}), ["MatMul"], atol=1e-4)
    two = """agraph (float[N,300] x) => (float[N,300] y) {
        t = Transpose<perm = [1, 0]>(w)  h = MatMul(x, t)  y = MatMul(h, w) }"""
    check_rewrite(Fold(), parse(two, {"w": normal(200, 300)}), ["Transpose", "MatMul", "MatMul"], atol=1e-2)


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_randomness_stays(op: str) -> None:
    text = f"agraph (float[N,3] x) => (float[N,3] y) {{ r = {op}(c)  y = Add(x, r) }}"
    folded = Fold().run(parse(text, {"c": np.full(3, 0.5, np.float32)})).model
    assert ops(folded) == [op, "Add"]


def test_quantisation_of_weights_stays() -> None:
    text = "agraph (float[N,3] x) => (float[N,2] y) { w = DequantizeLinear(q, s)  y = MatMul(x, w) }"
    weights: dict[str, Any] = {"q": RNG.integers(-9, 9, (3, 2)).astype(np.int8), "s": np.array(0.1, np.float32)}
    check_rewrite(Fold(), parse(text, weights), ["DequantizeLinear", "MatMul"])


def test_initializers_that_a_caller_may_replace_stay() -> None:
    text = "agraph (float[N,3] x, float[3] w = {1., 2., 3.}) => (float[N,3] y) { e = Exp(w)  y = Add(x, e) }"
    model = parse(text)
    folded = check_rewrite(Fold(), model, ["Exp", "Add"])
    feeds = {"x": normal(2, 3), "w": normal(3)}
    np.testing.assert_array_equal(run(folded, feeds)[0], run(model, feeds)[0])


def test_old_ir_versions_get_constant_nodes_instead_of_initializers() -> None:
    text = """agraph (float[N,3] x) => (float[N,3] y) {
        a = Constant<value = float[3] {1., 2., 3.}>()  b = Exp(a)  y = Add(x, b) }"""
    folded = check_rewrite(Fold(), parse(text, opset=9, ir_version=3), ["Constant", "Add"])
    assert folded.ir.ir_version == 3 and not folded.ir.graph.initializers


def test_subgraphs_fold_in_place() -> None:
    text = """agraph (bool c, float[3] x) => (float[3] y) {
        two = Constant<value = float[1] {2.}>()
        y = If(c) <
            then_branch = g1 () => (float[3] t) { a = Exp(two)  t = Mul(x, a) },
            else_branch = g2 () => (float[3] e) {
                k = Constant<value = float[1] {3.}>() b = Neg(k)  i = Identity(b)  e = Mul(x, i) }
        > }"""
    model = parse(text)
    for flag in (True, False):
        folded = check_rewrite(Fold(), model, ["If"], feeds={"c": np.array(flag), "x": normal(3)})
    branches = [[n.op_type for n in a.as_graph()] for a in folded.ir.graph[0].attributes.values()]
    assert branches == [["Constant", "Mul"], ["Constant", "Mul"]]


# 2 identities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [
        "Identity(h)",
        "Cast<to = 1>(h)",
        "Transpose<perm = [0, 1]>(h)",
        "Concat<axis = 1>(h)",
        "Sum(h)",
        "Max(h)",
        "Dropout(h)",
        "Pad(h, zeros)",
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_identities(node: str, last: bool) -> None:
    tail = f"y = {node}" if last else f"d = {node}  y = Neg(d)"
    weights = {"zeros": np.zeros(4, np.int64)} if "zeros" in node else {}
    model = parse(f"agraph (float[N,3] x) => (float[N,3] y) {{ h = Relu(x)  {tail} }}", weights)
    result = check_rewrite(Fold(), model, ["Relu"] if last else ["Relu", "Neg"])
    assert [v.name for v in result.ir.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Identity(x)", ["Identity"]),  # an input as output
        ("y = Identity(w)", ["Identity"]),  # an initializer as output
        ("y = Relu(x)  z = Identity(y)", ["Relu", "Identity"]),  # the same value twice
    ],
)
def test_identities_that_onnx_cannot_do_without(body: str, expected: list[str]) -> None:
    second = ", float[N,3] z" if "z =" in body else ""
    shape = "float[3]" if "(w)" in body else "float[N,3]"
    weights = {"w": normal(3)} if "(w)" in body else {}
    model = parse(f"agraph (float[N,3] x) => ({shape} y{second}) {{ {body} }}", weights)
    check_rewrite(Fold(), model, expected)


def test_identity_of_an_outer_value_in_a_branch_stays() -> None:
    text = """agraph (bool c, float[3] x) => (float[3] y) {
        h = Relu(x)
        y = If(c) < then_branch = g1 () => (float[3] t) { t = Identity(h) },
                    else_branch = g2 () => (float[3] e) { e = Neg(h) } > }"""
    check_rewrite(Fold(), parse(text), ["Relu", "If"], feeds={"c": np.array(True), "x": normal(3)})


def test_a_cast_that_changes_the_type_stays() -> None:
    text = "agraph (float[N,3] x) => (double[N,3] y) { h = Relu(x)  y = Cast<to = 11>(h) }"
    check_rewrite(Fold(), parse(text), ["Relu", "Cast"])


# 3 batch normalisation -------------------------------------------------------------------------------------------


def conv_norm(
    transpose: bool, dims: int, group: int, bias: bool, dtype: Any = np.float32, inputs: int = 4, outputs: int = 6
) -> Model:
    """x -> Conv or ConvTranspose with some stride and padding -> BatchNormalization -> Relu"""
    op = "ConvTranspose" if transpose else "Conv"
    kernel = (3, 2, 2)[:dims]
    shape = (inputs, outputs // group, *kernel) if transpose else (outputs, inputs // group, *kernel)
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    weights = {"w": normal(*shape, dtype=dtype), **norm_weights(outputs, dtype)}
    if bias:
        weights["b"] = normal(outputs, dtype=dtype)
    size, out = ",".join("5" * dims), ",".join(f"s{i}" for i in range(dims))
    pads, strides = ",".join("1" * 2 * dims), ",".join("2" * dims)
    text = f"""agraph ({kind}[N,{inputs},{size}] x) => ({kind}[N,{outputs},{out}] y) {{
        z = {op}<group = {group}, pads = [{pads}], strides = [{strides}]>(x, w{", b" * bias})
        n = BatchNormalization<epsilon = 0.01>(z, gamma, beta, mean, var)
        y = Relu(n) }}"""
    return parse(text, weights)


@settings(max_examples=40)
@given(
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([(1, 4, 6), (2, 4, 6), (4, 4, 4), (3, 3, 9), (2, 2, 2)]),
    st.booleans(),
)
def test_batchnorm_into_any_convolution(transpose: bool, dims: int, channels: tuple[int, int, int], bias: bool) -> None:
    group, inputs, outputs = channels
    model = conv_norm(transpose, dims, group, bias, np.float32, inputs, outputs)
    check_rewrite(Fold(), model, ["ConvTranspose" if transpose else "Conv", "Relu"], rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, (), (1,), (5,), (1, 5), (2, 1), (2, 5)]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.25, 1.0]),
)
def test_batchnorm_into_gemm(
    trans_a: bool, trans_b: bool, bias: tuple[int, ...] | None, alpha: float, beta: float
) -> None:
    weights = {"w": normal(5, 3) if trans_b else normal(3, 5), **norm_weights(5)}
    if bias is not None:
        weights["c"] = normal(*bias) if bias else np.array(0.7, np.float32)
    shape, third = "3,2" if trans_a else "2,3", "" if bias is None else ", c"
    text = f"""agraph (float[{shape}] x) => (float[2,5] y) {{
        z = Gemm<transA = {int(trans_a)}, transB = {int(trans_b)}, alpha = {alpha}, beta = {beta}>(x, w{third})
        y = BatchNormalization(z, gamma, beta, mean, var) }}"""
    check_rewrite(Fold(), parse(text, weights), ["Gemm"], rtol=1e-4, atol=1e-5)


def test_half_precision_is_computed_in_float64_and_rounded_once() -> None:
    model = conv_norm(False, 2, 1, True, np.float16)
    folded = Fold().run(model).model
    assert ops(folded) == ["Conv", "Relu"]
    w, gamma, var = (
        model.ir.graph.initializers[n].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
        for n in ("w", "gamma", "var")
    )
    exact = w * (gamma / np.sqrt(var + np.float32(0.01))).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(folded.ir.graph.initializers["w"].const_value.numpy(), exact.astype(np.float16))  # type: ignore[union-attr]


def test_half_precision_that_would_overflow_stays() -> None:
    model = conv_norm(False, 2, 1, False, np.float16)
    model.ir.graph.initializers["gamma"].const_value = ir.tensor(np.full(6, 60000, np.float16), name="gamma")
    assert "BatchNormalization" in ops(Fold().run(model).model)
    assert reasons(model) == ["the folded weight does not fit into FLOAT16"]


NORM = "BatchNormalization(z, gamma, beta, mean, var)"
W = {"w": normal(6, 4, 1, 1), **norm_weights(6)}


@pytest.mark.parametrize(
    ("text", "weights", "opset", "expected", "reason"),
    [
        pytest.param(
            f"agraph (float[N,4,5,5] x) => (float[N,6,5,5] y, float[N,6,5,5] z) {{ z = Conv(x, w)  y = {NORM} }}",
            W,
            18,
            ["Conv", "BatchNormalization"],
            "the output of Conv is used elsewhere too",
            id="output of the convolution is an output",
        ),
        pytest.param(
            f"""agraph (float[N,4,5,5] x) => (float[N,6,5,5] y) {{ z = Conv(x, w)  n = {NORM}  y = Add(n, z) }}""",
            W,
            18,
            ["Conv", "BatchNormalization", "Add"],
            "the output of Conv is used elsewhere too",
            id="convolution has two readers",
        ),
        pytest.param(
            f"""agraph (float[N,4,5,5] x) => (float[N,6,5,5] y) {{
                z = Conv(x, w)  n = {NORM}  r = Conv(x, w)  y = Add(n, r) }}""",
            W,
            18,
            ["Conv", "BatchNormalization", "Conv", "Add"],
            "the weight 'w' is shared",
            id="shared weight",
        ),
        pytest.param(
            f"agraph (float[N,4,5,5] x) => (float[N,6,5,5] y, float[6,4,1,1] w) {{ z = Conv(x, w)  y = {NORM} }}",
            W,
            18,
            ["Conv", "BatchNormalization"],
            "the weight 'w' is shared",
            id="weight is an output",
        ),
        pytest.param(
            f"agraph (float[N,4,5,5] x, float[6,4,1,1] w) => (float[N,6,5,5] y) {{ z = Conv(x, w)  y = {NORM} }}",
            W,
            18,
            ["Conv", "BatchNormalization"],
            "a weight is not constant: it is computed, or a graph input that a caller may replace",
            id="weight is an input",
        ),
        pytest.param(
            f"agraph (float[N,4,5,5] x, float[6] gamma) => (float[N,6,5,5] y) {{ z = Conv(x, w)  y = {NORM} }}",
            W,
            18,
            ["Conv", "BatchNormalization"],
            "a weight is not constant: it is computed, or a graph input that a caller may replace",
            id="gamma is an input",
        ),
        pytest.param(
            """agraph (float[N,4,5,5] x) => (float[N,6,5,5] y) {
                z = Conv(x, w)  y, m, v = BatchNormalization<training_mode = 1>(z, gamma, beta, mean, var) }""",
            W,
            18,
            ["Conv", "BatchNormalization"],
            "it is in training mode",
            id="training mode",
        ),
        pytest.param(
            f"agraph (float[N,6,5,5] x) => (float[N,6,5,5] y) {{ z = Relu(x)  y = {NORM} }}",
            norm_weights(6),
            18,
            ["Relu", "BatchNormalization"],
            "it does not follow a Conv, ConvTranspose or Gemm",
            id="no convolution before it",
        ),
    ],
)
def test_batchnorm_that_must_stay(
    text: str, weights: dict[str, Any], opset: int, expected: list[str], reason: str
) -> None:
    model = parse(text, weights, opset)
    if "training_mode" in text:  # onnxruntime may refuse to run it; what matters is that it stays
        assert ops(Fold().run(model).model) == expected
    else:
        check_rewrite(Fold(), model, expected)
    assert reasons(model) == [reason]


def test_batchnorm_per_element_of_old_opsets_stays() -> None:
    text = """agraph (float[N,6] x) => (float[N,6] y) {
        z = Gemm(x, w, c)  y = BatchNormalization<spatial = 0>(z, gamma, beta, mean, var) }"""
    model = parse(text, {"w": normal(6, 6), "c": normal(6), **norm_weights(6)}, opset=7)
    assert ops(Fold().run(model).model) == ["Gemm", "BatchNormalization"]
    assert reasons(model) == ["its statistics are per element (spatial=0)"]


def test_a_shared_bias_gets_a_copy() -> None:
    """Exporters often give every convolution the same zero bias."""
    text = """agraph (float[N,4,5,5] x) => (float[N,4,5,5] y) {
        a = Conv(x, w1, zero)  n = BatchNormalization(a, g1, b1, m1, v1)
        c = Conv(n, w2, zero)  y = BatchNormalization(c, g2, b2, m2, v2) }"""
    weights: dict[str, Any] = {"zero": np.zeros(4, np.float32)}
    for i in "12":
        weights[f"w{i}"] = normal(4, 4, 1, 1)
        weights |= {n[0] + i: a for n, a in norm_weights(4).items()}
    check_rewrite(Fold(), parse(text, weights), ["Conv", "Conv"], rtol=1e-4, atol=1e-4)


def test_batchnorm_with_shared_parameters_folds_everywhere() -> None:
    text = f"""agraph (float[N,4,5,5] x) => (float[N,6,5,5] y) {{
        z = Conv(x, w)  a = {NORM}  z2 = Conv(x, w2)  b = {NORM.replace("(z", "(z2")}  y = Add(a, b) }}"""
    check_rewrite(Fold(), parse(text, {**W, "w2": normal(6, 4, 1, 1)}), ["Conv", "Conv", "Add"], rtol=1e-4, atol=1e-4)


def test_weights_in_constant_nodes_fold_too() -> None:
    text = """agraph (float[N,1,3,3] x) => (float[N,1,3,3] y) {
        w = Constant<value = float[1,1,1,1] {2.}>()  one = Constant<value = float[1] {1.5}>()
        z = Conv(x, w)  y = BatchNormalization(z, one, one, one, one) }"""
    check_rewrite(Fold(), parse(text), ["Conv"])
    folded = check_rewrite(Fold(), parse(text, opset=9, ir_version=3), ["Constant", "Constant", "Conv"])
    assert not folded.ir.graph.initializers


# 4 dead code, and what must survive ------------------------------------------------------------------------------


def test_dead_nodes_and_weights_go_but_inputs_stay() -> None:
    text = "agraph (float[N,3] x, float[N,3] unused) => (float[N,3] y) { d = Exp(x)  e = Mul(d, w)  y = Relu(x) }"
    folded = check_rewrite(Fold(), parse(text, {"w": normal(3), "never": normal(7)}), ["Relu"])
    assert [v.name for v in folded.ir.graph.inputs] == ["x", "unused"]
    assert not folded.ir.graph.initializers


def test_each_step_can_be_switched_off() -> None:
    text = f"""agraph (float[N,4,5,5] x) => (float[N,6,5,5] y) {{
        dead = Exp(x)  c = Constant<value_floats = [2.0]>()  e = Exp(c)  z = Conv(x, w)  n = {NORM}  i = Identity(n)
        y = Mul(i, e) }}"""
    everything = ["Exp", "Constant", "Exp", "Conv", "BatchNormalization", "Identity", "Mul"]
    off = {"constants": False, "identities": False, "batchnorm": False, "dead": False}
    assert ops(Fold(**off).run(parse(text, W)).model) == everything
    gone = {
        "constants": ["Exp", "Conv", "BatchNormalization", "Identity", "Mul"],
        "identities": ["Exp", "Constant", "Exp", "Conv", "BatchNormalization", "Mul"],
        "batchnorm": ["Exp", "Constant", "Exp", "Conv", "Identity", "Mul"],
        "dead": everything[1:],
    }
    for name, expected in gone.items():
        assert ops(Fold(**{**off, name: True}).run(parse(text, W)).model) == expected


def test_functions_metadata_and_versions_survive() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 17, "local" : 1, "unused.domain" : 3], producer_name: "p",
     metadata_props: ["k": "v"]>
    agraph (float[N,3] x) => (float[N,3] y) {
        c = Constant<value_floats = [2.0]>()  e = Exp(c)  h = local.twice(x)  i = Identity(h)  y = Mul(i, e) }
    <domain: "local", opset_import: ["" : 17]>
    twice (a) => (b) { k = Constant<value_float = 2.0>()  b = Mul(a, k) }
    <domain: "local", opset_import: ["" : 17]>
    nobody_calls (a) => (b) { b = Neg(a) }
    """
    model = spa.load(onnx.parser.parse_model(text))
    model.ir.graph[2].metadata_props["where"] = "here"
    folded = check_rewrite(Fold(), model, ["twice", "Mul"]).to_proto()
    assert folded.ir_version == 9 and folded.producer_name == "p"
    assert {o.domain: o.version for o in folded.opset_import} == {"": 17, "local": 1, "unused.domain": 3}
    assert {(p.key, p.value) for p in folded.metadata_props} == {("k", "v")}
    assert [f.name for f in folded.functions] == ["twice", "nobody_calls"]
    assert [n.op_type for n in folded.functions[0].node] == ["Constant", "Mul"]
    assert [(p.key, p.value) for p in folded.graph.node[0].metadata_props] == [("where", "here")]


# As a whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_trained_networks(name: str, models: Path) -> None:
    model = spa.load(models / f"{name}.onnx")
    left = [op for op in ops(model) if op != "BatchNormalization"]
    x = np.load(models / f"{name}.npz")["test_x"]
    check_rewrite(Fold(), model, left, rtol=1e-3, atol=1e-4, feeds={"x": x})


def test_weights_on_disk_are_read_only_where_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""agraph (float[N,4,5,5] x) => (float[N,3] q) {{
        z = Conv(x, w)  y = {NORM}  p = GlobalAveragePool(y)  f = Flatten(p)  q = Gemm(f, big, c) }}"""
    model = parse(text, {**W, "big": normal(6, 3), "c": normal(3), "w": normal(6, 4, 3, 3)})
    onnx.save(model.to_proto(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    read = set()
    load: Any = ir.ExternalTensor._load

    def note(tensor: ir.ExternalTensor) -> None:
        read.add(tensor.name)
        load(tensor)

    monkeypatch.setattr(ir.ExternalTensor, "_load", note)
    folded = Fold().run(spa.load(tmp_path / "m.onnx")).model
    assert ops(folded) == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]
    assert read == {"w", "gamma", "beta", "mean", "var"}


def long_chain(blocks: int) -> Model:
    """Convolution, normalisation, and an exporter's way to flatten and come back, many times over."""
    nodes, weights = [], {}
    for i in range(blocks):
        nodes.append(
            f"""z{i} = Conv<pads = [1, 1, 1, 1]>(x{i}, w{i})  n{i} = BatchNormalization(z{i}, g{i}, b{i}, m{i}, v{i})
            r{i} = Relu(n{i})  s{i} = Shape(r{i})  k{i} = Constant<value_int = 0>()  d{i} = Gather(s{i}, k{i})
            a{i} = Constant<value_ints = [0]>()  u{i} = Unsqueeze(d{i}, a{i})  c{i} = Constant<value_ints = [4, 6, 6]>()
            t{i} = Concat<axis = 0>(u{i}, c{i})  x{i + 1} = Reshape(r{i}, t{i})"""
        )
        weights[f"w{i}"] = normal(4, 4, 3, 3)
        weights |= {f"{n[0]}{i}": a for n, a in norm_weights(4).items()}
    body = "\n".join(nodes)
    return parse(f"agraph (float[N,4,6,6] x0) => (float[N,4,6,6] y) {{ {body} y = Identity(x{blocks}) }}", weights)


def test_a_thousand_nodes_fold_in_seconds() -> None:
    model = long_chain(100)
    Fold().run(long_chain(1))  # imports
    start = time.process_time()
    folded = Fold().run(model).model
    assert time.process_time() - start < 3
    assert ops(folded) == ["Conv", "Relu", "Reshape"] * 100
