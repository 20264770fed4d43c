"""Scores of all groups by one criterion: rows, put together, made comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from spa.coupling import Coupling, Group
from spa.errors import UsageError
from spa.importance.combine import AGGREGATES, NORMALISATIONS
from spa.importance.table import Criterion, find
from spa.importance.tensors import Score, Statistics, group_tensors

Normalisation = Callable[[Score], Score]
MISSING = {
    "moments": ("needs calibration inputs", "calib=..., on the command line --calib FILE or --calib synthetic"),
    "gradients": ("needs gradients", "gradients=..., on the command line --gradients FILE.npz; see docs/criteria.md"),
}


def scores(
    coupling: Coupling,
    criterion: str | Criterion = "l2",
    statistics: Statistics | None = None,
    *,
    aggregate: str | None = None,
    normalise: str | None = None,
    groups: Iterable[Group] | None = None,
) -> dict[str, Score]:
    """Group id -> score per channel [size]; groups the criterion has nothing to judge by are left out.

    `aggregate` and `normalise` override the criterion's own. Raises `UsageError` for unknown names, where the
    statistics it needs are missing, and where it can judge no group at all."""
    name = criterion if isinstance(criterion, str) else "given"
    rule = find(criterion) if isinstance(criterion, str) else criterion
    together = choice(AGGREGATES, aggregate or rule.aggregate, "aggregation")
    scale = choice(NORMALISATIONS, normalise or rule.normalise, "normalisation")
    known = statistics or Statistics()
    if rule.needs in MISSING and not getattr(known, rule.needs) and coupling.groups:
        what, hint = MISSING[rule.needs]
        raise UsageError(f"the criterion {name} {what}", hint=hint)
    found: dict[str, Score] = {}
    asked = coupling.groups if groups is None else list(groups)
    for view in group_tensors(coupling, known, asked):
        rows = rule.score(view)
        if rows:
            found[view.group.id] = checked(scale(together(np.stack(rows))), view.size, name)
    if asked and not found:
        hint = (
            "it reads the scales of BatchNormalization: were they folded into the weights?"
            if name == "bn_scale"
            else ""
        )
        raise UsageError(
            f"the criterion {name} finds nothing to judge by in this network", hint=hint or "another criterion"
        )
    return found


def choice(table: Mapping[str, Normalisation], name: str, what: str) -> Normalisation:
    from spa.pipeline import suggest

    if name not in table:
        raise UsageError(f"no {what} is called '{name}'", hint=suggest(name, table) or f"one of {', '.join(table)}")
    return table[name]


def checked(score: Score, size: int, name: str) -> Score:
    if score.shape != (size,) or not np.isfinite(score).all():
        raise UsageError(f"the criterion {name} gave no finite score for each of {size} channels")
    return score
