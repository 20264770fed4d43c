"""Which layers run on kernels of our own instead of what TVM generates: the one place where that is decided.

The network is still ONNX here, prepared: static shapes, constants folded, weights at hand with their zeros. For every
node that some family may take, the element-wise chain behind it is found (see `fusion`), and each family is asked in
turn: the first that offers a kernel gets node and chain. They become one call of that kernel, its packed weights become
constants, and Relax never sees the operators. Calls whose kernels have the same code share it.

To add a family: a module in `codegen/kernels/` with a function `offer(layer, target) -> Kernel | None`, and its row in
`kernels.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa.codegen.fusion import ATTRIBUTES, MAX_STEPS, Chain, Graph, chain
from spa.codegen.layer import Array, Kernel, Layer, Offer
from spa.codegen.program import DTYPES, Tensor
from spa.codegen.target import Target
from spa.codegen.views import view_of

Phase = Literal["layers", "moves", "elementwise"]
IN_PLACE = ("MatMul", "Transpose")  # their operands are read through views
VIEWED = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand", "Identity")
ROWS = (
    "Gemm",
    "MatMul",
    "ConvChannelsLast",
    "Softmax",
    "LayerNormalization",
    "RMSNormalization",
)  # channels last, rows in memory


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
    """Choose for every node of a prepared model: first for layers with what follows them, then for the Transposes that
    no layer reads in place, then for the element-wise operators that followed none. The input is not changed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not families:
        return Chosen(result, {})
    kernels: dict[str, tuple[tuple[Layer, Kernel], ...]] = {}
    for phase in ("layers", "moves", "elementwise"):
        kernels |= _choose_all(result, target, families, phase, len(kernels))
    return Chosen(result, kernels)


def _choose_all(
    model: onnx.ModelProto, target: Target, families: Sequence[Offer], phase: Phase, named: int
) -> dict[str, tuple[tuple[Layer, Kernel], ...]]:
    """Replace in `model` what belongs to a phase; `named`: kernels that have their names already."""
    consts = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    graph = Graph(model.graph, _tensors(model), consts)
    taken: set[int] = set()
    placed: dict[int, onnx.NodeProto] = {}
    found: dict[Hashable, str] = {}
    served: dict[str, list[tuple[int, Layer, Kernel]]] = {}
    needed = _needed(graph)
    for at, node in _ordered(graph, phase):
        layer = None if at in taken else _layer(node, graph, taken)
        if layer is None or (phase == "moves" and layer.output.name not in needed):
            continue
        for fused, chained in _fusions(layer, node, graph, at, taken):
            kernel = choose(fused, target, families)
            if kernel is not None:
                behind = chained
                break
        else:
            _need(graph, needed, node.input)
            continue
        key = (kernel.key, fused.output.shape) if kernel.key is not None else object()
        op = found.setdefault(key, f"{kernel.family}_{named + len(found)}")
        others = served.setdefault(op, [])
        packed = [f"{op}.{len(others)}.{i}" for i in range(len(kernel.weights))]
        names = [fused.views[i].source if kernel.viewed and i in fused.views else n for i, n in enumerate(node.input)]
        names = ([] if phase == "elementwise" else names) + list(behind.tensors)
        inputs = [names[i] for i in kernel.activations] + packed
        where = max([at, *behind.nodes])
        placed[where] = helper.make_node(op, inputs, [behind.output], name=layer.name)
        _need(graph, needed, inputs)
        taken |= {at, *behind.nodes}
        others.append((where, fused, kernel))
    for op, rows in served.items():
        sizes = [max(w.size for w in same) for same in zip(*(kernel.weights for _, _, kernel in rows), strict=True)]
        for n, (_, _, kernel) in enumerate(rows):
            weights = [
                numpy_helper.from_array(_padded(w, sizes[i]), f"{op}.{n}.{i}") for i, w in enumerate(kernel.weights)
            ]
            model.graph.initializer.extend(weights)
    if placed:
        _replace(model.graph, placed, taken)
    alive = {node.output[0] for node in model.graph.node}
    return {
        op: tuple(
            (layer, kernel) for _, layer, kernel in sorted(rows, key=lambda row: row[0]) if layer.output.name in alive
        )
        for op, rows in served.items()
        if any(layer.output.name in alive for _, layer, _ in rows)
    }


def _ordered(graph: Graph, phase: Phase) -> Iterator[tuple[int, onnx.NodeProto]]:
    """The nodes of a phase. Moves from the last to the first: one may read through those before it."""
    for at, node in enumerate(graph.nodes) if phase != "moves" else reversed(list(enumerate(graph.nodes))):
        own = "elementwise" if node.op_type in ATTRIBUTES else "moves" if node.op_type == "Transpose" else "layers"
        if own == phase:
            yield at, node


def _needed(graph: Graph) -> set[str]:
    """Values that must be there whatever Transposes are read in place: what others than moves read, and from where."""
    needed: set[str] = set()
    _need(graph, needed, graph.outputs)
    for node in graph.nodes:
        if node.op_type not in VIEWED:
            _need(graph, needed, {*node.input, *_outer(node)})
    return needed


def _need(graph: Graph, needed: set[str], names: Iterable[str]) -> None:
    """Add `names`, and where each of them is moved from, up to the next Transpose."""
    for name in names:
        if name in needed:
            continue
        needed.add(name)
        node = graph.nodes[graph.producer[name]] if name in graph.producer else None
        if node is not None and node.op_type in VIEWED and node.op_type != "Transpose":
            _need(graph, needed, node.input)


def _fusions(
    layer: Layer, node: onnx.NodeProto, graph: Graph, at: int, taken: set[int]
) -> Iterator[tuple[Layer, Chain]]:
    """The layer with the longest chain, and without."""
    if node.op_type in ATTRIBUTES:
        for limit in (MAX_STEPS, 1):
            itself = chain(graph, at, -1, taken, broadcast=True, itself=True, limit=limit)
            if itself.tensors:
                yield _fused(replace(layer, inputs=(), consts={}), itself, graph.tensors), itself
        return
    rows = node.op_type in (*ROWS, "Transpose")
    behind = chain(graph, at, -1 if rows else 1, taken, broadcast=rows, transpose=node.op_type == "MatMul")
    yield _fused(layer, behind, graph.tensors), behind
    if behind.nodes:
        alone = Chain((), (), node.output[0], (), ())
        yield layer, alone


def _padded(weight: Array, size: int) -> Array:
    """Layers that share a kernel agree in the shapes of its operands, sparse ones too."""
    return weight if weight.size == size else np.concatenate([weight, np.zeros(size - weight.size, weight.dtype)])


def _replace(graph: onnx.GraphProto, placed: Mapping[int, onnx.NodeProto], taken: set[int]) -> None:
    """Put the calls of kernels in, and take out what nobody reads any more."""
    nodes = [placed.get(i, n) for i, n in enumerate(graph.node) if i in placed or i not in taken]
    needed = {v.name for v in graph.output}
    alive = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input) | _outer(node)
            alive.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(alive))
    kept = [t for t in graph.initializer if t.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _outer(node: onnx.NodeProto) -> set[str]:
    """What the bodies of a node read."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for body in bodies for inner in body.node for name in {*inner.input, *_outer(inner)}}


def _fused(layer: Layer, behind: Chain, tensors: Mapping[str, Tensor]) -> Layer:
    """The layer with its chain: tensor operands become inputs behind its own."""
    own = len(layer.inputs)
    steps = tuple(
        replace(s, args=tuple(replace(a, index=a.index + own) if a.kind == "tensor" else a for a in s.args))
        for s in behind.steps
    )
    extra = tuple(tensors[name] for name in behind.tensors)
    output = tensors[behind.output]
    return replace(
        layer,
        inputs=(*layer.inputs, *extra),
        output=output,
        epilogue=steps,
        channels=behind.channels,
        strides=behind.strides,
    )


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


def _layer(node: onnx.NodeProto, graph: Graph, taken: set[int]) -> Layer | None:
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
        views={i: view_of(graph, n, taken) for i, n in enumerate(node.input)} if node.op_type in IN_PLACE else {},
    )
