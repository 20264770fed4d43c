"""Pipelines with proof: every pass is held to what it promises, and the plan is put in terms of the network at the start.

A pass that promises the same numbers (`EXACT`, or `exact: ClassVar[bool] = True` on a pass from outside) is compared with
the network before it, masked by its plan where it removed channels. Of all others the deviation is measured and told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spa.errors import CheckFailed, UsageError
from spa.inputs import Feeds
from spa.model import Model
from spa.pipeline import Pass, Pipeline, Result, pass_text

if TYPE_CHECKING:
    from spa.planning import Plan
    from spa.verification import Verification

EXACT = frozenset({"fold", "rearrange", "slice"})


def promises(step: Pass) -> bool:
    return step.name in EXACT or bool(getattr(step, "exact", False))


def run(
    pipeline: Pipeline,
    model: Model,
    *,
    check: bool = True,
    seed: int = 0,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
) -> Result:
    """Every pass on the result of the one before. `facts["passes"]`: per pass its text, whether it is exact, and the error
    (of the outputs' spread where exact, else relative: || y - y' || / || y ||; None unchecked); `facts["verified"]`: the exact
    ones together. The result's plan speaks of `model`; None where several passes made plans.

    Raises `CheckFailed` where an exact pass changes numbers or any leaves a network that does not run."""
    from spa.pruning import prove
    from spa.verification import require, verify

    plans: list[tuple[Plan, Model]] = []
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    proofs: list[Verification] = []
    now = model
    for step in pipeline.passes:
        result = step.run(now)
        row: dict[str, Any] = {"pass": pass_text(step), "exact": promises(step), "error": None}
        if check and result.plan is not None and promises(step):
            proofs.append(require(prove(now, result.model, result.plan, seed=seed, inputs=inputs, sizes=sizes)))
            row["error"] = proofs[-1].max_error
        elif check and promises(step):
            found = verify(now, result.model, seed=seed, inputs=inputs, sizes=sizes)
            proofs.append(same(found, pass_text(step)))
            row["error"] = found.max_error
        elif check:
            row["error"] = deviation(now, result.model, pass_text(step), seed, inputs, sizes)
        if result.plan is not None:
            plans.append((result.plan, now))
        rows.append(row)
        now, facts = result.model, facts | result.facts
    facts |= {"passes": rows, "verified": together(proofs)}
    plan = rooted(*plans[0], model, sizes) if len(plans) == 1 else None
    return Result(now, plan and replace(plan, pipeline=str(pipeline)), facts)


def same(found: Verification, step: str) -> Verification:
    if not found.ok:
        raise CheckFailed(
            f"the pass {step} changes the network: error {found.max_error:.3g} of the outputs' spread, "
            f"{found.tolerance:g} allowed; nothing was written",
            found.where,
            "leave the pass out, and report the model",
        )
    return found


def together(proofs: list[Verification]) -> dict[str, Any] | None:
    """One verification that stands for all: the largest error on the fewest inputs."""
    if not proofs:
        return None
    worst = max(proofs, key=lambda v: v.max_error / v.tolerance)
    return worst.to_json() | {"inputs": min(v.inputs for v in proofs)}


def deviation(
    before: Model, after: Model, step: str, seed: int, inputs: list[Feeds] | None, sizes: dict[str, int] | None
) -> float | None:
    """Relative change of the outputs; None where they are no longer the same ones (a pass may add or drop some)."""
    from spa.drift import drift
    from spa.verification import Session, feeds_for

    first = Session(before)
    feeds = feeds_for(first, before, 2, seed, inputs, sizes)
    second = Session(after)
    try:
        outputs = [second.run(f) for f in feeds]
    except Exception as error:  # onnxruntime's errors share no type
        what = f"after the pass {step} the network does not run: {str(error).splitlines()[0][:300]}"
        raise CheckFailed(what, hint="--no-verify writes the result unproven") from None
    return drift([first.run(f) for f in feeds], outputs) if first.outputs == second.outputs else None


def rooted(plan: Plan, source: Model, model: Model, sizes: dict[str, int] | None) -> Plan | None:
    """A plan made for `source`, which passes made of `model`, in terms of `model`; None where it cannot be said so."""
    from spa.coupling import analyze
    from spa.planning import approximate, channels, from_masks, gone_from, transfer

    if source is model:
        return plan
    allowed = approximate(plan)
    there = analyze(source, sizes=sizes, allow_approximate=allowed)
    here = analyze(model, sizes=sizes, allow_approximate=allowed)
    try:
        gone = transfer(there, gone_from(there, plan.removed), here)
    except UsageError:
        return None
    found = from_masks(here, channels(here, gone))
    counts = [sum(len(g["removed"]) for g in p.groups) for p in (plan, found)]
    return found if counts[0] == counts[1] else None
