"""How values lie between kernels: narrow where nothing is lost, written where a Transpose would put them; against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, numpy_helper
from simulate import lowered, simulated

from spa.codegen.cuda.artifact import Gpu

pytestmark = pytest.mark.codegen


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network in float16: weights, inputs, outputs."""
    for t in model.graph.initializer:
        if t.data_type == TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    for v in [*model.graph.input, *model.graph.output]:
        v.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def families(gpu: Gpu) -> list[str]:
    return [row["family"] for row in gpu.rows]


def inner(gpu: Gpu) -> list[int]:
    """Bytes of the values between kernels."""
    results = {ref.index for ref in gpu.program.results if ref.kind == "value"}
    return [size for i, size in enumerate(gpu.program.values) if i not in results]


def check(model: onnx.ModelProto, precision: str, tolerance: float) -> Gpu:
    gpu = lowered(model, precision)
    feeds = zoo.feeds(model)
    got = simulated(gpu, feeds)
    for name, expected in zoo.reference(model, feeds).items():
        assert got[name].dtype == expected.dtype and got[name].shape == expected.shape
        error = np.abs(got[name].astype(np.float64) - expected.astype(np.float64)).max()
        assert error <= tolerance * np.ptp(expected.astype(np.float64)), f"{name}: {error}"
    return gpu


CHAIN = """g (float[1,16,12,12] x) => (float[1,40,12,12] y)
<float[32,16,3,3] a, float[32] ab, float[32,1,3,3] d, float[48,32,1,1] b, float[40,48,1,1] c>
{ p = Conv<pads=[1,1,1,1]>(x, a, ab) r = Relu(p) q = Conv<pads=[1,1,1,1], group=32>(r, d) s = Conv(q, b) t = Relu(s) y = Conv(t, c) }"""
PIXELS = 144


@pytest.mark.parametrize(("precision", "tolerance", "item"), [("fp16", 3e-3, 2), ("bf16", 3e-2, 2), ("fp32", 1e-5, 4)])
def test_what_only_products_read_is_stored_as_they_multiply(precision: str, tolerance: float, item: int) -> None:
    gpu = check(zoo.network(CHAIN), precision, tolerance)
    assert inner(gpu) == [c * PIXELS * item for c in (32, 32, 48)]


def test_a_residual_stays_wide() -> None:
    text = """g (float[1,32,8,8] x) => (float[1,32,8,8] y) <float[32,32,1,1] a, float[32,32,1,1] b, float[32,32,1,1] c>
    { p = Conv(x, a) q = Conv(p, b) r = Relu(q) s = Conv(r, c) y = Add(s, p) }"""
    gpu = check(zoo.network(text), "fp16", 3e-3)
    assert sorted(inner(gpu)) == [32 * 64 * 2, 32 * 64 * 4]


HALF_NETWORKS = {
    "chain": CHAIN,
    "rows": """g (float[24,64] x) => (float[24,32] y) <float[64,48] a, float[48] ab, float[48,32] w>
      { f = MatMul(x, a) h = Add(f, ab) r = Tanh(h) y = MatMul(r, w) }""",
    "residual": """g (float[24,64] x) => (float[24,64] y) <float[64,64] a, float[64,64] b, float[64,64] c>
      { p = MatMul(x, a) q = MatMul(p, b) r = Add(q, p) s = MatMul(r, c) y = Add(s, x) }""",
}


@pytest.mark.parametrize("name", HALF_NETWORKS)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_networks_in_half_precision(name: str, precision: str) -> None:
    """fp16 in, fp16 out, fp16 between kernels: nothing is cast on the way, and no kernel but products runs."""
    gpu = check(halved(zoo.network(HALF_NETWORKS[name])), precision, 4e-3)
    assert "tvm" not in families(gpu)
    assert {p.dtype for p in (*gpu.program.inputs, *gpu.program.outputs)} == {"float16"}
    if precision == "fp16" and name == "residual":
        assert set(inner(gpu)) == {24 * 64 * 2}


TRANSPOSED: dict[str, tuple[str, list[str]]] = {
    "detection head": (
        """g (float[2,16,6,5] x) => (float[2,150,4] y) <float[20,16,3,3] w, float[20] b>
        { c = Conv<pads=[1,1,1,1]>(x, w, b) t = Transpose<perm=[0,2,3,1]>(c)
          s = Constant<value_ints=[2,150,4]>() y = Reshape(t, s) }""",
        ["tensor"],
    ),
    "patch embedding": (
        """g (float[1,3,16,16] x) => (float[1,16,24] y) <float[24,3,4,4] w, float[24] b, float[24] e>
        { c = Conv<strides=[4,4]>(x, w, b) s = Constant<value_ints=[1,24,16]>() r = Reshape(c, s)
          t = Transpose<perm=[0,2,1]>(r) y = Add(t, e) }""",
        ["tensor", "tvm"],
    ),
    "depthwise": (
        """g (float[1,8,6,6] x) => (float[1,6,6,8] y) <float[8,1,3,3] w>
        { c = Conv<pads=[1,1,1,1], group=8>(x, w) r = Relu(c) y = Transpose<perm=[0,2,3,1]>(r) }""",
        ["depthwise"],
    ),
    "signal": (
        """g (float[1,16,20] x) => (float[1,20,24] y) <float[24,16,3] w>
        { c = Conv<pads=[1,1]>(x, w) y = Transpose<perm=[0,2,1]>(c) }""",
        ["tensor"],
    ),
    "rows": (
        """g (float[2,10,32] x) => (float[10,2,24] y) <float[32,24] w, float[24] b>
        { p = MatMul(x, w) q = Add(p, b) y = Transpose<perm=[1,0,2]>(q) }""",
        ["tensor"],
    ),
    "windows": (  # of a Swin transformer: rows change places
        """g (float[1,64,32] x) => (float[4,16,32] y) <float[32,32] w>
        { p = MatMul(x, w) s = Constant<value_ints=[1,2,4,2,4,32]>() r = Reshape(p, s) t = Transpose<perm=[0,1,3,2,4,5]>(r)
          u = Constant<value_ints=[4,16,32]>() y = Reshape(t, u) }""",
        ["tensor"],
    ),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposes_behind_kernels(name: str) -> None:
    text, expected = TRANSPOSED[name]
    assert families(check(zoo.network(text), "fp16", 3e-3)) == expected
    check(zoo.network(text), "fp32", 1e-5)


@pytest.mark.parametrize("pixels", [(4, 4), (6, 6), (2, 5), (5, 5)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_narrow_pixels_of_pointwise_convolutions(pixels: tuple[int, int], batch: int) -> None:
    """16, 8, 4 bytes at a time, and one by one."""
    h, w = pixels
    text = f"""g (float[{batch},24,{h},{w}] x) => (float[{batch},20,{h},{w}] y) <float[20,24,1,1] w, float[20] b>
    {{ c = Conv(x, w, b) y = Relu(c) }}"""
    gpu: Any = check(halved(zoo.network(text)), "fp16", 2e-3)
    count = {(4, 4): 16, (6, 6): 8, (2, 5): 4}.get(pixels)
    assert (f", {count}" in gpu.device.source) or count is None


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 3e-3), ("bf16", 4e-2)])
def test_what_others_write_for_products_is_rounded_there(precision: str, tolerance: float) -> None:
    """A normalisation whose result passes a Reshape on its way to two products: rounded by the kernel that makes it."""
    text = """g (float[2,12,32] x) => (float[24,48] y, float[24,16] z) <float[32,48] a, float[32,16] b, float[32] s, float[32] t>
    { n = LayerNormalization(x, s, t) c = Constant<value_ints=[24,32]>() m = Reshape(n, c) y = MatMul(m, a) z = MatMul(m, b) }"""
    gpu = check(zoo.network(text), precision, tolerance)
    assert sorted(families(gpu)) == ["tensor", "tensor", "tvm"]
    assert inner(gpu) == [2 * 12 * 32 * 2]
