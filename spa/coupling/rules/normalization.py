"""Normalisations. Per-channel ones are exact; those that average over an axis block it, unless zeros do not count.

RMS: y = x rsqrt(sum(x^2)/C + eps) w. Removing zero channels leaves the sum, so with C' channels left
eps' = eps C/C' and w' = w sqrt(C/C') give the same y.
"""

from __future__ import annotations

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows

MIXED = "normalised over this axis: removing a channel changes the others"


def batch_norm(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    for axis in range(len(op.shape(x))):
        g.same((x, axis), (y, axis))
        g.mark((y, axis), False)
    per_channel = [v for v in op.inputs[1:5] if v is not None]
    for v in per_channel:
        g.same((v, 0), (y, 1))
    if g.zero((per_channel[0], 0)) and g.zero((per_channel[1], 0)):
        g.nonzero.discard((y, 1))
    if op.attr("training_mode", 0) or len([o for o in op.outputs if o.name]) > 1:
        g.freeze((x, 0), "BatchNormalization in training mode averages over the batch")


def instance_norm(op: Op, g: Axes) -> None:
    x, scale, bias, y = op.inputs[0], op.inputs[1], op.inputs[2], op.out
    assert x is not None and scale is not None and bias is not None
    for axis in (0, 1):
        g.same((x, axis), (y, axis))
    g.same((scale, 0), (y, 1))
    g.same((bias, 0), (y, 1))
    g.mark((y, 0), False)
    g.mark((y, 1), (g.zero((scale, 0)) or g.zero((x, 1))) and g.zero((bias, 0)))
    for axis in range(2, len(op.shape(x))):
        g.freeze((x, axis), MIXED)
        g.freeze((y, axis), MIXED)


def group_norm(op: Op, g: Axes) -> None:
    """Whole groups may go: num_groups follows. Scale and bias are per channel since opset 21, per group before."""
    x, y = op.inputs[0], op.out
    assert x is not None
    groups, channels = int(op.attr("num_groups")), op.shape(x)[1]
    group, within = g.virtual("group", groups), g.virtual("within", channels // groups)
    g.same((x, 0), (y, 0))
    g.mark((y, 0), False)
    g.same((x, 1), (y, 1))
    g.factor((y, 1), [(group, groups), (within, channels // groups)])
    g.freeze(within, MIXED, approximate=True)
    zero = True
    for v in op.inputs[1:3]:
        assert v is not None
        g.same((v, 0), (y, 1) if op.shape(v)[0] == channels else group)
        zero = zero and g.zero((v, 0))
    g.mark((y, 1), zero)
    for axis in range(2, len(op.shape(x))):
        g.freeze((x, axis), MIXED)
        g.freeze((y, axis), MIXED)


def follow_groups(op: Op, edit: Edit) -> None:
    groups = int(op.attr("num_groups"))
    edit.set_attr(op, "num_groups", edit.count_virtual(op, "group", groups))


def layer_norm(op: Op, g: Axes) -> None:
    """Mean and variance over the axes from `axis` on."""
    over_last(op, g, lambda slot: g.freeze(slot, MIXED, approximate=True))


def rms_norm(op: Op, g: Axes) -> None:
    over_last(op, g, lambda slot: g.need_zero(slot, MIXED))


def over_last(op: Op, g: Axes, stop) -> None:  # type: ignore[no-untyped-def]
    x, y = op.inputs[0], op.out
    assert x is not None
    rank = len(op.shape(x))
    first = int(op.attr("axis", -1)) % rank
    for axis in range(rank):
        g.same((x, axis), (y, axis))
        zero = axis >= first
        for v in op.inputs[1:3]:
            own = axis - rank + len(op.shape(v)) if v is not None else -1
            if v is not None and own >= 0 and op.shape(v)[own] == op.shape(x)[axis]:
                g.same((v, own), (y, axis))
                zero = zero and g.zero((v, own))
        if axis >= first:
            stop((x, axis))
        g.mark((y, axis), zero if axis >= first else g.zero((x, axis)) and op.input(2) is None)
    for extra in op.outputs[1:]:  # mean and inverse deviation
        for axis in range(min(first, len(op.shape(extra)))):
            g.same((x, axis), (extra, axis))
            g.mark((extra, axis), False)


def rescale_rms(op: Op, edit: Edit) -> None:
    x = op.inputs[0]
    assert x is not None
    rank = len(op.shape(x))
    before = after = 1
    for axis in range(int(op.attr("axis", -1)) % rank, rank):
        before, after = before * op.shape(x)[axis], after * edit.count((x, axis))
    if before != after:
        edit.set_attr(op, "epsilon", float(op.attr("epsilon", 1e-5)) * before / after)
        edit.scale_input(op, 1, (before / after) ** 0.5)


def softmax(op: Op, g: Axes) -> None:
    """Over one axis; before opset 13 over all axes from `axis` on."""
    x, y = op.inputs[0], op.out
    assert x is not None
    rank = len(op.shape(x))
    axis = int(op.attr("axis", -1 if op.opset >= 13 else 1)) % rank
    mixed = [axis] if op.opset >= 13 else range(axis, rank)
    for i in range(rank):
        g.same((x, i), (y, i))
        g.mark((y, i), False)
        if i in mixed:
            g.freeze((x, i), f"{op.kind} over this axis", approximate=True)


def lrn(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    for i in range(len(op.shape(x))):
        g.same((x, i), (y, i))
        g.mark((y, i), g.zero((x, i)))
    g.freeze((x, 1), "normalised over neighbouring channels", approximate=True)


def lp_normalization(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    rank = len(op.shape(x))
    for i in range(rank):
        g.same((x, i), (y, i))
        g.mark((y, i), g.zero((x, i)))
    g.need_zero((x, int(op.attr("axis", -1)) % rank), MIXED)


def mean_variance(op: Op, g: Axes) -> None:
    """(x - mean) / deviation, without an epsilon: a channel that masking makes constant is 0/0."""
    for v in (*op.inputs, op.out):
        g.freeze_all(v, "masking leaves no variance to divide by")


RULES: Table = (
    rows(batch_norm, "BatchNormalization")
    | rows(instance_norm, "InstanceNormalization")
    | rows(group_norm, "GroupNormalization", repair=follow_groups, note="whole groups")
    | rows(layer_norm, "LayerNormalization", note="the axis is blocked")
    | rows(rms_norm, "RMSNormalization", repair=rescale_rms)
    | rows(softmax, "Softmax", "LogSoftmax", "Hardmax", note="the axis is blocked")
    | rows(lrn, "LRN", note="channels are blocked")
    | rows(lp_normalization, "LpNormalization")
    | rows(mean_variance, "MeanVarianceNormalization", note="blocked: masking leaves no variance")
)
