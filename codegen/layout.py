"""Transposes moved to where they cost least: a network exported channels last runs channels first in the middle.

For each order of axes, the nodes that could as well work on the untransposed values are marked: those of
`layout_rules.RULES` whose operands are outputs of Transposes of that order, results of marked nodes, or constants. Each
connected part of them is rewritten if fewer elements are moved then: Transposes in front whose readers are all in it
go, Transposes behind it that undo the order go, and where others read a value of it there must be a new one. Besides,
Transposes of Transposes become one, those that move only axes of one element a Reshape, and one in front of Flatten
and a product with weights another order of the weights.

Transposes that products of activations read in place (`codegen/views.py`) count nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from spa.codegen.layout_rules import ENDS, RULES, Array, Change, Known, Perm, attributes

ROUNDS = 4  # over the whole network: a part may open the way for another
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Identity", "Transpose")


def settle(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its Transposes where they cost least; changed in place. Shapes must have been inferred."""
    if not any(n.op_type == "Transpose" for n in model.graph.node):
        return model
    for _ in range(ROUNDS):
        graph, changed = _Graph(model), False
        for perm in sorted({p for n in graph.nodes if (p := _perm(n)) is not None}):
            if _settle(graph, perm):
                graph, changed = _Graph(model), True
        shortened = [_shorten(graph, at) for at in range(len(graph.nodes))]
        if not any(shortened) and not changed:
            break
        _clean(model)
    return model


def _perm(node: NodeProto) -> Perm | None:
    """The order of a Transpose that names one."""
    if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    return tuple(node.attribute[0].ints)


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.nodes = list(model.graph.node)
        values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self.types = {v.name: v.type.tensor_type for v in values}
        shapes = {
            name: tuple(d.dim_value for d in t.shape.dim)
            for name, t in self.types.items()
            if t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim)
        }
        self.known = Known({t.name: t for t in model.graph.initializer}, shapes)
        self.outputs = {v.name for v in model.graph.output}
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.producer: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            for name in {*node.input, *_captured(node)}:
                self.readers[name].append(i)
            self.producer |= dict.fromkeys(node.output, i)

    def size(self, name: str) -> int:
        return math.prod(self.known.shapes[name])

    def add_const(self, value: Array, like: str) -> str:
        name = f"{like}.{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def in_place(self, name: str, without: Iterable[int] = ()) -> bool:
        """Whether all readers, except some, are products of activations, over views and numbers between."""
        readers = [i for i in self.readers[name] if i not in without]
        return bool(readers) and name not in self.outputs and all(self._reads_in_place(self.nodes[i]) for i in readers)

    def _reads_in_place(self, node: NodeProto) -> bool:
        if node.op_type == "MatMul":
            return not any(n in self.known.tensors for n in node.input)
        scaled = node.op_type in ("Mul", "Div") and any(
            math.prod(self.known.tensors[n].dims) == 1 for n in node.input if n in self.known.tensors
        )
        return (scaled or node.op_type in VIEWS) and all(self.in_place(n) for n in node.output)

    def weighed(self, name: str, without: Iterable[int] = ()) -> int:
        """Elements that a Transpose that gives this value moves."""
        return 0 if self.in_place(name, without) else self.size(name)


def _captured(node: NodeProto) -> set[str]:
    """What the bodies of a node read."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for body in bodies for inner in body.node for name in {*inner.input, *_captured(inner)}}


def _settle(graph: _Graph, perm: Perm) -> bool:
    """Rewrite the parts that gain from working before the Transposes of this order."""
    inner = {
        n.output[0]: n.input[0]
        for n in graph.nodes
        if _perm(n) == perm and n.input[0] in graph.known.shapes and n.output[0] in graph.known.shapes
    }
    marked: dict[int, Change] = {}
    for at, node in enumerate(graph.nodes):
        change = _change(graph, node, perm, inner)
        if change is not None:
            marked[at] = change
            inner |= {name: f"{name}.before{''.join(map(str, perm))}" for name in node.output}
    parts = [part for part in _parts(graph, marked, inner) if _gain(graph, part, perm, inner) > 0]
    if parts:
        _rewrite(graph, {at: marked[at] for part in parts for at in part}, perm, inner)
    return bool(parts)


def _change(graph: _Graph, node: NodeProto, perm: Perm, inner: dict[str, str]) -> Change | None:
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    data = [n for n in node.input if n and n not in graph.known.tensors]
    if rule is None or not any(n in inner for n in data):
        return None
    if any(n not in inner and math.prod(graph.known.shapes.get(n, (2,))) != 1 for n in data):
        return None
    if any(len(graph.known.shapes.get(n, ())) != len(perm) for n in node.output):
        return None
    return rule(node, perm, graph.known)


def _parts(graph: _Graph, marked: dict[int, Change], inner: dict[str, str]) -> list[set[int]]:
    """Marked nodes that read or give the same values."""
    parent = {at: at for at in marked}

    def root(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    for name in inner:
        near = [i for i in [*graph.readers[name], graph.producer[name]] if i in marked]
        for other in near[1:]:
            parent[root(other)] = root(near[0])
    found: dict[int, set[int]] = defaultdict(set)
    for at in marked:
        found[root(at)].add(at)
    return list(found.values())


def _gain(graph: _Graph, part: set[int], perm: Perm, inner: dict[str, str]) -> int:
    """Elements that need not be moved any more, less those that must be."""
    entries = {n for at in part for n in graph.nodes[at].input if n in inner and graph.producer[n] not in part}
    gone = [n for n in entries if n not in graph.outputs and set(graph.readers[n]) <= part]
    gain = sum(graph.weighed(n) for n in gone)
    for at in part:
        for name in graph.nodes[at].output:
            outside = [i for i in graph.readers[name] if i not in part]
            undone = [i for i in outside if (_perm(graph.nodes[i]) or ()) and _composed(perm, graph.nodes[i]) is None]
            gain += sum(graph.weighed(graph.nodes[i].output[0]) for i in undone)
            if _must_be(graph, name, part, perm):
                gain -= graph.weighed(name, part)
    return gain


def _composed(perm: Perm, behind: NodeProto) -> Perm | None:
    """The order of a Transpose behind one of order `perm`, in one; None if they undo each other."""
    both = tuple(perm[i] for i in _perm(behind) or ())
    return None if both == tuple(range(len(perm))) else both


def _transpose(source: str, to: str, name: str, perm: Perm | None) -> NodeProto:
    """A Transpose, or Identity where there is no order."""
    if perm is None:
        return helper.make_node("Identity", [source], [to], name=name)
    return helper.make_node("Transpose", [source], [to], name=name, perm=perm)


def _must_be(graph: _Graph, name: str, part: Iterable[int], perm: Perm) -> bool:
    """Whether the transposed value is still read if `part` works on the other."""
    members = set(part)
    outside = [graph.nodes[i] for i in graph.readers[name] if i not in members]
    return name in graph.outputs or any(
        _perm(node) is None and _end(graph, node, name, perm) is None for node in outside
    )


def _end(graph: _Graph, node: NodeProto, name: str, perm: Perm) -> Change | None:
    rule = ENDS.get(node.op_type)
    return rule(node, perm, graph.known) if rule is not None and node.input[0] == name else None


def _rewrite(graph: _Graph, marked: dict[int, Change], perm: Perm, inner: dict[str, str]) -> None:
    """Marked nodes on the untransposed values; Transposes where the others are still read."""
    nodes: list[NodeProto] = []
    moved = {name for at in marked for name in graph.nodes[at].output}
    for at, node in enumerate(graph.nodes):
        behind = _perm(node)
        if at in marked:
            nodes.append(_changed(graph, node, marked[at], inner, [inner[name] for name in node.output]))
            for name in node.output:
                _declare(graph, inner[name], name, np.argsort(perm))
                if _must_be(graph, name, marked, perm):
                    nodes.append(_transpose(inner[name], name, f"{name}/back", perm))
        elif behind is not None and node.input[0] in moved:
            nodes.append(_transpose(inner[node.input[0]], node.output[0], node.name, _composed(perm, node)))
        elif node.input and node.input[0] in moved and (end := _end(graph, node, node.input[0], perm)) is not None:
            nodes.append(_changed(graph, node, end, inner, list(node.output)))
        else:
            nodes.append(node)
    _put(graph.graph, nodes)


def _changed(graph: _Graph, node: NodeProto, change: Change, inner: dict[str, str], outputs: list[str]) -> NodeProto:
    inputs = [inner.get(name, name) for name in node.input]
    for i, value in change.consts.items():
        inputs += [""] * (i + 1 - len(inputs))
        inputs[i] = graph.add_const(value, node.output[0])
    options = {**attributes(node), **change.attributes}
    return helper.make_node(node.op_type, inputs, outputs, name=node.name, **options)


def _declare(graph: _Graph, name: str, like: str, order: Iterable[int]) -> None:
    shape = [graph.known.shapes[like][i] for i in order]
    graph.graph.value_info.append(helper.make_tensor_value_info(name, graph.types[like].elem_type, shape))


def _shorten(graph: _Graph, at: int) -> bool:
    """A Transpose of a Transpose, of axes of one element, or before Flatten and weights."""
    node = graph.nodes[at]
    perm, shape = _perm(node), graph.known.shapes.get(node.input[0] if node.input else "")
    if perm is None or shape is None:
        return False
    before = graph.producer.get(node.input[0])
    first = None if before is None else _perm(graph.nodes[before])
    if first is not None and before is not None:
        source = graph.nodes[before].input[0]
        node.CopyFrom(_transpose(source, node.output[0], node.name, _composed(first, node)))
        return True
    kept = [i for i in perm if shape[i] != 1]
    if kept == sorted(kept):
        to = graph.add_const(np.array([shape[i] for i in perm], np.int64), node.output[0])
        node.CopyFrom(helper.make_node("Reshape", [node.input[0], to], node.output, name=node.name))
        return True
    return _into_weights(graph, node, perm, shape)


def _into_weights(graph: _Graph, node: NodeProto, perm: Perm, shape: tuple[int, ...]) -> bool:
    """Transpose, then a reshape to [batch, everything else], then products with weights: their rows change places."""
    behind = _only_reader(graph, node.output[0])
    flat = graph.known.shapes.get(behind.output[0]) if behind is not None else None
    if behind is None or flat is None or behind.op_type not in ("Reshape", "Flatten", "Squeeze"):
        return False
    if perm[0] != 0 or flat != (shape[0], math.prod(shape[1:])) or behind.input[0] != node.output[0]:
        return False
    products = [graph.nodes[i] for i in graph.readers[behind.output[0]]]
    if (
        not products
        or behind.output[0] in graph.outputs
        or not all(_weighs(graph, p, behind.output[0]) for p in products)
    ):
        return False
    back = [int(i) - 1 for i in np.argsort(perm)[1:]]
    for product in products:
        turned, weight = attributes(product).get("transB", 0), graph.known.const(product.input[1])
        assert weight is not None
        rows = weight.T if turned else weight
        split = rows.reshape(*[shape[i] for i in perm[1:]], -1)
        rows = split.transpose(*back, len(back)).reshape(rows.shape)
        product.input[1] = graph.add_const(rows.T if turned else rows, product.input[1])
    shaped = graph.add_const(np.array(flat, np.int64), behind.output[0])
    behind.CopyFrom(helper.make_node("Reshape", [node.input[0], shaped], behind.output, name=behind.name))
    return True


def _weighs(graph: _Graph, node: NodeProto, name: str) -> bool:
    """Whether a node is the product of this value with weights."""
    weight = graph.known.tensors.get(node.input[1]) if len(node.input) > 1 else None
    plain = node.op_type in ("Gemm", "MatMul") and node.input[0] == name and not attributes(node).get("transA", 0)
    return plain and weight is not None and len(weight.dims) == 2


def _only_reader(graph: _Graph, name: str) -> NodeProto | None:
    readers = graph.readers[name]
    return graph.nodes[readers[0]] if len(readers) == 1 and name not in graph.outputs else None


def _clean(model: onnx.ModelProto) -> None:
    """Leave out Identities within, and what nobody reads."""
    graph, outputs = model.graph, {v.name for v in model.graph.output}
    same: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in same:
                node.input[i] = same[name]
        if (
            node.op_type == "Identity"
            and node.output[0] not in outputs
            and not _captured_anywhere(graph, node.output[0])
        ):
            same[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    needed, alive = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input) | _captured(node)
            alive.append(node)
    if len(alive) < len(graph.node):
        _put(graph, alive[::-1])
    unread = [i for i, tensor in enumerate(graph.initializer) if tensor.name not in needed]
    for i in reversed(unread):
        del graph.initializer[i]


def _captured_anywhere(graph: onnx.GraphProto, name: str) -> bool:
    return any(name in _captured(node) for node in graph.node if any(a.HasField("g") for a in node.attribute))


def _put(graph: onnx.GraphProto, nodes: Iterable[NodeProto]) -> None:
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
