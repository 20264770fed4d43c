"""Drift: how far a pruned network's outputs move from the dense one's, and the budget that is set by it.

drift = || y - y' ||_2 / || y ||_2 over all floating-point outputs and all calibration inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spa import allocate
from spa.calibration import HELD
from spa.errors import CheckFailed
from spa.importance.magnitude import magnitude
from spa.inputs import Feeds
from spa.planning import Plan, from_masks, matcher
from spa.verification import Session, feeds_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spa.coupling import Coupling
    from spa.model import Model

MAX_DRIFT = 0.05  # relative output error that is tolerated when no budget is named
LEVELS = 256  # the share of the sequence of offers is found to within 1 / LEVELS
SAMPLES = 4  # random inputs where there is no calibration data


def drift(reference: list[list[Any]], outputs: list[list[Any]]) -> float:
    """Relative error over lists (per input) of outputs; outputs that are not floating-point do not count."""
    error = norm = 0.0
    for a, b in ((x, y) for r, o in zip(reference, outputs, strict=True) for x, y in zip(r, o, strict=True)):
        if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.shape == np.shape(b):
            a64, b64 = a.astype(np.float64), np.asarray(b, np.float64)
            finite = np.isfinite(a64) & np.isfinite(b64)
            error += float(((a64 - b64)[finite] ** 2).sum())
            norm += float((a64[finite] ** 2).sum())
    return (error / norm) ** 0.5 if norm > 0 else 0.0


def plan_by_drift(
    model: Model,
    coupling: Coupling,
    limit: float,
    *,
    feeds: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    repair: bool = True,
    criterion: str | None = None,
    aggregate: str = "mean",
    scope: str = "auto",
    align: int = 1,
    keep: Sequence[str] = (),
) -> tuple[Plan, dict[str, Any]]:
    """Remove as much as keeps the drift at or below `limit`, by bisection.

    With calibration inputs the knob is the share of multiply-accumulates kept, readers are mended, and the drift is
    that on the inputs held back; without any it is the share of offers taken, and the drift on random inputs.
    Raises `CheckFailed` where no input can be found on which the network runs."""
    from spa.pruning import CalibratedPlanner, finish

    dense = Session(model)
    if feeds and criterion in (None, "obs"):
        planner = CalibratedPlanner(model, coupling, feeds, sizes=sizes, align=align, keep=keep)
        sets = feeds[HELD - 1 :: HELD] or feeds

        def plan_at(level: int) -> Plan:
            return planner.plan("macs", 1 - level / (LEVELS + 1)) if level else from_masks(coupling, {})

    else:
        scores = magnitude(coupling, criterion or "l2", aggregate)
        spared = matcher(keep, coupling)
        free = [g for g in coupling.groups if not spared(g)]
        sequence = allocate.offers(free, scores, "local" if scope == "auto" else scope, align)
        sets = feeds_for(dense, model, SAMPLES, seed, feeds, sizes)

        def plan_at(level: int) -> Plan:
            taken = sequence[: round(len(sequence) * level / LEVELS)]
            return from_masks(coupling, allocate.chosen(coupling, taken), scores)

    reference = [dense.run(f) for f in sets]
    measured: dict[int, float] = {0: 0.0}
    plans: dict[int, Plan] = {}

    def fits(level: int) -> bool:
        try:
            plans[level] = plan_at(level)
            calib = feeds if repair else None
            session = Session(finish(model, plans[level], calib=calib, check=False, sizes=sizes).model)
            measured[level] = drift(reference, [session.run(f) for f in sets])
        except CheckFailed:
            measured[level] = float("inf")
        return measured[level] <= limit

    low, high = 0, LEVELS + 1  # the largest level that fits lies in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    facts = {"limit": limit, "value": measured[low], "inputs": len(sets), "data": "given" if feeds else "random"}
    return plans[low] if low else plan_at(0), facts
