"""Criteria against their formulas written out one channel at a time, on random coupled networks."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from fuzz_graphs import network
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import parse
from oracle import onnxruntime

import spa
from spa.calibration import Walk, measure, readers
from spa.cli.prune import prune as prune_command
from spa.coupling import Coupling, Group
from spa.errors import UsageError
from spa.importance.combine import AGGREGATES, NORMALISATIONS, lamp
from spa.importance.geometry import gram, redundancy
from spa.importance.scores import scores
from spa.importance.table import CRITERIA, Criterion, find
from spa.importance.tensors import GroupTensors, Score, Statistics, by_channel
from spa.model import Model
from spa.shapes import tensor_of

SEEDS = st.integers(0, 199)


def coupling_of(seed: int) -> Coupling:
    return spa.analyze(spa.load(network(seed)))


def slices(coupling: Coupling, group: Group) -> Iterator[tuple[ir.Value, int, list[np.ndarray]]]:
    """Per weight axis of a group: each channel's entries."""
    for dim, labels in group.labels.items():
        for value, axis in coupling.parameters.get(dim, ()):
            array = tensor_of(value).numpy().astype(np.float64)  # type: ignore[union-attr]
            yield (
                value,
                axis,
                [
                    np.concatenate(
                        [np.take(array, i, axis).ravel() for i in np.flatnonzero(labels == c)] or [np.zeros(0)]
                    )
                    for c in range(group.size)
                ],
            )


def normalised(rows: list[list[float]]) -> np.ndarray:
    score = np.mean(rows, axis=0)
    return score / score.mean() if score.mean() > 0 else score


@settings(max_examples=25)
@given(SEEDS)
def test_norms_are_those_of_every_channel_by_itself(seed: int) -> None:
    coupling = coupling_of(seed)
    l1, l2 = (scores(coupling, name) for name in ("l1", "l2"))
    for group in coupling.groups:
        parts = [channels for _, _, channels in slices(coupling, group)]
        np.testing.assert_allclose(l1[group.id], normalised([[np.abs(c).sum() for c in p] for p in parts]), rtol=1e-5)
        np.testing.assert_allclose(
            l2[group.id], normalised([[np.sqrt((c**2).sum()) for c in p] for p in parts]), rtol=1e-5
        )


def out_of(coupling: Coupling, value: ir.Value, axis: int) -> bool:
    """Do channels come out of this axis? By what the operators' definitions say of each."""
    for use in value.uses():
        kind, i = use.node.op_type, use.idx
        rank = len(tensor_of(value).shape)  # type: ignore[union-attr]
        if (kind, i, axis) in {("Conv", 1, 1), ("ConvTranspose", 1, 0)} or (
            kind == "MatMul" and axis == (rank - 2 if i == 1 else rank - 1)
        ):
            return False
    return True


@settings(max_examples=25)
@given(SEEDS)
def test_the_geometric_median_by_pairs(seed: int) -> None:
    coupling = coupling_of(seed)
    found = scores(coupling, "fpgm")
    for group in coupling.groups:
        every = list(slices(coupling, group))
        wide = [s for s in every if len(tensor_of(s[0]).shape) > 1] or every  # type: ignore[union-attr]
        parts = [s for s in wide if out_of(coupling, s[0], s[1])] or wide
        rows = []
        for _, _, channels in parts:
            width = max(map(len, channels))
            padded = [np.pad(c, (0, width - len(c))) for c in channels]
            rows.append([sum(float(np.linalg.norm(a - b)) for b in padded) for a in padded])
        np.testing.assert_allclose(found[group.id], normalised(rows), rtol=1e-4, atol=1e-6)


def chain(rng: np.random.Generator, channels: int = 6) -> Model:
    shapes = {"w0": (channels, 3, 3, 3), "b0": (channels,), "w1": (5, channels, 3, 3)}
    text = """agraph (float[N,3,6,6] x) => (float[N,5,6,6] y) {
      a = Conv<pads=[1,1,1,1]>(x, w0, b0)  r = Relu(a)  y = Conv<pads=[1,1,1,1]>(r, w1) }"""
    return parse(text, {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


def with_weights(model: Model, change: Callable[[np.ndarray], np.ndarray], name: str) -> Model:
    copy = model.clone()
    array = change(copy.ir.graph.initializers[name].const_value.numpy().copy())  # type: ignore[union-attr]
    copy.ir.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return copy


def test_the_second_of_two_equal_channels_is_dear() -> None:
    def twins(w: np.ndarray) -> np.ndarray:
        w[4] = 2 * w[1]
        w[5] = -w[2]
        return w

    coupling = spa.analyze(with_weights(chain(np.random.default_rng(0)), twins, "w0"))
    score = scores(coupling, "cosine", normalise="none")[coupling.groups[0].id]
    weight = tensor_of(coupling.model.ir.graph.initializers["w0"]).numpy().reshape(6, -1)  # type: ignore[union-attr]
    norm = np.linalg.norm(weight, axis=1)
    assert np.argmin(score) in (1, 4) and score.min() == pytest.approx(0, abs=1e-6)
    left = [c for c in range(6) if c != np.argmin(score)]
    assert (score[left] > 0.5 * norm[left].min()).all()  # one that points the other way stands in for none
    assert (score <= norm.max() + 1e-6).all()


@settings(max_examples=10)
@given(st.integers(2, 7), st.integers(0, 50))
def test_redundancy_is_greedy_elimination_by_the_distance_to_the_nearest_ray(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((size, 3)).astype(np.float32)

    def distance(c: int, others: list[int]) -> float:
        """By least squares with a coefficient that is not negative."""
        w = rows[c].astype(np.float64)
        best = [np.linalg.norm(w - max(0.0, w @ k / (k @ k)) * k) for k in rows[others].astype(np.float64)]
        return float(min([np.linalg.norm(w), *best]))

    alive, expected, highest = list(range(size)), np.zeros(size), 0.0
    while alive:
        costs = {c: distance(c, [k for k in alive if k != c]) for c in alive}
        gone = min(costs, key=lambda c: (costs[c], c))
        highest = max(highest, costs[gone])
        expected[gone] = highest
        alive.remove(gone)
    np.testing.assert_allclose(redundancy(gram(rows)), expected, rtol=1e-5, atol=1e-6)


def test_long_rows_are_sketched_without_losing_the_order() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((40, 20_000)) * np.linspace(1, 4, 40)[:, None]).astype(np.float32)
    exact = rows.astype(np.float64) @ rows.T.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spa.importance.geometry.MAX_WORK", 40**2 * 2000)
        sketch = gram(rows)
    np.testing.assert_allclose(np.diag(sketch), np.diag(exact), rtol=0.2)
    assert not np.array_equal(sketch, gram(rows))
    np.testing.assert_allclose(gram(rows), exact)


def permuted(array: np.ndarray, axis: int, labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Channel c gets what channel order[c] had; both have as many indices."""
    index = np.arange(array.shape[axis])
    for c, source in enumerate(order):
        index[labels == c] = np.flatnonzero(labels == source)
    return np.take(array, index, axis)


@settings(max_examples=15)
@given(SEEDS, st.sampled_from(["l1", "l2", "lamp", "fpgm", "cosine"]))
def test_scores_follow_a_permutation_of_the_channels(seed: int, criterion: str) -> None:
    before = coupling_of(seed)
    rng = np.random.default_rng(seed)
    for number, group in enumerate(before.groups):
        counts = {tuple(np.bincount(v[v >= 0], minlength=group.size)) for v in group.labels.values()}
        if any(len(set(c)) > 1 for c in counts):
            continue
        after = coupling_of(seed)
        order = rng.permutation(group.size)
        for dim, labels in after.groups[number].labels.items():
            for value, axis in after.parameters.get(dim, ()):
                tensor = tensor_of(value)
                assert tensor is not None
                value.const_value = ir.tensor(permuted(tensor.numpy(), axis, labels, order), name=value.name)
        old, new = (scores(c, criterion)[group.id] for c in (before, after))
        np.testing.assert_allclose(new, old[order], rtol=1e-4, atol=1e-6)


# Criteria of what is read ----------------------------------------------------------------------------------------


def statistics(coupling: Coupling, x: np.ndarray) -> Statistics:
    walk = Walk(coupling.model, [{"x": x}])
    moments = {}
    for reader in readers(coupling):
        walk.advance(reader.op.out.name)
        moments[reader] = measure(reader, walk.live)
    return Statistics(moments)


@pytest.mark.parametrize("seed", range(3))
def test_output_drift_is_what_masking_a_channel_changes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = chain(rng)
    coupling = spa.analyze(model)
    x = rng.standard_normal((4, 3, 6, 6)).astype(np.float32)
    found = scores(coupling, "drift", statistics(coupling, x), normalise="none")[coupling.groups[0].id]
    y = onnxruntime(model.to_proto(), {"x": x})[0].astype(np.float64)

    def without(c: int) -> np.ndarray:
        def cut(w: np.ndarray) -> np.ndarray:
            w[:, c] = 0
            return w

        return onnxruntime(with_weights(model, cut, "w1").to_proto(), {"x": x})[0].astype(np.float64)

    expected = [((y - without(c)) ** 2).sum() / (y**2).sum() for c in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_wanda_and_variance_by_hand() -> None:
    rng = np.random.default_rng(4)
    w0, w1 = rng.standard_normal((5, 7)).astype(np.float32), rng.standard_normal((7, 3)).astype(np.float32)
    model = parse("agraph (float[N,5] x) => (float[N,3] y) { a = MatMul(x, w0) r = Relu(a) y = MatMul(r, w1) }", {"w0": w0, "w1": w1})  # fmt: skip
    coupling = spa.analyze(model)
    x = rng.standard_normal((64, 5)).astype(np.float32)
    r = np.maximum(x @ w0, 0).astype(np.float64)
    known = statistics(coupling, x)
    (group,) = coupling.groups
    wanda = scores(coupling, "wanda", known, normalise="none")[group.id]
    np.testing.assert_allclose(wanda, [(np.abs(w1[c]) * np.sqrt((r[:, c] ** 2).mean())).sum() for c in range(7)], rtol=1e-4)  # fmt: skip
    np.testing.assert_allclose(scores(coupling, "variance", known, normalise="none")[group.id], r.var(0), rtol=1e-4)


def test_obs_ranks_by_the_step_of_elimination() -> None:
    rng = np.random.default_rng(5)

    def twins(w: np.ndarray) -> np.ndarray:
        w[4] = w[1]
        return w

    model = with_weights(with_weights(chain(rng), twins, "w0"), twins, "b0")
    coupling = spa.analyze(model)
    known = statistics(coupling, rng.standard_normal((16, 3, 6, 6)).astype(np.float32))
    score = scores(coupling, "obs", known)[coupling.groups[0].id]
    assert np.argmin(score) in (1, 4)  # the other mends it
    assert score[1] != pytest.approx(score[4], rel=0.5)
    assert len(np.unique(score)) == 6


# Putting together ------------------------------------------------------------------------------------------------

ROWS = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(0, 100, allow_subnormal=False), min_size=4, max_size=4), min_size=n, max_size=n
    )
)


@given(ROWS)
def test_aggregates_are_those_of_numpy(rows: list[list[float]]) -> None:
    array = np.array(rows)
    for name, function in {"sum": np.sum, "mean": np.mean, "max": np.max, "median": np.median}.items():
        np.testing.assert_allclose(AGGREGATES[name](array), function(array, axis=0))
    np.testing.assert_allclose(AGGREGATES["product"](array) ** len(rows), array.prod(0), rtol=1e-6, atol=1e-200)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=8))
def test_normalisations(values: list[float]) -> None:
    s = np.array(values)
    expected = {
        "none": s,
        "mean": s / s.mean(),
        "max": s / s.max(),
        "sum": s / s.sum(),
        "gaussian": (s - s.mean()) / s.std() if s.std() > 0 else s - s.mean(),
    }
    for name, by_hand in expected.items():
        np.testing.assert_allclose(NORMALISATIONS[name](s), by_hand, rtol=1e-9, atol=1e-12)
        assert np.isfinite(NORMALISATIONS[name](np.zeros(3))).all()
    order = sorted(range(len(s)), key=lambda i: (s[i], i))
    left = {c: sum(s[j] ** 2 for j in order[k:]) for k, c in enumerate(order)}
    np.testing.assert_allclose(lamp(s), [s[c] ** 2 / left[c] for c in range(len(s))], rtol=1e-9)


def test_channels_of_several_indices_and_of_none() -> None:
    array = np.arange(10.0).reshape(5, 2)
    rows = by_channel(array, 0, np.array([1, -1, 0, 1, 3]), 4)
    assert rows.tolist() == [[4, 5, 0, 0], [0, 1, 6, 7], [0, 0, 0, 0], [8, 9, 0, 0]]


# Names -----------------------------------------------------------------------------------------------------------


def test_every_name_is_there_and_says_where_it_comes_from() -> None:
    for name in CRITERIA:
        rule = find(name)
        assert rule.aggregate in AGGREGATES and rule.normalise in NORMALISATIONS
        assert rule.score.__doc__


def test_batchnorm_scales() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w0": (4, 3), "g": (4,), "b": (4,), "m": (4,), "w1": (2, 4)}
    weights = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} | {"v": np.ones(4, np.float32)}
    text = """agraph (float[N,3] x) => (float[N,2] y) {
      a = Gemm<transB=1>(x, w0)  n = BatchNormalization(a, g, b, m, v)  y = Gemm<transB=1>(n, w1) }"""
    coupling = spa.analyze(parse(text, weights))
    (found,) = scores(coupling, "bn_scale", normalise="none").values()
    np.testing.assert_allclose(found, np.abs(weights["g"]))
    with pytest.raises(UsageError, match="nothing to judge by") as caught:
        scores(spa.analyze(chain(rng)), "bn_scale")
    assert "folded" in caught.value.hint


def test_random_is_seeded() -> None:
    coupling = coupling_of(3)
    first, again, other = (scores(coupling, "random", Statistics(seed=s)) for s in (1, 1, 2))
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        ({"criterion": "wnada"}, "no criterion is called 'wnada'", "did you mean 'wanda'?"),
        ({"criterion": "zzz"}, "no criterion is called 'zzz'", "cosine"),
        ({"criterion": "wanda"}, "needs calibration inputs", "--calib"),
        ({"criterion": "obs"}, "needs calibration inputs", "--calib"),
        ({"criterion": "taylor"}, "needs gradients", "docs/criteria.md"),
        ({"aggregate": "summ"}, "no aggregation is called 'summ'", "did you mean 'sum'?"),
        ({"normalise": "lmap"}, "no normalisation is called 'lmap'", "did you mean 'lamp'?"),
        ({"scope": "everywhere"}, "no scope is called 'everywhere'", "isomorphic"),
    ],
)
def test_wrong_choices_say_what_to_try(options: dict[str, str], what: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(what)) as caught:
        spa.plan(chain(np.random.default_rng(0)), ratio=0.5, **options)  # type: ignore[arg-type]
    assert hint in caught.value.hint


def test_criteria_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebody")

    def smallest(group: GroupTensors) -> list[Score]:
        return [np.abs(t.rows()).min(1).astype(np.float64) for t in group.matrices()]

    module.smallest, module.summed, module.l2 = smallest, Criterion(smallest, normalise="sum"), smallest  # type: ignore[attr-defined]
    module.broken = lambda group: [np.full(group.size, np.nan)]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebody", module)
    found = [EntryPoint(n, f"somebody:{n}", "spa.criteria") for n in ("smallest", "summed", "l2", "broken", "missing")]
    monkeypatch.setattr("spa.importance.table.entry_points", lambda group: found if group == "spa.criteria" else [])
    coupling = spa.analyze(chain(np.random.default_rng(1)))
    (score,) = scores(coupling, "smallest").values()
    assert score.mean() == pytest.approx(1)
    (score,) = scores(coupling, "summed").values()
    assert score.sum() == pytest.approx(1)
    assert find("l2").score is not smallest  # ours stay ours
    with pytest.raises(UsageError, match="cannot be imported"):
        find("missing")
    with pytest.raises(UsageError, match="no finite score"):
        scores(coupling, "broken")
    assert spa.plan(coupling.model, coupling, ratio=0.5, criterion="smallest").removed


def test_the_command_line_takes_every_choice(models, tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out.onnx"
    line = [str(models / "digits.onnx"), "-o", str(out), "--macs", "0.7", "--criterion", "fpgm"]
    done = CliRunner().invoke(
        prune_command, [*line, "--aggregate", "median", "--normalise", "gaussian", "--scope", "isomorphic"]
    )
    assert done.exit_code == 0, done.output
    assert spa.load(out).inspect().macs <= 0.7 * spa.load(models / "digits.onnx").inspect().macs
    with pytest.raises(UsageError, match="no criterion"):
        CliRunner().invoke(prune_command, [*line[:-1], "fpgn", "--force"], catch_exceptions=False)
