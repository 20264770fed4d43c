"""A criterion: for a group of coupled channels, one row of scores per weight, low where little is lost."""

import numpy as np

from spa.importance.tensors import GroupTensors, Score


def spread(group: GroupTensors) -> list[Score]:
    """Standard deviation of a channel's entries in each weight: a channel whose entries are all alike sees no pattern."""
    matrices = [t for t in group.tensors if t.rank > 1]
    return [np.asarray(t.rows().std(axis=1), np.float64) for t in matrices]
