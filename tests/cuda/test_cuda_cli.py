"""spa compile, prune, run and bench for GPUs from the command line: files, exit codes, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zoo

from spa.codegen.cuda import toolchain

pytestmark = pytest.mark.codegen

SMALL = """g (float[256,16] x) => (float[256,16] y) <float[16,768] a, float[768,512] w, float[16,512] v>
{ f = MatMul(x, a) h = MatMul(f, w) r = Relu(h) y = Gemm<transB=1>(r, v) }"""


def spa(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from spa.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(zoo.network(SMALL), path)
    return path


def test_without_a_compiler_there_is_cuda_c_and_exit_4(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = spa("compile", model, "--target", "cuda", "-o", out, SPA_NVCC="none")
    assert done.returncode == 4
    assert "no CUDA compiler" in done.stderr and "pip install" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    files = {p.name for p in (out / "cuda").iterdir()}
    assert files == {
        *(
            "small.cu",
            "small.launch.json",
            "small.weights.bin",
            "small.h",
            "small_cuda.cpp",
            "CMakeLists.txt",
            "example.cpp",
        )
    }
    assert 'extern "C" __global__' in (out / "cuda" / "small.cu").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert "no CUDA compiler" in manifest["targets"]["cuda"]["missing"]
    np.savez(tmp_path / "x.npz", x=np.zeros((256, 16), np.float32))
    ran = spa("run", out, "--target", "cuda", "--input", tmp_path / "x.npz")
    assert ran.returncode == 4 and "CUDA C only" in ran.stderr


def test_usage(model: Path, tmp_path: Path) -> None:
    for wrong in (["--cuda-arch", "sm_70"], ["--cuda-arch", "90"], ["--precision", "int8"]):
        assert spa("compile", model, "--target", "cuda", "-o", tmp_path / "out", *wrong).returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc")
def test_prune_for_sparse_tensor_cores(model: Path, tmp_path: Path) -> None:
    """The whole job: thinned to 2:4, compiled; no driver here, which is said."""
    out = tmp_path / "out"
    asked = [
        "--sparsity",
        "2:4",
        "--ratio",
        "0",
        "--no-rearrange",
        "--target",
        "cuda",
        "--cuda-arch",
        "sm_90",
        "--precision",
        "fp16",
    ]
    done = spa("prune", model, *asked, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["targets"]["cuda"]["code_bytes"] > 0
    facts = json.loads((out / "manifest.json").read_text())["targets"]["cuda"]
    assert facts["cpu"] == "sm_90" and {row["format"] for row in facts["kernels"]} <= {
        "2:4",
        "dense",
        "csr",
        "block4x1",
    }
    assert {"small.sm_90.cubin", "small.sm_90.ptx", "libsmall_cuda.so"} <= {p.name for p in (out / "cuda").iterdir()}
    np.savez(tmp_path / "x.npz", x=np.zeros((256, 16), np.float32))
    environment = {"SPA_LIBCUDA": str(tmp_path / "none.so")}
    ran = spa("run", out, "--target", "cuda", "--input", tmp_path / "x.npz", **environment)
    assert ran.returncode == 4 and "no CUDA driver" in ran.stderr and "Traceback" not in ran.stderr
    timed = spa("bench", out, "--target", "cuda", **environment)
    assert timed.returncode == 4, timed.stderr
