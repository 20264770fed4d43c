"""Einsum of two operands as a product in batches.

A letter of both operands and the result is an axis of the batch; of both operands alone, it is summed over; of one operand
and the result, it is rows (the first operand) or columns. Of several letters of rows or columns the last one stays,
the others join the batch, where the other operand is broadcast: no axes are merged, so that kernels read both operands
in place. What has a letter twice, a sum of one operand, or an ellipsis is left alone.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto

from spa.codegen.replacing import Builder, attributes, replaced


def products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with such nodes replaced; changed in place. Shapes must have been inferred."""
    return replaced(model, {"Einsum": _einsum})


def _einsum(node: NodeProto, build: Builder) -> bool | None:
    text = attributes(node)["equation"].decode().replace(" ", "")
    operands, _, result = text.partition("->")
    terms = operands.split(",")
    shapes = [build.shape(name) for name in node.input]
    if "." in text or "->" not in text or len(terms) != 2 or any(len(set(t)) != len(t) for t in (*terms, result)):
        return False
    a, b = terms
    both = [x for x in a if x in b]
    batch, summed = [x for x in both if x in result], [x for x in both if x not in result]
    rows, columns = [x for x in a if x not in b], [x for x in b if x not in a]
    if any(x not in result for x in rows + columns) or any(x not in a + b for x in result) or len(summed) != 1:
        return False
    if any(shape is None or len(shape) != len(t) for shape, t in zip(shapes, terms, strict=True)):
        return False
    size = {x: n for t, shape in zip(terms, shapes, strict=True) for x, n in zip(t, shape or (), strict=True)}
    outer = [*batch, *rows[:-1], *columns[:-1]]
    first = _laid(build, node.input[0], a, [*outer, *(rows[-1:] or ["1"]), *summed], size)
    second = _laid(build, node.input[1], b, [*outer, *summed, *(columns[-1:] or ["1"])], size)
    order = [*outer, *rows[-1:], *columns[-1:]]
    product = build.add(
        "MatMul", [first, second], [size.get(x, 1) for x in [*outer, *(rows[-1:] or "1"), *(columns[-1:] or "1")]]
    )
    if not rows or not columns:
        product = _reshaped(build, product, [size[x] for x in order])
    if order == list(result):
        build.name("Identity", [product], node.output[0])
    else:
        build.name("Transpose", [product], node.output[0], perm=[order.index(x) for x in result])
    return None


def _laid(build: Builder, name: str, term: str, order: list[str], size: dict[str, int]) -> str:
    """An operand with its axes in this order; letters it lacks are axes of one element."""
    own = [x for x in order if x in term]
    perm = [term.index(x) for x in own]
    if perm != sorted(perm):
        name = build.add("Transpose", [name], perm=perm)
    return name if own == order else _reshaped(build, name, [size[x] if x in own else 1 for x in order])


def _reshaped(build: Builder, name: str, sizes: list[int]) -> str:
    return build.add("Reshape", [name, build.constant(np.array(sizes, np.int64))], sizes)
