"""Nodes whose result does not depend on any input of the network become constants.

Two ways lead there:

1. *Values.* Every operand is constant: the node is run once, by onnxruntime with its optimisations off, so the
   constant has the very bits the network would have computed. `CastLike` needs only the type of its second operand.
2. *Shapes.* `Shape -> Gather / Slice / Squeeze / Concat ...` over dimensions that are fixed, whatever the data. Here
   only what ONNX's own inference derives from the declared inputs is believed, never the file's `value_info`.
   A chain that stays dynamic still gives Reshape a constant target where -1 or 0 can say the same:
   [N, 64] -> [-1, 64];  [N, T, 8, 16] over data [N, T, 128] -> [0, 0, 8, 16].

Never folded: what is random, has subgraphs, is of another domain, or quantises (the scales carry meaning), and what
would make the model grow by more than `max_bytes`: ConstantOfShape, Expand, Tile, or two transposes of a shared weight.
A weight that is stored in fewer bits than it is used in, behind a Cast (`spa.passes.halve`), stays so unless `widen`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from spa.passes import edit
from spa.passes.edit import Array, constant, is_onnx

NEVER = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    "Identity",  # a second copy of a weight; it is taken out of the way instead
}
# the shape of the result depends on data, but the result has at most rank x input elements
BOUNDED = {"NonZero", "Compress", "Unique"}
PLAIN = {
    *(ir.DataType.BOOL, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE),
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}
DATA_LIMIT = 4096  # bytes: operands up to this size are shown to shape inference
STORED = 256  # elements: a Cast of so many to a wider type is a way to store them
READ_ALWAYS = 1 << 20  # bytes: larger operands are read only where the result replaces them


def lift_constants(model: ir.Model) -> int:
    """Constant nodes of the main graph become initializers of the same name."""
    if model.ir_version < edit.INITIALIZERS_ARE_INPUTS:
        return 0
    lifted = 0
    for node in list(model.graph):
        if is_onnx(node, "Constant") and not node.outputs[0].is_graph_output():
            tensor = constant(node.outputs[0])
            if tensor is not None:
                edit.replace_by_constants(model, node, [tensor])
                lifted += 1
    return lifted


def fold_constants(model: ir.Model, max_bytes: int, types: dict[str, ir.DataType], widen: bool = False) -> int:
    """Evaluate nodes with constant operands until none is left; `types` are those inferred, by value name."""
    folded = 0
    pending = [n for n in edit.nodes(model) if _foldable(n, types, widen)]
    while pending:
        wave = [n for n in pending if _affordable(n, model, max_bytes)]
        done = _evaluate(wave, model, types)
        readers = {user: None for node in done for v in node.outputs for user in v.consumers()}
        for node, arrays in done.items():
            edit.replace_by_constants(model, node, [ir.tensor(a) for a in arrays])
        folded += len(done)
        pending = [n for n in readers if n.graph is not None and _foldable(n, types, widen)]
    return folded


def _foldable(node: ir.Node, types: dict[str, ir.DataType], widen: bool) -> bool:
    """All operands constant, and an op whose result is always the same."""
    if not widen and stored_narrow(node):
        return False
    if node.domain not in ("", "ai.onnx") or node.op_type in NEVER or not node.inputs:
        return False
    if any(a.is_ref() or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    if is_onnx(node, "CastLike"):
        like = node.inputs[1]
        return like is not None and types.get(like.name or "") in PLAIN and _plain(node.inputs[0])
    return all(v is None or _plain(v) for v in node.inputs)


def stored_narrow(node: ir.Node) -> bool:
    """Does the node widen a constant that somebody stored in fewer bits?"""
    tensor = constant(node.inputs[0]) if is_onnx(node, "Cast") and node.inputs else None
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.size < STORED:
        return False
    target = ir.DataType(edit.attribute(node, "to"))
    return target.is_floating_point() and tensor.dtype.bitwidth < target.bitwidth


def _plain(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return tensor is not None and tensor.dtype in PLAIN


def _affordable(node: ir.Node, model: ir.Model, max_bytes: int) -> bool:
    """Would the outputs weigh at most `max_bytes` more than the operands that nobody else reads?"""
    operands = {v: t for v in node.inputs if v is not None and (t := constant(v)) is not None}
    freed = sum(t.nbytes for v, t in operands.items() if edit.is_private(v))
    size = _output_bytes(node, operands, model)
    if any(t.nbytes > READ_ALWAYS and not edit.is_private(v) for v, t in operands.items()):
        return False
    return size is not None and size <= freed + max_bytes


def _output_bytes(node: ir.Node, operands: dict[ir.Value, ir.TensorProtocol], model: ir.Model) -> int | None:
    """Bytes of all outputs by shape inference, before anything large is computed; None where it cannot tell."""
    if node.op_type in BOUNDED:
        return sum(8 * t.size * max(1, len(t.shape)) for t in operands.values())
    if is_onnx(node, "CastLike"):
        return 8 * next(iter(operands.values())).size
    types = {v.name or "": _type(t) for v, t in operands.items()}
    data = {v.name or "": ir.to_proto(t) for v, t in operands.items() if t.nbytes <= DATA_LIMIT}
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get("", 1), "")
        proto = ir.serde.serialize_node(node)
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
    except Exception:  # onnx raises many kinds; a node that it cannot infer is a node that we do not run
        return None
    total = 0
    for value in node.outputs:
        if not value.name:
            continue
        kind = found[value.name].tensor_type if value.name in found else None
        if kind is None or not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
            return None
        dtype = ir.DataType(kind.elem_type)
        if dtype not in PLAIN:
            return None
        total += math.ceil(math.prod(d.dim_value for d in kind.shape.dim) * dtype.itemsize)
    return total


def _type(tensor: ir.TensorProtocol) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(tensor.dtype.value, list(tensor.shape.numpy()))


def _evaluate(wave: list[ir.Node], model: ir.Model, types: dict[str, ir.DataType]) -> dict[ir.Node, list[Array]]:
    """Run the nodes, which do not depend on each other, in one session; one by one where that fails."""
    if not wave:
        return {}
    try:
        return _run(wave, model, types)
    except Exception:  # onnxruntime raises many kinds: an op it does not have for this type, or operands it rejects
        if len(wave) == 1:
            return {}
        half = len(wave) // 2
        return _evaluate(wave[:half], model, types) | _evaluate(wave[half:], model, types)


def _run(wave: list[ir.Node], model: ir.Model, types: dict[str, ir.DataType]) -> dict[ir.Node, list[Array]]:
    feeds: dict[str, Array] = {}
    inputs, protos, outputs = [], [], []
    for node in wave:
        proto = ir.serde.serialize_node(node)
        if is_onnx(node, "CastLike"):
            target = types[node.inputs[1].name or ""]  # type: ignore[union-attr]
            proto = onnx.helper.make_node("Cast", [proto.input[0]], list(proto.output), to=target.value)
        protos.append(proto)
        for value in node.inputs:
            tensor = constant(value)
            if value is None or tensor is None or value.name is None or value.name in feeds:
                continue
            feeds[value.name] = tensor.numpy()
            inputs.append(onnx.helper.make_value_info(value.name, _type(tensor)))
        outputs += [onnx.helper.make_empty_tensor_value_info(v.name) for v in node.outputs if v.name]
    opset = onnx.helper.make_opsetid("", model.opset_imports.get("", 1))
    graph = onnx.helper.make_graph(protos, "constants", inputs, outputs)
    single = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=max(model.ir_version, 7))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in outputs]
    found = dict(zip(names, session.run(names, feeds), strict=True))
    if not all(isinstance(a, np.ndarray) for a in found.values()):
        raise TypeError("a result is no tensor")
    return {node: [found[v.name] if v.name else np.empty(0) for v in node.outputs] for node in wave}


def infer(model: ir.Model) -> tuple[dict[str, ir.Shape], dict[str, ir.DataType]]:
    """Shapes and types by value name, derived from the inputs and constants alone. No weight is read.

    Empty where no node could make use of them: this is most of what `fold` costs.
    """
    if not any(is_onnx(node, "Shape", "Size", "Cast", "CastLike") for node in edit.nodes(model)):
        return {}, {}
    scratch = model.clone()
    for node in edit.nodes(scratch):
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in scratch.graph.outputs:
        value.shape = None
    inferred = common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(scratch).model
    values: list[Any] = [v for node in edit.nodes(inferred) for v in node.outputs]
    for graph in [inferred.graph, *inferred.graph.subgraphs()]:
        values += [*graph.inputs, *graph.initializers.values()]
    shapes = {v.name: v.shape for v in values if v.name and v.shape is not None}
    return shapes, {v.name: v.dtype for v in values if v.name and v.dtype is not None}
