"""Quantised networks: QuantizeLinear and DequantizeLinear, the integer contractions, and QLinear ops of onnxruntime.

A quantised value counts as zero where it holds its zero point: constants are masked to it, and an op that writes zero
writes its output's. That is only true for who reads the value with the same zero point, so an op marks its output
zero where its zero point is 0, or where all readers (past ops that only move data) agree on it; a reader takes the
mark where its zero point is 0, or where the value comes from such an op or is a constant masked to it.

Scales and zero points per channel are sliced along; those per block tie whole blocks together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling.axes import Axes, Op, Slot
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows
from spa.coupling.rules.contraction import Zero, convolve, follow_group, multiply
from spa.shapes import Shapes

MICROSOFT = "com.microsoft"
PACKED = "zero points of several blocks are packed into one byte"
POINTWISE = ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearAveragePool")
# op -> {position of a quantised operand: position of its zero point}
READS = (
    {
        "DequantizeLinear": {0: 2},
        "ConvInteger": {0: 2, 1: 3},
        "MatMulInteger": {0: 2, 1: 3},
        "MatMulIntegerToFloat": {0: 4, 1: 5},
    }
    | {kind: {0: 2, 3: 5} for kind in ("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm")}
    | {kind: {0: 2} for kind in POINTWISE}
    | {"DynamicQuantizeMatMul": {1: 3}, "QLinearConcat": {2 + 3 * k: 4 + 3 * k for k in range(64)}}
)
# op -> position of the zero point of what it writes
WRITES = (
    {"QuantizeLinear": 2, "QLinearConv": 7, "QLinearMatMul": 7, "QLinearAdd": 7, "QLinearMul": 7, "QGemm": 8, "QLinearConcat": 1}
    | dict.fromkeys(POINTWISE, 4)
)  # fmt: skip
# weights that masking sets to their zero point (interface.md)
MASKED = {"DequantizeLinear": 0, "QLinearConv": 3, "QLinearMatMul": 3, "ConvInteger": 1, "MatMulInteger": 1}
MOVERS = {
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Gather", "MaxPool", "Expand",
    "DepthToSpace", "SpaceToDepth", "Concat",
}  # fmt: skip


def zero_point(shapes: Shapes, node: ir.Node, i: int) -> npt.NDArray[np.int64] | None:
    """The distinct contents of a zero point; [0] where there is none, None where it is not known."""
    value = node.inputs[i] if i < len(node.inputs) else None
    if value is None:
        return np.zeros(1, np.int64)
    known = shapes.static(value)
    return None if known is None else np.unique(known.astype(np.int64))


def is_literal(shapes: Shapes, node: ir.Node, i: int) -> bool:
    known = zero_point(shapes, node, i)
    return known is not None and not known.any()


def agree(shapes: Shapes, node: ir.Node, i: int, zero: ir.Value | None, known: npt.NDArray[np.int64] | None) -> bool:
    own = node.inputs[i] if i < len(node.inputs) else None
    if own is not None and own is zero:
        return True
    mine = zero_point(shapes, node, i)
    return mine is not None and known is not None and len(mine) == 1 and np.array_equal(mine, known)


def readers_agree(shapes: Shapes, value: ir.Value, zero: ir.Value | None, known: npt.NDArray[np.int64] | None) -> bool:
    """Do all that read a quantised value take this zero point for zero?"""
    for node, i in value.uses():
        at = READS.get(node.op_type, {}).get(i)
        if at is not None and agree(shapes, node, at, zero, known):
            continue
        moves = node.op_type in MOVERS and (i == 0 or node.op_type == "Concat")
        if at is not None or not moves or not all(readers_agree(shapes, v, zero, known) for v in node.outputs):
            return False
    return True


def writes_zero(op: Op, g: Axes) -> bool:
    """May the output be called zero where it holds its zero point?"""
    at = WRITES[op.kind]
    zero = op.input(at)
    return is_literal(g.shapes, op.node, at) or readers_agree(g.shapes, op.out, zero, zero_point(g.shapes, op.node, at))


def reads_zero(op: Op, g: Axes, i: int) -> bool:
    """Does a mark of operand i mean this op's zero point?"""
    at = READS[op.kind][i]
    value = op.input(i)
    if is_literal(g.shapes, op.node, at) or value is None:
        return True
    if value.producer() is None or value.producer().op_type == "Constant":  # type: ignore[union-attr]
        known = zero_point(g.shapes, op.node, at)
        masked = MASKED.get(op.kind) == i and known is not None
        return masked and all(MASKED.get(n.op_type) == k and agree_exactly(op, n, at) for n, k in value.uses())
    return from_writer(value)


def agree_exactly(op: Op, node: ir.Node, at: int) -> bool:
    """Does another reader of a weight use the same zero point?"""
    if node is op.node:
        return True
    own = READS.get(node.op_type, {}).get(MASKED[node.op_type])
    return own is not None and own < len(node.inputs) and node.inputs[own] is op.input(at)


def from_writer(value: ir.Value) -> bool:
    """Does a value come, past ops that only move data, from one that agreed with its readers on the zero point?"""
    node = value.producer()
    if node is None:
        return False
    if node.op_type in WRITES or node.op_type == "DynamicQuantizeLinear":
        return True
    if node.op_type not in MOVERS:
        return False
    return all(from_writer(v) for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if v is not None)


def reader(op: Op, g: Axes) -> Zero:
    """`g.zero`, as this op understands its operands."""
    fine = {op.input(i): reads_zero(op, g, i) for i in READS.get(op.kind, {}) if op.input(i) is not None}
    return lambda slot: g.zero(slot) and fine.get(slot[0], True)  # type: ignore[call-overload]


def unmark(op: Op, g: Axes) -> None:
    """Take back the marks of an output whose readers do not share its zero point."""
    if op.kind in WRITES and not writes_zero(op, g):
        for axis in range(len(op.shape(op.out))):
            g.mark((op.out, axis), False)


# -- one operand


def linear(op: Op, g: Axes) -> None:
    """QuantizeLinear, DequantizeLinear: per tensor, per axis or per block."""
    x, y = op.inputs[0], op.out
    assert x is not None
    zero = reader(op, g)
    for axis in range(len(op.shape(x))):
        g.same((x, axis), (y, axis))
        g.mark((y, axis), zero((x, axis)))
    unmark(op, g)
    granularity(op, g)


def granularity(op: Op, g: Axes) -> None:
    x = op.inputs[0]
    assert x is not None
    shape = op.shape(x)
    axis = int(op.attr("axis", 1))
    for v in op.inputs[1:3]:
        if v is None or not op.shape(v):
            continue
        if len(op.shape(v)) == 1 and not (op.attr("block_size", 0) and len(shape) == 1):
            if len(shape) > 1 or op.shape(v) == shape:
                g.same((v, 0), (x, axis % max(1, len(shape))))
            continue
        for i, (n, blocks) in enumerate(zip(shape, op.shape(v), strict=True)):
            if n == blocks:
                g.same((v, i), (x, i))
            elif n == blocks * int(op.attr("block_size", 0)):
                inside = g.virtual("block", n // blocks)
                g.factor((x, i), [((v, i), blocks), (inside, n // blocks)])
                g.freeze(inside, "positions in a block that shares its scale")
            else:
                g.freeze((x, i), "the last block is shorter than the others")
                g.freeze((v, i), "the last block is shorter than the others")


def dynamic_quantize(op: Op, g: Axes) -> None:
    """The scale comes from the range of all of x, which always holds 0."""
    x, y = op.inputs[0], op.out
    assert x is not None
    agreed = len(op.outputs) > 2 and readers_agree(g.shapes, y, op.outputs[2], None)
    for axis in range(len(op.shape(x))):
        g.need_zero((x, axis), "the quantisation range is taken over all channels")
        g.same((x, axis), (y, axis))
        g.mark((y, axis), g.zero((x, axis)) and agreed)


def pointwise(op: Op, g: Axes) -> None:
    """QLinearLeakyRelu, QLinearSigmoid, and the poolings, which mix positions."""
    x, y = op.inputs[0], op.out
    assert x is not None
    zero, rank = reader(op, g), len(op.shape(x))
    pools = op.kind.endswith("Pool")
    channel = rank - 1 if op.attr("channels_last", 0) else 1
    for axis in range(rank):
        if pools and axis not in (0, channel):
            g.freeze((x, axis), "spatial positions are mixed by a window")
            g.freeze((y, axis), "spatial positions are mixed by a window")
            continue
        g.same((x, axis), (y, axis))
        g.mark((y, axis), op.kind != "QLinearSigmoid" and zero((x, axis)))
    unmark(op, g)


# -- several operands


def broadcast(op: Op, g: Axes) -> None:
    """QLinearAdd, QLinearMul."""
    y, zero = op.out, reader(op, g)
    rank = len(op.shape(y))
    for axis, n in enumerate(op.shape(y)):
        carried = []
        for v in (op.inputs[0], op.inputs[3]):
            own = axis - rank + len(op.shape(v))
            passes = own >= 0 and op.shape(v)[own] == n
            if passes:
                g.same((v, own), (y, axis))
            carried.append(passes and zero((v, own)))
        g.mark((y, axis), any(carried) if op.kind == "QLinearMul" else all(carried))
    unmark(op, g)


def concat(op: Op, g: Axes) -> None:
    """QLinearConcat: scale and zero point of y, then x, scale, zero point for every operand."""
    y, zero = op.out, reader(op, g)
    rank = len(op.shape(y))
    axis, offset = int(op.attr("axis", 1)) % rank, 0
    for x in op.inputs[2::3]:
        assert x is not None
        n = op.shape(x)[axis]
        g.link((x, axis), (y, axis), np.arange(n), np.arange(offset, offset + n))
        offset += n
        for i in range(rank):
            g.mark((y, i), zero((x, i)))
            if i != axis:
                g.same((x, i), (y, i))
    unmark(op, g)


def along_columns(op: Op, g: Axes, value: ir.Value, axis: int, *parameters: int) -> None:
    """Scales and zero points of one value per index of `axis`, as a vector or as [..., 1, n] or [..., n, 1]."""
    rank = len(op.shape(value))
    for i in parameters:
        v = op.input(i)
        if v is not None and len(op.shape(v)) == 1:
            g.same((v, 0), (value, axis))
        for k in range(len(op.shape(v)) if v is not None and len(op.shape(v)) == rank > 1 else 0):
            g.same((v, k), (value, k))


def column_zero(op: Op, g: Axes, scale: int, at: int, zero: Zero, column: Slot) -> Zero:
    """Per-channel zero points are masked too, to 0: then only a scale that goes with them, or that they are 0 anyway,
    makes the channel zero."""
    varies = op.input(at) is not None and len(op.shape(op.input(at))) > 0 and max(op.shape(op.input(at))) > 1
    scaled = scale >= 0 and op.input(scale) is not None and max(op.shape(op.input(scale)), default=1) > 1
    good = not varies or scaled or is_literal(g.shapes, op.node, at)
    return lambda slot: zero(slot) and (good or slot != column)


def integer_conv(op: Op, g: Axes) -> None:
    """QLinearConv, ConvInteger."""
    quantised = op.kind == "QLinearConv"
    j, scale, at, bias = (3, 4, 5, 8) if quantised else (1, -1, 3, 99)
    w = op.inputs[j]
    assert w is not None
    along_columns(op, g, w, 0, at, *([scale] if quantised else []))
    convolve(op, g, 0, j, bias, column_zero(op, g, scale, at, reader(op, g), (w, 0)))
    unmark(op, g)


def integer_matmul(op: Op, g: Axes) -> None:
    """QLinearMatMul, MatMulInteger, MatMulIntegerToFloat, DynamicQuantizeMatMul."""
    # positions of b; scale and zero point of a; of b; bias
    j, sa, za, sb, zb, bias = {
        "QLinearMatMul": (3, 1, 2, 4, 5, -1),
        "MatMulInteger": (1, -1, 2, -1, 3, -1),
        "MatMulIntegerToFloat": (1, 2, 4, 3, 5, 6),
        "DynamicQuantizeMatMul": (1, -1, -1, 2, 3, 4),
    }[op.kind]
    a, b, y = op.inputs[0], op.inputs[j], op.out
    assert a is not None and b is not None
    last = (b, len(op.shape(b)) - 1)
    along_columns(op, g, b, last[1], *(i for i in (sb, zb) if i >= 0))
    along_columns(op, g, a, max(0, len(op.shape(a)) - 2), *(i for i in (sa, za) if i >= 0))
    if op.kind == "DynamicQuantizeMatMul":
        for axis in range(len(op.shape(a))):
            g.need_zero((a, axis), "the quantisation range is taken over all channels")
    multiply(op, g, 0, j, column_zero(op, g, sb, zb, reader(op, g), last))
    add_bias(op, g, bias, y)
    unmark(op, g)


def add_bias(op: Op, g: Axes, i: int, y: ir.Value) -> None:
    bias = op.input(i) if i >= 0 else None
    if bias is not None:
        last = len(op.shape(y)) - 1
        g.same((bias, len(op.shape(bias)) - 1), (y, last))
        for axis in range(last + 1):
            g.mark((y, axis), axis == last and g.zero((bias, len(op.shape(bias)) - 1)))


def q_gemm(op: Op, g: Axes) -> None:
    """A, its scale and zero point; B, its; C; scale and zero point of y, which is floating-point without them."""
    b, y = op.inputs[3], op.out
    assert b is not None
    column = (b, 0 if op.attr("transB", 0) else 1)
    along_columns(op, g, b, column[1], 4, 5)
    multiply(op, g, 0, 3, column_zero(op, g, 4, 5, reader(op, g), column))
    add_bias(op, g, 6, y)
    if op.input(8) is not None:
        unmark(op, g)


def matmul_nbits(op: Op, g: Axes) -> None:
    """A [.., K], B [N, blocks, bytes], scales [N, blocks] (flat in old models), zero points packed by row, bias [N].

    Masked scales are zero, so a removed row or block weighs nothing whatever its packed numbers say."""
    a, b, scales, zeros, y = op.inputs[0], op.inputs[1], op.inputs[2], op.input(3), op.out
    assert a is not None and b is not None and scales is not None
    rank, blocks = len(op.shape(a)), op.shape(b)[1]
    column, depth, block = (y, rank - 1), op.shape(a)[-1], g.virtual("blocks", blocks)
    for axis in range(rank - 1):
        g.same((a, axis), (y, axis))
        g.mark((y, axis), g.zero((a, axis)) and op.input(5) is None)
    g.same((b, 0), column)
    g.same((b, 1), block)
    g.freeze((b, 2), "packed numbers")
    if len(op.shape(scales)) == 1:
        g.factor((scales, 0), [((b, 0), op.shape(b)[0]), (block, blocks)])
    else:
        g.same((scales, 0), (b, 0))
        g.same((scales, 1), block)
    if zeros is not None:
        row = int(np.prod(op.shape(zeros))) // op.shape(b)[0]
        if len(op.shape(zeros)) == 1:
            packed = g.virtual("row", row)
            g.factor((zeros, 0), [((b, 0), op.shape(b)[0]), (packed, row)])
            g.freeze(packed, PACKED)
        else:
            g.same((zeros, 0), (b, 0))
            g.freeze((zeros, 1), PACKED)
        g.freeze(block, PACKED)
    inside = g.virtual("inside", depth // blocks)
    if depth == blocks * int(op.attr("block_size", 32)) and op.input(4) is None:
        g.factor((a, rank - 1), [(block, blocks), (inside, depth // blocks)])
        g.freeze(inside, "positions in a block that shares its scale")
    else:
        g.freeze((a, rank - 1), "the inputs are permuted, or the last block is shorter than the others")
        g.freeze(block, "the inputs are permuted, or the last block is shorter than the others")
    g.mark(column, g.zero((scales, 0)))
    if op.input(5) is not None:
        g.same((op.input(5), 0), column)
        g.mark(column, g.zero((op.input(5), 0)))


def follow_sizes(op: Op, edit: Edit) -> None:
    a, y = op.inputs[0], op.out
    edit.set_attr(op, "K", edit.count((a, len(op.shape(a)) - 1)))
    edit.set_attr(op, "N", edit.count((y, len(op.shape(y)) - 1)))


BLOCKS = "whole blocks"
RULES: Table = (
    rows(linear, "QuantizeLinear", "DequantizeLinear", note=BLOCKS)
    | rows(linear, "QuantizeLinear", "DequantizeLinear", domain=MICROSOFT, note=BLOCKS)
    | rows(dynamic_quantize, "DynamicQuantizeLinear", note="exact where masking gives zero")
    | rows(integer_conv, "QLinearConv", "ConvInteger", repair=follow_group)
    | rows(integer_matmul, "QLinearMatMul", "MatMulInteger")
    | rows(integer_matmul, "MatMulIntegerToFloat", "DynamicQuantizeMatMul", domain=MICROSOFT)
    | rows(
        pointwise,
        "QLinearLeakyRelu",
        "QLinearSigmoid",
        "QLinearGlobalAveragePool",
        "QLinearAveragePool",
        domain=MICROSOFT,
    )
    | rows(broadcast, "QLinearAdd", "QLinearMul", domain=MICROSOFT)
    | rows(concat, "QLinearConcat", domain=MICROSOFT)
    | rows(q_gemm, "QGemm", domain=MICROSOFT)
    | rows(matmul_nbits, "MatMulNBits", repair=follow_sizes, domain=MICROSOFT, note=BLOCKS)
)
