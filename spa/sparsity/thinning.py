"""Thinning: masks and refitted weights for all chosen layers, in one walk through the network as it becomes.

Each layer is fitted to what it will read: the activations of the network whose earlier layers are thin already. Its
output shall be that of its dense weights on these. Memory holds one layer's moments and the activations in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.calibration import MAX_FEATURES, Moments, Walk, measure
from spa.coupling import Coupling, analyze
from spa.coupling.prepare import inlined
from spa.model import Model
from spa.shapes import constants, tensor_of
from spa.sparsity import admm, masks, refit, sparsegpt
from spa.sparsity.layers import Array, Layer
from spa.sparsity.patterns import Mask, Pattern

if TYPE_CHECKING:
    from spa.inputs import Feeds

Matrix = npt.NDArray[np.float64]
SEARCH_FLOPS = 2e12  # of a mask search by ADMM per layer; larger ones are swept
TRIED_ROWS = 64  # of a matrix, to choose the damping by


@dataclass(frozen=True)
class Thinned:
    """What was done to one layer: relative output error on held-back inputs masked only, and refitted."""

    weight: str
    node: str
    pattern: str
    weights: int
    nonzeros: int
    shape: tuple[int, int, int]
    criterion: str
    damping: float | None = None
    masked: float | None = None
    refitted: float | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a layer's columns carry, per group and for fitted (0), held-back (1) or all inputs."""

    moments: Moments
    order: npt.NDArray[np.int64]
    central: bool  # the means are the bias's to absorb

    @property
    def held(self) -> bool:
        return self.moments.count[1] > 0

    def mean(self, g: int) -> npt.NDArray[np.float64]:
        return self.moments.mean(g)[self.order]

    def moment(self, g: int, part: int | None = None) -> Matrix:
        c = self.moments.covariance(g, part)
        if not self.central:
            mean = self.moments.mean(g, part)
            c = c + np.outer(mean, mean)
        return c[np.ix_(self.order, self.order)]


def gather(layer: Layer, walk: Walk) -> Inputs | None:
    """At a walk that stands before the layer; None where its inputs are not known."""
    reader = layer.reader
    if reader is None or layer.cols > MAX_FEATURES or not walk.live or reader.x.name not in walk.live[0]:
        return None
    return Inputs(measure(reader, walk.live), layer.order, bias_name(layer) is not None)


def fit(
    layer: Layer, weight: Array, pattern: Pattern, inputs: Inputs | None, *, criterion: str, mend: bool
) -> tuple[Array, Matrix | None, dict[str, Any]]:
    """The thin weight, what the bias gains (None without one), and facts for `Thinned`."""
    w = layer.view.matrix(weight)
    if inputs is None:
        chosen = [pattern.mask(masks.magnitude(m), layer.view.taps) for m in w]
        return layer.view.tensor(np.where(chosen, w, 0), weight), None, {"criterion": "magnitude"}
    moment, held = inputs.moment, inputs.held
    if criterion == "auto":
        rows, cols = w.shape[1:]
        criterion = "admm" if len(w) * (400.0 * rows * cols**2 + 10.0 * cols**3) <= SEARCH_FLOPS else "sparsegpt"
    found, swept = [], []
    for g, matrix in enumerate(w):
        mask, start = choose(matrix, moment(g), inputs.mean(g), pattern, layer.view.taps, criterion)
        found.append(mask)
        swept.append(start)
    new = np.where(found, w, 0.0)
    facts: dict[str, Any] = {"criterion": criterion}
    judge = 1 if held else None
    energy = max(1e-30, sum(float(refit.error(m, 0 * m, moment(g, judge)).sum()) for g, m in enumerate(w)))
    facts["masked"] = (
        sum(float(refit.error(m, n, moment(g, judge)).sum()) for g, (m, n) in enumerate(zip(w, new, strict=True)))
        / energy
    )
    if mend:
        damping = best_damping(w, found, moment) if held else refit.DAMPINGS[-1]
        new = np.stack([refit.refit(m, moment(g), found[g], damping, swept[g]) for g, m in enumerate(w)])
        facts["damping"] = damping
        facts["refitted"] = (
            sum(float(refit.error(m, n, moment(g, judge)).sum()) for g, (m, n) in enumerate(zip(w, new, strict=True)))
            / energy
        )
    shift = np.concatenate([(w[g] - new[g]) @ inputs.mean(g) for g in range(len(w))]) if inputs.central else None
    return layer.view.tensor(new, weight), shift, facts


def choose(
    weight: Matrix, moment: Matrix, mean: Matrix, pattern: Pattern, taps: int, criterion: str
) -> tuple[Mask, Matrix | None]:
    """A mask by the criterion named, and where the criterion moved weights, these."""
    if criterion == "magnitude":
        return pattern.mask(masks.magnitude(weight), taps), None
    if criterion == "wanda":
        return pattern.mask(masks.wanda(weight, np.diag(moment)), taps), None
    if criterion == "dsnot":
        first = pattern.mask(masks.wanda(weight, np.diag(moment)), taps)
        return masks.prune_and_grow(weight, moment, mean, first, pattern), None
    if criterion == "admm":
        return admm.search(weight, moment, pattern, taps), None
    return sparsegpt.sweep(weight, moment, pattern, taps)


def best_damping(w: Matrix, found: list[Mask], moment: Callable[[int, int], Matrix]) -> float:
    """The damping with the least error on held-back inputs, fitted on the others; judged on some rows of each group."""
    some = slice(0, None, max(1, w.shape[1] * len(w) // TRIED_ROWS))
    fitted, held = ([moment(g, part) for g in range(len(w))] for part in (0, 1))

    def lost(damping: float) -> float:
        return sum(
            float(refit.error(m[some], refit.refit(m[some], c, k[some], damping), h).sum())
            for m, k, c, h in zip(w, found, fitted, held, strict=True)
        )

    return min(refit.DAMPINGS, key=lost)


def bias_name(layer: Layer) -> str | None:
    """The constant that absorbs the means of what the layer reads; None where there is none, or several nodes fit."""
    bias = layer.reader.bias() if layer.reader is not None and len(layer.weight.uses()) == 1 else None
    return bias.name if bias is not None else None


def thin(
    coupling: Coupling,
    chosen: Mapping[Layer, Pattern],
    feeds: list[Feeds] | None,
    *,
    criterion: str = "auto",
    mend: bool = True,
    tick: Callable[[int, int], Any] = lambda done, total: None,
) -> tuple[dict[str, Array], list[Thinned]]:
    """New constants by name, and what was done; without `feeds` by magnitude alone."""
    walk = Walk(coupling.model, feeds) if feeds else None
    new: dict[str, Array] = {}
    done = []
    for number, (layer, pattern) in enumerate(chosen.items()):
        tick(number, len(chosen))
        tensor = tensor_of(layer.weight)
        assert tensor is not None
        old, name = tensor.numpy(), layer.weight.name or ""
        inputs = None
        reached = walk is not None and layer.op.out.name in walk.place and name in walk.constants
        if walk is not None and reached:
            walk.advance(layer.op.out.name)
            inputs = gather(layer, walk) if criterion != "magnitude" or mend else None
        alone = len(layer.weight.uses()) == 1  # what several nodes read has no one input to fit
        array, shift, facts = fit(
            layer,
            old,
            pattern,
            inputs,
            criterion=criterion if alone else "wanda",
            mend=mend and alone,
        )
        new[layer.name] = array
        if walk is not None and reached:
            walk.replace(name, array)
            bias = bias_name(layer)
            if bias is not None and shift is not None and mend:
                was = walk.constant(bias)
                walk.replace(bias, (was + shift.reshape(was.shape)).astype(was.dtype))
                new[bias] = walk.constant(bias)
        shape = layer.view.shape
        done.append(
            Thinned(layer.name, layer.node, str(pattern), array.size, int(np.count_nonzero(array)), shape, **facts)
        )
    return new, done


def bench(model: Model) -> Coupling:
    """The network to work on: local functions expanded, Constant nodes as initializers."""
    from spa.passes.constants import lift_constants

    working = inlined(model)
    working = model.clone() if working is model else working
    lift_constants(working.ir)
    return analyze(working)


def write_back(model: Model, new: Mapping[str, Array]) -> Model:
    """A copy of `model` with these constants, by the names that plans give them."""
    out = model.clone()
    for value, name in constants(out.ir).items():
        if name in new:
            old = tensor_of(value)
            assert old is not None
            tensor = ir.tensor(new[name], name=old.name)
            node = value.producer()
            if node is None:
                value.const_value = tensor
            else:
                node.attributes["value"] = ir.AttrTensor("value", tensor)
                value.const_value = None
    return out
