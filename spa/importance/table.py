"""Criteria by name: ours in one table, others through the entry point group `spa.criteria`. Importing this costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.importance.tensors import GroupTensors, Score

ENTRY_POINTS = "spa.criteria"
Needs = Literal["weights", "moments", "gradients"]

# name -> where its `Criterion` is; imported when it is used
CRITERIA = {
    "l1": "spa.importance.magnitude:L1",
    "l2": "spa.importance.magnitude:L2",
    "lamp": "spa.importance.magnitude:LAMP",
    "bn_scale": "spa.importance.magnitude:BN_SCALE",
    "random": "spa.importance.magnitude:RANDOM",
    "fpgm": "spa.importance.geometry:FPGM",
    "cosine": "spa.importance.geometry:COSINE",
    "kernel": "spa.importance.kernel:KERNEL",
    "wanda": "spa.importance.activation:WANDA",
    "drift": "spa.importance.activation:DRIFT",
    "variance": "spa.importance.activation:VARIANCE",
    "obs": "spa.importance.activation:OBS",
    "taylor": "spa.importance.gradient:TAYLOR",
    "snip": "spa.importance.gradient:SNIP",
    "grasp": "spa.importance.gradient:GRASP",
}


@dataclass(frozen=True)
class Criterion:
    """`score` gives rows [tensors, channels] of a group, low where little is lost; none where it has nothing to judge by.

    Rows are put together by `aggregate` and made comparable between groups by `normalise` (`spa.importance.combine`);
    both are defaults a user may override. `needs` says which statistics it reads."""

    score: Callable[[GroupTensors], list[Score]]
    needs: Needs = "weights"
    aggregate: str = "mean"
    normalise: str = "mean"


def available() -> dict[str, str]:
    """Name -> import path, from here and from entry points. A name of ours cannot be taken over."""
    outside = {e.name: e.value for e in entry_points(group=ENTRY_POINTS)}
    return {**outside, **CRITERIA}


def find(name: str) -> Criterion:
    """The criterion of a name; a plain function becomes one that reads weights alone.

    Raises `UsageError` for a name nobody has, or one whose import fails."""
    from spa.pipeline import suggest

    where = available()
    if name not in where:
        raise UsageError(f"no criterion is called '{name}'", hint=suggest(name, where) or f"one of {', '.join(where)}")
    module, _, attribute = where[name].partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the criterion '{name}' cannot be imported: {error}", where[name]) from error
    if isinstance(found, Criterion):
        return found
    if not callable(found):
        raise UsageError(f"the criterion '{name}' is neither a function nor a Criterion", where[name])
    score: Any = found
    return Criterion(score)
