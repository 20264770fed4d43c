"""Detection and warping: channels pass, positions are interpolated, boxes are data."""

from __future__ import annotations

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows
from spa.coupling.rules.contraction import convolve, follow_group

POSITIONS = "positions are interpolated"


def grid_sample(op: Op, g: Axes) -> None:
    """X [N, C, ...], grid [N, ..., d] -> y [N, C, ...]."""
    x, grid, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None and grid is not None
    rank = len(op.shape(x))
    g.same((x, 0), (y, 0))
    g.same((grid, 0), (y, 0))
    g.same((x, 1), (y, 1))
    g.freeze((grid, rank - 1), "coordinates")
    for axis in range(2, rank):
        g.freeze((x, axis), POSITIONS)
        g.same((grid, axis - 1), (y, axis))
    for axis in range(rank):
        g.mark((y, axis), axis < 2 and g.zero((x, axis)))


def rois(op: Op, g: Axes) -> None:
    """RoiAlign, MaxRoiPool: X [N, C, H, W], boxes [R, 4 or 5] -> y [R, C, h, w]."""
    x, y = op.inputs[0], op.out
    assert x is not None
    g.same((x, 1), (y, 1))
    g.mark((y, 0), False)
    g.mark((y, 1), g.zero((x, 1)))
    for v in op.inputs[1:3]:
        if v is not None:
            g.same((v, 0), (y, 0))
            g.freeze((v, 1), "coordinates of a box")
    for axis in (0, 2, 3):
        g.freeze((x, axis), "boxes point at images and positions")
        if axis:
            g.freeze((y, axis), POSITIONS)


def deform_conv(op: Op, g: Axes) -> None:
    """X, W, offset [N, offset groups * taps * 2, ...], B, mask [N, offset groups * taps, ...] -> y.

    Channels of X form offset groups besides those of the convolution; the groups of offsets may go as a whole."""
    x, y, groups = op.inputs[0], op.out, int(op.attr("offset_group", 1))
    assert x is not None
    convolve(op, g, 0, 1, 3, g.zero)
    group, channels = g.virtual("offset_group", groups), op.shape(x)[1]
    g.factor((x, 1), [(group, groups), (g.virtual("in offset group", channels // groups), channels // groups)])
    for name, v in (("offset", op.inputs[2]), ("mask", op.input(4))):
        if v is None:
            continue
        taps = g.virtual(name, op.shape(v)[1] // groups)
        g.same((v, 0), (y, 0))
        g.factor((v, 1), [(group, groups), (taps, op.shape(v)[1] // groups)])
        g.freeze(taps, "taps of a deformable convolution")
        for axis in range(2, len(op.shape(v))):
            g.freeze((v, axis), POSITIONS)


def follow_groups(op: Op, edit: Edit) -> None:
    follow_group(op, edit)
    groups = int(op.attr("offset_group", 1))
    if groups > 1:
        edit.set_attr(op, "offset_group", edit.count_virtual(op, "offset_group", groups))


def center_crop_pad(op: Op, g: Axes) -> None:
    """Axes that keep their size pass."""
    x, y = op.inputs[0], op.out
    assert x is not None
    for axis, (m, n) in enumerate(zip(op.shape(x), op.shape(y), strict=True)):
        g.mark((y, axis), m == n and g.zero((x, axis)))
        if m == n:
            g.same((x, axis), (y, axis))
        else:
            g.freeze((x, axis), "cropped or padded around the centre")
            g.freeze((y, axis), "cropped or padded around the centre")


def follow_target(op: Op, edit: Edit) -> None:
    rank = len(op.shape(op.out))
    axes = [int(a) % rank for a in op.attr("axes") or range(rank)]
    edit.set_sizes(op, 1, [edit.size((op.out, a)) for a in axes])


def causal_conv(op: Op, g: Axes) -> None:
    """x [B, C, L], W [C, 1, k], bias [C], past [B, C, k-1] -> y [B, C, L], the next past."""
    x, w, bias, past = op.inputs[0], op.inputs[1], op.input(2), op.input(3)
    assert x is not None and w is not None
    for v, axis in ((w, 0), (bias, 0), (past, 1), *((y, 1) for y in op.outputs)):
        if v is not None and op.shape(v):
            g.same((v, axis), (x, 1))
    for v in (x, w, past, *op.outputs):
        if v is not None and op.shape(v):
            g.freeze((v, 2), "positions are mixed by a window")
            if v is not w:
                g.same((v, 0), (x, 0))
    g.kernel.add((w, 2))
    held = past is None or g.zero((past, 1))
    for axis in (0, 1):
        empty = g.zero((x, axis)) and (past is None or g.zero((past, axis)))
        weightless = axis == 1 and g.zero((w, 0))
        silent = bias is None or (axis == 1 and g.zero((bias, 0)))
        g.mark((op.out, axis), (empty or weightless) and silent)
        for state in op.outputs[1:]:
            g.mark((state, axis), empty and held)


RULES: Table = (
    rows(grid_sample, "GridSample", note="positions are blocked")
    | rows(rois, "RoiAlign", "MaxRoiPool", note="positions are blocked")
    | rows(deform_conv, "DeformConv", repair=follow_groups)
    | rows(center_crop_pad, "CenterCropPad", repair=follow_target, note="cropped and padded axes are blocked")
    | rows(causal_conv, "CausalConvWithState", note="positions are blocked")
)
