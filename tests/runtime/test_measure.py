"""The timing loop: turn by turn, the ratio of neighbours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spa.runtime.bench import MIN_RUNS, measure


def stepper(log: list[str], name: str, seconds: Callable[[int], float]) -> Callable[[], float]:
    def step() -> float:
        log.append(name)
        return seconds(log.count(name))

    return step


def test_runs_alternate_and_the_ratio_is_theirs_over_ours() -> None:
    log: list[str] = []
    noise = lambda n: 100.0 if n % 2 else 1.0  # noqa: E731  # what hits one run hits its neighbour
    timing = measure(stepper(log, "a", noise), stepper(log, "b", lambda n: 2 * noise(n)), runs=6)
    assert log == ["a", "b"] * 7  # one to warm up
    assert timing.ratio == pytest.approx(2.0)
    assert len(timing.ours) == 6
    assert timing.ours.max() == pytest.approx(100e3)  # milliseconds


def test_a_pause_after_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr("spa.runtime.bench.time.sleep", lambda seconds: log.append(str(seconds)))
    measure(stepper(log, "a", lambda n: 1.0), stepper(log, "b", lambda n: 1.0), runs=2, pause=0.5)
    assert log == ["a", "b"] + ["a", "0.5", "b", "0.5"] * 2


def test_alone_there_is_no_ratio() -> None:
    timing = measure(stepper([], "a", lambda n: 0.5), None, seconds=0)
    assert timing.ratio is None and timing.theirs is None and len(timing.ours) == MIN_RUNS
