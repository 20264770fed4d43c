"""Quantised weights as floats: kernels see from the values which codes would say the same, and pack them as they like.

- DequantizeLinear of constants: one scale, one per index of an axis, or blocks of an axis (opset 21); 4 and 8 bits
- com.microsoft's MatMulNBits: MatMul with a matrix [K, N]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Values = Mapping[str, Array]


def decoded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with such weights as float32; changed in place. Those that are no constants stay as they are."""
    wanted = {name for node in model.graph.node if node.op_type in RULES for name in node.input}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in wanted}
    kept = []
    for node in model.graph.node:
        weight = RULES[node.op_type](node, values) if node.op_type in RULES else None
        if weight is None:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        name = node.output[0]
        if node.op_type == "MatMulNBits":
            name = f"{node.input[1]}/{node.output[0]}"
            kept.append(helper.make_node("MatMul", [node.input[0], name], list(node.output), name=node.name))
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    if len(kept) == len(model.graph.node) and not any(n.op_type == "MatMulNBits" for n in model.graph.node):
        return model
    del model.graph.node[:]
    model.graph.node.extend(kept)
    unread = wanted - _read(kept) - {o.name for o in model.graph.output}
    _drop(model.graph.initializer, unread)
    _drop(model.graph.value_info, unread)
    return model


def _read(nodes: Iterable[NodeProto]) -> set[str]:
    """What nodes and the bodies inside them read."""
    bodies = [a.g.node for node in nodes for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for node in nodes for name in node.input}.union(*(_read(body) for body in bodies))


def _drop(tensors: Any, names: set[str]) -> None:
    """Out of a repeated field of a graph."""
    held = [t for t in tensors if t.name not in names]
    del tensors[:]
    tensors.extend(held)


def _dequantised(node: NodeProto, values: Values) -> Array | None:
    """(codes - zero points) * scales; see ONNX, DequantizeLinear."""
    if node.domain not in ("", "ai.onnx") or not all(name in values for name in node.input if name):
        return None
    operands = [values[name] for name in node.input if name]
    codes, scale = operands[:2]
    if scale.dtype != np.float32 or not _is_integer(codes):
        return None
    get = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    shift = operands[2] if len(operands) > 2 else np.zeros((), np.int32)
    axis, block = int(get.get("axis", 1)), int(get.get("block_size", 0))
    scales, zeros = (_across(part, codes, axis, block) for part in (scale, shift))
    return ((codes.astype(np.int32) - zeros.astype(np.int32)) * scales).astype(np.float32)


def _is_integer(codes: Array) -> bool:
    """Of 4 or 8 bits: those of more are sums, not weights."""
    return codes.dtype.name in ("int8", "uint8", "int4", "uint4")


def _across(part: Array, codes: Array, axis: int, block: int) -> Array:
    """Scales or zero points so that they spread over the codes."""
    if part.size == 1:
        return part.reshape(())
    axis %= codes.ndim
    if part.ndim == codes.ndim and block:
        return np.repeat(part, block, axis=axis).take(np.arange(codes.shape[axis]), axis=axis)
    return part.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])


def _matrix(node: NodeProto, values: Values) -> Array | None:
    """The matrix [K, N] of MatMulNBits: B holds [N, blocks, bytes] codes, lowest bits first, and zero points [N, bytes]
    likewise or as numbers; without them 2^(bits - 1)."""
    operands = [*node.input, "", "", ""][1:]
    get = {a.name: int(helper.get_attribute_value(a)) for a in node.attribute}
    codes, scale = (values.get(name) for name in operands[:2])
    bits, k, n, block = get.get("bits", 4), get["K"], get["N"], get["block_size"]
    if codes is None or scale is None or scale.dtype != np.float32 or bits not in (4, 8) or any(operands[3:]):
        return None
    blocks = -(-k // block)
    zeros: Array = np.full((n, blocks), 2 ** (bits - 1))
    if operands[2]:
        given = values.get(operands[2])
        if given is None:
            return None
        packed = given.dtype == np.uint8 and given.size != n * blocks
        zeros = _unpacked(given.reshape(n, -1), bits)[:, :blocks] if packed else given.reshape(n, blocks)
    unpacked = _unpacked(codes.reshape(n, -1), bits).reshape(n, blocks, block).astype(np.float32)
    rows = (unpacked - zeros[:, :, None]) * scale.reshape(n, blocks, 1)
    return np.ascontiguousarray(rows.reshape(n, -1)[:, :k].T, np.float32)


def _unpacked(codes: Array, bits: int) -> Array:
    """Bytes [rows, n] -> codes [rows, 8 n / bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (codes[:, :, None] >> shifts & (1 << bits) - 1).reshape(len(codes), -1)


RULES = {"DequantizeLinear": _dequantised, "MatMulNBits": _matrix}
