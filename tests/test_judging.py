"""Judgements against naive loops and scipy, on random networks and on given outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_graphs import network
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_text import parse
from oracle import onnxruntime
from scipy.special import softmax
from scipy.stats import binomtest, entropy
from test_prune_cli import call

import spa
from spa.agreement import BROKEN, FLOOR, Deviation, Tally, wilson
from spa.calibration import HELD
from spa.drift import drift
from spa.errors import CheckFailed, UsageError
from spa.inputs import Feeds
from spa.judging import Judgement, held_back, judge, judge_plan, line
from spa.model import Model

Array = np.ndarray[Any, Any]
FEEDS = 5


def random_pair(seed: int) -> tuple[Model, Model, list[Feeds], list[list[Array]]] | None:
    """A random network, the same with a third of its channels gone, inputs, and the dense outputs where all are finite."""
    proto = network(seed)
    model = spa.load(proto)
    pruned = spa.apply(model, spa.plan(model, ratio=0.34)).model
    rng = np.random.default_rng(seed)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds: list[Feeds] = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(FEEDS)]
    runs = [[onnxruntime(m.to_proto(), f) for f in feeds] for m in (model, pruned)]
    if not all(np.isfinite(a).all() for run in runs for outputs in run for a in outputs):
        return None
    return model, pruned, feeds, [[*map(np.stack, zip(*run, strict=True))] for run in runs]


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_random_networks_are_judged_as_a_naive_loop_does(seed: int) -> None:
    pair = random_pair(seed)
    if pair is None:
        return
    model, pruned, feeds, (dense, cut) = pair
    verdict = judge(model, pruned, feeds)
    assert verdict.inputs == sum(len(f["x"]) for f in feeds)
    flat = [np.concatenate([a.ravel() for a in run]).astype(float) for run in (dense, cut)]
    assert verdict.error == pytest.approx(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0]), rel=1e-6)
    for output, x, y in zip(verdict.outputs, dense, cut, strict=True):  # [feeds, *shape], last axis of 3
        assert (output.scores is not None) == (x.ndim - 1 in (2, 3))
        if output.scores is None:
            continue
        rows = list(zip(x.reshape(-1, 3).astype(float), y.reshape(-1, 3).astype(float), strict=True))
        same = [int(a.argmax()) == int(b.argmax()) for a, b in rows]
        assert (output.scores.rows, output.scores.top1) == (len(rows), pytest.approx(np.mean(same)))
        assert output.scores.top5 is None
        kl = np.mean([entropy(softmax(a), softmax(b)) for a, b in rows])
        assert output.scores.kl == pytest.approx(kl, rel=1e-6, abs=1e-12)
        for f in output.scores.forgotten:
            mine = [s for s, (a, _) in zip(same, rows, strict=True) if int(a.argmax()) == f.label]
            assert (f.count, f.changed) == (len(mine), len(mine) - sum(mine))
        assert sum(f.changed for f in output.scores.forgotten) == len(same) - sum(same)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_a_network_agrees_with_itself_and_agreement_is_symmetric(seed: int) -> None:
    pair = random_pair(seed)
    if pair is None:
        return
    model, pruned, feeds, (dense, cut) = pair
    same = judge(model, model, feeds)
    assert same.error == 0
    for o in same.outputs:
        assert o.scores is None or (o.scores.top1, o.scores.kl, o.scores.forgotten, o.scores.exemplars) == (
            1,
            0,
            (),
            (),
        )
    there, back = judge(model, pruned, feeds), judge(pruned, model, feeds)
    norms = [np.sqrt(sum(float((a.astype(float) ** 2).sum()) for a in run)) for run in (dense, cut)]
    assert there.error * norms[0] == pytest.approx(back.error * norms[1], rel=1e-6)
    for a, b in zip(there.outputs, back.outputs, strict=True):
        assert (a.scores is None) == (b.scores is None)
        if a.scores is not None and b.scores is not None:
            assert a.scores.top1 == b.scores.top1
            changed = [
                {(e.input, e.position, *sorted((e.was, e.now))) for e in s.exemplars} for s in (a.scores, b.scores)
            ]
            assert a.scores.rows * (1 - a.scores.top1) > 20 or changed[0] == changed[1]


SCORES = hnp.arrays(np.float32, (12, 8), elements=st.floats(-20, 20, width=32))


def tally(x: Array, y: Array, per: int = 12, **options: Any) -> Any:
    """The tally of outputs that come in feeds of `per` rows."""
    found = Tally("y", **options)
    for at in range(0, len(x), per):
        found.add(x[at : at + per], y[at : at + per], at, len(x[at : at + per]))
    return found.output()


@given(x=SCORES, y=SCORES, per=st.sampled_from([1, 5, 12]), squash=st.booleans())
def test_scores_of_rank_two(x: Array, y: Array, per: int, squash: bool) -> None:
    if squash:
        x, y = softmax(x, axis=1), softmax(y, axis=1)
    whole = tally(x, y, per).scores
    assert whole.probabilities == squash
    best = np.argsort(-y, axis=1, kind="stable")[:, :5]
    below = [float(b[c]) < float(np.sort(b)[-5]) for b, c in zip(y, x.argmax(1), strict=True)]  # not even a tie
    assert whole.top5 == pytest.approx(1 - np.mean(below))
    assert whole.top5 >= np.mean([c in five for c, five in zip(x.argmax(1), best, strict=True)]) - 1e-9
    p, q = (a.astype(float) if squash else softmax(a.astype(float), axis=1) for a in (x, y))
    if (q > 1e-37).all() and (p > 1e-37).all():
        assert whole.kl == pytest.approx(
            np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)]), rel=1e-5, abs=1e-7
        )
    changed = np.flatnonzero(x.argmax(1) != y.argmax(1))
    assert sorted(e.input for e in whole.exemplars) == changed.tolist()
    losses = [e.margin_before - e.margin_after for e in whole.exemplars]
    assert losses == sorted(losses, reverse=True)
    for e in whole.exemplars:
        assert (e.was, e.now, e.position) == (x[e.input].argmax(), y[e.input].argmax(), 0)
        others = np.delete(q[e.input], e.was)
        assert e.margin_after == pytest.approx(q[e.input, e.was] - others.max(), abs=2e-6)


def test_more_rows_than_fit_at_once_are_judged_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import spa.agreement

    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 7, 9)).astype(np.float32)  # a decision per position
    y = x + rng.standard_normal(x.shape).astype(np.float32)
    whole = tally(x, y, 3)
    monkeypatch.setattr(spa.agreement, "CHUNK", 20)
    pieces = tally(x, y, 3)
    assert pieces.scores.kl == pytest.approx(whole.scores.kl, rel=1e-12)
    assert pieces.scores.exemplars == whole.scores.exemplars and pieces.scores.forgotten == whole.scores.forgotten
    assert len(whole.scores.exemplars) == 20 < 42 * (1 - whole.scores.top1)
    for e in whole.scores.exemplars:
        assert x[e.input, e.position].argmax() == e.was != e.now == y[e.input, e.position].argmax()


@given(st.integers(1, 60), st.data())
def test_the_interval_is_wilsons(count: int, data: st.DataObject) -> None:
    changed = data.draw(st.integers(0, count))
    low, high = wilson(np.array([changed]), np.array([count]))
    expected = binomtest(changed, count).proportion_ci(method="wilson")
    assert (low[0], high[0]) == (pytest.approx(expected.low, abs=1e-7), pytest.approx(expected.high, abs=1e-7))


def test_nothing_that_is_broken_passes_as_agreement() -> None:
    x = np.array([[1.0, 2, 3], [3, 2, 1], [np.nan, 1, 2], [0, 1, -np.inf]], np.float32)
    y = x.copy()
    y[0, 0] = np.nan
    found = tally(x, y)
    assert found.error == BROKEN and found.scores.rows == 3 and found.scores.top1 == pytest.approx(2 / 3)
    assert [e.input for e in found.scores.exemplars] == [0]
    json.dumps(found.scores.kl, allow_nan=False)
    assert drift([[x]], [[y]]) == BROKEN and drift([[x]], [[x]]) == 0
    assert drift([[np.zeros(3)]], [[np.ones(3)]]) == BROKEN  # of nothing, any difference is too much
    # a zero probability where the dense network has one is no infinity
    certain = tally(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])).scores
    assert certain.kl == pytest.approx(0.5 * np.log(0.5) + 0.5 * (np.log(0.5) - FLOOR))


def test_what_does_not_look_like_scores_has_an_error_only() -> None:
    rng = np.random.default_rng(0)
    for shape in ((4,), (4, 1), (2, 3, 4, 5)):
        x = rng.standard_normal(shape)
        found = tally(x, x + 0.1)
        assert found.scores is None and found.error > 0
    assert tally(np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3)).error is None
    varying = Tally("y")  # its last axis is a length, not a number of classes
    for n in (3, 4):
        varying.add(np.ones((2, n)), np.ones((2, n)), 0, 2)
    assert varying.output().scores is None
    moved = Tally("y")
    moved.add(np.ones((2, 3)), np.ones((1, 3)), 0, 2)
    assert moved.output().reshaped == 1 and moved.output().error is None


def test_labels_tell_accuracy_before_and_after() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 4))
    labels = rng.integers(0, 4, 30)
    found = tally(x, y, 7, labels=labels).scores.accuracy
    assert found == (np.mean(x.argmax(1) == labels), np.mean(y.argmax(1) == labels))


@given(st.integers(1, 12), st.integers(1, 5))
def test_the_inputs_held_back_are_those_of_the_calibration(count: int, size: int) -> None:
    numbers = np.arange(count * size).reshape(count, size)
    feeds, first, held = held_back([{"x": n} for n in numbers])
    assert held == (count >= HELD)
    expected = [k for k in range(count) if k % HELD == HELD - 1] or list(range(count))
    assert [f["x"][0] for f in feeds] == [numbers[k, 0] for k in expected] == first


def test_the_judgement_names_samples_of_the_calibration_data(models: Path) -> None:
    model = spa.load(models / "digits.onnx")
    data = np.load(models / "digits.npz")["calib_x"]
    plan = spa.plan(model, ratio=0.4)
    pruned = spa.apply(model, plan).model
    feeds = [{"x": data[k : k + 16]} for k in range(0, len(data), 16)]
    verdict = judge_plan(model, plan, feeds, repair=False)
    assert verdict.held_back and verdict.inputs == 64
    scores = verdict.scores
    assert scores is not None and scores.top1 < 1 and scores.top5 is not None
    for e in scores.exemplars:
        assert e.input // 16 % HELD == HELD - 1
        dense, cut = (onnxruntime(m.to_proto(), {"x": data[e.input][None]})[0] for m in (model, pruned))
        assert (int(dense.argmax()), int(cut.argmax())) == (e.was, e.now)
    text = str(verdict)
    assert text == line(verdict.to_json()) and text.startswith("held back (64 inputs): top-1 agreement")
    assert f"worst class {scores.forgotten[0].label} (" in text


def test_what_judges_was_not_fitted_to(models: Path) -> None:
    """Other held-back inputs leave the network that is judged as it is."""
    from spa.pruning import finish

    model = spa.load(models / "digits.onnx")
    data = np.load(models / "digits.npz")["calib_x"][:96]
    plan = spa.plan(model, ratio=0.4)
    feeds = [{"x": data[k : k + 8]} for k in range(0, len(data), 8)]
    fit = [f for k, f in enumerate(feeds) if k % HELD != HELD - 1]
    twin = finish(model, plan, calib=fit, check=False).model
    for shift in (0.0, 1.0):
        moved = [f if k % HELD != HELD - 1 else {"x": f["x"] + np.float32(shift)} for k, f in enumerate(feeds)]
        held = [f for k, f in enumerate(moved) if k % HELD == HELD - 1]
        assert judge_plan(model, plan, moved).to_json()["value"] == judge(model, twin, held).error


def test_networks_that_cannot_be_compared_are_refused() -> None:
    one = parse("agraph (float[N,2] x) => (float[N,2] y) { y = Relu(x) }", {})
    two = parse("agraph (float[N,2] x) => (float[N,2] z) { z = Relu(x) }", {})
    with pytest.raises(CheckFailed, match="outputs are"):
        judge(one, two, [{"x": np.ones((1, 2), np.float32)}])
    with pytest.raises(UsageError, match="no inputs"):
        judge(one, one, [])


def test_the_deviation_is_that_of_all_numbers_together() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal(n), rng.standard_normal(n)) for n in (3, 50, 1)]
    total = Deviation()
    for a, b in parts:
        total.add(a, b)
    a, b = (np.concatenate(p) for p in zip(*parts, strict=True))
    assert total.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_the_command_line_shows_the_judgement(models: Path, tmp_path: Path) -> None:
    out, calib = tmp_path / "o.onnx", models / "digits.npz"
    source = models / "digits.onnx"
    code, stdout, _ = call("prune", source, "-o", out, "--macs", 0.3, "--calib", calib, "--json")
    found = json.loads(stdout)["drift"]
    assert code == 0 and found["held_back"] and found["inputs"] == 64 and 0 < found["value"] < 1
    assert {"top1", "top5", "kl", "worst_class", "outputs"} <= found.keys()
    code, stdout, _ = call("prune", source, "-n", "--macs", 0.3, "--calib", calib)
    assert code == 0 and "held back (64 inputs): top-1 agreement" in stdout
    code, stdout, _ = call("verify", source, out, "--calib", calib, "--json")
    whole = json.loads(stdout)
    assert code == 0 and whole["ok"] and whole["drift"]["inputs"] == 256 and not whole["drift"]["held_back"]
    code, stdout, _ = call("verify", source, out, "--calib", calib, "--max-drift", 1e-6)
    assert code == 1 and "top-1 agreement" in stdout and "1e-06" in stdout


def test_a_judgement_is_plain_data() -> None:
    assert Judgement(0.5, 3, ()).to_json() == {"value": 0.5, "inputs": 3, "held_back": False, "outputs": []}
    assert line({"value": 0.5, "inputs": 3}) == "judged (3 inputs): drift 0.5"
