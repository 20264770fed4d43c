"""Ops that take or place parts of an axis: Concat, Split, Slice, Gather, Pad."""

from __future__ import annotations

import numpy as np

from spa.coupling.axes import Axes, Index, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows


def others_pass(op: Op, g: Axes, but: set[int]) -> None:
    """Input 0 and the output agree on all axes except `but`."""
    x, y = op.inputs[0], op.out
    assert x is not None
    for axis in range(len(op.shape(x))):
        if axis not in but:
            g.same((x, axis), (y, axis))
            g.mark((y, axis), g.zero((x, axis)))


def concat(op: Op, g: Axes) -> None:
    y = op.out
    rank = len(op.shape(y))
    axis, offset = int(op.attr("axis", 1)) % rank, 0
    zero = [True] * rank
    for x in op.inputs:
        assert x is not None
        n = op.shape(x)[axis]
        g.link((x, axis), (y, axis), np.arange(n), np.arange(offset, offset + n))
        offset += n
        for i in range(rank):
            zero[i] = zero[i] and g.zero((x, i))
            if i != axis:
                g.same((x, i), (y, i))
    for i in range(rank):
        g.mark((y, i), zero[i])


def split(op: Op, g: Axes) -> None:
    x = op.inputs[0]
    assert x is not None
    axis, offset = int(op.attr("axis", 0)) % len(op.shape(x)), 0
    for y in op.outputs:
        n = op.shape(y)[axis]
        g.link((x, axis), (y, axis), np.arange(offset, offset + n), np.arange(n))
        offset += n
        for i in range(len(op.shape(x))):
            g.mark((y, i), g.zero((x, i)))
            if i != axis:
                g.same((x, i), (y, i))


def follow_split(op: Op, edit: Edit) -> None:
    axis = int(op.attr("axis", 0)) % len(op.shape(op.inputs[0]))
    sizes = [n for y in op.outputs if isinstance(n := edit.size((y, axis)), int)]
    if len(sizes) < len(op.outputs):
        return
    if op.opset < 13:
        edit.set_attr(op, "split", sizes)
    else:
        edit.set_attr(op, "num_outputs", None)
        edit.set_input(op, 1, np.array(sizes, np.int64))


def slices(op: Op) -> dict[int, Index | None] | None:
    """axis -> the indices it takes, None where they depend on data; None where not even the axes are known."""
    x = op.inputs[0]
    rank, shape = len(op.shape(x)), op.shape(x)
    if "starts" in op.node.attributes:
        starts, ends = op.attr("starts"), op.attr("ends")
        axes, steps = op.attr("axes") or range(len(starts)), [1] * len(starts)
        return {
            int(a) % rank: _range(shape[int(a) % rank], int(s), int(e), t)
            for a, s, e, t in zip(axes, starts, ends, steps, strict=True)
        }
    count = op.shape(op.inputs[1])[0]
    named = range(count) if op.input(3) is None else op.known(3)
    if named is None:
        return None
    found: dict[int, Index | None] = {}
    for k, a in enumerate(named):
        axis = int(a) % rank
        bounds = [_element(op, 1, k), _element(op, 2, k), 1 if op.input(4) is None else _element(op, 4, k)]
        if None in bounds or op.shapes.dynamic[x][axis]:  # type: ignore[index]
            found[axis] = None
        else:
            found[axis] = _range(shape[axis], *bounds)  # type: ignore[arg-type]
    return found


def _element(op: Op, i: int, k: int) -> int | None:
    value = op.input(i)
    if value is None or value not in op.shapes.known or op.shapes.varies[value].reshape(-1)[k]:
        return None
    return int(op.shapes.known[value].reshape(-1)[k])


def _range(n: int, start: int, end: int, step: int) -> Index:
    return np.arange(n)[slice(start, end, step)] if step > 0 or end >= -n else np.arange(n)[slice(start, None, step)]


def slice_(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    taken = slices(op)
    if taken is None:
        g.freeze_all(x, "sliced along axes that depend on data")
        return g.freeze_all(y, "sliced along axes that depend on data")
    others_pass(op, g, set(taken))
    for axis, index in taken.items():
        g.mark((y, axis), g.zero((x, axis)))
        if index is None or len(index) != op.shape(y)[axis]:
            g.freeze((x, axis), "sliced by bounds that depend on data")
            g.freeze((y, axis), "sliced by bounds that depend on data")
        else:
            g.link((x, axis), (y, axis), index, np.arange(len(index)))
    return None


def follow_slice(op: Op, edit: Edit) -> None:
    """New bounds where what is left is a regular range again; a Gather where it is not."""
    x, taken = op.inputs[0], slices(op)
    assert x is not None and taken is not None
    order = list(taken)
    bounds: dict[int, tuple[int, int, int]] = {}
    for axis, index in taken.items():
        if index is None or (edit.kept((x, axis)) is None and edit.kept((op.out, axis)) is None):
            continue
        left = edit.positions((x, axis))[index[edit.kept_or_all((op.out, axis))]]
        edit.require(bool((left >= 0).all()), op, "a slice takes a removed channel")
        edit.require(len(left) > 0, op, "nothing is left of a slice")
        step = int(left[1] - left[0]) if len(left) > 1 else 1
        if step == 0 or not np.array_equal(left, left[0] + step * np.arange(len(left))):
            edit.replace_by_gather(op, axis, left)
            index = np.arange(len(left))
            left, step = index, 1
        last = int(left[-1]) + (1 if step > 0 else -1)
        bounds[axis] = (int(left[0]), last if last >= 0 else -(10**9), step)
    if not bounds:
        return
    if "starts" in op.node.attributes:  # opset 1: no steps
        for i, key in enumerate(("starts", "ends")):
            old = op.attr(key)
            edit.set_attr(op, key, [bounds[a][i] if a in bounds else int(old[k]) for k, a in enumerate(order)])
        return
    for i, position in enumerate((1, 2)):
        edit.set_sizes(
            op, position, [bounds[a][i] if a in bounds else _element(op, position, k) for k, a in enumerate(order)]
        )
    steps = [
        bounds[a][2] if a in bounds else 1 if op.input(4) is None else _element(op, 4, k) for k, a in enumerate(order)
    ]
    if op.input(4) is not None or any(s != 1 for s in steps):
        if op.input(3) is None:
            edit.set_input(op, 3, np.array(order, np.int64))
        edit.set_sizes(op, 4, steps)


def gather(op: Op, g: Axes) -> None:
    """y's axes: those of x before `axis`, those of the indices, those of x after."""
    x, indices, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None and indices is not None
    rank, inner = len(op.shape(x)), len(op.shape(indices))
    axis = int(op.attr("axis", 0)) % rank
    for i in range(rank):
        if i != axis:
            out = i if i < axis else i - 1 + inner
            g.same((x, i), (y, out))
            g.mark((y, out), g.zero((x, i)))
    known = op.known(1)
    spread = [(y, axis + k) for k in range(inner)]
    if known is None or op.shape(x)[axis] in (0, 1):
        g.freeze((x, axis), "indexed by data")
        for k, slot in enumerate(spread):
            if known is None:
                g.same((indices, k), slot)
            g.mark(slot, False)
        return
    index = np.asarray(known, np.int64).reshape(-1) % op.shape(x)[axis]
    for k, slot in enumerate(spread):
        g.mark(slot, g.zero((x, axis)) and g.zero((indices, k)))
    if inner == 0:
        g.freeze((x, axis), "this index alone is taken", index)
    elif inner == 1:
        g.link((x, axis), spread[0], index, np.arange(len(index)))
    else:
        merged = g.virtual("indices", len(index))
        g.link((x, axis), merged, index, np.arange(len(index)))
        g.factor(merged, [(slot, op.shape(indices)[k]) for k, slot in enumerate(spread)])


def follow_gather(op: Op, edit: Edit) -> None:
    x, known = op.inputs[0], op.known(1)
    assert x is not None
    if known is None:
        return
    axis = int(op.attr("axis", 0)) % len(op.shape(x))
    index = np.asarray(known, np.int64) % op.shape(x)[axis]
    for k in range(index.ndim):
        index = np.compress(edit.kept_or_all((op.out, axis + k)), index, axis=k)
    index = edit.positions((x, axis))[index]
    edit.require(bool((index >= 0).all()), op, "a Gather takes a removed channel")
    if index.shape != known.shape or not np.array_equal(index, known):  # -1 of a shorter axis is another index
        edit.set_input(op, 1, index.astype(known.dtype))


def pad(op: Op, g: Axes) -> None:
    """Constant padding shifts an axis; the padding itself is a channel like any other, and needs no weight."""
    x, y = op.inputs[0], op.out
    assert x is not None
    widths = pads(op)
    if widths is None:
        g.freeze_all(x, "padded by widths that depend on data")
        return g.freeze_all(y, "padded by widths that depend on data")
    others_pass(op, g, {a for a, w in widths.items() if w != (0, 0)})
    constant = op.attr("mode", "constant") in ("constant", b"constant")
    value = op.attr("value", 0.0) if op.opset < 11 else 0.0 if op.input(2) is None else op.known(2)
    for axis, (begin, end) in widths.items():
        if (begin, end) == (0, 0):
            continue
        if not constant:
            g.freeze((x, axis), "padded with its own positions")
            g.freeze((y, axis), "padded with its own positions")
            continue
        n = op.shape(x)[axis]
        taken = np.arange(max(0, -begin), n - max(0, -end))
        g.link((x, axis), (y, axis), taken, taken + begin)
        g.mark((y, axis), g.zero((x, axis)))
    if any(max(w) > 0 for w in widths.values()) and (value is None or np.any(value)):
        for axis in range(len(op.shape(y))):  # a masked channel is padded as well
            g.mark((y, axis), False)
    return None


def pads(op: Op) -> dict[int, tuple[int, int]] | None:
    """axis -> (before, after); negative widths crop."""
    rank = len(op.shape(op.inputs[0]))
    given = op.attr("pads", op.attr("paddings")) if op.opset < 11 else op.known(1)
    if given is None:
        return None
    axes = list(range(rank))
    if op.input(3) is not None:
        named = op.known(3)
        if named is None:
            return None
        axes = [int(a) % rank for a in named]
    half = len(given) // 2
    return {a: (int(given[k]), int(given[half + k])) for k, a in enumerate(axes)}


def follow_pad(op: Op, edit: Edit) -> None:
    x, y, widths = op.inputs[0], op.out, pads(op)
    assert x is not None
    if widths is None:
        return
    new = dict(widths)
    for axis, (begin, end) in widths.items():
        kept = edit.kept((y, axis))
        before, after = max(0, begin), max(0, end)
        if kept is not None and (before or after):
            new[axis] = (
                int(kept[:before].sum()) or min(begin, 0),
                int(kept[len(kept) - after :].sum()) if after else end,
            )
        inner = edit.kept((x, axis))
        if inner is not None and (begin < 0 or end < 0):
            new[axis] = (
                -int(inner[:-begin].sum()) if begin < 0 else new[axis][0],
                -int(inner[end:].sum()) if end < 0 else new[axis][1],
            )
    if new == widths:
        return
    values = [w[0] for w in new.values()] + [w[1] for w in new.values()]
    if op.opset < 11:
        edit.set_attr(op, "pads", values)
    else:
        edit.set_input(op, 1, np.array(values, np.int64))


RULES: Table = (
    rows(concat, "Concat")
    | rows(split, "Split", repair=follow_split)
    | rows(slice_, "Slice", repair=follow_slice)
    | rows(gather, "Gather", repair=follow_gather)
    | rows(pad, "Pad", repair=follow_pad)
)
