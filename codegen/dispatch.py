"""Which layers run on kernels of our own instead of what TVM generates: the one place where that is decided.

The network is still ONNX here, prepared: static shapes, constants folded, weights at hand with their zeros. `choose`
asks each family in turn; the first that offers a kernel gets the layer. Its node then becomes a call
of that kernel, its packed weights become constants, and Relax never sees the operator.

To add a family: a module in `codegen/kernels/` with a function `offer(layer, target) -> Kernel | None`, and its row in
`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa.codegen.program import DTYPES, Tensor
from spa.codegen.target import Target


@dataclass(frozen=True, eq=False)
class Layer:
    """One operator with all that a kernel may want to know. `consts` maps the position of an input to its value."""

    name: str
    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]
    output: Tensor
    consts: Mapping[int, np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel for a layer. `activations`: positions of the layer's inputs it reads at run time; `weights`: packed
    constants that follow them; then the output. `build()` gives its PrimFunc over these buffers in this order."""

    family: str
    format: str
    tile: str
    why: str
    activations: tuple[int, ...]
    weights: tuple[np.ndarray[Any, Any], ...]
    build: Callable[[], Any] = field(repr=False)


Offer = Callable[[Layer, Target], Kernel | None]

FAMILIES: tuple[Offer, ...] = ()


def choose(layer: Layer, target: Target, families: Sequence[Offer]) -> Kernel | None:
    """The first kernel that a family offers for this layer, or None: then it is TVM's."""
    for offer in families:
        kernel = offer(layer, target)
        if kernel is not None:
            return kernel
    return None


@dataclass(frozen=True, eq=False)
class Chosen:
    """The network with the chosen layers replaced by operators named after their kernels."""

    model: onnx.ModelProto
    kernels: Mapping[str, tuple[Layer, Kernel]]


def dispatch(model: onnx.ModelProto, target: Target, families: Sequence[Offer]) -> Chosen:
    """Choose for every node of a prepared model. The input is not changed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not families:
        return Chosen(result, {})
    tensors = _tensors(model)
    consts = {t.name: t for t in model.graph.initializer}
    kernels: dict[str, tuple[Layer, Kernel]] = {}
    for node in result.graph.node:
        layer = _layer(node, tensors, consts)
        kernel = choose(layer, target, families) if layer else None
        if layer is None or kernel is None:
            continue
        op = f"{kernel.family}_{len(kernels)}"
        packed = [numpy_helper.from_array(w, f"{op}.{i}") for i, w in enumerate(kernel.weights)]
        result.graph.initializer.extend(packed)
        inputs = [node.input[i] for i in kernel.activations] + [t.name for t in packed]
        node.CopyFrom(helper.make_node(op, inputs, list(node.output), name=node.name))
        kernels[op] = (layer, kernel)
    if kernels:
        _drop_unused(result.graph)
    return Chosen(result, kernels)


def _tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    found = {}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        kind = value.type.tensor_type
        dims = [d.dim_value for d in kind.shape.dim]
        if kind.elem_type in DTYPES and kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[value.name] = Tensor(value.name, DTYPES[kind.elem_type][0], tuple(dims))
    for weight in model.graph.initializer:
        if weight.data_type in DTYPES:
            found[weight.name] = Tensor(weight.name, DTYPES[weight.data_type][0], tuple(weight.dims))
    return found


def _layer(node: onnx.NodeProto, tensors: Mapping[str, Tensor], consts: Mapping[str, onnx.TensorProto]) -> Layer | None:
    if len(node.output) != 1 or node.output[0] not in tensors or any(n and n not in tensors for n in node.input):
        return None
    return Layer(
        name=node.name or node.output[0],
        op=node.op_type,
        attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
        inputs=tuple(tensors.get(n) for n in node.input),
        output=tensors[node.output[0]],
        consts={i: numpy_helper.to_array(consts[n]) for i, n in enumerate(node.input) if n in consts},
    )


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
