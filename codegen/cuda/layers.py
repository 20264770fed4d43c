"""A layer as a product with a constant matrix: its weights [groups, m, k] and where its activations come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.codegen.cuda.sources import Planes, Rows, Source
from spa.codegen.kernels.vector import product
from spa.codegen.kernels.window import window_of
from spa.codegen.layer import Array, Layer

FLOATS = ("float32", "float16")


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
    if layer.op not in ("MatMul", "Gemm", "Conv"):
        return None
    x, weight, operands = layer.inputs[0], layer.consts.get(1), layer.operands
    if x is None or 0 in layer.consts or weight is None:
        return None
    if weight.dtype.name not in FLOATS or x.dtype != weight.dtype.name or layer.output.dtype != x.dtype:
        return None
    if layer.op == "MatMul":
        if weight.ndim != 2 or len(x.shape) < 2:
            return None
        return Matrix(weight.T[None], None, Rows(product(x.shape[:-1]), x.shape[-1], x.dtype))
    if len(operands) > 2 and operands[2] is not None and 2 not in layer.consts:
        return None
    if layer.op == "Gemm":
        return _gemm(layer, weight)
    return _conv(layer, weight)


def _gemm(layer: Layer, weight: Array) -> Matrix | None:
    x, get, given = layer.inputs[0], layer.attributes, layer.consts.get(2)
    assert x is not None
    if get.get("transA", 0) or weight.ndim != 2 or len(x.shape) != 2:
        return None
    matrix = (weight if get.get("transB", 0) else weight.T) * weight.dtype.type(get.get("alpha", 1.0))
    bias = None
    if given is not None:
        if given.size != 1 and (given.size != len(matrix) or given.shape[-1] != given.size):
            return None
        bias = np.broadcast_to(given.reshape(-1) * given.dtype.type(get.get("beta", 1.0)), (len(matrix),))
    return Matrix(matrix[None], bias, Rows(x.shape[0], x.shape[1], x.dtype))


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
