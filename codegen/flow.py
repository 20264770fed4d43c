"""Control flow that is none: a straight line of nodes instead of Loop, Scan and If.

1. Loop whose count is a constant, and whose condition stays true: its body as often, at most `MOST` times;
2. Scan forward over its first axes: likewise;
3. If: both branches, and Where, as long as their results have the same shapes. It costs the branch that is not taken.

Bodies see what is outside; what they name themselves gets a new name each time. What is left is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from spa.codegen.replacing import Builder, Replace, attributes, light_shapes, replaced, where
from spa.errors import Unsupported

MOST = 128  # iterations: each is compiled for itself


def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the control flow that can be written out; changed in place. Constants must have been folded."""
    if not any(n.op_type in RULES for n in model.graph.node):
        return model
    replaced(model, RULES)
    shapes = light_shapes(model)
    for node in model.graph.node:
        if node.op_type == "Where" and node.name.endswith("/either"):
            first, second = (shapes.get(name) for name in node.input[1:])
            if first is None or first != second:
                raise Unsupported(
                    f"If cannot be compiled: its branches give shapes {first} and {second}, which must be known and equal",
                    f"node '{node.name.removesuffix('/either')}' (If)",
                    "cut it off the network and run it outside",
                )
    return model


def _loop(node: NodeProto, build: Builder) -> bool | None:
    body: GraphProto = attributes(node)["body"]
    count_name, go, *state = node.input
    count = build.const(count_name) if count_name else None
    if count is None or int(count.reshape(-1)[0]) > MOST or not _always(body, build, go):
        return False
    scanned: list[list[str]] = []
    for i in range(int(count.reshape(-1)[0])):
        given = [build.constant(np.array(i, np.int64)), build.constant(np.array(True)), *state]
        results = _body(body, given, build, i)[1:]
        state, rows = results[: len(state)], results[len(state) :]
        scanned.append(rows)
    if not scanned:
        return False
    _finish(node, build, state, scanned)
    return None


def _always(body: GraphProto, build: Builder, go: str) -> bool:
    """Whether a loop's condition is true at the start and ever after."""
    start = build.const(go) if go else np.array(True)
    name, into = body.output[0].name, body.input[1].name
    makers = {out: n for n in body.node for out in n.output}
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    stored = {t.name: t for t in body.initializer}
    if name in stored:
        return start is not None and bool(start.all()) and bool(onnx.numpy_helper.to_array(stored[name]).all())
    if name in makers and makers[name].op_type == "Constant":
        value = onnx.numpy_helper.to_array(makers[name].attribute[0].t)
        return start is not None and bool(start.all()) and bool(value.all())
    outside = build.const(name)
    held = name == into or (outside is not None and bool(outside.all()))
    return start is not None and bool(start.all()) and held


def _scan(node: NodeProto, build: Builder) -> bool | None:
    options = attributes(node)
    body: GraphProto = options["body"]
    scans = int(options["num_scan_inputs"])
    orders = ("input_axes", "input_directions", "output_axes", "output_directions")
    others = [v for k in orders for v in options.get(f"scan_{k}", [])]
    state, sequences = list(node.input[:-scans]), node.input[-scans:]
    shape = build.shape(sequences[0])
    if any(others) or not shape or shape[0] > MOST:
        return False
    scanned: list[list[str]] = []
    for i in range(shape[0]):
        at = build.constant(np.array(i, np.int64))
        rows = [build.add("Gather", [name, at], (), axis=0) for name in sequences]
        results = _body(body, [*state, *rows], build, i)
        scanned.append(results[len(state) :])
        state = results[: len(state)]
    _finish(node, build, state, scanned)
    return None


def _finish(node: NodeProto, build: Builder, state: Sequence[str], scanned: Sequence[Sequence[str]]) -> None:
    """The last state, and what each iteration gave, one behind the other."""
    for name, value in zip(node.output, state, strict=False):
        if name:
            build.name("Identity", [value], name)
    zero = build.constant(np.array([0], np.int64))
    for name, rows in zip(node.output[len(state) :], zip(*scanned, strict=True), strict=False):
        if name:
            build.name("Concat", [build.add("Unsqueeze", [row, zero], ()) for row in rows], name, axis=0)


def _if(node: NodeProto, build: Builder) -> bool | None:
    options = attributes(node)
    branches = [_body(options[f"{which}_branch"], [], build, i) for i, which in enumerate(("then", "else"))]
    for name, first, second in zip(node.output, *branches, strict=True):
        if name:
            build.name("Where", [node.input[0], first, second], name)
            build.nodes[-1].name = f"{node.name or name}/either"
    return None


def _body(body: GraphProto, given: Sequence[str], build: Builder, time: int) -> list[str]:
    """Write the nodes of a body with these operands; the names of its results."""
    names = {str(v.name): name for v, name in zip(body.input, given, strict=True)}
    for tensor in body.initializer:
        names[tensor.name] = build.constant(onnx.numpy_helper.to_array(tensor))
    for node in body.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise Unsupported(f"{node.op_type} within control flow cannot be compiled", where(node))
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{build.stem}/{node.name or node.op_type}_{time}_{len(build.nodes)}"
        for i, name in enumerate(node.input):
            copy.input[i] = names.get(name, name)
        for i, name in enumerate(node.output):
            if name:
                names[name] = copy.output[i] = build.fresh()
        build.nodes.append(copy)
    return [names.get(name, name) for name in (str(v.name) for v in body.output)]


RULES: Mapping[str, Replace] = {"Loop": _loop, "Scan": _scan, "If": _if}
