"""Many rows times a sparse matrix: odd shapes, blocks, empty and full rows, every target; one kernel for layers of one shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.bundle import compile
from spa.codegen.kernels.isa import AVX512
from spa.codegen.kernels.spmm import Sparse, build_sparse, pack
from spa.codegen.kernels.tile import columns_of
from spa.runtime.load import target_of
from spa.runtime.run import open_engine

pytestmark = pytest.mark.codegen

# rows, inputs, outputs, height of blocks, density, operator
CASES = [
    (128, 96, 64, 4, 0.15, "MatMul"),
    (49, 67, 32, 8, 0.2, "Gemm"),
    (17, 30, 48, 1, 0.08, "MatMul"),
    (31, 64, 16, 16, 0.2, "Gemm"),
    (8, 128, 64, 4, 0.1, "MatMul"),
    (197, 48, 64, 2, 0.1, "Gemm"),
    (64, 9, 32, 4, 0.1, "MatMul"),
    (33, 80, 64, 4, 0.0, "Gemm"),  # nothing but the bias
    (40, 64, 64, 1, 1.0, "MatMul"),  # nothing to gain
    (70, 1100, 48, 1, 0.05, "Gemm"),  # in parts
    (1100, 20, 32, 4, 0.1, "MatMul"),  # more tiles than threads
]


def sparse(k: int, m: int, height: int, density: float, seed: int) -> Any:
    random = np.random.default_rng(seed)
    keep = random.random((m // height, k)) < density
    return (random.standard_normal((m, k)) * np.repeat(keep, height, 0)).astype(np.float32)


def network() -> Any:
    nodes, inputs, outputs, constants = [], [], [], []
    for i, (t, k, m, height, density, op) in enumerate(CASES):
        weight = sparse(k, m, height, density, i)
        bias = np.random.default_rng(i).standard_normal(m).astype(np.float32)
        constants += [numpy_helper.from_array(weight.T.copy() if op == "MatMul" else weight, f"w{i}")]
        constants += [numpy_helper.from_array(bias, f"b{i}")]
        if op == "Gemm":
            nodes.append(helper.make_node("Gemm", [f"x{i}", f"w{i}", f"b{i}"], [f"p{i}"], name=f"n{i}", transB=1))
        else:
            nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"], name=f"n{i}"))
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"p{i}"]))
        nodes += [helper.make_node("Tanh", [f"p{i}"], [f"y{i}"])]
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, (t, k)))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, (t, m)))
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture(scope="module")
def case() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = network()
    values = zoo.feeds(model)
    return model, values, zoo.reference(model, values)


@zoo.everywhere
def test_everywhere(case: Any, place: zoo.Place) -> None:
    model, values, expected = case
    bundle = place.compile(model)
    zoo.assert_same(place.run(bundle, values), expected)
    rows = bundle.manifest["targets"][place.target]["kernels"]
    families = {row["layer"].split("/")[0]: row["family"] for row in rows}
    assert families["n0"] == families["n1"] == families["n5"] == "spmm"
    assert families["n8"] == "gemm"  # dense weights never take a sparse kernel
    if place.level == "x86-64-v4":
        (deep,) = (row for row in rows if row["layer"].startswith("n9"))
        assert deep["family"] == "spmm" and deep["tile"].count("x") == 2  # rows x columns x depth


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
    st.sampled_from([1, 2, 4, 8]),
    st.floats(0, 1),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_what_is_packed_is_the_matrix(k: int, depth: int, blocks: int, height: int, density: float, seed: int) -> None:
    """Every entry is met once, in the chunk, the part and the block it belongs to, in the order of k."""
    m = blocks * 16
    weight = sparse(k, m, height, density, seed)
    p = Sparse(32, k, m, height, depth, columns_of(AVX512, 32, 2), False, (), 0, (), 0, 1)
    sums, ip, ix, va = pack(p, weight)
    found, i = np.zeros_like(weight), 0
    for chunk in range(p.chunks):
        assert sums[chunk] == ip[i]
        for part in range(p.parts):
            for row in range(chunk * p.chunk, (chunk + 1) * p.chunk, height):
                ks = ix[ip[i] : ip[i + 1]] // p.pitch
                assert (ks // depth == part).all() and (np.diff(ks) > 0).all()
                found[row : row + height, ks] = va[ip[i] * height : ip[i + 1] * height].reshape(-1, height).T
                i += 1
    assert i + 1 == ip.size and sums[-1] == ip[-1]
    assert (found == weight).all()
    assert ix.size == max(ip[-1], 1) and va.size == ix.size * height


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_bits_of_one(case: Any, threads: int) -> None:
    model, values, _ = case
    bundle = compile(model, "host")
    one = open_engine(target_of(bundle.path, "host")).run(values)
    engine = open_engine(target_of(bundle.path, "host"), threads=threads)
    try:
        for _ in range(10):
            for name, value in engine.run(values).items():
                assert (value.view(np.int32) == one[name].view(np.int32)).all(), name
    finally:
        engine.close()


@pytest.mark.parametrize(("t", "loops"), [(32, 2), (2048, 1)])
def test_threads_share_what_is_heavy(t: int, loops: int) -> None:
    """Few tiles of rows: turning, then the chunks; many: the tiles themselves, and nothing inside them."""
    from spa.codegen.tvm_api.library import tirx, tvm_ffi
    from spa.codegen.tvm_api.teams import is_parallel

    p = Sparse(t, 64, 128, 4, 64, columns_of(AVX512, t, 4), True, (), 0, (), 0, 100)
    found: list[bool] = []
    tvm_ffi.structural_walk(build_sparse(p).body, (tirx.For, lambda loop: found.append(is_parallel(loop))))
    assert sum(found) == loops


def test_layers_of_one_shape_share_a_kernel_whatever_they_keep() -> None:
    nodes, constants = [], []
    for i in range(3):
        constants.append(numpy_helper.from_array(sparse(64, 64, 4, 0.2, i).T.copy(), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"n{i}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (64, 64)) for name in ("x0", "x3")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    bundle = compile(model, "host")
    assert len({row["kernel"] for row in bundle.manifest["targets"]["host"]["kernels"]}) == 1
    values = zoo.feeds(model)
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))
