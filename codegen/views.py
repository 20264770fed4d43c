"""Tensors read in place: what Transpose, Reshape, Slice and the like do to an index, as strides into their source.

An element (i0, i1, ...) of a view lies at offset + i0 * strides[0] + i1 * strides[1] + ... of its source, flat, and
counts `scale` times; the source has `size` of them. A kernel that reads through a view needs no copy of what the operators between would write.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, helper

if TYPE_CHECKING:
    from spa.codegen.fusion import Graph


@dataclass(frozen=True)
class View:
    source: str
    size: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    scale: float = 1.0

    def leading(self, outer: tuple[int, ...]) -> list[int]:
        """Strides of the axes before the last two, in a batch of shape `outer`: 0 where the view is broadcast."""
        missing = len(outer) - (len(self.shape) - 2)
        own = zip(self.shape[:-2], self.strides[:-2], strict=True)
        return [0] * missing + [0 if n == 1 else s for n, s in own]


def joined(axes: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Axes (extent, stride, ...), without those of one element; neighbours that follow each other in every stride made one.

    >>> joined([(2, 12, 0), (1, 7, 7), (3, 4, 0), (4, 1, 5)])
    [(6, 4, 0), (4, 1, 5)]
    """
    found: list[tuple[int, ...]] = []
    for n, *strides in axes:
        if n == 1:
            continue
        if found and all(before == n * s for before, s in zip(found[-1][1:], strides, strict=True)):
            found[-1] = (found[-1][0] * n, *strides)
        else:
            found.append((n, *strides))
    return found


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor as it lies.

    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def view_of(graph: Graph, name: str, taken: Container[int] = ()) -> View:
    """The longest way back from a tensor over operators that only move its source's elements, or scale all alike; not
    over nodes in `taken`, which have become part of a kernel."""
    known = graph.tensors[name]
    found = graph.producer.get(name)
    node = None if found is None or found in taken else graph.nodes[found]
    step = None if node is None or node.domain not in ("", "ai.onnx") else MOVES.get(node.op_type)
    plain = View(name, math.prod(known.shape), known.shape, contiguous(known.shape))
    if node is None or step is None or any(n and n not in graph.tensors for n in node.input):
        return plain
    position = _moved(graph, node)
    if graph.tensors[node.input[position]].dtype != known.dtype:
        return plain
    return step(graph, node, name, view_of(graph, node.input[position], taken)) or plain


def _moved(graph: Graph, node: NodeProto) -> int:
    """Which operand is moved: of a product with a number, the other one."""
    first = node.op_type == "Mul" and node.input[0] in graph.consts and graph.consts[node.input[0]].size == 1
    return 1 if first else 0


def reshaped(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of the same elements in the same order under another shape, or None where there are none.

    >>> reshaped((4, 6), (6, 1), (2, 2, 6)), reshaped((4, 6), (1, 4), (24,))
    ((12, 6, 1), None)
    """
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    result: list[int] = []
    at = 0
    left, stride = 1, 0  # of the old axis in hand: elements still to split, and the stride of what is split off last
    for n in reversed([int(n) for n in new]):
        if n == 1:
            result.append(0)
            continue
        if left == 1:
            if at == len(old):
                return None
            left, stride = old[len(old) - 1 - at]
            at += 1
        while left % n:  # several old axes make this one: they must follow each other in memory
            if at == len(old) or old[len(old) - 1 - at][1] != stride * left:
                return None
            left *= old[len(old) - 1 - at][0]
            at += 1
        result.append(stride)
        left, stride = left // n, stride * n
    return tuple(reversed(result)) if left == 1 and at == len(old) else None


def _reshape(graph: Graph, node: NodeProto, name: str, x: View) -> View | None:
    new = graph.tensors[name].shape
    strides = reshaped(x.shape, x.strides, new)
    return None if strides is None else replace(x, shape=new, strides=strides)


def _transpose(graph: Graph, node: NodeProto, name: str, x: View) -> View | None:
    perm = next((list(helper.get_attribute_value(a)) for a in node.attribute), list(range(len(x.shape)))[::-1])
    return replace(x, shape=tuple(x.shape[i] for i in perm), strides=tuple(x.strides[i] for i in perm))


def _expand(graph: Graph, node: NodeProto, name: str, x: View) -> View | None:
    new = graph.tensors[name].shape
    missing = len(new) - len(x.shape)
    if missing < 0:
        return None
    shape, strides = (1,) * missing + x.shape, (0,) * missing + x.strides
    return replace(x, shape=new, strides=tuple(0 if n == 1 else s for n, s in zip(shape, strides, strict=True)))


def _slice(graph: Graph, node: NodeProto, name: str, x: View) -> View | None:
    given = [graph.consts.get(n) for n in node.input[1:]]
    if any(value is None for value in given):
        return None
    starts, _, *rest = [[int(i) for i in np.reshape(v, -1)] for v in given if v is not None]
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    offset, strides = x.offset, list(x.strides)
    for axis, start, step in zip(axes, starts, steps, strict=True):
        n = x.shape[axis]
        if step < 1:
            return None
        offset += min(max(start + n if start < 0 else start, 0), n) * x.strides[axis]
        strides[axis] *= step
    return replace(x, shape=graph.tensors[name].shape, strides=tuple(strides), offset=offset)


def _split(graph: Graph, node: NodeProto, name: str, x: View) -> View | None:
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
    before = 0
    for part in node.output:
        if part == name:
            return replace(x, shape=graph.tensors[name].shape, offset=x.offset + before * x.strides[axis])
        if part not in graph.tensors:
            return None
        before += graph.tensors[part].shape[axis]
    return None


def _gather(graph: Graph, node: NodeProto, name: str, x: View) -> View | None:
    index = graph.consts.get(node.input[1])
    if index is None or index.size != 1:
        return None
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 0) % len(x.shape)
    offset = x.offset + int(index.reshape(-1)[0]) % x.shape[axis] * x.strides[axis]
    strides = (*x.strides[:axis], *(0,) * index.ndim, *x.strides[axis + 1 :])
    return replace(x, shape=graph.tensors[name].shape, strides=strides, offset=offset)


def _scaled(graph: Graph, node: NodeProto, name: str, x: View) -> View | None:
    other = graph.consts.get(node.input[1 - _moved(graph, node)])
    if other is None or other.size != 1 or other.dtype != np.float32 or graph.tensors[name].shape != x.shape:
        return None
    number = float(other.reshape(-1)[0])
    if not math.isfinite(number) or number == 0:
        return None
    return replace(x, scale=x.scale / number if node.op_type == "Div" else x.scale * number)


MOVES = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), _reshape),
    "Transpose": _transpose,
    "Expand": _expand,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Mul": _scaled,
    "Div": _scaled,
}
