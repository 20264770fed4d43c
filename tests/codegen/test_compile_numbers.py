"""Compiled networks against onnxruntime with its optimisations off."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo

from spa.codegen.bundle import compile
from spa.codegen.target import X86_LEVELS
from spa.runtime.toolchain import find, is_aarch64, runs_here

pytestmark = pytest.mark.codegen


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_host(name: str) -> None:
    model = zoo.network(zoo.NETWORKS[name])
    bundle = compile(model, "host")
    for seed in (0, 1):  # a second run must not see the first
        values = zoo.feeds(model, seed)
        zoo.assert_same(bundle.run(values), zoo.reference(model, values))


@pytest.mark.parametrize("engine", ["wasmtime", "node"])
@pytest.mark.parametrize("name", ["cnn", "maths", "integers", "split"])
def test_wasm(name: str, engine: str) -> None:
    if find(engine) is None:
        pytest.skip(f"{engine} is not installed")
    model = zoo.network(zoo.NETWORKS[name])
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "wasm").run(values, engine=engine), zoo.reference(model, values))


@pytest.mark.parametrize("name", ["cnn", "maths", "integers"])
def test_arm(name: str) -> None:
    if not is_aarch64() and find("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    model = zoo.network(zoo.NETWORKS[name])
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "arm").run(values), zoo.reference(model, values))


@pytest.mark.parametrize("level", X86_LEVELS)
def test_host_levels(level: str) -> None:
    if not runs_here("x86_64-linux-gnu", level):
        pytest.skip(f"this machine is below {level}")
    model = zoo.network(zoo.CNN)
    values = zoo.feeds(model)
    bundle = compile(model, "host", host_level=level)
    assert bundle.manifest["targets"]["host"]["cpu"] == level
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


def test_dynamic_input_is_fixed_by_a_shape() -> None:
    model = zoo.network("g (float[N,3,H,8] x, float[N] s) => (float[N,3,H,8] y) { y = Relu(x) }")
    bundle = compile(model, "host", shapes={"x": (2, 3, 5, 8)})
    assert [row["shape"] for row in bundle.manifest["inputs"]] == [[2, 3, 5, 8], [2]]  # N is known from x
    values = zoo.feeds(model, shapes={"x": (2, 3, 5, 8), "s": (2,)})
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


def test_old_opset_with_attributes_and_weights_among_the_inputs() -> None:
    text = "g (float[1,4,6] x) => (float[1,2,6] y) <float[4,1] w> { c = Clip<min=-0.5, max=0.5>(x)  m = Mul(c, w) "
    text += "s = Slice<axes=[1], starts=[1], ends=[3]>(m)  y = Relu(s) }"
    model = zoo.network(text, opset=9, ir_version=3, check=False)
    model.graph.input.append(zoo.onnx.helper.make_tensor_value_info("w", 1, [4, 1]))
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "host").run(values), zoo.reference(model, values))


def test_external_data(tmp_path: Path) -> None:
    model = zoo.network(zoo.CNN)
    path = tmp_path / "cnn.onnx"
    zoo.onnx.save(model, path, save_as_external_data=True, location="cnn.data", size_threshold=0)
    values = zoo.feeds(zoo.network(zoo.CNN))
    bundle = compile(path, "host")
    zoo.assert_same(bundle.run(values), zoo.reference(zoo.network(zoo.CNN), values))
    assert not any(
        t.external_data for t in zoo.onnx.load(bundle.path / "model.onnx", load_external_data=False).graph.initializer
    )
