"""spa compile, run, bench, targets and doctor, from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zoo

from spa.errors import UsageError

pytestmark = pytest.mark.codegen


def spa(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from spa.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    zoo.onnx.save(zoo.network("g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }"), folder / "net.onnx")
    done = spa("compile", folder / "net.onnx", "--target", "host", "--target", "wasm", "--shape", "x:2,3,8,8", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema"] == 1 and set(result["targets"]) == {"host", "wasm"}
    assert {"path", "bytes", "code_bytes"} <= set(result["targets"]["host"])
    return folder / "net.spa"


@pytest.mark.parametrize("target", ["host", "wasm"])
def test_run(compiled: Path, tmp_path: Path, target: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    done = spa("run", compiled, "--target", target, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["shape"] == [2, 3, 8, 8]
    with np.load(tmp_path / "y.npz") as outputs:
        assert (outputs["y"] == x.clip(0)).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npz", "y.npz"]


def test_bench(compiled: Path, tmp_path: Path) -> None:
    done = spa("bench", compiled, "--against", compiled, "--runs", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {
        "schema",
        "target",
        "threads",
        "machine",
        "runs",
        "median_ms",
        "p10_ms",
        "p90_ms",
        "against",
        "ratio",
    } <= set(result)
    assert result["runs"] == 5 and result["median_ms"] > 0 and result["ratio"] > 0
    assert set(result["against"]) == {"name", "median_ms"}


def test_exit_codes(compiled: Path, tmp_path: Path) -> None:
    model = compiled.with_name("net.onnx")
    assert spa("compile", model, "-o", tmp_path / "one").returncode == 0  # an open leading axis is a batch of one
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["inputs"][0]["shape"] == [1, 3, 8, 8]
    open_model = tmp_path / "open.onnx"
    zoo.onnx.save(zoo.network("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }"), open_model)
    dynamic = spa("compile", open_model, "-o", tmp_path / "b")
    assert dynamic.returncode == 3 and "--shape x:" in dynamic.stderr and not dynamic.stdout
    assert len(dynamic.stderr.splitlines()) == 3
    again = spa("compile", model, "--shape", "x:2,3,8,8")
    assert again.returncode == 2 and "--force" in again.stderr
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    assert spa("run", compiled, "--target", "host", "--input", tmp_path / "x.npz").returncode == 2
    assert spa("run", compiled, "--target", "cuda", "--input", tmp_path / "x.npz").returncode == 2
    assert spa("run", tmp_path, "--target", "host", "--input", tmp_path / "x.npz").returncode == 2
    assert spa("compile", tmp_path / "none.onnx").returncode == 2


def test_targets_and_doctor() -> None:
    targets = json.loads(spa("targets", "--json").stdout)
    assert [row["name"] for row in targets["targets"]] == ["host", "arm", "wasm", "cuda"]
    doctor = json.loads(spa("doctor", "--json").stdout)
    assert {row["tool"] for row in doctor["tools"]} == {
        "zig",
        "tvm",
        "wasmtime",
        "qemu-aarch64",
        "node",
        "npm",
        "chromium",
    }
    assert spa("doctor").returncode == spa("targets").returncode == 0


def test_shapes() -> None:
    from spa.cli.compile import parse_shapes

    assert parse_shapes(("x:1,3", "a:0:2")) == {"x": (1, 3), "a:0": (2,)}
    for text in ("x", "x:", "x:0", "x:a", ":1"):
        with pytest.raises(UsageError):
            parse_shapes((text,))
