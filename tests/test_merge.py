"""Merging from the weights alone, against samples, least squares and the dense network."""

from __future__ import annotations

import numpy as np
import pytest
from few_ops import draw_masks
from fuzz_graphs import network
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import parse
from oracle import masked, onnxruntime

import spa
from spa.allocate import spare
from spa.coupling import Coupling
from spa.coupling.analysis import Mask
from spa.importance.kernel import DAMPING, elimination, rectify
from spa.importance.scores import scores
from spa.model import Model
from spa.passes.merge import merge, share_out, substitutes
from spa.planning import removed_slices


def chain(w0: np.ndarray, b0: np.ndarray, w1: np.ndarray, activation: str = "Relu") -> Model:
    ends = f"(float[N,{len(w0)}] x) => (float[N,{w1.shape[1]}] y)"
    text = f"agraph {ends} {{ a = Gemm(x, w0, b0) r = {activation}(a) y = MatMul(r, w1) }}"
    return parse(text, {k: v.astype(np.float32) for k, v in {"w0": w0, "b0": b0, "w1": w1}.items()})


def without(coupling: Coupling, lost: list[int]) -> dict[int, Mask]:
    (group,) = coupling.groups
    return coupling.removal({group.id: np.isin(np.arange(group.size), lost)})


def run(model: Model, coupling: Coupling, gone: dict[int, Mask], x: np.ndarray) -> np.ndarray:
    return onnxruntime(masked(model.to_proto(), removed_slices(coupling, gone)), {"x": x.astype(np.float32)})[0]


@pytest.mark.parametrize("shares", [(2.0, 0.5), (1.0, 3.0)])
def test_multiples_of_kept_channels_are_merged_without_loss(shares: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    w0, b0, w1 = rng.standard_normal((6, 5)), rng.standard_normal(5), rng.standard_normal((5, 3))
    for (gone, kept), share in zip([(1, 0), (4, 3)], shares, strict=True):
        w0[:, gone], b0[gone] = share * w0[:, kept], share * b0[kept]
    model = chain(w0, b0, w1)
    coupling = spa.analyze(model)
    gone = without(coupling, [1, 4])
    x = rng.standard_normal((20, 6))
    dense = onnxruntime(model.to_proto(), {"x": x.astype(np.float32)})[0]
    mended, done = merge(coupling, gone, damping=0.0)
    np.testing.assert_allclose(run(mended, coupling, gone, x), dense, rtol=1e-3, atol=1e-4)
    assert np.abs(run(model, coupling, gone, x) - dense).max() > 0.1
    assert done[0].removed == 2 and done[0].explained == pytest.approx(1, abs=1e-6)


def test_the_covariance_of_positive_parts_is_that_of_samples() -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((5, 3))
    a = np.maximum(rng.standard_normal((400_000, 3)) @ w.T, 0)
    np.testing.assert_allclose(rectify(w @ w.T), np.cov(a.T, bias=True), atol=0.02)


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([0.0, 0.1, 1.0]))
def test_stand_ins_solve_the_damped_least_squares(seed: int, count: int, damping: float) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((40, 6)) @ rng.standard_normal((6, 6))
    lost = np.isin(np.arange(6), rng.choice(6, count, replace=False))
    c = a.T @ a
    found, explained = substitutes(c, lost, damping)
    d = np.sqrt(damping * np.trace(c[np.ix_(~lost, ~lost)]) / (6 - count))
    stacked = np.vstack([a[:, ~lost], d * np.eye(6 - count)])
    expected = np.linalg.lstsq(stacked, np.vstack([a[:, lost], np.zeros((6 - count, count))]), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    left = ((a[:, lost] - a[:, ~lost] @ found) ** 2).sum() / (a[:, lost] ** 2).sum()
    assert explained == pytest.approx(1 - left, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 199), st.sampled_from(["Relu", "Identity"]))
def test_on_white_inputs_the_variance_of_the_error_shrinks(seed: int, activation: str) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 9))
    model = chain(rng.standard_normal((6, size)), np.zeros(size), rng.standard_normal((size, 3)), activation)
    coupling = spa.analyze(model)
    gone = without(coupling, rng.choice(size, size // 2, replace=False).tolist())
    x = rng.standard_normal((4000, 6))
    dense = onnxruntime(model.to_proto(), {"x": x.astype(np.float32)})[0]
    mended, _ = merge(coupling, gone)
    left, plain = (np.var(run(m, coupling, gone, x) - dense, axis=0).sum() for m in (mended, model))
    assert left <= 1.02 * plain


def test_channels_of_several_indices_are_shared_place_by_place() -> None:
    array = np.arange(12.0).reshape(6, 2)
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = share_out(array, 0, labels, np.array([[0.5], [2.0]]), np.array([False, True, False]))
    expected = array.copy()
    expected[0:2] += 0.5 * array[2:4]
    expected[4:6] += 2 * array[2:4]
    np.testing.assert_array_equal(found, expected)
    uneven = np.array([0, 0, 1, 2, 2, -1])
    assert share_out(array, 0, uneven, np.ones((2, 1)), np.array([False, True, False])) is array


@settings(max_examples=15)
@given(st.integers(0, 199))
def test_mended_networks_are_cut_as_masked(seed: int) -> None:
    model = spa.load(network(seed))
    coupling = spa.analyze(model)
    masks = draw_masks(coupling, seed)
    spare(coupling, masks)
    gone = coupling.removal(masks)
    before = model.to_proto().SerializeToString(deterministic=True)
    mended, done = merge(coupling, gone)
    again, _ = merge(coupling, gone)
    assert model.to_proto().SerializeToString(deterministic=True) == before
    texts = [m.to_proto().SerializeToString(deterministic=True) for m in (mended, again)]
    assert texts[0] == texts[1]
    assert all(0 <= d.explained <= 1 for d in done)
    untouched, nothing = merge(coupling, {})
    assert not nothing
    assert untouched.to_proto().SerializeToString(deterministic=True) == before
    plan = spa.planning.from_masks(coupling, masks)
    assert spa.verify(mended, spa.apply(mended, plan).model, plan, count=1).ok


def test_inputs_that_show_harm_keep_the_network_as_it_is() -> None:
    w0 = np.array([[1.0, 1.0], [0.0, -1.0]])  # on (1, 1) the second channel is silent, its stand-in is not
    model = chain(w0, np.zeros(2), np.ones((2, 1)))
    coupling = spa.analyze(model)
    gone = without(coupling, [1])
    harmed = [{"x": np.ones((2, 2), np.float32)}]
    helped = [{"x": np.array([[1.0, -1.0], [2.0, -1.0]], np.float32)}]
    assert merge(coupling, gone, harmed) == (coupling.model, [])
    mended, done = merge(coupling, gone, helped)
    assert done and mended is not coupling.model


def test_the_kernel_criterion_spares_the_last_of_equals() -> None:
    rng = np.random.default_rng(2)
    w0, b0, w1 = rng.standard_normal((8, 6)), rng.standard_normal(6), rng.standard_normal((6, 3))
    w0[:, 5], b0[5] = 2 * w0[:, 2], 2 * b0[2]
    coupling = spa.analyze(chain(w0, b0, w1))
    (score,) = scores(coupling, "kernel", normalise="none").values()
    first = int(np.argmin(score))
    assert first in (2, 5)
    assert score[7 - first] > 3 * score[first]


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_elimination_adds_what_least_squares_leaves(seed: int) -> None:
    """Every step by itself: what is left of the removed channels given the kept ones, by the Schur complement."""
    rng = np.random.default_rng(seed)
    w, a = rng.standard_normal((3, 6)), rng.standard_normal((20, 6))
    c = a.T @ a / 20
    damped = c + DAMPING * np.trace(c) / 6 * np.eye(6)

    def left(gone: list[int]) -> float:
        kept = [k for k in range(6) if k not in gone]
        pp, kk, pk = (damped[np.ix_(i, j)] for i, j in ((gone, gone), (kept, kept), (gone, kept)))
        return float(np.trace(w[:, gone] @ (pp - pk @ np.linalg.solve(kk, pk.T)) @ w[:, gone].T))

    order: list[int] = []
    expected, highest = np.zeros(6), 0.0
    while len(order) < 6:
        costs = {k: left([*order, k]) for k in range(6) if k not in order}
        best = min(costs, key=lambda k: costs[k])
        highest = max(highest, costs[best] - (left(order) if order else 0.0))
        expected[best] = highest
        order.append(best)
    np.testing.assert_allclose(elimination(w.T @ w, c), expected, rtol=1e-6)
