"""What analysis works on: the network with local functions expanded and filler constants given to each reader.

Exporters store one vector of ones, or of zeros, and let every normalisation in the network read it. Taken at its word
that would tie all of their channels together. A constant whose elements are all equal carries no information but its
length, so each reader gets a copy (`COPY` in its meta names the original), which is cut on its own and is not part of a
plan: masking leaves it alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from spa.model import Model
from spa.shapes import ORIGIN, constants, tensor_of

COPY = "spa.copy"
FILLER_LIMIT = 1 << 14  # elements: larger constants are not looked at


def prepare(model: Model) -> Model:
    """The model itself where there is nothing to do, else a changed copy."""
    expanded = inlined(model)
    shared = [v for v in constants(expanded.ir) if is_shared_filler(v)]
    if not shared:
        return expanded
    names = [v.name for v in shared]
    copy = expanded if expanded is not model else model.clone()
    by_name = {v.name: v for v in constants(copy.ir)}
    for name in names:
        give_copies(by_name[name])
    return copy


def inlined(model: Model) -> Model:
    """The network without local functions: itself where it has none, else a copy with every call expanded.

    A function's constants keep their origin, `domain::function/name`, whichever call they are now in."""
    if not model.ir.functions:
        return model
    copy = model.clone()
    for value, name in constants(copy.ir).items():
        value.meta[ORIGIN] = name
    try:
        common.InlinePass()(copy.ir)
    except (ValueError, ir.passes.PreconditionError, ir.passes.PassError):
        return model  # then the calls are operators without a rule, and block what they touch
    return copy


def is_shared_filler(value: ir.Value) -> bool:
    """Read more than once, floating-point, more than one element, all of them equal."""
    if len(value.uses()) < 2 or value.is_graph_output() or value.is_graph_input():
        return False
    tensor = tensor_of(value)
    if tensor is None or not tensor.dtype.is_floating_point() or not 1 < tensor.size <= FILLER_LIMIT:
        return False
    array = tensor.numpy()
    return bool(np.all(array == array.reshape(-1)[0]))


def give_copies(value: ir.Value) -> None:
    tensor = tensor_of(value)
    assert tensor is not None
    for i, (node, position) in enumerate(list(value.uses())):
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            continue
        name = f"{value.name}/spa.copy{i}"
        copy = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        copy.meta[COPY] = value
        graph.register_initializer(copy)
        node.replace_input_with(position, copy)


def give_back(model: ir.Model) -> None:
    """Copies that were not cut become the original again."""
    for graph in [model.graph, *model.graph.subgraphs()]:
        for name, value in list(graph.initializers.items()):
            original = value.meta.get(COPY)
            if isinstance(original, ir.Value) and (t := tensor_of(original)) is not None and value.const_value is t:
                value.replace_all_uses_with(original)
                del graph.initializers[name]
