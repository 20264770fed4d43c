"""Where the time of a run goes: each of its parts timed, run after run."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from spa.runtime.engine import Engine

MIN_ROUNDS = 5


def part_seconds(engine: Engine, seconds: float = 2.0) -> npt.NDArray[np.float64]:
    """The median seconds of each part, over whole runs: every part finds caches as it finds them in a run."""
    count = engine.parts()
    for part in range(count):
        engine.part(part)
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < MIN_ROUNDS or time.perf_counter() < end:
        rounds.append([engine.part(part) for part in range(count)])
    return np.median(np.array(rounds, np.float64).reshape(len(rounds), count), axis=0)
