"""Transposed convolutions as convolutions, against onnxruntime's ConvTranspose: strides, pads, groups, odd shapes, every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.bundle import compile
from spa.codegen.conv_transpose import convolved

pytestmark = pytest.mark.codegen

Array = np.ndarray[Any, Any]


def network(
    shape: tuple[int, ...], outputs: int, kernel: list[int], bias: bool = True, **options: Any
) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weight = random.standard_normal((shape[1], outputs // options.get("group", 1), *kernel)).astype(np.float32)
    weights = [numpy_helper.from_array(weight, "w")]
    weights += [numpy_helper.from_array(random.standard_normal(outputs).astype(np.float32), "b")] if bias else []
    node = helper.make_node("ConvTranspose", ["x", *(w.name for w in weights)], ["y"], kernel_shape=kernel, **options)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    return onnx.shape_inference.infer_shapes(model)


def outcome(model: onnx.ModelProto) -> Array:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return np.asarray(zoo.reference(model, {"x": x})["y"])


def replaced(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    convolved(copy)
    onnx.checker.check_model(copy)
    return copy


def check(model: onnx.ModelProto) -> None:
    other = replaced(model)
    assert "ConvTranspose" not in [n.op_type for n in other.graph.node]
    want = outcome(model)
    np.testing.assert_allclose(outcome(other), want, atol=1e-5 * max(1.0, float(np.abs(want).max())))


CASES: list[tuple[tuple[int, ...], int, list[int], dict[str, Any]]] = [
    ((1, 8, 5, 7), 6, [2, 2], {"strides": [2, 2]}),
    ((1, 8, 5, 7), 6, [4, 4], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 4, 5, 6), 3, [3, 3], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 4, 5, 6), 3, [3, 3], {}),
    ((1, 4, 9, 6), 3, [3, 2], {"dilations": [2, 3], "pads": [1, 0, 2, 1]}),
    ((1, 6, 4, 5), 4, [5, 3], {"strides": [3, 1], "pads": [2, 1, 0, 1], "group": 2}),
    ((1, 6, 4, 5), 6, [4, 4], {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 6}),
    ((1, 4, 5, 5), 2, [3, 3], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 4, 5, 5), 2, [3, 3], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 4, 5, 5), 2, [3, 3], {"strides": [2, 2], "output_shape": [10, 10]}),
    ((1, 4, 1, 1), 2, [4, 4], {}),
    ((1, 4, 11), 2, [16], {"strides": [8], "pads": [4, 4]}),
    ((1, 3, 3, 4, 5), 2, [2, 3, 2], {"strides": [2, 1, 2], "pads": [0, 1, 0, 0, 1, 0]}),
    ((1, 2, 3, 3), 2, [1, 1], {"strides": [3, 3]}),
]


@pytest.mark.parametrize(("shape", "outputs", "kernel", "options"), CASES)
def test_a_transposed_convolution_is_a_convolution(
    shape: tuple[int, ...], outputs: int, kernel: list[int], options: dict[str, Any]
) -> None:
    check(network(shape, outputs, kernel, **options))


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_ones(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))

    def each(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kernel, strides = each(1, 5), each(1, 4)
    begin = [data.draw(st.integers(0, k - 1)) for k in kernel]
    end = [data.draw(st.integers(0, k - 1)) for k in kernel]
    extra = [data.draw(st.integers(0, s - 1)) for s in strides]
    sizes = each(1, 6)
    outs = [
        s * (n - 1) + k + e - b - f for s, n, k, e, b, f in zip(strides, sizes, kernel, extra, begin, end, strict=True)
    ]
    if min(outs) < 1:
        return
    group = data.draw(st.sampled_from([1, 2]))
    model = network(
        (1, 4, *sizes),
        2 * group,
        kernel,
        data.draw(st.booleans()),
        strides=strides,
        pads=begin + end,
        group=group,
        output_padding=extra,
    )
    other = replaced(model)
    want = outcome(model)
    np.testing.assert_allclose(outcome(other), want, atol=1e-5 * max(1.0, float(np.abs(want).max())))


def test_strides_and_dilations_at_once_are_left_alone() -> None:
    model = network((1, 2, 5, 5), 2, [3, 3], strides=[2, 2], dilations=[2, 2])
    assert [n.op_type for n in replaced(model).graph.node] == ["ConvTranspose"]


@pytest.mark.parametrize("target", ["host", "wasm"])
def test_the_kernel_is_that_of_convolutions(target: str) -> None:
    model = network((1, 8, 7, 9), 6, [4, 4], strides=[2, 2], pads=[1, 1, 1, 1])
    bundle = compile(model, target)
    families = [row["family"] for row in bundle.manifest["targets"][target]["kernels"]]
    assert "conv" in families
    x = np.random.default_rng(1).standard_normal((1, 8, 7, 9)).astype(np.float32)
    np.testing.assert_allclose(bundle.run({"x": x}, target)["y"], outcome(model), atol=1e-4)
