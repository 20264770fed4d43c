"""`spa bench` and `spa run --threads` as a user types them."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from spa.cli import main
from spa.errors import MissingTool
from spa.runtime import opponents
from spa.runtime.toolchain import find

pytestmark = pytest.mark.codegen

TEXT = """<ir_version: 8, opset_import: ["" : 18]>
g (float[1,8,12,12] x) => (float[1,16,12,12] y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }"""
SCHEMA = Path(__file__).parent.parent.parent / "docs" / "schemas" / "bench.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = parser.parse_model(TEXT)
    weight = np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32)
    weight[:, :4] = 0
    network.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path_factory.mktemp("m") / "net.onnx"
    onnx.save(network, path)
    return path


def spa(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def document(*arguments: object) -> Any:
    code, out, err = spa(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_against_onnxruntime_with_a_profile(model: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    row = document("bench", model, "--against", "onnxruntime", "--runs", 5, "--profile", "--threads", 2)
    jsonschema.validate(row, json.loads(SCHEMA.read_text()))
    assert row["runs"] == 5 and row["threads"] == 2 and row["against"]["name"] == "onnxruntime"
    assert row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]
    (layer,) = (entry for entry in row["layers"] if entry["gmacs"])
    macs = 144 * 16 * 4 * 9  # of weights that are not zero
    assert layer["gmacs"] == pytest.approx(macs / layer["ms"] / 1e6)
    assert layer["share_of_peak"] == pytest.approx(layer["gmacs"] / row["peak_gmacs"])


def test_wasm_profile_and_another_model(model: Path) -> None:
    for engine in ("wasmtime", "node", "chromium"):
        if find(engine) is None:
            continue
        row = document(
            "bench", model, "--target", "wasm", "--engine", engine, "--against", model, "--runs", 3, "--profile"
        )
        assert row["ratio"] > 0 and row["peak_gmacs"] > 0 and len(row["layers"]) == 1


@pytest.mark.parametrize("engine", ["node", "chromium"])
@pytest.mark.parametrize("threads", [1, 2])
def test_against_onnxruntime_web(model: Path, engine: str, threads: int) -> None:
    if os.environ.get("SPA_ORT_WEB") is None or find(engine) is None:
        pytest.skip(f"needs {engine}, and the folder of onnxruntime-web's dist in SPA_ORT_WEB")
    options = ["--target", "wasm", "--engine", engine, "--threads", threads, "--runs", 5]
    row = document("bench", model, *options, "--against", "onnxruntime-web")
    assert row["against"]["name"] == "onnxruntime-web" and row["ratio"] > 0 and row["threads"] == threads


def test_without_a_browser_it_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_CHROMIUM", "/nowhere/chromium")
    code, _, err = spa("bench", model, "--target", "wasm", "--engine", "chromium")
    assert code == 4 and "chromium is not installed" in err and "SPA_CHROMIUM" in err


def test_without_npm_it_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPA_ORT_WEB", raising=False)
    monkeypatch.setenv("SPA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("spa.runtime.toolchain.find", lambda name: None if name == "npm" else "/usr/bin/true")
    with pytest.raises(MissingTool, match="npm") as caught:
        opponents.web_dist()
    assert "install" in caught.value.hint
    assert not any(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--target", "host", "--against", "onnxruntime-web"], 2, "runs wasm"),
        (["--target", "wasm", "--engine", "wasmtime", "--against", "onnxruntime-web"], 2, "--engine node"),
        (["--against", "nobody"], 2, "no such opponent"),
    ],
)
def test_what_cannot_be_compared(model: Path, arguments: list[str], code: int, said: str) -> None:
    ended, _, err = spa("bench", model, *arguments)
    assert ended == code
    assert said in err


@pytest.mark.parametrize("target", ["host", "wasm"])
def test_run_with_threads(model: Path, tmp_path: Path, target: str) -> None:
    built = tmp_path / "net.spa"
    document("compile", model, "-o", built, "--target", target, "--wasm-threads")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((1, 8, 12, 12)).astype(np.float32))
    outputs = []
    for threads in (1, 3):
        sink = tmp_path / f"y{threads}.npz"
        document("run", built, "--input", tmp_path / "x.npz", "-o", sink, "--threads", threads)
        outputs.append(np.load(sink)["y"])
    assert (outputs[0] == outputs[1]).all()
