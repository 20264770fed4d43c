"""Relaxed SIMD: on request only, fused multiply-adds in the module, the numbers of onnxruntime."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from oracle import onnxruntime

from spa.codegen.bundle import compile
from spa.runtime.run import run

pytestmark = pytest.mark.codegen
MADD, MUL = b"\xfd\x85\x02", b"\xfd\xe6\x01"  # f32x4.relaxed_madd and f32x4.mul
DIGITS = Path(__file__).parents[2] / "models" / "digits.onnx"


@pytest.mark.parametrize("engine", ["wasmtime", "node"])
def test_only_where_it_is_asked_for(engine: str) -> None:
    if engine == "node" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    model = onnx.load(DIGITS)
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    name = model.graph.input[0].name
    expected = onnxruntime(model, {name: x})[0]
    code = {}
    for relaxed in (False, True):
        bundle = compile(model, "wasm", relaxed_simd=relaxed)
        code[relaxed] = next((bundle.path / "wasm").glob("*.wasm")).read_bytes()
        assert ("+relaxed-simd" in bundle.manifest["targets"]["wasm"]["features"]) == relaxed
        (found,) = run(bundle.path, {name: x}, "wasm", engine).values()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.ptp(expected))
    assert code[False].count(MADD) == 0 < code[True].count(MADD)
    assert code[True].count(MUL) < code[False].count(MUL)
