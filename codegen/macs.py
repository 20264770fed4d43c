"""How much a layer computes: the multiply-adds with weights that are not zero."""

from __future__ import annotations

import math

import numpy as np

from spa.codegen.layer import Layer


def layer_macs(layer: Layer) -> int:
    """Of a convolution, every weight once for each output pixel; of a product, for each row of the input (with two
    activations: every element of the output once for each of the reduced). Other operators: 0."""
    x = layer.inputs[0] if layer.inputs else None
    if x is None or layer.op not in ("Conv", "ConvChannelsLast", "Gemm", "MatMul"):
        return 0
    size = math.prod(layer.output.shape)
    weight = layer.consts.get(1)
    if layer.op in ("Conv", "ConvChannelsLast"):
        return 0 if weight is None else size // weight.shape[0] * int(np.count_nonzero(weight))
    k = x.shape[-2] if layer.op == "Gemm" and layer.attributes.get("transA", 0) else x.shape[-1]
    if weight is None or weight.ndim != 2:
        return size * k
    return size * int(np.count_nonzero(weight)) // max(weight.size // max(k, 1), 1)
