"""Drift: how far a pruned network's outputs move from the dense one's, and the budget that is set by it.

drift = || y - y' ||_2 / || y ||_2 over all floating-point outputs and all calibration inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spa import allocate
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
    model: Model, coupling: Coupling, limit: float, *, feeds: list[Feeds] | None = None, sizes: dict[str, int] | None = None, seed: int = 0,
    criterion: str = "l2", aggregate: str = "mean", scope: str = "auto", align: int = 1, keep: Sequence[str] = (),
) -> tuple[Plan, dict[str, Any]]:  # fmt: skip
    """Remove as much as keeps the drift at or below `limit`: bisection over the share of offers taken.

    Raises `CheckFailed` where no input can be found on which the network runs."""
    from spa.pruning import apply

    scores = magnitude(coupling, criterion, aggregate)
    spared = matcher(keep, coupling)
    free = [g for g in coupling.groups if not spared(g)]
    sequence = allocate.offers(free, scores, "local" if scope == "auto" else scope, align)
    dense = Session(model)
    sets = feeds_for(dense, model, SAMPLES, seed, feeds, sizes)
    reference = [dense.run(f) for f in sets]
    measured: dict[int, float] = {0: 0.0}

    def plan_at(level: int) -> Plan:
        return from_masks(
            coupling, allocate.chosen(coupling, sequence[: round(len(sequence) * level / LEVELS)]), scores
        )

    def fits(level: int) -> bool:
        if level not in measured:
            try:
                session = Session(apply(model, plan_at(level), sizes=sizes).model)
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
    facts = {
        "limit": limit,
        "value": measured[low],
        "inputs": len(sets),
        "data": "given" if feeds else "random",
        "share_of_offers": low / LEVELS,
    }
    return plan_at(low), facts
