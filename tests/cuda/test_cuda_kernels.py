"""Every kernel of the tables, run on the CPU: odd shapes, patterns, ways to the pixels, epilogues; against onnxruntime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zoo
from layers import all_candidates, emulate, exact, layer_of, network
from machine import Array

from spa.codegen.layer import Layer
from spa.codegen.program import Tensor

pytestmark = pytest.mark.codegen

Weights = dict[str, Array]


def two_of_four(w: Array) -> Array:
    """The two smallest of every four along the last axis removed; for a convolution along its input channels."""
    moved = np.moveaxis(w, 1, -1) if w.ndim == 4 else w
    order = np.argsort(np.abs(moved.reshape(*moved.shape[:-1], -1, 4)), -1)
    kept = np.zeros(order.shape, w.dtype)
    np.put_along_axis(kept, order[..., 2:], 1, -1)
    thin = moved * kept.reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(thin, -1, 1) if w.ndim == 4 else thin)


def in_blocks(w: Array, size: int, share: float) -> Array:
    """Blocks of outputs x inputs, a share of them kept (one row of blocks is left without any); the inputs of a convolution
    tap by tap, the channels of one side by side."""
    if w.ndim == 4:
        taps = np.moveaxis(w, 1, -1)
        return np.ascontiguousarray(
            np.moveaxis(in_blocks(taps.reshape(len(w), -1), size, share).reshape(taps.shape), -1, 1)
        )
    random = np.random.default_rng(3)
    keep = random.random((-(-w.shape[0] // size), -(-w.shape[1] // size))) < share
    keep[0] = False
    mask = np.kron(keep, np.ones((size, size)))[: w.shape[0], : w.shape[1]].astype(w.dtype)
    return w * mask


def check(text: str, weights: Weights, precision: str, formats: set[str], family: str | None = None) -> None:
    """All kernels (of a family) that could compute the first layer; `formats` are what must be among them."""
    model = network(text, weights)
    layer = layer_of(model)
    feeds = {name: exact(np.random.default_rng(0), value.shape) for name, value in zoo.feeds(model).items()}
    (expected,) = zoo.reference(model, feeds).values()
    found = [c for c in all_candidates(layer, precision) if family in (None, c.family)]
    assert {c.format for c in found} >= formats
    for candidate in found:
        got = emulate(candidate.make(), layer, feeds)
        spread = max(float(np.ptp(expected)), 1.0)
        error = float(np.abs(got.reshape(expected.shape) - expected).max())
        assert error <= 2e-5 * spread, f"{candidate.family} {candidate.format} {candidate.tile}: {error}"


ROWS = [(33, 70, 72), (17, 130, 45)]


@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_products_of_rows(shape: tuple[int, int, int], precision: str) -> None:
    n, m, k = shape
    text = f"g (float[{n},{k}] x, float[{n},{m}] r) => (float[{n},{m}] y) <float[{m},{k}] w, float[{m}] b> "
    text += "{ p = Gemm<transB=1>(x, w, b) s = Add(p, r) y = Relu(s) }"
    random = np.random.default_rng(1)
    check(text, {"w": exact(random, (m, k)), "b": exact(random, m)}, precision, {"dense"})


@pytest.mark.parametrize("pattern", ["2:4", "block16x16", "block32x32"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sparse_products_of_rows(pattern: str, precision: str) -> None:
    n, m, k = 37, 80, 100
    w = exact(np.random.default_rng(2), (m, k))
    w = two_of_four(w) if pattern == "2:4" else in_blocks(w, 16 if pattern == "block16x16" else 32, 0.3)
    text = f"g (float[{n},{k}] x) => (float[{n},{m}] y) <float[{k},{m}] w> {{ y = MatMul(x, w) }}"
    check(text, {"w": np.ascontiguousarray(w.T)}, precision, {"dense", pattern})


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("pattern", ["dense", "2:4"])
def test_bf16_keeps_the_range_of_fp32_and_rounds_to_eight_bits(n: int, pattern: str) -> None:
    m, k = 48, 96
    random = np.random.default_rng(10)
    w, x = random.standard_normal((m, k)).astype(np.float32), (random.standard_normal((n, k)) * 1e9).astype(np.float32)
    w = two_of_four(w) if pattern == "2:4" else w
    rounded = [a.astype(ml_dtypes.bfloat16).astype(np.float64) for a in ((w,) if n == 3 else (w, x))]
    expected = (rounded[1] if n > 3 else x.astype(np.float64)) @ rounded[0].T
    text = f"g (float[{n},{k}] x) => (float[{n},{m}] y) <float[{k},{m}] w> {{ y = MatMul(x, w) }}"
    layer = layer_of(network(text, {"w": np.ascontiguousarray(w.T)}))
    found = all_candidates(layer, "bf16")
    assert {c.family for c in found} >= {"tensor" if n > 3 else "few"}
    for candidate in [c for c in found if c.family == ("tensor" if n > 3 else "few")]:
        got = emulate(candidate.make(), layer, {"x": x})
        np.testing.assert_allclose(got, expected, atol=2e-6 * np.ptp(expected))


PICTURES: list[dict[str, Any]] = [
    {"x": (2, 20, 9, 9), "w": (24, 20, 3, 3), "how": "strides=[2,2], pads=[1,1,1,1]"},
    {"x": (1, 36, 8, 8), "w": (40, 36, 1, 1), "how": ""},  # 64 pixels: vectors
    {"x": (1, 36, 7, 7), "w": (20, 36, 1, 1), "how": ""},  # 49: none
    {"x": (1, 24, 11, 6), "w": (32, 12, 3, 2), "how": "group=2, dilations=[2,1], pads=[2,0,1,1]"},
    {"x": (1, 3, 15, 15), "w": (18, 3, 7, 7), "how": "strides=[2,2], pads=[3,3,3,3]"},
]


def conv(case: dict[str, Any], after: str = "y = Clip(c, lo, hi)") -> str:
    def shape(values: tuple[int, ...]) -> str:
        return "float[" + ",".join(map(str, values)) + "]"

    bounds = "lo = Constant<value_float=-3.0>() hi = Constant<value_float=6.0>() "
    attributes = f"<{case['how']}>" if case["how"] else ""
    declared = f"<{shape(case['w'])} w, float[{case['w'][0]}] b>"
    body = f"{{ {bounds if 'lo' in after else ''}c = Conv{attributes}(x, w, b) {after} }}"
    return f"g ({shape(case['x'])} x) => (float[N,M,H,W] y) {declared} {body}"


@pytest.mark.parametrize("case", PICTURES, ids=lambda c: f"{c['x']}-{c['w']}")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_convolutions(case: dict[str, Any], precision: str) -> None:
    random = np.random.default_rng(4)
    check(conv(case), {"w": exact(random, case["w"]), "b": exact(random, case["w"][0])}, precision, {"dense"})


@pytest.mark.parametrize("pattern", ["2:4", "block16x16"])
def test_sparse_convolutions(pattern: str) -> None:
    for case in PICTURES[:2]:
        w = exact(np.random.default_rng(5), case["w"])
        w = two_of_four(w) if pattern == "2:4" else in_blocks(w, 16, 0.4)
        check(conv(case), {"w": w, "b": exact(np.random.default_rng(6), case["w"][0])}, "fp16", {"dense", pattern})


@pytest.mark.parametrize(
    "case",
    [
        {"x": (2, 9, 10, 7), "w": (9, 1, 3, 3), "how": "group=9, pads=[1,1,1,1], strides=[2,1]"},
        {"x": (1, 5, 12, 12), "w": (10, 1, 5, 5), "how": "group=5, pads=[2,2,2,2], dilations=[1,1]"},
        {"x": (1, 64, 6, 6), "w": (64, 1, 3, 3), "how": "group=64"},
    ],
    ids=lambda c: str(c["w"]),
)
def test_depthwise(case: dict[str, Any]) -> None:
    random = np.random.default_rng(7)
    weights = {"w": exact(random, case["w"]), "b": exact(random, case["w"][0])}
    check(conv(case, "s = Sigmoid(c) y = Mul(s, c)"), weights, "fp16", {"dense"})


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("pattern", ["dense", "csr", "block4x1", "2:4", "3:8"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_few_columns(n: int, pattern: str, precision: str) -> None:
    m, k = 21, 130 if pattern in ("dense", "csr") else 136
    random = np.random.default_rng(8)
    w = exact(random, (m, k))
    if pattern == "csr":
        w *= random.random(w.shape) < 0.1
        w[3] = 0
    elif pattern == "block4x1":
        w *= np.repeat(random.random((-(-m // 4), k)) < 0.2, 4, 0)[:m]
    elif pattern == "2:4":
        w = two_of_four(w)
    elif pattern == "3:8":
        order = np.argsort(random.random((m, k // 8, 8)), -1)
        w = (w.reshape(m, -1, 8) * (order < 3)).reshape(m, k)
    text = f"g (float[{n},{k}] x) => (float[{n},{m}] y) <float[{m},{k}] w, float[{m}] b> "
    text += "{ p = Gemm<transB=1, alpha=0.5>(x, w, b) y = Tanh(p) }"
    check(text, {"w": w, "b": exact(random, m)}, precision, {"dense", pattern}, "few")


def test_half_activations() -> None:
    """fp16 in, fp16 out: copied to shared memory without a stop in registers."""
    n, m, k = 40, 48, 64
    random = np.random.default_rng(9)
    w, x = (exact(random, shape).astype(np.float16) for shape in ((k, m), (n, k)))
    tensors = Tensor("x", "float16", (n, k)), Tensor("w", "float16", (k, m))
    layer = Layer("l", "MatMul", {}, tensors, Tensor("y", "float16", (n, m)), {1: w})
    expected = x.astype(float) @ w.astype(float)
    found = all_candidates(layer, "fp16")
    assert found
    for candidate in found:
        got = emulate(candidate.make(), layer, {"x": x})
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(float), expected, rtol=2e-3, atol=2e-2)
