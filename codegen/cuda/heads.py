"""Heads that share their keys and values, without copies of them: what exporters write as Expand and Reshape (grouped-query
attention) becomes a product that broadcasts, [B, G, R, T, D] x [B, G, 1, D, S], which kernels read in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.cuda.calls import tensors_of
from spa.codegen.program import Tensor

TURNED = [0, 1, 3, 2]


def share_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, each MatMul of four axes whose second operand repeats heads rewritten. The input is not changed; operators
    that nobody reads any more stay, for who imports the model to drop."""
    rewriter = _Rewriter(model)
    nodes = [part for node in model.graph.node for part in rewriter.rewritten(node)]
    if len(nodes) == len(model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes)
    result.graph.initializer.extend(rewriter.constants)
    result.graph.value_info.extend(rewriter.declared)
    return result


class _Rewriter:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors = tensors_of(model)
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.constants: list[TensorProto] = []
        self.declared: list[onnx.ValueInfoProto] = []

    def rewritten(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node itself, or those that take its place."""
        found = self._shared(node.input[1]) if node.op_type == "MatMul" else None
        x, y = self.tensors.get(node.input[0]) if found else None, self.tensors.get(node.output[0])
        if found is None or x is None or y is None or len(x.shape) != 4:
            yield node
            return
        base, turned, repeats = found
        out, batch = node.output[0], base.shape[0]
        if x.shape[:2] != (batch, base.shape[1] * repeats):
            yield node
            return
        axes = (batch, base.shape[1], repeats)
        yield self._reshape(node.input[0], f"{out}.heads", Tensor("", x.dtype, (*axes, *x.shape[2:])))
        other = base.name
        if turned:
            other = f"{out}.turned"
            yield helper.make_node("Transpose", [base.name], [other], perm=[0, 1, 2, 4, 3])
            self._declare(other, Tensor("", base.dtype, (*base.shape[:3], base.shape[4], base.shape[3])))
        yield helper.make_node("MatMul", [f"{out}.heads", other], [f"{out}.grouped"], name=node.name)
        self._declare(f"{out}.grouped", Tensor("", y.dtype, (*axes, *y.shape[2:])))
        yield self._reshape(f"{out}.grouped", out, y)

    def _shared(self, name: str) -> tuple[Tensor, bool, int] | None:
        """What is repeated ([B, G, 1, S, D]), whether its last two axes are turned behind, and how often it is repeated."""
        node, turned = self.producer.get(name), False
        if node is not None and node.op_type == "Transpose" and _perm(node) == TURNED:
            node, turned = self.producer.get(node.input[0]), True
        merged = None if node is None or node.op_type != "Reshape" else self.producer.get(node.input[0])
        if node is None or merged is None or merged.op_type != "Expand":
            return None
        after, whole, base = (self.tensors.get(n) for n in (node.output[0], merged.output[0], merged.input[0]))
        if after is None or whole is None or base is None or len(whole.shape) != 5 or len(base.shape) != 5:
            return None
        b, g, r, s, d = whole.shape
        if base.shape != (b, g, 1, s, d) or after.shape != (b, g * r, s, d):
            return None
        return base, turned, r

    def _reshape(self, source: str, target: str, known: Tensor) -> onnx.NodeProto:
        shape = f"{target}.shape"
        self.constants.append(numpy_helper.from_array(np.array(known.shape, np.int64), shape))
        self._declare(target, known)
        return helper.make_node("Reshape", [source, shape], [target])

    def _declare(self, name: str, known: Tensor) -> None:
        if name not in self.tensors:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(known.dtype))
            self.declared.append(helper.make_tensor_value_info(name, kind, known.shape))


def _perm(node: onnx.NodeProto) -> Sequence[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
