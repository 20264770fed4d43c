"""What every engine has, and the small things they share.

An `Engine` is one loaded instance: `run(feeds)` gives the outputs, `step()` runs once more on the same inputs and gives
the seconds it took, `part(i)` runs the i-th of its `parts()` (one kernel call each, as in the manifest) on what the
parts before it left, and gives its seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from spa.errors import SpaError
from spa.runtime.load import Target
from spa.runtime.tensor import Array, Tensor

ALIGNMENT = 64  # bytes: of an instance's memory


class Engine(Protocol):
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...
    def step(self) -> float: ...
    def parts(self) -> int: ...
    def part(self, index: int) -> float: ...
    def close(self) -> None: ...


class InProcess:
    """An engine whose functions are called here: `_run` and `_run_step`, with `_arguments` in front."""

    target: Target
    _run: Any
    _run_step: Any
    _arguments: tuple[Any, ...]
    _parts: int

    def step(self) -> float:
        return self._timed(self._run)

    def parts(self) -> int:
        return self._parts

    def part(self, index: int) -> float:
        return self._timed(self._run_step, index)

    def _timed(self, function: Any, *more: int) -> float:
        begin = time.perf_counter()
        code = function(*self._arguments, *more)
        seconds = time.perf_counter() - begin
        fail(code, self.target.prefix)
        return seconds


def fail(code: int, prefix: str) -> None:
    """Raise what an artifact returned, if it is an error."""
    if code:
        raise SpaError(f"{prefix} returned error {code}", "runtime", "compile the bundle again")


def split(data: bytes, outputs: Sequence[Tensor]) -> dict[str, Array]:
    """Outputs that lie one behind the other."""
    result, at = {}, 0
    for t in outputs:
        result[t.name] = (
            np.frombuffer(data, t.dtype, t.nbytes // np.dtype(t.dtype).itemsize, at).reshape(t.shape).copy()
        )
        at += t.nbytes
    return result
