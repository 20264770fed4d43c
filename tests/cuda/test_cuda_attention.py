"""Products of two activations: how they may lie in memory, every tile, and attention as exporters write it; against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from onnx import TensorProto, numpy_helper
from simulate import lowered, simulated

from spa.codegen.cuda import table

pytestmark = pytest.mark.codegen


def check(text: str, precision: str = "fp16", tolerance: float = 2e-3) -> Any:
    model = zoo.network(text)
    for t in model.graph.initializer:  # scores of about one: softmax must not decide by the last bit
        if t.data_type == TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) / 8, t.name))
    gpu, feeds = lowered(model, precision), zoo.feeds(model)
    got = simulated(gpu, feeds)
    for name, expected in zoo.reference(model, feeds).items():
        assert np.abs(got[name] - expected).max() <= tolerance * np.ptp(expected), name
    return gpu


def families(gpu: Any) -> list[str]:
    return [row["family"] for row in gpu.rows]


# how a and b lie in memory -> operators that make them, for [3, 33, 40] x [3, 40, 50]
LIES = {
    "as they are": "(float[3,33,40] x, float[3,40,50] z) { y = MatMul(x, z) }",
    "b turned": "(float[3,33,40] x, float[3,50,40] z) { b = Transpose<perm=[0,2,1]>(z) y = MatMul(x, b) }",
    "a turned": "(float[3,40,33] x, float[3,40,50] z) { a = Transpose<perm=[0,2,1]>(x) y = MatMul(a, z) }",
    "odd": "(float[3,7,9] x, float[3,9,21] z) { y = MatMul(x, z) }",
    "odd, turned": "(float[3,7,9] x, float[3,21,9] z) { b = Transpose<perm=[0,2,1]>(z) y = MatMul(x, b) }",
    "shared b": "(float[2,3,16,24] x, float[2,1,24,8] z) { y = MatMul(x, z) }",
    "a slice": """(float[3,33,44] x, float[3,40,50] z) { s = Constant<value_ints=[4]>() e = Constant<value_ints=[44]>()
      o = Constant<value_ints=[2]>() a = Slice(x, s, e, o) y = MatMul(a, z) }""",
    "every other": """(float[3,33,40] x, float[3,80,50] z) { s = Constant<value_ints=[0]>() e = Constant<value_ints=[80]>()
      o = Constant<value_ints=[1]>() t = Constant<value_ints=[2]>() b = Slice(z, s, e, o, t) y = MatMul(x, b) }""",
    "in the middle": """(float[2,33,3,16] x, float[2,30,3,16] z) { a = Transpose<perm=[0,2,1,3]>(x)
      b = Transpose<perm=[0,2,3,1]>(z) p = MatMul(a, b) h = Constant<value_float=0.25>() y = Mul(p, h) }""",
    "steps behind": """(float[2,33,40] x, float[2,40,24] z, float[2,33,24] r, float[1,33,24] m) <float[24] v>
      { p = MatMul(x, z) q = Add(p, m) s = Mul(q, v) t = Tanh(s) y = Add(t, r) }""",
    "written turned": "(float[2,3,17,16] x, float[2,3,16,8] z) { p = MatMul(x, z) y = Transpose<perm=[0,2,1,3]>(p) }",
}


def network(lies: str) -> str:
    inputs, body = lies.split(")", 1)
    axes = "float[A,B,C,D]" if lies.count("perm=[0,2,1,3]") or "[2,3,16,24]" in lies else "float[A,B,C]"
    return f"g {inputs}) => ({axes} y) {body.lstrip()}"


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_operands_read_where_they_lie(name: str, precision: str) -> None:
    gpu = check(network(LIES[name]), precision, 2e-3 if precision == "fp16" else 2e-2)
    assert families(gpu) == ["batched"]


@pytest.mark.parametrize("tile", table.BATCHED, ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["as they are", "b turned", "odd"])
def test_every_tile(tile: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BATCHED", (tile,))
    gpu = check(network(LIES[name]))
    assert gpu.rows[0]["tile"].startswith(tile.name)


# self-attention of 4 heads of 16, as PyTorch's exporter writes it
HEADS = """g (float[2,20,64] x, float[2,1,1,20] mask) => (float[2,20,64] y)
<float[64,64] wq, float[64,64] wk, float[64,64] wv, float[64,64] wo, float[64] bq>
{
  s = Constant<value_ints=[2,20,4,16]>() u = Constant<value_ints=[2,20,64]>() root = Constant<value_float=4.0>()
  q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, s) q = Transpose<perm=[0,2,1,3]>(q2)
  k0 = MatMul(x, wk) k1 = Reshape(k0, s) k = Transpose<perm=[0,2,3,1]>(k1)
  v0 = MatMul(x, wv) v1 = Reshape(v0, s) v = Transpose<perm=[0,2,1,3]>(v1)
  a0 = MatMul(q, k) a1 = Div(a0, root) a = Add(a1, mask) p = Softmax<axis=-1>(a)
  o0 = MatMul(p, v) o1 = Transpose<perm=[0,2,1,3]>(o0) o = Reshape(o1, u) y = MatMul(o, wo)
}"""

# 4 heads that share 2 keys and values
GROUPED = """g (float[1,12,64] x) => (float[1,4,12,16] y) <float[64,64] wq, float[64,32] wk, float[64,32] wv>
{
  s = Constant<value_ints=[1,12,4,16]>() g = Constant<value_ints=[1,12,2,16]>() h = Constant<value_ints=[1,4,12,16]>()
  e = Constant<value_ints=[1,2,2,12,16]>() one = Constant<value_ints=[2]>()
  q0 = MatMul(x, wq) q1 = Reshape(q0, s) q = Transpose<perm=[0,2,1,3]>(q1)
  k0 = MatMul(x, wk) k1 = Reshape(k0, g) k2 = Transpose<perm=[0,2,1,3]>(k1) k3 = Unsqueeze(k2, one) k4 = Expand(k3, e)
  k5 = Reshape(k4, h) k = Transpose<perm=[0,1,3,2]>(k5)
  v0 = MatMul(x, wv) v1 = Reshape(v0, g) v2 = Transpose<perm=[0,2,1,3]>(v1) v3 = Unsqueeze(v2, one) v4 = Expand(v3, e)
  v = Reshape(v4, h) a = MatMul(q, k) p = Softmax<axis=-1>(a) y = MatMul(p, v)
}"""


@pytest.mark.parametrize("text", [HEADS, GROUPED], ids=["heads", "grouped"])
def test_attention(text: str) -> None:
    """Nothing is copied for heads, and all that products read is narrow: only softmax is TVM's."""
    gpu = check(text)
    found = families(gpu)
    assert found.count("batched") == 2 and found.count("tvm") == 1
    assert [row["kernel"] for row in gpu.rows if row["family"] == "tvm"] == ["fused_softmax_cast"]


def test_one_position_against_many() -> None:
    """Decoding: one row of queries, keys of 40 positions."""
    text = "g (float[1,4,1,16] q, float[1,4,40,16] k) => (float[1,4,1,40] y) { t = Transpose<perm=[0,1,3,2]>(k) y = MatMul(q, t) }"
    assert check(text).rows[0]["tile"].startswith("16x")


def test_grouped_heads_in_fp32_are_not_copied_either() -> None:
    gpu = check(GROUPED, "fp32", 1e-5)
    assert not [row["kernel"] for row in gpu.rows if "broadcast" in row["kernel"]]
