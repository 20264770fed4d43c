"""benchmarks/cuda.py: nobody can run it here, but its numerics run on the stub driver with launches emulated."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from stub import Stub, build

from spa.codegen.cuda import toolchain

pytestmark = [
    pytest.mark.codegen,
    pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc"),
]
FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("cuda_benchmark", FOLDER / "cuda.py")  # `cuda` is NVIDIA's package
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cuda_benchmark", module)
    spec.loader.exec_module(module)
    yield module


def test_numerics(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_LIBCUDA", str(build(tmp_path)))
    stub = Stub(tmp_path / "libstub.so")
    stub.library.stub_compute(8, 0)
    functions: dict[str, Any] = {}
    original = benchmark.emit_cuda

    def emit(*arguments: Any) -> Any:
        device = original(*arguments)
        functions.update(device.functions)
        return device

    monkeypatch.setattr(benchmark, "emit_cuda", emit)
    stub.computing(functions)

    every = benchmark.kernels_of

    def one_each(*arguments: Any) -> list[Any]:  # every kernel takes a run of nvcc
        return list({(c.family, c.format): c for c in every(*arguments) if c.format in ("dense", "2:4")}.values())

    def few() -> Iterator[Any]:
        yield benchmark.product(5, 20, 64, "float32", "2:4")
        yield benchmark.convolution((1, 5, 7, 7), (5, 1, 3, 3), 2, 1, 5, "dense")

    monkeypatch.setattr(benchmark, "kernels_of", one_each)
    monkeypatch.setattr(benchmark, "cases", few)
    out = tmp_path / "out.json"
    assert benchmark.main(["numerics", "--out", str(out)]) == 0
    stub.check_errors()
    found = json.loads(out.read_text())
    assert found["card"]["name"] == "stub" and found["card"]["arch"] == "sm_80"
    assert {row["format"] for row in found["numerics"]} >= {"dense", "2:4"}
    assert {row["family"] for row in found["numerics"]} == {"tensor", "few", "simt", "depthwise"}
    assert all(row["ok"] for row in found["numerics"])


def test_what_is_compared(benchmark: ModuleType) -> None:
    rows = [benchmark.timing(4096, name, "", us, None) for name, us in (("spa dense", 300.0), ("spa 2:4", 200.0))]
    rows += [benchmark.timing(4096, "cuBLAS", "", 150.0, None)]
    found = {row["ratio"]: row for row in benchmark.ratios(rows)}
    assert found["2:4 / dense"]["value"] == 1.5 and found["2:4 / dense"]["ok"]
    assert found["dense / cuBLAS"]["value"] == 0.5 and not found["dense / cuBLAS"]["ok"]


def test_without_a_driver(tmp_path: Path) -> None:
    import os

    environment = {**os.environ, "SPA_LIBCUDA": str(tmp_path / "none.so")}
    done = subprocess.run([sys.executable, FOLDER / "cuda.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 4 and "no CUDA driver" in done.stderr
