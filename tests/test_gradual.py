"""Schedules, and plans made one upon the other."""

from __future__ import annotations

import numpy as np
import pytest
from few_ops import draw_masks
from fuzz_graphs import network
from hypothesis import given
from hypothesis import strategies as st
from oracle import onnxruntime

import spa
from spa.allocate import spare
from spa.coupling import Coupling
from spa.errors import UsageError
from spa.model import Model
from spa.planning import Plan, from_masks
from spa.schedule import compose, cubic, gradual, linear, union


def test_cubic_is_the_equation() -> None:
    """Zhu & Gupta (2017), equation 1, with t0 = 0, n steps and a distance of 1 between them."""
    start, end, n = 0.0, 0.9, 7
    for t, value in enumerate(cubic(start, end, n), start=1):
        assert value == pytest.approx(end + (start - end) * (1 - t / n) ** 3)
    falling = cubic(1.0, 0.5, 5)
    steps = -np.diff([1.0, *falling])
    assert falling[-1] == 0.5 and (np.diff(steps) < 0).all()  # less and less
    assert np.allclose(np.diff([1.0, *linear(1.0, 0.5, 5)]), -0.1)
    with pytest.raises(UsageError):
        cubic(1.0, 0.5, 0)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)), st.data())))
def test_indices_of_what_is_left_are_indices_of_the_whole(drawn) -> None:  # type: ignore[no-untyped-def]
    size, first, data = drawn
    left = [i for i in range(size) if i not in first]
    second = data.draw(st.sets(st.sampled_from(range(len(left))))) if left else set()
    expected = sorted(first | {left[i] for i in second})
    assert union(sorted(first), sorted(second)) == expected


def drawn(coupling: Coupling, seed: int) -> Plan:
    masks = draw_masks(coupling, seed, 0.25)
    spare(coupling, masks)
    return from_masks(coupling, masks)


@pytest.mark.parametrize("seed", range(4))
def test_plans_made_one_upon_the_other_are_one_plan(models, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Two prunes in a row leave the bytes that one prune by the plans composed leaves."""
    model = spa.load(models / "digits.onnx")
    coupling = spa.analyze(model)
    first = drawn(coupling, seed)
    middle = spa.apply(model, first).model
    second, third = (drawn(spa.analyze(middle), seed + 1 + k) for k in range(2))
    composed = compose(model, first, second)
    once, twice = spa.apply(model, composed).model, spa.apply(middle, second).model
    assert once.to_proto().SerializeToString(deterministic=True) == twice.to_proto().SerializeToString(
        deterministic=True
    )
    assert compose(model, first).removed == first.removed != composed.removed != compose(model, first, third).removed
    sizes = {g["id"]: (g["size"] - len(g["removed"])) for g in composed.groups}
    assert sizes == {g["id"]: g["size"] - len(g["removed"]) for g in second.groups}


def test_on_random_networks_a_composition_is_right_or_refused() -> None:
    held = refused = 0
    for seed in range(20):
        model = spa.load(network(seed))
        first = drawn(spa.analyze(model), seed)
        middle = spa.apply(model, first).model
        second = drawn(spa.analyze(middle), seed + 1)
        try:
            composed = compose(model, first, second)
        except UsageError:
            refused += 1
            continue
        once, twice = (m.to_proto() for m in (spa.apply(model, composed).model, spa.apply(middle, second).model))
        x = np.random.default_rng(seed).standard_normal(
            [d.dim_value for d in once.graph.input[0].type.tensor_type.shape.dim]
        )
        feeds = {"x": x.astype(np.float32)}
        for y, z in zip(onnxruntime(once, feeds), onnxruntime(twice, feeds), strict=True):
            np.testing.assert_allclose(y, z, rtol=1e-3, atol=1e-4 * float(np.nanmax(np.abs(y))))
        held += bool(second.removed)
    assert held >= 6 and refused <= 3


def test_steps_meet_their_budgets_and_the_last_plan_is_of_the_first_network(models) -> None:  # type: ignore[no-untyped-def]
    model = spa.load(models / "digits.onnx")
    seen: list[int] = []

    def train(step: int, network: Model, plan: Plan) -> Model:
        seen.append(step)
        return spa.apply(network, plan).model  # where training would go on

    budgets = cubic(1.0, 0.4, 3)
    whole = model.inspect().macs
    steps = list(gradual(model, budgets, train))
    for (small, _), budget in zip(steps, budgets, strict=True):
        assert 0.9 * budget <= small.inspect().macs / whole <= budget
    assert seen == [0, 1, 2]
    small, total = steps[-1]
    once = spa.apply(model, total).model
    assert once.to_proto().SerializeToString(deterministic=True) == small.to_proto().SerializeToString(
        deterministic=True
    )
    replayed = Plan.from_json(total.to_json())
    assert replayed.removed == total.removed


def test_what_makes_no_schedule_is_refused(models) -> None:  # type: ignore[no-untyped-def]
    model = spa.load(models / "digits.onnx")
    with pytest.raises(UsageError, match="rise"):
        next(gradual(model, [0.5, 0.6], lambda step, network, plan: network))
    with pytest.raises(UsageError, match="bytes"):
        next(gradual(model, [0.5], lambda step, network, plan: network, kind="bytes"))
    plan = spa.plan(model, ratio=0.3)
    other = Plan(plan.model, {"nowhere": {"0": [1]}})
    with pytest.raises(UsageError, match="nowhere"):
        compose(model, plan, other)
