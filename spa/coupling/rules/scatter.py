"""Gathers and scatters by element or by coordinates: axes that are indexed stay, axes beside them pass.

Indices that are constants and address a single axis are an index map like any other, and follow what is removed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spa.coupling.axes import Axes, Index, Op, Slot
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows

INDEXED = "indexed by data"


def leading(g: Axes, a: Slot, b: Slot) -> None:
    """The indices of b are the first ones of a."""
    n = g.add(b)
    g.link(a, b, np.arange(n), np.arange(n))


def gather_elements(op: Op, g: Axes) -> None:
    """y[i, j] = x[index[i, j], j] for axis 0; the indices may be fewer than x is long elsewhere."""
    x, indices, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None and indices is not None
    rank = len(op.shape(x))
    axis = int(op.attr("axis", 0)) % rank
    for i in range(rank):
        g.same((indices, i), (y, i))
        if i == axis:
            g.freeze((x, i), INDEXED)
            g.mark((y, i), False)
        else:
            leading(g, (x, i), (y, i))
            g.mark((y, i), g.zero((x, i)))


def scatter_elements(op: Op, g: Axes) -> None:
    """y = x, but y[index[i, j], j] = (or +=, ...) updates[i, j] for axis 0."""
    x, indices, updates, y = op.inputs[0], op.inputs[1], op.inputs[2], op.out
    assert x is not None and indices is not None and updates is not None
    rank = len(op.shape(x))
    axis = int(op.attr("axis", 0)) % rank
    for i in range(rank):
        g.same((x, i), (y, i))
        g.same((indices, i), (updates, i))
        g.mark((y, i), g.zero((x, i)) and g.zero((updates, i)))
        if i == axis:
            g.freeze((x, i), INDEXED)
            g.freeze((updates, i), INDEXED)
        else:
            leading(g, (x, i), (updates, i))


def coordinates(op: Op) -> tuple[int, int, int]:
    """Batch axes, length of a coordinate, number of axes of the indices before it."""
    shape = op.shape(op.inputs[1])
    return int(op.attr("batch_dims", 0)), shape[-1], len(shape) - 1


def one_axis(op: Op) -> Index | None:
    """The places that constant indices take on axis 0, where they address nothing else."""
    batch, length, _ = coordinates(op)
    known, n = op.known(1), op.shape(op.inputs[0])[0]
    if batch or length != 1 or known is None or n <= 1:
        return None
    return np.asarray(known, np.int64).reshape(-1) % n


def picked(g: Axes, op: Op, whole: Slot, places: Index, part: ir.Value, count: int) -> None:
    """The first `count` axes of `part`, flattened, are these places of an axis."""
    slots = [(part, k) for k in range(count)]
    if not slots:
        g.freeze(whole, "this index alone is taken", places)
    elif count == 1:
        g.link(whole, slots[0], places, np.arange(len(places)))
    else:
        merged = g.virtual("places", len(places))
        g.link(whole, merged, places, np.arange(len(places)))
        g.factor(merged, [(s, g.add(s)) for s in slots])


def gather_nd(op: Op, g: Axes) -> None:
    """y: the axes of the indices but the last, then those of x that no coordinate addresses."""
    x, indices, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None and indices is not None
    batch, length, outer = coordinates(op)
    for i in range(batch):
        g.same((x, i), (y, i))
        g.mark((y, i), g.zero((x, i)))
    for k in range(len(op.shape(x)) - batch - length):
        g.same((x, batch + length + k), (y, outer + k))
        g.mark((y, outer + k), g.zero((x, batch + length + k)))
    g.freeze((indices, outer), "coordinates")
    places = one_axis(op)
    if places is not None:
        for k in range(outer):
            g.mark((y, k), g.zero((x, 0)))
        return picked(g, op, (x, 0), places, y, outer)
    for i in range(batch, batch + length):
        g.freeze((x, i), INDEXED)
    for k in range(outer):
        g.same((indices, k), (y, k))
        if k >= batch:
            g.mark((y, k), False)
    return None


def scatter_nd(op: Op, g: Axes) -> None:
    """y = x with slices replaced (or added to, ...) where the indices point; updates as GatherND's output."""
    x, indices, updates, y = op.inputs[0], op.inputs[1], op.inputs[2], op.out
    assert x is not None and indices is not None and updates is not None
    _, length, outer = coordinates(op)
    for i in range(len(op.shape(x))):
        g.same((x, i), (y, i))
        other = (updates, outer + i - length)
        if i >= length:
            g.same((x, i), other)
        g.mark((y, i), g.zero((x, i)) and (i < length or g.zero(other)))
    g.freeze((indices, outer), "coordinates")
    places = one_axis(op)
    if places is not None:
        g.mark((y, 0), all(g.zero((updates, k)) for k in range(outer)))
        return picked(g, op, (x, 0), places, updates, outer)
    for i in range(length):
        g.freeze((x, i), INDEXED)
    for k in range(outer):
        g.same((indices, k), (updates, k))
        g.freeze((updates, k), INDEXED)
    return None


def follow_places(op: Op, edit: Edit) -> None:
    """Constant indices of one axis point at the same rows as before."""
    places, (_, _, outer) = one_axis(op), coordinates(op)
    if places is None:
        return
    x, indices = op.inputs[0], op.inputs[1]
    part = op.out if op.kind == "GatherND" else op.inputs[2]
    index = places.reshape(op.shape(indices))
    for k in range(outer):
        index = np.compress(edit.kept_or_all((part, k)), index, axis=k)
    index = edit.positions((x, 0))[index]
    edit.require(bool((index >= 0).all()), op, "it takes a removed index")
    known = op.known(1)
    if known is None or index.shape != known.shape or not np.array_equal(index, known):
        edit.set_input(op, 1, index)


def tensor_scatter(op: Op, g: Axes) -> None:
    """past, update, where to write along `axis` -> present."""
    past, update, at, y = op.inputs[0], op.inputs[1], op.input(2), op.out
    assert past is not None and update is not None
    rank = len(op.shape(past))
    for i in range(rank):
        g.same((past, i), (y, i))
        g.mark((y, i), g.zero((past, i)) and g.zero((update, i)))
        if i == int(op.attr("axis", -2)) % rank:
            g.freeze((past, i), "positions of a cache")
            g.freeze((update, i), "positions of a cache")
        else:
            g.same((past, i), (update, i))
    if at is not None:
        g.same((at, 0), (past, 0))


def compress(op: Op, g: Axes) -> None:
    """Indices of one axis (of the flat tensor without one) where a condition holds."""
    x, condition, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None
    flat = "axis" not in op.node.attributes
    axis = int(op.attr("axis", 0)) % len(op.shape(x))
    g.freeze_all(condition, "selects by position")
    for i in range(len(op.shape(x))):
        if flat or i == axis:
            g.freeze((x, i), "selected by a condition")
            g.freeze((y, 0 if flat else i), "selected by a condition")
        else:
            g.same((x, i), (y, i))
            g.mark((y, i), g.zero((x, i)))


def one_hot(op: Op, g: Axes) -> None:
    indices, y = op.inputs[0], op.out
    assert indices is not None
    axis = int(op.attr("axis", -1)) % len(op.shape(y))
    g.freeze((y, axis), "classes of a OneHot")
    for i in range(len(op.shape(y))):
        g.mark((y, i), False)
        if i != axis:
            g.same((indices, i - (i > axis)), (y, i))


def col2im(op: Op, g: Axes) -> None:
    """x [N, C * block, L] -> y [N, C, image]: every channel has its own block of rows."""
    x, y = op.inputs[0], op.out
    assert x is not None
    channels = op.shape(y)[1]
    block = op.shape(x)[1] // channels
    within = g.virtual("block", block)
    g.same((x, 0), (y, 0))
    g.factor((x, 1), [((y, 1), channels), (within, block)])
    g.freeze(within, "positions in a block")
    for v in (x, y):
        for axis in range(2, len(op.shape(v))):
            g.freeze((v, axis), "positions of an image")
    for axis in (0, 1):
        g.mark((y, axis), g.zero((x, axis)))


RULES: Table = (
    rows(gather_elements, "GatherElements", note="the axis is blocked")
    | rows(scatter_elements, "ScatterElements", "Scatter", note="the axis is blocked")
    | rows(
        gather_nd, "GatherND", repair=follow_places, note="indexed axes are blocked, but for one with constant indices"
    )
    | rows(
        scatter_nd,
        "ScatterND",
        repair=follow_places,
        note="indexed axes are blocked, but for one with constant indices",
    )
    | rows(tensor_scatter, "TensorScatter", note="positions are blocked")
    | rows(compress, "Compress", note="the axis is blocked")
    | rows(one_hot, "OneHot", note="classes are blocked")
    | rows(col2im, "Col2Im", note="positions are blocked")
)
