"""The four parts of a rewrite's test: a model from text, its op list, its numbers, and a second run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

import spa
from spa.model import Model
from spa.pipeline import Pass

Array = npt.NDArray[Any]


def parse(text: str, weights: Mapping[str, Array] | None = None, opset: int = 18, ir_version: int = 8) -> Model:
    """A model from ONNX text. `agraph (float[N,3] x) => ...` is enough: a header is put before it where it has none.

    `weights` become initializers.
    """
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in (weights or {}).items())
    onnx.checker.check_model(proto)
    return spa.load(proto)


def ops(model: Model) -> list[str]:
    """Operators of the main graph in order."""
    return [node.op_type for node in model.ir.graph]


def run(model: Model, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs, by onnxruntime with its optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, dict(feeds))]


def feeds_for(model: Model, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Random inputs of the declared types; `sizes` gives symbolic dimensions, 2 otherwise."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.ir.graph.inputs:
        assert value.shape is not None and value.dtype is not None
        shape = [d if isinstance(d, int) else sizes.get(str(d.value), 2) for d in value.shape]
        found[value.name or ""] = rng.standard_normal(shape).astype(value.dtype.numpy())
    return found


def check_rewrite(
    step: Pass,
    model: Model,
    expected: list[str],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    feeds: Mapping[str, Array] | None = None,
) -> Model:
    """Run the pass and hold all four parts. Returns the rewritten model."""
    before = model.to_proto().SerializeToString(deterministic=True)
    result = step.run(model).model
    assert ops(result) == expected
    assert model.to_proto().SerializeToString(deterministic=True) == before, "the input model was changed"
    onnx.checker.check_model(result.to_proto(), full_check=True)
    given = feeds if feeds is not None else feeds_for(model)
    for old, new in zip(run(model, given), run(result, given), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_allclose(new, old, rtol=rtol, atol=atol)
    again = step.run(result).model
    assert again.to_proto().SerializeToString(deterministic=True) == result.to_proto().SerializeToString(
        deterministic=True
    ), "a second run changes something"
    return result
