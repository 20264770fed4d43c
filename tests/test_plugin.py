"""examples/plugin installed as a user would, into a folder of its own, and used through the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import spa

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "digits.onnx"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "plugin"  # a build leaves files beside what it builds
    shutil.copytree(
        ROOT / "examples" / "plugin", source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    )
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "--target", str(target), str(source)], capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("pip is not installed")
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, cwd: Path, *words: object, code: int = 0) -> str:
    """Standard output of a command line in a process of its own, with the plugin on the path."""
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", "from spa.cli import main; main()", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def outputs(path: Path, x: Any) -> Any:
    return ort.InferenceSession(str(path)).run(None, {"x": x})[0]


def test_its_passes_are_listed_and_run(installed: Path, tmp_path: Path) -> None:
    listed = {p["name"]: p for p in json.loads(run(installed, tmp_path, "passes", "--json"))["passes"]}
    assert listed["squash"]["options"] == [
        {"name": "below", "type": "<class 'float'>", "default": "0.001", "required": False}
    ] and listed["squash"]["summary"].startswith("Set weights that are next to nothing")
    text = "slice{ratio=0.3},squash{below=0.01}"
    document = json.loads(run(installed, tmp_path, "prune", MODEL, "-o", "small.onnx", "--pipeline", text, "--json"))
    sliced, squashed = document["passes"]
    assert sliced["exact"] and not squashed["exact"] and 0 < squashed["error"] < 0.05
    weights = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "small.onnx").graph.initializer]
    floats = [np.abs(w[w != 0]) for w in weights if w.dtype == np.float32 and w.any()]
    assert floats and all(w.min() >= 0.0099 * w.max() for w in floats)
    assert "is no share" in run(installed, tmp_path, "prune", MODEL, "-n", "--pipeline", "squash{below=2}", code=2)


def test_its_graphsurgeon_pass_runs(installed: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("onnx_graphsurgeon") is None:
        pytest.skip("onnx-graphsurgeon is not installed: pip install onnx-graphsurgeon")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    nodes = [helper.make_node("Dropout", ["x"], ["d"]), helper.make_node("Relu", ["d"], ["y"])]
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    onnx.save(proto, tmp_path / "m.onnx")
    document = json.loads(run(installed, tmp_path, "prune", "m.onnx", "-o", "o.onnx", "--pipeline", "bypass", "--json"))
    assert document["passes"] == [{"pass": "bypass", "exact": True, "error": 0.0}]
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node] == ["Relu"]


def test_its_criterion_chooses(installed: Path, tmp_path: Path) -> None:
    plans = {}
    for name in ("spread", "l2"):
        run(
            installed,
            tmp_path,
            "prune",
            MODEL,
            "-o",
            f"{name}.onnx",
            "--ratio",
            0.5,
            "--criterion",
            name,
            "--plan",
            f"{name}.json",
        )
        plans[name] = json.loads((tmp_path / f"{name}.json").read_text())
    removed = {n: {g["id"]: g["removed"] for g in p["groups"]} for n, p in plans.items()}
    assert removed["spread"] != removed["l2"]
    group = next(g for g in plans["spread"]["groups"] if g["removed"])
    scores = np.array(group["score"])
    kept = np.setdiff1d(np.arange(group["size"]), group["removed"])
    assert scores[group["removed"]].max() <= scores[kept].min()
    assert "did you mean 'spread'?" in run(
        installed, tmp_path, "prune", MODEL, "-n", "--ratio", 0.5, "--criterion", "spred", code=2
    )


def leaky(path: Path) -> None:
    """A convolution, our own operator, a convolution."""
    draw = np.random.default_rng(0)
    weights = {"w": (8, 3, 3, 3), "a": (8,), "v": (4, 8, 1, 1)}
    tensors = [numpy_helper.from_array(draw.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="first"),
        helper.make_node("Leaky", ["h", "a"], ["z"], name="own", domain="acme"),
        helper.make_node("Conv", ["z", "v"], ["y"], name="last"),
    ]
    shapes = {"x": [1, 3, 6, 6], "y": [1, 4, 4, 4], "z": [1, 8, 4, 4]}
    x, y, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors, value_info=[z]), opset_imports=opsets)
    proto.ir_version = 8
    onnx.save(proto, path)


def test_its_rule_lets_channels_go(installed: Path, tmp_path: Path) -> None:
    leaky(tmp_path / "leaky.onnx")
    without = spa.analyze(spa.load(tmp_path / "leaky.onnx"))  # here it is not installed
    assert not without.groups and any("acme::Leaky" in b.reason.text for b in without.blocked)
    told = json.loads(run(installed, tmp_path, "inspect", "leaky.onnx", "--json"))
    assert [g["size"] for g in told["groups"] if g["prunable"]] == [8]
    run(
        installed, tmp_path, "prune", "leaky.onnx", "-o", "cut.onnx", "--ratio", 0.5, "--no-verify"
    )  # onnxruntime has no Leaky
    shapes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "cut.onnx").graph.initializer}
    assert shapes == {"w": [4, 3, 3, 3], "a": [4], "v": [4, 4, 1, 1]}


def test_its_target_is_listed_and_completed(installed: Path, tmp_path: Path) -> None:
    rows = {r["name"]: r for r in json.loads(run(installed, tmp_path, "targets", "--json"))["targets"]}
    assert rows["cortex_a53"]["cpu"] == "cortex-a53" and rows["cortex_a53"]["engines"] == ["native", "qemu"]
    assert "cortex_a53" in run(installed, tmp_path, "compile", MODEL, "--target", "cortex", code=2)
    plan = tmp_path / "plan.json"
    run(installed, tmp_path, "prune", MODEL, "-o", "x.onnx", "--ratio", "0.5", "--plan", plan)


@pytest.mark.codegen
def test_its_target_compiles_and_runs(installed: Path, tmp_path: Path) -> None:
    from spa.runtime.toolchain import find

    run(installed, tmp_path, "compile", MODEL, "--target", "cortex_a53", "-o", "a53", "--shape", "x:1,1,8,8")
    facts = json.loads((tmp_path / "a53" / "manifest.json").read_text())["targets"]["cortex_a53"]
    assert (
        facts["cpu"] == "cortex-a53"
        and (tmp_path / "a53" / "cortex_a53" / "libdigits.so").read_bytes()[:4] == b"\x7fELF"
    )
    if find("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed: apt-get install qemu-user-static")
    x = np.load(ROOT / "models" / "digits.npz")["test_x"][:1]
    np.savez(tmp_path / "x.npz", x=x)
    run(installed, tmp_path, "run", "a53", "--input", "x.npz", "-o", "y.npz")
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["logits"], outputs(MODEL, x), atol=1e-4)


def test_a_broken_one_hides_nothing(installed: Path, tmp_path: Path) -> None:
    """A target that does not import is named when it is used; the rest goes on."""
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[spa.targets]\nbroken = nowhere:T\n[spa.passes]\nlost = nowhere:P\n")
    text = run(tmp_path, tmp_path, "compile", MODEL, "--target", "broken", "-o", tmp_path / "o", code=2)
    assert "the target 'broken' cannot be imported" in text and "nowhere:T" in text
    listed = {p["name"]: p for p in json.loads(run(tmp_path, tmp_path, "passes", "--json"))["passes"]}
    assert "cannot be imported" in listed["lost"]["error"] and "fold" in listed
    assert "host" in run(tmp_path, tmp_path, "targets")
