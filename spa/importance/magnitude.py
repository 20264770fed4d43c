"""Criteria of the weights' size alone. Every function gives one row per coupled tensor."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from spa.importance.table import Criterion
from spa.importance.tensors import GroupTensors, Rows, Score

if TYPE_CHECKING:
    from spa.coupling import Coupling


def l1(group: GroupTensors) -> list[Score]:
    """|w_c|_1 per tensor (Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710, section 3.1)."""
    return [np.abs(t.rows()).sum(1, dtype=np.float64) for t in group.tensors]


def l2(group: GroupTensors) -> list[Score]:
    """|w_c|_2 per tensor (as l1; over coupled tensors: DepGraph, arXiv 2301.12900, section 3.3)."""
    return [np.sqrt(squares(t.rows())) for t in group.tensors]


def bn_scale(group: GroupTensors) -> list[Score]:
    """|gamma| of every BatchNormalization (Liu et al., Network Slimming, arXiv 1708.06519, section 3)."""
    found = [t for t in group.tensors if ("BatchNormalization", 1) in t.uses]
    return [np.abs(t.rows()).sum(1, dtype=np.float64) for t in found]


def random(group: GroupTensors) -> list[Score]:
    """Uniform in [0, 1), from the seed and the group's name: what any criterion must beat."""
    rng = np.random.default_rng([group.seed, zlib.crc32(group.group.id.encode())])
    return [rng.random(group.size)]


def squares(rows: Rows) -> Score:
    """Row sums of squares in double precision."""
    return np.asarray(np.einsum("ce,ce->c", rows, rows, dtype=np.float64), np.float64)


L1 = Criterion(l1)
L2 = Criterion(l2)
LAMP = Criterion(l2, normalise="lamp")  # Lee et al., arXiv 2010.07611: see spa.importance.combine.lamp
BN_SCALE = Criterion(bn_scale)
RANDOM = Criterion(random, normalise="none")


def magnitude(coupling: Coupling, criterion: str = "l2", aggregate: str | None = None) -> dict[str, Score]:
    """Group id -> score per channel by size of the weights, mean 1."""
    from spa.importance.scores import scores

    return scores(coupling, criterion, aggregate=aggregate)
