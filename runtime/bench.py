"""Timing engines against each other in one process, turn by turn, so that both see the same machine.

What a busy machine does to one run it does to its neighbour: the ratio is the median of the ratios of neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Step = Callable[[], float]  # runs once, gives seconds
MIN_RUNS = 10
SETTLED = 0.02  # seconds until threads that spun on after a run, on the cores of the other, are asleep
WARMUP = 3  # runs, and
WARMUP_SECONDS = 0.5  # at least: engines for JavaScript compile in stages, cores raise their clock


@dataclass(frozen=True, eq=False)
class Timing:
    """Milliseconds of each run, ours and (where there is one) theirs, in the order they were made."""

    ours: np.ndarray[tuple[int], np.dtype[np.float64]]
    theirs: np.ndarray[tuple[int], np.dtype[np.float64]] | None

    @property
    def ratio(self) -> float | None:
        """theirs / ours, the median over neighbours: 2.0 = we are twice as fast."""
        return None if self.theirs is None else float(np.median(self.theirs / self.ours))

    def ratio_at(self, percentile: float) -> float | None:
        """How far the ratios of neighbours spread."""
        return None if self.theirs is None else float(np.percentile(self.theirs / self.ours, percentile))


def measure(
    ours: Step, theirs: Step | None, seconds: float = 3.0, runs: int | None = None, pause: float = 0.0
) -> Timing:
    """Run both in turn for about so many seconds in all (at least `MIN_RUNS` each), or exactly `runs` times each; with a
    `pause` in seconds after every turn."""
    steps = [s for s in (ours, theirs) if s is not None]
    warm = 0 if runs is not None else min(WARMUP_SECONDS, seconds)
    end, done = time.perf_counter() + warm, 0
    while done < (1 if runs is not None else WARMUP) or (time.perf_counter() < end):
        for step in steps:
            step()
        done += 1
    taken: list[list[float]] = [[] for _ in steps]
    end = time.perf_counter() + seconds
    while len(taken[0]) < (runs or MIN_RUNS) or (runs is None and time.perf_counter() < end):
        for step, times in zip(steps, taken, strict=True):
            times.append(step() * 1e3)
            time.sleep(pause)
    arrays = [np.asarray(t) for t in taken]
    return Timing(arrays[0], arrays[1] if theirs is not None else None)
