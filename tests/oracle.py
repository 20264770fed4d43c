"""The masked dense network of a plan, with onnx and numpy alone.

Removal is right exactly when the pruned network equals the network whose removed slices are zero. This oracle knows
nothing of coupling, only what a plan says: weights become zero, quantised ones their zero point,
and divisors, exponents, logarithms and quantisation parameters stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]
Removed = dict[str, dict[str, list[int]]]
Runner = Callable[[onnx.ModelProto, Mapping[str, Array]], list[Array]]

STAYS = {
    "Div": (1,),
    "Pow": (0, 1),
    "Reciprocal": (0,),
    "Log": (0,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
}
# op -> (weight, zero point, axis of a zero point per channel, counted from the end where negative)
QUANTISED = {
    "DequantizeLinear": (0, 2, None), "QLinearConv": (3, 5, 0), "ConvInteger": (1, 3, 0),
    "QLinearMatMul": (3, 5, -1), "MatMulInteger": (1, 3, -1),
}  # fmt: skip


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for n in graph.node:
        for a in n.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from graphs(a.g)


def masked(proto: onnx.ModelProto, removed: Removed) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes = [n for g in graphs(copy.graph) for n in g.node]
    tensors = {t.name: t for g in graphs(copy.graph) for t in g.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in nodes if n.op_type == "Constant"}
    stays = {n.input[i] for n in nodes for i in STAYS.get(n.op_type, ()) if i < len(n.input)}
    fills = {n.input[QUANTISED[n.op_type][0]]: zero_point(n, tensors) for n in nodes if n.op_type in QUANTISED}
    for name, axes in removed.items():
        if name in stays:
            continue
        array = numpy_helper.to_array(tensors[name]).copy()
        fill = fills.get(name)
        fill = np.zeros(array.shape, array.dtype) if fill is None else np.broadcast_to(fill, array.shape)
        for axis, index in axes.items():
            at = (slice(None),) * int(axis) + (index,)
            array[at] = fill[at]
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return copy


def zero_point(n: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> Array | None:
    weight, zero, axis = QUANTISED[n.op_type]
    if zero >= len(n.input) or n.input[zero] not in tensors or n.input[weight] not in tensors:
        return None
    point = numpy_helper.to_array(tensors[n.input[zero]])
    shape = tensors[n.input[weight]].dims
    if point.ndim == 1 and point.size > 1:
        axis = next((a.i for a in n.attribute if a.name == "axis"), 1) if axis is None else axis
        return point.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    for i, (many, few) in enumerate(zip(shape, point.shape, strict=True) if point.ndim == len(shape) else ()):
        point = np.repeat(point, many // few, axis=i)  # one per block
    return point


def onnxruntime(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def reference(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """ONNX's own evaluator, for what onnxruntime does not implement."""
    return list(ReferenceEvaluator(proto).run(None, dict(feeds)))
