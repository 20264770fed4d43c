"""Allocation: sequences against a plain loop, budgets against the pruned network's own cost, classes, cost tables."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fuzz_graphs import network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_text import parse

import spa
from spa.allocate import Offers, by_cost, by_ratio, chosen, offers, protected
from spa.cli.prune import prune as prune_command
from spa.cost import Budget
from spa.cost_table import CostTable
from spa.coupling import Coupling
from spa.errors import CheckFailed, UsageError
from spa.importance.scores import scores
from spa.isomorphism import classes
from spa.model import Model
from spa.planning import from_masks

SEEDS = st.integers(0, 199)


def coupling_of(seed: int) -> Coupling:
    return spa.analyze(spa.load(network(seed)))


def chunks(sequence: Offers) -> list[tuple[str, list[int]]]:
    return [
        (sequence.groups[g].id, sequence.channels[s : s + w].tolist())
        for g, s, w in zip(sequence.group, sequence.starts, sequence.width, strict=True)
    ]


def by_hand(coupling: Coupling, found: dict[str, np.ndarray], scope: str, align: int) -> list[tuple[str, list[int]]]:
    """One channel after the other, class by class."""
    numbers = dict(zip([g.id for g in coupling.groups], classes(coupling, coupling.groups), strict=True))
    kinds = {
        g.id: g.id if scope == "local" else numbers[g.id] if scope == "isomorphic" else "" for g in coupling.groups
    }
    rows: dict[Any, list[Any]] = {}
    for number, group in enumerate(coupling.groups):
        score = found[group.id]
        keep = protected(group, score)
        order = [c for c in sorted(range(group.size), key=lambda c: (score[c], c)) if c not in keep]
        step = align if group.size >= 4 * align else 1
        at, first = 0, group.size % step or step
        while at + (take := first if at == 0 else step) <= len(order):
            some = order[at : at + take]
            rows.setdefault(kinds[group.id], []).append((score[some[-1]], number, at, group.id, some))
            at += take
    out = []
    for kind, listed in rows.items():
        total = sum(g.size for g in coupling.groups if kinds[g.id] == kind)
        taken = 0
        for _, number, at, name, some in sorted(listed, key=lambda r: r[:3]):
            taken += len(some)
            out.append((taken / total, number, at, name, some))
    return [(name, some) for _, _, _, name, some in sorted(out, key=lambda r: r[:3])]


@settings(max_examples=30)
@given(SEEDS, st.sampled_from(["local", "global", "isomorphic", "lamp"]), st.sampled_from([1, 2, 4]))
def test_the_sequence_is_that_of_a_plain_loop(seed: int, scope: str, align: int) -> None:
    coupling = coupling_of(seed)
    found = scores(coupling, "l2", normalise="lamp" if scope == "lamp" else None)
    assert chunks(offers(coupling, coupling.groups, found, scope, align)) == by_hand(coupling, found, scope, align)


@settings(max_examples=20)
@given(SEEDS, st.floats(0, 0.95), st.sampled_from(["local", "global", "isomorphic"]))
def test_a_ratio_is_met_to_the_nearest_channel_in_every_class(seed: int, ratio: float, scope: str) -> None:
    coupling = coupling_of(seed)
    sequence = offers(coupling, coupling.groups, scores(coupling), scope)
    taken = by_ratio(sequence, ratio)
    for kind, total in enumerate(sequence.totals):
        removed = int(taken.width[taken.kind == kind].sum())
        most = int(sequence.width[sequence.kind == kind].sum())
        assert removed == min(most, int(ratio * total + 0.5))


@settings(max_examples=30)
@given(SEEDS, st.floats(0.2, 1.0), st.sampled_from(["macs", "params", "bytes"]), st.sampled_from(["local", "global"]))
def test_a_budget_is_met_and_one_chunk_less_would_not_do(seed: int, share: float, kind: str, scope: str) -> None:
    coupling = coupling_of(seed)
    budget = Budget(coupling)
    limit = share * budget.of(kind, {})
    sequence = offers(coupling, coupling.groups, scores(coupling), scope)

    def total(taken: Offers) -> float:
        return budget.of(kind, coupling.removal(chosen(coupling, taken)))

    try:
        taken = by_cost(coupling, sequence, kind, limit)
    except CheckFailed as error:
        assert total(sequence) > limit
        assert "cannot be met" in error.what
        return
    assert total(taken) <= limit
    if len(taken):
        assert total(sequence.first(len(taken) - 1)) > limit


@settings(max_examples=20)
@given(SEEDS, st.floats(0.1, 0.6))
def test_what_is_counted_is_what_the_pruned_network_costs(seed: int, ratio: float) -> None:
    model = spa.load(network(seed))
    coupling = spa.analyze(model)
    masks = chosen(coupling, by_ratio(offers(coupling, coupling.groups, scores(coupling), "local"), ratio))
    gone = coupling.removal(masks)
    budget, before = Budget(coupling), model.inspect()
    cut = spa.apply(model, from_masks(coupling, masks)).model
    assume(len(list(cut.ir.graph.all_nodes())) == len(coupling.ops))  # branches that nothing reads fall away
    after = cut.inspect()
    assert budget.of("macs", {}) == before.macs
    assert budget.of("macs", gone) == after.macs
    assert budget.of("params", {}) - budget.of("params", gone) == before.params - after.params


# Isomorphic classes ----------------------------------------------------------------------------------------------


def residual(widths: list[int], blocks: int, kernel: int = 3) -> Model:
    """A stem and stages of basic blocks; between stages a convolution with stride 2. The last trunk is read by a Gemm."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def conv(x: str, name: str, out: int, into: int, k: int, stride: int = 1) -> str:
        weights[f"w_{name}"] = rng.standard_normal((out, into, k, k)).astype(np.float32)
        p = k // 2
        lines.append(f"{name} = Conv<pads=[{p},{p},{p},{p}], strides=[{stride},{stride}]>({x}, w_{name})")
        return name

    lines: list[str] = []
    x = conv("x", "stem", widths[0], 3, 3)
    for s, width in enumerate(widths):
        if s:
            x = conv(x, f"down{s}", width, widths[s - 1], 1, 2)
        for b in range(blocks):
            h = conv(x, f"s{s}b{b}first", width, width, kernel)
            lines.append(f"{h}_r = Relu({h})")
            y = conv(f"{h}_r", f"s{s}b{b}second", width, width, 3)
            x = f"s{s}b{b}sum"
            lines.append(
                f"{x} = Add({y}, {'stem' if (s, b) == (0, 0) else f'down{s}' if b == 0 else f's{s}b{b - 1}sum'})"
            )
    weights["w_head"] = rng.standard_normal((widths[-1], 4)).astype(np.float32)
    lines += [f"p = GlobalAveragePool({x})", "f = Flatten(p)", "y = MatMul(f, w_head)"]
    return parse("agraph (float[N,3,16,16] x) => (float[N,4] y) {\n" + "\n".join(lines) + "\n}", weights)


def class_of(model: Model) -> dict[str, int]:
    coupling = spa.analyze(model)
    return dict(zip([g.id for g in coupling.groups], classes(coupling, coupling.groups), strict=True))


def test_equal_blocks_are_one_class_and_trunks_others() -> None:
    found = class_of(residual([8, 16, 32], 2))
    inner = {found[f"w_s{s}b{b}first:0"] for s, b in itertools.product(range(3), range(2))}
    trunks = [found[n] for n in ("w_stem:0", "w_down1:0", "w_down2:0")]
    assert len(inner) == 1
    assert not inner & set(trunks)
    assert len(set(trunks)) == 3  # the first is written by what reads the picture, the last is read by the head


def test_windows_and_operators_between_tell_groups_apart() -> None:
    one, three = class_of(residual([8], 2, kernel=1)), class_of(residual([8], 2, kernel=3))
    assert one["w_s0b0first:0"] == one["w_s0b1first:0"] and three["w_s0b0first:0"] == three["w_s0b1first:0"]
    rng = np.random.default_rng(0)
    shapes = {"a0": (8, 3, 3, 3), "a1": (8, 8, 1, 1), "a2": (8, 8, 3, 3), "a3": (8, 8, 3, 3), "a4": (8, 8, 3, 3), "d": (8, 1, 3, 3)}  # fmt: skip
    text = """agraph (float[N,3,9,9] x) => (float[N,8,1,1] y) {
      t0 = Conv(x, a0) r0 = Relu(t0)
      t1 = Conv(r0, a1) r1 = Sigmoid(t1)
      t2 = Conv(r1, a2) r2 = Relu(t2)
      t3 = Conv(r2, a3) r3 = Relu(t3)
      t4 = Conv<group=8, pads=[1,1,1,1]>(r3, d)
      y = Conv(t4, a4) }"""
    model = parse(text, {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})
    assert len(set(class_of(model).values())) == 4


def test_isomorphic_takes_the_same_share_of_every_class() -> None:
    model = residual([8, 16], 3)
    coupling = spa.analyze(model)
    plan = spa.plan(model, ratio=0.5, scope="isomorphic")
    removed: dict[int, list[int]] = {}
    kinds = dict(zip([g.id for g in coupling.groups], classes(coupling, coupling.groups), strict=True))
    for g in plan.groups:
        row = removed.setdefault(kinds[g["id"]], [0, 0])
        row[0] += len(g["removed"])
        row[1] += g["size"]
    assert all(gone == total // 2 for gone, total in removed.values())
    shares = {g["id"]: len(g["removed"]) / g["size"] for g in plan.groups if "first" in g["id"]}
    assert len(set(shares.values())) > 1  # within the class by score, not one by one


def test_lamp_scope_is_a_global_ranking_of_lamp_scores() -> None:
    model = residual([8, 16], 2)
    assert (
        spa.plan(model, macs=0.6, scope="lamp").removed
        == spa.plan(model, macs=0.6, scope="global", criterion="lamp").removed
    )


def test_the_same_call_gives_the_same_plan() -> None:
    model = residual([8, 16], 2)
    for options in ({"scope": "isomorphic"}, {"scope": "lamp"}, {"criterion": "random", "seed": 3}):
        first, again = (spa.plan(model, macs=0.6, **options) for _ in range(2))  # type: ignore[arg-type]
        assert first.to_json() == again.to_json()


# Cost tables -----------------------------------------------------------------------------------------------------

TABLE = """
unit = "us"
[Conv]
macs = [0, 1000, 100000]
cost = [4, 10, 400]
["Conv depthwise"]
macs = [0, 1000]
cost = [2, 30]
["*"]
elements = [0, 1000]
cost = [1, 3]
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path / "table.toml"


@settings(max_examples=15)
@given(SEEDS, st.floats(0, 0.6))
def test_costs_are_those_of_the_pruned_networks_layers(seed: int, ratio: float) -> None:
    """Every layer of the network that is left, looked up one by one."""
    found = CostTable.load(tomllib.loads(TABLE))
    coupling = coupling_of(seed)
    masks = chosen(coupling, by_ratio(offers(coupling, coupling.groups, scores(coupling), "local"), ratio))
    cut = spa.analyze(spa.apply(coupling.model, from_masks(coupling, masks)).model)
    assume(len(cut.ops) == len(coupling.ops))  # branches that nothing reads fall away
    macs = {layer.name: layer.macs for layer in cut.model.inspect().layers}
    expected = 0.0
    for op in cut.ops:
        if all(v in cut.shapes.known for v in op.outputs):
            continue
        if op.kind == "Conv":
            depthwise = op.attr("group", 1) > 1 and op.shape(op.inputs[1])[1] == 1
            row = found.rows["Conv depthwise" if depthwise else "Conv"]
            amount = macs[op.node.name or ""]
        else:
            row, amount = found.rows["*"], int(np.prod(op.shape(op.out)))
        slope = (row.cost[-1] - row.cost[-2]) / (row.at[-1] - row.at[-2])
        expected += np.interp(amount, row.at, row.cost) + slope * max(0.0, amount - row.at[-1])
    assert Budget(coupling).of(found, coupling.removal(masks)) == pytest.approx(expected)


def test_latency_as_a_budget(table: Path, models: Path, tmp_path: Path) -> None:
    model = spa.load(models / "digits.onnx")
    coupling = spa.analyze(model)
    costs, budget = CostTable.load(table), Budget(coupling)
    plan = spa.plan(model, coupling, latency=0.6, cost_table=table)
    masks = {g["id"]: np.isin(np.arange(g["size"]), g["removed"]) for g in plan.groups}
    share = budget.of(costs, coupling.removal(masks)) / budget.of(costs, {})
    assert 0.5 < share <= 0.6
    out = tmp_path / "out.onnx"
    line = [str(models / "digits.onnx"), "-o", str(out), "--latency", "0.6", "--cost-table", str(table)]
    done = CliRunner().invoke(prune_command, [*line, "--plan", str(tmp_path / "plan.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "plan.json").read_text())["removed"] == plan.removed
    with pytest.raises(CheckFailed, match="cannot be met"):
        spa.plan(model, coupling, latency=0.001, cost_table=table)
    with pytest.raises(UsageError, match="belong together"):
        spa.plan(model, coupling, latency=0.5)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({}, "cost table"),
        ({"Conv": {"macs": [0, 1]}}, "[Conv]"),
        ({"Conv": {"macs": [0, 1], "elements": [0, 1], "cost": [1, 2]}}, "[Conv]"),
        ({"Conv": {"macs": [1, 0], "cost": [1, 2]}}, "[Conv]"),
        ({"Conv": {"macs": [0, 1], "cost": [1]}}, "[Conv]"),
        ({"Conv": {"macs": ["a", "b"], "cost": [1, 2]}}, "[Conv]"),
        ({"Conv": 3}, "[Conv]"),
    ],
)
def test_wrong_tables_are_named(data: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        CostTable.load(data)
    assert where in caught.value.where
    path = tmp_path / "table.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError) as again:
        CostTable.load(path)
    assert again.value.what == caught.value.what


def test_a_table_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[Conv")
    for name in ("bad.toml", "missing.toml"):
        with pytest.raises(UsageError, match="cannot read the cost table"):
            CostTable.load(tmp_path / name)
