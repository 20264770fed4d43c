"""How much where: a density for every layer, so that on the average the share asked for goes.

uniform  the same everywhere
lamp     the weights with the lowest LAMP scores of the network go; needs no data
global   the smallest weights of the network go, but of no layer more than leaves it MINIMUM of its fair share
curves   per layer an error curve over densities: the squared relative change of the network's outputs on held-back
         inputs with this layer thinned and refitted, the others dense; what may stay is spent where it saves most

Curves and what they cost are plain lists (`Curve`), so that they can stand in one knapsack (`spa.knapsack`) with those of channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spa import cache, execution, progress
from spa.calibration import Walk
from spa.calibration import cache as statistics
from spa.coupling import Coupling
from spa.execution import Inline, ahead
from spa.sparsity import fitting, masks
from spa.sparsity.layers import Layer
from spa.sparsity.patterns import Pattern
from spa.sparsity.thinning import array_of, bias_of, gather
from spa.trials import Trial, Weights, sources

if TYPE_CHECKING:
    from spa.inputs import Feeds

DISTRIBUTIONS = ("auto", "uniform", "lamp", "global", "curves")
MINIMUM = 0.2  # of the average density stays in every layer
STEPS = (-2.0, -1.0, 0.0, 1.0)  # measured densities, in log odds from the average one
FINE = 8  # levels per step between them, by interpolation
DAMPING = 1e-2


@dataclass(frozen=True)
class Curve:
    """A layer: densities, the weights they leave, and the error there (see above); the first is the dense layer."""

    weight: str
    densities: list[float]
    counts: list[float]
    errors: list[float]


def distribute(
    coupling: Coupling,
    chosen: Mapping[Layer, Pattern],
    how: str,
    feeds: list[Feeds] | None,
    *,
    criterion: str = "auto",
) -> dict[Layer, Pattern]:
    """Patterns with a density of their own. All of `chosen` ask for the same; N:M stays as it is."""
    if not chosen or how == "uniform" or not next(iter(chosen.values())).adjustable:
        return dict(chosen)
    density = next(iter(chosen.values())).density
    if how == "curves" or (how == "auto" and feeds):
        found = curves(coupling, {layer: [p] for layer, p in chosen.items()}, feeds or [], criterion=criterion)
        share = spend(list(found.values()), density * sum(layer.size for layer in chosen))
    else:
        share = by_score(chosen, density, masks.magnitude if how == "global" else masks.lamp)
    return {layer: pattern.at(d) for (layer, pattern), d in zip(chosen.items(), share, strict=True)}


def by_score(chosen: Mapping[Layer, Pattern], density: float, score: Any) -> list[float]:
    """Densities by the units with the largest scores of the whole network."""
    units = [
        np.concatenate([np.sort(score(p.units(m**2, layer.view.taps) ** 0.5).reshape(-1)) for m in matrices(layer)])
        for layer, p in chosen.items()
    ]
    sizes = [layer.size for layer in chosen]
    each = np.concatenate([np.full(len(u), n / len(u)) for u, n in zip(units, sizes, strict=True)])
    owner = np.repeat(np.arange(len(units)), [len(u) for u in units])
    flat = np.concatenate(units)
    # the best units of each layer come first: no layer collapses
    floor = np.concatenate([np.arange(len(u))[::-1] < MINIMUM * density * len(u) for u in map(np.sort, units)])
    flat = np.concatenate([np.sort(u) for u in units])
    order = np.lexsort((-flat, ~floor))
    taken = order[np.cumsum(each[order]) <= density * sum(sizes) + 1e-9]
    kept = np.bincount(owner[taken], minlength=len(units))
    return [float(k / len(u)) for k, u in zip(kept, units, strict=True)]


def matrices(layer: Layer) -> npt.NDArray[np.float64]:
    return layer.view.matrix(array_of(layer.weight))


def odds(density: float) -> float:
    return float(np.log(density / (1 - density)))


def curves(
    coupling: Coupling,
    chosen: Mapping[Layer, Sequence[Pattern]],
    feeds: list[Feeds],
    *,
    criterion: str = "auto",
) -> dict[tuple[Layer, Pattern], Curve]:
    """Error curves of all layers in each of their patterns, measured from dense to thin, in one walk through the dense
    network; how a pattern's share is set does not matter, only what of it can be. What was measured is kept by content."""
    base = statistics.key(coupling.model, feeds, {"steps": STEPS, "criterion": criterion, "by": sources()})
    pairs = [(layer, pattern) for layer, patterns in chosen.items() for pattern in patterns]
    entries = {pair: cache.key(base, pair[0].name, str(pair[1])) for pair in pairs}
    known = {pair: kept["errors"].tolist() for pair in pairs if (kept := statistics.get(entries[pair])) is not None}
    left = {layer: [p for p in patterns if (layer, p) not in known] for layer, patterns in chosen.items()}
    progress.tell("measuring layers", len(known), len(pairs))
    for layer, pattern, errors in ahead(tried(coupling, {k: v for k, v in left.items() if v}, feeds, criterion)):
        known[layer, pattern] = errors.result()
        statistics.put(entries[layer, pattern], {"errors": np.array(known[layer, pattern])})
        progress.tell("measuring layers", len(known), len(pairs))
    return {pair: fine(pair[0], levels(pair[1]), known[pair]) for pair in pairs}


def levels(pattern: Pattern) -> list[float]:
    """The densities at which a pattern is measured, falling."""
    if not pattern.adjustable:
        return [pattern.density]
    base = odds(min(max(pattern.density, 1e-3), 1 - 1e-3))
    return [float(1 / (1 + np.exp(-base - s))) for s in sorted(STEPS, reverse=True)]


def tried(
    coupling: Coupling, chosen: Mapping[Layer, Sequence[Pattern]], feeds: list[Feeds], criterion: str
) -> Iterator[tuple[Layer, Pattern, Future[list[float]]]]:
    """Layers in their patterns, and the errors at `levels` as they come."""
    if not chosen:
        return
    walk, trial = Walk(coupling.model, feeds), Trial(coupling, feeds)
    for layer, patterns in chosen.items():
        w, inputs = matrices(layer), gather(layer, walk, walk)
        for pattern in patterns:
            if (layer.weight.name or "") not in trial.walk.constants:  # no one place in the network: by what goes
                yield layer, pattern, Inline().submit(lambda ds: [1.0 - d for d in ds], levels(pattern))
                continue
            with execution.blas(layer.cols):
                weights = [trial_weights(layer, w, inputs, pattern.at(d), criterion) for d in levels(pattern)]
            yield layer, pattern, trial.submit(weights)


def trial_weights(
    layer: Layer, w: npt.NDArray[np.float64], inputs: fitting.Inputs | None, pattern: Pattern, criterion: str
) -> Weights:
    """The constants that differ when the layer alone is thin."""
    new, shift = fitting.thinned(w, inputs, pattern, layer.view.taps, criterion, DAMPING)
    weights: Weights = {layer.weight.name or "": layer.view.tensor(new, array_of(layer.weight))}
    bias = bias_of(layer)
    if bias is not None and shift is not None:
        b = array_of(bias)
        weights[bias.name or ""] = (b + shift.reshape(b.shape)).astype(b.dtype)
    return weights


def fine(layer: Layer, measured: Sequence[float], errors: Sequence[float]) -> Curve:
    """More levels between the measured densities: the logarithm of the error is all but linear in the log odds. Beyond
    what was measured (a trial without hope ends a curve) it goes on as it did."""
    at = np.array([odds(d) for d in measured])[::-1]
    log = np.log(np.maximum(np.maximum.accumulate(errors), 1e-12))[::-1]
    known = at[len(at) - len(log) :]
    slope = max(0.5, (log[0] - log[-1]) / (known[-1] - known[0])) if len(log) > 1 else 1.0
    steps = np.linspace(at[0], at[-1] + 3, FINE * (len(at) + 3)) if len(at) > 1 else at
    guess = np.interp(steps, known, log) - slope * (np.maximum(steps - known[-1], 0) + np.minimum(steps - known[0], 0))
    shares = 1 / (1 + np.exp(-steps))
    order = np.argsort(-shares)
    densities = [1.0, *shares[order].tolist()]
    return Curve(layer.name, densities, [d * layer.size for d in densities], [0.0, *np.exp(guess[order]).tolist()])


def spend(found: Sequence[Curve], room: float) -> list[float]:
    """Per curve the density; least total error with at most `room` weights left.

    Levels are fine and errors all but convex in the weights left, so the knapsack is solved by its Lagrangian: each
    curve takes the level with the least error + price * weights, and the price is bisected."""
    counts, errors = [np.array(c.counts) for c in found], [np.array(c.errors) for c in found]

    def levels(price: float) -> list[int]:
        return [int(np.argmin(e + price * n)) for e, n in zip(errors, counts, strict=True)]

    def total(price: float) -> float:
        return float(sum(n[level] for n, level in zip(counts, levels(price), strict=True)))

    low, high = -40.0, 10.0  # of the price, as a power of ten
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if total(10**middle) <= room else (middle, high)
    chosen = levels(10**high)
    spare = room - total(10**high)
    for i in np.argsort([-n[0] for n in counts]):  # the rest of the room goes to the largest, a level at a time
        while chosen[i] and counts[i][chosen[i] - 1] - counts[i][chosen[i]] <= spare:
            spare -= counts[i][chosen[i] - 1] - counts[i][chosen[i]]
            chosen[i] -= 1
    return [c.densities[n] for c, n in zip(found, chosen, strict=True)]
