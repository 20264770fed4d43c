"""`rearrange`: the channels inside coupled groups in another order, so that a pattern drawn afterwards loses less.

That it computes the same is a matter of `spa.coupling.permutation`, and checked on random inputs besides.
What is searched for is in `spa.sparsity.permutation`. Scores are w^2 var(x) over the variance of what the layer gives,
so that layers may be summed; without calibration inputs w^2 over its sum. (Scores that know of the refit, w^2 over the
diagonal of the inverse of the moments, found orders that were no better: docs/rearrange.md.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spa import execution, progress
from spa.calibration import Walk
from spa.coupling import Coupling, Group, analyze
from spa.coupling.permutation import axes_of, composed, exact, exchangeable, orderless, permutation, rewritten
from spa.coupling.prepare import inlined
from spa.errors import CheckFailed
from spa.inputs import Feeds
from spa.model import Model
from spa.pipeline import Result
from spa.shapes import constants
from spa.sparsity.layers import Layer, Matrix
from spa.sparsity.layers import layers as layers_of
from spa.sparsity.patterns import Pattern, parse
from spa.sparsity.permutation import Index, Term, search
from spa.sparsity.selection import overrides, select
from spa.sparsity.thinning import array_of, gather, write_back

ROUNDS = 2  # over all groups, where rows and columns of a block depend on each other
LEAST = 1e-3  # of a group's score: less is not worth a change

Scores = dict[Layer, Matrix]  # [groups, rows, cols]
Orders = dict[str, Index]  # by group


@dataclass(frozen=True)
class Rearrange:
    """Reorder channels for a pattern such as 2:4 or block4x1:0.5, which `sparsify` draws afterwards.

    `layers`, `dense`, `calib`: as those of `sparsify`."""

    name: ClassVar[str] = "rearrange"

    pattern: str
    layers: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    calib: str | None = None
    seed: int = 0
    verify: bool = True

    def run(self, model: Model) -> Result:
        from spa.calibration import load

        feeds = load(self.calib, model, seed=self.seed) if self.calib else None
        options = {"layers": self.layers, "dense": self.dense, "seed": self.seed, "check": self.verify}
        return rearrange(model, self.pattern, calib=feeds, **options)  # type: ignore[arg-type]


def matters(pattern: Pattern) -> bool:
    """Does the order of channels change what the pattern can keep?"""
    return pattern.kind == "nm" or (pattern.kind == "block" and max(pattern.rows, pattern.cols) > 1)


def rearrange(
    model: Model,
    pattern: str | None,
    *,
    calib: list[Feeds] | None = None,
    layers: Sequence[str] = (),
    dense: Sequence[str] = (),
    seed: int = 0,
    check: bool = True,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
) -> Result:
    """A copy of `model` that computes the same, which is checked on `inputs`, on some of `calib` or on drawn ones; facts
    under `rearranged`. Weights are thinned out by whoever comes next.

    The network itself comes back where it cannot be compared with anything (`spa.verification.CHAOTIC`). Raises
    `UsageError` for what is no pattern, `CheckFailed` where the result does not compute the same."""
    coupling = movable(model)
    rules = [*overrides(layers), *((g, None) for g in dense)]
    chosen, _ = select(coupling, layers_of(coupling), parse(pattern) if pattern is not None else None, rules)
    chosen = {layer: p for layer, p in chosen.items() if matters(p)}
    scores = importance(coupling, chosen, calib) if chosen else {}
    orders: Orders = {}
    facts: dict[str, dict[str, Any]] = {}
    both = any(p.rows > 1 and (p.cols > 1 or p.m) for p in chosen.values())
    groups = [g for g in coupling.groups if orderless(g)]
    for number in range(ROUNDS if both else 1):
        for place, group in enumerate(groups):
            before, after, tau = improve(coupling, group, chosen, scores, seed)
            old = facts.setdefault(group.id, {"group": group.id, "channels": group.size, "kept": before})
            if tau is not None:
                sigma = permutation(group, tau)
                scores |= {
                    layer: turned(coupling, layer, scores[layer], sigma) for layer in touched(coupling, sigma, chosen)
                }
                orders[group.id] = orders[group.id][tau] if group.id in orders else tau
            old["rearranged"] = after
            progress.tell("rearranging groups", number * len(groups) + place + 1, len(groups) * (ROUNDS if both else 1))
    out = ordered(model, coupling, orders)
    if orders and check and not same(model, out, inputs or (calib[:1] if calib else None), sizes, seed):
        return Result(model, facts={"rearranged": [], "orders": {}})
    told = [{k: round(v, 6) if isinstance(v, float) else v for k, v in f.items()} for f in facts.values() if f["kept"]]
    return Result(out, facts={"rearranged": told, "orders": {g: tau.tolist() for g, tau in orders.items()}})


def reordered(model: Model, orders: Mapping[str, Sequence[int]]) -> Model:
    """Channels in the order that was found for a network of the same structure (the fact `orders`): of a group's
    channels, which stands at each place. Groups for which this would not be exact stay."""
    coupling = movable(model)
    sizes = {g.id: g.size for g in coupling.groups}
    return ordered(model, coupling, {g: np.array(tau) for g, tau in orders.items() if sizes.get(g) == len(tau)})


def ordered(model: Model, coupling: Coupling, orders: Orders) -> Model:
    moved: dict[int, Index] = {}
    for group in coupling.groups:
        if group.id in orders:
            sigma = permutation(group, orders[group.id])
            moved = composed(moved, sigma) if exact(coupling, sigma) else moved
    new = rewritten(coupling, moved)
    assert set(new) <= set(constants(model.ir).values()), "a constant that has no name in the network"
    return write_back(model, new)


def movable(model: Model) -> Coupling:
    """The network to work on; Constant nodes as initializers, where their names can be found again."""
    from spa.passes.constants import lift_constants

    working = inlined(model)
    if working is model:
        working = model.clone()
        lift_constants(working.ir)
    return analyze(working, allow_approximate=True)


def same(model: Model, out: Model, inputs: list[Feeds] | None, sizes: dict[str, int] | None, seed: int) -> bool:
    """Do two networks compute the same? False where a network is so that nothing can be said; raises `CheckFailed`
    where they do not."""
    from spa.verification import CHAOTIC, verify

    found = verify(model, out, inputs=inputs, sizes=sizes, seed=seed)
    if not found.ok and found.where != CHAOTIC:
        what = f"the rearranged network differs from the one before by {found.max_error:.1e}"
        raise CheckFailed(what, found.where, "--no-rearrange, and report this model")
    return found.ok


# Scores ----------------------------------------------------------------------------------------------------------


def importance(coupling: Coupling, chosen: Mapping[Layer, Pattern], feeds: list[Feeds] | None) -> Scores:
    walk = Walk(coupling.model, feeds) if feeds else None
    return {layer: scores_of(layer, walk) for layer in chosen}


def scores_of(layer: Layer, walk: Walk | None) -> Matrix:
    """What each weight is worth [groups, rows, cols], of all that the layer gives."""
    w = layer.view.matrix(array_of(layer.weight))
    with execution.blas(layer.cols):
        inputs = gather(layer, walk, walk) if walk else None
    if inputs is None:
        return w**2 / max(float((w**2).sum()), 1e-30)
    s = inputs.all
    power = np.einsum("gii->gi", s.xx)
    found: Matrix = w**2 * np.maximum(power, 0)[:, None] / max(float(s.yy.sum()), 1e-30)
    return found


def kept(pattern: Pattern, scores: Matrix, taps: int) -> float:
    return float(sum(s[pattern.mask(s, taps)].sum() for s in scores))


# One group -------------------------------------------------------------------------------------------------------


def improve(
    coupling: Coupling, group: Group, chosen: Mapping[Layer, Pattern], scores: Scores, seed: int
) -> tuple[float, float, Index | None]:
    """Score kept before and after, of the layers that the group runs through, and the order that does it: the channel
    that shall stand at each place. None where nothing is gained."""
    terms, involved = [], []
    for layer, pattern in chosen.items():
        found = list(sides(coupling, group, layer, pattern, scores[layer]))
        terms += found
        involved += [layer] if found else []
    if not involved:
        return 0.0, 0.0, None
    before = sum(kept(chosen[k], scores[k], k.view.taps) for k in involved)
    segments = exchangeable(coupling, group)
    # a permutation that stands for all: where it would change something, channels of this group are not moved
    trial = np.arange(group.size)
    for segment in np.unique(segments):
        trial[segments == segment] = np.roll(trial[segments == segment], 1)
    if not exact(coupling, permutation(group, trial)):
        return before, before, None
    tau = search(terms, segments, seed)
    sigma = permutation(group, tau)
    if not exact(coupling, sigma):
        return before, before, None
    after = sum(kept(chosen[k], turned(coupling, k, scores[k], sigma), k.view.taps) for k in involved)
    return (before, after, tau) if after > before * (1 + LEAST) else (before, before, None)


def sides(coupling: Coupling, group: Group, layer: Layer, pattern: Pattern, scores: Matrix) -> Iterator[Term]:
    """What the pattern of one layer has to say of the order of the group's channels: along its rows, its columns, or both."""
    shape = coupling.shapes.shape[layer.weight] or ()
    for axis, size in enumerate(shape):
        labels = group.labels.get(coupling.dims.of.get((layer.weight, axis), -1))
        if labels is None:
            continue
        at = np.arange(size).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        index = layer.view.matrix(np.broadcast_to(at, shape)).astype(np.int64)
        if size > 1 and (index == index[:, :, :1]).all():
            values, which, width = (
                in_units(scores, 2, pattern.cols if pattern.kind == "block" else 1),
                index[:, :, 0],
                pattern.rows,
            )
        elif (index == index[:, :1]).all():
            values = in_units(scores, 1, pattern.rows).transpose(0, 2, 1)
            which, width = index[:, 0], pattern.m if pattern.kind == "nm" else pattern.cols
        else:
            continue
        by_row = width == pattern.rows and (index == index[:, :, :1]).all()
        if width < 2:
            continue
        flat = values.reshape(-1, values.shape[-1])
        order = np.argsort(which.reshape(-1), kind="stable").reshape(size, -1)
        where, held = spots(labels, group.size)
        if held.shape[1] == 1:  # others than the group's own stand among them, and count
            rows = flat[order].reshape(size, -1)
        else:
            rows = np.zeros((size, held.shape[1] * order.shape[1] * flat.shape[1]), flat.dtype)
            rows[held[:, 0]] = flat[order[held]].reshape(len(held), -1)
        if pattern.kind == "nm" and not by_row:
            yield Term(rows.astype(np.float32), where, width, keep=pattern.n)
        elif pattern.kind == "nm":
            yield Term(rows.astype(np.float32), where, width, pool=(pattern.n, pattern.m))
        else:
            yield Term(rows.astype(np.float32), where, width, threshold=threshold(pattern, scores, layer.view.taps))


def in_units(scores: Matrix, axis: int, width: int) -> Matrix:
    """Sums of `width` neighbours along an axis, the last of what is left."""
    if width < 2:
        return scores
    summed: Matrix = np.add.reduceat(scores, np.arange(0, scores.shape[axis], width), axis=axis)
    return summed


def threshold(pattern: Pattern, scores: Matrix, taps: int) -> float:
    """The least score of a unit that stays."""
    units = np.concatenate([pattern.units(s, taps).reshape(-1) for s in scores])
    stay = max(1, round(pattern.density * len(units)))
    return float(np.partition(units, len(units) - stay)[len(units) - stay])


def spots(labels: Index, count: int) -> tuple[Index, Index]:
    """Per channel its first index on an axis (-1: none), and of those that have any, all of theirs [channels, times]."""
    there = np.flatnonzero(labels >= 0)
    order = there[np.argsort(labels[there], kind="stable")]
    classes, first, times = np.unique(labels[order], return_index=True, return_counts=True)
    where = np.full(count, -1)
    where[classes] = order[first]
    least = int(times.min()) if len(times) else 0
    return where, order[first[:, None] + np.arange(least)]


def touched(coupling: Coupling, sigma: Mapping[int, Index], chosen: Mapping[Layer, Pattern]) -> list[Layer]:
    return [k for k in chosen if axes_of(coupling, k.weight, sigma)]


def turned(coupling: Coupling, layer: Layer, scores: Matrix, sigma: Mapping[int, Index]) -> Matrix:
    """Scores as they stand after a permutation."""
    axes = axes_of(coupling, layer.weight, sigma)
    if not axes:
        return scores
    array = layer.view.tensor(scores, np.empty(coupling.shapes.shape[layer.weight] or (), scores.dtype))
    for axis, index in axes.items():
        array = array.take(index, axis)
    return layer.view.matrix(array)
