"""The main job: plan, apply, verify. Each arrow is a function over plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from spa.calibration import load
from spa.coupling import Coupling, analyze
from spa.errors import UsageError
from spa.inputs import Feeds
from spa.model import Model
from spa.passes.slice import slice_channels, transplant
from spa.pipeline import Result
from spa.planning import Plan, approximate, gone_from, plan
from spa.thinning import Thinning, judge_thin, thinned
from spa.verification import CHAOTIC, Verification, calm, require, verify
from spa.workbench import from_weights, mended

__all__ = ["Result", "apply", "prune"]


def apply(model: Model, plan: Plan, *, sizes: dict[str, int] | None = None) -> Result:
    """Take the plan's channels out of a copy of `model`. Raises `UsageError` where the plan does not fit it."""
    copy = model.clone()
    if not plan.removed:
        return Result(copy, plan)
    coupling = analyze(copy, sizes=sizes, allow_approximate=approximate(plan))
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
    calib: Any = None,
    compensate: bool = True,
    check: bool = True,
    seed: int = 0,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    fold: bool = True,
    sparsity: str | None = None,
    dense: Sequence[str] = (),
    **budget: Any,
) -> Result:
    """Plan, apply, repair, verify, fold, and thin out. `budget` and choices as in `spa.planning.plan`; also `max_drift=0.05`
    (`spa.drift.plan_by_drift`) and `keep_accuracy=0.01, evaluate=f` (`spa.drift.plan_by_metric`).

    `calib`: calibration inputs (`spa.calibration.load`); with them channels are chosen by what the network loses once
    it is mended, the readers of what goes are mended (`compensate`), and `facts["judgement"]` says what the network
    forgets on inputs held back. "weights": readers are mended by what the weights alone suggest (`spa.passes.merge`).
    `sparsity`: a pattern for what is left (`spa.sparsity.patterns`), `dense` layers (glob) spared; or "auto": the budget
    is spent on channels and patterns (`spa.planning.plan`).
    Raises `CheckFailed` where the pruned network is not the masked one; the input model is never changed."""
    from spa.drift import plan_by_drift, plan_by_metric
    from spa.judging import judge_plan

    coupling = coupling or analyze(model, sizes=sizes)
    given = calib is not None and not from_weights(calib)
    feeds = load(calib, model, sizes=sizes, seed=seed) if given else None
    repair = feeds if given else calib
    facts: dict[str, Any] = {}
    if sparsity == "auto":
        budget |= {"sparsity": sparsity, "dense": dense}
    if "max_drift" in budget or "keep_accuracy" in budget:
        searched: dict[str, Any] = {"feeds": feeds, "sizes": sizes, "seed": seed, "repair": compensate, "fold": fold}
        if "max_drift" in budget:
            limit = budget.pop("max_drift")
            decided, facts["drift"] = plan_by_drift(model, coupling, limit, **searched, **budget)
        else:
            metric, loss = budget.pop("evaluate", None), budget.pop("keep_accuracy")
            if metric is None:
                raise UsageError("keep_accuracy needs a metric", hint="evaluate=f, with f(path or Model) -> float")
            decided, facts["metric"] = plan_by_metric(model, coupling, metric, loss, **searched, **budget)
    else:
        decided = plan(model, coupling, calib=feeds, seed=seed, **budget)
    mend = repair if compensate else None
    result = finish(model, decided, calib=mend, check=check, seed=seed, inputs=inputs, sizes=sizes, fold=fold)
    pattern = None if sparsity == "auto" else sparsity
    how = Thinning(pattern, decided.sparsity, dense, refit=compensate, seed=seed, targets=budget.get("targets", ()))
    if how:
        result = thinned(model, result, how, feeds, check=check, inputs=inputs, sizes=sizes)
        if feeds and check:
            facts["judgement"] = judge_thin(
                model, decided, how, feeds, result, repair=compensate, sizes=sizes, fold=fold
            )
    elif feeds and check:
        judgement = judge_plan(model, decided, feeds, repair=compensate, sizes=sizes, fold=fold)
        facts["judgement"] = judgement.to_json()
    return replace(result, facts=result.facts | facts)


def finish(
    model: Model,
    decided: Plan,
    *,
    calib: list[Feeds] | str | None = None,
    check: bool = True,
    seed: int = 0,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    fold: bool = True,
) -> Result:
    """Apply a plan, mend what reads the removed channels, fold, and verify.

    Where readers are mended there are two proofs: that the plan takes coupled channels out of `model`, and that the
    mended network, cut, is the mended network masked."""
    result = apply(model, decided, sizes=sizes)
    facts: dict[str, Any] = {"verified": None}
    out, steps = result.model, ["slice"]
    # approximate groups were allowed: the error is told, not judged
    judge = (lambda v: v) if approximate(decided) else require
    if calib and decided.removed:
        if check:
            judge(prove(model, out, decided, seed=seed, inputs=inputs, sizes=sizes, count=1))
        full, own, repairs = mended(model, decided, calib, sizes=sizes, fold=fold)
        out, model, decided_here = apply(full, own, sizes=sizes).model, full, own
        facts["repairs"] = [asdict(r) for r in repairs]
        steps.append("merge" if from_weights(calib) else "compensate")
    else:
        decided_here = decided
    if fold:
        from spa.passes.fold import Fold

        out = Fold().run(out).model
        steps.append("fold")
    if check:
        verified: Verification = judge(prove(model, out, decided_here, seed=seed, inputs=inputs, sizes=sizes))
        facts["verified"] = verified.to_json()
    return Result(out, replace(result.plan or decided, pipeline=",".join(steps)), facts)


def prove(
    model: Model, cut: Model, decided: Plan, *, sizes: dict[str, int] | None = None, **options: Any
) -> Verification:
    """`verify`, and for a network that amplifies rounding beyond comparison, the same plan on calmer weights."""
    result = verify(model, cut, decided, sizes=sizes, **options)
    if result.where != CHAOTIC:
        return result
    quiet = calm(model)
    again = verify(quiet, apply(quiet, decided, sizes=sizes).model, decided, sizes=sizes, **options)
    return replace(again, where=again.where or "on weights scaled down; with its own the network amplifies rounding")
