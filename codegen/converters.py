"""Importers of our own: for ONNX operators that TVM's frontend lacks or imports as something slow or not standing alone.

Each takes (block builder, inputs as Relax expressions, attributes, parameters) and gives a Relax expression, as the
frontend's own do. All shapes are static here.

- Clip: the frontend's loads and checks both bounds for every element.
- CumSum, TopK: the frontend's call TVM's library. Here both are sums over comparisons, of n steps per element.
- LpNormalization, Col2Im: the frontend has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spa.codegen.tvm_api import Converter, constant, onnx_frontend, relax, te, tirx
from spa.errors import Unsupported


def clip(bb: Any, inputs: Sequence[Any], attributes: dict[str, Any], params: Any) -> Any:
    """y = min(max(x, low), high), with constant bounds as immediates; a bound that is NaN is none."""
    dtype = str(inputs[0].ty.dtype)
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    bounds = []
    for given, default in zip([*inputs[1:], None, None], (info.min, info.max), strict=False):
        value = default if given is None else constant(given)
        if value is None:
            return onnx_frontend.Clip._impl_v13(bb, [*inputs, None, None][:3], attributes, params)
        bounds.append(default if np.isnan(value) else np.asarray(value).item())
    low, high = (relax.const(b, dtype) for b in bounds)
    return relax.op.minimum(relax.op.maximum(inputs[0], low), high)


def _fixed(inputs: Sequence[Any], position: int, op: str, what: str) -> int:
    value = constant(inputs[position])
    if value is None:
        raise Unsupported(f"{op} whose {what} is computed cannot be compiled", hint=f"make the {what} a constant")
    return int(np.asarray(value).reshape(-1)[0])


def cumsum(bb: Any, inputs: Sequence[Any], attributes: dict[str, Any], params: Any) -> Any:
    """y[i] = sum of x[j] over j <= i along the axis (j < i if exclusive; from the end if reverse)."""
    shape = [int(d) for d in inputs[0].ty.shape.values]
    axis = _fixed(inputs, 1, "CumSum", "axis") % len(shape)
    exclusive, reverse = attributes.get("exclusive", 0), attributes.get("reverse", 0)

    def build(x: Any) -> Any:
        j = te.reduce_axis((0, shape[axis]), "j")

        def element(*at: Any) -> Any:
            first, second = (at[axis], j) if reverse else (j, at[axis])
            counts = first < second if exclusive else first <= second
            return te.sum(tirx.Select(counts, x[(*at[:axis], j, *at[axis + 1 :])], tirx.const(0, x.dtype)), axis=j)

        return te.compute(shape, element, name="cumsum")

    return bb.emit_te(build, inputs[0])


def topk(bb: Any, inputs: Sequence[Any], attributes: dict[str, Any], params: Any) -> Any:
    """Values and indices of the k largest (or smallest) along an axis, in order; the lower index first among equals.

    rank[i] = number of j that come before i; the output at r is the x[i] whose rank is r.
    """
    shape = [int(d) for d in inputs[0].ty.shape.values]
    axis = attributes.get("axis", -1) % len(shape)
    result = [*shape[:axis], _fixed(inputs, 1, "TopK", "k"), *shape[axis + 1 :]]
    largest = attributes.get("largest", 1)

    def build(x: Any) -> Any:
        def along(at: Any, i: Any) -> Any:
            return (*at[:axis], i, *at[axis + 1 :])

        j = te.reduce_axis((0, shape[axis]), "j")

        def count(*at: Any) -> Any:
            mine, other = x[at], x[along(at, j)]
            before = other > mine if largest else other < mine
            tie = tirx.all(tirx.EQ(other, mine), j < at[axis])
            return te.sum(tirx.Select(tirx.any(before, tie), tirx.const(1, "int64"), tirx.const(0, "int64")), axis=j)

        rank = te.compute(shape, count, name="rank")
        i, h = te.reduce_axis((0, shape[axis]), "i"), te.reduce_axis((0, shape[axis]), "h")

        def value(*at: Any) -> Any:
            mine = tirx.EQ(rank[along(at, i)], at[axis].astype("int64"))
            return te.max(tirx.Select(mine, x[along(at, i)], te.min_value(str(x.dtype))), axis=i)

        def index(*at: Any) -> Any:
            mine = tirx.EQ(rank[along(at, h)], at[axis].astype("int64"))
            return te.sum(tirx.Select(mine, h.astype("int64"), tirx.const(0, "int64")), axis=h)

        return te.compute(result, value, name="values"), te.compute(result, index, name="indices")

    return bb.emit_te(build, inputs[0])


def lp_normalization(bb: Any, inputs: Sequence[Any], attributes: dict[str, Any], params: Any) -> Any:
    """y = x / (sum |x|^p)^(1/p) along the axis, p 1 or 2; where the norm is 0, so is y."""
    x, axis, p = inputs[0], attributes.get("axis", -1), attributes.get("p", 2)
    total = relax.op.sum(relax.op.abs(x) if p == 1 else relax.op.multiply(x, x), axis=axis, keepdims=True)
    norm = bb.emit(total if p == 1 else relax.op.sqrt(total))
    dtype = str(x.ty.dtype)
    return relax.op.divide(x, relax.op.where(relax.op.equal(norm, relax.const(0, dtype)), relax.const(1, dtype), norm))


def col2im(bb: Any, inputs: Sequence[Any], attributes: dict[str, Any], params: Any) -> Any:
    """The sum of overlapping blocks: x [n, c * taps, blocks] to y [n, c, *image]. A pixel takes from each tap the block
    that has it there, if one does: (pixel + pad - tap * dilation) / stride."""
    shape = [int(d) for d in inputs[0].ty.shape.values]
    sizes = [constant(v) for v in inputs[1:3]]
    if any(v is None for v in sizes):
        raise Unsupported("Col2Im whose shapes are computed cannot be compiled", hint="make them constants")
    image, block = ([int(n) for n in v] for v in sizes if v is not None)
    rank, taps = len(image), math.prod(block)
    strides, dilations = (list(attributes.get(k) or [1] * rank) for k in ("strides", "dilations"))
    pads = list(attributes.get("pads") or [0] * 2 * rank)
    blocks = [
        (n + pads[i] + pads[i + rank] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i, n in enumerate(image)
    ]

    def build(x: Any) -> Any:
        axes = [te.reduce_axis((0, k), f"k{i}") for i, k in enumerate(block)]

        def element(n: Any, c: Any, *pixel: Any) -> Any:
            tap, place, inside = 0, 0, []
            for i in range(rank):
                begin = pixel[i] + pads[i] - axes[i] * dilations[i]
                at = tirx.floordiv(begin, strides[i])
                inside += [begin >= 0, at < blocks[i], tirx.EQ(tirx.floormod(begin, strides[i]), 0)]
                tap, place = tap * block[i] + axes[i], place * blocks[i] + tirx.Max(tirx.Min(at, blocks[i] - 1), 0)
            value = tirx.Select(tirx.all(*inside), x[n, c * taps + tap, place], tirx.const(0, x.dtype))
            return te.sum(value, axis=axes)

        return te.compute([shape[0], shape[1] // taps, *image], element, name="col2im")

    return bb.emit_te(build, inputs[0])


CONVERTERS: dict[str, Converter] = {
    "Clip": clip,
    "CumSum": cumsum,
    "TopK": topk,
    "LpNormalization": lp_normalization,
    "Col2Im": col2im,
}
