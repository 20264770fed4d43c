"""Heads that share keys and values, without copies of them.

Exporters write grouped-query attention as Unsqueeze, Expand and Reshape of the keys, [B, G, S, D] to [B, G * R, S, D], before a
product of all heads. Here it becomes a product that broadcasts, [B, G, R, T, D] x [B, G, 1, D, S]: kernels read the shared
head where it lies. A Transpose of the last two axes and a factor between Reshape and product are kept.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import NodeProto

from spa.codegen.replacing import Builder, attributes, replaced

TURNED = [0, 1, 3, 2]


def shared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with such products rewritten; changed in place. Shapes must have been inferred."""
    if not any(n.op_type == "Expand" for n in model.graph.node):
        return model
    producer = {name: node for node in model.graph.node for name in node.output}
    return replaced(model, {"MatMul": lambda node, build: _product(node, build, producer)})


def _product(node: NodeProto, build: Builder, producer: dict[str, NodeProto]) -> bool | None:
    between: list[tuple[str, str]] = []  # (operator, its constant), from the product back
    name = node.input[1]
    maker = producer.get(name)
    while maker is not None and maker.op_type in ("Transpose", "Mul"):
        if maker.op_type == "Transpose" and attributes(maker).get("perm") != TURNED:
            return False
        factors = [n for n in maker.input if build.const(n) is not None]
        if maker.op_type == "Mul" and (len(factors) != 1 or math.prod(build.shape(factors[0]) or ()) != 1):
            return False
        between.append((maker.op_type, factors[0] if factors else ""))
        name = next(n for n in maker.input if n not in factors)
        maker = producer.get(name)
    merged = producer.get(maker.input[0]) if maker is not None and maker.op_type == "Reshape" else None
    if merged is None or merged.op_type != "Expand":
        return False
    base, whole, after = (build.shape(n) for n in (merged.input[0], merged.output[0], name))
    x, y = build.shape(node.input[0]), build.shape(node.output[0])
    if base is None or whole is None or x is None or y is None or len(whole) != 5 or len(x) != 4:
        return False
    b, g, r, s, d = whole
    if base != (b, g, 1, s, d) or after != (b, g * r, s, d) or x[:2] != (b, g * r):
        return False
    other = merged.input[0]
    for op, factor in reversed(between):
        turned = op == "Transpose"
        other = build.add(op, [other], perm=[0, 1, 2, 4, 3]) if turned else build.add(op, [other, factor])
    heads = build.add("Reshape", [node.input[0], _sizes(build, b, g, r, *x[2:])], (b, g, r, *x[2:]))
    product = build.add("MatMul", [heads, other], (b, g, r, *y[2:]))
    build.name("Reshape", [product, _sizes(build, *y)], node.output[0])
    return None


def _sizes(build: Builder, *sizes: int) -> str:
    return build.constant(np.array(sizes, np.int64))
