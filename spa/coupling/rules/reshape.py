"""Reshapes: every axis is a product of factors, and each factor is a slot of its own.

From both shapes the common refinement of strides is read off, block by block: (12*64) -> (12, 64) makes the merged
axis a product of heads and head dimensions; (C, H, W) -> (C*H*W) makes the flat axis a product of channels and
positions. Shapes without a common refinement, such as (6, 4) -> (4, 6), are blocked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from spa.coupling.analysis import Mask
from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs of axis lists (of sizes other than 1) with equal products, as short as can be.

    >>> blocks((2, 3, 8, 1), (6, 2, 4))
    [([0, 1], [0]), ([2], [1, 2])]
    """
    left = [i for i, n in enumerate(before) if n != 1]
    right = [i for i, n in enumerate(after) if n != 1]
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        a, b = [left[i]], [right[j]]
        m, n = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        while m != n:
            if m < n and i < len(left):
                a.append(left[i])
                m, i = m * before[left[i]], i + 1
            elif n < m and j < len(right):
                b.append(right[j])
                n, j = n * after[right[j]], j + 1
            else:
                return [([*left], [*right])]
        found.append((a, b))
    return found


def strides(sizes: Sequence[int]) -> list[int]:
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def couple_shapes(g: Axes, x: ir.Value, before: Sequence[int], y: ir.Value, after: Sequence[int]) -> None:
    """State how the axes of x, read as `before`, make up those of y, read as `after`, in row-major order."""
    if 0 in before or 0 in after:
        return
    for number, (a, b) in enumerate(blocks(before, after)):
        zero = all(g.zero((x, i)) for i in a)
        for j in b:
            g.mark((y, j), zero)
        if len(a) == len(b) == 1:
            g.same((x, a[0]), (y, b[0]))
            continue
        sizes_a, sizes_b = [before[i] for i in a], [after[j] for j in b]
        total = math.prod(sizes_a)
        cuts = sorted({*strides(sizes_a), *strides(sizes_b)} - {total}, reverse=True)
        if total != math.prod(sizes_b) or any(hi % lo for hi, lo in zip([total, *cuts], cuts, strict=False)):
            for slot in [*((x, i) for i in a), *((y, j) for j in b)]:
                g.freeze(slot, f"reshaped from {tuple(sizes_a)} to {tuple(sizes_b)}, which share no factors")
            continue
        parts = [g.virtual((number, k), hi // lo) for k, (hi, lo) in enumerate(zip([total, *cuts], cuts, strict=False))]
        places = [(hi, lo) for hi, lo in zip([total, *cuts], cuts, strict=False)]
        for v, axes, sizes in ((x, a, sizes_a), (y, b, sizes_b)):
            for axis, n, stride in zip(axes, sizes, strides(sizes), strict=True):
                inside = [
                    (p, hi // lo)
                    for p, (hi, lo) in zip(parts, places, strict=True)
                    if hi <= n * stride and lo >= stride
                ]
                g.factor((v, axis), inside)


def reshape(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    couple_shapes(g, x, op.shape(x), y, op.shape(y))


def follow_shape(op: Op, edit: Edit) -> None:
    check_consistent(op, edit)
    if "shape" in op.node.attributes:  # opset 1
        edit.set_attr(
            op,
            "shape",
            [n if n is not None else -1 for n in (edit.size((op.out, a)) for a in range(len(op.shape(op.out))))],
        )
        return
    rank = len(op.shape(op.out))
    edit.set_sizes(op, 1, [edit.size((op.out, a)) for a in range(rank)], inferred=True)


def check_consistent(op: Op, edit: Edit) -> None:
    """What is left of both sides must be the same elements in the same order."""
    x, y = op.inputs[0], op.out
    assert x is not None
    for a, b in blocks(op.shape(x), op.shape(y)):
        kept = [edit.kept_or_all((v, i)) for v, axes in ((x, a), (y, b)) for i in axes]
        if all(k.all() for k in kept):
            continue
        left, right = (_outer(k) for k in (kept[: len(a)], kept[len(a) :]))
        edit.require(
            np.array_equal(left, right), op, "what is left of a reshaped axis is no longer a product of its factors"
        )


def _outer(masks: list[Mask]) -> Mask:
    out = masks[0]
    for m in masks[1:]:
        out = np.logical_and.outer(out, m).reshape(-1)
    return out


def squeeze(op: Op, g: Axes) -> None:
    """Flatten, Squeeze and Unsqueeze are reshapes whose target no constant names."""
    reshape(op, g)


def name_axes(op: Op, edit: Edit) -> None:
    """A Squeeze without axes would drop an axis that pruning brought down to size 1."""
    check_consistent(op, edit)
    if op.kind == "Squeeze" and op.axes(1) is None:
        axes = [i for i, n in enumerate(op.shape(op.inputs[0])) if n == 1]
        if op.opset >= 13:
            edit.set_input(op, 1, np.array(axes, np.int64))
        else:
            edit.set_attr(op, "axes", axes)


RULES: Table = rows(reshape, "Reshape", repair=follow_shape) | rows(
    squeeze, "Flatten", "Squeeze", "Unsqueeze", repair=name_axes
)
