"""What a criterion sees: the tensors a group runs through, channels first, and the statistics of what they read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.calibration import Moments, Reader, readers
from spa.coupling import Coupling, Group
from spa.coupling.groups import Labels
from spa.shapes import tensor_of

Score = npt.NDArray[np.float64]  # one number per channel
Rows = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


# activations that let (mostly) the positive part through
RECTIFIERS = {
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "FastGelu", "Softplus", "Mish",
    "Swish", "HardSwish", "HardSigmoid", "Sigmoid", "Erf",
}  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """What is known beside the weights: moments of what readers read, gradients by constant's name, a seed."""

    moments: Mapping[Reader, Moments] = field(default_factory=dict)
    gradients: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """One axis of one weight, along which index i belongs to channel `labels[i]` (-1: none) of a group of `size`.

    `enters`: the axis is contracted, a channel enters here, rather than to leave or to pass."""

    value: ir.Value
    axis: int
    labels: Labels
    size: int
    enters: bool = False
    gradients: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.value.name or ""

    @cached_property
    def rank(self) -> int:
        tensor = tensor_of(self.value)
        return len(tensor.shape) if tensor is not None else 0

    @cached_property
    def uses(self) -> list[tuple[str, int]]:
        """Operators that read it, and at which position."""
        return [(u.node.op_type, u.idx) for u in self.value.uses()]

    def rows(self) -> Rows:
        """[channels, entries] of the weight, read anew each time, padded with zeros."""
        tensor = tensor_of(self.value)
        assert tensor is not None
        return by_channel(tensor.numpy(), self.axis, self.labels, self.size)


def by_channel(array: npt.NDArray[np.generic], axis: int, labels: Labels, size: int) -> Rows:
    """[size, entries]: per channel its slices along `axis`, flattened, zeros where a channel has fewer than others."""
    rows = np.moveaxis(array, axis, 0).reshape(len(labels), -1).astype(np.float32, copy=False)
    if len(labels) == size and np.array_equal(labels, np.arange(size)):
        return rows
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    owner = labels[order]
    counts = np.bincount(owner, minlength=size)
    place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    out = np.zeros((size, int(counts.max(initial=1)), rows.shape[1]), np.float32)
    out[owner, place] = rows[order]
    return out.reshape(size, -1)


@dataclass(frozen=True, eq=False)
class Read:
    """One reader's view of a group: y = W x with what is known of x. `labels`: feature -> channel, -1 for another's.

    A grouped convolution gives one per group; `energy` is E|y|² over all of them."""

    weight: Matrix  # [outputs, features]
    mean: Score  # [features]
    covariance: Matrix  # [features, features]
    labels: Labels
    size: int
    energy: float

    @cached_property
    def second(self) -> Matrix:
        """E[x xᵀ]"""
        total: Matrix = self.covariance + np.outer(self.mean, self.mean)
        return total

    def total(self, per_feature: Score) -> Score:
        held = self.labels >= 0
        return np.bincount(self.labels[held], per_feature[held], minlength=self.size).astype(np.float64)


@dataclass(frozen=True, eq=False)
class GroupTensors:
    """A group as criteria see it. Weights and moments are read when they are asked for, and not kept."""

    group: Group
    tensors: list[Tensor]
    readers: list[tuple[Reader, Moments, Labels]]
    seed: int = 0
    rectified: bool = False  # does an activation let only positive parts through?

    @property
    def size(self) -> int:
        return self.group.size

    def matrices(self) -> list[Tensor]:
        """Weights of rank 2 and more; vectors (biases, scales) only where there is nothing else."""
        return [t for t in self.tensors if t.rank > 1] or self.tensors

    def producers(self) -> list[Tensor]:
        """Weights the channels come out of; others only where there are none."""
        return [t for t in self.matrices() if not t.enters] or self.matrices()

    def reads(self) -> Iterator[Read]:
        for reader, moments, labels in self.readers:
            tensor = tensor_of(reader.weight)
            assert tensor is not None
            w = reader.matrix(tensor.numpy())
            parts = [(w[k], moments.mean(k), moments.covariance(k)) for k in range(reader.groups)]
            energy = sum(float(np.vdot(m @ c, m)) + float(((m @ mean) ** 2).sum()) for m, mean, c in parts)
            for (m, mean, covariance), own in zip(parts, labels, strict=True):
                yield Read(m, mean, covariance, own, self.size, energy)


def group_tensors(
    coupling: Coupling, statistics: Statistics | None = None, groups: Iterable[Group] | None = None
) -> Iterator[GroupTensors]:
    """Every group (or those given) with its tensors, in order."""
    known = statistics or Statistics()
    contracted = {(r.weight, r.axis) for r in readers(coupling)}
    rectified = rectified_dims(coupling)
    by_dim: dict[int, list[tuple[Reader, Moments]]] = defaultdict(list)
    for reader, moments in known.moments.items():
        by_dim[coupling.dims.of[reader.weight, reader.axis]].append((reader, moments))
    for group in coupling.groups if groups is None else groups:
        tensors = [
            Tensor(value, axis, labels, group.size, (value, axis) in contracted, known.gradients)
            for dim, labels in group.labels.items()
            for value, axis in coupling.parameters.get(dim, ())
        ]
        found = [
            (reader, moments, reader.spread(labels))
            for dim, labels in group.labels.items()
            for reader, moments in by_dim.get(dim, ())
        ]
        yield GroupTensors(group, tensors, found, known.seed, not rectified.isdisjoint(group.labels))


def rectified_dims(coupling: Coupling) -> set[int]:
    outputs = [(v, op.shape(v)) for op in coupling.ops if op.kind in RECTIFIERS for v in op.outputs]
    slots = [(v, a) for v, shape in outputs for a in range(len(shape))]
    return {coupling.dims.of[s] for s in slots if s in coupling.dims.of}
