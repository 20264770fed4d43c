"""Minimal filtering against onnxruntime without optimisations: sizes that tiles do not divide, pads, bands, batches, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spa.codegen.bundle import compile
from spa.codegen.kernels import conv, winograd
from spa.codegen.kernels.isa import AVX512, SIMD128
from spa.codegen.kernels.window import Window
from spa.runtime.run import run

pytestmark = pytest.mark.codegen

# (batch, channels, height, width), outputs, attributes
CASES: list[tuple[tuple[int, int, int, int], int, str]] = [
    ((2, 8, 8, 8), 12, "pads=[1,1,1,1]"),
    ((1, 5, 9, 13), 7, "pads=[1,1,1,1]"),
    ((1, 3, 7, 6), 4, "pads=[1,1,1,1]"),
    ((1, 1, 5, 33), 1, "pads=[1,1,1,1]"),
    ((1, 4, 20, 19), 3, ""),
    ((1, 4, 12, 10), 6, "pads=[2,0,1,2]"),
    ((1, 2, 3, 70), 5, 'auto_pad="SAME_UPPER"'),
    ((1, 9, 33, 20), 17, "pads=[1,1,1,1]"),
]


def network(cases: list[tuple[tuple[int, int, int, int], int, str]]) -> Any:
    inputs = ", ".join(f"float{list(shape)} x{i}" for i, (shape, _, _) in enumerate(cases))
    outputs = ", ".join(f"float[] y{i}" for i in range(len(cases)))
    weights = ", ".join(f"float[{m},{shape[1]},3,3] w{i}, float[{m}] b{i}" for i, (shape, m, _) in enumerate(cases))
    body = " ".join(f"c{i} = Conv<{a}>(x{i}, w{i}, b{i}) y{i} = Relu(c{i})" for i, (_, _, a) in enumerate(cases))
    body = body.replace("Conv<>", "Conv")
    model = zoo.network(f"g ({inputs}) => ({outputs}) <{weights}> {{ {body} }}", check=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is possible at all, in bands of two rows of tiles at most."""
    real = winograd.choice

    def choice(*arguments: Any) -> tuple[float, int] | None:
        found = real(*arguments)
        return None if found is None else (0.0, min(found[1], 2))

    monkeypatch.setattr(conv.winograd, "choice", choice)


@pytest.mark.usefixtures("always")
@zoo.everywhere
def test_odd_shapes(place: zoo.Place) -> None:
    model = network(CASES)
    values = zoo.feeds(model)
    bundle = place.compile(model, use_cache=False)
    assert {row["family"] for row in bundle.manifest["targets"][place.target]["kernels"]} == {"winograd"}
    zoo.assert_same(place.run(bundle, values), zoo.reference(model, values))


@pytest.mark.usefixtures("always")
def test_what_follows_comes_at_the_end() -> None:
    model = zoo.network(
        """g (float[1,6,14,11] x, float[1,6,14,11] r) => (float[1,6,14,11] y) <float[6,6,3,3] w, float[6,1,1] scale>
        { c = Conv<pads=[1,1,1,1]>(x, w) m = Mul(c, scale) a = Add(m, r) s = Sigmoid(a) y = Mul(a, s) }"""
    )
    values = zoo.feeds(model)
    bundle = compile(model, "host", use_cache=False)
    assert [row["family"] for row in bundle.manifest["targets"]["host"]["kernels"]] == ["winograd"]
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


@pytest.mark.usefixtures("always")
def test_threads_give_the_same_bits() -> None:
    model = network([((1, 20, 30, 33), 24, "pads=[1,1,1,1]")])
    values = zoo.feeds(model)
    bundle = compile(model, "host", use_cache=False)
    alone, shared = (run(bundle.path, values, "host", threads=n) for n in (1, 3))
    np.testing.assert_array_equal(alone["y0"], shared["y0"])


@pytest.mark.usefixtures("always")
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(2, 23), st.integers(5, 40)),
    st.integers(1, 19),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[*HealthCheck])
def test_random_shapes(shape: tuple[int, int, int, int], outputs: int, pads: list[int]) -> None:
    if min(shape[2] + pads[0] + pads[2], shape[3] + pads[1] + pads[3]) < 7:
        return
    model = network([(shape, outputs, f"pads={pads}")])
    values = zoo.feeds(model)
    bundle = compile(model, "host", use_cache=False)
    assert {row["family"] for row in bundle.manifest["targets"]["host"]["kernels"]} == {"winograd"}
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


@pytest.mark.parametrize("target", ["host", "wasm"])
def test_weights_grow_only_where_that_saves_time(target: str) -> None:
    """64 channels of 56 x 56 pixels gain by it; 512 of 7 x 7 would take 28 MB more; strides are not for it."""
    model = zoo.network(
        """g (float[1,64,56,56] x, float[1,512,7,7] z) => (float[1,64,56,56] a, float[1,512,7,7] b, float[1,64,28,28] c)
        <float[64,64,3,3] v, float[512,512,3,3] w>
        { a = Conv<pads=[1,1,1,1]>(x, v) b = Conv<pads=[1,1,1,1]>(z, w) c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, v) }"""
    )
    rows = compile(model, target).manifest["targets"][target]["kernels"]
    assert [row["family"] for row in rows] == ["winograd", "conv", "conv"]


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([AVX512, SIMD128]))
@settings(max_examples=20)
def test_transformed_weights_are_the_filters(m: int, channels: int, isa: Any) -> None:
    """Filtering an impulse with them gives the filter back, turned over: what a convolution of an impulse is."""
    w = Window(1, channels, (16, 16), (16, 16), (3, 3), (1, 1), (1, 1), (1, 1))
    weight = np.random.default_rng(0).standard_normal((m, channels, 3, 3)).astype(np.float32)
    rows, columns = winograd._product(isa, w, m, 2)
    p = winograd.Winograd(w, m, 2, rows, columns, 4, 0, False, (), 0, 0)
    packed = winograd.pack(p, weight).reshape(6, 6, p.blocks, channels, rows)
    u = np.zeros((6, 6, m, channels))
    for b in range(p.blocks):
        first = min(b * rows, m - rows)
        u[:, :, first : first + rows] = packed[:, :, b].transpose(0, 1, 3, 2)
    a = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
    b = np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    )
    impulse = np.zeros((6, 6))
    impulse[2, 3] = 1
    got = np.einsum("ai,ijmc,bj->mcab", a, u * (b @ impulse @ b.T)[:, :, None, None], a)
    want = np.zeros((m, channels, 4, 4))
    for i in range(3):
        for j in range(3):
            if 0 <= 2 - i < 4 and 0 <= 3 - j < 4:
                want[:, :, 2 - i, 3 - j] = weight[:, :, i, j]
    np.testing.assert_allclose(got, want, atol=1e-4)
