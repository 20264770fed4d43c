"""The knapsack: which level of removal per group costs the least error within a budget.

Errors of groups add up to first order, costs do not (a layer shrinks with its inputs times its outputs), so the
multiple-choice knapsack is solved on costs linearised at the last solution until it stands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from spa.cost import Budget

if TYPE_CHECKING:
    from spa.allocate import Chosen
    from spa.coupling import Coupling

ROUNDS = 12  # of linearisation
SECONDS = 10.0  # per knapsack; HiGHS stops with the best it has


@dataclass(frozen=True)
class Curve:
    """Group: channels in the order in which they go, how many at each level, and the error there."""

    group: str
    order: list[int]
    counts: list[int]
    errors: list[float]


def masks(coupling: Coupling, found: Sequence[Curve], levels: Sequence[int]) -> Chosen:
    """The channels that go at these levels."""
    size = {g.id: g.size for g in coupling.groups}
    chosen: Chosen = {}
    for curve, level in zip(found, levels, strict=True):
        if curve.counts[level]:
            chosen[curve.group] = np.zeros(size[curve.group], bool)
            chosen[curve.group][curve.order[: curve.counts[level]]] = True
    return chosen


def choose(coupling: Coupling, found: Sequence[Curve], kind: str, limit: float) -> list[int] | None:
    """The level per curve with the least total error whose cost is at most `limit`; None where none is cheap enough."""
    budget = Budget(coupling)

    def cost(levels: Sequence[int]) -> float:
        return budget.of(kind, coupling.removal(masks(coupling, found, levels)))

    most = [len(c.counts) - 1 for c in found]
    if cost(most) > limit:
        return None
    current, best, best_error, room = most, most, np.inf, limit
    for _ in range(ROUNDS):
        base = cost(current)
        table = [
            [cost([*current[:i], level, *current[i + 1 :]]) - base for level in range(len(c.counts))]
            for i, c in enumerate(found)
        ]
        levels = knapsack([c.errors for c in found], table, room - base)
        if levels is None:
            room = limit
            levels = [min(m, n + 1) for m, n in zip(most, current, strict=True)]
        actual = cost(levels)
        error = sum(c.errors[n] for c, n in zip(found, levels, strict=True))
        if actual <= limit and error < best_error:
            best, best_error = levels, error
        if levels == current and actual <= limit:
            break
        # the linearised cost missed the real one: aim lower or higher next time
        room = min(limit, room + 0.7 * (limit - actual))
        current = levels
    return best


def knapsack(errors: list[list[float]], costs: list[list[float]], room: float) -> list[int] | None:
    """One level per group, least total error, total cost at most `room` (multiple-choice knapsack, HiGHS)."""
    flat_error = np.concatenate([np.asarray(e, float) for e in errors])
    flat_cost = np.concatenate([np.asarray(c, float) for c in costs])
    scale = max(1.0, float(np.abs(flat_cost).max()))
    one = lil_array((len(errors), len(flat_error)))
    starts = np.cumsum([0, *map(len, errors)])
    for i in range(len(errors)):
        one[i, starts[i] : starts[i + 1]] = 1
    ties = 1e-9 * np.arange(len(flat_error)) / len(flat_error) * max(1e-12, float(flat_error.max()))
    budget = LinearConstraint(flat_cost[None] / scale, -np.inf, room / scale)
    with silent_stdout():
        result = milp(
            flat_error + ties,
            constraints=[LinearConstraint(one.tocsr(), 1, 1), budget],
            integrality=np.ones(len(flat_error), np.int64),
            bounds=Bounds(0, 1),
            options={"time_limit": SECONDS, "mip_rel_gap": 1e-4},
        )
    if result.x is None:
        return None
    return [int(np.argmax(result.x[starts[i] : starts[i + 1]])) for i in range(len(errors))]


@contextmanager
def silent_stdout() -> Iterator[None]:
    """HiGHS prints a line of its own now and then, whatever it is told; stdout is for results."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)
