"""Gradual pruning: a little at a time, with training in between.

A schedule is a tuple of budgets, one per step. Plan k is made for the network that plans 1 .. k-1 have cut already;
`compose` makes one plan of them, in terms of the network they began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from spa.errors import UsageError
from spa.planning import Plan, Removed, channels, from_masks, gone_from

if TYPE_CHECKING:
    from spa.model import Model

Train = Callable[[int, "Model", Plan], "Model"]


def cubic(start: float, end: float, steps: int) -> tuple[float, ...]:
    """s_t = s_f + (s_i - s_f) (1 - t/n)³ for t = 1 .. n (Zhu & Gupta, To Prune, or Not to Prune, arXiv 1710.01878, eq. 1):
    much at first, while there is plenty, and little at the end. For shares kept (1 -> 0.5) and removed (0 -> 0.5) alike.

    >>> [round(s, 3) for s in cubic(1.0, 0.5, 4)]
    [0.711, 0.562, 0.508, 0.5]
    """
    if steps < 1:
        raise UsageError(f"a schedule of {steps} steps", hint="at least one")
    return tuple(end + (start - end) * (1 - t / steps) ** 3 for t in range(1, steps + 1))


def linear(start: float, end: float, steps: int) -> tuple[float, ...]:
    """
    >>> linear(1.0, 0.5, 2)
    (0.75, 0.5)
    """
    if steps < 1:
        raise UsageError(f"a schedule of {steps} steps", hint="at least one")
    return tuple(start + (end - start) * t / steps for t in range(1, steps + 1))


def gradual(
    model: Model,
    budgets: Sequence[float],
    train: Train,
    *,
    kind: str = "macs",
    fresh: Callable[[Model], Mapping[str, Any]] | None = None,
    **choice: Any,
) -> Iterator[tuple[Model, Plan]]:
    """Per budget: plan, hand the plan to `train`, and go on with what it gives back; yields (model, plan so far).

    budgets: shares of the first network's `macs` or `params` to keep, falling. `train(step, model, plan)` applies the
    plan where the weights live, trains, and returns the export. `choice` goes to `spa.plan`, and what `fresh(model)` gives
    for each step's network: its gradients, say. Raises `UsageError` for
    budgets that rise, `CheckFailed` where one cannot be met."""
    from spa.cost import inspect
    from spa.planning import plan

    if kind not in ("macs", "params"):
        raise UsageError(f"no schedule over {kind}", hint="macs or params")
    if any(b > a for a, b in pairwise(budgets)):
        raise UsageError(f"the budgets rise: {[round(b, 3) for b in budgets]}", hint="shares to keep, falling")
    first, plans = model, list[Plan]()
    whole = getattr(inspect(first), kind)
    for step, budget in enumerate(budgets):
        share = min(1.0, budget * whole / getattr(inspect(model), kind))
        decided = plan(model, **{kind: share}, **choice, **(fresh(model) if fresh else {}))
        plans.append(decided)
        model = train(step, model, decided)
        yield model, compose(first, *plans)


def compose(model: Model, *plans: Plan) -> Plan:
    """One plan for `model` that removes what all of them remove, each made for what the ones before it left.

    Only what is removed is composed: what was mended or trained in between is in the weights, not in a plan. Raises
    `UsageError` where a plan does not fit, or where the whole is no union of channels of `model` (an axis of which one
    index was left couples no more, so a later plan may cut finer than the first network allows)."""
    from spa.coupling import analyze

    removed: Removed = {}
    constants: dict[str, list[Any]] = {}
    for plan in plans:
        for name, axes in plan.removed.items():
            here = removed.setdefault(name, {})
            for axis, index in axes.items():
                here[axis] = union(here.get(axis, []), index)
        for name, (before, after) in plan.constants.items():
            constants[name] = [constants.get(name, [before])[0], after]
    inexact = any(not g.get("exact", True) and g.get("removed") for p in plans for g in p.groups)
    coupling = analyze(model, allow_approximate=inexact)
    gone = gone_from(coupling, removed)
    return replace(from_masks(coupling, channels(coupling, gone)), constants=constants)


def union(removed: Sequence[int], then: Sequence[int]) -> list[int]:
    """Indices gone from an axis, and indices gone from what was left of it, as indices of the axis.

    >>> union([1, 2], [0, 1])
    [0, 1, 2, 3]
    """
    found = sorted(removed)
    moved = []
    for index in then:
        for gone in found:  # ascending: each gone index at or below shifts it by one
            if gone > index:
                break
            index += 1
        moved.append(index)
    return sorted([*found, *moved])
