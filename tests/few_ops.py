"""Networks of a few operators, pruned at random and held against the masked dense network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from oracle import masked
from oracle import onnxruntime as run

import spa
from spa.coupling import Coupling
from spa.model import Model
from spa.planning import from_masks

Array = npt.NDArray[Any]
Removed = dict[str, dict[str, list[int]]]
MICROSOFT = "com.microsoft"


def node(kind: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """Operands as one text, separated by spaces; `_` stands for one that is left out."""
    reads, writes = (["" if n == "_" else n for n in text.split()] for text in (inputs, outputs))
    return helper.make_node(kind, reads, writes, name=writes[0], domain=domain, **attributes)


def microsoft(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return node(kind, inputs, outputs, MICROSOFT, **attributes)


def weights(seed: int = 0, scale: float = 0.5, **shapes: Sequence[int]) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {k: (scale * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    constants: Mapping[str, Array],
    *,
    opset: int = 23,
    types: Mapping[str, int] | None = None,
) -> Model:
    """`inputs`: name -> shape, float unless `types` says otherwise."""
    types = types or {}
    float_ = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "few",
        [helper.make_tensor_value_info(n, types.get(n, float_), list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, types.get(n, float_), None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid("ai.onnx.ml", 3)]
    return spa.load(helper.make_model(graph, opset_imports=domains, ir_version=10))


def draw_masks(coupling: Coupling, seed: int, share: float = 0.4) -> dict[str, npt.NDArray[np.bool_]]:
    """Random channels of every group: at least one goes and one stays, where it has two."""
    rng = np.random.default_rng(seed)
    found = {}
    for group in coupling.groups:
        mask = rng.random(group.size) < share
        order = rng.permutation(group.size)
        mask[order[0]], mask[order[-1]] = True, False
        found[group.id] = mask
    return found


def feed(model: onnx.ModelProto, seed: int, given: Mapping[str, Array] | None = None) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = dict(given or {})
    for value in model.graph.input:
        shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name not in feeds:
            array = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            feeds[value.name] = np.asarray(array).astype(dtype)
    return feeds


def prune_and_compare(
    model: Model,
    seed: int = 0,
    *,
    given: Mapping[str, Array] | None = None,
    share: float = 0.4,
    runner: Callable[[onnx.ModelProto, dict[str, Array]], list[Any]] = run,
) -> tuple[Model, Removed]:
    """Remove random channels of every group; the result must run and be equal to the masked dense network."""
    coupling = spa.analyze(model)
    plan = from_masks(coupling, draw_masks(coupling, seed, share))
    cut = spa.apply(model, plan).model
    dense, small = model.to_proto(), cut.to_proto()
    for number in (seed, seed + 1):
        feeds = feed(dense, number, given)
        for a, b in zip(runner(masked(dense, plan.removed), feeds), runner(small, feeds), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=2e-5 * max(1.0, float(np.abs(a).max(initial=0))))
    return cut, plan.removed


def find(model: Model, kind: str) -> Any:
    """The only node of an operator, as ONNX stores it."""
    (found,) = [n for n in model.to_proto().graph.node if n.op_type == kind]
    return found


def attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in proto.attribute}


def gone(removed: Removed, name: str, axis: int) -> list[int]:
    return removed.get(name, {}).get(str(axis), [])


def reasons(model: Model) -> str:
    """Everything that blocks anything, as one text."""
    return "\n".join(str(r) for b in spa.analyze(model).blocked for r in b.reasons)
