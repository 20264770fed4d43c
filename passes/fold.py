"""`fold`: everything that can be computed before the network runs, and everything that does nothing.

1. constants: nodes whose operands are constant, shape chains whose dimensions are fixed (`passes/constants.py`,
   `passes/shape_chains.py`)
2. identities: Identity, Dropout at inference, Cast to the same type, Transpose that keeps the order, Concat and Sum of
   one, Pad by nothing
3. batchnorm: BatchNormalization into the Conv, ConvTranspose or Gemm before it (`passes/batchnorm.py`)
4. dead: nodes and initializers that nobody reads

The numbers stay the same up to rounding. Inputs and outputs keep names and order; functions, metadata, opset imports
and ir_version stay.
onnxscript's optimizer is not used as a whole: it inlines functions, lifts initializers of subgraphs, folds Bernoulli
and BatchNormalization in training mode, and believes `value_info`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from spa.model import Model
from spa.passes import constants, edit
from spa.passes.batchnorm import fold_batchnorm
from spa.passes.edit import attribute, constant, is_onnx
from spa.passes.shape_chains import fold_shapes
from spa.pipeline import Result

ROUNDS = 8  # each round can expose work for the next (a static Reshape makes later Shapes static); then it stops


@dataclass(frozen=True)
class Fold:
    """Compute ahead what is constant, fold batch normalisation, drop what does nothing."""

    name: ClassVar[str] = "fold"

    constants: bool = True
    identities: bool = True
    batchnorm: bool = True
    dead: bool = True
    max_bytes: int = 1 << 16  # by how much one folded constant may make the model grow
    widen: bool = False  # weights stored in fewer bits behind a Cast too

    def run(self, model: Model) -> Result:
        graph = model.ir.clone()
        counts: Counter[str] = Counter()
        declined: list[tuple[str, str]] = []
        for _ in range(ROUNDS):
            before = counts.total()
            shapes, types = constants.infer(graph)
            if self.constants:
                chains, reshapes = fold_shapes(graph, shapes)
                counts["lifted"] += constants.lift_constants(graph)
                counts["reshapes"] += reshapes
                counts["constants"] += chains + constants.fold_constants(graph, self.max_bytes, types, self.widen)
            if self.identities:
                counts["identities"] += remove_identities(graph, types)
            if self.batchnorm:
                folded, declined = fold_batchnorm(graph)
                counts["batchnorm"] += folded
            if self.dead:
                counts["dead"] += remove_dead(graph)
            if counts.total() == before:
                break
        facts = {"fold": {**counts, "declined": [{"node": n, "reason": r} for n, r in declined]}}
        return Result(Model(graph, model.source, list(model.notes)), facts=facts)


def remove_identities(graph: ir.Model, types: dict[str, ir.DataType]) -> int:
    """Take nodes out that pass their first operand on unchanged; `types` are those inferred, by value name."""
    removed = 0
    opset = graph.opset_imports.get("", 1)
    for node in list(edit.nodes(graph)):
        source = node.inputs[0] if node.inputs else None
        if source is None or not _passes_on(node, source, opset, types) or not edit.bypass(node.outputs[0], source):
            continue
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        removed += 1
    return removed


def _passes_on(node: ir.Node, source: ir.Value, opset: int, types: dict[str, ir.DataType]) -> bool:
    if is_onnx(node, "Identity"):
        return True
    if is_onnx(node, "Concat", "Sum", "Max", "Min", "Mean"):
        return len(node.inputs) == 1
    if is_onnx(node, "Cast"):
        return source.name in types and attribute(node, "to") == types[source.name].value
    if is_onnx(node, "Transpose"):
        order = attribute(node, "perm")
        return order is not None and list(order) == sorted(order)
    if is_onnx(node, "Pad"):
        pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        amounts = attribute(node, "pads") if pads is None else pads.numpy().tolist()
        return amounts is not None and not any(amounts)
    if is_onnx(node, "Dropout"):
        mask = node.outputs[1] if len(node.outputs) > 1 else None
        training = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if len(node.inputs) > 2 and node.inputs[2] is not None and (training is None or training.numpy().any()):
            return False
        return opset >= 7 and (mask is None or not (mask.uses() or mask.is_graph_output()))
    return False


def remove_dead(graph: ir.Model) -> int:
    """Remove nodes and initializers that no output depends on. Inputs stay."""

    def size() -> int:
        return sum(1 for _ in edit.nodes(graph)) + len(graph.graph.initializers)

    before = size()
    common.RemoveUnusedNodesPass()(graph)
    return before - size()
