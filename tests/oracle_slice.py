"""A pruned network held against the masked dense one of `oracle`, and the state of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from oracle import masked, onnxruntime

from spa.model import Model

run = onnxruntime
__all__ = ["assert_masked_equal", "folder_state", "masked", "run"]


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
    for x, y in zip(onnxruntime(masked(a, removed), feeds), onnxruntime(b, feeds), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(x).max())))


def folder_state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
