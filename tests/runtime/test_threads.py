"""Threads: every number of them gives the bits of one, whatever a network is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from spa.errors import Unsupported, UsageError
from spa.runtime.load import target_of
from spa.runtime.run import open_engine, run
from spa.runtime.toolchain import find

pytestmark = pytest.mark.codegen

# (name, shape of the weights, attributes): 1x1 dense and sparse, 3x3 wide, small and strided, depthwise
LAYERS = (
    ("pointwise", (40, 24, 1, 1), {}, 1.0),
    ("thin", (40, 40, 1, 1), {}, 0.1),
    ("wide", (24, 40, 3, 3), {"pads": [1, 1, 1, 1]}, 1.0),
    ("depthwise", (24, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 24}, 1.0),
    ("strided", (32, 24, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 1.0),
    ("down", (32, 1, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 32}, 1.0),
    ("small", (48, 32, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 0.2),
    ("grouped", (48, 12, 3, 3), {"pads": [1, 1, 1, 1], "group": 4}, 0.15),
)


def network(size: int = 40, batch: int = 2) -> ModelProto:
    """A chain of convolutions of every kind, pooled, and a product; the weights of sparse layers pile up in few rows."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for name, shape, attributes, density in LAYERS:
        weight = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        if density < 1:
            rows = np.linspace(0, 2 * density, shape[0])[:, None, None, None]
            weight *= rng.random(shape) < rows**2
        weights.append(numpy_helper.from_array(weight, f"w_{name}"))
        nodes.append(helper.make_node("Conv", [value, f"w_{name}"], [name], name=name, **attributes))
        nodes.append(helper.make_node("Relu", [name], [f"{name}_relu"]))
        value = f"{name}_relu"
    weights.append(numpy_helper.from_array(rng.standard_normal((48, 10)).astype(np.float32), "w_last"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w_last"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 24, size, size])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", value)]
    graph = helper.make_graph(nodes, "chain", [x], outputs, weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from spa.codegen.bundle import compile

    return compile(network(), ["host", "arm", "wasm"], tmp_path_factory.mktemp("b") / "net").path


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 24, 40, 40)).astype(np.float32)}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all((a[k].view(np.int32) == b[k].view(np.int32)).all() for k in a)


def test_one_thread_is_right(bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = ort.InferenceSession(network().SerializeToString(), options).run(None, feeds)
    for got, expected in zip(run(bundle, feeds, "host").values(), want, strict=True):
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(bundle: Path, feeds: dict[str, np.ndarray], threads: int) -> None:
    one = run(bundle, feeds, "host")
    engine = open_engine(target_of(bundle, "host"), threads=threads)
    try:
        for _ in range(20):
            assert same(engine.run(feeds), one)
    finally:
        engine.close()


def test_step_by_step_is_a_run(bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    one = run(bundle, feeds, "host")
    for target, engine, threads in (("host", None, 2), ("wasm", "wasmtime", 1), ("wasm", "node", 1)):
        if engine is not None and find(engine) is None:
            continue
        loaded = open_engine(target_of(bundle, target), engine, threads)
        try:
            once = loaded.run(feeds)
            assert loaded.parts() >= len(LAYERS)
            assert all(loaded.part(i) >= 0 for i in range(loaded.parts()))
            assert target == "wasm" or same(once, one)
        finally:
            loaded.close()


def test_two_teams_at_once(bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    target = target_of(bundle, "host")
    first, second = open_engine(target, threads=2), open_engine(target, threads=3)
    try:
        other = {"x": feeds["x"] * 2}
        one, two = run(bundle, feeds, "host"), run(bundle, other, "host")
        for _ in range(5):
            assert same(first.run(feeds), one)
            assert same(second.run(other), two)
    finally:
        first.close()
        second.close()


def test_threads_under_emulation(bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    if find("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    one, two = (run(bundle, feeds, "arm", "qemu", threads) for threads in (1, 2))
    assert same(one, two)


def test_kernels_are_shared(bundle: Path) -> None:
    """Without a parallel loop the numbers above would agree too."""
    header = (bundle / "host").glob("*.h")
    assert "set_threads" in next(header).read_text()
    from spa.codegen import dispatch, kernels
    from spa.codegen.prepare import prepare
    from spa.codegen.target import resolve
    from spa.codegen.tvm_api import imported_ops
    from spa.codegen.tvm_api.teams import has_parallel

    chosen = dispatch.dispatch(prepare(network(), {}, imported_ops()), resolve("host"), kernels.FAMILIES)
    shared = {layer.name for rows in chosen.kernels.values() for layer, k in rows if has_parallel(k.build().body)}
    assert shared >= {name for name, *_ in LAYERS}


ATTENTION = """<ir_version: 8, opset_import: ["" : 17]>
g (float[HEADS,70,24] q, float[HEADS,24,70] k, float[64,96] x) => (float[HEADS,70,70] p, float[64,128] y) {
  s = MatMul(q, k)
  p = Softmax<axis=-1>(s)
  n = LayerNormalization<axis=-1>(x, scale, shift)
  m = MatMul(n, w)
  r = Relu(m)
  y = Add(r, bias)
}"""


@pytest.mark.parametrize("heads", [2, 12])
def test_products_rows_and_chains_are_shared_too(heads: int) -> None:
    from spa.codegen.bundle import compile

    rng = np.random.default_rng(0)
    model = parser.parse_model(ATTENTION.replace("HEADS", str(heads)))
    for name, shape in (("scale", (96,)), ("shift", (96,)), ("w", (96, 128)), ("bias", (64, 128))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    built = compile(model, "host", name="attention")
    sizes = {t["name"]: t["shape"] for t in built.manifest["inputs"]}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    one = run(built.path, given, "host")
    assert all(same(run(built.path, given, "host", threads=n), one) for n in (2, 5))
    scores = given["q"] @ given["k"]
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    assert np.abs(one["p"] - exponentials / exponentials.sum(-1, keepdims=True)).max() < 1e-5


def test_numbers_that_cannot_be_had(bundle: Path) -> None:
    target = target_of(bundle, "host")
    with pytest.raises(UsageError, match="no such number"):
        open_engine(target, threads=0)
    with pytest.raises(UsageError, match="cannot be had"):
        open_engine(target, threads=100_000)
    with pytest.raises(Unsupported, match="one thread"):
        open_engine(target_of(bundle, "wasm"), threads=2)


def test_a_network_without_steps_has_threads_too() -> None:
    from spa.codegen.bundle import compile

    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }'
    built = compile(parser.parse_model(text), "host")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (run(built.path, {"x": x}, "host", threads=2)["y"] == x).all()
