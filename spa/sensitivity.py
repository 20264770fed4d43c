"""How much where, by measurement: per group an error curve over levels of removal, and the knapsack that meets a budget.

A level of a group removes the first channels of its elimination order and mends its readers; its error is the squared
relative change of the network's outputs on held-back inputs, all other groups left whole. Errors of groups add up to
first order, costs do not (a layer shrinks with its inputs times its outputs), so the knapsack is solved on costs
linearised at the last solution until it stands.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from spa import allocate
from spa.calibration import HELD, MAX_FEATURES, Moments, Reader, Walk, measure, open_session, readers
from spa.cost import Budget
from spa.drift import drift
from spa.errors import CheckFailed
from spa.importance.magnitude import magnitude
from spa.importance.obs import DAMPING, Order, Task, eliminate
from spa.passes.compensate import bias_of, solve
from spa.shapes import tensor_of

if TYPE_CHECKING:
    from spa.allocate import Chosen
    from spa.coupling import Coupling, Group
    from spa.inputs import Feeds

LEVELS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85)
HOPELESS = 0.5  # squared relative output error beyond which a curve is extrapolated
TRIAL_MACS = 2e10  # about as much work per point of a curve: large networks are judged on fewer of the held-back inputs
ROUNDS = 12  # of linearisation
SECONDS = 10.0  # per knapsack; HiGHS stops with the best it has


@dataclass(frozen=True)
class Curve:
    """Group: channels in the order in which they go, how many at each level, and the error there."""

    group: str
    order: list[int]
    counts: list[int]
    errors: list[float]


def moments_of(coupling: Coupling, feeds: list[Feeds]) -> dict[Reader, Moments]:
    """Moments of all readers of the dense network, in one walk."""
    walk = Walk(coupling.model, feeds)
    found = {}
    for reader in readers(coupling):
        if reader.features <= MAX_FEATURES:
            walk.advance(reader.op.out.name)
            found[reader] = measure(reader, walk.live)
    return found


def tasks_of(coupling: Coupling, group: Group, moments: dict[Reader, Moments]) -> list[Task]:
    tasks = []
    for reader, m in moments.items():
        dim = coupling.dims.of[reader.weight, reader.axis]
        if dim in group.labels:
            tensor = tensor_of(reader.weight)
            assert tensor is not None
            matrix = reader.matrix(tensor.numpy())
            labels = np.repeat(group.labels[dim], reader.taps)
            tasks += [Task(matrix[k], m.covariance(k), labels) for k in range(reader.groups)]
    return tasks


def orders(
    coupling: Coupling,
    groups: Sequence[Group],
    moments: dict[Reader, Moments],
    scores: dict[str, npt.NDArray[np.float64]],
) -> dict[str, Order]:
    """Elimination orders; by `scores` where a group has no reader to judge by."""
    found = {}
    for group in groups:
        keep = allocate.protected(group, scores[group.id])
        tasks = tasks_of(coupling, group, moments)
        if tasks:
            found[group.id] = eliminate(tasks, group.size, keep)
        else:
            order = [int(i) for i in np.argsort(scores[group.id], kind="stable") if int(i) not in keep]
            found[group.id] = Order(order, [0.0] * len(order))
    return found


def curves(
    groups: Sequence[Group],
    order: dict[str, Order],
    evaluate: Callable[[Chosen], float],
    align: int = 1,
    tick: Callable[[int, int], Any] = lambda done, total: None,
) -> list[Curve]:
    """`evaluate` gives the error of a network without the chosen channels, mended."""
    found = []
    for number, group in enumerate(groups):
        channels = order[group.id].channels
        step = align if group.size >= 4 * align else 1
        counts = sorted({_aligned(round(share * group.size), group.size, step, len(channels)) for share in LEVELS})
        errors = [0.0]
        for count in counts[1:]:
            if errors[-1] > HOPELESS:  # not measured any more: in proportion to what goes
                errors.append(errors[-1] * count / counts[len(errors) - 1])
                continue
            mask = np.zeros(group.size, bool)
            mask[channels[:count]] = True
            errors.append(max(errors[-1], evaluate({group.id: mask})))
        tick(number + 1, len(groups))
        found.append(Curve(group.id, channels, counts, errors))
    return found


def _samples(feed: Feeds) -> int:
    return max((len(a) for a in feed.values() if a.ndim), default=1)


def _aligned(removed: int, size: int, step: int, most: int) -> int:
    """The closest number of channels to remove that leaves a multiple of `step`."""
    kept = max(step, round((size - removed) / step) * step)
    return min(size - kept, most) if removed else 0


def choose(coupling: Coupling, found: list[Curve], kind: str, limit: float) -> Chosen | None:
    """The levels with the least total error whose cost is at most `limit`; None where no levels are cheap enough."""
    budget, size = Budget(coupling), {g.id: g.size for g in coupling.groups}

    def masks(levels: list[int]) -> Chosen:
        chosen: Chosen = {}
        for curve, level in zip(found, levels, strict=True):
            mask = np.zeros(size[curve.group], bool)
            mask[curve.order[: curve.counts[level]]] = True
            chosen[curve.group] = mask
        return {k: m for k, m in chosen.items() if m.any()}

    def cost(levels: list[int]) -> float:
        return budget.of(kind, coupling.removal(masks(levels)))

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
    return masks(best)


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


class Calibrated:
    """A network with its elimination orders, and its error curves once a budget asks for them.

    `spared`: dims whose groups stay whole. `tick(done, total)` is told as curves are measured."""

    def __init__(
        self,
        coupling: Coupling,
        feeds: list[Feeds],
        *,
        align: int = 1,
        spared: dict[int, npt.NDArray[np.bool_]] | None = None,
        tick: Callable[[int, int], Any] = lambda done, total: None,
    ) -> None:
        self.coupling, self.feeds, self.align, self.tick = coupling, feeds, align, tick
        self.groups = [g for g in coupling.groups if not any(d in (spared or {}) for d in g.labels)]
        self.moments = moments_of(coupling, feeds)
        self.order = orders(coupling, self.groups, self.moments, magnitude(coupling))

    @cached_property
    def curves(self) -> list[Curve]:
        trial = Trial(self.coupling, self.moments, self.feeds)
        return curves(self.groups, self.order, trial.error, self.align, self.tick)

    def by_ratio(self, ratio: float) -> Chosen:
        """This share of every group."""
        chosen: Chosen = {}
        for group in self.groups:
            step = self.align if group.size >= 4 * self.align else 1
            channels = self.order[group.id].channels
            mask = np.zeros(group.size, bool)
            mask[channels[: _aligned(int(ratio * group.size + 0.5), group.size, step, len(channels))]] = True
            chosen[group.id] = mask
        return {k: m for k, m in chosen.items() if m.any()}

    def by_cost(self, kind: str, limit: float) -> Chosen:
        """The least error at a cost (macs, params or bytes) of at most `limit`. Raises `CheckFailed` where none is."""
        chosen = choose(self.coupling, self.curves, kind, limit)
        if chosen is None:
            raise CheckFailed(
                f"the budget of {limit:,.0f} {kind} cannot be met",
                hint="a larger budget; `spa explain` says what is blocked and why",
            )
        return chosen


class Trial:
    """The network with some channels' readers mended from the dense network's moments, on held-back inputs."""

    def __init__(self, coupling: Coupling, moments: dict[Reader, Moments], feeds: list[Feeds]) -> None:
        self.coupling, self.moments = coupling, moments
        held = feeds[HELD - 1 :: HELD] or feeds[-1:]
        self.feeds = held[
            : max(1, math.ceil(TRIAL_MACS / max(1.0, Budget(coupling).of("macs", {})) / _samples(held[0])))
        ]
        self.proto = coupling.model.to_proto()
        self.weights = {t.name: t for t in self.proto.graph.initializer}
        self.dense = self.run({})

    def run(self, replaced: dict[str, npt.NDArray[Any]]) -> list[list[Any]]:
        saved = {n: self.weights[n].SerializeToString() for n in replaced}
        for name, array in replaced.items():
            self.weights[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
        session = open_session(self.proto)
        for name, data in saved.items():
            self.weights[name].ParseFromString(data)
        return [list(session.run(None, f)) for f in self.feeds]

    def error(self, chosen: Chosen) -> float:
        """Squared relative output error without the chosen channels, their readers mended."""
        gone = self.coupling.removal(chosen)
        replaced: dict[str, npt.NDArray[Any]] = {}
        for reader, m in self.moments.items():
            dim = self.coupling.dims.of[reader.weight, reader.axis]
            name, bias = reader.weight.name or "", bias_of(reader)
            if dim not in gone or name not in self.weights:
                continue
            lost = np.repeat(gone[dim], reader.taps)
            old = onnx.numpy_helper.to_array(self.weights[name])
            w = reader.matrix(old)
            new = np.stack([solve(w[k], m.covariance(k, 0), lost, DAMPING) for k in range(reader.groups)])
            replaced[name] = reader.tensor(new, old)
            if bias is not None:
                shift = np.concatenate([(w[k] - new[k]) @ m.mean(k, 0) for k in range(reader.groups)])
                replaced[bias] = (onnx.numpy_helper.to_array(self.weights[bias]) + shift).astype(old.dtype)
        return drift(self.dense, self.run(replaced)) ** 2
