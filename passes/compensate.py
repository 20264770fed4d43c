"""Compensate: make up in the readers for the channels that go, by least squares on what the readers will see.

A reader gave y = W x + b in the dense network. In the pruned one it sees x', of which the features K are kept. With
central second moments of x' and of y with x', the closest affine map from x'_K to a target t is

    W' = W_K + (T - W_K C)_K (C_KK + d I)^-1      b' = mean(t) - W' mean(x'_K)      C = E[x' x'^T], T = E[t x'^T]

in the sense of mean squared error (normal equations; d shrinks the correction, not the weights). The target lies
between what the dense weights make of the inputs as they are now and what the dense network gave,

    t = (1 - a) (W x' + b) + a y                  0 <= a <= 1

where a = 1 also corrects the errors of earlier layers ("asymmetric calibration", GPTAQ, arXiv 2504.02692, eq. 5), and
fits more noise. d and a are chosen per reader, by the error against y on held-back inputs. Then every output is scaled
to the variance that it had in the dense network, as re-estimating a batch normalisation would: least squares gives
back the predictable part of an output, which varies less, and layer upon layer the signal would fade. Readers are
mended in order of execution, on the activations of the network mended so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa import execution, progress
from spa.calibration import HELD, MAX_FEATURES, Moments, Reader, Walk, contractions, measure
from spa.calibration.moments import Statistics
from spa.calibration.synthetic import Drawn
from spa.calibration.walk import used_names
from spa.coupling import Coupling, Group
from spa.coupling.analysis import Mask, is_weight
from spa.coupling.axes import Op
from spa.drift import drift
from spa.inputs import Feeds
from spa.model import Model

Matrix = npt.NDArray[np.float64]
MAX_GAIN = 1.3
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the kept features
DRAWN_DAMPINGS = (1e-1, 3e-1, 1.0)  # drawn inputs held back are as unlike the real ones as those fitted to


@dataclass(frozen=True)
class Repair:
    """What was done to one reader. Errors are relative to the variance of its outputs in the dense network, on held-back
    inputs, without and with repair; `condition` of the damped second moments, `rank` of the undamped ones."""

    reader: str
    removed: int
    features: int
    samples: int
    damping: float
    share: float
    before: float
    after: float
    rank: int
    condition: float


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


def compensate(
    coupling: Coupling,
    gone: dict[int, Mask],
    feeds: list[Feeds],
) -> tuple[Model, list[Repair]]:
    """The network of `coupling` in full size, its readers mended for the removal of `gone`, and what was done.

    Where the network mended drifts further from the dense one on held-back inputs than left alone, it is left alone."""
    model = coupling.model
    walk, dense = Walk(model, feeds), Walk(model, feeds)
    found = [r for r in contractions(coupling) if r.weight.name in walk.constants]
    lost = {
        r: r.spread(gone.get(coupling.dims.of.get((r.weight, r.axis), -1), np.zeros(r.shape[r.axis], bool)))
        for r in found
    }
    silence(walk, coupling, gone, {r.op for r in found if lost[r].any()})
    seen = reached(walk, {r.weight.name or "" for r in found if lost[r].any()})
    affected = [r for r in found if lost[r].any() or r.x.name in seen]
    dampings = DRAWN_DAMPINGS if isinstance(feeds, Drawn) else DAMPINGS
    uses = Counter(r.weight for r in found)
    shared = shared_moments(model, [r for r in affected if uses[r.weight] > 1], feeds)
    repairs: dict[str, Repair] = {}
    for number, reader in enumerate(affected):
        name = reader.weight.name or ""
        if name in repairs:  # mended where it was first read
            continue
        live, before = reader.observe(walk), reader.observe(dense)
        bias = reader.bias() if reader.weight not in shared else None
        old = walk.constant(name)
        new = reader.tensor(np.where(lost[reader][:, None], 0.0, reader.matrix(old)), old)
        if reader.features <= MAX_FEATURES:
            with execution.blas(reader.features):
                moments = shared.get(reader.weight) or measure(reader, live, before, dense.constant(name))
                repairs[name], new, shift = mend(reader, moments, old, lost[reader], bias is not None, dampings)
            if bias is not None:
                b = walk.constant(bias.name or "")
                walk.replace(bias.name or "", (b + shift.reshape(b.shape)).astype(b.dtype))
        walk.replace(name, new)
        progress.tell("mending", number + 1, len(affected))
    walk.advance()
    dense.advance()
    if repairs and drift(outputs(dense), outputs(walk)) > drift(outputs(dense), unmended(coupling, gone, feeds)):
        return model, []
    return with_constants(model, walk), list(repairs.values())


def shared_moments(model: Model, shared: list[Reader], feeds: list[Feeds]) -> dict[ir.Value, Moments]:
    """Of weights that several nodes read: of all that they read, in the dense network, since what is mended at the first
    node holds for all."""
    found: dict[ir.Value, Moments] = {}
    walk = Walk(model, feeds)
    for reader in shared:
        if reader.features <= MAX_FEATURES:
            live = reader.observe(walk)
            moments = measure(reader, live, live, walk.constant(reader.weight.name or ""))
            found[reader.weight] = found[reader.weight] + moments if reader.weight in found else moments
    return found


def silence(walk: Walk, coupling: Coupling, gone: dict[int, Mask], known: set[Op]) -> None:
    """Zero what cannot be mended, so that the walk sees the network as it will be.

    A group some of whose channels end in an op that is no reader (a product of two activations, a sum over channels, a
    recurrent cell) is masked altogether; of the others only the readers' columns go, when their turn comes."""
    for group in coupling.groups:
        lost = {d for d in group.labels if d in gone}
        if lost and unreadable(coupling, group, known):
            for name, array in masked_weights(coupling, group, gone, walk.constant, set(walk.constants)).items():
                walk.replace(name, array)


def masked_weights(
    coupling: Coupling, group: Group, gone: dict[int, Mask], constant: Callable[[str], Any], names: set[str]
) -> dict[str, npt.NDArray[Any]]:
    """The group's weights without its channels that are gone."""
    found: dict[str, npt.NDArray[Any]] = {}
    for dim in group.labels.keys() & gone.keys():
        index = np.flatnonzero(gone[dim] & (group.labels[dim] >= 0))
        for value, axis in coupling.parameters.get(dim, ()):
            name = value.name or ""
            if name in names and is_weight(value):
                array = found.setdefault(name, constant(name).copy())
                array[(slice(None),) * axis + (index,)] = 0
    return found


def unreadable(coupling: Coupling, group: Group, known: set[Op]) -> bool:
    """Does the group end in an op that is not one of these readers?"""
    dims = set(group.labels)
    return any(ends_here(coupling, op, dims) and op not in known for op in coupling.ops)


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


def mend(
    reader: Reader,
    moments: Moments,
    weight: npt.NDArray[Any],
    lost: Mask,
    fit_bias: bool,
    dampings: Sequence[float] = DAMPINGS,
) -> tuple[Repair, npt.NDArray[Any], Matrix]:
    """The repaired weight (zero where features went), and what to add to the bias [outputs].

    `lost` [groups, features]. Without a bias to fit, second moments are not centred."""
    w = reader.matrix(weight)
    base = np.where(lost[:, None], 0.0, w)
    fitted, held = moments.statistics(0, fit_bias), moments.statistics(1, fit_bias)
    if not moments.count[1]:
        held = fitted
    scale = max(1e-30, float(moments.statistics(None).yy.sum()))
    before = squared_error(base, moments.statistics(1 if moments.count[1] else None, False)) / scale
    best: tuple[float, float, float, Matrix] | None = None
    for damping in dampings:
        local, onward = corrections(w, base, fitted, lost, damping)
        share = line_search(base + local, onward, held)
        new = base + local + share * onward
        error = squared_error(new, held) / scale
        if best is None or error < best[0]:
            best = error, damping, share, new
    assert best is not None
    error, damping, share, new = best
    everything = moments.statistics(None, fit_bias)
    local, onward = corrections(w, base, everything, lost, damping)
    final = base + local + share * onward
    # the same gain, found without the held-back inputs, judged on them
    gained = squared_error(new * variance_gain(new, fitted), held) / scale
    if gained <= before:
        error, final = gained, final * variance_gain(final, everything)
    if error > before:
        error, final = before, base
    shift = everything.y - np.einsum("gof,gf->go", final, everything.x) if fit_bias else np.zeros(w.shape[:2])
    rank, condition = spectrum(everything.xx, lost, damping)
    facts = (int(lost.any(0).sum()), reader.features, int(sum(moments.count)), damping, share, before, error)
    return Repair(reader.name, *facts, rank, condition), reader.tensor(final, weight), shift.reshape(-1)


def corrections(w: Matrix, base: Matrix, s: Statistics, lost: Mask, damping: float) -> tuple[Matrix, Matrix]:
    """What to add to the kept weights: for what the dense weights make of these inputs, and from there to what they
    made of the dense network's. Both are solutions with the same matrix, one per group."""
    now = w @ s.xx
    wanted = np.concatenate([now - base @ s.xx, s.yx - now], axis=1)
    found = np.zeros_like(wanted)
    for mask in np.unique(lost, axis=0):
        members, kept = np.flatnonzero((lost == mask).all(1)), np.flatnonzero(~mask)
        block = s.xx[np.ix_(members, kept, kept)]
        found[np.ix_(members, np.arange(wanted.shape[1]), kept)] = np.linalg.solve(
            damped(block, damping), wanted[members][:, :, kept].transpose(0, 2, 1)
        ).transpose(0, 2, 1)
    return found[:, : w.shape[1]], found[:, w.shape[1] :]


def damped(xx: Matrix, damping: float) -> Matrix:
    """xx [..., F, F] + damping times its mean diagonal, and never singular."""
    size = xx.shape[-1]
    scale = np.trace(xx, axis1=-2, axis2=-1)[..., None, None] / max(1, size)
    shifted: Matrix = xx + np.eye(size) * (damping * scale + 1e-12)
    return shifted


def line_search(start: Matrix, direction: Matrix, s: Statistics) -> float:
    """The share in [0, 1] of `direction` with the least squared error."""
    bend = float(np.einsum("gof,gof->", direction @ s.xx, direction))
    slope = float(np.einsum("gof,gof->", s.yx - start @ s.xx, direction))
    return min(1.0, max(0.0, slope / bend)) if bend > 0 else 0.0


def squared_error(new: Matrix, s: Statistics) -> float:
    """E |y - W' x|^2 (of the centred ones where the statistics are central)"""
    return max(0.0, float(s.yy.sum() + np.einsum("gof,gof->", new @ s.xx - 2 * s.yx, new)))


def variance_gain(new: Matrix, s: Statistics) -> Matrix:
    """[groups, outputs, 1]: what gives each output of the fit the variance it had in the dense network."""
    has = np.einsum("gof,gof->go", new @ s.xx, new)
    gain: Matrix = np.sqrt(np.maximum(s.yy, 0) / np.maximum(has, 1e-12))
    return np.clip(gain, 1.0, MAX_GAIN)[:, :, None]


def spectrum(xx: Matrix, lost: Mask, damping: float) -> tuple[int, float]:
    """Rank of the kept features' second moments, and condition number of the damped ones; the worst of the groups."""
    gone = int(lost.sum(1).max())  # their rows are zero here, and so are as many of the smallest eigenvalues
    values = np.linalg.eigvalsh(np.where(lost[:, :, None] | lost[:, None, :], 0.0, xx))[:, gone:]
    top, size = np.maximum(values[:, -1:], 1e-30), max(1, values.shape[1])
    floor = damping * values.mean(1)
    rank = (values > top * size * np.finfo(np.float32).eps).sum(1)
    condition = (top[:, 0] + floor) / np.maximum(values[:, 0] + floor, 1e-12 * top[:, 0])
    return int(rank.min()), float(condition.max())


def reached(walk: Walk, names: set[str]) -> set[str]:
    """All values that depend on these constants."""
    found = set(names) | walk.changed
    for node in walk.nodes:
        if any(n in found for n in used_names(node)):
            found.update(node.output)
    return found


def outputs(walk: Walk) -> list[list[Any]]:
    """Of the held-back inputs, of a walk that has arrived."""
    return [[values[n] for n in walk.outputs] for values in walk.live[HELD - 1 :: HELD] or walk.live]


def unmended(coupling: Coupling, gone: dict[int, Mask], feeds: list[Feeds]) -> list[list[Any]]:
    """Outputs of the masked network on the held-back inputs."""
    walk = Walk(coupling.model, feeds[HELD - 1 :: HELD] or feeds)
    silence(walk, coupling, gone, set())
    for reader in contractions(coupling):
        dim = coupling.dims.of.get((reader.weight, reader.axis), -1)
        name = reader.weight.name or ""
        if dim in gone and name in walk.constants:
            old = walk.constant(name)
            walk.replace(
                name,
                reader.tensor(np.where(reader.spread(gone[dim])[:, None], 0.0, reader.matrix(old)), old),
            )
    walk.advance()
    return [[values[n] for n in walk.outputs] for values in walk.live]


def with_constants(model: Model, walk: Walk) -> Model:
    out = model.clone()
    for name in walk.changed:
        out.ir.graph.initializers[name].const_value = ir.tensor(walk.constant(name), name=name)
    return out
