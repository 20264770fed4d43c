"""How much where: a density for every layer, so that on the average the share asked for goes.

uniform  the same everywhere
lamp     the weights with the lowest LAMP scores of the network go; needs no data
global   the smallest weights of the network go, but of no layer more than leaves it MINIMUM of its fair share
curves   per layer an error curve over densities: the squared relative change of the network's outputs on held-back
         inputs with this layer thinned and refitted, the others dense; what may stay is spent where it saves most

Curves and what they cost are plain lists (`Curve`), so that they can stand in one knapsack (`spa.knapsack`) with those of channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spa.calibration import HELD, Walk
from spa.cost import Budget
from spa.coupling import Coupling
from spa.drift import drift
from spa.sparsity import fitting, masks
from spa.sparsity.layers import Layer
from spa.sparsity.patterns import Pattern
from spa.sparsity.thinning import Tick, array_of, bias_of, gather, silent

if TYPE_CHECKING:
    from spa.inputs import Feeds

DISTRIBUTIONS = ("auto", "uniform", "lamp", "global", "curves")
MINIMUM = 0.2  # of the average density stays in every layer
STEPS = (-2.0, -1.0, 0.0, 1.0)  # measured densities, in log odds from the average one
FINE = 8  # levels per step between them, by interpolation
DAMPING = 1e-2
TRIAL_MACS = 2e10  # about as much work per point of a curve


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
    tick: Tick = silent,
) -> dict[Layer, Pattern]:
    """Patterns with a density of their own. All of `chosen` ask for the same; N:M stays as it is."""
    if not chosen or how == "uniform" or not next(iter(chosen.values())).adjustable:
        return dict(chosen)
    density = next(iter(chosen.values())).density
    if how == "curves" or (how == "auto" and feeds):
        found = curves(coupling, chosen, feeds or [], criterion=criterion, tick=tick)
        share = spend(found, density * sum(layer.size for layer in chosen))
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
    chosen: Mapping[Layer, Pattern],
    feeds: list[Feeds],
    *,
    criterion: str = "auto",
    tick: Tick = silent,
) -> list[Curve]:
    """Error curves of all layers, measured from dense to thin, in one walk through the dense network."""
    walk, behind = Walk(coupling.model, feeds), Walk(coupling.model, judges(coupling, feeds))
    dense = next(behind.branch(()).run([{}]))
    found = []
    for number, (layer, pattern) in enumerate(chosen.items()):
        base = odds(min(max(pattern.density, 1e-3), 1 - 1e-3))
        levels = [float(1 / (1 + np.exp(-base - s))) for s in sorted(STEPS, reverse=True)]
        w, inputs = matrices(layer), gather(layer, walk, walk)
        name, bias, old = layer.weight.name or "", bias_of(layer), array_of(layer.weight)
        trials = []
        for density in levels:
            new, shift = fitting.thinned(w, inputs, pattern.at(density), layer.view.taps, criterion, DAMPING)
            weights = {name: layer.view.tensor(new, old)}
            if bias is not None and shift is not None:
                b = array_of(bias)
                weights[bias.name or ""] = (b + shift.reshape(b.shape)).astype(b.dtype)
            trials.append(weights)
        errors = [1.0 - d for d in levels]
        if name in behind.constants:
            behind.advance_to({name})
            runs = behind.branch(sorted({n for t in trials for n in t})).run(trials)
            errors = [drift(dense, outputs) ** 2 for outputs in runs]
        found.append(fine(layer, [1.0, *levels], [0.0, *np.maximum.accumulate(errors).tolist()]))
        tick(number + 1, len(chosen))
    return found


def judges(coupling: Coupling, feeds: list[Feeds]) -> list[Feeds]:
    """Held-back inputs, of large networks fewer."""
    held = feeds[HELD - 1 :: HELD] or feeds[-1:]
    work = Budget(coupling).of("macs", {}) * max((len(a) for a in held[0].values() if a.ndim), default=1)
    return held[: max(1, math.ceil(TRIAL_MACS / max(1.0, work)))]


def fine(layer: Layer, densities: list[float], errors: list[float]) -> Curve:
    """More levels between the measured ones: the logarithm of the error is all but linear in the log odds."""
    at = np.array([odds(d) for d in densities[1:]][::-1])
    log = np.log(np.maximum(np.array(errors[1:])[::-1], 1e-12))
    steps = np.linspace(at[0], at[-1] + 3, FINE * (len(at) + 3))
    slope = max(0.5, (log[0] - log[-1]) / (at[-1] - at[0]))
    guess = np.where(steps <= at[-1], np.interp(steps, at, log), log[-1] - slope * (steps - at[-1]))
    levels = 1 / (1 + np.exp(-steps))
    order = np.argsort(-levels)
    shares = [1.0, *levels[order].tolist()]
    return Curve(layer.name, shares, [d * layer.size for d in shares], [0.0, *np.exp(guess[order]).tolist()])


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
