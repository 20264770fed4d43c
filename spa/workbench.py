"""The workbench: the network on which channels are judged and mended, in full size, and the way there and back.

Its values bear the names of the input model's, so that a plan carries over (`spa.planning.transfer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spa.calibration import load
from spa.calibration.standardize import restore, standardize
from spa.calibration.synthetic import Drawn
from spa.cost import Budget
from spa.coupling import Coupling, analyze
from spa.inputs import Feeds
from spa.passes.compensate import Repair, ensure_biases
from spa.passes.compensate import compensate as compensate_readers
from spa.passes.merge import Merged, merge
from spa.planning import Plan, approximate, channels, from_masks, gone_from, matcher, removed_slices, transfer

if TYPE_CHECKING:
    from spa.allocate import Chosen
    from spa.model import Model

DRAWN_DAMPING = 0.1  # of second moments on drawn inputs, which are only like the real ones


def from_weights(calib: Any) -> bool:
    """Shall readers be mended without any inputs?"""
    return isinstance(calib, str) and calib == "weights"


def workbench(model: Model, calib: Any = None, fold: bool = True) -> Model:
    """A copy whose convolutions have biases. Normalisations are folded into them; for drawn inputs they stay, and
    normalise what these give (`spa.calibration.standardize`)."""
    if isinstance(calib, Drawn):
        standard = standardize(model, calib)
        if standard is not model:
            return ensure_biases(standard)
    if not fold:
        return ensure_biases(model)
    from spa.passes.fold import Fold

    return ensure_biases(Fold(widen=True).run(model).model)


def mended(
    model: Model, decided: Plan, calib: list[Feeds] | str, *, sizes: dict[str, int] | None = None, fold: bool = True
) -> tuple[Model, Plan, Sequence[Repair | Merged]]:
    """`model` in full size, its readers mended; the plan in that network's own terms; what was done."""
    source = analyze(model, sizes=sizes, allow_approximate=approximate(decided))
    target = analyze(workbench(model, calib, fold), sizes=sizes, allow_approximate=approximate(decided))
    gone = transfer(source, gone_from(source, decided.removed), target)
    repairs: Sequence[Repair | Merged]
    if isinstance(calib, str):
        full, repairs = merge(target, gone)
    else:
        full, repairs = compensate_readers(target, gone, calib)
        full = restore(full, model) if isinstance(calib, Drawn) else full
    return full, Plan({}, removed_slices(target, gone), decided.groups), repairs


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
        feeds = load(calib, model, sizes=sizes)
        approximate = any(not g.exact for g in coupling.groups)
        self.target = analyze(workbench(model, feeds, fold), sizes=sizes, allow_approximate=approximate)
        spared = matcher(keep, coupling)
        whole = coupling.removal({g.id: np.ones(g.size, bool) for g in coupling.groups if spared(g)})
        damping = {"damping": DRAWN_DAMPING} if isinstance(feeds, Drawn) else {}
        spared_there = transfer(coupling, whole, self.target)
        self.chooser = Calibrated(self.target, feeds, align=align, spared=spared_there, **damping)

    def plan(self, kind: Any, amount: float, trials: int = 0) -> Plan:
        """`ratio`: that share of every group goes; `macs`, `params`: that share stays; `size`: that many bytes stay.

        `trials`: candidates of a search that refines what is chosen by its real drift (`spa.refine`)."""
        if kind == "ratio":
            chosen = self.chooser.by_ratio(amount)
        elif kind == "size":
            chosen = self.chooser.by_cost("bytes", amount, trials)
        else:
            chosen = self.chooser.by_cost(kind, amount * Budget(self.target).of(kind, {}), trials)
        return self.decided(chosen, told=kind != "ratio")

    def decided(self, chosen: Chosen, told: bool = True) -> Plan:
        """The plan that takes these channels, in terms of the input model; `told`: with its error curves."""
        gone = transfer(self.target, self.target.removal(chosen), self.coupling)
        decided = from_masks(self.coupling, channels(self.coupling, gone))
        if told:
            curves = {c.group: c for c in self.chooser.curves}
            for group in decided.groups:
                if (curve := curves.get(group["id"])) is not None:
                    group["curve"] = {"counts": curve.counts, "errors": [round(e, 6) for e in curve.errors]}
        return decided
