"""Element-wise chains behind a layer, as data: bias, activation, residual sum, whatever the exporter made of them.

A chain grows behind its anchor node by node, in the order of the graph. A node joins if all its operands are values of
the chain, constants (one number, or one per channel), or tensors of the anchor's output shape. It is cut back to the
longest beginning of which only the last value is read from outside: that value becomes the layer's output, and the
fused layer takes the place of the last node, where all its operands are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from spa.codegen.layer import Arg, Array, Step
from spa.codegen.program import Tensor

MAX_STEPS = 8

# operator -> its attributes as further operands, with ONNX's defaults
ATTRIBUTES: dict[str, tuple[tuple[str, float], ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "Neg", "Abs", "PRelu", "Clip"), ()),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min"), ()),
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Gelu": (),
}
BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"}


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps behind an anchor. `nodes`: the positions in the graph that it takes. `tensors`: names of its tensor operands,
    `Arg.index` counts in them; `channels` likewise."""

    steps: tuple[Step, ...]
    nodes: tuple[int, ...]
    output: str
    tensors: tuple[str, ...]
    channels: tuple[Array, ...]


class Graph:
    """What chains need to know of a graph: who reads a value, shapes, constants."""

    def __init__(self, graph: onnx.GraphProto, tensors: Mapping[str, Tensor], consts: Mapping[str, Array]) -> None:
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self.tensors, self.consts = tensors, consts
        self.outputs = {v.name for v in graph.output}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(graph.node):
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(i)


def chain(graph: Graph, anchor: int, axis: int, taken: frozenset[int] | set[int] = frozenset()) -> Chain:
    """The longest chain behind node `anchor`, whose output has its channels on `axis`; without nodes in `taken`."""
    first = graph.nodes[anchor].output[0]
    result = graph.tensors[first]
    values = {first: 0}
    steps: list[Step] = []
    nodes: list[int] = []
    tensors: list[str] = []
    channels: list[Array] = []
    best = Chain((), (), first, (), ())
    pending = list(graph.readers.get(first, ()))
    while pending and len(steps) < MAX_STEPS and result.dtype == "float32":
        at = min(pending)
        pending.remove(at)
        node = graph.nodes[at]
        if at in taken or at in nodes:
            continue
        args = _operands(graph, node, result, axis % max(len(result.shape), 1), values, tensors, channels)
        if args is None:
            continue
        nodes.append(at)
        steps.append(Step(node.op_type, args))
        values[node.output[0]] = len(steps)
        pending += [r for r in graph.readers.get(node.output[0], ()) if r not in pending]
        if _closed(graph, values, {anchor, *nodes}, node.output[0]):
            best = Chain(tuple(steps), tuple(nodes), node.output[0], tuple(tensors), tuple(channels))
    return best


def _closed(graph: Graph, values: Mapping[str, int], nodes: set[int], last: str) -> bool:
    inner = [name for name in values if name != last]
    return not any(name in graph.outputs or set(graph.readers.get(name, ())) - nodes for name in inner)


def _operands(
    graph: Graph,
    node: onnx.NodeProto,
    result: Tensor,
    axis: int,
    values: Mapping[str, int],
    tensors: list[str],
    channels: list[Array],
) -> tuple[Arg, ...] | None:
    """The operands of a node that joins; None, with nothing added, for one that does not."""
    if node.op_type not in ATTRIBUTES or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    known = graph.tensors.get(node.output[0])
    if known is None or known.shape != result.shape or known.dtype != "float32":
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("approximate", b"none") != b"none" or (node.op_type in BINARY and len(node.input) != 2):
        return None
    if node.op_type == "Clip":
        bounds = [graph.consts.get(n) if n else None for n in [*node.input[1:], "", ""][:2]]
        if node.input[0] not in values or any(n and n not in graph.consts for n in node.input[1:]):
            return None
        low, high = (d if b is None else float(b) for b, d in zip(bounds, (-3.4e38, 3.4e38), strict=True))
        return None if np.isnan([low, high]).any() else (_value(values, node), _scalar(low), _scalar(high))
    if len(node.input) != (2 if node.op_type in BINARY else 1):
        return None
    args: list[Arg] = []
    new_tensors, new_channels = list(tensors), list(channels)
    for name in node.input:
        arg = _operand(graph, name, result, axis, values, new_tensors, new_channels)
        if arg is None:
            return None
        args.append(arg)
    if node.op_type == "PRelu" and args[0].kind != "value":
        return None
    tensors[:], channels[:] = new_tensors, new_channels
    return (*args, *(_scalar(attributes.get(name, default)) for name, default in ATTRIBUTES[node.op_type]))


def _value(values: Mapping[str, int], node: onnx.NodeProto) -> Arg:
    return Arg("value", values[node.input[0]])


def _scalar(number: Any) -> Arg:
    return Arg("scalar", number=float(number))


def _operand(
    graph: Graph,
    name: str,
    result: Tensor,
    axis: int,
    values: Mapping[str, int],
    tensors: list[str],
    channels: list[Array],
) -> Arg | None:
    if name in values:
        return Arg("value", values[name])
    if name in graph.consts:
        const = np.asarray(graph.consts[name])
        if const.dtype != np.float32 or const.ndim > len(result.shape):
            return None
        if const.size == 1:
            return _scalar(const.reshape(-1)[0])
        shape = (1,) * (len(result.shape) - const.ndim) + const.shape
        if const.size != shape[axis] or shape[axis] != result.shape[axis]:
            return None
        channels.append(const.reshape(-1))
        return Arg("channel", len(channels) - 1)
    known = graph.tensors.get(name)
    if known is None or known.shape != result.shape or known.dtype != "float32":
        return None
    if name not in tensors:
        tensors.append(name)
    return Arg("tensor", tensors.index(name))
