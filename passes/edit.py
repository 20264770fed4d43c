"""The few edits that rewrites are made of: read a constant, place one, and take a node out of the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

INITIALIZERS_ARE_INPUTS = 4  # below this ir_version every initializer must be a graph input too, so none can be added


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """Is it one of these operators of the standard?"""
    return node.op_type in op_types and node.domain in ("", "ai.onnx")


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of the main graph and its subgraphs, producers first; not those inside functions."""
    yield from ir.traversal.RecursiveGraphIterator(model.graph)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node; None for what a caller can feed."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or not is_onnx(node, "Constant"):
        return None
    return constant_tensor(node)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds (`ir.convenience.get_const_tensor` would rename the tensor, which may be shared)."""
    for name, attr in node.attributes.items():
        if attr.is_ref():
            return None
        if name == "value":
            return attr.as_tensor()
        if name in _CONSTANT_TYPES:
            return ir.tensor(attr.value, dtype=_CONSTANT_TYPES[name])
    return None  # sparse_value


_CONSTANT_TYPES = {
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
}


def is_private(value: ir.Value) -> bool:
    """Is it read once, and by no caller? Only then may its contents change."""
    return len(value.uses()) == 1 and not value.is_graph_output() and not value.is_graph_input()


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The attribute's value, or what the standard gives it where it is absent."""
    return node.attributes[name].value if name in node.attributes else default


def taken_names(model: ir.Model) -> set[str]:
    """Every value name of the model, of its subgraphs too: what a new name must differ from."""
    names = {v.name for node in nodes(model) for v in node.outputs}
    for graph in [model.graph, *model.graph.subgraphs()]:
        names |= set(graph.initializers) | {v.name for v in graph.inputs}
    return {n for n in names if n}


def unique_name(taken: set[str], wanted: str) -> str:
    """`wanted`, or with a number behind it where that is taken; it is taken from now on."""
    name = next(n for n in [wanted, *(f"{wanted}_{i}" for i in range(1, len(taken) + 2))] if n not in taken)
    taken.add(name)
    return name


def add_constant(model: ir.Model, before: ir.Node, tensor: ir.TensorProtocol) -> ir.Value:
    """A new constant that `before` can read, named like the tensor.

    An initializer of the main graph; a Constant node in a subgraph and where the model is too old for initializers
    that are no inputs.
    """
    graph = before.graph
    assert graph is not None and tensor.name is not None
    if graph is model.graph and model.ir_version >= INITIALIZERS_ARE_INPUTS:
        kind, shape = ir.TensorType(tensor.dtype), _shape(tensor)
        value = ir.Value(name=tensor.name, type=kind, shape=shape, const_value=tensor)
        model.graph.register_initializer(value)
        return value
    node = _constant_node(tensor, before)
    graph.insert_before(before, node)
    return node.outputs[0]


def _constant_node(tensor: ir.TensorProtocol, model_node: ir.Node) -> ir.Node:
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], version=model_node.version)
    output = node.outputs[0]
    output.name, output.type, output.shape = tensor.name, ir.TensorType(tensor.dtype), _shape(tensor)
    return node


def replace_by_constants(model: ir.Model, node: ir.Node, tensors: list[ir.TensorProtocol]) -> None:
    """Let everyone who reads the node's outputs read these tensors instead, under the same names, and remove the node.

    A graph output stays an output of a node: a Constant.
    """
    assert node.graph is not None
    for value, tensor in zip(node.outputs, tensors, strict=True):
        if not value.name or not (value.uses() or value.is_graph_output()):
            continue
        named = _named(tensor, value.name)
        value.name = f"{value.name}_computed"
        if value.is_graph_output():
            new = _constant_node(named, node)
            node.graph.insert_before(node, new)
            value.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
        else:
            value.replace_all_uses_with(add_constant(model, node, named))
    node.graph.remove(node, safe=True)


def _shape(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape(tensor.shape.numpy())


def _named(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same contents under a name; the tensor itself may be shared with the model that was given, so it stays."""
    if tensor.name == name:
        return tensor
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=_shape(tensor), name=name)
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name),
        dtype=tensor.dtype,
        shape=_shape(tensor),
        name=name,
    )


def set_constant(value: ir.Value, array: Array) -> None:
    """Give an initializer or a Constant node new contents under its old name."""
    tensor = ir.tensor(array, name=value.name)
    node = value.producer()
    if node is None:
        value.const_value = tensor
        value.shape, value.type = _shape(tensor), ir.TensorType(tensor.dtype)
        return
    for name in list(node.attributes):
        del node.attributes[name]
    node.attributes["value"] = ir.AttrTensor("value", tensor)
    value.const_value = tensor


def bypass(output: ir.Value, source: ir.Value) -> bool:
    """Let everyone who reads `output` read `source`, which holds the same numbers. Names of graph outputs survive.

    Declined (False) where the output of a graph would have to become one of its inputs, an initializer, a value of an
    outer graph or a second name of the same value: ONNX cannot say that without a node between.
    """
    if output.is_graph_output():
        node, origin = output.producer(), source.producer()
        if node is None or origin is None or origin.graph is not node.graph or source.is_graph_output():
            return False
        source.name, output.name = output.name, f"{output.name}_bypassed"
        source.type = output.type or source.type
        source.shape = output.shape or source.shape
        source.metadata_props.update(output.metadata_props)
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    return True


def as_float64(tensor: ir.TensorProtocol) -> npt.NDArray[np.float64]:
    return tensor.numpy().astype(np.float64)
