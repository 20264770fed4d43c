"""Merge: fold the channels that go into similar ones that stay, from the weights alone.

`spa.importance.kernel` says what covariance C the channels of a group have as far as the weights tell. The best stand-in
for the channels P that go, from the kept ones K, gives the readers

    W' = W_K + W_P C_PK (C_KK + d I)^-1

which is the repair of `compensate` with this covariance in place of a measured one. A channel that equals a multiple of
another is merged into it (Srinivas & Babu, Data-free Parameter Pruning, arXiv 1507.06149); one like several others is
shared out. Biases stay: without inputs, means are not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.calibration import readers
from spa.coupling import Coupling, analyze
from spa.coupling.analysis import Mask
from spa.coupling.groups import Labels
from spa.importance.kernel import DAMPING, covariance
from spa.importance.tensors import Matrix, group_tensors
from spa.inputs import Feeds
from spa.model import Model
from spa.shapes import tensor_of


@dataclass(frozen=True)
class Merged:
    """One group: how many channels went, and the share of their variance that the kept ones make up for (0 to 1), if
    what the readers read has the covariance that the weights suggest."""

    group: str
    removed: int
    explained: float


def merge(
    coupling: Coupling, gone: dict[int, Mask], feeds: list[Feeds] | None = None, damping: float = DAMPING
) -> tuple[Model, list[Merged]]:
    """The network of `coupling` in full size, its readers mended for the removal of `gone`, and what was done.

    With `feeds` (drawn ones will do) the network stays as it is where mending takes its outputs further from the dense
    network's than leaving it alone does."""
    from spa.planning import channels

    chosen = channels(coupling, gone)
    own = coupling.model.ir.graph.initializers
    contracted = dict.fromkeys((r.weight, r.axis) for r in readers(coupling) if r.weight.name in own)
    changed: dict[ir.Value, npt.NDArray[Any]] = {}
    done = []
    for view in group_tensors(coupling, groups=[g for g in coupling.groups if g.id in chosen]):
        lost, labels = chosen[view.group.id], view.group.labels
        stand_in, explained = substitutes(covariance(view), lost, damping)
        here = [(w, a) for w, a in contracted if coupling.dims.of[w, a] in labels]
        for weight, axis in here:
            tensor = tensor_of(weight)
            assert tensor is not None
            array = changed.get(weight, tensor.numpy())
            changed[weight] = share_out(array, axis, labels[coupling.dims.of[weight, axis]], stand_in, lost)
        if here:
            done.append(Merged(view.group.id, int(lost.sum()), explained))
    model = coupling.model.clone()
    for value, array in changed.items():
        assert value.name is not None
        model.ir.graph.initializers[value.name].const_value = ir.tensor(array, name=value.name)
    if feeds and done and not closer(coupling, model, gone, feeds):
        return coupling.model, []
    return model, done


def substitutes(central: Matrix, lost: Mask, damping: float) -> tuple[Matrix, float]:
    """[kept, lost]: the kept channels' shares in each lost one; and the share of the lost ones' variance they explain."""
    kept = ~lost
    block, cross = central[np.ix_(kept, kept)], central[np.ix_(kept, lost)]
    scale = float(np.trace(block)) / max(1, len(block))
    found = np.linalg.solve(block + np.eye(len(block)) * (damping * scale + 1e-12), cross).astype(np.float64)
    whole = float(np.trace(central[np.ix_(lost, lost)]))
    left = whole - 2 * float(np.vdot(found, cross)) + float(np.vdot(found, block @ found))
    return found, min(1.0, max(0.0, 1 - left / whole)) if whole > 0 else 1.0


def share_out(array: npt.NDArray[Any], axis: int, labels: Labels, stand_in: Matrix, lost: Mask) -> npt.NDArray[Any]:
    """A reader's weight: slices of lost channels added to kept ones. Where channels have several indices, the first goes
    to the first, and so on; where they have different numbers of them, the weight stays as it is."""
    counts = np.bincount(labels[labels >= 0], minlength=len(lost))
    if len(set(counts.tolist())) != 1:
        return array
    order = np.argsort(labels, kind="stable")
    index = order[np.searchsorted(labels[order], 0) :].reshape(len(lost), -1)  # [channels, indices of each]
    slices: Matrix = np.moveaxis(array, axis, 0).astype(np.float64)
    added = np.tensordot(stand_in, slices[index[lost]], 1)  # [kept, indices, ...]
    slices[index[~lost]] += added.astype(np.float64)
    return np.moveaxis(slices, 0, axis).astype(array.dtype)


def closer(coupling: Coupling, mended: Model, gone: dict[int, Mask], feeds: list[Feeds]) -> bool:
    """Is the mended network, without what is gone, closer to the dense one than the network left alone?"""
    from spa.drift import drift
    from spa.passes.compensate import unmended

    dense = unmended(coupling, {}, feeds)
    twin = analyze(mended, sizes=coupling.shapes.sizes)
    return drift(dense, unmended(twin, gone, feeds)) < drift(dense, unmended(coupling, gone, feeds))
