"""Windowed pooling against onnxruntime without optimisations: windows, padding, rounding, dilation, epilogues, every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from spa.codegen.bundle import Bundle, compile
from spa.runtime.run import run

pytestmark = pytest.mark.codegen

# (shape of x, operator and attributes)
CASES: list[tuple[tuple[int, ...], str]] = [
    ((1, 3, 17, 19), "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"),
    ((2, 5, 9, 35), "MaxPool<kernel_shape=[2,2], strides=[2,2]>"),
    ((1, 4, 13, 40), "MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>"),
    ((1, 2, 20, 21), "MaxPool<kernel_shape=[13,13], pads=[6,6,6,6]>"),
    ((1, 2, 12, 23), "MaxPool<kernel_shape=[3,2], dilations=[2,3], pads=[1,0,2,1]>"),
    ((1, 2, 11, 22), "MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>"),
    ((1, 2, 13, 25), "MaxPool<kernel_shape=[4,3], strides=[3,3], ceil_mode=1, pads=[1,1,1,1]>"),
    ((1, 2, 9, 9), 'MaxPool<kernel_shape=[3,3], strides=[2,1], auto_pad="SAME_UPPER">'),
    ((1, 2, 8, 9), 'MaxPool<kernel_shape=[2,4], strides=[1,2], auto_pad="SAME_LOWER">'),
    ((2, 3, 50), "MaxPool<kernel_shape=[3], strides=[2], pads=[1,1]>"),
    ((2, 3, 33), "AveragePool<kernel_shape=[7], strides=[3], pads=[3,2]>"),
    ((1, 3, 14, 14), "AveragePool<kernel_shape=[2,2], strides=[2,2]>"),
    ((1, 3, 17, 19), "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>"),
    ((1, 3, 17, 19), "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>"),
    ((1, 2, 15, 18), "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[0,1,1,0], ceil_mode=1>"),
    (
        (1, 2, 15, 18),
        "AveragePool<kernel_shape=[4,4], strides=[3,3], pads=[1,1,1,1], ceil_mode=1, count_include_pad=1>",
    ),
    ((1, 2, 16, 30), "AveragePool<kernel_shape=[7,5], pads=[3,2,3,2]>"),
    ((1, 2, 11, 13), 'AveragePool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">'),
    ((1, 2, 11, 13), 'AveragePool<kernel_shape=[4,4], auto_pad="SAME_LOWER", count_include_pad=1>'),
    ((1, 2, 16, 18), "AveragePool<kernel_shape=[3,2], dilations=[2,3], pads=[1,1,1,1]>"),
    ((1, 5, 7, 7), "AveragePool<kernel_shape=[7,7]>"),
    ((1, 5, 6, 9), "MaxPool<kernel_shape=[6,9]>"),
    ((1, 2, 3, 3), "MaxPool<kernel_shape=[2,2]>"),
    ((1, 1, 1, 1), "MaxPool<kernel_shape=[1,1]>"),
    ((1, 3, 30, 1), "MaxPool<kernel_shape=[3,1], strides=[2,1]>"),
]
FUSED = """g (float[2,6,15,20] x, float[2,6,8,10] r) => (float[2,6,8,10] y, float[2,6,8,10] z) <float[6,1,1] w>
{ p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) a = Mul(p, w) b = Add(a, r) y = Relu(b)
  q = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x) s = Sigmoid(q) z = Mul(s, w) }"""


def network(cases: list[tuple[tuple[int, ...], str]]) -> Any:
    inputs = ", ".join(f"float{list(shape)} x{i}" for i, (shape, _) in enumerate(cases))
    outputs = ", ".join(f"float[] y{i}" for i in range(len(cases)))
    body = " ".join(f"y{i} = {op}(x{i})" for i, (_, op) in enumerate(cases))
    model = zoo.network(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset=19, check=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return zoo.onnx.shape_inference.infer_shapes(model, strict_mode=True)


@pytest.fixture(scope="module")
def everything() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = network(CASES)
    values = zoo.feeds(model)
    return model, values, zoo.reference(model, values)


def families(bundle: Bundle, target: str) -> set[str]:
    return {row["family"] for row in bundle.manifest["targets"][target]["kernels"]}


@zoo.everywhere
def test_everywhere(everything: Any, place: zoo.Place) -> None:
    model, values, expected = everything
    bundle = place.compile(model)
    assert families(bundle, place.target) == {"pool", "rows"}
    zoo.assert_same(place.run(bundle, values), expected)


def test_what_follows_is_done_in_registers() -> None:
    model = zoo.network(FUSED)
    values = zoo.feeds(model)
    bundle = compile(model, "host")
    assert [row["family"] for row in bundle.manifest["targets"]["host"]["kernels"]] == ["pool", "pool"]
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


def test_threads_give_the_same_bits() -> None:
    model = network([((2, 32, 33, 35), CASES[0][1]), ((1, 40, 31, 33), CASES[16][1])])
    values = zoo.feeds(model)
    bundle = compile(model, "host")
    alone, shared = (run(bundle.path, values, "host", threads=n) for n in (1, 3))
    for name, value in alone.items():
        np.testing.assert_array_equal(value, shared[name])


@st.composite
def pools(draw: Any) -> tuple[tuple[int, ...], str]:
    """A window that every padded picture holds at least once."""
    size, kernel = (draw(st.tuples(st.integers(1, n), st.integers(1, n))) for n in (24, 6))
    strides, dilations = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(2))
    pads = [draw(st.integers(0, (k - 1) // 2)) for k in kernel] + [draw(st.integers(0, (k - 1) // 2)) for k in kernel]
    for axis in (0, 1):
        if size[axis] + pads[axis] + pads[axis + 2] < (kernel[axis] - 1) * dilations[axis] + 1:
            size = tuple(40 if i == axis else n for i, n in enumerate(size))
    op, more = draw(st.sampled_from([("MaxPool", ""), ("AveragePool", ""), ("AveragePool", ", count_include_pad=1")]))
    text = f"kernel_shape={list(kernel)}, strides={list(strides)}, dilations={list(dilations)}, pads={pads}"
    spans = [
        n + a + b - (k - 1) * d - 1 for n, a, b, k, d in zip(size, pads[:2], pads[2:], kernel, dilations, strict=True)
    ]
    last = [-(-n // s) * s for n, s in zip(spans, strides, strict=True)]
    inside = all(at < n + a for at, n, a in zip(last, size, pads, strict=False))  # onnx infers one too many where not
    ceil = draw(st.integers(0, 1)) if inside else 0
    return (1, draw(st.integers(1, 3)), *size), f"{op}<{text}, ceil_mode={ceil}{more}>"


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
@given(st.lists(pools(), min_size=16, max_size=16))
def test_any_window(cases: list[tuple[tuple[int, ...], str]]) -> None:
    model = network(cases)
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "host").run(values), zoo.reference(model, values))
