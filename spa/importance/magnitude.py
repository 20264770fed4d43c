"""Magnitude: a channel matters as much as its weights are large (Li et al., Pruning Filters for Efficient ConvNets).

Per coupled tensor the l1 or l2 norm of each channel's slice; across the tensors of a group their sum, mean or maximum;
divided by the group's mean, so that groups of different layers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling import Coupling, Group
from spa.shapes import tensor_of

Score = npt.NDArray[np.float64]

AGGREGATES: dict[str, Callable[[Score], Score]] = {
    "sum": lambda s: s.sum(0),
    "mean": lambda s: s.mean(0),
    "max": lambda s: s.max(0),
}
ORDERS = {"l1": 1, "l2": 2}


def magnitude(coupling: Coupling, criterion: str = "l2", aggregate: str = "mean") -> dict[str, Score]:
    """Group id -> score per channel [size], mean 1. Each weight is read once."""
    order = ORDERS[criterion]
    norms: dict[tuple[ir.Value, int], Score] = {}
    needed: dict[ir.Value, set[int]] = {}
    for group in coupling.groups:
        for dim in group.labels:
            for value, axis in coupling.parameters.get(dim, ()):
                needed.setdefault(value, set()).add(axis)
    for value, axes in needed.items():
        tensor = tensor_of(value)
        assert tensor is not None
        weights = np.abs(tensor.numpy().astype(np.float64))
        if order == 2:
            weights *= weights
        for axis in axes:
            norms[value, axis] = weights.sum(axis=tuple(i for i in range(weights.ndim) if i != axis))
    return {g.id: _score(coupling, g, norms, order, AGGREGATES[aggregate]) for g in coupling.groups}


def _score(
    coupling: Coupling,
    group: Group,
    norms: dict[tuple[ir.Value, int], Score],
    order: int,
    aggregate: Callable[[Score], Score],
) -> Score:
    rows = []
    for dim, labels in group.labels.items():
        held = labels >= 0
        for value, axis in coupling.parameters.get(dim, ()):
            rows.append(np.bincount(labels[held], norms[value, axis][held], minlength=group.size) ** (1 / order))
    score = aggregate(np.stack(rows))
    mean = score.mean()
    return score / mean if mean > 0 else score
