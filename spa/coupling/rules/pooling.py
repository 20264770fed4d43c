"""Pooling and resizing: channels pass, positions are mixed."""

from __future__ import annotations

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows
from spa.coupling.rules.contraction import WINDOW


def pool(op: Op, g: Axes) -> None:
    """x [N, C, ...]: batch and channels pass; MaxPool's indices beside them do not survive removal."""
    x = op.inputs[0]
    assert x is not None
    for y in op.outputs:
        for axis in (0, 1):
            g.same((x, axis), (y, axis))
            g.mark((y, axis), g.zero((x, axis)) and y is op.out)
            if y is not op.out:
                g.freeze((y, axis), "flat indices into the whole tensor")
        for axis in range(2, len(op.shape(y))):
            g.freeze((y, axis), WINDOW)
    for axis in range(2, len(op.shape(x))):
        g.freeze((x, axis), WINDOW)


def resize(op: Op, g: Axes) -> None:
    """Axes that keep their size pass where their scale is 1; the others are interpolated."""
    x, y = op.inputs[0], op.out
    assert x is not None
    scales = (
        op.known(1 if op.kind == "Upsample" or op.opset < 11 else 2)
        if "scales" not in op.node.attributes
        else op.attr("scales")
    )
    axes = op.attr("axes") or range(len(op.shape(x)))
    factor = {int(a): float(s) for a, s in zip(axes, scales, strict=False)} if scales is not None else {}
    crops = op.attr("coordinate_transformation_mode") in ("tf_crop_and_resize", b"tf_crop_and_resize")
    for axis, (m, n) in enumerate(zip(op.shape(x), op.shape(y), strict=True)):
        if m == n and factor.get(axis, 1.0) == 1.0 and not crops:
            g.same((x, axis), (y, axis))
            g.mark((y, axis), g.zero((x, axis)))
        else:
            g.freeze((x, axis), "positions are interpolated")
            g.freeze((y, axis), "positions are interpolated")


def follow_sizes(op: Op, edit: Edit) -> None:
    sizes = op.input(3)
    if sizes is not None and op.shape(sizes)[0] > 0:
        axes = [int(a) for a in op.attr("axes") or range(len(op.shape(op.out)))]
        edit.set_sizes(op, 3, [edit.size((op.out, a)) for a in axes])


RULES: Table = rows(
    pool,
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    note="positions are blocked",
) | rows(resize, "Resize", "Upsample", repair=follow_sizes, note="resized axes are blocked")
