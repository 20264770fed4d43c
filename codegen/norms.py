"""Normalisations that an exporter wrote out, as one operator again: rows in `PATTERNS`.

With m = mean(x), v = mean((x - m)^2) or mean(x^2) - m^2 (at least 0), over the last axis, and e a number:

1. LayerNormalization: (x - m) / sqrt(v + e), times a constant, plus a constant;
2. the same as x r + (b - m r) with r = c / sqrt(v + e), as TensorFlow has it;
3. RMSNormalization: x / sqrt(mean(x^2) + e), times a constant.

The constants are vectors of the last axis; where there are none, ones. A value within that others read too stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from spa.codegen.replacing import Builder, attributes, keep

Pattern = Any  # a name that stands for a value, the name of an operator with patterns of its operands, or a number
Bound = dict[str, str]
COMMUTES = ("Add", "Mul", "Max")
ENDS = ("Add", "Mul", "Div")  # operators that a pattern may end with


def _square(x: Pattern) -> Pattern:
    return ("any", ("Pow", x, 2.0), ("Mul", x, x))


def _over_root(x: Pattern, variance: Pattern) -> Pattern:
    """x / sqrt(variance + e)"""
    root = ("Sqrt", ("Add", variance, "#epsilon"))
    return ("any", ("Div", x, root), ("Mul", x, _one_over(root)))


def _one_over(root: Pattern) -> Pattern:
    return ("any", ("Reciprocal", root), ("Div", 1.0, root))


MEAN = ("Mean", "x")
CENTRED = ("Sub", "x", MEAN)
SPREAD = ("Sub", ("Mean", _square("x")), _square(MEAN))
VARIANCE = ("any", ("Mean", _square(CENTRED)), ("Max", SPREAD, 0.0), SPREAD)
LAYER = _over_root(CENTRED, VARIANCE)
ROOT = _one_over(("Sqrt", ("Add", VARIANCE, "#epsilon")))
FACTOR = ("any", ("Mul", ROOT, "#scale"), ROOT)
MOVED = ("any", ("Add", ("Mul", ("Neg", MEAN), FACTOR), "#shift"), ("Sub", "#shift", ("Mul", MEAN, FACTOR)))
RMS = _over_root("x", ("Mean", _square("x")))

# the longest first
PATTERNS: tuple[tuple[str, Pattern], ...] = (
    ("LayerNormalization", ("Add", ("Mul", "x", FACTOR), MOVED)),
    ("LayerNormalization", ("Add", ("any", ("Mul", LAYER, "#scale"), ("Mul", CENTRED, FACTOR)), "#shift")),
    ("LayerNormalization", ("any", ("Mul", LAYER, "#scale"), ("Mul", CENTRED, FACTOR))),
    ("LayerNormalization", LAYER),
    ("RMSNormalization", ("Mul", RMS, "#scale")),
    ("RMSNormalization", RMS),
)


def whole(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with normalisations as one operator each; changed in place. Shapes must have been inferred."""
    if not any(n.op_type == "Sqrt" for n in model.graph.node):
        return model
    match, build = _Match(model), Builder(model)
    needed = {v.name for v in model.graph.output}
    nodes: list[NodeProto] = []
    for node in reversed(list(model.graph.node)):
        build.nodes = []
        found = bool(needed & {*node.output}) and _replaced(node, match, build)
        kept = build.nodes if found else [node]
        nodes += reversed(kept)
        bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        if found or needed & {*node.output}:
            needed |= {name for n in kept for name in n.input}
            needed |= {name for body in bodies for n in body.node for name in n.input}
    keep(model.graph, nodes[::-1])
    return model


def _replaced(node: NodeProto, match: _Match, build: Builder) -> bool:
    """Write the normalisation that this node ends, if it does."""
    for op, pattern in PATTERNS:
        bound = next(match.node(pattern, node, {}), None) if node.op_type in ENDS else None
        length = match.length(bound) if bound is not None else 0
        if bound is None or not length:
            continue
        build.begin(node)
        vectors = [build.const(bound[key]) for key in ("#scale", "#shift") if key in bound]
        weights = [build.constant(v.reshape(-1)) for v in vectors if v is not None]
        if "#scale" not in bound:
            weights.insert(0, build.constant(np.ones(length, np.float32)))
        epsilon = match.number(bound["#epsilon"])
        build.name(op, [bound["x"], *weights], node.output[0], axis=-1, epsilon=epsilon)
        return True
    return False


class _Match:
    """Patterns against the values of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.producer = {name: node for node in graph.node for name in node.output}
        self.tensors = {t.name: t for t in graph.initializer}
        values = [*graph.input, *graph.value_info, *graph.output]
        self.types = {v.name: v.type.tensor_type for v in values}

    def node(self, pattern: Pattern, node: NodeProto, bound: Bound) -> Iterator[Bound]:
        """Every way in which this node may be what the pattern says, given what its names stand for already."""
        op, *operands = pattern
        if op == "any":
            for choice in operands:
                yield from self.node(choice, node, bound)
        elif op == "Mean":
            if self._is_mean(node):
                yield from self._value(operands[0], node.input[0], bound)
        elif node.op_type == op and len(node.input) == len(operands) and node.domain in ("", "ai.onnx"):
            for order in (operands, operands[::-1]) if op in COMMUTES else (operands,):
                first, *more = order
                for half in self._value(first, node.input[0], bound):
                    yield from self._value(more[0], node.input[1], half) if more else (half,)

    def _value(self, pattern: Pattern, name: str, bound: Bound) -> Iterator[Bound]:
        if isinstance(pattern, float):
            if self.number(name) == pattern:
                yield bound
        elif isinstance(pattern, str):
            const = name in self.tensors
            if bound.get(pattern, name) == name and const == pattern.startswith("#"):
                yield {**bound, pattern: name}
        elif name in self.producer:
            yield from self.node(pattern, self.producer[name], bound)

    def _is_mean(self, node: NodeProto) -> bool:
        """Over the last axis, which stays."""
        rank = len(self.types[node.input[0]].shape.dim) if node.input and node.input[0] in self.types else 0
        if node.op_type == "GlobalAveragePool":
            return rank == 3
        options = attributes(node)
        axes = options.get("axes")
        if axes is None and len(node.input) > 1 and node.input[1] in self.tensors:
            axes = numpy_helper.to_array(self.tensors[node.input[1]]).reshape(-1).tolist()
        last = axes is not None and len(axes) == 1 and rank > 0 and axes[0] % rank == rank - 1
        return node.op_type == "ReduceMean" and last and bool(options.get("keepdims", 1))

    def number(self, name: str) -> float | None:
        """The value of a constant of one element."""
        tensor = self.tensors.get(name)
        if tensor is None or math.prod(tensor.dims) != 1:
            return None
        return float(numpy_helper.to_array(tensor).reshape(-1)[0])

    def length(self, bound: Bound) -> int:
        """Of the last axis, where x is float32 and all constants are as they must be; else 0."""
        kind = self.types.get(bound["x"])
        if kind is None or kind.elem_type != onnx.TensorProto.FLOAT or self.number(bound["#epsilon"]) is None:
            return 0
        length = int(kind.shape.dim[-1].dim_value)
        vectors = [self.tensors[bound[key]].dims for key in ("#scale", "#shift") if key in bound]
        return length if all(dims and dims[-1] == math.prod(dims) == length for dims in vectors) else 0
