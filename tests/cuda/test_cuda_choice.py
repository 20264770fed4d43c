"""Which kernel a layer gets: never one that is predicted to be slower than dense, sparse where it pays, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layers import all_candidates
from machine import Array
from test_cuda_kernels import in_blocks, two_of_four

from spa.codegen.cuda.cost import ARCHS, SPARSE_BELOW, Work, arch_of, microseconds
from spa.codegen.cuda.families import offer
from spa.codegen.layer import Layer
from spa.codegen.program import Tensor
from spa.codegen.target import cuda
from spa.errors import UsageError

pytestmark = pytest.mark.codegen


def product(n: int, m: int, k: int, pattern: str = "dense") -> Layer:
    random = np.random.default_rng(0)
    w: Array = random.standard_normal((m, k)).astype(np.float32)
    if pattern == "2:4":
        w = two_of_four(w)
    elif pattern.startswith("block"):
        w = in_blocks(w, int(pattern[5:]), 0.15)
    elif pattern == "scattered":
        w *= random.random(w.shape) < 0.05
    tensors = Tensor("x", "float32", (n, k)), Tensor("w", "float32", (k, m))
    return Layer("l", "MatMul", {}, tensors, Tensor("y", "float32", (n, m)), {1: np.ascontiguousarray(w.T)})


def chosen(layer: Layer, archs: str = "sm_90", precision: str = "fp16") -> Any:
    kernel = offer(layer, cuda(archs, precision))
    assert kernel is not None
    return kernel


@pytest.mark.parametrize(
    ("layer", "format_"),
    [
        (product(4096, 4096, 1024, "2:4"), "2:4"),
        (product(2048, 2048, 1024, "block32"), "block32x32"),
        (product(2048, 2048, 1024), "dense"),
        (product(2048, 2048, 1024, "scattered"), "dense"),  # tensor cores have no use for single zeros
        (product(64, 64, 64, "2:4"), "dense"),  # the launch takes longer than the product
        (product(1, 4096, 4096, "2:4"), "2:4"),  # memory: half the weights
        (product(1, 4096, 4096, "scattered"), "csr"),
        (product(1, 4096, 4096), "dense"),
    ],
    ids=["2:4", "blocks", "dense", "scattered", "small", "2:4 of few", "csr of few", "dense of few"],
)
def test_formats(layer: Layer, format_: str) -> None:
    kernel = chosen(layer)
    assert kernel.format == format_
    assert "predicted on sm_90" in kernel.why and "density" in kernel.why


@pytest.mark.parametrize("pattern", ["2:4", "block16", "block32", "scattered"])
@pytest.mark.parametrize("size", [32, 256, 2048])
def test_sparse_only_where_it_beats_the_best_dense(pattern: str, size: int) -> None:
    layer = product(size, size, size, pattern)
    found = all_candidates(layer, "fp16")
    dense = min(c.us for c in found if c.format == "dense")
    kernel = chosen(layer, "sm_80")
    taken = min(c.us for c in found if c.format == kernel.format)
    assert kernel.format == "dense" or taken <= SPARSE_BELOW * dense


def test_precision() -> None:
    layer = product(512, 512, 512, "2:4")
    assert chosen(layer, precision="fp32").family == "simt"
    assert chosen(layer, precision="fp16").family == "tensor"
    assert chosen(product(2, 512, 512), precision="fp32").weights[0].dtype == np.float32
    assert chosen(product(2, 512, 512), precision="fp16").weights[0].dtype == np.float16


def test_a_slower_card_takes_longer() -> None:
    work = Work(1000, 32, 2 * 128 * 128 * 32, 100, 256, 60 << 10, 1e6)
    assert microseconds(ARCHS["sm_80"], work) > microseconds(ARCHS["sm_90"], work)
    more = Work(2000, 32, 2 * 128 * 128 * 32, 100, 256, 60 << 10, 1e6)
    assert microseconds(ARCHS["sm_80"], more) > microseconds(ARCHS["sm_80"], work)


def test_architectures() -> None:
    assert arch_of("sm_80,sm_90").name == "sm_80"
    assert arch_of("sm_103").name == "sm_100"
    assert cuda("sm_90,sm_80,sm_90").cpu == "sm_80,sm_90"
    assert cuda().features == ("fp16",)
    for wrong in ("sm_75", "compute_80", "sm_80,,x", ","):
        with pytest.raises(UsageError):
            cuda(wrong)
    with pytest.raises(UsageError):
        cuda(None, "int4")
