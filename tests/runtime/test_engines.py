"""Loading and running bundles: every engine, feeds that do not fit, damaged bundles, missing tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from spa.errors import MissingTool, ModelError, Unsupported, UsageError
from spa.runtime import run as running
from spa.runtime.load import target_of
from spa.runtime.run import ENGINES, open_engine, run
from spa.runtime.toolchain import find

pytestmark = pytest.mark.codegen

TEXT = """<ir_version: 8, opset_import: ["" : 18]>
g (float[2,3] x, int64[3] n) => (float[2,3] y, int64[3] m) { f = Cast<to=1>(n) y = Add(x, f) m = Neg(n) }"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from spa.codegen.bundle import compile

    return compile(parser.parse_model(TEXT), ["host", "arm", "wasm"], tmp_path_factory.mktemp("b") / "net").path


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([1, -2, 2**40])}


@pytest.mark.parametrize(("target", "engine"), [(t, e) for t, engines in ENGINES.items() for e in engines])
def test_engines(bundle: Path, target: str, engine: str) -> None:
    if (target, engine) == ("arm", "native"):
        pytest.skip("needs an aarch64 machine")
    tool = {"qemu": "qemu-aarch64", "native": "zig"}.get(engine, engine)
    if find(tool) is None:
        pytest.skip(f"{tool} is not installed")
    outputs = run(bundle, feeds(), target, engine)
    assert list(outputs) == ["y", "m"]
    assert (outputs["y"] == feeds()["x"] + feeds()["n"].astype(np.float32)).all()
    assert (outputs["m"] == -feeds()["n"]).all()


@pytest.mark.parametrize("engine", ["native", "wasmtime", "node"])
def test_two_instances_do_not_share_state(bundle: Path, engine: str) -> None:
    if engine != "native" and find(engine) is None:
        pytest.skip(f"{engine} is not installed")
    target = target_of(bundle, "host" if engine == "native" else "wasm")
    first, second = open_engine(target, engine), open_engine(target, engine)
    try:
        one = first.run(feeds())
        other = {name: value * 3 for name, value in feeds().items()}
        second.run(other)
        assert first.step() >= 0
        again = first.run(feeds())
        assert all((one[name] == again[name]).all() for name in one)
        assert (second.run(other)["m"] == -other["n"]).all()
    finally:
        first.close()
        second.close()


def test_feeds_that_do_not_fit(bundle: Path) -> None:
    good = feeds()
    cases = {
        "no such input: z": {**good, "z": good["x"]},
        "missing": {"x": good["x"]},
        "is float32": {**good, "x": good["x"].astype(np.float64)},
        r"\[2, 3\]": {**good, "x": good["x"].T},
    }
    for said, given in cases.items():
        with pytest.raises(UsageError, match=said):
            run(bundle, given, "host")


def test_inputs_need_not_be_contiguous(bundle: Path) -> None:
    x = np.asfortranarray(feeds()["x"])
    assert (run(bundle, {**feeds(), "x": x}, "host")["y"] == run(bundle, feeds(), "host")["y"]).all()


def test_which_target(bundle: Path) -> None:
    assert target_of(bundle).name == "host"
    with pytest.raises(UsageError, match="host, arm, wasm"):
        target_of(bundle, "cuda")
    with pytest.raises(UsageError, match="does not run"):
        open_engine(target_of(bundle, "wasm"), "qemu")


def test_damaged_bundles(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    library = copy / "host" / target_of(copy, "host").library
    library.write_bytes(library.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match="damaged"):
        run(copy, feeds(), "host")
    library.unlink()
    with pytest.raises(ModelError, match="incomplete"):
        run(copy, feeds(), "host")
    (copy / "manifest.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(ModelError, match="schema"):
        target_of(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match="not readable"):
        target_of(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UsageError, match="not a bundle"):
        target_of(copy)


def test_code_for_a_better_machine_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "runs_here", lambda triple, cpu: False)
    with pytest.raises(Unsupported, match="cannot run code"):
        run(bundle, feeds(), "host")


@pytest.mark.parametrize(("target", "engine", "tool"), [("arm", "qemu", "qemu-aarch64"), ("wasm", "node", "node")])
def test_missing_tools(bundle: Path, monkeypatch: pytest.MonkeyPatch, target: str, engine: str, tool: str) -> None:
    monkeypatch.setattr("spa.runtime.toolchain.find", lambda name: None)
    with pytest.raises(MissingTool, match=tool) as caught:
        run(bundle, feeds(), target, engine)
    assert "install" in caught.value.hint


def test_emulation_gives_no_time(bundle: Path) -> None:
    if find("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    engine = open_engine(target_of(bundle, "arm"), "qemu")
    with pytest.raises(Unsupported, match="time"):
        engine.step()
