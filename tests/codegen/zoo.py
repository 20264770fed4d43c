"""Small networks as ONNX text, random feeds for them, and what onnxruntime says without its optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from spa.codegen.bundle import Bundle, compile
from spa.runtime.toolchain import find, is_aarch64, runs_here

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-4  # of the output's spread


CNN = """cnn (float[1,3,16,16] x) => (float[1,5] y)
<float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[5,8] w3, float[5] b3>
{
  c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1], group=8>(r1, w2)
  s2 = Sigmoid(c2)
  a2 = Add(s2, r1)
  g = GlobalAveragePool(a2)
  f = Flatten(g)
  y = Gemm<transB=1>(f, w3, b3)
}"""

NETWORKS = {
    "cnn": CNN,
    "batchnorm": """g (float[1,4,8,8] x) => (float[1,6,8,8] y)
      <float[6,4,1,1] w, float[6] scale, float[6] shift, float[6] mean, float[6] positive_var>
    { c = Conv(x, w)  n = BatchNormalization(c, scale, shift, mean, positive_var)  y = Relu(n) }""",
    "clip_pool": """g (float[2,4,9,9] x) => (float[2,4,5,5] y)
    { lo = Constant<value_float=0.0>()  hi = Constant<value_float=0.5>()  c = Clip(x, lo, hi)
      p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)
      y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(p) }""",
    "attention": """g (float[1,6,16] x) => (float[1,6,16] y)
      <float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16] s, float[16] b>
    { n = LayerNormalization(x, s, b)  q = MatMul(n, wq)  k = MatMul(n, wk)  v = MatMul(n, wv)
      kt = Transpose<perm=[0,2,1]>(k)  a = MatMul(q, kt)  p = Softmax<axis=-1>(a)  o = MatMul(p, v)  y = Add(o, x) }""",
    "maths": """g (float[3,40] x) => (float[3,40] y)
    { a = Tanh(x)  b = Erf(x)  c = Exp(a)  two = Constant<value_float=1.7>()  d = Pow(c, two)  e = Sqrt(d)  f = Sin(e)
      h = Add(b, f)  i = Log(d)  j = Softplus(i)  y = Mul(h, j) }""",
    "celu": "g (float[2,20] x) => (float[2,20] y) { y = Celu<alpha=1.5>(x) }",
    "cumsum": """g (float[3,7] x) => (float[3,7] a, float[3,7] b)
    { one = Constant<value=int64 {1}>() zero = Constant<value=int64 {0}>()
      a = CumSum(x, one) b = CumSum<exclusive=1, reverse=1>(x, zero) }""",
    "topk": """g (float[2,9,3] x) => (float[2,4,3] v, int64[2,4,3] i, float[2,9,2] w)
    { k = Constant<value_ints=[4]>() two = Constant<value_ints=[2]>() r = Round(x)
      v, i = TopK<axis=1>(r, k) w, j = TopK<largest=0>(x, two) }""",
    "lp": """g (float[3,8] x) => (float[3,8] a, float[3,8] b)
    { a = LpNormalization<axis=-1, p=2>(x) r = Relu(x) b = LpNormalization<axis=0, p=1>(r) }""",
    "blocks": """g (float[2,18,24] x, float[1,12,9] z) => (float[2,3,7,8] y, float[1,2,7,6] w)
    { i = Constant<value_ints=[7,8]>() b = Constant<value_ints=[3,2]>() y = Col2Im<dilations=[1,2], strides=[2,1], pads=[1,0,1,0]>(x, i, b)
      j = Constant<value_ints=[7,6]>() c = Constant<value_ints=[3,2]>() w = Col2Im<strides=[2,2]>(z, j, c) }""",
    "scatter": """g (float[5,4] x, int64[3,1] i, float[3,4] u) => (float[5,4] y, float[5,4] z)
    { y = ScatterND<reduction="add">(x, i, u) c = Constant<value=int64[1,4] {1,0,3,1}>() v = Constant<value=float[1,4] {1.,2.,3.,4.}>()
      z = ScatterElements<axis=0>(x, c, v) }""",
    "shapes": """g (float[2,3,4] x) => (float[4,6] y, float[2,1,4] z)
    { s = Shape(x)  i = Constant<value_ints=[2]>()  d = Gather(s, i)  m = Constant<value_ints=[-1]>()
      t = Concat<axis=0>(d, m)  p = Transpose<perm=[2,0,1]>(x)  y = Reshape(p, t)
      ax = Constant<value_ints=[1]>()  z = ReduceMax(x, ax) }""",
    "split": """g (float[1,6,5] x) => (float[1,2,5] a, float[1,4,5] b)
    { n = Constant<value_ints=[2,4]>()  p, q = Split<axis=1>(x, n)  a = Neg(p)  b = Abs(q) }""",
    "integers": """g (int64[3,4] x) => (float[3,4,6] y, bool[3,4] z) <float[10,6] table>
    { y = Gather(table, x)  two = Constant<value_int=2>()  z = Greater(x, two) }""",
    "passthrough": """g (float[2,3] x) => (float[2,3] a, float[3,2] b, float[2] c)
    { a = Identity(x)  s = Constant<value_ints=[3,2]>()  b = Reshape(x, s)  c = Constant<value_floats=[1.0,2.0]>() }""",
    "twice": "g (float[2,3] x) => (float[2,3] a, float[2,3] b) { a = Relu(x)  b = Identity(a) }",
    "function": """g (float[4] x) => (float[4] y) { y = own.twice(x) }
    <domain: "own", opset_import: ["" : 18]> twice (x) => (y) { a = Add(x, x)  y = Neg(a) }""",
}


def network(text: str, *, opset: int = 18, ir_version: int = 8, check: bool = True) -> onnx.ModelProto:
    """The network, its initializers filled with random values (names with `positive` positive)."""
    own = ', "own" : 1' if "own." in text else ""
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{own}]>\n' + text)
    random = np.random.default_rng(7)
    for value in model.graph.value_info:  # declared without a value: a weight
        values = random.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        values = np.abs(values) + np.float32(0.5) if "positive" in value.name else values
        model.graph.initializer.append(numpy_helper.from_array(values, value.name))
    del model.graph.value_info[:]
    if check:
        onnx.checker.check_model(model)
    return model


def feeds(
    model: onnx.ModelProto, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    weights = {t.name for t in model.graph.initializer}
    result: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        shape = (shapes or {}).get(value.name) or tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        draw = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 4, shape)
        result[value.name] = draw.astype(dtype)
    return result


def reference(model: onnx.ModelProto, values: Mapping[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(values)), strict=True))


def runs(level: str) -> bool:
    """Whether this machine has the x86-64 level."""
    return runs_here("x86_64-linux-gnu", level)


@dataclass(frozen=True)
class Place:
    """Where kernels are tried: a target, for the host of a level of x86-64, and what runs it."""

    target: str
    level: str | None = None
    engine: str | None = None

    def __str__(self) -> str:
        return self.level or self.engine or self.target

    def compile(self, model: onnx.ModelProto, **options: Any) -> Bundle:
        """Skips, with the reason, where there is nothing that runs it."""
        if self.level is not None and (is_aarch64() or not runs(self.level)):
            pytest.skip(f"this machine is below {self.level}")
        if self.target == "arm" and not is_aarch64() and find("qemu-aarch64") is None:
            pytest.skip("qemu-aarch64 is not installed")
        if self.engine is not None and find(self.engine) is None:
            pytest.skip(f"{self.engine} is not installed")
        return compile(model, self.target, host_level=self.level, **options)

    def run(self, bundle: Bundle, values: Mapping[str, Array]) -> dict[str, Array]:
        return bundle.run(values, self.target, engine=self.engine)


HOSTS = tuple(Place("host", level=f"x86-64-v{n}") for n in (4, 3, 2))
ELSEWHERE = (Place("arm"), *(Place("wasm", engine=engine) for engine in ("wasmtime", "node")))
everywhere = pytest.mark.parametrize("place", [*HOSTS, *ELSEWHERE], ids=str)


def assert_same(got: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert list(got) == list(expected)
    for name, want in expected.items():
        assert got[name].dtype == want.dtype and got[name].shape == want.shape, name
        if want.dtype.kind != "f":
            assert (got[name] == want).all(), name
            continue
        spread = max(float(np.ptp(want)), float(np.abs(want).max()), 1e-30)
        assert float(np.abs(got[name] - want).max()) / spread < TOLERANCE, name
