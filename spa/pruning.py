"""The main job: plan, apply, verify. Each arrow is a function over plain data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spa.coupling import Coupling, analyze
from spa.inputs import Feeds
from spa.model import Model
from spa.passes.slice import slice_channels, transplant
from spa.pipeline import Result
from spa.planning import Plan, gone_from, plan
from spa.verification import Verification, require, verify

__all__ = ["Result", "apply", "prune"]


def apply(model: Model, plan: Plan, *, sizes: dict[str, int] | None = None) -> Result:
    """Take the plan's channels out of a copy of `model`. Raises `UsageError` where the plan does not fit it."""
    copy = model.clone()
    if not plan.removed:
        return Result(copy, plan)
    approximate = any(not g.get("exact", True) and g.get("removed") for g in plan.groups)
    coupling = analyze(copy, sizes=sizes, allow_approximate=approximate)
    edit = slice_channels(coupling, gone_from(coupling, plan.removed))
    out = coupling.model
    if out is not copy and not edit.rewired:  # no node had to change: the local functions can stay
        transplant(out.ir, copy.ir)
        out = copy
    return Result(out, replace(plan, constants=edit.constants))


def prune(
    model: Model,
    *,
    coupling: Coupling | None = None,
    check: bool = True,
    seed: int = 0,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    fold: bool = True,
    **budget: Any,
) -> Result:
    """Plan, apply, verify and fold. `budget` and choices as in `spa.planning.plan`; with none, see `spa.drift`.

    Raises `CheckFailed` where the pruned network is not the masked one; the input model is never changed."""
    coupling = coupling or analyze(model, sizes=sizes)
    decided = plan(model, coupling, **budget)
    return finish(model, decided, check=check, seed=seed, inputs=inputs, sizes=sizes, fold=fold)


def finish(
    model: Model,
    decided: Plan,
    *,
    check: bool = True,
    seed: int = 0,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    fold: bool = True,
) -> Result:
    """Apply a plan, verify the result, fold it, and verify that too."""
    result = apply(model, decided, sizes=sizes)
    verified: Verification | None = None
    out = result.model
    steps = "slice"
    if fold:
        from spa.passes.fold import Fold

        out = Fold().run(out).model
        steps = "slice,fold"
    if check:
        verified = require(verify(model, out, decided, seed=seed, inputs=inputs, sizes=sizes))
    final = replace(result.plan or decided, pipeline=steps)
    return Result(out, final, {"verified": verified.to_json() if verified else None})
