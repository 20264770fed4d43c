"""Criteria of what the loss does: a channel matters as much as the loss, or its gradient, feels its weights go.

They read gradients by constant's name, each of the weight's shape, or [batches, *shape] for one per batch (the criterion
"grasp": Hessian-gradient products in their place). `spa.interop.torch.gradients` makes them; `load` reads a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spa.errors import UsageError
from spa.importance.table import Criterion
from spa.importance.tensors import GroupTensors, Score, Tensor, by_channel
from spa.shapes import tensor_of

if TYPE_CHECKING:
    from spa.coupling import Coupling

Gradients = dict[str, npt.NDArray[np.float32]]


def taylor(group: GroupTensors) -> list[Score]:
    """(sum w g)² over a channel, averaged over batches (Molchanov et al., Importance Estimation for Neural Network
    Pruning, arXiv 1906.10771, eq. 8: the squared derivative by a gate on the channel).

    Summed over the weights that read a channel, w g is that derivative whatever normalises or activates in between; where
    none reads it (queries and keys), every producer's sum is an estimate of its own."""
    reading = [p for t in group.tensors if t.enters and (p := products(t)) is not None]
    if reading:
        return [(sum(reading[1:], reading[0]) ** 2).mean(0)]
    return [(p**2).mean(0) for t in group.producers() if (p := products(t)) is not None]


def snip(group: GroupTensors) -> list[Score]:
    """sum |w g| per tensor, g over all data (Lee et al., SNIP, arXiv 1810.02340, eq. 6, whose denominator, the sum over
    the whole network, is left out: it changes no order)."""
    return [np.abs(t.rows() * g).sum(1, dtype=np.float64) for t in group.tensors if (g := mean(t)) is not None]


def grasp(group: GroupTensors) -> list[Score]:
    """sum w (H g) per tensor (Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow,
    arXiv 2002.07376, eq. 8, with the sign turned: low goes first). May be negative: removal then raises |g|²."""
    return [(t.rows() * g).sum(1, dtype=np.float64) for t in group.tensors if (g := mean(t)) is not None]


# By their own scale, the loss, the first two empty the late layers of a small network (docs/any_time.md); signs of the
# third leave no mean to divide by.
TAYLOR = Criterion(taylor, needs="gradients")
SNIP = Criterion(snip, needs="gradients", aggregate="sum")
GRASP = Criterion(grasp, needs="gradients", aggregate="sum", normalise="none")


def batches(tensor: Tensor) -> npt.NDArray[np.float32] | None:
    """[batches, *shape]"""
    found = tensor.gradients.get(tensor.name)
    return None if found is None else found if found.ndim > tensor.rank else found[None]


def products(tensor: Tensor) -> Score | None:
    """sum w g per batch and channel: [batches, channels]."""
    found = batches(tensor)
    if found is None:
        return None
    rows = tensor.rows()
    each = (by_channel(g, tensor.axis, tensor.labels, tensor.size) for g in found)
    return np.stack([np.einsum("ce,ce->c", rows, g, dtype=np.float64) for g in each])


def mean(tensor: Tensor) -> npt.NDArray[np.float32] | None:
    """The gradient over all batches, [channels, entries]."""
    found = batches(tensor)
    if found is None:
        return None
    return by_channel(found.mean(0), tensor.axis, tensor.labels, tensor.size)


def load(source: str | Path | dict[str, npt.NDArray[Any]], coupling: Coupling) -> Gradients:
    """Gradients from an npz file or a dict, by initializer name, [*shape] or [batches, *shape].

    Raises `UsageError` where an array fits no weight of the network, or the weights of a whole group have none."""
    where = "" if isinstance(source, dict) else str(source)
    if isinstance(source, dict):
        given = source
    else:
        try:
            with np.load(source, allow_pickle=False) as file:
                given = dict(file)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(
                f"cannot read the gradients: {error}", where, "an .npz file, one array per weight"
            ) from None
    shapes = {
        value.name: tuple(tensor.shape.numpy())
        for slots in coupling.parameters.values()
        for value, _ in slots
        if (tensor := tensor_of(value)) is not None
    }
    known = set(coupling.constants.values())
    for name, array in given.items():
        if name not in known:
            raise UsageError(
                f"the network has no weight '{name}'", where, f"names such as {sorted(filter(None, shapes))[:3]}"
            )
        if name in shapes and shapes[name] not in (array.shape, array.shape[1:]):
            raise UsageError(
                f"the gradient of '{name}' has the shape {array.shape}, the weight {shapes[name]}",
                where,
                "the weight's own shape, or with an axis of batches before it",
            )
    for group in coupling.groups:
        names = [v.name or "" for d in group.labels for v, _ in coupling.parameters.get(d, ())]
        if not any(n in given for n in names):
            raise UsageError(f"no gradient for the group {group.id}", where, f"an array for one of {names[:4]}")
    return {name: np.asarray(array, np.float32) for name, array in given.items()}
