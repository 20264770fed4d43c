"""Ops that move or repeat whole axes: Transpose, Expand, Tile, DepthToSpace, SpaceToDepth, Constant-like sources."""

from __future__ import annotations

import numpy as np

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit, Size
from spa.coupling.rules import Table, rows
from spa.coupling.rules.elementwise import is_zero


def transpose(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    rank = len(op.shape(x))
    for out, axis in enumerate(op.attr("perm") or range(rank)[::-1]):
        g.same((x, int(axis)), (y, out))
        g.mark((y, out), g.zero((x, int(axis))))


def expand(op: Op, g: Axes) -> None:
    """Axes of equal size pass; a repeated axis is free: its length stands in the shape alone."""
    x, y = op.inputs[0], op.out
    assert x is not None
    shift = len(op.shape(y)) - len(op.shape(x))
    for axis, n in enumerate(op.shape(y)):
        own = axis - shift
        if own >= 0 and op.shape(x)[own] == n:
            g.same((x, own), (y, axis))
            g.mark((y, axis), g.zero((x, own)))
        else:
            g.mark((y, axis), is_zero(op, x))


def follow_expand(op: Op, edit: Edit) -> None:
    x, y = op.inputs[0], op.out
    shift = len(op.shape(y)) - len(op.shape(x))
    sizes: list[Size] = []
    for axis in range(len(op.shape(y))):
        n = edit.size((y, axis))
        own = axis - shift
        passes = own >= 0 and op.shape(x)[own] == op.shape(y)[axis]
        sizes.append(1 if n is None and passes else n)
    shape = op.input(1)
    edit.set_sizes(op, 1, sizes[len(sizes) - op.shape(shape)[0] :])


def tile(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    for axis, (m, n) in enumerate(zip(op.shape(x), op.shape(y), strict=True)):
        if m == n:
            g.same((x, axis), (y, axis))
        elif m > 0:
            g.factor((y, axis), [(g.virtual(axis, n // m), n // m), ((x, axis), m)])
        g.mark((y, axis), m == n and g.zero((x, axis)))


def follow_tile(op: Op, edit: Edit) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    sizes: list[int | None] = []
    for axis in range(len(op.shape(y))):
        n = edit.size((y, axis))
        sizes.append(None if n is None else n // edit.count((x, axis)))
    edit.set_sizes(op, 1, sizes)


def depth_to_space(op: Op, g: Axes) -> None:
    """DCR: channels are (b, b, C'); CRD: (C', b, b). Rows and columns gain a factor b each."""
    x, y = op.inputs[0], op.out
    assert x is not None
    b = int(op.attr("blocksize"))
    column_first = op.attr("mode", "DCR") in ("CRD", b"CRD")
    vertical, horizontal = g.virtual("vertical", b), g.virtual("horizontal", b)
    for block in (vertical, horizontal):
        g.freeze(block, "one of the positions of a block")
    inner = ((y, 1), op.shape(y)[1])
    g.same((x, 0), (y, 0))
    g.factor(
        (x, 1), [inner, (vertical, b), (horizontal, b)] if column_first else [(vertical, b), (horizontal, b), inner]
    )
    for axis, block in ((2, vertical), (3, horizontal)):
        g.factor((y, axis), [((x, axis), op.shape(x)[axis]), (block, b)])
    for axis in range(4):
        g.mark((y, axis), g.zero((x, 1)) if axis == 1 else axis < 1 and g.zero((x, axis)))


def space_to_depth(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    b = int(op.attr("blocksize"))
    vertical, horizontal = g.virtual("vertical", b), g.virtual("horizontal", b)
    for block in (vertical, horizontal):
        g.freeze(block, "one of the positions of a block")
    g.same((x, 0), (y, 0))
    g.factor((y, 1), [(vertical, b), (horizontal, b), ((x, 1), op.shape(x)[1])])
    for axis, block in ((2, vertical), (3, horizontal)):
        g.factor((x, axis), [((y, axis), op.shape(y)[axis]), (block, b)])
    for axis in range(4):
        g.mark((y, axis), axis < 2 and g.zero((x, axis)))


def source(op: Op, g: Axes) -> None:
    """ConstantOfShape: its axes are as long as the shape says."""
    value = op.attr("value")
    filled = value is not None and bool(np.any(value.numpy()))
    for axis in range(len(op.shape(op.out))):
        g.mark((op.out, axis), not filled)


def follow_source(op: Op, edit: Edit) -> None:
    edit.set_sizes(op, 0, [edit.size((op.out, a)) for a in range(len(op.shape(op.out)))])


def nothing(op: Op, g: Axes) -> None:
    """Shape and Size tell sizes: `slice` repairs what is computed from them. Constant: the driver slices it."""


RULES: Table = (
    rows(transpose, "Transpose")
    | rows(expand, "Expand", repair=follow_expand)
    | rows(tile, "Tile", repair=follow_tile)
    | rows(depth_to_space, "DepthToSpace")
    | rows(space_to_depth, "SpaceToDepth")
    | rows(source, "ConstantOfShape", repair=follow_source)
    | rows(nothing, "Shape", "Size", "Constant")
)
