"""Transposes that no kernel reads in place against numpy: squares, rows, views behind views, what follows them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from spa.codegen.bundle import compile
from spa.runtime.run import run

pytestmark = pytest.mark.codegen

CASES = {
    "to channels last": "float[1,40,9,11] x | y = Transpose<perm=[0,2,3,1]>(x)",
    "to channels first": "float[2,9,11,40] x | y = Transpose<perm=[0,3,1,2]>(x)",
    "three colours": "float[1,12,14,3] x | y = Transpose<perm=[0,3,1,2]>(x)",
    "few": "float[3,2] x | y = Transpose(x)",
    "of an odd matrix": "float[67,53] x | y = Transpose(x)",
    "last axis stays": "float[2,5,3,18] x | y = Transpose<perm=[0,2,1,3]>(x)",
    "middle of four": "float[2,17,5,6] x | y = Transpose<perm=[3,1,0,2]>(x)",
    "shuffle": """float[1,12,6,7] x | s = Constant<value_ints=[1,2,6,6,7]>() b = Reshape(x, s) t = Transpose<perm=[0,2,1,3,4]>(b)
      f = Constant<value_ints=[1,12,6,7]>() y = Reshape(t, f)""",
    "two behind each other": """float[1,8,12,14] x | s = Constant<value_ints=[1,8,6,2,7,2]>() b = Reshape(x, s) t = Transpose<perm=[0,3,5,2,4,1]>(b)
      f = Constant<value_ints=[2,2,6,7,8]>() g = Reshape(t, f) y = Transpose<perm=[4,0,2,1,3]>(g)""",
    "two, the shape between no view": """float[1,8,12,14] x | s = Constant<value_ints=[1,8,6,2,7,2]>() b = Reshape(x, s)
      t = Transpose<perm=[0,3,5,2,4,1]>(b) f = Constant<value_ints=[4,42,8]>() g = Reshape(t, f) y = Transpose<perm=[2,0,1]>(g)""",
    "slice behind": """float[20,30] x | o = Constant<value_ints=[2]>() e = Constant<value_ints=[17]>() a = Constant<value_ints=[1]>()
      i = Constant<value_ints=[3]>() s = Slice(x, o, e, a, i) y = Transpose(s)""",
    "residual": "float[1,6,7,20] x, float[1,20,6,7] z | t = Transpose<perm=[0,3,1,2]>(x) a = Add(t, z) y = Relu(a)",
    "per channel": "float[1,20,6,7] x <float[20] w> | t = Transpose<perm=[0,2,3,1]>(x) a = Mul(t, w) y = Sigmoid(a)",
    "expanded": """float[1,3,1,20] x | s = Constant<value_ints=[2,3,5,20]>() e = Expand(x, s) y = Transpose<perm=[1,2,3,0]>(e)""",
    "integers": "int64[4,6,5] x | y = Transpose<perm=[2,0,1]>(x)",
}


def network(cases: list[str]) -> Any:
    """Every case under names of its own: behind each letter its number."""
    inputs, stored, bodies = [], [], []
    for i, case in enumerate(cases):
        head, body = (part.strip() for part in case.split("|"))
        inner = head.partition("<")[2].rstrip("> ")
        names = [
            word.split()[-1] for part in (head.partition("<")[0], inner) for word in part.split("], ") if word.strip()
        ]
        names = [*names, *[word for word in body.split() if len(word) == 1 and word.isalpha()]]

        def renamed(text: str, i: int = i, names: list[str] = names) -> str:
            return re.sub(rf"(?<![\w<])({'|'.join(sorted(set(names)))})(?![\w<])", rf"\g<1>_{i}", text)

        inputs.append(renamed(head.partition("<")[0].strip()))
        stored += [renamed(inner)] if inner else []
        bodies.append(renamed(body))
    outputs = ", ".join(f"{'int64' if 'int64' in case else 'float'}[] y_{i}" for i, case in enumerate(cases))
    weights = f"<{', '.join(stored)}>" if stored else ""
    model = zoo.network(f"g ({', '.join(inputs)}) => ({outputs}) {weights} {{ {' '.join(bodies)} }}", check=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return zoo.onnx.shape_inference.infer_shapes(model, strict_mode=True)


@pytest.fixture(scope="module")
def everything() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = network(list(CASES.values()))
    values = zoo.feeds(model)
    return model, values, zoo.reference(model, values)


@zoo.everywhere
def test_everywhere(everything: Any, place: zoo.Place) -> None:
    model, values, expected = everything
    bundle = place.compile(model)
    rows = bundle.manifest["targets"][place.target]["kernels"]
    assert [row["kernel"] for row in rows if row["family"] != "moves"] == ["transpose"]  # of integers
    assert len(rows) == len(CASES) + 1  # two behind each other are one, where the shape between is a view
    zoo.assert_same(place.run(bundle, values), expected)


def test_threads_give_the_same_bits() -> None:
    model = network(["float[1,64,40,41] x | y = Transpose<perm=[0,2,3,1]>(x)", CASES["two behind each other"]])
    values = zoo.feeds(model)
    bundle = compile(model, "host")
    alone, shared = (run(bundle.path, values, "host", threads=n) for n in (1, 3))
    for name, value in alone.items():
        np.testing.assert_array_equal(value, shared[name])


@st.composite
def turns(draw: Any) -> str:
    shape = draw(st.lists(st.integers(1, 20), min_size=2, max_size=5).filter(lambda s: int(np.prod(s)) < 20000))
    return f"float{shape} x | y = Transpose<perm={draw(st.permutations(range(len(shape))))}>(x)"


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
@given(st.lists(turns(), min_size=12, max_size=12))
def test_any_order_of_axes(cases: list[str]) -> None:
    model = network(cases)
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "host").run(values), zoo.reference(model, values))
