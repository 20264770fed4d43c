"""One row times a sparse or quantised matrix: against onnxruntime, formats against numpy, and who is asked for what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.bundle import compile
from spa.codegen.kernels.matvec import on_grid, pack_two_of_four
from spa.runtime.toolchain import is_aarch64

pytestmark = pytest.mark.codegen


def two_of_four(random: np.random.Generator, k: int, m: int) -> Any:
    """int8 codes [k, m] with two of four inputs per feature, and scales."""
    codes = random.integers(-127, 128, (k // 4, 4, m))
    order = random.permuted(np.broadcast_to(np.arange(4)[None, :, None], codes.shape), axis=1)
    codes = np.where(order < 2, codes, 0).reshape(k, m)
    codes[(order.reshape(k, m) < 2).argmax(0), np.arange(m)] = 127  # as symmetric quantisation leaves it
    return codes.astype(np.int8), random.uniform(0.001, 0.1, m).astype(np.float32)


def network(matrices: list[Any]) -> Any:
    nodes, inputs, outputs, constants = [], [], [], []
    for i, (k, m, stored) in enumerate(matrices):
        constants += [numpy_helper.from_array(np.linspace(-1, 1, m, dtype=np.float32), f"b{i}")]
        names = [numpy_helper.from_array(value, f"w{i}_{j}") for j, value in enumerate(stored)]
        constants += names
        weight = f"w{i}_0"
        if len(stored) == 2:
            nodes.append(helper.make_node("DequantizeLinear", [n.name for n in names], [f"d{i}"], axis=1))
            weight = f"d{i}"
        nodes.append(helper.make_node("Gemm", [f"x{i}", weight, f"b{i}"], [f"p{i}"], name=f"n{i}"))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"y{i}"]))
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, (1, k)))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, (1, m)))
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def sparse(random: np.random.Generator, k: int, m: int, density: float) -> Any:
    return (random.standard_normal((k, m)) * (random.random((k, m)) < density)).astype(np.float32)


@pytest.mark.parametrize("level", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
def test_host(level: str) -> None:
    if is_aarch64() or not zoo.runs(level):
        pytest.skip(f"this machine is below {level}")
    random = np.random.default_rng(0)
    shapes = [(37, 64), (1, 16), (64, 96), (5, 48)]
    matrices = [(k, m, (sparse(random, k, m, d),)) for (k, m), d in zip(shapes, (0.5, 0.5, 0.3, 0.0), strict=True)]
    matrices += [(k, m, two_of_four(random, k, m)) for k, m in ((64, 64), (20, 48), (4, 16))]
    matrices += [(32, 64, (sparse(random, 32, 64, 1.0),)), (32, 30, (sparse(random, 32, 30, 0.4),))]
    model = network(matrices)
    values = zoo.feeds(model)
    bundle = compile(model, "host", host_level=level)
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))
    formats = {row["layer"]: row["format"] for row in bundle.manifest["targets"]["host"]["kernels"]}
    assert formats["n4"] == formats["n5"] == ("dense" if level == "x86-64-v2" else "2:4 int8")
    assert formats["n0"] == formats["n7"] == "dense"  # zeros without a pattern, none at all


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=40)
def test_positions_and_codes_are_the_matrix(groups: int, tiles: int, seed: int) -> None:
    width, lanes = 2, 8
    m = tiles * width * lanes
    codes, scales = two_of_four(np.random.default_rng(seed), groups * 4, m)
    words, kept = pack_two_of_four(codes, width, lanes)
    found = np.zeros_like(codes)
    for i, word in enumerate(words):
        tile, group, v = i // (groups * width * 2), i // (width * 2) % groups, i // 2 % width
        for lane in range(lanes):
            row = group * 4 + (int(np.uint32(word)) >> 2 * lane & 3)
            found[row, (tile * width + v) * lanes + lane] += kept[i * lanes + lane]
    assert (found == codes).all()
    matrix = codes * scales
    again = on_grid(matrix)
    full = np.abs(codes).max(0) == 127
    assert again is None or np.allclose((again[0] * again[1])[:, full], matrix[:, full], rtol=1e-6)


def test_values_off_the_grid_are_not_quantised() -> None:
    assert on_grid(np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)) is None
