"""Kernels of our own against onnxruntime without optimisations: odd shapes, formats, epilogues, every target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from spa.codegen.bundle import Bundle, compile
from spa.codegen.kernels import isa
from spa.codegen.kernels.tile import columns_of, dense_tile, tiles
from spa.codegen.kernels.window import Window, planes_of, tap_offset, taps_of

pytestmark = pytest.mark.codegen

FAMILIES = {"Conv": ("conv", "depthwise", "gemm"), "Gemm": ("gemm",), "MatMul": ("gemm",)}


def weights(random: np.random.Generator, shape: Sequence[int], block: int, density: float) -> Any:
    """Random, with blocks of so many rows zero; density 0 leaves nothing."""
    value = random.standard_normal(shape).astype(np.float32)
    flat = value.reshape(shape[0], -1)
    keep = random.random((-(-shape[0] // block), flat.shape[1])) < density
    return (flat * np.repeat(keep, block, 0)[: shape[0]]).reshape(shape)


def network(cases: Sequence[dict[str, Any]]) -> Any:
    """One network of independent layers, each with an input and an output of its own."""
    nodes, inputs, outputs, constants = [], [], [], []
    for i, case in enumerate(cases):
        random = np.random.default_rng(i)
        names = [f"x{i}"]
        for j, value in enumerate(case["weights"](random)):
            constants.append(numpy_helper.from_array(value, f"w{i}_{j}"))
            names.append(f"w{i}_{j}")
        nodes.append(helper.make_node(case["op"], names, [f"y{i}"], name=f"n{i}", **case.get("attributes", {})))
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, case["shape"]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return zoo.onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    )


def conv(
    cin: int, cout: int, size: Any, k: Any = 1, block: int = 1, density: float = 1.0, **more: Any
) -> dict[str, Any]:
    size, k = (size, size) if isinstance(size, int) else size, (k, k) if isinstance(k, int) else k
    batch, bias = more.pop("batch", 1), more.pop("bias", True)
    group = more.get("group", 1)

    def draw(random: np.random.Generator) -> list[Any]:
        weight = weights(random, (cout, cin // group, *k), block, density)
        return [weight, random.standard_normal(cout).astype(np.float32)][: 2 if bias else 1]

    return {"op": "Conv", "shape": (batch, cin, *size), "weights": draw, "attributes": more}


def product(op: str, t: tuple[int, ...], k: int, m: int, **attributes: Any) -> dict[str, Any]:
    shape = (m, k) if attributes.get("transB") else (k, m)
    bias = [m] if op == "Gemm" else []
    draw = lambda random: [random.standard_normal(s).astype(np.float32) for s in [shape, *[(n,) for n in bias]]]  # noqa: E731
    return {"op": op, "shape": (*t, k), "weights": draw, "attributes": attributes}


ODD = [
    conv(3, 5, 1),  # one pixel
    conv(4, 8, 7),  # 49 pixels
    conv(1, 1, 5),  # K = 1
    conv(13, 17, (11, 3)),  # primes
    conv(64, 64, 14, density=0.1),
    conv(64, 48, 7, block=4, density=0.15),
    conv(32, 64, 9, block=8, density=0.2),
    conv(32, 64, 8, density=0.0),  # nothing but the bias
    conv(32, 34, 10, block=2, density=0.1, bias=False),
    conv(40, 64, 6, density=1.0, batch=2),
    conv(3, 16, (17, 19), 3, strides=[2, 2], pads=[1, 1, 1, 1]),  # a first layer
    conv(3, 8, (30, 33), 7, strides=[2, 2], pads=[3, 3, 3, 3]),
    conv(8, 12, (9, 40), 3, pads=[1, 1, 1, 1]),
    conv(8, 12, 9, 3, pads=[0, 1, 2, 1], dilations=[2, 1]),
    conv(8, 16, 12, (1, 5), pads=[0, 2, 0, 2], strides=[1, 2]),
    conv(16, 16, 7, 3, pads=[1, 1, 1, 1], group=4),
    conv(16, 32, 8, 3, pads=[1, 1, 1, 1], density=0.1),
    conv(16, 32, 14, 3, pads=[1, 1, 1, 1], block=4, density=0.15, strides=[3, 3]),
    conv(16, 32, 15, 1, strides=[2, 2]),
    conv(6, 6, 13, 3, group=6, pads=[1, 1, 1, 1]),
    conv(6, 6, (14, 15), 3, group=6, pads=[1, 1, 1, 1], strides=[2, 2]),
    conv(5, 10, (20, 11), 5, group=5, pads=[2, 2, 2, 2], strides=[2, 2], batch=2),
    conv(4, 4, 18, 7, group=4, pads=[3, 3, 3, 3]),
    conv(4, 4, 17, 3, group=4, pads=[2, 2, 2, 2], dilations=[2, 2]),
    conv(4, 4, 21, 3, group=4, strides=[3, 3]),
    conv(7, 9, 1, 1, batch=3),
    product("Gemm", (1,), 33, 10, transB=1),
    product("Gemm", (3,), 1, 37, alpha=0.5, beta=2.0),
    product("MatMul", (2, 13), 24, 50),
    product("MatMul", (1, 5), 7, 3),
]


def families(bundle: Bundle, target: str) -> dict[str, str]:
    return {row["layer"]: row["family"] for row in bundle.manifest["targets"][target]["kernels"]}


@pytest.fixture(scope="module")
def odd() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = network(ODD)
    values = zoo.feeds(model)
    return model, values, zoo.reference(model, values)


@zoo.everywhere
def test_odd_shapes(odd: Any, place: zoo.Place) -> None:
    model, values, expected = odd
    bundle = place.compile(model)
    zoo.assert_same(place.run(bundle, values), expected)
    found = families(bundle, place.target)
    for i, case in enumerate(ODD):
        assert found[f"n{i}"] in FAMILIES[case["op"]], case


def test_formats_are_chosen_by_density() -> None:
    cases = [
        conv(128, 128, 28),
        conv(128, 128, 28, density=0.1),
        conv(128, 128, 28, block=4, density=0.15),
        conv(128, 128, 28, density=0.6),
    ]
    for target in ("host", "arm", "wasm"):
        rows = compile(network(cases), target).manifest["targets"][target]["kernels"]
        formats = [row["format"] for row in rows if row["family"] == "conv"]
        assert formats[0] == formats[3] == "dense", target
        assert formats[1] in ("csr", "block2x1") and formats[2] in ("block2x1", "block4x1"), target
        assert all("density" in row["why"] for row in rows if row["family"] == "conv")


CHAINS = {
    "relu": "y = Relu(c)",
    "relu6": "lo = Constant<value_float=0.0>() hi = Constant<value_float=6.0>() y = Clip(c, lo, hi)",
    "residual": "s = Add(c, x) y = Relu(s)",
    "hardswish": "y = HardSwish(c)",
    "hardswish written out": "h = HardSigmoid<alpha=0.16666667, beta=0.5>(c) y = Mul(c, h)",
    "silu": "s = Sigmoid(c) y = Mul(c, s)",
    "tanh": "y = Tanh(c)",
    "leaky": "y = LeakyRelu<alpha=0.1>(c)",
    "prelu": "y = PRelu(c, slope)",
    "scaled": "m = Mul(c, scale) y = Add(m, shift)",
    "erf": "e = Erf(c) y = Mul(c, e)",
    "divided": "a = Abs(c) two = Constant<value_float=2.0>() d = Add(a, two) y = Div(x, d)",
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_join_their_layer(name: str) -> None:
    text = f"""g (float[1,6,5,7] x) => (float[1,6,5,7] y)
    <float[6,6,1,1] w, float[6] b, float[6,1,1] slope, float[1,6,1,1] scale, float[6,1,1] shift>
    {{ c = Conv(x, w, b) {CHAINS[name]} }}"""
    model = zoo.network(text)
    values = zoo.feeds(model)
    bundle = compile(model, "host")
    assert set(families(bundle, "host").values()) == {"conv"}
    assert len(bundle.manifest["targets"]["host"]["kernels"]) == 1
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


@zoo.everywhere
def test_long_activations_behind_depthwise_layers(place: zoo.Place) -> None:
    """They come after a channel is done, over its pixels as one row: pictures that fill vectors or do not, two outputs per
    channel, stride 2, a residual."""
    model = zoo.network(
        """g (float[2,6,7,7] x, float[1,5,9,37] u, float[1,3,2,1] v)
           => (float[2,6,7,7] y, float[1,10,5,19] z, float[1,3,2,1] t)
        <float[6,1,5,5] a, float[6] b, float[6,1,1] scale, float[10,1,3,3] w, float[3,1,3,3] k>
        { c = Conv<group=6, pads=[2,2,2,2]>(x, a, b) s = Sigmoid(c) m = Mul(c, s) n = Mul(m, scale) y = Add(n, x)
          d = Conv<group=5, pads=[1,1,1,1], strides=[2,2]>(u, w) z = Tanh(d)
          e = Conv<group=3, pads=[1,1,1,1]>(v, k) t = Gelu(e) }""",
        opset=20,
    )
    values = zoo.feeds(model)
    bundle = place.compile(model)
    assert list(families(bundle, place.target).values()) == ["depthwise"] * 3
    zoo.assert_same(place.run(bundle, values), zoo.reference(model, values))


def test_a_value_that_others_read_stays() -> None:
    """The convolution's own result is an output too, so nothing may be fused into it but what leaves it there."""
    model = zoo.network(
        """g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] c) <float[4,4,3,3] w>
        { c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) y = Add(r, x) }"""
    )
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "host").run(values), zoo.reference(model, values))


def test_two_layers_of_one_shape_share_a_kernel() -> None:
    model = zoo.network(
        """g (float[1,8,9,9] x) => (float[1,8,9,9] y) <float[8,8,1,1] w, float[8,8,1,1] v>
        { a = Conv(x, w) b = Relu(a) c = Conv(b, v) y = Relu(c) }"""
    )
    rows = compile(model, "host").manifest["targets"]["host"]["kernels"]
    assert len(rows) == 2 and len({row["kernel"] for row in rows}) == 1
    assert len({row["layer"] for row in rows}) == 2
    values = zoo.feeds(model)
    zoo.assert_same(compile(model, "host").run(values), zoo.reference(model, values))


@given(st.integers(1, 3000), st.sampled_from([1, 4, 8, 16]), st.integers(1, 12))
def test_vectors_cover_a_row_and_never_leave_it(length: int, lanes: int, widest: int) -> None:
    row = isa.Isa("any", lanes, 32, 1, 1, 1, 1, 1, 1, 1)
    columns = columns_of(row, length, widest)
    starts = [s for tile in columns.tiles() for s in tile]
    covered = {s + lane for s in starts for lane in range(columns.lanes)}
    assert covered == set(range(length))
    assert len(starts) == columns.vectors
    assert all(len(tile) <= widest for tile in columns.tiles())


@given(st.sampled_from([isa.AVX512, isa.AVX2, isa.SSE, isa.NEON, isa.SIMD128]), st.integers(1, 70), st.integers(1, 400))
@settings(max_examples=30)
def test_a_tile_fits_the_registers(row: isa.Isa, m: int, length: int) -> None:
    rows, columns = dense_tile(row, m, length, 64, 64)
    assert (rows, columns) in tiles(row) and rows <= m
    assert rows * columns + columns + 1 <= row.registers


@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_every_tap_is_met_once_where_it_lies(kernel: Any, strides: Any, dilations: Any) -> None:
    """Phases: element (phase, row, column) of the planes is the padded picture's (p + row * s, q + column * s)."""
    w = Window(1, 1, (9, 9), (3, 4), kernel, strides, dilations, (0, 0))
    planes = planes_of(w)
    order = [tap for group in taps_of(w, planes) for tap in group.order]
    assert sorted(order) == [(r, s) for r in range(kernel[0]) for s in range(kernel[1])]
    offsets = [
        g.offsets[t] + i * g.step for g in taps_of(w, planes) for i in range(g.count) for t in range(len(g.offsets))
    ]
    if w.dense:
        return
    picture = np.arange(100 * 100).reshape(100, 100)
    laid = [picture[p :: strides[0], q :: strides[1]][: planes.rows, : planes.pitch] for p, q in planes.phases]
    flat = np.concatenate([part.reshape(-1) for part in laid])
    for (r, s), offset in zip(order, offsets, strict=True):
        assert offset == tap_offset(w, planes, r, s)
        for y in range(w.out[0]):
            for x in range(w.out[1]):
                at = (y * strides[0] + r * dilations[0], x * strides[1] + s * dilations[1])
                assert flat[offset + y * planes.pitch + x] == picture[at]
