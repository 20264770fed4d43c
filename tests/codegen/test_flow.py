"""Control flow that can be written out, against onnxruntime; the rest is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import zoo

from spa.codegen.bundle import compile
from spa.errors import Unsupported

pytestmark = pytest.mark.codegen

LOOPS = {
    "loop, state and rows": """g (float[3,4] x) => (float[3,4] y, float[5,3,4] z) <float[4,4] w>
      { n = Constant<value=int64 {5}>() c = Constant<value=bool {1}>()
        y, z = Loop(n, c, x) <body = b (int64 i, bool d, float[3,4] s) => (bool e, float[3,4] t, float[3,4] r)
          { e = Identity(d) m = MatMul(s, w) t = Tanh(m) f = Cast<to=1>(i) r = Add(t, f) }> }""",
    "no condition": """g (float[6] x) => (float[6] y)
      { n = Constant<value=int64 {3}>()
        y = Loop(n, , x) <body = b (int64 i, bool d, float[6] s) => (bool e, float[6] t)
          { e = Constant<value=bool {1}>() t = Exp(s) }> }""",
    "a row of each time": """g (float[7,4] x) => (float[4] y, float[7,4] z)
      { n = Constant<value=int64 {7}>() c = Constant<value=bool {1}>() o = Constant<value_floats=[0.0,0.0,0.0,0.0]>()
        y, z = Loop(n, c, o) <body = b (int64 i, bool d, float[4] s) => (bool e, float[4] t, float[4] r)
          { e = Identity(d) v = Gather(x, i) t = Add(s, v) r = Identity(t) }> }""",
    "scan": """g (float[4] s, float[6,4] x) => (float[4] y, float[6,4] z)
      { y, z = Scan<num_scan_inputs=1, body = b (float[4] p, float[4] v) => (float[4] t, float[4] r)
          { a = Add(p, v) t = Tanh(a) r = Mul(t, v) }>(s, x) }""",
    "branches": """g (bool c, float[3,4] x) => (float[3,4] y)
      { y = If(c) <then_branch = a () => (float[3,4] t) { t = Relu(x) },
                   else_branch = b () => (float[3,4] e) { h = Neg(x) e = Exp(h) }> }""",
}


@pytest.mark.parametrize("name", list(LOOPS))
def test_written_out(name: str) -> None:
    model = zoo.network(LOOPS[name], check=False)
    bundle = None
    for flag in (0, 1):
        values = zoo.feeds(model)
        values |= {"c": np.array(bool(flag))} if "c" in values else {}
        expected = zoo.reference(model, values)
        bundle = bundle or compile(model, "host")
        zoo.assert_same(bundle.run(values), expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LOOPS["loop, state and rows"].replace("{5}", "{500}"), "Loop"),
        (
            LOOPS["loop, state and rows"].replace("e = Identity(d)", "q = ReduceSum<keepdims=0>(s) e = Cast<to=9>(q)"),
            "Loop",
        ),
        (
            """g (bool c, float[3,4] x) => (float[n] y) { y = If(c) <then_branch = a () => (float[4] t)
            { i = Constant<value_ints=[0]>() t = ReduceMax<keepdims=0>(x, i) },
            else_branch = b () => (float[3] e) { j = Constant<value_ints=[1]>() e = ReduceMax<keepdims=0>(x, j) }> }""",
            "If",
        ),
    ],
)
def test_what_depends_on_values_is_refused(text: str, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        compile(zoo.network(text, check=False), "host")
