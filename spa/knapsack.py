"""The knapsack: which level of removal per group, and which pattern per layer, cost the least error within a budget.

Errors of groups and layers add up to first order, costs do not (a layer shrinks with its inputs times its outputs times
its density), so the multiple-choice knapsack is solved on costs linearised at the last solution until it stands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from spa.cost import Budget

if TYPE_CHECKING:
    from spa.allocate import Chosen
    from spa.coupling import Coupling
    from spa.coupling.analysis import Mask

ROUNDS = 12  # of linearisation
EXCHANGES = 40  # of one or two levels, after that
LOOKED_AT = 64  # exchanges whose real cost is looked at, before there is none
SECONDS = 10.0  # per knapsack; HiGHS stops with the best it has


@dataclass(frozen=True)
class Curve:
    """Group: channels in the order in which they go, how many at each level, and the error there."""

    group: str
    order: list[int]
    counts: list[int]
    errors: list[float]


@dataclass(frozen=True)
class Options:
    """What may become of a layer's weight: by option, the share of its cost that is left, and the error; the first is
    the dense layer."""

    weight: ir.Value
    shares: list[float]
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


class Costs:
    """What choices of one level per group and one option per layer cost, in all."""

    def __init__(self, coupling: Coupling, groups: Sequence[Curve], layers: Sequence[Options], kind: Any) -> None:
        self.coupling, self.groups, self.layers, self.kind = coupling, groups, layers, kind
        self.budget = Budget(coupling)
        self.errors = [*(c.errors for c in groups), *(o.errors for o in layers)]
        self.most = [len(e) - 1 for e in self.errors]

    def gone(self, levels: Sequence[int]) -> dict[int, Mask]:
        return self.coupling.removal(masks(self.coupling, self.groups, levels[: len(self.groups)]))

    def shares(self, levels: Sequence[int]) -> dict[ir.Value, float]:
        chosen = levels[len(self.groups) :]
        return {o.weight: o.shares[n] for o, n in zip(self.layers, chosen, strict=True) if n}

    def of(self, levels: Sequence[int]) -> float:
        return self.budget.of(self.kind, self.gone(levels), self.shares(levels))

    def error(self, levels: Sequence[int]) -> float:
        return sum(e[n] for e, n in zip(self.errors, levels, strict=True))

    def moves(self, levels: Sequence[int]) -> list[list[float]]:
        """Per group and layer: what each of its levels would add, all others left where they are."""
        base, gone, shares = self.of(levels), self.gone(levels), self.shares(levels)
        found = []
        for i, curve in enumerate(self.groups):
            trials = ([*levels[:i], n, *levels[i + 1 : len(self.groups)]] for n in range(len(curve.errors)))
            found.append([self.budget.of(self.kind, self.gone(t), shares) - base for t in trials])
        for options in self.layers:
            trial = [shares | {options.weight: share} for share in options.shares]
            found.append([self.budget.of(self.kind, gone, s) - base for s in trial])
        return found


def choose(
    coupling: Coupling, groups: Sequence[Curve], kind: Any, limit: float, layers: Sequence[Options] = ()
) -> list[int] | None:
    """The level per group and then the option per layer with the least total error whose cost is at most `limit`; None
    where none is cheap enough."""
    costs = Costs(coupling, groups, layers, kind)
    most = costs.most
    if costs.of(most) > limit:
        return None
    current, best, best_error, room = most, most, np.inf, limit
    for _ in range(ROUNDS):
        levels = knapsack(costs.errors, costs.moves(current), room - costs.of(current))
        if levels is None:
            room = limit
            levels = [min(m, n + 1) for m, n in zip(most, current, strict=True)]
        actual = costs.of(levels)
        error = costs.error(levels)
        if actual <= limit and error < best_error:
            best, best_error = levels, error
        if levels == current and actual <= limit:
            break
        # the linearised cost missed the real one: aim lower or higher next time
        room = min(limit, room + 0.7 * (limit - actual))
        current = levels
    return polished(costs, best, limit)


def polished(costs: Costs, levels: Sequence[int], limit: float) -> list[int]:
    """`levels`, and from there in turn the move that lowers the error most within the limit, alone or paid for by another,
    as long as there is one. What two moves cost together is guessed from what each costs, and then looked at."""
    current = list(levels)
    moves = [(i, n) for i, e in enumerate(costs.errors) for n in range(len(e))]
    for _ in range(EXCHANGES):
        cost = np.array([c for row in costs.moves(current) for c in row])
        gain = np.array([e[n] - other for e, n in zip(costs.errors, current, strict=True) for other in e])
        better, cheaper = np.flatnonzero(gain > 0), [None, *np.flatnonzero((cost < 0) & (gain <= 0))]
        paid = np.array([0.0 if c is None else cost[c] for c in cheaper])
        lost = np.array([0.0 if c is None else gain[c] for c in cheaper])
        worth = gain[better][:, None] + lost[None]
        worth[cost[better][:, None] + paid[None] > (limit - costs.of(current)) * (1 + 1e-9) + 1e-9] = 0
        flat = worth.reshape(-1)
        few = np.argpartition(-flat, min(LOOKED_AT, len(flat)) - 1)[:LOOKED_AT] if len(flat) else np.zeros(0, np.int64)
        for at in sorted(few.tolist(), key=lambda k: (-flat[k], k)):
            first, second = divmod(at, worth.shape[1])
            trial = list(current)
            for move in (cheaper[second], better[first]):
                if move is not None:
                    trial[moves[move][0]] = moves[move][1]
            if costs.error(trial) < costs.error(current) - 1e-12 and costs.of(trial) <= limit:
                current = trial
                break
        else:
            return current
    return current


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
