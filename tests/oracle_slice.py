"""The masked dense network, built from a plan's `removed` table with onnx and numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from spa.model import Model


def masked(proto: onnx.ModelProto, removed: dict[str, dict[str, list[int]]]) -> onnx.ModelProto:
    """Set the removed slices of initializers and Constant outputs to zero (no divisors or quantised weights here)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensors = {t.name: t for t in copy.graph.initializer}
    tensors |= {n.output[0]: a.t for n in copy.graph.node if n.op_type == "Constant" for a in n.attribute}
    for name, axes in removed.items():
        array = numpy_helper.to_array(tensors[name]).copy()
        for axis, index in axes.items():
            array[(slice(None),) * int(axis) + (index,)] = 0
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return copy


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def assert_masked_equal(
    dense: Model, cut: Model, removed: dict[str, dict[str, list[int]]], *, seed: int = 0, batch: int = 2
) -> None:
    """`cut` passes the checker, runs, and agrees with the masked `dense` on a random input."""
    a, b = dense.to_proto(), cut.to_proto()
    onnx.checker.check_model(b, full_check=True)
    rng = np.random.default_rng(seed)
    initial = {t.name for t in a.graph.initializer}
    feeds = {
        i.name: rng.standard_normal([d.dim_value or batch for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in a.graph.input
        if i.name not in initial
    }
    for x, y in zip(run(masked(a, removed), feeds), run(b, feeds), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(x).max())))


def folder_state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
