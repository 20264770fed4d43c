"""Calibration, Optimal Brain Surgeon, repair and the knapsack, each against what it must agree with."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import parse
from oracle import onnxruntime

import spa
from spa.calibration import Moments, Walk, load, measure, readers, split_batches
from spa.errors import UsageError
from spa.importance.obs import Task, damped, eliminate
from spa.knapsack import knapsack
from spa.model import Model
from spa.passes.compensate import corrections, ensure_biases, mend
from spa.refine import refine


def conv_net(rng: np.random.Generator, kernel: int, stride: int, pad: int, groups: int, dilation: int = 1) -> Model:
    text = f"""agraph (float[N,3,9,9] x) => (float[N,6,H,W] y) {{
      a = Conv(x, w0, b0)
      r = Relu(a)
      y = Conv<strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}], group={groups},
               dilations=[{dilation},{dilation}]>(r, w1, b1)
    }}"""
    shapes = {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (6, 8 // groups, kernel, kernel), "b1": (6,)}
    return parse(text, {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


@settings(max_examples=25)
@given(
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.sampled_from([1, 2]),
    pad=st.integers(0, 2),
    groups=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)
def test_unfolded_inputs_times_the_weight_are_the_convolution(
    kernel: int, stride: int, pad: int, groups: int, dilation: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = conv_net(rng, kernel, stride, pad, groups, dilation)
    reader = readers(spa.analyze(model))[0]
    proto = model.to_proto()
    x = rng.standard_normal((2, 3, 9, 9)).astype(np.float32)
    walk = Walk(model, [{"x": x}])
    walk.advance("y")
    rows = reader.unfold(walk.live[0], rng, 10**6)
    weight = reader.matrix(walk.constant("w1"))
    y = np.concatenate([r @ w.T for r, w in zip(rows, weight, strict=True)], axis=1) + walk.constant("b1")
    expected = onnxruntime(proto, {"x": x})[0]
    np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1).reshape(-1, 6), rtol=1e-4, atol=1e-4)


def test_a_walk_in_pieces_is_the_network_and_weights_may_change_on_the_way() -> None:
    rng = np.random.default_rng(0)
    model = conv_net(rng, 3, 1, 1, 1)
    feeds = [{"x": rng.standard_normal((2, 3, 9, 9)).astype(np.float32)} for _ in range(3)]
    walk = Walk(model, feeds)
    walk.advance("r")
    walk.advance("y")
    walk.replace("w1", 2 * walk.constant("w1"))
    walk.replace("b1", 2 * walk.constant("b1"))
    walk.advance()
    for feed, values in zip(feeds, walk.live, strict=True):
        np.testing.assert_allclose(values["y"], 2 * onnxruntime(model.to_proto(), feed)[0], rtol=1e-4, atol=1e-5)
        assert set(values) == {"y"}  # nothing else is kept


def test_moments_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    text = "agraph (float[N,5] x) => (float[N,3] y) { a = Gemm(x, w0) r = Relu(a) y = Gemm(r, w1) }"
    model = parse(text, {"w0": rng.standard_normal((5, 7)).astype(np.float32), "w1": np.ones((7, 3), np.float32)})
    x = rng.standard_normal((64, 5)).astype(np.float32)
    walk = Walk(model, split_batches({"x": x}, model, 8))
    walk.advance("y")
    moments = measure(readers(spa.analyze(model))[0], walk.live)
    r = np.maximum(x @ walk.constant("w0"), 0).astype(np.float64)
    np.testing.assert_allclose(moments.mean(0), r.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.covariance(0), np.cov(r.T, bias=True), rtol=1e-3, atol=1e-4)


def correlated(rng: np.random.Generator, n: int, rows: int = 400) -> np.ndarray:
    return rng.standard_normal((rows, n)) @ rng.standard_normal((n, n)) + rng.standard_normal(n)


@pytest.mark.parametrize("seed", range(4))
def test_the_first_channel_to_go_is_the_cheapest_and_the_error_is_that_of_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = correlated(rng, 6)
    w, c = rng.standard_normal((4, 6)), damped(np.cov(x.T, bias=True), 0.0)
    order = eliminate([Task(w, c, np.arange(6))], 6, damping=0.0)

    def cost(lost: tuple[int, ...]) -> float:
        """Of the output after refitting the rest, by numpy's lstsq on the rows themselves."""
        kept = [i for i in range(6) if i not in lost]
        centred = x - x.mean(0)
        fit = np.linalg.lstsq(centred[:, kept], centred @ w.T, rcond=None)[0]
        return float(((centred[:, kept] @ fit - centred @ w.T) ** 2).mean(0).sum())

    assert order.channels[0] == min(range(6), key=lambda i: cost((i,)))
    energy = float(np.einsum("of,fg,og->", w, c, w))
    for k in (1, 2, 3):
        assert order.errors[k - 1] * energy == pytest.approx(cost(tuple(order.channels[:k])), rel=1e-3)


def test_of_two_equal_channels_only_one_is_cheap() -> None:
    rng = np.random.default_rng(0)
    x = correlated(rng, 5)
    x[:, 4] = x[:, 3]
    w = 5 * rng.standard_normal((3, 5))
    order = eliminate([Task(w, np.cov(x.T, bias=True), np.arange(5))], 5)
    assert order.channels[0] in (3, 4) and order.channels[1] not in (3, 4)


@pytest.mark.parametrize("seed", range(5))
def test_repair_is_never_worse_than_none_on_held_back_inputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = ensure_biases(conv_net(rng, 3, 1, 1, 1 + seed % 2))
    walk = Walk(model, [{"x": rng.standard_normal((4, 3, 9, 9)).astype(np.float32)} for _ in range(8)])
    walk.advance("y")
    reader = readers(spa.analyze(model))[0]
    moments = measure(reader, walk.live, walk.live, walk.constant("w1"))
    channels = rng.random(reader.features // reader.taps) < 0.5
    channels[-1] = False
    lost = reader.spread(channels)
    repair, new, _ = mend(reader, moments, walk.constant("w1"), lost, True)
    assert repair.after <= repair.before
    assert not reader.matrix(new)[np.broadcast_to(lost[:, None], reader.matrix(new).shape)].any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_correction_is_the_least_squares_fit_to_its_target(share: float) -> None:
    rng = np.random.default_rng(3)
    x, now = correlated(rng, 8), correlated(rng, 8)
    w, lost = rng.standard_normal((1, 3, 8)), np.arange(8) < 3
    moments = Moments(1, 8, 3)
    moments.add(now[None], False, (x @ w[0].T)[None])
    statistics = moments.statistics(0)
    base = np.where(lost, 0.0, w)
    local, onward = corrections(w, base, statistics, lost[None], 0.0)
    target = (1 - share) * now @ w[0].T + share * x @ w[0].T
    rows = np.column_stack([now[:, ~lost], np.ones(len(now))])  # the bias is one more input
    expected = np.linalg.lstsq(rows, target, rcond=None)[0][:-1].T
    np.testing.assert_allclose((base + local + share * onward)[0][:, ~lost], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_is_the_best_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = [np.sort(rng.random(4)).tolist() for _ in range(4)]
    costs = [np.sort(rng.random(4))[::-1].tolist() for _ in range(4)]
    room = float(rng.uniform(1.0, 2.5))
    choices = [c for c in itertools.product(range(4), repeat=4) if sum(costs[i][k] for i, k in enumerate(c)) <= room]
    found = knapsack(errors, costs, room)
    if not choices:
        assert found is None
        return
    best = min(sum(errors[i][k] for i, k in enumerate(c)) for c in choices)
    assert found is not None
    assert sum(errors[i][k] for i, k in enumerate(found)) == pytest.approx(best, abs=1e-6)
    assert sum(costs[i][k] for i, k in enumerate(found)) <= room + 1e-6


def accuracy(model: Model, x: np.ndarray, y: np.ndarray) -> float:
    return float((onnxruntime(model.to_proto(), {"x": x})[0].argmax(1) == y).mean())


def test_calibrated_pruning_keeps_what_magnitude_loses(models) -> None:  # type: ignore[no-untyped-def]
    model = spa.load(models / "digits.onnx")
    data = np.load(models / "digits.npz")
    calib = {"x": data["calib_x"]}
    plain = spa.prune(model, macs=0.4)
    whole = spa.prune(model, macs=0.4, calib=calib)
    unmended = spa.prune(model, macs=0.4, calib=calib, compensate=False)
    results = {"plain": plain, "whole": whole, "unmended": unmended}
    score = {name: accuracy(r.model, data["test_x"], data["test_y"]) for name, r in results.items()}
    assert score["whole"] > 0.97 > score["plain"]
    assert score["whole"] >= score["unmended"]
    assert whole.facts["verified"]["ok"] and whole.plan is not None and "compensate" in whole.plan.pipeline
    again = spa.prune(model, macs=0.4, calib=calib)
    assert again.model.to_proto().SerializeToString(deterministic=True) == whole.model.to_proto().SerializeToString(
        deterministic=True
    )


def test_calibration_inputs_are_checked(models, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = spa.load(models / "digits.onnx")
    with pytest.raises(UsageError, match="no calibration array"):
        load({"z": np.zeros((4, 1, 8, 8), np.float32)}, model)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "bad.npz", model)
    assert sum(len(f["x"]) for f in load("synthetic", model)) >= 64


def shared_head(rng: np.random.Generator) -> Model:
    """One weight over two maps, as in the heads of detectors."""
    text = """agraph (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,4,4,4] z) {
      a = Conv(x, w0, b0)
      r = Relu(a)
      s = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
      y = Conv(r, w1, b1)
      z = Conv(s, w1, b1)
    }"""
    shapes = {"w0": (12, 3, 1, 1), "b0": (12,), "w1": (4, 12, 1, 1), "b1": (4,)}
    return parse(text, {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


def recurrent(rng: np.random.Generator) -> Model:
    text = """agraph (float[6,N,5] x) => (float[6,1,N,3] y) {
      h, last = GRU<hidden_size=8>(x, w, r, b)
      y = MatMul(h, v)
    }"""
    shapes = {"w": (1, 24, 5), "r": (1, 24, 8), "b": (1, 48), "v": (8, 3)}
    return parse(text, {k: 0.5 * rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


def transposed(rng: np.random.Generator) -> Model:
    text = """agraph (float[N,3,6,6] x) => (float[N,4,12,12] y) {
      a = Conv(x, w0, b0)
      r = Relu(a)
      y = ConvTranspose<strides=[2,2], group=2>(r, w1, b1)
    }"""
    shapes = {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (8, 2, 2, 2), "b1": (4,)}
    return parse(text, {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


@pytest.mark.parametrize("make", [shared_head, recurrent, transposed], ids=lambda f: f.__name__)
def test_weights_of_every_kind_are_mended_and_the_network_gains(make) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    model = make(rng)
    shape = {"recurrent": (6, 32, 5), "transposed": (32, 3, 6, 6)}.get(make.__name__, (32, 3, 8, 8))
    mixing = rng.standard_normal((shape[-1], shape[-1])).astype(np.float32)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32) @ mixing} for _ in range(8)]
    fresh = {"x": rng.standard_normal(shape).astype(np.float32) @ mixing}
    expected = onnxruntime(model.to_proto(), fresh)

    def error(compensate: bool) -> float:
        result = spa.prune(model, ratio=0.4, calib=feeds, compensate=compensate)
        assert result.plan is not None and any(g["removed"] for g in result.plan.groups)
        if compensate:
            assert result.facts["repairs"] and all(r["after"] <= r["before"] for r in result.facts["repairs"])
        got = onnxruntime(result.model.to_proto(), fresh)
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(expected, got, strict=True))

    assert error(True) < 0.9 * error(False)


def test_refinement_finds_the_best_levels_there_are() -> None:
    """Small enough to try everything: errors that interact, which no sum over groups can see."""
    rng = np.random.default_rng(0)
    weights, pair = rng.random((3, 4)).cumsum(1), rng.random((4, 4, 4)).cumsum(0).cumsum(1).cumsum(2) / 16
    price = rng.integers(1, 5, (3, 4)).cumsum(1)

    def drift(levels: tuple[int, ...]) -> float:
        return float(sum(weights[i, k] for i, k in enumerate(levels)) + 3 * pair[levels])

    def cost(levels: tuple[int, ...]) -> float:
        return float(-sum(price[i, k] for i, k in enumerate(levels)))

    every = [c for c in itertools.product(range(4), repeat=3) if cost(c) <= -12]
    start = max(every, key=drift)
    found = refine(start, (3, 3, 3), cost, -12, drift, trials=200)
    assert cost(found) <= -12 and drift(found) == min(map(drift, every))
    assert found == refine(start, (3, 3, 3), cost, -12, drift, trials=200)


def statistics_of(model: Model) -> dict[str, np.ndarray]:
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.to_proto().graph.initializer}
    return {
        n: constants[n]
        for node in model.to_proto().graph.node
        if node.op_type == "BatchNormalization"
        for n in node.input[3:5]
    }


def test_drawn_inputs_leave_the_statistics_that_training_stored(models) -> None:  # type: ignore[no-untyped-def]
    """They are replaced while readers are mended, so that normalisations normalise what is drawn, and then put back."""
    model = spa.load(models / "digits.onnx")
    result = spa.prune(model, macs=0.7, calib="synthetic", fold=False, check=False)
    before, after = statistics_of(model), statistics_of(result.model)
    assert result.facts["repairs"] and after.keys() == before.keys()
    for name, kept in after.items():
        assert np.isin(kept, before[name]).all() and len(kept) <= len(before[name])
