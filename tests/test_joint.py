"""One budget over channels and patterns: the choice against all choices, the cost against the network that comes out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from check_patterns import constants, violations
from click.testing import CliRunner
from onnx_text import parse

import spa
from spa.calibration import load
from spa.cli import cli
from spa.cost import Budget, inspect
from spa.cost_table import CostTable
from spa.errors import CheckFailed, UsageError
from spa.knapsack import Costs, Curve, Options, choose
from spa.sparsity.layers import layers
from spa.sparsity.patterns import parse as pattern_of
from spa.sparsity.speed import LINES, form, lines_for

ROOT = Path(__file__).parent.parent


def mlp(seed: int = 0) -> spa.Model:
    rng = np.random.default_rng(seed)
    text = """agraph (float[1,8] x) => (float[1,4] y) {
      a = Gemm(x, w0, b0)
      r = Relu(a)
      b = Gemm(r, w1, b1)
      s = Relu(b)
      y = Gemm(s, w2, b2)
    }"""
    shapes = {"w0": (8, 12), "b0": (12,), "w1": (12, 10), "b1": (10,), "w2": (10, 4), "b2": (4,)}
    return parse(text, {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


@pytest.fixture(scope="module")
def digits() -> tuple[spa.Model, list[dict[str, np.ndarray]]]:
    data = np.load(ROOT / "models" / "digits.npz")
    name = next(k for k in data.files if data[k].ndim > 1)
    model = spa.load(ROOT / "models" / "digits.onnx")
    inputs = np.asarray(data[name], np.float32)[:128]
    return model, load({model.ir.graph.inputs[0].name: inputs}, model)


def test_a_share_of_a_layer_counts_for_its_multiplications_and_its_weights() -> None:
    coupling = spa.analyze(mlp())
    budget = Budget(coupling)
    (w1,) = (v for v, name in coupling.constants.items() if name == "w1")
    assert budget.of("macs", {}) - budget.of("macs", {}, {w1: 0.25}) == 0.75 * 12 * 10
    assert budget.of("params", {}) - budget.of("params", {}, {w1: 0.25}) == 0.75 * 12 * 10
    table = CostTable.load({"Gemm": {"macs": [0, 1000], "cost": [5, 1005]}})
    # a layer costs 5 + macs; a thin one a share of that
    assert budget.of(table, {}) - budget.of(table, {}, {w1: 0.25}) == pytest.approx(0.75 * (5 + 120))


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_nearly_the_best_of_all_and_keeps_to_the_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coupling = spa.analyze(mlp())
    groups = [
        Curve(g.id, list(range(g.size)), [0, g.size // 3, g.size // 2], [0.0, *np.sort(rng.random(2)).tolist()])
        for g in coupling.groups
    ]
    weights = [v for v, name in coupling.constants.items() if name in ("w0", "w1", "w2")]
    options = [Options(w, [1.0, 0.6, 0.2], [0.0, *np.sort(rng.random(2)).tolist()]) for w in weights]
    costs = Costs(coupling, groups, options, "macs")
    whole = costs.of([0] * 5)
    for share in (0.25, 0.5, 0.75):
        found = choose(coupling, groups, "macs", share * whole, options)
        assert found is not None and costs.of(found) <= share * whole

        def error(levels: object) -> float:
            return sum(e[n] for e, n in zip(costs.errors, levels, strict=True))  # type: ignore[call-overload]

        every = itertools.product(range(3), repeat=5)
        best = min(error(levels) for levels in every if costs.of(levels) <= share * whole)
        assert error(found) <= 1.2 * best + 1e-9


def test_of_several_targets_the_slowest_counts_and_no_line_promises_more_than_dense() -> None:
    both = lines_for(["host", "wasm"])
    assert both.keys() == {"unstructured", "block4x1"}
    for name, density in itertools.product(both, np.linspace(0, 1, 21)):
        one, two = (LINES[t][name].at(density) for t in ("host", "wasm"))
        assert both[name].at(density) >= max(one, two) - 1e-9
        assert both[name].at(density) <= 1
    assert lines_for(["cuda", "wasm"]) == {}


@pytest.mark.parametrize("targets", [(), ("wasm",)])
def test_a_plan_costs_on_the_network_what_it_was_allowed(
    digits: tuple[spa.Model, list[dict[str, np.ndarray]]], targets: tuple[str, ...]
) -> None:
    model, feeds = digits
    result = spa.prune(model, calib=feeds, macs=0.3, sparsity="auto", targets=targets)
    plan = result.plan
    assert plan is not None and plan.sparsity
    assert result.facts["sparsity"]["effective_macs"] <= 0.3 * inspect(model).macs * 1.01
    by_node = {layer.name: layer.macs for layer in inspect(result.model).layers}
    lines, cost = lines_for(targets), float(sum(by_node.values()))
    for layer in layers(spa.analyze(result.model)):
        if layer.name in plan.sparsity:
            pattern = pattern_of(plan.sparsity[layer.name])
            cost -= by_node[layer.node] * (1 - lines[form(pattern)].at(pattern.density))
    assert cost <= 0.3 * inspect(model).macs * 1.01
    thin = {k: v for k, v in constants(result.model.to_proto()).items() if k in plan.sparsity}
    assert thin and all((a == 0).mean() > 0.05 for a in thin.values())


def test_what_stays_dense_and_what_is_refused(digits: tuple[spa.Model, list[dict[str, np.ndarray]]]) -> None:
    model, feeds = digits
    names = spa.plan(model, calib=feeds, macs=0.4, sparsity="auto").sparsity
    first = next(iter(names))
    assert first not in spa.plan(model, calib=feeds, macs=0.4, sparsity="auto", dense=[first]).sparsity
    with pytest.raises(UsageError, match="names channels only"):
        spa.plan(model, calib=feeds, ratio=0.5, sparsity="auto")
    with pytest.raises(UsageError, match="no pattern is fast on all"):
        spa.plan(model, calib=feeds, macs=0.5, sparsity="auto", targets=("cuda", "wasm"))
    with pytest.raises(UsageError, match="calib"):
        spa.plan(model, macs=0.5, sparsity="auto")
    with pytest.raises(CheckFailed, match="cannot be met"):
        spa.plan(model, calib=feeds, macs=1e-4, sparsity="auto")


def test_lines_of_a_cost_table(digits: tuple[spa.Model, list[dict[str, np.ndarray]]]) -> None:
    model, feeds = digits
    table = {
        "*": {"elements": [0, 1000], "cost": [1, 2]},
        "Conv": {"macs": [0, 1e6], "cost": [1, 1000]},
        "Gemm": {"macs": [0, 1e6], "cost": [1, 1000]},
        "thin": {"block2x1": {"density": [0.1, 0.5], "share": [0.1, 0.5]}},
    }
    plan = spa.plan(model, calib=feeds, latency=0.5, cost_table=table, sparsity="auto")
    assert plan.sparsity and {p.partition(":")[0] for p in plan.sparsity.values()} == {"block2x1"}
    for wrong in ({"what": {}}, {"block4x1": {"density": [0.5, 0.1], "share": [1, 1]}}, {"block4x1": {}}, []):
        with pytest.raises(UsageError):
            CostTable.load({**table, "thin": wrong})


def test_on_the_command_line_written_checked_and_replayed(tmp_path: Path) -> None:
    model, data = ROOT / "models" / "digits.onnx", ROOT / "models" / "digits.npz"
    out, plan, again = tmp_path / "o.onnx", tmp_path / "p.json", tmp_path / "again.onnx"
    common = ["--calib", str(data), "--json"]
    args = ["prune", str(model), "-o", str(out), "--macs", "0.4", "--sparsity", "auto", "--plan", str(plan), *common]
    ran = CliRunner().invoke(cli, args)
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    thin = json.loads(plan.read_text())["sparsity"]
    assert thin == {layer["weight"]: layer["pattern"] for layer in document["sparsity"]["layers"]}
    assert not violations(onnx.load(out), thin)
    ran = CliRunner().invoke(cli, ["prune", str(model), "-o", str(again), "--apply-plan", str(plan), *common])
    assert ran.exit_code == 0, ran.output
    assert again.read_bytes() == out.read_bytes()


def test_without_a_budget_as_much_goes_as_the_drift_allows(
    digits: tuple[spa.Model, list[dict[str, np.ndarray]]],
) -> None:
    model, feeds = digits
    result = spa.prune(model, calib=feeds[:4], max_drift=0.3, sparsity="auto")
    assert result.plan is not None and result.plan.sparsity
    assert result.facts["drift"]["value"] <= 0.3
    zeros = [np.mean(a == 0) for n, a in constants(result.model.to_proto()).items() if n in result.plan.sparsity]
    assert max(zeros) > 0.2
