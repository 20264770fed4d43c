"""NHWC inside networks: every operator that may be there, ways in and out, and when it is taken; against onnxruntime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import zoo
from layers import all_candidates, emulate, exact
from simulate import lowered, simulated
from test_cuda_kernels import in_blocks, two_of_four

from spa.codegen.cuda import artifact
from spa.codegen.cuda.channels_last import rewritten
from spa.codegen.layer import Layer
from spa.codegen.program import Tensor

pytestmark = pytest.mark.codegen


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """NHWC wherever it can be: these networks are too small for it to pay."""
    monkeypatch.setattr(artifact, "channels_last", lambda model, target: rewritten(model, target)[0])


def check(text: str, precision: str = "fp16", tolerance: float = 3e-3) -> Any:
    model = zoo.network(text)
    gpu, feeds = lowered(model, precision), zoo.feeds(model)
    got = simulated(gpu, feeds)
    for name, expected in zoo.reference(model, feeds).items():
        assert got[name].shape == expected.shape
        assert np.abs(got[name] - expected).max() <= tolerance * np.ptp(expected), name
    return gpu


def ways(gpu: Any) -> Counter[str]:
    """How kernels get at their activations; the names of TVM's."""
    return Counter(
        row["kernel"]
        if row["family"] == "tvm"
        else next((w for w in ("nhwc", "gather", "rows") if w in row["tile"]), "few")
        for row in gpu.rows
    )


RESIDUAL = """g (float[2,3,18,18] x) => (float[2,10] y)
<float[32,3,3,3] a, float[32] ab, float[16,32,1,1] b, float[16] bb, float[16,16,3,3] c, float[32,16,1,1] d, float[32] db,
 float[48,32,3,3] e, float[10,48] f>
{
  p = Conv<strides=[2,2], pads=[1,1,1,1]>(x, a, ab) q = Relu(p) s = Conv(q, b, bb) t = Relu(s)
  u = Conv<pads=[1,1,1,1]>(t, c) v = Relu(u) w = Conv(v, d, db) r = Add(w, q) z = Relu(r)
  m = Conv<strides=[2,2], pads=[0,1,1,0], dilations=[2,1]>(z, e) n = Relu(m) o = GlobalAveragePool(n) h = Flatten(o)
  y = Gemm<transB=1>(h, f)
}"""


def test_a_residual_network(everywhere: None) -> None:
    """The first convolution gathers in NCHW and writes NHWC; nothing is transposed."""
    found = ways(check(RESIDUAL))
    assert found["gather"] == 1 and found["nhwc"] == 2 and found["rows"] == 2
    assert not [name for name in found if "transpose" in name]


OTHERS = {
    "depthwise": """g (float[1,16,9,9] x) => (float[1,24,9,9] y)
      <float[48,16,1,1] a, float[48,1,3,3] b, float[48] bb, float[24,48,1,1] c, float[24] cb>
      { p = Conv(x, a) q = HardSwish(p) r = Conv<pads=[1,1,1,1], group=48>(q, b, bb) s = Relu(r) y = Conv(s, c, cb) }""",
    "strided depthwise": """g (float[2,16,9,8] x) => (float[2,24,5,8] y) <float[16,16,3,3] a, float[16,1,5,3] b, float[24,16,1,1] c>
      { p = Conv<pads=[1,1,1,1]>(x, a) r = Conv<pads=[2,1,2,1], strides=[2,1], group=16>(p, b) y = Conv(r, c) }""",
    "squeeze and excite": """g (float[1,16,8,8] x) => (float[1,16,8,8] y)
      <float[32,16,3,3] a, float[8,32,1,1] b, float[32,8,1,1] c, float[16,32,1,1] d>
      { p = Conv<pads=[1,1,1,1]>(x, a) g = GlobalAveragePool(p) h = Conv(g, b) i = Relu(h) j = Conv(i, c) s = Sigmoid(j)
        q = Mul(p, s) y = Conv(q, d) }""",
    "pools and branches": """g (float[1,16,12,12] x) => (float[1,16,6,6] y)
      <float[16,16,3,3] a, float[24,16,1,1] b, float[16,16,5,5] c, float[16,56,1,1] d>
      { p = Conv<pads=[1,1,1,1]>(x, a) l = Conv(p, b) m = Conv<pads=[2,2,2,2]>(p, c)
        k = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(p) o = Concat<axis=1>(l, m, k) q = Relu(o)
        r = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(q) y = Conv(r, d) }""",
    "constants of channels": """g (float[1,16,6,6] x) => (float[1,16,6,6] y) <float[16,16,3,3] a, float[16,1,1] s, float[1,16,1,1] t, float[16,16,1,1] b>
      { p = Conv<pads=[1,1,1,1]>(x, a) q = Mul(p, s) r = Add(q, t) u = PRelu(r, s) lo = Constant<value_float=-1.5>()
        v = Clip(u, lo) y = Conv(v, b) }""",
    "a pool behind the first": """g (float[1,3,14,14] x) => (float[1,24,8,8] y) <float[16,3,3,3] a, float[16] ab, float[24,16,3,3] b>
      { p = Conv<pads=[1,1,1,1]>(x, a, ab) q = Relu(p) m = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(q)
        y = Conv<pads=[1,1,2,2]>(m, b) }""",
    "mean over pixels": """g (float[2,16,6,6] x) => (float[2,16] y) <float[16,16,3,3] a>
      { p = Conv(x, a) ax = Constant<value_ints=[2,3]>() y = ReduceMean<keepdims=0>(p, ax) }""",
    "others in between": """g (float[1,16,6,6] x) => (float[1,16,12,12] y, float[1,16,6,6] z) <float[16,16,3,3] a, float[16,16,1,1] b>
      { z = Conv<pads=[1,1,1,1]>(x, a) s = Constant<value_floats=[1.0,1.0,2.0,2.0]>()
        e = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(z, , s) r = Relu(e) y = Conv(r, b) }""",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_operators(name: str, precision: str, everywhere: None) -> None:
    found = ways(check(OTHERS[name], precision, 4e-3 if precision == "fp16" else 4e-2))
    assert found["nhwc"] >= 1
    if name == "a pool behind the first":  # its kernel writes NHWC: nothing is transposed on the way
        assert not [k for k in found if k.startswith("transpose")] and found["gather"] == 1


@pytest.mark.parametrize(
    ("pattern", "dtype"), [("dense", "float32"), ("2:4", "float16"), ("2:4", "float32"), ("block16x16", "float16")]
)
def test_every_kernel(pattern: str, dtype: str) -> None:
    """Every tile and format, from wide and narrow pictures. Weights are packed tap by tap, whatever the layout."""
    w = exact(np.random.default_rng(1), (40, 24, 3, 2))
    w = {"dense": lambda w: w, "2:4": two_of_four, "block16x16": lambda w: in_blocks(w, 16, 0.4)}[pattern](w)
    x = exact(np.random.default_rng(2), (1, 24, 6, 7))
    geometry = {"out": (4, 8), "strides": (2, 1), "dilations": (1, 1), "pads": (2, 1), "group": 1}
    pads, strides = [2, 1, 2, 1], [2, 1]
    text = f"g (float[1,24,6,7] x, float[40,24,3,2] w) => (float[A,B,C,D] y) {{ y = Conv<pads={pads}, strides={strides}>(x, w) }}"
    expected = zoo.reference(zoo.network(text), {"x": x, "w": w})["y"].transpose(0, 2, 3, 1)
    tensors = Tensor("x", dtype, (1, 6, 7, 24)), Tensor("w", "float32", w.shape)
    layer = Layer("l", "ConvChannelsLast", geometry, tensors, Tensor("y", "float32", expected.shape), {1: w})
    found = all_candidates(layer, "fp16")
    assert {c.format for c in found} >= {"dense", pattern}
    for candidate in found:
        got = emulate(candidate.make(), layer, {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)).astype(dtype)})
        np.testing.assert_allclose(
            got, expected, atol=2e-5 * np.ptp(expected), err_msg=f"{candidate.format} {candidate.tile}"
        )


def test_taken_where_it_pays() -> None:
    """Three convolutions of many channels against two Transposes; and hardly any work between them."""
    body = "{ p = Conv<pads=[1,1,1,1]>(x, a) q = Conv<pads=[1,1,1,1]>(p, a) y = Conv<pads=[1,1,1,1]>(q, a) }"
    big = lowered(
        zoo.network(f"g (float[16,128,56,56] x) => (float[16,128,56,56] y) <float[128,128,3,3] a> {body}"), "fp16"
    )
    small = lowered(zoo.network(f"g (float[1,16,8,8] x) => (float[1,16,8,8] y) <float[16,16,3,3] a> {body}"), "fp16")
    assert big.pictures == "NHWC" and ways(big)["nhwc"] == 3 and ways(big)["gather"] == 0
    assert small.pictures == "NCHW" and ways(small)["gather"] == 3 and ways(small)["nhwc"] == 0
    exact = lowered(
        zoo.network(f"g (float[16,128,56,56] x) => (float[16,128,56,56] y) <float[128,128,3,3] a> {body}"), "fp32"
    )
    assert ways(exact)["nhwc"] == 0
