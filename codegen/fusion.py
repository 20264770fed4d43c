"""Element-wise chains behind a layer, as data: bias, activation, residual sum, whatever the exporter made of them.

A chain grows behind its anchor node by node, in the order of the graph. A node joins if all its operands are values of
the chain, constants (one number, or one per channel), or tensors of the anchor's output shape; behind an anchor that
can read them also tensors that are broadcast. Reshape and its like join where they only give the result another shape.
The chain is cut back to the longest beginning of which only the last value is read from outside: that value becomes the
layer's output, and the fused layer takes the place of the last node, where all its operands are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from spa.codegen.layer import Arg, Array, Step
from spa.codegen.program import Tensor
from spa.codegen.views import contiguous, reshaped

MAX_STEPS = 12

# operator -> its attributes as further operands, with ONNX's defaults
ATTRIBUTES: dict[str, tuple[tuple[str, float], ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "Neg", "Abs", "PRelu", "Clip"), ()),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min"), ()),
    **dict.fromkeys(("Exp", "Sqrt", "Reciprocal", "Pow"), ()),
    "LeakyRelu": (("alpha", 0.01),),
    "Elu": (("alpha", 1.0),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Gelu": (),
}
BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow"}
POWERS = (2.0, 3.0, 0.5, -0.5, -1.0, 1.0)  # exponents that need no logarithm
ALIASES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps behind an anchor. `nodes`: the positions in the graph that it takes. `tensors`: names of its tensor operands,
    `Arg.index` counts in them; `channels` likewise. `strides`: see `Layer`."""

    steps: tuple[Step, ...]
    nodes: tuple[int, ...]
    output: str
    tensors: tuple[str, ...]
    channels: tuple[Array, ...]
    strides: tuple[int, ...] = ()


class Graph:
    """What chains and views need to know of a graph: who writes and reads a value, shapes, constants."""

    def __init__(self, graph: onnx.GraphProto, tensors: Mapping[str, Tensor], consts: Mapping[str, Array]) -> None:
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self.tensors, self.consts = tensors, consts
        self.outputs = {v.name for v in graph.output}
        self.readers: dict[str, list[int]] = {}
        self.producer: dict[str, int] = {}
        for i, node in enumerate(graph.node):
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(i)
            self.producer.update(dict.fromkeys(node.output, i))


@dataclass
class _Growth:
    """A chain while it grows. `axis`: of the channels, from the end for products (there it may be given more axes in
    front), else from the front. `broadcast`: tensors that are broadcast may join."""

    axis: int
    broadcast: bool
    values: dict[str, int]
    steps: list[Step] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    channels: list[Array] = field(default_factory=list)

    def chain(self, output: str, strides: tuple[int, ...] = ()) -> Chain:
        steps, nodes = tuple(self.steps), tuple(self.nodes)
        return Chain(steps, nodes, output, tuple(self.tensors), tuple(self.channels), strides)


def chain(
    graph: Graph,
    anchor: int,
    axis: int,
    taken: frozenset[int] | set[int] = frozenset(),
    broadcast: bool = False,
    transpose: bool = False,
    itself: bool = False,
    limit: int = MAX_STEPS,
) -> Chain:
    """The longest chain behind node `anchor`, whose output has its channels on `axis` (1, or -1: the last); without nodes
    in `taken`. `transpose`: it may end with one that leaves the last axis where it is. `itself`: the anchor is
    element-wise, and the chain's first step (without steps if it cannot be). `limit`: of the steps."""
    first = graph.nodes[anchor].output[0]
    grown = _Growth(axis, broadcast, {} if itself else {first: 0})
    if graph.tensors[first].dtype != "float32" or (itself and not _join(graph, graph.nodes[anchor], grown)):
        return Chain((), (), first, (), ())
    best = grown.chain(first)
    pending = list(graph.readers.get(first, ()))
    while pending and len(grown.steps) < limit:
        at = min(pending)
        pending.remove(at)
        node = graph.nodes[at]
        if at in taken or at in grown.nodes or not _join(graph, node, grown):
            continue
        grown.nodes.append(at)
        pending += [r for r in graph.readers.get(node.output[0], ()) if r not in pending]
        if _closed(graph, grown, anchor, node.output[0]):
            best = grown.chain(node.output[0])
    return _transposed(graph, graph.tensors[first].shape, best, taken) if transpose else best


def _closed(graph: Graph, grown: _Growth, anchor: int, last: str) -> bool:
    nodes = {anchor, *grown.nodes}
    inner = [name for name in grown.values if name != last]
    return not any(name in graph.outputs or set(graph.readers.get(name, ())) - nodes for name in inner)


def _transposed(graph: Graph, shape: tuple[int, ...], found: Chain, taken: frozenset[int] | set[int]) -> Chain:
    """The chain with the Transpose (and what reshapes its result) that alone reads its output; `shape`: the anchor's."""
    readers = graph.readers.get(found.output, [])
    if len(readers) != 1 or readers[0] in taken or found.output in graph.outputs:
        return found
    node = graph.nodes[readers[0]]
    rank = len(graph.tensors[found.output].shape)
    perm = next((list(helper.get_attribute_value(a)) for a in node.attribute if a.name == "perm"), [])
    if node.op_type != "Transpose" or not perm or perm[-1] != rank - 1 or node.output[0] not in graph.tensors:
        return found
    there = contiguous(graph.tensors[node.output[0]].shape)
    strides = reshaped(graph.tensors[found.output].shape, [there[perm.index(i)] for i in range(rank)], shape)
    if strides is None:
        return found
    output, nodes = node.output[0], [*found.nodes, readers[0]]
    behind = graph.readers.get(output, [])
    if len(behind) == 1 and behind[0] not in taken and output not in graph.outputs:
        node = graph.nodes[behind[0]]
        if node.op_type in ALIASES and node.input[0] == output and node.output[0] in graph.tensors:
            output, nodes = node.output[0], [*nodes, behind[0]]
    return Chain(found.steps, tuple(nodes), output, found.tensors, found.channels, strides)


def _join(graph: Graph, node: onnx.NodeProto, grown: _Growth) -> bool:
    """Let a node join the chain if it may."""
    known = graph.tensors.get(node.output[0]) if len(node.output) == 1 else None
    if known is None or known.dtype != "float32" or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in ALIASES:
        if node.input[0] not in grown.values or not _same_rows(graph.tensors[node.input[0]], known, grown.axis):
            return False
        grown.values[node.output[0]] = grown.values[node.input[0]]
        return True
    args = _operands(graph, node, known, grown)
    if args is None:
        return False
    grown.steps.append(Step(node.op_type, args))
    grown.values[node.output[0]] = len(grown.steps)
    return True


def _same_rows(old: Tensor, new: Tensor, axis: int) -> bool:
    """Whether another shape leaves the channels where they are."""
    if math.prod(old.shape) != math.prod(new.shape) or not new.shape or not old.shape:
        return False
    return old.shape[-1] == new.shape[-1] if axis == -1 else old.shape[:2] == new.shape[:2] and len(new.shape) > 1


def _operands(graph: Graph, node: onnx.NodeProto, result: Tensor, grown: _Growth) -> tuple[Arg, ...] | None:
    """The operands of a node that joins; None, with nothing added, for one that does not."""
    if node.op_type not in ATTRIBUTES:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("approximate", b"none") != b"none" or (node.op_type in BINARY and len(node.input) != 2):
        return None
    limits: list[Arg] = []
    names = list(node.input)
    if node.op_type == "Clip":
        bounds = [graph.consts.get(n) if n else None for n in [*node.input[1:], "", ""][:2]]
        if any(n and n not in graph.consts for n in node.input[1:]):
            return None
        low, high = (d if b is None else float(b) for b, d in zip(bounds, (-3.4e38, 3.4e38), strict=True))
        if np.isnan([low, high]).any():
            return None
        names, limits = [node.input[0]], [_scalar(low), _scalar(high)]
    elif len(node.input) != (2 if node.op_type in BINARY else 1):
        return None
    tensors, channels = list(grown.tensors), list(grown.channels)
    args: list[Arg] = []
    for name in names:
        arg = _operand(graph, name, result, grown)
        if arg is None:
            grown.tensors, grown.channels = tensors, channels
            return None
        args.append(arg)
    if (node.op_type == "PRelu" and args[0].kind not in ("value", "tensor")) or (
        node.op_type == "Pow" and (args[1].kind != "scalar" or args[1].number not in POWERS)
    ):
        grown.tensors, grown.channels = tensors, channels
        return None
    more = [_scalar(attributes.get(name, default)) for name, default in ATTRIBUTES[node.op_type]]
    return (*args, *limits, *more)


def _scalar(number: Any) -> Arg:
    return Arg("scalar", number=float(number))


def _operand(graph: Graph, name: str, result: Tensor, grown: _Growth) -> Arg | None:
    known = graph.tensors.get(name)
    if name in grown.values:
        return Arg("value", grown.values[name]) if known is not None and known.shape == result.shape else None
    if known is None or known.dtype != "float32" or len(known.shape) > len(result.shape):
        return None
    if name in graph.consts:
        const = np.asarray(graph.consts[name])
        if const.size == 1:
            return _scalar(const.reshape(-1)[0])
        axis = grown.axis % len(result.shape)
        shape = (1,) * (len(result.shape) - const.ndim) + const.shape
        if const.size == shape[axis] == result.shape[axis]:
            grown.channels.append(const.reshape(-1))
            return Arg("channel", len(grown.channels) - 1)
    axes = () if known.shape == result.shape else broadcast_axes(known.shape, result.shape)
    if axes is None or (axes and not grown.broadcast):
        return None
    if name not in grown.tensors:
        grown.tensors.append(name)
    return Arg("tensor", grown.tensors.index(name), axes=axes)


def broadcast_axes(shape: Sequence[int], result: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """(extent, stride) of the axes of `result` in a tensor that is broadcast to it, neighbours merged.

    >>> broadcast_axes((5, 1, 1), (2, 5, 3, 4)), broadcast_axes((3, 4), (2, 3, 4)), broadcast_axes((2, 4), (2, 4))
    (((2, 0), (5, 1), (12, 0)), ((2, 0), (12, 1)), ())
    """
    padded = (1,) * (len(result) - len(shape)) + tuple(shape)
    if any(n not in (1, m) for n, m in zip(padded, result, strict=True)):
        return None
    strides = contiguous(padded)
    merged: list[tuple[int, int]] = []
    for n, m, s in zip(padded, result, strides, strict=True):
        if m == 1:
            continue
        stride = s if n == m else 0
        if merged and merged[-1][1] == stride * m:
            merged[-1] = (merged[-1][0] * m, stride)
        else:
            merged.append((m, stride))
    return () if len(merged) == 1 and merged[0][1] == 1 else tuple(merged)
