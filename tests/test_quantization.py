"""Quantised weights: the graph computes what the codes say, zeros stay, errors behave; halves, and what inspect tells."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import check_rewrite, feeds_for, ops, parse, run

import spa
from spa.calibration import load
from spa.cli import cli
from spa.coupling import analyze
from spa.errors import UsageError
from spa.model import Model
from spa.passes.fold import Fold
from spa.passes.halve import Halve
from spa.passes.quantize import Quantize, quantize
from spa.sparsity.quantization import Encoding, fit_grid, quantise, round_to, row_errors
from spa.sparsity.storage import matrices, storage

Array = npt.NDArray[Any]
ENCODINGS = st.builds(
    Encoding, st.sampled_from([4, 8]), st.sampled_from(["channel", "tensor", 32, 48, 7]), st.booleans()
)


def correlated(rng: np.random.Generator, rows: int, columns: int) -> tuple[Array, Array]:
    """A weight and the second moment of inputs that say much about each other."""
    mix = rng.standard_normal((columns, max(2, columns // 4)))
    x = rng.standard_normal((4 * columns, mix.shape[1])) @ mix.T + 0.1 * rng.standard_normal((4 * columns, columns))
    return rng.standard_normal((rows, columns)), x.T @ x / len(x)


# Codes -----------------------------------------------------------------------------------------------------------


@given(encoding=ENCODINGS, rows=st.integers(1, 9), columns=st.sampled_from([1, 5, 32, 97]), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_codes_are_in_range_and_zeros_stay(encoding: Encoding, rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, moment = correlated(rng, rows, columns)
    weight[rng.random(weight.shape) < 0.5] = 0
    for found in (quantise(weight, encoding), quantise(weight, encoding, moment)):
        low, high = encoding.range
        assert found.codes.min() >= low and found.codes.max() <= high
        assert found.grid is not None and (found.grid.scale > 0).all()
        assert not found.dense()[weight == 0].any()
        step = np.broadcast_to(found.grid.over(found.shape)[0], weight.shape)
        clipped = (found.codes == low) | (found.codes == high)
        near = quantise(weight, encoding)
        assert (np.abs(near.dense() - weight) <= step / 2 * 1.001)[~clipped & (near.codes == found.codes)].all()


def test_a_matrix_on_the_grid_comes_back() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (4, 96))
    codes[:, ::32] = 127
    weight = codes * np.repeat([[0.5, 0.25, 2.0]], 32, axis=1)
    found = quantise(weight, Encoding(8, 32))
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.dense(), weight)


@given(seed=st.integers(0, 50), symmetric=st.booleans())
@settings(max_examples=20)
def test_more_bits_and_smaller_groups_cost_less(seed: int, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((16, 128)) * np.exp(rng.standard_normal((16, 128)))

    def error(bits: int, group: int | str) -> float:
        return float(np.square(quantise(weight, Encoding(bits, group, symmetric)).dense() - weight).sum())

    assert error(8, "channel") < error(4, "channel") / 16
    assert error(4, 16) < error(4, 64) < error(4, "channel") < error(4, "tensor")


@given(seed=st.integers(0, 50), bits=st.sampled_from([4, 8]), group=st.sampled_from(["channel", 32]))
@settings(max_examples=20)
def test_the_sweep_beats_rounding(seed: int, bits: int, group: int | str) -> None:
    rng = np.random.default_rng(seed)
    weight, moment = correlated(rng, 8, 64)
    weight[rng.random(weight.shape) < 0.5] = 0
    encoding = Encoding(bits, group)
    rounded = round_to(weight, fit_grid(weight, encoding, np.diag(moment)[None]), encoding)
    swept, plain = (row_errors(weight, q, moment) for q in (quantise(weight, encoding, moment), rounded))
    assert (swept <= plain).all() and swept.sum() < 0.7 * plain.sum()


def test_clipping_pays_where_there_are_outliers() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 256))
    weight[0, 0] = 8
    encoding = Encoding(4)
    grid = fit_grid(weight, encoding)
    assert grid.scale[0, 0] < 0.8 * 8 / 7
    whole = type(grid)(4, 256, np.full((1, 1), 8 / 7, np.float32))
    error, plain = (np.square(round_to(weight, g, encoding).dense() - weight).sum() for g in (grid, whole))
    assert error < 0.8 * plain


def test_options_that_make_no_sense_are_refused() -> None:
    for options in ("bits=5", "group=-1", "group=rows"):
        with pytest.raises(UsageError):
            spa.Pipeline.parse(f"quantize{{{options}}}")
    with pytest.raises(UsageError, match="not finite"):
        quantise(np.array([[np.inf]]), Encoding())


# The graph -------------------------------------------------------------------------------------------------------

CONV = "agraph (float[N,6,9,9] x) => (float[N,8,M,K] y) { y = Conv<%s>(x, w) }"
MODELS = {
    "conv": (CONV % "pads=[1,1,1,1]", (8, 6, 3, 3)),
    "pointwise": (CONV % "strides=[2,2]", (8, 6, 1, 1)),
    "grouped": (CONV % "group=2", (8, 3, 3, 3)),
    "depthwise": ("agraph (float[N,6,9,9] x) => (float[N,6,M,K] y) { y = Conv<group=6>(x, w) }", (6, 1, 3, 3)),
    "transposed": ("agraph (float[N,6,9,9] x) => (float[N,M,K,L] y) { y = ConvTranspose(x, w) }", (6, 7, 3, 3)),
    "gemm": ("agraph (float[3,40] x) => (float[3,7] y) { y = Gemm(x, w) }", (40, 7)),
    "gemm_turned": ("agraph (float[3,40] x) => (float[3,7] y) { y = Gemm<transB=1>(x, w) }", (7, 40)),
    "matmul": ("agraph (float[N,3,40] x) => (float[N,3,7] y) { y = MatMul(x, w) }", (40, 7)),
    "left": ("agraph (float[N,40,3] x) => (float[N,7,3] y) { y = MatMul(w, x) }", (7, 40)),
    "stacked": ("agraph (float[2,3,40] x) => (float[2,3,7] y) { y = MatMul(x, w) }", (2, 40, 7)),
    "recurrent": ("agraph (float[5,2,40] x, float[2,16,4] r) => (float[5,D,2,4] y) { y = LSTM<hidden_size=4, direction=\"bidirectional\">(x, w, r) }",
        (2, 16, 40)),
}  # fmt: skip


def model_of(kind: str, opset: int = 18, seed: int = 0) -> Model:
    text, shape = MODELS[kind]
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    weight[np.random.default_rng(seed + 1).random(shape) < 0.4] = 0
    return parse(text, {"w": weight}, opset, ir_version=10 if opset > 20 else 8)


def with_weight(model: Model, weight: Array) -> Model:
    """The network with the float weight that a quantised one stands for."""
    copy = model.clone()
    copy.ir.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    return copy


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("encoding", [Encoding(8), Encoding(8, "tensor", False), Encoding(4, 16), Encoding(4, 3, False), Encoding(8, 17)])  # fmt: skip
def test_the_graph_computes_what_the_codes_say(kind: str, encoding: Encoding, opset: int) -> None:
    model = model_of(kind, opset)
    before = model.to_proto().SerializeToString(deterministic=True)
    result = quantize(model, encoding)
    assert model.to_proto().SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert "DequantizeLinear" in ops(result.model)
    ((_, coded, _),) = [m for n in result.model.ir.graph for m in matrices(n)]
    old = model.ir.graph.initializers["w"].const_value
    assert old is not None
    ((_, plain, _),) = [m for n in model.ir.graph for m in matrices(n)]
    if kind == "depthwise" and encoding.bits == 4:  # too few weights to save on
        encoding = Encoding(8, "channel", encoding.symmetric)
    expected = quantise(plain.dense(), encoding)
    np.testing.assert_array_equal(coded.dense(), expected.dense())
    assert not coded.dense()[plain.dense() == 0].any()
    weight = weight_of(result.model)
    assert ((weight == 0) | (old.numpy() != 0)).all()
    feeds = feeds_for(model, seed=3, N=2)
    (y,), (reference,) = run(result.model, feeds), run(with_weight(model, weight), feeds)
    np.testing.assert_allclose(y, reference, rtol=1e-5, atol=1e-5)
    again = quantize(result.model, encoding).model
    assert again.to_proto().SerializeToString(deterministic=True) == result.model.to_proto().SerializeToString(deterministic=True)  # fmt: skip


def weight_of(model: Model) -> Array:
    """What onnxruntime makes of the codes."""
    proto = model.to_proto()
    nodes = [n for n in proto.graph.node if n.op_type in ("DequantizeLinear", "Reshape", "Slice", "Transpose")]
    output = onnx.helper.make_empty_tensor_value_info("w")
    graph = onnx.helper.make_graph(nodes, "weight", [], [output], proto.graph.initializer)
    alone = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return run(spa.load(alone), {})[0]


def test_four_bits_take_half_a_byte_where_the_opset_has_them() -> None:
    for opset, bits in ((21, 4), (18, 4)):
        found = quantize(model_of("gemm", opset), Encoding(4)).model
        codes = next(v for n, v in found.ir.graph.initializers.items() if "codes" in n).const_value
        assert codes is not None and codes.dtype == ir.DataType.INT4 and codes.dtype.bitwidth == bits
        assert found.ir.opset_imports[""] == 21


@pytest.mark.parametrize("kind", ["gemm", "gemm_turned", "matmul"])
@pytest.mark.parametrize("encoding", [Encoding(4, 16), Encoding(4, 32, False), Encoding(8, 32, False), Encoding(8, 16)])
def test_matmul_nbits(kind: str, encoding: Encoding) -> None:
    model = model_of(kind)
    result = quantize(model, encoding, nbits=True).model
    assert ops(result) == ["MatMulNBits"]
    ((_, coded, _),) = [m for n in result.ir.graph for m in matrices(n)]
    weight = coded.dense() if kind == "gemm_turned" else coded.dense().T
    feeds = feeds_for(model, N=2)
    np.testing.assert_allclose(run(result, feeds)[0], run(with_weight(model, weight), feeds)[0], rtol=1e-4, atol=1e-4)


def test_a_gemms_bias_follows_the_product() -> None:
    text = "agraph (float[3,40] x) => (float[3,7] y) { y = Gemm(x, w, c) }"
    rng = np.random.default_rng(0)
    model = parse(text, {"w": rng.standard_normal((40, 7)).astype(np.float32), "c": rng.standard_normal(7).astype(np.float32)})  # fmt: skip
    result = quantize(model, Encoding(8, 32), nbits=True).model
    assert ops(result) == ["MatMulNBits", "Add"]
    feeds = feeds_for(model)
    np.testing.assert_allclose(run(result, feeds)[0], run(model, feeds)[0], atol=0.1)


def test_what_is_named_stays_and_what_gains_nothing_stays() -> None:
    assert ops(quantize(model_of("conv"), keep=("w",)).model) == ["Conv"]
    tiny = parse("agraph (float[2,1] x) => (float[2,3] y) { y = MatMul(x, w) }", {"w": np.ones((1, 3), np.float32)})
    assert ops(quantize(tiny).model) == ["MatMul"]


# Whole networks --------------------------------------------------------------------------------------------------


def test_a_trained_network(models) -> None:  # type: ignore[no-untyped-def]
    model, data = Fold().run(spa.load(models / "digits.onnx")).model, np.load(models / "digits.npz")
    calib = load({"x": data["calib_x"].astype(np.float32)}, model)
    feeds = {"x": data["test_x"].astype(np.float32)}
    (dense,) = run(model, feeds)

    def lost(encoding: Encoding, known: Any = None) -> float:
        result = quantize(model, encoding, known)
        assert result.facts["quantize"]["bytes_after"] < 0.35 * result.facts["quantize"]["bytes_before"]
        (y,) = run(result.model, feeds)
        return float(np.square(y - dense).mean() / dense.var())

    assert lost(Encoding(8)) < 1e-4
    assert lost(Encoding(4), calib) < 0.5 * lost(Encoding(4))
    assert lost(Encoding(4, 32), calib) < 0.5 * lost(Encoding(4, 32))


def test_later_layers_make_up_for_what_earlier_ones_lost() -> None:
    """Fitted towards what the network gave, on other inputs than those that were seen."""
    rng = np.random.default_rng(0)
    shapes = {"a": (24, 48), "b": (48, 48), "c": (48, 12)}
    weights = {n: (rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for n, s in shapes.items()}
    text = "agraph (float[N,24] x) => (float[N,12] y) { p = MatMul(x, a)  q = Tanh(p)  r = MatMul(q, b)  s = Tanh(r)  y = MatMul(s, c) }"
    model = parse(text, weights)
    calib = [{"x": rng.standard_normal((64, 24)).astype(np.float32)} for _ in range(16)]
    unseen = {"x": rng.standard_normal((512, 24)).astype(np.float32)}
    (dense,) = run(model, unseen)

    def lost(known: Any) -> float:
        return float(np.square(run(quantize(model, Encoding(4), known).model, unseen)[0] - dense).mean() / dense.var())

    assert lost(calib) < 0.8 * lost(None)


def test_a_quantised_network_is_analysed_and_pruned(models) -> None:  # type: ignore[no-untyped-def]
    model = Fold().run(spa.load(models / "digits.onnx")).model
    step = spa.Pipeline.parse("quantize{bits=8,symmetric=true}")
    found = step.run(model).model
    sizes = [sorted(g.size for g in analyze(m).groups) for m in (model, found)]
    assert sizes[0] == sizes[1]
    assert spa.prune(found, ratio=0.25).facts["verified"]["ok"]
    assert analyze(Quantize(4, 32).run(model).model).ops


def test_halves() -> None:
    text = "agraph (float[N,6,9,9] x) => (float[N,8,7,7] y) { t = Conv(x, w, b)  y = Relu(t) }"
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 6, 3, 3)).astype(np.float16).astype(np.float32)
    model = parse(text, {"w": weight, "b": np.ones(8, np.float32) / 3})
    result = check_rewrite(Halve(), model, ["Cast", "Conv", "Relu"], rtol=0, atol=0)
    halves = [v.dtype for v in result.ir.graph.initializers.values()]
    assert sorted(map(str, halves)) == ["FLOAT", "FLOAT16"]
    model.ir.graph.initializers["w"].const_value = ir.tensor(weight * 1e6, name="w")
    assert ops(Halve().run(model).model) == ["Conv", "Relu"]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("encoding", [Encoding(8), Encoding(4, 16), Encoding(4, 3, False), Encoding(8, 17)])
def test_folding_leaves_codes_and_halves_as_they_are(kind: str, encoding: Encoding) -> None:
    model = model_of(kind, 21)
    halved = Halve(smallest=1).run(model).model if kind in ("conv", "matmul") else model
    for small in (quantize(model, encoding).model, halved):
        before, after = (len(m.to_proto().SerializeToString()) for m in (small, Fold().run(small).model))
        assert after <= before + 64 and ops(Fold().run(small).model) == ops(small)
        feeds = feeds_for(model, N=2)
        for a, b in zip(run(small, feeds), run(Fold().run(small).model, feeds), strict=True):
            np.testing.assert_array_equal(a, b)


def test_halves_fold_where_that_is_asked_for_and_where_weights_are_mended(models) -> None:  # type: ignore[no-untyped-def]
    model = Fold().run(spa.load(models / "digits.onnx")).model
    halved = Halve().run(model).model
    assert "Cast" in ops(Fold().run(halved).model) and "Cast" not in ops(Fold(widen=True).run(halved).model)
    assert spa.prune(halved, ratio=0.25).facts["verified"]["ok"]
    data = np.load(models / "digits.npz")
    assert spa.prune(halved, ratio=0.25, calib={"x": data["calib_x"][:64]}).facts["repairs"]


# What it takes ---------------------------------------------------------------------------------------------------


def test_inspect_tells_what_sparse_weights_take(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    weight = (1 + rng.random((64, 64))).astype(np.float32)
    np.put_along_axis(weight.reshape(64, 16, 4), np.argsort(rng.random((64, 16, 4)))[..., :2], 0, axis=2)
    text = "agraph (float[N,64] x) => (float[N,64] y) { y = Gemm<transB=1>(x, w) }"
    model = parse(text, {"w": weight})
    model.save(tmp_path / "thin.onnx")
    Quantize(8).run(model).model.save(tmp_path / "codes.onnx")

    def told(name: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, ["inspect", str(tmp_path / name), "--json"])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    thin, codes = told("thin.onnx"), told("codes.onnx")
    assert thin["file_bytes"] == (tmp_path / "thin.onnx").stat().st_size > thin["gzip_bytes"]
    # 16 groups of 2 values and 2 positions of 2 bits in each of 64 rows
    assert thin["packed_bytes"] == 64 * 16 * (2 * 4 + 0.5)
    assert codes["packed_bytes"] == 64 * 16 * (2 * 1 + 0.5) + 64 * 4
    for found in (thin, codes):
        (layer,) = found["layers"]
        assert (layer["op"], layer["nonzero"], layer["density"], layer["format"]) == ("Gemm", 2048, 0.5, "2:4")
        assert layer["macs"] == 4096
    table = CliRunner().invoke(cli, ["inspect", str(tmp_path / "thin.onnx")]).stdout
    assert "2:4" in table and "gzipped" in table


def test_few_nonzeros_are_written_sparse(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((64, 64)).astype(np.float32) for n in ("few", "half", "none")}
    for name, share in (("few", 0.9), ("half", 0.5), ("none", 1.0)):
        weights[name][rng.random((64, 64)) < share] = 0
    text = "agraph (float[N,64] x) => (float[N,64] y) { t = MatMul(x, few)  u = MatMul(t, half)  v = MatMul(u, none)  y = Add(v, u) }"
    model = parse(text, weights)
    dense, sparse = model.save(tmp_path / "dense.onnx"), model.save(tmp_path / "sparse.onnx", sparse=True)
    proto = onnx.load(sparse)
    onnx.checker.check_model(proto)  # a full check would ask ONNX's shape inference, which knows no sparse operands
    assert [t.values.name for t in proto.graph.sparse_initializer] == ["few"]
    assert sparse.stat().st_size < dense.stat().st_size - 64 * 64 * 4 * 0.6
    feeds, back = feeds_for(model, N=2), spa.load(sparse)
    assert run(back, feeds)[0].tolist() == run(model, feeds)[0].tolist()
    assert ort_run(sparse, feeds).tolist() == run(model, feeds)[0].tolist()
    assert any("made dense" in n for n in back.notes)


def ort_run(path: Any, feeds: dict[str, Array]) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def test_storage_counts_what_is_no_matrix_too(models) -> None:  # type: ignore[no-untyped-def]
    model = spa.load(models / "digits.onnx")
    found = storage(model)
    assert found.packed_bytes == spa.load(model).inspect().bytes and not found.sparse
