"""The kernels' calls of a network for which kernels have been chosen: read, and written back after they have changed."""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa.codegen.dispatch import Chosen
from spa.codegen.layer import Array, Kernel, Layer
from spa.codegen.program import DTYPES, Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """`reads`: names of what the kernel's `activations` are; `writes`: of its result, `result` (which has another shape
    than `layer.output` where the kernel writes through a Transpose)."""

    layer: Layer
    kernel: Kernel
    reads: tuple[str, ...]
    writes: str
    result: Tensor


def calls_of(chosen: Chosen) -> dict[int, Call]:
    """By the position of their nodes."""
    pending = {op: iter(served) for op, served in chosen.kernels.items()}
    found = {}
    for at, node in enumerate(chosen.model.graph.node):
        if node.op_type in pending:
            layer, kernel = next(pending[node.op_type])
            reads = tuple(node.input[: len(kernel.activations)])
            found[at] = Call(layer, kernel, reads, node.output[0], layer.output)
    return found


def rebuilt(chosen: Chosen, calls: Mapping[int, Call], dropped: Container[int], casts: Mapping[int, int]) -> Chosen:
    """The network with these calls at their places, without the `dropped` nodes, with a Cast to a type behind those in
    `casts`. Calls of kernels with the same code share it."""
    model = onnx.ModelProto()
    model.CopyFrom(chosen.model)
    graph = model.graph
    before = calls_of(chosen)
    packed = {n for at, call in before.items() for n in graph.node[at].input[len(call.reads) :]}
    kept = [t for t in graph.initializer if t.name not in packed]
    names: dict[Hashable, str] = {}
    served: dict[str, list[Call]] = {}
    nodes = []
    for at, node in enumerate(graph.node):
        if at not in calls:
            nodes += [] if at in dropped else _cast(node, casts.get(at))
            continue
        call = calls[at]
        same = (call.kernel.key, call.result.shape, call.result.dtype)
        op = names.setdefault(same if call.kernel.key is not None else object(), f"{call.kernel.family}_{len(names)}")
        others = served.setdefault(op, [])
        weights = [f"{op}.{len(others)}.{i}" for i in range(len(call.kernel.weights))]
        nodes.append(helper.make_node(op, [*call.reads, *weights], [call.writes], name=call.layer.name))
        others.append(call)
    for op, several in served.items():
        sizes = [max(w.size for w in same) for same in zip(*(c.kernel.weights for c in several), strict=True)]
        for n, call in enumerate(several):
            arrays = enumerate(zip(call.kernel.weights, sizes, strict=True))
            kept += [numpy_helper.from_array(_padded(w, size), f"{op}.{n}.{i}") for i, (w, size) in arrays]
    written = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del graph.node[:], graph.initializer[:], graph.value_info[:]  # what was known of values may not hold any more
    graph.node.extend(written)
    graph.initializer.extend(kept)
    layers = {
        op: tuple((replace(c.layer, output=c.result), c.kernel) for c in several) for op, several in served.items()
    }
    return Chosen(model, layers)


def _cast(node: onnx.NodeProto, to: int | None) -> list[onnx.NodeProto]:
    if to is None:
        return [node]
    name, wide = node.output[0], f"{node.output[0]}.wide"
    renamed = onnx.NodeProto.FromString(node.SerializeToString())
    renamed.output[0] = wide
    return [renamed, helper.make_node("Cast", [wide], [name], to=to)]


def tensors_of(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Shapes and types of values, as far as they are declared."""
    found = {}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        kind = value.type.tensor_type
        if kind.elem_type in DTYPES and kind.HasField("shape"):
            dims = tuple(d.dim_value for d in kind.shape.dim)
            found[value.name] = Tensor(value.name, DTYPES[kind.elem_type][0], dims)
    return found


def _padded(weight: Array, size: int) -> Array:
    """Layers that share a kernel agree in the sizes of its operands."""
    return weight if weight.size == size else np.concatenate([weight, np.zeros(size - weight.size, weight.dtype)])
