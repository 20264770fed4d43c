"""Sparsify: solvers against numpy on the rows themselves, layers of every kind against a checker of its own, and the pass
and the command as a whole."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import pytest
from check_patterns import constants, matrices, violations
from click.testing import CliRunner
from onnx_text import feeds_for, parse, run

import spa
from spa.cli import cli
from spa.errors import UsageError
from spa.model import Model
from spa.passes.sparsify import sparsify
from spa.sparsity import admm, masks, refit, sparsegpt
from spa.sparsity.densities import Curve, spend
from spa.sparsity.layers import layers
from spa.sparsity.patterns import parse as pattern_of

rng_of = np.random.default_rng


def correlated(rng: np.random.Generator, n: int, rows: int = 300) -> np.ndarray:
    return rng.standard_normal((rows, n)) @ rng.standard_normal((n, n))


def lstsq(x: np.ndarray, w: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = np.zeros_like(w)
    for r, kept in enumerate(mask):
        out[r, kept] = np.linalg.lstsq(x[:, kept], x @ w[r], rcond=None)[0]
    return out


def loss(x: np.ndarray, w: np.ndarray, new: np.ndarray) -> float:
    return float(((x @ (w - new).T) ** 2).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_refit_is_least_squares_row_by_row_and_conjugate_gradients_agree(seed: int) -> None:
    rng = rng_of(seed)
    x, w = correlated(rng, 12), rng.standard_normal((7, 12))
    mask = rng.random(w.shape) < 0.6
    mask[3] = mask[4]
    h = x.T @ x / len(x)
    expected = lstsq(x, w, mask)
    np.testing.assert_allclose(refit.refit(w, h, mask, 0.0), expected, rtol=1e-2, atol=1e-3)
    by_gradients = refit.conjugate(w, h, mask)
    assert loss(x, w, by_gradients) <= 1.01 * loss(x, w, expected) + 1e-3


def test_the_sweep_makes_up_for_one_weight_as_brain_surgeon_does() -> None:
    rng = rng_of(0)
    x, w = correlated(rng, 4), rng.standard_normal((1, 4))
    w[0, 0] = 1e-3  # the first column goes, all others are still free
    mask, new = sparsegpt.sweep(w, x.T @ x / len(x), pattern_of("unstructured:0.25"), damping=0.0)
    assert mask.tolist() == [[False, True, True, True]]
    np.testing.assert_allclose(new, lstsq(x, w, mask), rtol=1e-6)


@pytest.mark.parametrize(
    "text", ["2:4", "unstructured:0.5", "block2x1:0.5", "fanin:0.5", "g2x2:4", "kernel:0.5", "taps2x3"]
)
@pytest.mark.parametrize("seed", range(2))
def test_masks_by_data_have_their_pattern_and_lose_less(text: str, seed: int) -> None:
    rng, pattern = rng_of(seed), pattern_of(text)
    x, w = correlated(rng, 16), rng.standard_normal((8, 16))
    h = x.T @ x / len(x)
    swept, moved = sparsegpt.sweep(w, h, pattern, 4)
    found = admm.search(w, h, pattern, 4)
    plain = pattern.mask(masks.magnitude(w), 4)
    assert all(pattern.check(m, 4) and m.sum() == plain.sum() for m in (swept, found, plain))
    assert not moved[~swept].any()
    assert loss(x, w, lstsq(x, w, found)) < loss(x, w, lstsq(x, w, plain))
    assert loss(x, w, moved) < loss(x, w, np.where(swept, w, 0))


def test_moments_that_rounding_left_indefinite_are_damped_more() -> None:
    rng = rng_of(0)
    x, w = correlated(rng, 8, 200)[:, [*range(8), *range(8)]], rng.standard_normal((4, 16))
    h = x.T @ x / len(x) - 1e-5 * np.eye(16) * np.trace(x.T @ x / len(x))
    assert np.linalg.eigvalsh(h)[0] < 0
    mask, moved = sparsegpt.sweep(w, h, pattern_of("2:4"), damping=1e-7)
    assert np.isfinite(moved).all() and np.isfinite(refit.refit(w, h, mask, 1e-7)).all()


def test_columns_with_large_means_leave_a_covariance_to_work_with() -> None:
    from spa.calibration.moments import Moments

    rng = rng_of(0)
    x = (100 + 1e-2 * rng.standard_normal((1, 512, 32))).astype(np.float32)
    moments = Moments(1, 32, 4)
    for part in (False, True):
        moments.add(x, part, x[..., :4])
    factor = np.linalg.cholesky(sparsegpt.damped(moments.statistics().xx[0], 1e-4))
    assert np.isfinite(factor).all()


def test_the_search_comes_close_to_the_best_of_all_masks() -> None:
    pattern, ratios = pattern_of("2:4"), []
    choices = [np.array([i in c for i in range(4)]) for c in itertools.combinations(range(4), 2)]
    for seed in range(5):
        rng = rng_of(seed)
        x, w = correlated(rng, 8), rng.standard_normal((1, 8))
        every = [np.concatenate(pair)[None] for pair in itertools.product(choices, repeat=2)]
        best = min(loss(x, w, lstsq(x, w, m)) for m in every)
        ratios.append(loss(x, w, lstsq(x, w, admm.search(w, x.T @ x / len(x), pattern))) / best)
    assert min(ratios) == pytest.approx(1, rel=1e-6) and np.median(ratios) < 1.3


@pytest.mark.parametrize("text", ["2:4", "unstructured:0.5"])
def test_prune_and_grow_keeps_the_count_and_mends_the_mean(text: str) -> None:
    rng, pattern = rng_of(0), pattern_of(text)
    x, w = correlated(rng, 16) + rng.standard_normal(16), rng.standard_normal((8, 16))
    c, mean = np.cov(x.T, bias=True), x.mean(0)
    first = pattern.mask(masks.wanda(w, np.diag(c) + mean**2))
    found = masks.prune_and_grow(w, c, mean, first, pattern)
    assert (found.sum(1) == first.sum(1)).all() and (found != first).any() and pattern.check(found)

    def off(mask: np.ndarray) -> float:
        return float(np.abs(np.where(mask, 0, w) @ mean).sum())

    assert off(found) < off(first)


def test_lamp_scores_the_largest_weight_of_a_layer_one() -> None:
    w = rng_of(0).standard_normal((5, 6))
    scores = masks.lamp(w)
    assert scores.max() == pytest.approx(1) and scores.argmax() == np.abs(w).argmax()
    flat, at = np.sort(w.reshape(-1) ** 2), np.argsort(w.reshape(-1) ** 2)
    assert scores.reshape(-1)[at[10]] == pytest.approx(flat[10] / flat[10:].sum())


def test_what_may_stay_is_spent_where_it_saves_most() -> None:
    steep = Curve("a", [1.0, 0.5, 0.25], [100, 50, 25], [0.0, 4.0, 9.0])
    flat = Curve("b", [1.0, 0.5, 0.25], [100, 50, 25], [0.0, 0.1, 0.3])
    assert spend([steep, flat], 125) == [1.0, 0.25]
    assert spend([steep, flat], 200) == [1.0, 1.0]


ZOO = """
<ir_version: 8, opset_import: ["" : 18]>
agraph (float[N,8,10,10] x) => (float[N,7] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  r0 = Relu(a)
  b = Conv<pads=[1,1,1,1], group=2>(r0, w1)
  r1 = Relu(b)
  c = ConvTranspose<strides=[2,2]>(r1, w2)
  d = Conv<group=16, pads=[1,1,1,1]>(c, w3)
  p = GlobalAveragePool(d)
  f = Flatten(p)
  e = Gemm<transB=1>(f, w4, b4)
  g = MatMul(e, w5)
  h = Add(g, b5)
  t = Relu(h)
  u = Unsqueeze(t, axes)
  s = Concat<axis=0>(u, u, u)
  l, l1, l2 = LSTM<hidden_size=16>(s, w6, w7)
  q = Squeeze(l1, axes)
  y = Gemm(q, w8)
}"""
SHAPES = {
    "w0": (16, 8, 3, 3),
    "b0": (16,),
    "w1": (16, 8, 3, 3),
    "w2": (16, 16, 2, 2),
    "w3": (16, 1, 3, 3),
    "w4": (24, 16),
    "b4": (24,),
    "w5": (24, 32),
    "b5": (32,),
    "w6": (1, 64, 32),
    "w7": (1, 64, 16),
    "w8": (16, 7),
}


def zoo() -> Model:
    rng = rng_of(0)
    arrays = {n: (0.3 * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()}
    return parse(ZOO, arrays | {"axes": np.array([0])})


def test_layers_of_every_kind_are_seen_as_the_checker_sees_them() -> None:
    model = zoo()
    proto = model.to_proto()
    found = {layer.name: layer for layer in layers(spa.analyze(model))}
    assert set(found) == {n for n in SHAPES if n[0] == "w"}
    for name, array in constants(proto).items():
        if name in found:
            parts, taps = matrices(proto, name, array)
            np.testing.assert_array_equal(found[name].view.matrix(array), np.stack(parts))
            assert taps == found[name].view.taps or found[name].op.kind == "ConvTranspose"
            assert found[name].reader is not None


@pytest.mark.parametrize(
    "text", ["2:4", "block4x1:0.5", "unstructured:0.6", "kernel:0.5", "g2:4", "fanin:0.5", "taps4"]
)
@pytest.mark.parametrize("data", [True, False])
def test_every_layer_gets_its_pattern_and_the_network_runs(text: str, data: bool) -> None:
    model = zoo()
    before = model.to_proto().SerializeToString(deterministic=True)
    calib = [feeds_for(model, seed, N=4) for seed in range(8)] if data else None
    result = sparsify(model, text, calib=calib)
    facts, proto = result.facts["sparsity"], result.model.to_proto()
    assert {s["weight"]: s["reason"] for s in facts["spared"]} == {
        "w0": "the first layer",
        "w3": "depthwise",
        "w4": "tiny",
        "w8": "tiny",
    } | {n: "no more than 4 taps" for n in ("w2", "w5", "w6", "w7") if text == "taps4"}
    claimed = {layer["weight"]: layer["pattern"] for layer in facts["layers"]}
    assert set(claimed) == ({"w1"} if text == "taps4" else {"w1", "w2", "w5", "w6", "w7"}) and not violations(
        proto, claimed
    )
    arrays = constants(proto)
    for layer in facts["layers"]:
        assert layer["nonzeros"] == np.count_nonzero(arrays[layer["weight"]])
    assert facts["density"] <= pattern_of(text).density + 0.03  # what is rounded up
    onnx.checker.check_model(proto, full_check=True)
    feed = feeds_for(model, 99, N=3)
    assert run(result.model, feed)[0].shape == run(model, feed)[0].shape
    assert model.to_proto().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "dsnot", "sparsegpt", "admm"])
def test_the_refit_is_closer_to_the_dense_network_than_the_mask_alone(criterion: str) -> None:
    model = zoo()
    calib = [feeds_for(model, seed, N=8) for seed in range(8)]
    for layer in sparsify(model, "2:4", calib=calib, criterion=criterion).facts["sparsity"]["layers"]:  # type: ignore[arg-type]
        assert layer["refitted"] < layer["masked"]


def test_rules_override_and_say_what_they_do_not_match() -> None:
    model = zoo()
    result = sparsify(model, "2:4", layers=["w4=1:4", "w0=dense"], dense=["w5"])
    claimed = {layer["weight"]: layer["pattern"] for layer in result.facts["sparsity"]["layers"]}
    assert claimed["w4"] == "1:4" and "w5" not in claimed and not violations(result.model.to_proto(), claimed)
    assert {s["weight"]: s["reason"] for s in result.facts["sparsity"]["spared"]}["w5"] == "asked for"
    with pytest.raises(UsageError, match="matches no layer"):
        sparsify(model, "2:4", dense=["nothing*"])
    with pytest.raises(UsageError, match="needs calibration"):
        sparsify(model, "2:4", criterion="wanda")


def test_shared_weights_weights_in_constants_and_in_functions() -> None:
    rng = rng_of(1)
    text = """
    <ir_version: 8, opset_import: ["" : 18, "f" : 1]>
    agraph (float[N,32] x) => (float[N,32] y) {
      a = MatMul(x, w0)
      b = MatMul(a, shared)
      c = MatMul(b, shared)
      d = f.twice(c)
      e = f.twice(d)
      g = MatMul(e, both)
      t = Transpose(both)
      h = MatMul(g, t)
      y = MatMul(h, w9)
    }
    <domain: "f", opset_import: ["" : 18]>
    twice (x) => (y) { w = Constant<value = float[1,1] {2.0}>() y = Mul(x, w) }
    """
    names = ("w0", "shared", "both", "w9")
    model = parse(text, {n: rng.standard_normal((32, 32)).astype(np.float32) for n in names})
    calib = [feeds_for(model, seed, N=16) for seed in range(4)]
    result = sparsify(model, "2:4", calib=calib)
    facts = result.facts["sparsity"]
    claimed = {layer["weight"]: layer["pattern"] for layer in facts["layers"]}
    assert set(claimed) == {"shared"} and not violations(result.model.to_proto(), claimed)
    old, new = (constants(m.to_proto())["shared"] for m in (model, result.model))
    assert (new[new != 0] == old[new != 0]).all()  # masked, not moved: two nodes read it
    assert {s["weight"]: s["reason"] for s in facts["spared"]}["both"] == "another kind of operator reads it too"
    assert list(result.model.ir.functions) == list(model.ir.functions)


def test_a_twin_has_the_masks_of_another_and_weights_of_its_own() -> None:
    model = zoo()
    calib = [feeds_for(model, seed, N=4) for seed in range(8)]
    first = sparsify(model, "2:4", calib=calib)
    rules = [f"{layer['weight']}={layer['pattern']}" for layer in first.facts["sparsity"]["layers"]]
    twin = sparsify(model, None, calib=calib[:5], layers=rules, like=first.model)
    old, new = (constants(m.to_proto()) for m in (first.model, twin.model))
    for layer in first.facts["sparsity"]["layers"]:
        a, b = old[layer["weight"]], new[layer["weight"]]
        assert ((a == 0) == (b == 0)).all() and (a != b).any()


def test_the_command_thins_out_what_is_kept_and_replays_its_plan(models, tmp_path) -> None:  # type: ignore[no-untyped-def]
    def call(*args: str) -> dict:  # type: ignore[type-arg]
        done = CliRunner().invoke(cli, ["prune", str(models / "digits.onnx"), "--json", *args])
        assert done.exit_code == 0, done.stderr
        return dict(json.loads(done.stdout))

    out, plan, again = (str(tmp_path / n) for n in ("a.onnx", "plan.json", "b.onnx"))
    document = call("-o", out, "--ratio", "0.25", "--sparsity", "2:4", "--plan", plan)
    sparsity = json.loads((tmp_path / "plan.json").read_text())["sparsity"]
    assert len(sparsity) == len(document["sparsity"]["layers"]) >= 4
    assert not violations(onnx.load(out), sparsity)
    assert document["pruned_groups"] == 4 and document["verified"]["ok"]
    assert call("-o", again, "--apply-plan", plan)["sparsity"]["density"] == document["sparsity"]["density"]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_command_gives_layers_patterns_of_their_own(models, tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = [x.name for x in layers(spa.analyze(spa.load(models / "digits.onnx")))]
    plan, out = tmp_path / "plan.json", tmp_path / "a.onnx"
    rules = (
        "--layers",
        f"{names[1]}=taps4",
        "--layers",
        f"{names[2]}=1:4",
        "--layers",
        f"{names[-1]}=unstructured:0.3",
    )
    for more in ((), ("--sparsity", "2:4")):
        call = ["prune", str(models / "digits.onnx"), "-o", str(out), "--plan", str(plan), "--force", *rules, *more]
        done = CliRunner().invoke(cli, call)
        assert done.exit_code == 0, done.output
        claimed = json.loads(plan.read_text())["sparsity"]
        own = {names[1]: "taps4", names[2]: "1:4", names[-1]: "unstructured:0.3"}
        assert own.items() <= claimed.items() and not violations(onnx.load(out), claimed)
        assert {p for n, p in claimed.items() if n not in own} == ({"2:4"} if more else set())


def test_half_of_the_weights_cost_no_accuracy_where_magnitude_costs_some(models) -> None:  # type: ignore[no-untyped-def]
    model, data = spa.load(models / "digits.onnx"), np.load(models / "digits.npz")
    calib = spa.calibration.load({"x": data["calib_x"]}, model)

    def accuracy(m: Model) -> float:
        return float((run(m, {"x": data["test_x"]})[0].argmax(1) == data["test_y"]).mean())

    by_data = accuracy(sparsify(model, "unstructured:0.85", calib=calib, distribution="uniform").model)
    plain = accuracy(sparsify(model, "unstructured:0.85").model)
    assert by_data > 0.97 and by_data > plain
