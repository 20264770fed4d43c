"""Contractions: the channels of an operand end here, summed against a weight; the output has the weight's other axis.

A removed index of the contracted axis is exact when either side is zero there: constants always are, once masked.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from spa.coupling.axes import Axes, Op, Slot
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows

WINDOW = "spatial positions are mixed by a window"
SUMMED = "summed against a value that masking does not make zero"
Zero = Callable[[Slot], bool]  # `g.zero`, or what an op with zero points makes of it


def contract(g: Axes, a: ir.Value, i: int, b: ir.Value, j: int, zero: Zero | None = None) -> None:
    """sum over index k of a[.. k ..] b[.. k ..]."""
    zero = zero or g.zero
    g.same((a, i), (b, j))
    if not zero((a, i)) and not zero((b, j)):
        g.freeze((a, i), SUMMED, approximate=True)


def conv(op: Op, g: Axes) -> None:
    convolve(op, g, 0, 1, 2, g.zero)


def convolve(op: Op, g: Axes, i: int, j: int, k: int, zero: Zero) -> None:
    """x [N, C, ...], W [O, C/group, ...], B [O] -> y [N, O, ...], operands at positions i, j, k."""
    x, w, b, y = op.inputs[i], op.inputs[j], op.input(k), op.out
    assert x is not None and w is not None
    groups = int(op.attr("group", 1))
    outputs = op.shape(w)[0]
    g.same((x, 0), (y, 0))
    g.mark((y, 0), zero((x, 0)) and b is None)
    g.same((w, 0), (y, 1))
    if b is not None:
        g.same((b, 0), (y, 1))
    if groups == 1:
        contract(g, x, 1, w, 1, zero)
    else:
        group = g.virtual("group", groups)
        g.factor((x, 1), [(group, groups), ((w, 1), op.shape(w)[1])])
        g.factor((y, 1), [(group, groups), (g.virtual("within", outputs // groups), outputs // groups)])
        if not zero((x, 1)) and not zero((w, 1)):
            g.freeze((x, 1), SUMMED, approximate=True)
    g.mark((y, 1), zero((w, 0)) and (b is None or g.zero((b, 0))))
    window(op, g, x, w)


def conv_transpose(op: Op, g: Axes) -> None:
    """x [N, C, ...], W [C, O/group, ...], B [O] -> y [N, O, ...]."""
    x, w, b, y = op.inputs[0], op.inputs[1], op.input(2), op.out
    assert x is not None and w is not None
    groups = int(op.attr("group", 1))
    channels, within = op.shape(w)[0], op.shape(w)[1]
    g.same((x, 0), (y, 0))
    g.mark((y, 0), g.zero((x, 0)) and b is None)
    contract(g, x, 1, w, 0)
    if groups == 1:
        g.same((w, 1), (y, 1))
    else:
        group = g.virtual("group", groups)
        g.factor((x, 1), [(group, groups), (g.virtual("within", channels // groups), channels // groups)])
        g.factor((y, 1), [(group, groups), ((w, 1), within)])
    if b is not None:
        g.same((b, 0), (y, 1))
    g.mark((y, 1), g.zero((w, 1)) and g.zero((w, 0)) and (b is None or g.zero((b, 0))))
    window(op, g, x, w)


def window(op: Op, g: Axes, x: ir.Value, w: ir.Value) -> None:
    for v in (x, w, op.out):
        for axis in range(2, len(op.shape(v))):
            g.freeze((v, axis), WINDOW)
            if v is w:
                g.kernel.add((v, axis))


def follow_group(op: Op, edit: Edit) -> None:
    """Where whole groups were removed, `group` shrinks."""
    groups = int(op.attr("group", 1))
    if groups > 1:
        edit.set_attr(op, "group", edit.count_virtual(op, "group", groups))


def gemm(op: Op, g: Axes) -> None:
    """y [M, N] = alpha A' [M, K] B' [K, N] + beta C."""
    a, b, c, y = op.inputs[0], op.inputs[1], op.input(2), op.out
    assert a is not None and b is not None
    m, k = (1, 0) if op.attr("transA", 0) else (0, 1)
    kb, n = (1, 0) if op.attr("transB", 0) else (0, 1)
    product(g, a, [m], k, b, [n], kb, y)
    if c is not None:
        rank = len(op.shape(c))
        for axis in (0, 1):
            own = axis - 2 + rank
            if own >= 0 and op.shape(c)[own] == op.shape(y)[axis]:
                g.same((c, own), (y, axis))
                g.mark((y, axis), g.zero((y, axis)) and g.zero((c, own)))
            else:
                g.mark((y, axis), False)


def product(
    g: Axes,
    a: ir.Value,
    rows_: list[int],
    ka: int,
    b: ir.Value,
    columns: list[int],
    kb: int,
    y: ir.Value,
    zero: Zero | None = None,
) -> None:
    """The last axes of y are `rows_` of a, then `columns` of b; axis ka of a is summed against kb of b."""
    zero = zero or g.zero
    rank = len(g.shapes.shape.get(y) or ())
    contract(g, a, ka, b, kb, zero)
    own = [(a, axis) for axis in rows_] + [(b, axis) for axis in columns]
    for i, (v, axis) in enumerate(own):
        out = rank - len(own) + i
        g.same((v, axis), (y, out))
        g.mark((y, out), zero((v, axis)))


def matmul(op: Op, g: Axes) -> None:
    multiply(op, g, 0, 1, g.zero)


def multiply(op: Op, g: Axes, i: int, j: int, zero: Zero) -> None:
    """numpy's matmul: batch axes broadcast, the last of A against the second to last of B; operands at i and j."""
    a, b, y = op.inputs[i], op.inputs[j], op.out
    assert a is not None and b is not None
    ra, rb = len(op.shape(a)), len(op.shape(b))
    flip_a, flip_b = (bool(op.attr(k, 0)) for k in ("transA", "transB"))  # com.microsoft FusedMatMul
    ka, row = (ra - 2, ra - 1) if flip_a else (ra - 1, ra - 2)
    kb, column = (rb - 1, rb - 2) if flip_b else (rb - 2, rb - 1)
    if rb == 1:
        kb = 0
    product(g, a, [row] if ra > 1 else [], ka, b, [column] if rb > 1 else [], kb, y, zero)
    rank = len(op.shape(y))
    lead = rank - (ra > 1) - (rb > 1)
    for axis in range(lead):
        n, empty = op.shape(y)[axis], []
        for v, r in ((a, ra), (b, rb)):
            own = axis - lead + r - 2
            if own >= 0 and op.shape(v)[own] == n:
                g.same((v, own), (y, axis))
                empty.append(zero((v, own)))
        g.mark((y, axis), any(empty))


RULES: Table = (
    rows(conv, "Conv", repair=follow_group)
    | rows(conv_transpose, "ConvTranspose", repair=follow_group)
    | rows(gemm, "Gemm")
    | rows(matmul, "MatMul")
)
