"""Permutations of a group's channels: what they do to the indices of every axis, and whether they change anything.

A channel of a group stands at the same place of every tensor that the group runs through, so moving it in all constants
at once moves it in all activations, and the network computes what it did. This holds where every relation between axes
is carried into itself, which is checked for each permutation, pair by pair of indices, before it is made:

    (i, j) related  =>  (s_a(i), s_b(j)) related          s_a, s_b: what the permutation does to the indices of a and b

So heads move whole, parts of a concatenation stay in their part, a slice keeps what it takes. No node changes. What may
not be removed exactly may be moved all the same, where an operator sums or compares over the axis in any order (a layer
normalisation); one that looks at neighbours (LRN) keeps its group as it is: `orderless`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling.analysis import Coupling, Group
from spa.coupling.groups import Labels
from spa.coupling.prepare import COPY
from spa.shapes import tensor_of

Moves = Mapping[int, Labels]  # dim -> sigma: at index i stands what stood at sigma[i]
ORDERED = {"LRN"}  # operators that mix neighbours along an axis
CODES = {"DequantizeLinear", "QLinearConv"}  # whose whole numbers are values, not positions
POINTERS = (ir.DataType.INT32, ir.DataType.INT64)


def orderless(group: Group) -> bool:
    """Does nothing that the group runs through depend on which channel is beside which?"""
    return not any(note.op in ORDERED for note in group.notes)


def exchangeable(coupling: Coupling, group: Group) -> Labels:
    """A segment per channel: channels of one segment have as many indices on every axis, and stand on the same sides
    of every relation."""
    dims = coupling.dims
    columns = []

    def count(labels: Labels) -> None:
        columns.append(np.bincount(labels[labels >= 0], minlength=group.size))

    for dim, labels in group.labels.items():
        count(labels)
        for a, b, data in dims.graph.edges(dim, data=True):
            for end, mine in zip(data["ends"], data["maps"], strict=True):
                if end in (a, b) and end in group.labels:
                    count(group.labels[end][mine])
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def permutation(group: Group, tau: Labels) -> dict[int, Labels]:
    """Per dim sigma: at index i stands what stood at sigma[i], when channel tau[c] comes to where c was."""
    found = {}
    for dim, labels in group.labels.items():
        there = np.flatnonzero(labels >= 0)
        order = there[np.argsort(labels[there], kind="stable")]
        classes, first, times = np.unique(labels[order], return_index=True, return_counts=True)
        start, length = np.zeros(len(tau), np.int64), np.zeros(len(tau), np.int64)
        start[classes], length[classes] = first, times
        nth = np.arange(len(order)) - np.repeat(first, times)
        comes = tau[labels[order]]
        sigma = np.arange(len(labels))
        sigma[order] = order[np.minimum(start[comes] + nth, len(order) - 1)]
        if (length[comes] != length[labels[order]]).any():
            sigma = np.zeros(len(labels), np.int64)  # no permutation at all: `exact` says no
        if not np.array_equal(sigma, np.arange(len(labels))):
            found[dim] = sigma
    return found


def exact(coupling: Coupling, sigma: Moves) -> bool:
    """Is every relation between axes carried into itself, and does no list of positions move?"""
    dims = coupling.dims

    def carried(a: int, b: int, i: Labels, j: Labels) -> bool:
        if a not in sigma and b not in sigma:
            return True
        p = sigma[a][i] if a in sigma else i
        q = sigma[b][j] if b in sigma else j
        wide = dims.size[b]
        return bool(np.isin(p * wide + q, i * wide + j).all())

    if any(len(np.unique(s)) < len(s) for s in sigma.values()):
        return False
    for dim in sigma:
        for _, _, data in dims.graph.edges(dim, data=True):
            if not carried(*data["ends"], *data["maps"]):
                return False
    for merged, parts in dims.factors:
        e = np.arange(dims.size[merged])
        if not all(carried(merged, dim, e, part) for dim, part in parts):
            return False
    for value in coupling.constants:
        axes = [a for a in range(len(coupling.shapes.shape[value] or ())) if coupling.dims.of.get((value, a)) in sigma]
        if axes and value.dtype in POINTERS and any(u.node.op_type not in CODES for u in value.uses()):
            array = contents(value)
            if any(not np.array_equal(array, array.take(sigma[dims.of[value, a]], a)) for a in axes):
                return False
    return True


def axes_of(coupling: Coupling, value: ir.Value, sigma: Moves) -> dict[int, Labels]:
    shape = coupling.shapes.shape[value] or ()
    found = {a: sigma.get(coupling.dims.of.get((value, a), -1)) for a in range(len(shape))}
    return {a: s for a, s in found.items() if s is not None}


def composed(first: Moves, then: Moves) -> dict[int, Labels]:
    return {**first, **{d: first[d][s] if d in first else s for d, s in then.items()}}


def rewritten(coupling: Coupling, sigma: Moves) -> dict[str, npt.NDArray[Any]]:
    """Constants by name, as a permutation of dims leaves them."""
    new = {}
    for value, name in coupling.constants.items():
        axes = axes_of(coupling, value, sigma)
        if not axes or COPY in value.meta:  # copies of a filler are alike all over
            continue
        array = old = contents(value)
        for axis, index in axes.items():
            array = array.take(index, axis)
        if not np.array_equal(array, old):
            new[name] = array
    return new


def contents(value: ir.Value) -> npt.NDArray[Any]:
    tensor = tensor_of(value)
    assert tensor is not None
    return tensor.numpy()
