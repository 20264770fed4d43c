"""Fitting: one layer's mask and what its weights become, from the statistics of its inputs and of its dense outputs.

With central second moments C of the inputs x the layer reads now, and T of the outputs y it gave in the dense network
with these inputs, in turn

1. the goal: W* = W + a (T - W C) (C + d I)^-1, between what the dense weights make of x (a = 0) and the best they could
   to give y (a = 1); d by the error against y on held-back inputs, and a by line search there;
2. the mask, by a criterion, for W* and C;
3. the refit of the goal on what the mask leaves (`spa.sparsity.refit`), its d by the same error;
4. every output scaled to the variance it had in the dense network: least squares gives back the predictable part of an
   output, which varies less, and layer upon layer the signal would fade.

The bias takes up what the means change; where there is none, moments are not centred.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from spa.calibration.moments import WIDE, Moments, Statistics
from spa.sparsity import admm, masks, refit, sparsegpt
from spa.sparsity.patterns import Mask, Pattern
from spa.sparsity.sparsegpt import damped

Matrix = npt.NDArray[Any]  # float64 or float32
Stack = npt.NDArray[Any]  # one matrix per group
Masks = npt.NDArray[np.bool_]
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the inputs
SWEEP_DAMPING = 1e-2
MAX_GAIN = 1.3
SEARCH_FLOPS = 1.5e12  # of a mask search by ADMM per layer; larger ones are swept
GOAL_FLOPS = 5e11  # of all solutions for the goal; above, it is the dense weights
TRIED_ROWS = 64  # of a layer, by which its damping is chosen

CRITERIA = ("auto", "magnitude", "wanda", "dsnot", "sparsegpt", "admm")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Statistics of all inputs, of those to fit by and of those held back, columns in `order`; `central`: a bias takes
    up the means."""

    moments: Moments
    order: npt.NDArray[np.int64]
    central: bool

    @cached_property
    def all(self) -> Statistics:
        return self.moments.statistics(None, self.central).ordered(self.order)

    @cached_property
    def fitted(self) -> Statistics:
        return self._part(0)

    @cached_property
    def held(self) -> Statistics:
        return self._part(1)

    def _part(self, part: int) -> Statistics:
        if min(self.moments.count) <= 0:
            return self.all
        return self.moments.statistics(part, self.central).ordered(self.order)


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights and masks [groups, rows, cols]; what to add to the bias [groups, rows]; what was chosen and reached."""

    weight: Stack
    mask: Masks
    shift: Stack | None
    facts: Mapping[str, Any] = field(default_factory=dict)


def fit(
    w: Stack,
    inputs: Inputs | None,
    pattern: Pattern,
    taps: int,
    *,
    criterion: str = "auto",
    mend: bool,
    mask: Masks | None = None,
) -> Fit:
    """Thin out `w` [groups, rows, cols]; without `inputs` by magnitude. `mend`: move the weights that stay. `mask`: given,
    not chosen."""
    if inputs is None:
        mask = np.stack([pattern.mask(masks.magnitude(m), taps) for m in w]) if mask is None else mask
        return Fit(np.where(mask, w, 0), mask, None, {"criterion": "magnitude"})
    criterion, groups = named(criterion, w), len(w)
    w = w.astype(inputs.all.xx.dtype, copy=False)
    goal, share = aim(w, inputs) if mend else (w, 0.0)
    start = None
    if mask is None:
        chosen = [choose(goal[g], inputs.all, g, pattern, taps, criterion) for g in range(groups)]
        mask = np.stack([m for m, _ in chosen])
        start = None if chosen[0][1] is None else np.stack([s for _, s in chosen if s is not None])
    new = np.where(mask, w, 0)
    facts: dict[str, Any] = {"criterion": criterion, "masked": relative_error(new, inputs)}
    if mend:
        damping = best_damping(goal, mask, inputs)
        new = refitted(goal, mask, inputs.all, damping, start)
        new *= variance_gain(new, inputs.all)
        facts |= {"damping": damping, "share": share, "refitted": relative_error(new, inputs)}
    shift = inputs.all.y - np.einsum("gof,gf->go", new, inputs.all.x) if inputs.central else None
    return Fit(new, mask, shift, facts)


def named(criterion: str, w: Stack) -> str:
    """What `auto` means for weights of this size."""
    groups, rows, cols = w.shape
    flops = groups * (200.0 * rows + 100.0 * cols) * cols**2
    return criterion if criterion != "auto" else "admm" if flops <= SEARCH_FLOPS else "sparsegpt"


def thinned(
    w: Stack, inputs: Inputs | None, pattern: Pattern, taps: int, criterion: str, damping: float
) -> tuple[Stack, Stack | None]:
    """`fit` in short, for trials: towards the dense weights, with a damping that is given."""
    if inputs is None:
        return fit(w, None, pattern, taps, mend=False).weight, None
    how = named(criterion, w)
    w = w.astype(inputs.fitted.xx.dtype, copy=False)
    mask = np.stack([choose(m, inputs.fitted, g, pattern, taps, how)[0] for g, m in enumerate(w)])
    new = refitted(w, mask, inputs.fitted, damping)
    new *= variance_gain(new, inputs.fitted)
    shift = inputs.fitted.y - np.einsum("gof,gf->go", new, inputs.fitted.x) if inputs.central else None
    return new, shift


def aim(w: Stack, inputs: Inputs) -> tuple[Stack, float]:
    """The goal W* and its a."""
    groups, rows, cols = w.shape
    if len(DAMPINGS) * groups * (cols**3 / 3 + 2.0 * rows * cols**2) > GOAL_FLOPS:
        return w, 0.0

    def lack(s: Statistics) -> Stack:
        return np.asarray(s.yx - w @ s.xx)

    def onward(s: Statistics, lack: Stack, damping: float) -> Stack:
        solved = [linalg.solve(damped(c, damping), t.T, assume_a="pos").T for c, t in zip(s.xx, lack, strict=True)]
        return np.stack(solved)

    tried, fitted, held = [], lack(inputs.fitted), lack(inputs.held)
    for damping in DAMPINGS:
        with suppress(linalg.LinAlgError):  # rounding left the moment indefinite: then only more damping will do
            gain, share = line_search(onward(inputs.fitted, fitted, damping), inputs.held, held)
            tried.append((-gain, damping, share))
    _, damping, share = min(tried, default=(0.0, 0.0, 0.0))
    return w + share * onward(inputs.all, lack(inputs.all), damping) if share else w, share


def line_search(direction: Stack, s: Statistics, lack: Stack) -> tuple[float, float]:
    """By how much the squared error falls along `direction`, and the share of it in [0, 1] where it is least; `lack` is
    y x^T - W x x^T where the line starts."""
    bend = float(np.einsum("gof,gof->", direction @ s.xx, direction))
    slope = float(np.einsum("gof,gof->", lack, direction))
    share = min(1.0, max(0.0, slope / bend)) if bend > 0 else 0.0
    return share * (2 * slope - share * bend), share


def squared_error(new: Stack, s: Statistics, rows: slice = slice(None)) -> float:
    """E |y - W' x|^2, over some rows."""
    product = new @ s.xx
    product -= 2 * s.yx[:, rows]
    return float(s.yy[:, rows].sum() + np.einsum("gof,gof->go", product, new).sum(dtype=np.float64))


def relative_error(new: Stack, inputs: Inputs) -> float:
    """Of the outputs on held-back inputs, over the variance they had."""
    return max(0.0, squared_error(new, inputs.held)) / max(1e-30, float(inputs.held.yy.sum()))


def choose(
    weight: Matrix, s: Statistics, g: int, pattern: Pattern, taps: int, criterion: str
) -> tuple[Mask, Matrix | None]:
    """A mask by the criterion named, and where the criterion moved weights, these."""
    moment = s.xx[g]
    if criterion == "magnitude":
        return pattern.mask(masks.magnitude(weight), taps), None
    if criterion == "admm":
        return admm.search(weight, moment, pattern, taps, SWEEP_DAMPING), None
    if criterion == "sparsegpt":
        return sparsegpt.sweep(weight, moment, pattern, taps, SWEEP_DAMPING)
    first = pattern.mask(masks.wanda(weight, np.diag(moment)), taps)
    return masks.prune_and_grow(weight, moment, s.x[g], first, pattern) if criterion == "dsnot" else first, None


def refitted(
    goal: Stack, mask: Masks, s: Statistics, damping: float, start: Stack | None = None, exact: bool | None = None
) -> Stack:
    starts = [None] * len(goal) if start is None else list(start)
    return np.stack([refit.refit(t, s.xx[g], mask[g], damping, starts[g], exact) for g, t in enumerate(goal)])


def best_damping(goal: Stack, mask: Masks, inputs: Inputs) -> float:
    """The damping with the least error on held-back inputs, fitted on the others; judged on some of the rows."""
    if goal.shape[2] > WIDE:
        return SWEEP_DAMPING
    exact = refit.is_exact(mask[0])
    some = slice(0, None, max(1, goal.shape[0] * goal.shape[1] // TRIED_ROWS))

    def lost(damping: float) -> float:
        new = refitted(goal[:, some], mask[:, some], inputs.fitted, damping, exact=exact)
        return squared_error(new, inputs.held, some)

    return min(DAMPINGS, key=lost)


def variance_gain(new: Stack, s: Statistics) -> Stack:
    """[groups, rows, 1]: what gives each output the variance it had in the dense network."""
    has = np.einsum("gof,gof->go", new @ s.xx, new)
    gain: Stack = np.sqrt(np.maximum(s.yy, 0) / np.maximum(has, 1e-12))
    return np.clip(gain, 1.0, MAX_GAIN)[:, :, None].astype(new.dtype)
