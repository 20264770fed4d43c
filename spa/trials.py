"""Trials: how far a network's outputs move when some of its weights are others, on inputs held back from fitting."""

from __future__ import annotations

import math
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from spa import cache, execution
from spa.calibration import HELD, Walk
from spa.calibration.walk import Branch
from spa.cost import Budget
from spa.drift import drift

if TYPE_CHECKING:
    from spa.coupling import Coupling
    from spa.inputs import Feeds

Weights = dict[str, npt.NDArray[Any]]

HOPELESS = 0.5  # squared relative output error beyond which nothing more is tried
TRIAL_MACS = 2e10  # about as much work per point of a curve: large networks are judged on fewer of the held-back inputs


class Trial:
    """The dense network on held-back inputs, and how far others are from it."""

    def __init__(self, coupling: Coupling, feeds: list[Feeds]) -> None:
        held = feeds[HELD - 1 :: HELD] or feeds[-1:]
        work = Budget(coupling).of("macs", {}) * max((len(a) for a in held[0].values() if a.ndim), default=1)
        self.walk = Walk(coupling.model, held[: max(1, math.ceil(TRIAL_MACS / max(1.0, work)))])
        self.dense = next(self.walk.branch(()).run([{}]))

    def submit(self, trials: list[Weights]) -> Future[list[float]]:
        """The error of each trial, as far as there is hope. Trials come in the order in which the network reads them."""
        names = {n for t in trials for n in t}
        self.walk.advance_to(names)
        return execution.executor().submit(errors, self.walk.branch(sorted(names)), trials, self.dense)


def errors(branch: Branch, trials: list[Weights], dense: list[list[Any]]) -> list[float]:
    """Squared relative output errors, of one trial after the other until one is hopeless."""
    found: list[float] = []
    for outputs in branch.run(trials):
        found.append(drift(dense, outputs) ** 2)
        if found[-1] > HOPELESS:
            break
    return found


@lru_cache
def sources() -> str:
    """A digest of the code that shapes an error curve."""
    here = Path(__file__).parent
    return cache.versions((), [here, here / "passes"])
