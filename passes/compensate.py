"""Compensate: make up in the readers for the channels that go, by least squares on what the readers will see.

With the kept features x_K, the removed ones x_P, their covariance C and means m, the closest affine map to W x + b is

    W' = W_K + W_P C_PK (C_KK + d I)^-1         b' = b + W m - W' m_K

in the sense of mean squared error (normal equations; d shrinks the correction, not the weights). d is chosen per reader
from a few multiples of the mean variance by the error on held-back inputs. Then every output is
scaled back to the variance it had, as re-estimating a batch normalisation would. Readers are mended in order of
execution, on the activations of the network mended so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from scipy import linalg

from spa.calibration import MAX_FEATURES, Moments, Reader, Walk, measure, readers
from spa.coupling import Coupling
from spa.coupling.analysis import Mask, is_weight
from spa.coupling.axes import Op
from spa.inputs import Feeds
from spa.model import Model

Matrix = npt.NDArray[np.float64]
MAX_GAIN = 1.3
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the kept features


@dataclass(frozen=True)
class Repair:
    """What was done to one reader: relative output error on held-back inputs without and with repair."""

    reader: str
    removed: int
    features: int
    samples: int
    damping: float
    before: float
    after: float


def ensure_biases(model: Model) -> Model:
    """A copy in which every Conv and Gemm has a bias to absorb means with, zero where there was none."""
    copy = model.clone()
    for node in copy.ir.graph:
        if node.op_type not in ("Conv", "Gemm") or node.domain or (len(node.inputs) > 2 and node.inputs[2] is not None):
            continue
        weight = node.inputs[1]
        tensor = weight.const_value if weight is not None else None
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        attrs = node.attributes
        axis = 1 if node.op_type == "Gemm" and not (attrs["transB"].as_int() if "transB" in attrs else 0) else 0
        name = f"{node.outputs[0].name}/spa.bias"
        array = np.zeros(int(tensor.shape.numpy()[axis]), tensor.dtype.numpy())
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=ir.tensor(array, name=name),
        )
        copy.ir.graph.register_initializer(value)
        node.resize_inputs(3)
        node.replace_input_with(2, value)
    return copy


def compensate(coupling: Coupling, gone: dict[int, Mask], feeds: list[Feeds]) -> tuple[Model, list[Repair]]:
    """The network of `coupling` in full size, its readers mended for the removal of `gone`, and what was done."""
    model = coupling.model
    walk = Walk(model, feeds)
    found = readers(coupling)
    affected = [r for r in found if coupling.dims.of[r.weight, r.axis] in gone and r.weight.name in walk.constants]
    uses = Counter(r.weight for r in found)
    silence(walk, coupling, gone, {r.op for r in affected})
    repairs, changed = [], set()
    for reader in affected:
        name, bias = reader.weight.name or "", bias_of(reader)
        lost = np.repeat(gone[coupling.dims.of[reader.weight, reader.axis]], reader.taps)
        walk.advance(reader.op.out.name)
        old = walk.constant(name)
        new, shift = reader.tensor(np.where(lost, 0.0, reader.matrix(old)), old), None
        # a weight that several nodes read has no one input to fit
        if reader.features <= MAX_FEATURES and uses[reader.weight] == 1:
            repair, mended, shift = mend(reader, measure(reader, walk.live), old, lost, fit_bias=bias is not None)
            repairs.append(repair)
            new = mended
        walk.replace(name, new)
        changed.add(name)
        if bias is not None and shift is not None:
            walk.replace(bias, (walk.constant(bias) + shift).astype(old.dtype))
            changed.add(bias)
    out = model.clone()
    for name in changed:
        out.ir.graph.initializers[name].const_value = ir.tensor(walk.constant(name), name=name)
    return out, repairs


def silence(walk: Walk, coupling: Coupling, gone: dict[int, Mask], known: set[Op]) -> None:
    """Zero what cannot be mended, so that the walk sees the network as it will be.

    A group some of whose channels end in an op that is no reader (a product of two activations, a sum over channels, a
    recurrent cell) is masked altogether; of the others only the readers' columns go, when their turn comes."""
    for group in coupling.groups:
        lost = {d for d in group.labels if d in gone}
        if not lost or not any(ends_here(coupling, op, lost) and op not in known for op in coupling.ops):
            continue
        for value in coupling.constants:
            name = value.name or ""
            axes = [
                a
                for a in range(len(coupling.shapes.shape.get(value) or ()))
                if coupling.dims.of.get((value, a)) in lost
            ]
            if not axes or name not in walk.constants or not is_weight(value):
                continue
            array = walk.constant(name).copy()
            for axis in axes:
                dim = coupling.dims.of[value, axis]
                array[(slice(None),) * axis + (np.flatnonzero(gone[dim] & (group.labels[dim] >= 0)),)] = 0
            walk.replace(name, array)


def ends_here(coupling: Coupling, op: Op, dims: set[int]) -> bool:
    """Does an activation's axis in `dims` go in, and none come out?"""

    def touches(values: Sequence[ir.Value | None]) -> bool:
        return any(
            coupling.dims.of.get((v, a), -1) in dims
            for v in values
            if v is not None and v not in coupling.constants
            for a in range(len(op.shape(v)))
        )

    return touches(op.inputs) and not touches(op.outputs)


def bias_of(reader: Reader) -> str | None:
    if reader.op.kind in ("Conv", "Gemm"):
        value = reader.op.input(2)
        return value.name if value is not None and value.is_initializer() and len(value.uses()) == 1 else None
    return None


def mend(
    reader: Reader, moments: Moments, weight: npt.NDArray[Any], lost: Mask, *, fit_bias: bool
) -> tuple[Repair, npt.NDArray[Any], npt.NDArray[np.float64]]:
    """The repaired weight (zero where features went), and what to add to the bias."""
    w = reader.matrix(weight)
    best: tuple[float, float, Matrix] | None = None
    for damping in DAMPINGS:
        new = np.stack([solve(w[g], moments.covariance(g, 0), lost, damping) for g in range(reader.groups)])
        error = relative_error(w, new, moments, part=1)
        if best is None or error < best[0]:
            best = error, damping, new
    assert best is not None
    before = relative_error(w, np.where(lost, 0.0, w), moments, part=1)
    error, damping, fitted = best
    new = np.stack([solve(w[g], moments.covariance(g), lost, damping) for g in range(reader.groups)])
    # the same gain, found without the held-back inputs, judged on them
    gained = relative_error(w, fitted * variance_gain(w, fitted, moments, 0), moments, part=1)
    if gained <= before:
        error, new = gained, new * variance_gain(w, new, moments, None)
    shift = np.concatenate([(w[g] - new[g]) @ moments.mean(g) for g in range(reader.groups)])
    if not fit_bias:
        shift = np.zeros_like(shift)
    repair = Repair(reader.name, int(lost.sum()), reader.features, int(sum(moments.count)), damping, before, error)
    return repair, reader.tensor(new, weight), shift


def variance_gain(w: Matrix, new: Matrix, moments: Moments, part: int | None) -> Matrix:
    """[groups, outputs, 1]: what gives each output of the fit the variance it had. Least squares returns the predictable
    part of an output, which varies less; layer upon layer the signal would fade."""
    gains = []
    for g in range(len(w)):
        c = moments.covariance(g, part)
        had, has = (np.einsum("of,of->o", m @ c, m) for m in (w[g], new[g]))
        gains.append(np.sqrt(np.maximum(had, 0) / np.maximum(has, 1e-12)))
    clipped: Matrix = np.clip(np.stack(gains), 1.0, MAX_GAIN)[:, :, None]
    return clipped


def solve(w: Matrix, covariance: Matrix, lost: Mask, damping: float) -> Matrix:
    kept = ~lost
    block = covariance[np.ix_(kept, kept)]
    scale = float(np.trace(block)) / max(1, kept.sum())
    factor = linalg.cho_factor(block + np.eye(len(block)) * (damping * scale + 1e-12))
    correction = linalg.cho_solve(factor, covariance[np.ix_(kept, lost)] @ w[:, lost].T).T
    new = np.zeros_like(w)
    new[:, kept] = w[:, kept] + correction
    return new


def relative_error(w: Matrix, new: Matrix, moments: Moments, part: int) -> float:
    """Variance of the output error over that of the output, on one part of the inputs (the bias absorbs the means)."""
    error = energy = 0.0
    for g in range(len(w)):
        c = moments.covariance(g, part)
        delta = w[g] - new[g]
        error += float(np.einsum("of,fg,og->", delta, c, delta, optimize=True))
        energy += float(np.einsum("of,fg,og->", w[g], c, w[g], optimize=True))
    return error / energy if energy > 0 else 0.0
