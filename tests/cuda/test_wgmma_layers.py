"""Warpgroup products as kernels of layers: ways to the pixels, epilogues, both forms; against onnxruntime. And who gets them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from layers import emulate, exact, layer_of, matrix_of, network
from machine import Array
from test_cuda_choice import product
from test_cuda_kernels import PICTURES, conv, two_of_four

from spa.codegen.cuda.cost import SPARSE_BELOW, arch_of
from spa.codegen.cuda.families import candidates, offer
from spa.codegen.layer import Layer
from spa.codegen.target import cuda

pytestmark = pytest.mark.codegen


def warpgroup_candidates(layer: Layer) -> list[Any]:
    matrix = matrix_of(layer)
    assert matrix is not None
    return [c for c in candidates(layer, matrix, arch_of("sm_90a"), "float16") if c.family == "wgmma"]


def check(text: str, weights: dict[str, Array], formats: set[str]) -> None:
    """All warpgroup products that could compute the first layer."""
    model = network(text, weights)
    layer = layer_of(model)
    feeds = {name: exact(np.random.default_rng(0), value.shape) for name, value in zoo.feeds(model).items()}
    (expected,) = zoo.reference(model, feeds).values()
    found = warpgroup_candidates(layer)
    assert {c.format for c in found} == formats
    for candidate in found:
        got = emulate(candidate.make(), layer, feeds)
        error = float(np.abs(got.reshape(expected.shape) - expected).max())
        assert error <= 2e-5 * max(float(np.ptp(expected)), 1.0), f"{candidate.format} {candidate.tile}: {error}"


@pytest.mark.parametrize("pattern", ["dense", "2:4"])
def test_rows_with_all_that_may_follow(pattern: str) -> None:
    n, m, k = 33, 70, 72
    text = f"g (float[{n},{k}] x, float[{n},{m}] r) => (float[{n},{m}] y) <float[{m},{k}] w, float[{m}] b> "
    text += "{ p = Gemm<transB=1>(x, w, b) s = Add(p, r) y = Relu(s) }"
    random = np.random.default_rng(1)
    w = exact(random, (m, k))
    w = two_of_four(w) if pattern == "2:4" else w
    check(text, {"w": w, "b": exact(random, m)}, {"dense", pattern})


@pytest.mark.parametrize("case", PICTURES, ids=lambda c: f"{c['x']}-{c['w']}")
@pytest.mark.parametrize("pattern", ["dense", "2:4"])
def test_convolutions(case: dict[str, Any], pattern: str) -> None:
    if pattern == "2:4" and case["w"][1] % 4:
        pytest.skip("2:4 runs along whole fours of channels")
    random = np.random.default_rng(4)
    w = exact(random, case["w"])
    w = two_of_four(w) if pattern == "2:4" else w
    check(conv(case), {"w": w, "b": exact(random, case["w"][0])}, {"dense", pattern})


# Choice ----------------------------------------------------------------------------------------------------------


def chosen(layer: Layer, archs: str) -> Any:
    kernel = offer(layer, cuda(archs, "fp16"))
    assert kernel is not None
    return kernel


@pytest.mark.parametrize(("archs", "family"), [("sm_90a", "wgmma"), ("sm_90", "tensor"), ("sm_80,sm_90a", "tensor")])
def test_only_code_for_hopper_alone_has_warpgroup_products(archs: str, family: str) -> None:
    """Kernels are shared by the architectures of a bundle."""
    assert chosen(product(512, 512, 512), archs).family == family


def test_two_of_four_where_it_pays() -> None:
    assert chosen(product(4096, 4096, 1024, "2:4"), "sm_90a").format == "2:4"
    assert chosen(product(128, 128, 64, "2:4"), "sm_90a").format == "dense"


@pytest.mark.parametrize("size", [256, 2048])
def test_warpgroup_products_are_predicted_to_be_faster(size: int) -> None:
    layer = product(size, size, size, "2:4")
    matrix = matrix_of(layer)
    assert matrix is not None
    best: dict[tuple[str, str], float] = {}
    for c in candidates(layer, matrix, arch_of("sm_90a"), "float16"):
        best[c.family, c.format] = min(best.get((c.family, c.format), np.inf), c.us)
    assert best["wgmma", "dense"] < best["tensor", "dense"]
    if size == 2048:
        assert best["wgmma", "2:4"] < SPARSE_BELOW * best["wgmma", "dense"]
