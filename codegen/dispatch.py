"""Which layers run on kernels of our own instead of what TVM generates: the one place where that is decided.

The network is still ONNX here, prepared: static shapes, constants folded, weights at hand with their zeros. For every
node that some family may take, the element-wise chain behind it is found (see `fusion`), and each family is asked in
turn: the first that offers a kernel gets node and chain. They become one call of that kernel, its packed weights become
constants, and Relax never sees the operators. Calls whose kernels have the same code share it.

To add a family: a module in `codegen/kernels/` with a function `offer(layer, target) -> Kernel | None`, and its row in
`kernels.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import helper, numpy_helper

from spa.codegen.fusion import Chain, Graph, chain
from spa.codegen.layer import Kernel, Layer, Offer
from spa.codegen.program import DTYPES, Tensor
from spa.codegen.target import Target

CHANNEL_LAST = ("Gemm", "MatMul")


def choose(layer: Layer, target: Target, families: Sequence[Offer]) -> Kernel | None:
    """The first kernel that a family offers for this layer, or None: then it is TVM's."""
    for offer in families:
        kernel = offer(layer, target)
        if kernel is not None:
            return kernel
    return None


@dataclass(frozen=True, eq=False)
class Chosen:
    """The network with the chosen layers replaced by operators named after their kernels, and the layers that each
    of them serves, in the order of the network."""

    model: onnx.ModelProto
    kernels: Mapping[str, tuple[tuple[Layer, Kernel], ...]]


def dispatch(model: onnx.ModelProto, target: Target, families: Sequence[Offer]) -> Chosen:
    """Choose for every node of a prepared model. The input is not changed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not families:
        return Chosen(result, {})
    weights = {t.name: t for t in model.graph.initializer}
    tensors = _tensors(model)
    consts = {name: numpy_helper.to_array(t) for name, t in weights.items()}
    graph = Graph(model.graph, tensors, consts)
    taken: set[int] = set()
    placed: dict[int, onnx.NodeProto] = {}
    found: dict[Hashable, str] = {}
    kernels: dict[str, list[tuple[Layer, Kernel]]] = {}
    for at, node in enumerate(model.graph.node):
        layer = None if at in taken else _layer(node, graph)
        if layer is None:
            continue
        behind = chain(graph, at, -1 if node.op_type in CHANNEL_LAST else 1, taken)
        fused = _fused(layer, behind, tensors)
        kernel = choose(fused, target, families)
        if kernel is None and behind.nodes:
            behind, fused = Chain((), (), node.output[0], (), ()), layer
            kernel = choose(fused, target, families)
        if kernel is None:
            continue
        key = (kernel.key, fused.output.shape) if kernel.key is not None else object()
        op = found.setdefault(key, f"{kernel.family}_{len(found)}")
        served = kernels.setdefault(op, [])
        packed = [numpy_helper.from_array(w, f"{op}.{len(served)}.{i}") for i, w in enumerate(kernel.weights)]
        result.graph.initializer.extend(packed)
        names = [*node.input, *behind.tensors]
        inputs = [names[i] for i in kernel.activations] + [t.name for t in packed]
        where = max([at, *behind.nodes])
        placed[where] = helper.make_node(op, inputs, [behind.output], name=layer.name)
        taken |= {at, *behind.nodes}
        served.append((fused, kernel))
    if placed:
        nodes = [placed.get(i, n) for i, n in enumerate(result.graph.node) if i in placed or i not in taken]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del result.graph.node[:]
        result.graph.node.extend(nodes)
        _drop_unused(result.graph)
    return Chosen(result, {op: tuple(served) for op, served in kernels.items()})


def _fused(layer: Layer, behind: Chain, tensors: Mapping[str, Tensor]) -> Layer:
    """The layer with its chain: tensor operands become inputs behind its own."""
    own = len(layer.inputs)
    steps = tuple(
        replace(s, args=tuple(replace(a, index=a.index + own) if a.kind == "tensor" else a for a in s.args))
        for s in behind.steps
    )
    extra = tuple(tensors[name] for name in behind.tensors)
    output = tensors[behind.output]
    return replace(layer, inputs=(*layer.inputs, *extra), output=output, epilogue=steps, channels=behind.channels)


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


def _layer(node: onnx.NodeProto, graph: Graph) -> Layer | None:
    tensors = graph.tensors
    if len(node.output) != 1 or node.output[0] not in tensors or any(n and n not in tensors for n in node.input):
        return None
    return Layer(
        name=node.name or node.output[0],
        op=node.op_type,
        attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
        inputs=tuple(tensors.get(n) for n in node.input),
        output=tensors[node.output[0]],
        consts={i: graph.consts[n] for i, n in enumerate(node.input) if n in graph.consts},
    )


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
