"""Shapes: chains of Shape, Gather and Concat are numbers; what varies with a symbol is dynamic."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_text import parse, run

from spa.model import Model
from spa.shapes import infer

CHAIN = """agraph (float[N,3,H,8] x) => (float[N,M,8] y) {
  s = Shape(x)
  zero = Constant<value_ints=[0]>()
  n = Gather<axis=0>(s, zero)
  minus = Constant<value_ints=[-1]>()
  eight = Constant<value_ints=[8]>()
  t = Concat<axis=0>(n, minus, eight)
  y = Reshape(x, t)
}"""


def by_name(
    model: Model, sizes: dict[str, int] | None = None
) -> dict[str, tuple[tuple[int, ...] | None, tuple[bool, ...]]]:
    shapes = infer(model.ir, sizes)
    return {v.name or "": (s, shapes.dynamic[v]) for v, s in shapes.shape.items()}


def test_symbols_make_axes_dynamic_and_chains_carry_them() -> None:
    found = by_name(parse(CHAIN))
    shape, dynamic = found["y"]
    assert dynamic == (True, True, False) and shape is not None and shape[2] == 8
    assert found["t"] == ((3,), (False,))


def test_fixed_sizes_are_used() -> None:
    found = by_name(parse(CHAIN), {"N": 5, "H": 7})
    assert found["y"] == ((5, 21, 8), (False, False, False))


@pytest.mark.parametrize("sizes", [{"N": 1, "H": 4}, {"N": 3, "H": 9}])
def test_inference_agrees_with_onnxruntime(sizes: dict[str, int]) -> None:
    model = parse(CHAIN)
    x = np.zeros((sizes["N"], 3, sizes["H"], 8), np.float32)
    assert run(model, {"x": x})[0].shape == by_name(model, sizes)["y"][0]


def test_sizes_that_depend_on_data_are_dynamic() -> None:
    found = by_name(parse("agraph (float[4,5] x) => (int64[2,K] y) { y = NonZero(x) }"))
    assert found["y"][1] == (False, True)


def test_arithmetic_on_symbols_in_declared_shapes() -> None:
    model = parse("agraph (float[N,3] x, float[M,3] z) => (float[K,3] y) { y = Concat<axis=0>(x, z) }")
    shapes = infer(model.ir, {"N": 2, "M": 6})
    assert shapes.shape[model.ir.graph.outputs[0]] == (8, 3)
