"""Sums in place of one of their terms: networks with residual additions need less memory and say the same."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import zoo
from onnx import ModelProto, numpy_helper, parser

from spa.codegen import lower
from spa.codegen.bundle import compile
from spa.codegen.plan_memory import plan_memory
from spa.runtime.load import target_of
from spa.runtime.run import open_engine

pytestmark = pytest.mark.codegen

PICTURES = """<ir_version: 8, opset_import: ["" : 17]>
residual (float[1,16,SIZE,SIZE] x) => (float[1,64,1,1] y) {
  a = Conv(x, expand)
  b = Conv(a, reduce)
  c = Conv<pads=[1,1,1,1]>(b, w3)
  d = Conv(c, expand)
  e = Add(d, a)
  f = Relu(e)
  g = Conv(f, thin)
  h = Add(f, g)
  i = Conv(h, reduce)
  j = Conv(i, expand)
  k = Sigmoid(h)
  l = Mul(k, j)
  y = GlobalAveragePool(l)
}"""
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
residual (float[1,ROWS,64] x) => (float[1,ROWS,64] y) {
  n = LayerNormalization<axis=-1>(x, scale)
  a = MatMul(n, square)
  q = MatMul(a, square)
  t = Transpose<perm=[0,2,1]>(a)
  s = MatMul(q, t)
  p = Softmax<axis=-1>(s)
  m = MatMul(p, a)
  b = MatMul(m, thin)
  r = Add(b, a)
  u = LayerNormalization<axis=-1>(r, scale)
  v = MatMul(u, wide)
  w = Relu(v)
  o = MatMul(w, narrow)
  z = Add(o, u)
  l = LayerNormalization<axis=-1>(z, scale)
  y = MatMul(l, square)
}"""


def network(text: str, sizes: dict[str, tuple[int, ...]]) -> ModelProto:
    model = parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in sizes.items():
        weight = random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        if name == "thin":
            weight = weight * (random.random(shape) < 0.1)
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    return model


def pictures(size: int) -> ModelProto:
    sizes = {"expand": (64, 16, 1, 1), "reduce": (16, 64, 1, 1), "w3": (16, 16, 3, 3), "thin": (64, 64, 1, 1)}
    return network(PICTURES.replace("SIZE", str(size)), sizes)


def text(rows: int) -> ModelProto:
    sizes = {"scale": (64,), "square": (64, 64), "thin": (64, 64), "wide": (64, 256), "narrow": (256, 64)}
    return network(TEXT.replace("ROWS", str(rows)), sizes)


# pictures and rows that fill vectors, and such that end in the middle of one: what is computed twice there must not read itself
MODELS = {"32x32": pictures(32), "7x7": pictures(7), "11x11": pictures(11), "64 rows": text(64), "37 rows": text(37)}


@pytest.fixture
def arenas(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Bytes of the arena of each compilation: with everything apart, and as it is."""
    seen = []

    def planned(program: Any, scratch: Any, in_place: Any) -> Any:
        layout = plan_memory(program, scratch, in_place)
        seen.append((plan_memory(program, scratch).arena_bytes, layout.arena_bytes))
        return layout

    monkeypatch.setattr(lower, "plan_memory", planned)
    return seen


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("place", [zoo.HOSTS[0], zoo.HOSTS[-1], *zoo.ELSEWHERE[:2]], ids=str)
def test_same_results_in_less_memory(arenas: list[tuple[int, int]], name: str, place: zoo.Place) -> None:
    model = MODELS[name]
    values = zoo.feeds(model)
    bundle = place.compile(model, use_cache=False)
    zoo.assert_same(place.run(bundle, values), zoo.reference(model, values))
    ((apart, together),) = arenas
    assert together <= apart
    if name in ("32x32", "64 rows"):
        assert together < apart


def test_threads_too() -> None:
    for model in (MODELS["32x32"], MODELS["37 rows"]):
        values = zoo.feeds(model)
        bundle = compile(model, "host")
        one = bundle.run(values)
        engine = open_engine(target_of(bundle.path, "host"), threads=2)
        try:
            for _ in range(3):
                for key, value in engine.run(values).items():
                    assert (value.view(np.int32) == one[key].view(np.int32)).all()
        finally:
            engine.close()


def test_the_memory_that_is_told_is_what_the_library_asks_for() -> None:
    model = MODELS["32x32"]
    bundle = compile(model, "host")
    facts = bundle.manifest["targets"]["host"]
    path = bundle.path / "host" / facts["library"]
    library = ctypes.CDLL(str(path))

    def asked(what: str, *arguments: int) -> int:
        function = getattr(library, f"{facts['prefix']}_{what}")
        function.restype = ctypes.c_size_t
        return int(function(*arguments))

    tensors = asked("input_bytes", 0) + asked("output_bytes", 0)
    assert facts["peak_bytes"] == path.stat().st_size + asked("instance_bytes") + tensors
    assert facts["thread_bytes"] > 0  # each packs pixels for itself
