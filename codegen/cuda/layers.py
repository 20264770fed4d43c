"""A layer as a product with a constant matrix: its weights [groups, m, k], where its activations come from, how it ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spa.codegen.cuda.sources import Planes, Rows, Source, Windows
from spa.codegen.cuda.words import NARROW
from spa.codegen.cuda.writer import Ending
from spa.codegen.kernels.epilogue import sizes_of, splits
from spa.codegen.kernels.vector import FLOAT, product
from spa.codegen.kernels.window import Window, window_of
from spa.codegen.layer import Arg, Array, Layer, Step

FLOATS = (FLOAT, *NARROW)
CHANNELS_LAST = "ConvChannelsLast"  # a Conv of NHWC pictures, see `channels_last`; attributes as Conv's, and `out`
PRODUCTS = ("MatMul", "Gemm", "Conv", CHANNELS_LAST)


@dataclass(frozen=True, eq=False)
class Matrix:
    """`weight` [groups, m, k]; the k of a convolution run tap by tap, the channels of one tap side by side, as in
    `spa.sparsity.formats`. `bias` [groups * m]."""

    weight: Array
    bias: Array | None
    source: Source

    @property
    def m(self) -> int:
        return int(self.weight.shape[1])

    @property
    def groups(self) -> int:
        return int(self.weight.shape[0])


def matrix_of(layer: Layer) -> Matrix | None:
    """The matrix of a MatMul, Gemm or Conv with constant weights; None for anything else."""
    if layer.op not in PRODUCTS:
        return None
    x, weight, operands = layer.inputs[0], layer.consts.get(1), layer.operands
    if x is None or 0 in layer.consts or weight is None:
        return None
    if {weight.dtype.name, x.dtype, layer.output.dtype} - {*FLOATS}:
        return None
    if layer.op == "MatMul":
        if weight.ndim != 2 or len(x.shape) < 2:
            return None
        return Matrix(weight.T[None], None, Rows(product(x.shape[:-1]), x.shape[-1], x.dtype))
    if len(operands) > 2 and operands[2] is not None and 2 not in layer.consts:
        return None
    if layer.op == "Gemm":
        return _gemm(layer, weight)
    return _conv(layer, weight) if layer.op == "Conv" else _channels_last(layer, weight)


def _gemm(layer: Layer, weight: Array) -> Matrix | None:
    x, get, given = layer.inputs[0], layer.attributes, layer.consts.get(2)
    assert x is not None
    if get.get("transA", 0) or weight.ndim != 2:
        return None
    matrix = (weight if get.get("transB", 0) else weight.T) * weight.dtype.type(get.get("alpha", 1.0))
    bias = None
    if given is not None:
        if given.size != 1 and (given.size != len(matrix) or given.shape[-1] != given.size):
            return None
        bias = np.broadcast_to(given.reshape(-1) * given.dtype.type(get.get("beta", 1.0)), (len(matrix),))
    return Matrix(matrix[None], bias, Rows(product(x.shape[:-1]), x.shape[-1], x.dtype))


def _conv(layer: Layer, weight: Array) -> Matrix | None:
    x = layer.inputs[0]
    window = window_of(layer, weight.shape[2:])
    if window is None or x is None:
        return None
    groups = int(layer.attributes.get("group", 1))
    m, k = weight.shape[0] // groups, product(weight.shape[1:])
    flat = weight.reshape(groups, m, weight.shape[1], -1).transpose(0, 1, 3, 2).reshape(groups, m, k)
    source: Source = Planes(window, groups, x.dtype)
    if groups == 1 and product(window.size) == product(window.kernel) == product(window.out) == 1:
        source = Rows(x.shape[0], x.shape[1], x.dtype)
    return Matrix(flat, layer.consts.get(2), source)


def _channels_last(layer: Layer, weight: Array) -> Matrix:
    x, get = layer.inputs[0], layer.attributes
    assert x is not None

    def pair(name: str) -> tuple[int, int]:
        first, second = (int(v) for v in get[name][:2])
        return first, second

    batch, *size, channels = x.shape
    window = Window(
        batch=batch,
        channels=channels,
        size=(size[0], size[1]),
        out=pair("out"),
        kernel=(weight.shape[2], weight.shape[3]),
        strides=pair("strides"),
        dilations=pair("dilations"),
        pads=pair("pads"),
    )
    groups = int(get["group"])
    flat = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(0, 1, 3, 2)
    return Matrix(flat.reshape(*flat.shape[:2], -1), layer.consts.get(2), Windows(window, x.dtype, groups))


def residual_behind(layer: Layer) -> Layer:
    """A Gemm that adds an activation as large as its result, with that sum as the first step behind it."""
    added = layer.inputs[2] if layer.op == "Gemm" and len(layer.operands) == 3 else None
    x, weight = layer.inputs[0], layer.consts.get(1)
    if added is None or 2 in layer.consts or layer.attributes.get("beta", 1.0) != 1 or x is None or weight is None:
        return layer
    if added.shape != (x.shape[0], weight.shape[0 if layer.attributes.get("transB", 0) else 1]):
        return layer

    def later(arg: Arg) -> Arg:
        return replace(arg, index=arg.index + 1) if arg.kind == "value" else arg

    first = Step("Add", (Arg("value", 0), Arg("tensor", 2)))
    steps = tuple(replace(s, args=tuple(later(a) for a in s.args)) for s in layer.epilogue)
    return replace(layer, epilogue=(first, *steps))


def reaches(layer: Layer, matrix: Matrix) -> bool:
    """Whether what follows can read its operands where a product's results are (in rows, or pixel by pixel), and whether
    the results can be written where they belong."""
    rows = not isinstance(matrix.source, Planes)
    x = layer.inputs[0]
    if layer.strides and layer.op != "Conv" and (x is None or len(x.shape) != len(layer.strides)):
        return False
    broadcast = [a for s in layer.epilogue for a in s.args if a.axes]
    return not broadcast or (rows and splits(layer.epilogue, matrix.groups * matrix.m))


def ending_of(layer: Layer, matrix: Matrix) -> Ending:
    """What follows the sums."""
    types = tuple(t.dtype for t in (layer.inputs[i] for i in layer.tensors) if t is not None)
    return Ending(
        bias=matrix.bias is not None,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
        dtype=layer.output.dtype,
        types=types,
        strides=_places(layer, matrix) if layer.strides else (),
    )


def _places(layer: Layer, matrix: Matrix) -> tuple[tuple[int, int], ...]:
    """`Ending.strides` of a layer whose result is written through a Transpose."""
    s, x, strides = matrix.source, layer.inputs[0], layer.strides
    assert x is not None
    if isinstance(s, Planes):
        missing = (0,) * (4 - len(strides))  # one-dimensional pictures have one row
        strides = (*strides[:2], *missing, *strides[2:])
        return tuple(zip((x.shape[0], matrix.groups * matrix.m, *s.window.out), strides, strict=True))
    channels = (matrix.groups * matrix.m, strides[1 if layer.op == "Conv" else -1])
    if layer.op == "Conv":
        return (x.shape[0], strides[0]), channels
    rows = (x.shape[0], *s.window.out) if isinstance(s, Windows) else x.shape[:-1]
    return *zip(rows, strides[:-1], strict=True), channels
