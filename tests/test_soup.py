"""Averages of networks: numbers against numpy's, refusals, and the greedy recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import feeds_for, ops, parse, run

from spa.errors import ModelError, UsageError
from spa.model import Model
from spa.passes.soup import Soup, average, greedy
from spa.pipeline import Pipeline

TEXT = """agraph (float[N,3,4,4] x) => (float[N,2] y) {
  c = Conv(x, w, b)
  n = BatchNormalization(c, gamma, beta, mean, var)
  e = Constant<value = float {0.125}>()
  s = Mul(n, e)
  m = GlobalAveragePool(s)
  shape = Constant<value = int64[2] {0, 5}>()
  f = Reshape(m, shape)
  y = MatMul(f, head)
}"""
SHAPES = {"w": (5, 3, 3, 3), "b": (5,), "gamma": (5,), "beta": (5,), "mean": (5,), "var": (5,), "head": (5, 2)}


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (rng.random(s) + 0.5).astype(np.float32) for n, s in SHAPES.items()}


def network(seed: int = 0, text: str = TEXT, **other: np.ndarray) -> Model:
    return parse(text, {**weights(seed), **other})


def stored(model: Model) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.to_proto().graph.initializer}


@pytest.mark.parametrize("shares", [(), (1.0, 2.0, 5.0), (0.0, 1.0, 0.0)])
def test_every_weight_and_statistic_is_the_mean(shares: tuple[float, ...], tmp_path: Path) -> None:
    models = [network(k) for k in range(3)]
    paths = [models[k].save(tmp_path / f"{k}.onnx") for k in (1, 2)]
    text = f"soup{{models=[{paths[0]},{paths[1]}]" + (f",weights={list(shares)}}}" if shares else "}")
    before = models[0].to_proto().SerializeToString(deterministic=True)
    pipeline = Pipeline.parse(text.replace(" ", ""))
    assert Pipeline.parse(str(pipeline)) == pipeline
    found = pipeline.run(models[0]).model
    assert ops(found) == ops(models[0])
    onnx.checker.check_model(found.to_proto(), full_check=True)
    assert models[0].to_proto().SerializeToString(deterministic=True) == before
    for name, array in stored(found).items():
        parts = np.stack([weights(k)[name].astype(np.float64) for k in range(3)])
        expected = np.average(parts, axis=0, weights=shares or None)
        np.testing.assert_allclose(array, expected, rtol=1e-7)
        assert array.dtype == np.float32
    feeds = feeds_for(found)
    (y,) = run(found, feeds)
    assert y.shape == (2, 2)
    # the last layer alone is linear: there a soup is the mean of the outputs
    heads = [network(0, head=weights(k)["head"]) for k in range(3)]
    (mixed,) = run(average(heads, shares), feeds)
    each = np.stack([run(m, feeds)[0] for m in heads])
    np.testing.assert_allclose(mixed, np.average(each, axis=0, weights=shares or None), rtol=1e-4, atol=1e-5)


def test_a_soup_of_one_kind_is_that_kind() -> None:
    same = average([network(1), network(1), network(1)])
    assert same.to_proto().SerializeToString(deterministic=True) == network(1).to_proto().SerializeToString(
        deterministic=True
    )


def test_half_precision_keeps_its_type_and_is_summed_in_double() -> None:
    text = "agraph (float16[N,2] x) => (float16[N,2] y) { y = Mul(x, w) }"
    values = [[1.0, 2048.0], [1.0, 1.0], [1.0, 1.0]]
    models = [parse(text, {"w": np.array(v, np.float16)}) for v in values]
    found = stored(average(models))["w"]
    assert found.dtype == np.float16
    assert found.tolist() == np.mean(values, axis=0).astype(np.float16).tolist()


REFUSED: dict[str, tuple[Callable[[], Model], str]] = {
    "operator": (lambda: network(1, TEXT.replace("Mul(n, e)", "Add(n, e)")), "differ in operator"),
    "attribute": (lambda: network(1, TEXT.replace("(c, gamma", "<epsilon = 0.1>(c, gamma")), "differ in operator"),
    "wiring": (lambda: network(1, TEXT.replace("Mul(n, e)", "Mul(c, e)")), "differ in operator"),
    "nodes": (lambda: network(1, TEXT.replace("s = Mul(n, e)", "r = Mul(n, e) s = Relu(r)")), "nodes"),
    "shape": (lambda: network(1, head=np.ones((5, 2, 1), np.float32)[:, :, 0].repeat(2, 1)[:, :3]), "'head'"),
    "type": (lambda: network(1, w=weights(1)["w"].astype(np.float64)), "'w'"),
    "integers": (lambda: network(1, TEXT.replace("{0, 5}", "{-1, 5}")), "'shape'"),
    "names": (lambda: parse(TEXT.replace("head", "tail"), {("tail" if n == "head" else n): a for n, a in weights(1).items()}), "differ in operator|constants"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_different_networks_make_no_soup(case: str) -> None:
    make, why = REFUSED[case]
    try:
        other = make()
    except onnx.checker.ValidationError:
        pytest.fail("the other network must be valid by itself")
    with pytest.raises(UsageError, match=why):
        average([network(0), other])


def test_options_are_checked() -> None:
    for text in (
        "soup{models=[]}",
        "soup{models=[a.onnx],weights=[1]}",
        "soup{models=[a.onnx],weights=[1,-1]}",
        "soup",
    ):
        with pytest.raises(UsageError):
            Pipeline.parse(text)
    with pytest.raises(ModelError):
        Soup(("nowhere.onnx",)).run(network())
    with pytest.raises(UsageError):
        average([])


def test_the_greedy_soup_keeps_what_helps() -> None:
    """Distance to a hidden target: two that lie on either side of it help, one far away does not."""
    text = "agraph (float[N,2] x) => (float[N,2] y) { y = Mul(x, w) }"
    points = [[0.0, 1.4], [9.0, 9.0], [-3.0, 0.0], [2.0, 2.2]]
    models = [parse(text, {"w": np.array(p, np.float32)}) for p in points]

    def closeness(model: Model) -> float:
        return -float(np.linalg.norm(stored(model)["w"] - 1))

    soup, kept = greedy(models, closeness)
    assert kept == [0, 3] and closeness(soup) > max(map(closeness, models))
    np.testing.assert_allclose(stored(soup)["w"], [1.0, 1.8])
    assert greedy(models[1:2], closeness)[1] == [0]
