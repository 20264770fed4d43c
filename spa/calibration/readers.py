"""Readers: the nodes whose weights can be mended.

A *reader* is a contraction with a constant weight (Conv, Gemm, MatMul). Its input is unfolded into feature vectors x,
one per output position, so that the output is W x + b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling.axes import Op
from spa.shapes import tensor_of

if TYPE_CHECKING:
    from spa.coupling import Coupling

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]


@dataclass(eq=False)
class Reader:
    """`weight` of `op` read as a matrix [outputs, features], per group of a grouped convolution.

    `labels(dim labels)` spreads labels of the contracted axis over features."""

    op: Op
    x: ir.Value
    weight: ir.Value
    axis: int  # of the weight: the contracted one
    groups: int = 1

    @property
    def name(self) -> str:
        return self.op.node.name or self.op.out.name or ""

    @property
    def taps(self) -> int:
        """Features per channel of the contracted axis."""
        return math.prod(self.op.shape(self.weight)[2:]) if self.op.kind == "Conv" else 1

    @property
    def features(self) -> int:
        return self.op.shape(self.weight)[self.axis] * self.taps

    def matrix(self, weight: Array) -> Matrix:
        """[groups, outputs per group, features]"""
        w = weight.astype(np.float64)
        if self.op.kind == "Conv":
            return w.reshape(self.groups, w.shape[0] // self.groups, -1)
        return (w if self.axis == 1 else w.T)[None]

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        """The inverse of `matrix`."""
        if self.op.kind == "Conv":
            return np.asarray(matrix.reshape(like.shape), like.dtype)
        return np.asarray(matrix[0] if self.axis == 1 else matrix[0].T, like.dtype)

    def unfold(self, x: Array, rng: np.random.Generator, rows: int) -> list[Array]:
        """Per group: feature vectors [rows, features], at most about `rows` of them."""
        if self.op.kind != "Conv":
            if self.op.kind == "Gemm" and self.op.attr("transA", 0):
                x = x.T
            flat = x.reshape(-1, x.shape[-1])
            return [flat if len(flat) <= rows else flat[rng.choice(len(flat), rows, replace=False)]]
        return unfold_conv(self.op, x, self.groups, rng, rows)


def unfold_conv(op: Op, x: Array, groups: int, rng: np.random.Generator, rows: int) -> list[Array]:
    """x [N, C, ...] -> per group [rows, C/groups * taps], features in the order of the weight (channel, then tap)."""
    kernel = op.shape(op.inputs[1])[2:]
    rank = len(kernel)
    strides = op.attr("strides") or [1] * rank
    dilations = op.attr("dilations") or [1] * rank
    out = op.shape(op.out)[2:]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(op.attr("pads") or [0] * 2 * rank)
    mode = op.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER", b"SAME_UPPER", b"SAME_LOWER"):
        total = [max(0, (o - 1) * s + p - n) for o, s, p, n in zip(out, strides, spans, x.shape[2:], strict=True)]
        low = [t // 2 if "UPPER" in str(mode) else t - t // 2 for t in total]
        pads = [*low, *(t - lo for t, lo in zip(total, low, strict=True))]
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))])
    counts = [(n - p) // s + 1 for n, p, s in zip(x.shape[2:], spans, strides, strict=True)]
    positions = math.prod(counts)
    per_input = max(1, math.ceil(rows / len(x)))
    picked = (
        np.arange(positions) if positions <= per_input else np.sort(rng.choice(positions, per_input, replace=False))
    )
    where = np.unravel_index(picked, counts)
    taps = np.unravel_index(np.arange(math.prod(kernel)), kernel)
    index = tuple(w[:, None] * s + t[None, :] * d for w, s, t, d in zip(where, strides, taps, dilations, strict=True))
    patches = x[(slice(None), slice(None), *index)]  # [N, C, positions, taps]
    patches = patches.transpose(0, 2, 1, 3)
    n, p, c, _ = patches.shape
    return [patches[:, :, g * c // groups : (g + 1) * c // groups].reshape(n * p, -1) for g in range(groups)]


def readers(coupling: Coupling) -> list[Reader]:
    """All contractions with a constant floating-point weight whose contracted axis a group runs through."""
    live = {d for g in coupling.groups for d in g.labels}
    found = []
    for op in coupling.ops:
        reader = as_reader(op)
        if reader is None or reader.weight not in coupling.constants:
            continue
        tensor = tensor_of(reader.weight)
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        if coupling.dims.of.get((reader.weight, reader.axis), -1) in live:
            found.append(reader)
    return found


def as_reader(op: Op) -> Reader | None:
    if op.kind == "Conv" and op.inputs[1] is not None and op.inputs[0] is not None:
        groups = int(op.attr("group", 1))
        if groups > 1 and op.shape(op.inputs[1])[1] == 1:
            return None  # depthwise: element-wise along channels
        return Reader(op, op.inputs[0], op.inputs[1], 1, groups)
    if op.kind in ("Gemm", "MatMul") and op.inputs[0] is not None and op.inputs[1] is not None:
        if len(op.shape(op.inputs[1])) != 2:
            return None
        return Reader(op, op.inputs[0], op.inputs[1], 1 if op.kind == "Gemm" and op.attr("transB", 0) else 0)
    return None
