"""The main job: plan, apply, verify. Each arrow is a function over plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from spa.calibration import load
from spa.cost import Budget
from spa.coupling import Coupling, analyze
from spa.inputs import Feeds
from spa.model import Model
from spa.passes.compensate import Repair, ensure_biases
from spa.passes.compensate import compensate as compensate_readers
from spa.passes.slice import slice_channels, transplant
from spa.pipeline import Result
from spa.planning import Plan, channels, from_masks, gone_from, matcher, plan, removed_slices, transfer
from spa.verification import CHAOTIC, Verification, calm, require, verify

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
    **budget: Any,
) -> Result:
    """Plan, apply, repair, verify and fold. `budget` and choices as in `spa.planning.plan`.

    `calib`: calibration inputs (`spa.calibration.load`); with them channels are chosen by what the network loses once
    it is mended, and the readers of what goes are mended (`compensate`). Raises `CheckFailed` where the pruned network
    is not the masked one; the input model is never changed."""
    coupling = coupling or analyze(model, sizes=sizes)
    feeds = load(calib, model, sizes=sizes, seed=seed) if calib is not None else None
    decided = plan(model, coupling, calib=feeds, **budget)
    mend = feeds if compensate else None
    return finish(model, decided, calib=mend, check=check, seed=seed, inputs=inputs, sizes=sizes, fold=fold)


def finish(
    model: Model,
    decided: Plan,
    *,
    calib: list[Feeds] | None = None,
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
        steps.append("compensate")
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


def approximate(decided: Plan) -> bool:
    return any(not g.get("exact", True) and g.get("removed") for g in decided.groups)


def mended(
    model: Model, decided: Plan, feeds: list[Feeds], *, sizes: dict[str, int] | None = None, fold: bool = True
) -> tuple[Model, Plan, list[Repair]]:
    """`model` in full size, folded, its readers mended; the plan in that network's own terms; what was done."""
    source = analyze(model, sizes=sizes, allow_approximate=approximate(decided))
    working = workbench(model, fold)
    target = analyze(working, sizes=sizes, allow_approximate=approximate(decided))
    gone = transfer(source, gone_from(source, decided.removed), target)
    full, repairs = compensate_readers(target, gone, feeds)
    return full, Plan({}, removed_slices(target, gone), decided.groups), repairs


def workbench(model: Model, fold: bool) -> Model:
    """A copy whose convolutions carry their normalisation and a bias, ready to be mended."""
    if not fold:
        return ensure_biases(model)
    from spa.passes.fold import Fold

    return ensure_biases(Fold().run(model).model)


class CalibratedPlanner:
    """Plans for `model` by Optimal Brain Surgeon on calibration inputs: statistics once, then a plan per budget."""

    def __init__(
        self,
        model: Model,
        coupling: Coupling,
        calib: Any,
        *,
        sizes: dict[str, int] | None = None,
        fold: bool = True,
        align: int = 1,
        keep: Sequence[str] = (),
    ) -> None:
        from spa.sensitivity import Calibrated

        self.coupling = coupling
        self.target = analyze(workbench(model, fold), sizes=sizes)
        spared = matcher(keep, coupling)
        whole = coupling.removal({g.id: np.ones(g.size, bool) for g in coupling.groups if spared(g)})
        feeds = load(calib, model, sizes=sizes)
        self.chooser = Calibrated(self.target, feeds, align=align, spared=transfer(coupling, whole, self.target))

    def plan(self, kind: str, amount: float) -> Plan:
        """`ratio`: that share of every group goes; `macs`, `params`: that share stays; `size`: that many bytes stay."""
        if kind == "ratio":
            chosen = self.chooser.by_ratio(amount)
        elif kind == "size":
            chosen = self.chooser.by_cost("bytes", amount)
        else:
            chosen = self.chooser.by_cost(kind, amount * Budget(self.target).of(kind, {}))
        gone = transfer(self.target, self.target.removal(chosen), self.coupling)
        return from_masks(self.coupling, channels(self.coupling, gone))
