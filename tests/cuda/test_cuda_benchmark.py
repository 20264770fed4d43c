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
import zoo
from stub import Stub, build
from test_cuda_attention import HEADS

from spa.codegen.cuda import artifact, toolchain

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


@pytest.fixture
def stub(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A card of compute capability 8.0 that emulates what the benchmark compiles; one kernel per family and format."""
    monkeypatch.setenv("SPA_LIBCUDA", str(build(tmp_path)))
    stub = Stub(tmp_path / "libstub.so")
    stub.library.stub_compute(8, 0)
    functions: dict[str, Any] = {}

    def keep(module: Any) -> None:
        original = module.emit_cuda

        def emit(*arguments: Any) -> Any:
            device = original(*arguments)
            functions.update(device.functions)
            return device

        monkeypatch.setattr(module, "emit_cuda", emit)

    keep(benchmark)
    keep(artifact)
    stub.computing(functions)
    every = benchmark.kernels_of

    def one_each(*arguments: Any) -> list[Any]:  # every kernel takes a run of nvcc
        return list({(c.family, c.format): c for c in every(*arguments) if c.format in ("dense", "2:4")}.values())

    monkeypatch.setattr(benchmark, "kernels_of", one_each)
    for name in ("RUNS", "REPEATS", "STEPS"):
        monkeypatch.setattr(benchmark, name, 1)
    return stub


def test_numerics(benchmark: ModuleType, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few() -> Iterator[Any]:
        yield benchmark.product(5, 20, 64, "float32", "2:4")
        yield benchmark.convolution((1, 5, 7, 7), (5, 1, 3, 3), 2, 1, 5, "dense")
        yield benchmark.pictures((1, 16, 5, 5), (24, 16, 3, 3), 2, 1, "2:4", "float16")
        yield benchmark.pictures((1, 16, 5, 5), (16, 1, 3, 3), 1, 1, "dense", "float16")

    monkeypatch.setattr(benchmark, "cases", few)
    out = tmp_path / "out.json"
    assert benchmark.main(["numerics", "--out", str(out)]) == 0
    stub.check_errors()
    found = json.loads(out.read_text())
    assert found["card"]["name"] == "stub" and found["card"]["arch"] == "sm_80"
    assert {row["format"] for row in found["numerics"]} >= {"dense", "2:4"}
    assert {row["family"] for row in found["numerics"]} == {"tensor", "few", "simt", "depthwise"}
    assert all(row["ok"] for row in found["numerics"])


def test_timings_and_networks(
    benchmark: ModuleType, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line that a card would see but its clock: graphs are captured and replayed, libraries that are absent left out."""
    monkeypatch.setattr(benchmark, "SIZES", (64,))
    monkeypatch.setattr(benchmark, "ERRORS", {"fp32": 1e-4})
    monkeypatch.setattr(benchmark, "models", lambda: {"attention": lambda: zoo.network(HEADS)})
    out = tmp_path / "out.json"
    assert benchmark.main(["timings", "networks", "--out", str(out)]) == 0
    stub.check_errors()
    found = json.loads(out.read_text())
    assert {row["what"] for row in found["timings"]} >= {"spa dense", "spa 2:4"}
    (row,) = found["networks"]
    assert row["ok"] and row["error"] < 1e-4 and row["tensorrt_ms"] is None
    assert "cuGraphLaunch" in " ".join(stub.log)


def test_every_case_has_kernels(benchmark: ModuleType) -> None:
    """Nothing that the numerics list is left out on the way."""
    seen = set()
    for layer in benchmark.cases():
        found = benchmark.kernels_of(layer, "sm_80", "fp16")
        assert found, layer.name
        seen |= {(c.family, c.format) for c in found}
    assert seen >= {("tensor", f) for f in ("dense", "2:4", "block16x16", "block32x32")}
    assert seen >= {("few", f) for f in ("dense", "csr", "block4x1", "2:4", "3:8")} | {("depthwise", "dense")}


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
