"""Weights in files: a sparse network comes out beside its data, equal to the one made in memory, and leaves nothing behind."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import parse, run

import spa
from spa.model import Model
from spa.passes.sparsify import sparsify
from spa.spill import release, spilled


def chain(folder: Path) -> tuple[Model, Model]:
    """The same network with its weights in memory and in a file."""
    rng = np.random.default_rng(0)
    weights = {n: (rng.standard_normal((160, 160)) / 12).astype(np.float32) for n in "abcd"}
    text = "agraph (float[N,160] x) => (float[N,160] y) { p = MatMul(x, a)  q = Relu(p)  r = MatMul(q, b)  s = Relu(r)  t = MatMul(s, c)  y = MatMul(t, d) }"
    model = parse(text, weights)
    onnx.save(model.to_proto(), folder / "net.onnx", save_as_external_data=True, location="net.data")
    return model, spa.load(folder / "net.onnx")


@pytest.mark.parametrize("data", [True, False])
def test_weights_in_files_give_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bool) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    here, there = chain(tmp_path)
    rng = np.random.default_rng(1)
    calib = [{"x": rng.standard_normal((64, 160)).astype(np.float32)} for _ in range(8)] if data else None
    expected, found = sparsify(here, "2:4", calib=calib).model, sparsify(there, "2:4", calib=calib).model
    thin = [v.const_value for n, v in found.ir.graph.initializers.items() if n in "bc"]
    assert all(isinstance(t, ir.ExternalTensor) for t in thin) and len(list((tmp_path / "scratch").iterdir())) == 2
    found.save(tmp_path / "thin.onnx")
    assert (tmp_path / "thin.onnx").stat().st_size < 4000 and len(list(tmp_path.glob("thin.*.data"))) == 1
    feeds = {"x": rng.standard_normal((3, 160)).astype(np.float32)}
    np.testing.assert_array_equal(run(spa.load(tmp_path / "thin.onnx"), feeds)[0], run(expected, feeds)[0])
    del found, thin
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_file_that_somebody_looks_at_stays_open() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = spilled(array, "w")
    seen = tensor.numpy()
    release(tensor)
    np.testing.assert_array_equal(seen, array)
    np.testing.assert_array_equal(tensor.numpy(), array)
