"""How much where, by measurement: per group an elimination order and an error curve over levels of removal.

A level of a group removes the first channels of its elimination order and mends its readers; its error is the squared
relative change of the network's outputs on held-back inputs, all other groups left whole. The dense network is walked
twice: ahead, to gather the moments of what is read, and behind, where each group's levels branch off into the rest of
the network with their weights replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa import allocate, cache, execution, progress
from spa.calibration import MAX_FEATURES, Moments, Reader, Walk, measure, readers
from spa.calibration import cache as statistics
from spa.cost import Budget
from spa.drift import drift
from spa.errors import CheckFailed
from spa.execution import Inline, ahead
from spa.importance.magnitude import magnitude
from spa.importance.obs import DAMPING, Order, Task, eliminate
from spa.judging import fitted, held_back
from spa.knapsack import Curve, choose, masks
from spa.passes.compensate import compensate, masked_weights, unreadable
from spa.refine import Levels, refine
from spa.shapes import tensor_of
from spa.trials import Trial, Weights, sources

if TYPE_CHECKING:
    from spa.allocate import Chosen
    from spa.coupling import Coupling, Group
    from spa.inputs import Feeds

LEVELS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85)


def moments_of(coupling: Coupling, feeds: list[Feeds]) -> dict[Reader, Moments]:
    """Moments of all readers of the dense network, in one walk."""
    walk = Walk(coupling.model, feeds)
    found = {}
    for reader in readers(coupling):
        if reader.features <= MAX_FEATURES:
            found[reader] = measure(reader, reader.observe(walk))
    return found


class Calibrated:
    """A network with its elimination orders, and its error curves once a budget asks for them.

    `spared`: dims whose groups stay whole. `damping` of the second moments, relative to their mean diagonal. Tasks go to
    `spa.execution.executor()`. What was measured of a group is kept by content: an interrupted run goes on where it was,
    and another budget costs nothing."""

    def __init__(
        self,
        coupling: Coupling,
        feeds: list[Feeds],
        *,
        align: int = 1,
        spared: dict[int, npt.NDArray[np.bool_]] | None = None,
        damping: float = DAMPING,
    ) -> None:
        self.coupling, self.feeds, self.align, self.damping = coupling, feeds, align, damping
        self.means: dict[Reader, npt.NDArray[np.float64]] = {}  # of what it reads, per group and feature
        self.scores = magnitude(coupling)
        self.known = [r for r in readers(coupling) if r.features <= MAX_FEATURES and r.weight.is_initializer()]
        dims = coupling.dims.of
        self.readers = {g.id: [r for r in self.known if dims[r.weight, r.axis] in g.labels] for g in coupling.groups}
        ops = {r.op for r in self.known}
        self.masked = {g.id for g in coupling.groups if unreadable(coupling, g, ops)}
        groups = [g for g in coupling.groups if not any(d in (spared or {}) for d in g.labels)]
        self.groups = sorted(groups, key=self.start)

    @cached_property
    def orders(self) -> dict[str, Order]:
        """Group id -> elimination order."""
        return {g.id: order for g, order in self.eliminated(self.groups, stops=False)}

    @cached_property
    def curves(self) -> list[Curve]:
        options = {"align": self.align, "damping": self.damping, "levels": LEVELS, "by": sources()}
        base = statistics.key(self.coupling.model, self.feeds, options)
        # which channels a group has depends on how the network was analysed, its name does not
        entries = {g.id: cache.key(base, g.id, [a.tolist() for a in g.labels.values()]) for g in self.groups}
        found = {g.id: curve for g in self.groups if (curve := stored(entries[g.id], g)) is not None}
        left = [g for g in self.groups if g.id not in found]
        progress.tell("measuring groups", len(found), len(self.groups))
        for group, order, errors in ahead(self.tried(left)) if left else ():
            counts = self.counts(group)
            found[group.id] = Curve(group.id, order.channels, counts, extended(errors.result(), counts))
            store(entries[group.id], found[group.id])
            progress.tell("measuring groups", len(found), len(self.groups))
        return [found[g.id] for g in self.groups]

    def tried(self, groups: list[Group]) -> Iterator[tuple[Group, Order, Future[list[float]]]]:
        """Groups with their orders, and the errors at their levels as they come."""
        trial = Trial(self.coupling, self.feeds)
        for group, order in self.eliminated(groups, stops=True):
            weights = [self.mended(group, order, n) for n in self.counts(group)[1:]]
            yield group, order, trial.submit(weights)

    def eliminated(self, groups: list[Group], stops: bool) -> Iterator[tuple[Group, Order]]:
        """Groups with their orders. Moments are gathered on the way, and dropped with the last group that needs them."""

        def tasks() -> Iterator[tuple[Group, Future[Order]]]:
            walk = Walk(self.coupling.model, self.feeds)
            moments: dict[Reader, Moments] = {}
            needed = {r for g in groups for r in self.readers[g.id]}
            wanted = [r for r in self.known if r in needed]
            for number, group in enumerate(groups):
                while set(self.readers[group.id]) - set(moments):
                    reader = wanted.pop(0)
                    live = reader.observe(walk)
                    with execution.blas(reader.features):
                        moments[reader] = measure(reader, live)
                    self.means[reader] = moments[reader].statistics(0).x
                needed = {r for g in groups[number + 1 :] for r in self.readers[g.id]}
                yield group, self.submit(group, moments, self.counts(group) if stops else [])
                moments = {r: m for r, m in moments.items() if r in needed}

        for group, order in ahead(tasks()):
            yield group, order.result()

    def submit(self, group: Group, moments: dict[Reader, Moments], stops: list[int]) -> Future[Order]:
        keep = allocate.protected(group, self.scores[group.id])
        tasks = []
        for reader in self.readers[group.id]:
            tensor = tensor_of(reader.weight)
            assert tensor is not None
            matrix = reader.matrix(tensor.numpy())
            labels = reader.spread(group.labels[self.coupling.dims.of[reader.weight, reader.axis]])
            tasks += [Task(matrix[k], moments[reader].covariance(k, 0), labels[k]) for k in range(reader.groups)]
        if tasks:
            return execution.executor().submit(eliminate, tasks, group.size, keep, self.damping, stops)
        order = [int(i) for i in np.argsort(self.scores[group.id], kind="stable") if int(i) not in keep]
        return Inline().submit(Order, order, [0.0] * len(order))

    def mended(self, group: Group, order: Order, count: int) -> Weights:
        """The weights that differ when the first `count` channels are gone."""
        mask = np.zeros(group.size, bool)
        mask[order.channels[:count]] = True
        gone = self.coupling.removal({group.id: mask})
        found: Weights = {}
        if group.id in self.masked:
            values = self.coupling.model.ir.graph.initializers
            found = masked_weights(self.coupling, group, gone, lambda n: array_of(values[n]), set(values))
        at = 0
        for reader in self.readers[group.id]:
            matrix = np.stack(order.weights[count][at : at + reader.groups]).astype(np.float64)
            old = array_of(reader.weight)
            found[reader.weight.name or ""] = reader.tensor(matrix, old)
            if (bias := reader.bias()) is not None:
                shift = np.einsum("gof,gf->go", reader.matrix(old) - matrix, self.means[reader])
                b = found.get(bias.name or "", array_of(bias))
                found[bias.name or ""] = (b + shift.reshape(b.shape)).astype(b.dtype)
            at += reader.groups
        return found

    def start(self, group: Group) -> int:
        """The place of the first node that reads a weight which replaces another when the group shrinks."""
        weights = {r.weight for r in self.readers[group.id]}
        if group.id in self.masked:
            weights |= {v for d in group.labels for v, _ in self.coupling.parameters.get(d, ())}
        return next((i for i, op in enumerate(self.coupling.ops) if any(v in weights for v in op.inputs)), 0)

    def counts(self, group: Group) -> list[int]:
        """How many channels go at each level."""
        most = group.size - len(allocate.protected(group, self.scores[group.id]))
        step = self.align if group.size >= 4 * self.align else 1
        return sorted({_aligned(round(share * group.size), group.size, step, most) for share in LEVELS})

    def by_ratio(self, ratio: float) -> Chosen:
        """This share of every group."""
        chosen: Chosen = {}
        for group in self.groups:
            step = self.align if group.size >= 4 * self.align else 1
            channels = self.orders[group.id].channels
            mask = np.zeros(group.size, bool)
            mask[channels[: _aligned(int(ratio * group.size + 0.5), group.size, step, len(channels))]] = True
            chosen[group.id] = mask
        return {k: m for k, m in chosen.items() if m.any()}

    def by_cost(self, kind: Any, limit: float, trials: int = 0) -> Chosen:
        """The least error at a cost (`spa.cost.Budget`) of at most `limit`; `trials` of refinement by real drift.

        Raises `CheckFailed` where there is no such choice."""
        levels = choose(self.coupling, self.curves, kind, limit)
        if levels is None:
            raise CheckFailed(
                f"the budget of {limit:,.0f} {kind} cannot be met",
                hint="a larger budget; `spa explain` says what is blocked and why",
            )
        if trials:
            budget = Budget(self.coupling)

            def cost(of: Levels) -> float:
                return budget.of(kind, self.coupling.removal(masks(self.coupling, self.curves, of)))

            most = [len(c.counts) - 1 for c in self.curves]
            levels = list(refine(levels, most, cost, limit, self.drift, trials))
        return masks(self.coupling, self.curves, levels)

    def drift(self, levels: Levels) -> float:
        """Of the network at these levels, mended without the held-back inputs, on these."""
        gone = self.coupling.removal(masks(self.coupling, self.curves, levels))
        walk = Walk(compensate(self.coupling, gone, fitted(self.feeds))[0], self.held)
        walk.advance()
        return drift(self.dense_outputs, [[values[n] for n in walk.outputs] for values in walk.live])

    @cached_property
    def held(self) -> list[Feeds]:
        return held_back(self.feeds)[0]

    @cached_property
    def dense_outputs(self) -> list[list[Any]]:
        return next(Walk(self.coupling.model, self.held).branch(()).run([{}]))


def stored(entry: str, group: Group) -> Curve | None:
    """A curve measured before."""
    arrays = statistics.get(entry)
    if arrays is None or not {"order", "counts", "errors"} <= arrays.keys():
        return None
    return Curve(group.id, arrays["order"].tolist(), arrays["counts"].tolist(), arrays["errors"].tolist())


def store(entry: str, curve: Curve) -> None:
    arrays = {"order": np.array(curve.order), "counts": np.array(curve.counts), "errors": np.array(curve.errors)}
    statistics.put(entry, arrays)


def array_of(value: ir.Value) -> npt.NDArray[Any]:
    tensor = tensor_of(value)
    assert tensor is not None
    return tensor.numpy()


def extended(errors: list[float], counts: list[int]) -> list[float]:
    """Never falling, from 0 at no removal, and where it was not measured any more in proportion to what goes."""
    found = [0.0]
    for n, count in enumerate(counts[1:]):
        found.append(max(found[-1], errors[n]) if n < len(errors) else found[-1] * count / counts[n])
    return found


def _aligned(removed: int, size: int, step: int, most: int) -> int:
    """The closest number of channels to remove that leaves a multiple of `step`."""
    kept = max(step, round((size - removed) / step) * step)
    return min(size - kept, most) if removed else 0
