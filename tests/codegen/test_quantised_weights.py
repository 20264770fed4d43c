"""Weights in 8 and 4 bits, by scale, axis or block, compiled: the numbers of onnxruntime, and codes in the artifact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.bundle import compile
from spa.codegen.quantised import decoded

pytestmark = pytest.mark.codegen
K, N = 192, 3072
Array = np.ndarray[Any, Any]


def tensor(kind: int, codes: Array, name: str) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, codes.shape, codes.reshape(-1).tolist())


def model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, K])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, N])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=opsets, ir_version=10)


def linear(kind: int, scale: tuple[int, ...], axis: int, block: int, turned: bool, zeros: bool = False) -> Any:
    """Gemm with a weight behind DequantizeLinear."""
    random = np.random.default_rng(0)
    bits = 4 if kind in (TensorProto.INT4, TensorProto.UINT4) else 8
    low = 0 if kind in (TensorProto.UINT8, TensorProto.UINT4) else -(2 ** (bits - 1))
    codes = random.integers(low, low + 2**bits, (N, K) if turned else (K, N))
    constants = [tensor(kind, codes, "codes")]
    constants += [numpy_helper.from_array(random.uniform(0.01, 1, scale).astype(np.float32), "scale")]
    if zeros:
        constants += [tensor(kind, np.full(scale, low + 2 ** (bits - 1)), "zero")]
    attributes = {"axis": axis} | ({"block_size": block} if block else {})
    nodes = [
        helper.make_node("DequantizeLinear", [c.name for c in constants], ["w"], **attributes),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=int(turned)),
    ]
    return model(nodes, constants)


def nbits(bits: int, zeros: str) -> Any:
    random = np.random.default_rng(0)
    block, blocks = 64, K // 64
    codes = random.integers(0, 256, (N, blocks, block * bits // 8)).astype(np.uint8)
    constants = [numpy_helper.from_array(codes, "codes")]
    constants += [numpy_helper.from_array(random.uniform(0.01, 1, N * blocks).astype(np.float32), "scale")]
    if zeros:
        packed = random.integers(0, 256, (N, -(-blocks * bits // 8))).astype(np.uint8)
        numbers = random.integers(0, 2**bits, (N, blocks)).astype(np.float32)
        constants += [numpy_helper.from_array(packed if zeros == "packed" else numbers, "zero")]
    attributes = {"K": K, "N": N, "bits": bits, "block_size": block}
    names = [c.name for c in constants]
    return model(
        [helper.make_node("MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", **attributes)], constants
    )


INT4, UINT4, INT8, UINT8 = TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8, TensorProto.UINT8
CASES = {
    "int8 per feature": (linear(INT8, (N,), 1, 0, False), "int8"),
    "int8 as a whole": (linear(INT8, (), 1, 0, False), "int8"),
    "int8 by 64 inputs": (linear(INT8, (K // 64, N), 0, 64, False), "int8"),
    "int4 per feature": (linear(INT4, (N,), 0, 0, True), "int4"),
    "int4 by 32 inputs": (linear(INT4, (N, K // 32), 1, 32, True), "int4"),
    "uint4 around 8": (linear(UINT4, (K // 16, N), 0, 16, False, zeros=True), "int4"),
    "uint8 around 128": (linear(UINT8, (N,), 1, 0, False, zeros=True), "int8"),
    "MatMulNBits": (nbits(4, ""), "int4"),
    "MatMulNBits, zero points": (nbits(4, "packed"), "int8"),  # up to 15 from zero: too far for 4 bits
    "MatMulNBits, zero points as numbers": (nbits(4, "numbers"), "int8"),
    "MatMulNBits, 8 bits": (nbits(8, ""), "int8"),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_stay_codes(case: str) -> None:
    network, form = CASES[case]
    values = zoo.feeds(network)
    for t in network.graph.initializer:  # as some exporters write
        network.graph.value_info.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    bundle = compile(network, "host")
    zoo.assert_same(bundle.run(values), zoo.reference(network, values))
    facts = bundle.manifest["targets"]["host"]
    assert [row["format"] for row in facts["kernels"]] == [form]
    assert facts["weight_bytes"] < K * N * (1.3 if form == "int8" else 0.8)  # scales included


def test_codes_that_are_computed_stay() -> None:
    network = linear(INT8, (N,), 1, 0, False)
    network.graph.input.append(helper.make_tensor_value_info("codes", INT8, [K, N]))
    del network.graph.initializer[0]
    assert [n.op_type for n in decoded(network).graph.node] == ["DequantizeLinear", "Gemm"]
