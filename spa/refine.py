"""Refinement: search around the knapsack's levels for those whose network, mended, really drifts least.

The knapsack adds up errors that were measured one group at a time. An evolutionary search with one parent (EvoPress,
arXiv 2410.14649, Alg. 1) corrects for what they do together: some groups give up a level more, others get one back as
long as the budget holds, and a child replaces its parent where its drift is lower. The drift is that on held-back
inputs of the network mended, in execution order, on the other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spa import progress

Levels = tuple[int, ...]


def refine(
    start: Sequence[int],
    most: Sequence[int],
    cost: Callable[[Levels], float],
    limit: float,
    drift: Callable[[Levels], float],
    trials: int,
    seed: int = 0,
) -> Levels:
    """The best of `trials` children of `start` and of one another: levels from 0 to `most` per group whose cost is at
    most `limit`. Same seed, same result."""
    rng = np.random.default_rng(seed)
    parent: Levels = tuple(start)
    best, seen = drift(parent), {parent}
    for number in range(trials):
        child = mutate(parent, most, cost, limit, rng, seen)
        if child is None:
            break
        seen.add(child)
        value = drift(child)
        if value < best:
            parent, best = child, value
        progress.tell("refining", number + 1, trials)
    return parent


def mutate(
    parent: Levels,
    most: Sequence[int],
    cost: Callable[[Levels], float],
    limit: float,
    rng: np.random.Generator,
    seen: set[Levels],
    attempts: int = 50,
) -> Levels | None:
    """A child not seen before within the budget; None where none is found."""
    for _ in range(attempts):
        levels = list(parent)
        up = rng.choice(len(levels), size=min(len(levels), int(rng.integers(0, 3))), replace=False)
        for i in up:
            levels[i] = min(most[i], levels[i] + 1)
        for i in rng.permutation(len(levels)):
            if i not in up and levels[i] > 0:
                fewer = (*levels[:i], levels[i] - 1, *levels[i + 1 :])
                if cost(fewer) <= limit:
                    levels[i] -= 1
        child = tuple(levels)
        if child not in seen and cost(child) <= limit:
            return child
    return None
