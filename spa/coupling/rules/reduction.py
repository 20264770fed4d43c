"""Reductions: kept axes pass; over a reduced axis a sum forgets zeros, a mean does so once rescaled, an extremum does not."""

from __future__ import annotations

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows

SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare")
OTHERS = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


def reduced(op: Op) -> list[int] | None:
    """The axes that vanish; None where they depend on data."""
    rank = len(op.shape(op.inputs[0]))
    none_given = "axes" not in op.node.attributes and op.input(1) is None
    axes = op.axes(1, default=())
    if axes is None:
        return None
    if not axes and (none_given or op.known(1) is not None):
        return [] if op.attr("noop_with_empty_axes", 0) else list(range(rank))
    return [a % rank for a in axes]


def reduce(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    over = reduced(op)
    if over is None:
        g.freeze_all(x, "reduced over axes that depend on data")
        return g.freeze_all(y, "reduced over axes that depend on data")
    keep, place = bool(op.attr("keepdims", 1)), 0
    for axis in range(len(op.shape(x))):
        zero = g.zero((x, axis))
        if axis in over:
            if op.kind in SUMS:
                g.need_zero((x, axis), f"{op.kind} over this axis counts what masking leaves")
            else:
                g.freeze((x, axis), f"{op.kind} over this axis", approximate=True)
            place += keep
            continue
        g.same((x, axis), (y, place))
        if op.kind == "ReduceLogSum" and zero:
            g.freeze((x, axis), "masking makes the logarithm infinite")
        g.mark((y, place), zero and op.kind != "ReduceLogSumExp")
        place += 1
    return None


def rescale_mean(op: Op, edit: Edit) -> None:
    """A mean over C' of C channels, the others zero: times C'/C it is the mean over all."""
    if op.kind != "ReduceMean":
        return
    x, over = op.inputs[0], reduced(op)
    assert x is not None and over is not None
    before = after = 1
    for axis in over:
        before, after = before * op.shape(x)[axis], after * edit.count((x, axis))
    if before != after:
        edit.scale_output(op, after / before)


def along(op: Op, g: Axes) -> None:
    """ArgMax, CumSum, TopK and the like: one axis is ordered or ranked, the others pass."""
    x = op.inputs[0]
    assert x is not None
    rank = len(op.shape(x))
    cumulates = op.kind in ("CumSum", "CumProd")
    known = op.known(1) if cumulates else None
    axis = int(known.reshape(-1)[0]) if known is not None else int(op.attr("axis", -1 if op.kind == "TopK" else 0))
    blocked = cumulates and known is None
    keeps = op.kind in ("CumSum", "TopK") or (op.kind == "CumProd" and not op.attr("exclusive", 0))  # zeros
    for y in op.outputs:
        dropped = len(op.shape(y)) < rank
        for i in range(rank):
            out = i - (dropped and i > axis % rank)
            if i == axis % rank or blocked:
                g.freeze((x, i), f"{op.kind} along this axis")
                if not dropped:
                    g.freeze((y, i), f"{op.kind} along this axis")
            else:
                g.same((x, i), (y, out))
                g.mark((y, out), keeps and y is op.out and g.zero((x, i)))


RULES: Table = (
    rows(reduce, *SUMS, repair=rescale_mean, note="exact where masking gives zero")
    | rows(reduce, *OTHERS, note="reduced axes are blocked")
    | rows(along, "ArgMax", "ArgMin", "CumSum", "CumProd", "TopK", note="the axis is blocked")
)
