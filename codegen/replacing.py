"""Nodes replaced by others that do the same: what such rewrites share. Shapes must have been inferred."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class Builder:
    """Writes the nodes that stand in for one, with names of their own, and declares their values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = self.graph = model.graph
        self._model = model
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.nodes: list[NodeProto] = []
        self._tensors = {t.name: t for t in graph.initializer}
        self._types = {v.name: v.type.tensor_type for v in [*graph.input, *graph.value_info, *graph.output]}
        self.stem, self._count = "", 0

    @cached_property
    def _inferred(self) -> dict[str, tuple[int, ...]]:
        return light_shapes(self._model)

    def begin(self, node: NodeProto) -> None:
        """What follows stands in for this node."""
        self.stem = node.name or node.output[0]

    def const(self, name: str) -> Array | None:
        return numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of a value, or None."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
            return self._inferred.get(name)
        return tuple(d.dim_value for d in kind.shape.dim)

    def constant(self, value: Array) -> str:
        name = self.fresh()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        self._tensors[name] = self.graph.initializer[-1]
        return name

    def add(
        self, op: str, inputs: Sequence[str], shape: Sequence[int] | None = None, domain: str = "", **options: Any
    ) -> str:
        """A node and its output's name. Without `shape`: that of a Transpose's result, or of the first operand. Empty: it is
        not known."""
        name = self.fresh()
        if shape is None:
            shape = self.shape(inputs[0])
            if shape is not None and op == "Transpose":
                shape = [shape[i] for i in options["perm"]]
        self.name(op, inputs, name, domain, **options)
        if shape:
            self._types[name] = self._declared(name, inputs[0], shape)
        return name

    def reduced(self, op: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """A reduction, its axes where this opset has them."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.add(op, [x, self.constant(np.array(axes, np.int64))], (), keepdims=keepdims)
        return self.add(op, [x], (), axes=list(axes), keepdims=keepdims)

    def name(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **options: Any) -> None:
        """A node whose output has its name already."""
        label = f"{self.stem}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=label, domain=domain, **options))

    def _declared(self, name: str, like: str, shape: Sequence[int]) -> Any:
        kind = self._types[like].elem_type if like in self._types else self._tensors[like].data_type
        self.graph.value_info.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return self.graph.value_info[-1].type.tensor_type

    def fresh(self) -> str:
        self._count += 1
        return f"{self.stem}.part{self._count}"


SMALL = 64  # elements of constants that shapes may depend on


def light_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes as far as they can be inferred now, without copying the weights."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # it will be judged when it is imported
        return {}
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in [*inferred.graph.value_info, *inferred.graph.output]
        if value.type.tensor_type.HasField("shape")
        and all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    }


Replace = Callable[[NodeProto, Builder], bool | None]


def replaced(
    model: onnx.ModelProto, rules: Mapping[str, Replace], domains: Sequence[str] = ("", "ai.onnx")
) -> onnx.ModelProto:
    """The model, changed in place: nodes of these operators and domains by what their rule writes; one that gives False
    leaves its node alone."""
    graph = model.graph
    if not any(n.op_type in rules and n.domain in domains for n in graph.node):
        return model
    build, nodes = Builder(model), []
    for node in graph.node:
        rule = rules.get(node.op_type) if node.domain in domains else None
        if rule is None:
            nodes.append(node)
            continue
        build.begin(node)
        if rule(node, build) is False:
            build.nodes.clear()
            nodes.append(node)
        nodes += build.nodes
        build.nodes = []
    keep(graph, nodes)
    return model


def keep(graph: onnx.GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Give the graph these nodes, without those that nobody reads, and their constants."""
    needed, alive = {v.name for v in graph.output}, []
    for node in reversed(nodes):
        if needed & {*node.output}:
            needed |= {*node.input, *_captured(node)}
            alive.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(alive))
    for i in reversed([i for i, t in enumerate(graph.initializer) if t.name not in needed]):
        del graph.initializer[i]


def _captured(node: NodeProto) -> set[str]:
    """What the bodies of a node read."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for body in bodies for inner in body.node for name in {*inner.input, *_captured(inner)}} | {
        v.name for body in bodies for v in body.output
    }


def attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def where(node: NodeProto) -> str:
    """How an error names a node."""
    domain = f"{node.domain}::" if node.domain else ""
    return f"node '{node.name or (node.output[0] if node.output else '')}' ({domain}{node.op_type})"
