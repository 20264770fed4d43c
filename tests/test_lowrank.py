"""Low rank: two layers compute what the best product does, and cost less; corrections give back what masks took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_text
import pytest
from onnx import numpy_helper

from spa.cost import inspect
from spa.errors import CheckFailed, UsageError
from spa.model import Model
from spa.passes.lowrank import correct, directions, factor
from spa.passes.sparsify import sparsify
from spa.pipeline import Pipeline
from spa.sparsity.thinning import workbench

RNG = np.random.default_rng(0)


def low(rows: int, cols: int, rank: int, noise: float = 0.0) -> np.ndarray:
    w = RNG.standard_normal((rows, rank)) @ RNG.standard_normal((rank, cols)) / np.sqrt(cols * rank)
    return np.asarray(w + noise * RNG.standard_normal((rows, cols)) / np.sqrt(cols), np.float32)


def net(rank: int = 3, noise: float = 0.0) -> Model:
    """3x3, 1x1, Gemm both ways round, MatMul with an Add: all of this rank, up to noise."""
    weights = {
        "a": low(24, 8 * 9, rank, noise).reshape(24, 8, 3, 3),
        "ab": RNG.standard_normal(24).astype(np.float32),
        "b": low(20, 24, rank, noise).reshape(20, 24, 1, 1),
        "c": low(32, 320, rank, noise),
        "cb": RNG.standard_normal(32).astype(np.float32),
        "d": low(16, 32, rank, noise).T.copy(),
        "e": low(32, 16, rank, noise).T.copy(),
        "eb": RNG.standard_normal(32).astype(np.float32),
    }
    return onnx_text.parse(
        """net (float[N,8,8,8] x) => (float[N,32] y) {
            h = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x, a, ab)
            r = Relu(h)
            s = Conv(r, b)
            f = Flatten(s)
            g = Gemm<transB=1>(f, c, cb)
            t = Gemm(g, d)
            m = MatMul(t, e)
            y = Add(m, eb)
        }""",
        weights,
    )


def calib(model: Model, n: int = 24) -> list[dict[str, np.ndarray]]:
    return [onnx_text.feeds_for(model, seed=s, N=4) for s in range(n)]


@pytest.mark.parametrize("data", [False, True])
def test_what_has_low_rank_is_kept_exactly(data: bool) -> None:
    model = net(rank=3)
    result = factor(model, calib=calib(model) if data else None, rank=3)
    assert onnx_text.ops(result.model).count("Conv") == 4
    assert onnx_text.ops(result.model).count("Gemm") == 4
    assert onnx_text.ops(result.model).count("MatMul") == 2
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    feeds = onnx_text.feeds_for(model, seed=99, N=3)
    for a, b in zip(onnx_text.run(model, feeds), onnx_text.run(result.model, feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * float(np.abs(a).max()))
    assert result.model.inspect().macs < model.inspect().macs
    assert result.model.inspect().params < model.inspect().params


def test_the_input_stays_and_facts_count_what_inspect_counts() -> None:
    model = net()
    before = model.to_proto().SerializeToString(deterministic=True)
    result = factor(model, rank=2)
    assert model.to_proto().SerializeToString(deterministic=True) == before
    saved = sum(f["macs"] - f["macs_after"] for f in result.facts["lowrank"])
    sizes = workbench(model).shapes.sizes
    assert saved == inspect(model, sizes).macs - inspect(result.model, sizes).macs


def test_directions_lose_no_more_than_any_other_product() -> None:
    """Against numpy: the weighted singular values, and products of the same rank drawn at random or cut without weights."""
    w, x = RNG.standard_normal((6, 9)), RNG.standard_normal((9, 400)) * RNG.lognormal(0, 1, (9, 1))
    moment = x @ x.T / 400
    u, lost = directions(w, moment)
    values = np.linalg.svd(w @ np.linalg.cholesky(moment), compute_uv=False) ** 2
    np.testing.assert_allclose(lost, 1 - np.concatenate([[0], np.cumsum(values)]) / values.sum(), atol=1e-9)
    total = ((w @ x) ** 2).mean()
    ours = (((w - u[:, :2] @ u[:, :2].T @ w) @ x) ** 2).mean() / total
    assert ours == pytest.approx(float(lost[2]), rel=1e-6)
    a, s, b = np.linalg.svd(w)
    plain = a[:, :2] * s[:2] @ b[:2]
    assert ours <= (((w - plain) @ x) ** 2).mean() / total


def test_energy_takes_the_least_rank_that_keeps_it() -> None:
    model = net(rank=4, noise=0.05)
    few, many = (factor(model, calib=calib(model), energy=e).facts["lowrank"] for e in (0.8, 0.99))
    ranks = {f["weight"]: f["rank"] for f in few}
    assert all(f["error"] <= 0.2 + 0.05 for f in few)
    assert all(f["rank"] >= ranks.get(f["weight"], 0) for f in many)


def test_macs_is_a_budget() -> None:
    model = net(rank=4, noise=0.3)
    before = model.inspect().macs
    result = factor(model, calib=calib(model), macs=0.6)
    assert result.model.inspect().macs <= 0.6 * before
    with pytest.raises(CheckFailed, match="at least"):
        factor(model, macs=0.001)


def test_bias_takes_up_the_means() -> None:
    """Inputs far from zero: with the mean in the bias, the first output's mean is what it was."""
    model = net(rank=8, noise=1.0)
    feeds = [{"x": f["x"] + 5} for f in calib(model)]
    result = factor(model, calib=feeds, rank=2)
    y, z = (np.concatenate([onnx_text.run(m, f)[0] for f in feeds]) for m in (model, result.model))
    assert np.abs(y.mean(0) - z.mean(0)).max() < 0.2 * np.abs(y.mean(0)).max()


def test_a_correction_gives_back_what_a_mask_took() -> None:
    model = net(rank=8, noise=0.5)
    feeds = calib(model)
    thin = sparsify(model, "2:4", layers=["*=2:4"], calib=feeds, refit=False).model

    def error(other: Model) -> float:
        f = onnx_text.feeds_for(model, seed=77, N=16)
        y, z = onnx_text.run(model, f)[0], onnx_text.run(other, f)[0]
        return float(((y - z) ** 2).mean() / y.var())

    errors = [error(correct(thin, model, calib=feeds, rank=r).model) for r in (1, 4, 64)]
    assert error(thin) > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5
    weights = {
        t.name: numpy_helper.to_array(t) for t in correct(thin, model, rank=2).model.to_proto().graph.initializer
    }
    for t in thin.to_proto().graph.initializer:
        assert np.array_equal(weights[t.name], numpy_helper.to_array(t)), "the sparse weights stay as they are"


def test_as_a_pass(tmp_path: Path) -> None:
    model = net()
    path = model.save(tmp_path / "dense.onnx")
    thin = sparsify(model, "2:4", layers=["*=2:4"]).model
    result = Pipeline.parse(f'lowrank{{rank=2,correct="{path}"}}').run(thin)
    assert onnx_text.ops(result.model).count("Add") > onnx_text.ops(thin).count("Add")
    assert [v.name for v in result.model.ir.graph.outputs] == ["y"]
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    for text in ("lowrank", "lowrank{rank=2,macs=0.5}", "lowrank{energy=1.5}", "lowrank{macs=0.5,correct=a.onnx}"):
        with pytest.raises(UsageError):
            Pipeline.parse(text)


def test_an_old_gemm_keeps_its_bias() -> None:
    weights = {"w": low(16, 12, 2).T.copy(), "b": np.ones(16, np.float32)}
    model = onnx_text.parse("net (float[N,12] x) => (float[N,16] y) { y = Gemm(x, w, b) }", weights, opset=9)
    onnx_text.check_rewrite(Pipeline.parse("lowrank{rank=2}").passes[0], model, ["Gemm", "Gemm"], rtol=1e-3, atol=1e-4)
