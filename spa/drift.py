"""How much goes, where that is set by what comes out: by drift, or by a metric of the user's.

drift = || y - y' ||_2 / || y ||_2 over all floating-point outputs and all calibration inputs.

Both budgets turn one knob, from nothing removed to as much as can be, and bisect over it: a network is made, mended and
measured at every step, and the bracket keeps a step that holds below one that does not. What is returned was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from spa import allocate
from spa.agreement import Deviation
from spa.errors import CheckFailed, UsageError
from spa.inputs import Feeds
from spa.judging import fitted, held_back, samples
from spa.metric import Metric, as_metric
from spa.planning import Plan, by_curves, from_masks, ranked
from spa.verification import Session, feeds_for

if TYPE_CHECKING:
    from spa.coupling import Coupling
    from spa.model import Model

MAX_DRIFT = 0.05  # relative output error that is tolerated when no budget is named
LEVELS = 256  # positions of the knob: what goes is found to within 1 / LEVELS
SAMPLES = 4  # random inputs where there is no calibration data


def drift(reference: list[list[Any]], outputs: list[list[Any]]) -> float:
    """Relative error over lists (per input) of outputs; outputs that are not floating-point do not count."""
    total = Deviation()
    for r, o in zip(reference, outputs, strict=True):
        for a, b in zip(r, o, strict=True):
            total.add(a, b)
    return total.relative


@dataclass(frozen=True)
class Trial:
    """A position of the knob: share of multiply-accumulates left, what was measured (None: NaN, or there is no such
    network), and whether that is good enough."""

    macs: float | None
    value: float | None
    fits: bool


Tell = Callable[[Trial], Any]  # of every trial, once it is measured


def silent(trial: Trial) -> None:
    pass


@dataclass(frozen=True)
class Knob:
    """Networks of which more and more is gone: `plan_at(0)` removes nothing, `plan_at(LEVELS)` all that can be."""

    model: Model
    plan_at: Callable[[int], Plan]
    calib: list[Feeds] | None  # to mend with
    sizes: dict[str, int] | None
    fold: bool

    def network(self, plan: Plan) -> Model:
        from spa.pruning import finish
        from spa.thinning import Thinning

        cut = finish(self.model, plan, calib=self.calib, check=False, sizes=self.sizes, fold=self.fold).model
        how = Thinning(layers=plan.sparsity, refit=self.calib is not None)
        return how.of(cut, self.calib).model if how else cut


def knob(
    model: Model,
    coupling: Coupling,
    *,
    feeds: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    repair: bool = True,
    fold: bool = True,
    criterion: str | None = None,
    aggregate: str | None = None,
    normalise: str | None = None,
    scope: str = "auto",
    align: int = 1,
    keep: Sequence[str] = (),
    sparsity: str | None = None,
    targets: Sequence[str] = (),
    dense: Sequence[str] = (),
) -> Knob:
    """With calibration inputs the share of multiply-accumulates kept, channels chosen for it and readers mended; without
    any, or for another criterion than "obs", the share of all offers taken (`spa.allocate`). Choices as in
    `spa.planning.plan`."""
    if by_curves(feeds, criterion, scope):
        from spa.sparsity.joint import JointPlanner
        from spa.workbench import CalibratedPlanner

        planner: CalibratedPlanner | JointPlanner
        planner = CalibratedPlanner(model, coupling, feeds, sizes=sizes, align=align, keep=keep)
        if sparsity == "auto":
            planner = JointPlanner(planner, targets, dense)

        def plan_at(level: int) -> Plan:
            return planner.plan("macs", 1 - level / (LEVELS + 1)) if level else from_masks(coupling, {})

    else:
        if sparsity is not None:
            raise UsageError(f"sparsity '{sparsity}' cannot be planned without calibration inputs", hint="--calib DATA")
        scope = "local" if scope == "auto" else scope
        sequence, scores = ranked(
            model, coupling, criterion, aggregate, normalise, scope, align, keep, calib=feeds, seed=seed
        )

        def plan_at(level: int) -> Plan:
            taken = sequence.first(round(len(sequence) * level / LEVELS))
            return from_masks(coupling, allocate.chosen(coupling, taken), scores)

    return Knob(model, plan_at, feeds if repair else None, sizes, fold)


def search(
    knob: Knob,
    measure: Callable[[Model], float],
    fits: Callable[[float], bool],
    tell: Tell = silent,
) -> tuple[Plan, Trial | None, list[Trial]]:
    """The plan of the highest position found that fits, its trial (None where no position does and nothing goes), and all
    trials in their order. Positions that come to the same plan are measured once."""
    from spa.cost import inspect

    whole = max(1, inspect(knob.model, knob.sizes).macs)
    seen: dict[str, Trial] = {}
    trials: list[Trial] = []
    low, high = 0, LEVELS + 1  # the highest that fits lies in [low, high)
    best: tuple[Plan, Trial | None] = knob.plan_at(0), None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan = knob.plan_at(middle)
        except CheckFailed:  # so little cannot be kept
            high = middle
            continue
        key = json.dumps([plan.removed, plan.sparsity], sort_keys=True)
        if key not in seen:
            network = knob.network(plan)
            value = measure(network)
            share = inspect(network, knob.sizes).macs / whole
            seen[key] = Trial(round(share, 6), value if math.isfinite(value) else None, fits(value))
            trials.append(seen[key])
            tell(seen[key])
        if seen[key].fits:
            low, best = middle, (plan, seen[key])
        else:
            high = middle
    return best[0], best[1], trials


def plan_by_drift(
    model: Model,
    coupling: Coupling,
    limit: float,
    *,
    feeds: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    tell: Tell = silent,
    **choice: Any,
) -> tuple[Plan, dict[str, Any]]:
    """Remove as much as keeps the drift at or below `limit`: on the inputs held back from calibration, or on random ones
    where there is none; what is measured was mended without them. Choices as in `knob`; the facts are those of the JSON's "drift".

    Raises `CheckFailed` where no input can be found on which the network runs."""
    dense = Session(model)
    sets = held_back(feeds)[0] if feeds else feeds_for(dense, model, SAMPLES, seed, None, sizes)
    reference = [dense.run(f) for f in sets]

    def measure(network: Model) -> float:
        session = Session(network)
        return drift(reference, [session.run(f) for f in sets])

    turning = knob(model, coupling, feeds=feeds, sizes=sizes, seed=seed, **choice)
    if turning.calib:
        turning = replace(turning, calib=fitted(turning.calib))  # see `spa.judging.judge_plan`
    plan, trial, trials = search(turning, measure, lambda value: value <= limit, tell)
    value = trial.value if trial is not None else 0.0
    inputs = sum(map(samples, sets))
    facts = {"limit": limit, "value": value, "inputs": inputs, "data": "given" if feeds else "random"}
    return plan, facts | {"trials": [asdict(t) for t in trials]}


def plan_by_metric(
    model: Model,
    coupling: Coupling,
    evaluate: Metric | Callable[[Any], Any] | str,
    loss: float,
    *,
    feeds: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    tell: Tell = silent,
    **choice: Any,
) -> tuple[Plan, dict[str, Any]]:
    """Remove as much as keeps a metric (higher is better) at the dense network's minus `loss` or above, in the metric's
    own units: 0.01 of an accuracy is one percentage point. `evaluate` as in `spa.metric.as_metric`, choices as in `knob`.

    The metric need not fall steadily: what is returned was measured and holds, but more might hold beyond a step that
    does not. Where nothing can go the plan is empty. Raises `CheckFailed` where the dense metric is not finite, and where
    not even the least that can go keeps it and neither does the network merely folded."""
    if not 0 <= loss < math.inf:
        raise UsageError(f"the metric may fall by {loss}, which is no amount", hint="keep_accuracy 0.01")
    metric = as_metric(evaluate)
    before = metric.of_dense(model)
    floor = before - loss
    turning = knob(model, coupling, feeds=feeds, sizes=sizes, seed=seed, **choice)
    plan, trial, trials = search(turning, metric, lambda value: value >= floor, tell)
    if trial is None:
        value = metric(turning.network(plan))
        if not value >= floor:
            tried = [t for t in trials if t.macs is not None]
            least = max(tried, key=lambda t: t.macs or 0.0, default=None)
            got = f"; with {least.macs:.1%} of the multiply-accumulates kept it is {least.value}" if least else ""
            raise CheckFailed(
                f"the metric {metric.name} is {value:g} with nothing removed, {floor:g} wanted{got}",
                hint="a metric that gives one number for one network, or a larger --keep-accuracy",
            )
    else:
        value = trial.value if trial.value is not None else math.nan
    facts = {"name": metric.name, "before": before, "after": value, "keep": loss, "trials": [asdict(t) for t in trials]}
    return plan, facts
