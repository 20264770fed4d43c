"""Readers: the nodes whose weights can be mended, each seen as a matrix product.

A *reader* is a contraction with a constant weight: a convolution (also transposed, grouped, depthwise), a matrix
product, the recurrent product of a recurrent cell. Its input is unfolded into feature vectors x, so that the output is
W x + b, with one W per group: the matrix view [groups, outputs, features].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling.axes import Op
from spa.shapes import tensor_of

if TYPE_CHECKING:
    from spa.calibration.walk import Walk

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]
Values = Mapping[str, Array]


@dataclass(eq=False, repr=False)
class Reader:
    """`axis` of `weight` is the contracted one; it holds `taps` features per channel and group."""

    op: Op
    x: ir.Value
    weight: ir.Value
    axis: int
    groups: int = 1
    taps: int = 1

    @property
    def name(self) -> str:
        return self.op.node.name or self.op.out.name or ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.op.shape(self.weight)

    @property
    def features(self) -> int:
        """Per group."""
        return self.shape[self.axis] * self.taps

    @property
    def outputs(self) -> int:
        """Per group."""
        return math.prod(self.shape) // (self.features * self.groups)

    def matrix(self, weight: Array) -> Matrix:
        """[groups, outputs, features]"""
        raise NotImplementedError

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        """The inverse of `matrix`."""
        raise NotImplementedError

    def spread(self, channels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What belongs to the channels of the contracted axis, per feature: [groups, features]."""
        return np.broadcast_to(np.repeat(channels, self.taps), (self.groups, self.features))

    def observe(self, walk: Walk) -> Sequence[Values]:
        """What `unfold` takes, per batch, of a network walked up to this node."""
        walk.advance(next(v.name for v in self.op.outputs if v is not None and v.name))
        return walk.live

    def unfold(self, values: Values, rng: np.random.Generator, rows: int) -> Array:
        """Feature vectors [groups, rows, features]; where there are more positions than about `rows`, a sample."""
        raise NotImplementedError

    def bias(self) -> ir.Value | None:
        """A constant of its own, one number per output, that is added to the product."""
        return None


class Product(Reader):
    """Gemm, and MatMul with a constant on the right; a stack of matrices is one group each."""

    def matrix(self, weight: Array) -> Matrix:
        w = weight.astype(np.float64)
        stacked = w.reshape(self.groups, *w.shape[-2:])
        return stacked if self.axis == 1 and w.ndim == 2 else stacked.transpose(0, 2, 1)

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        back = matrix if self.axis == 1 and like.ndim == 2 else matrix.transpose(0, 2, 1)
        return np.asarray(back.reshape(like.shape), like.dtype)

    def unfold(self, values: Values, rng: np.random.Generator, rows: int) -> Array:
        x = values[self.x.name or ""]
        if self.op.kind == "Gemm" and self.op.attr("transA", 0):
            x = x.T
        if self.groups > 1:  # stacked along the axes before the last two
            x = np.moveaxis(x.reshape(-1, self.groups, *x.shape[-2:]), 1, 0)
        flat = x.reshape(self.groups, -1, x.shape[-1])
        return flat[:, sample(flat.shape[1], rows, rng)]

    def bias(self) -> ir.Value | None:
        if self.op.kind == "Gemm":
            return own(self.op.input(2))
        uses = list(self.op.out.uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.domain or self.groups > 1:
            return None
        other = uses[0].node.inputs[1 - uses[0].idx]
        tensor = tensor_of(other)
        shape = tuple(tensor.shape.numpy()) if tensor is not None else ()
        return own(other) if shape and math.prod(shape) == shape[-1] == self.outputs else None


class Left(Product):
    """MatMul with a constant on the left: W [O, F] times x [..., F, N]."""

    def unfold(self, values: Values, rng: np.random.Generator, rows: int) -> Array:
        flat = np.swapaxes(values[self.x.name or ""], -1, -2)
        flat = flat.reshape(1, -1, flat.shape[-1])
        return flat[:, sample(flat.shape[1], rows, rng)]

    def bias(self) -> ir.Value | None:
        return None


class Convolution(Reader):
    """Features in the order of the weight: channel, then tap."""

    def matrix(self, weight: Array) -> Matrix:
        return weight.astype(np.float64).reshape(self.groups, weight.shape[0] // self.groups, -1)

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        return np.asarray(matrix.reshape(like.shape), like.dtype)

    def unfold(self, values: Values, rng: np.random.Generator, rows: int) -> Array:
        return unfold_conv(self.op, values[self.x.name or ""], self.groups, rng, rows)

    def bias(self) -> ir.Value | None:
        return own(self.op.input(2))


class TransposedConvolution(Reader):
    """The outputs are what one position adds to its neighbourhood, before overlaps are summed."""

    def matrix(self, weight: Array) -> Matrix:
        grouped = weight.astype(np.float64).reshape(self.groups, weight.shape[0] // self.groups, -1)
        return grouped.transpose(0, 2, 1)

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        return np.asarray(matrix.transpose(0, 2, 1).reshape(like.shape), like.dtype)

    @property
    def features(self) -> int:
        return self.shape[0] // self.groups

    def spread(self, channels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return channels.reshape(self.groups, -1)

    def unfold(self, values: Values, rng: np.random.Generator, rows: int) -> Array:
        x = values[self.x.name or ""]
        x = np.moveaxis(x, 1, -1).reshape(-1, self.groups, self.features).transpose(1, 0, 2)
        return x[:, sample(x.shape[1], rows, rng)]


def own(value: ir.Value | None) -> ir.Value | None:
    return value if value is not None and value.is_initializer() and len(value.uses()) == 1 else None


def sample(positions: int, rows: int, rng: np.random.Generator) -> Any:
    return slice(None) if positions <= rows else np.sort(rng.choice(positions, rows, replace=False))


def unfold_conv(op: Op, x: Array, groups: int, rng: np.random.Generator, rows: int) -> Array:
    """x [N, C, ...] -> [groups, rows, C/groups * taps]"""
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
    if any(pads):
        x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))])
    counts = [(n - p) // s + 1 for n, p, s in zip(x.shape[2:], spans, strides, strict=True)]
    positions = math.prod(counts)
    picked = np.arange(positions)[sample(positions, max(1, math.ceil(rows / len(x))), rng)]
    if positions == math.prod(x.shape[2:]) and math.prod(kernel) == 1:
        rows_of = x.reshape(len(x), groups, -1, positions)[..., picked]
        return rows_of.transpose(1, 0, 3, 2).reshape(groups, -1, rows_of.shape[2])
    where = np.unravel_index(picked, counts)
    taps = np.unravel_index(np.arange(math.prod(kernel)), kernel)
    index = tuple(w[:, None] * s + t[None, :] * d for w, s, t, d in zip(where, strides, taps, dilations, strict=True))
    patches = x[(slice(None), slice(None), *index)]  # [N, C, positions, taps]
    n, c, p, k = patches.shape
    return patches.reshape(n, groups, c // groups, p, k).transpose(1, 0, 3, 2, 4).reshape(groups, n * p, -1)


def as_reader(op: Op) -> Reader | None:
    if op.kind not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    x, w = op.inputs[0], op.inputs[1]
    if x is None or w is None or not op.shape(w):
        return None
    shape = op.shape(w)
    if op.kind == "Conv":
        return Convolution(op, x, w, 1, int(op.attr("group", 1)), math.prod(shape[2:]))
    if op.kind == "ConvTranspose":
        return TransposedConvolution(op, x, w, 0, int(op.attr("group", 1)))
    if op.kind == "MatMul" and tensor_of(x) is not None and len(op.shape(x)) == 2 and len(shape) >= 2:
        return Left(op, w, x, 1)
    if len(shape) == 2:
        return Product(op, x, w, 1 if op.kind == "Gemm" and op.attr("transB", 0) else 0)
    if op.kind == "MatMul" and len(shape) > 2 and shape[:-2] == op.shape(x)[-len(shape) : -2]:
        return Product(op, x, w, len(shape) - 2, math.prod(shape[:-2]))
    return None
