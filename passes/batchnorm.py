"""Batch normalisation at inference is an affine map per channel, and so is the end of a convolution:

    BatchNormalization(z) = s·z + t      with  s = gamma / sqrt(var + eps),  t = beta − s·mean
    Conv:           z = W ∗ x + b        W [M, C/g, k...]      ⇒  W'[m] = s[m]·W[m],          b' = s·b + t
    ConvTranspose:  z = W ∗ᵀ x + b       W [C, M/g, k...]      ⇒  W'[c, j] = s[g(c)·M/g + j]·W[c, j],  b' = s·b + t
    Gemm:           z = α·A·B + β·C      B [K, N] or [N, K]    ⇒  B' scaled along N,          C' = s·(β·C) + t,  β' = 1

onnxscript has these rewrites; here they are computed in float64 and rounded once, so that fp16 weights keep their
precision, and they decline where onnxscript's would be wrong: BatchNormalization in training mode, or before opset 9
with per-element statistics.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.passes import edit
from spa.passes.edit import as_float64, attribute, constant, is_onnx, is_private

Float64 = npt.NDArray[np.float64]

FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def fold_batchnorm(model: ir.Model) -> tuple[int, list[tuple[str, str]]]:
    """Fold each BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    Returns how many were folded, and (node, reason) of those that were not.
    """
    folded, declined, names = 0, [], edit.taken_names(model)
    for norm in list(edit.nodes(model)):
        if not is_onnx(norm, "BatchNormalization"):
            continue
        reason = _fold(model, norm, names)
        if reason is None:
            folded += 1
        else:
            declined.append((norm.name or (norm.outputs[0].name or ""), reason))
    return folded, declined


def _fold(model: ir.Model, norm: ir.Node, names: set[str]) -> str | None:
    """Fold one, or say why not."""
    reason = _statistics_move(norm, model.opset_imports.get("", 1))
    if reason:
        return reason
    z = norm.inputs[0]
    layer = z.producer() if z is not None else None
    if z is None or layer is None or not is_onnx(layer, "Conv", "ConvTranspose", "Gemm"):
        return "it does not follow a Conv, ConvTranspose or Gemm"
    if layer.graph is not norm.graph or not is_private(z):
        return f"the output of {layer.op_type} is used elsewhere too"
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    tensor, parameters = constant(weight), [constant(v) for v in norm.inputs[1:5]]
    if weight is None or tensor is None or None in parameters or (bias is not None and constant(bias) is None):
        return "a weight is not constant: it is computed, or a graph input that a caller may replace"
    if not is_private(weight):
        return f"the weight '{weight.name}' is shared"
    if tensor.dtype not in FLOATS:
        return f"the weight '{weight.name}' is {tensor.dtype.name}"
    scale, shift = affine([as_float64(p) for p in parameters if p is not None], attribute(norm, "epsilon", 1e-5))
    before = constant(bias)
    start = np.zeros_like(shift) if before is None else as_float64(before) * attribute(layer, "beta", 1.0)
    new_weight, new_bias = scale_weight(layer, as_float64(tensor), scale), start * scale + shift
    dtype = tensor.numpy().dtype
    if not _fits(new_weight, as_float64(tensor), dtype) or not _fits(new_bias, start, dtype):
        return f"the folded weight does not fit into {tensor.dtype.name}"
    output = norm.outputs[0]
    if not edit.bypass(output, z):
        return "its output cannot be renamed"
    edit.set_constant(weight, new_weight.astype(dtype))
    if bias is not None and is_private(bias):
        edit.set_constant(bias, new_bias.astype(dtype))
    else:
        name = edit.unique_name(names, bias_name(weight.name or "weight"))
        layer.resize_inputs(3)
        layer.replace_input_with(2, edit.add_constant(model, layer, ir.tensor(new_bias.astype(dtype), name=name)))
    layer.attributes.pop("beta", None)
    assert norm.graph is not None
    norm.graph.remove(norm, safe=True)
    return None


def _statistics_move(norm: ir.Node, opset: int) -> str | None:
    """Why this BatchNormalization is no fixed affine map per channel, if so."""
    if attribute(norm, "training_mode", 0):
        return "it is in training mode"
    if opset < 7 and not attribute(norm, "is_test", 0):
        return "it is in training mode (is_test=0)"
    if attribute(norm, "spatial", 1) == 0:
        return "its statistics are per element (spatial=0)"
    if any(v.name and (v.uses() or v.is_graph_output()) for v in norm.outputs[1:]):
        return "its running statistics are outputs"
    return None


def affine(parameters: list[Float64], epsilon: float) -> tuple[Float64, Float64]:
    """(gamma, beta, mean, var), eps -> scale and shift, one entry per channel; NaN where the variance is impossible."""
    gamma, beta, mean, var = parameters
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(var + epsilon)
    return scale, beta - scale * mean


def scale_weight(layer: ir.Node, weight: Float64, scale: Float64) -> Float64:
    """Multiply every output channel of the layer's weight by its entry in `scale`."""
    if layer.op_type == "Gemm":
        return weight * (scale[:, None] if attribute(layer, "transB", 0) else scale)
    ones = (1,) * (weight.ndim - 2)
    if layer.op_type == "Conv":
        return weight * scale.reshape(-1, 1, *ones)
    group = attribute(layer, "group", 1)
    split = weight.reshape(group, -1, *weight.shape[1:])  # [g, C/g, M/g, k...]
    return (split * scale.reshape(group, 1, -1, *ones)).reshape(weight.shape)


def bias_name(weight: str) -> str:
    """
    >>> bias_name("stem.0.weight"), bias_name("W")
    ('stem.0.bias', 'W_bias')
    """
    return f"{weight.removesuffix('weight')}bias" if weight.endswith(".weight") else f"{weight}_bias"


def _fits(new: Float64, old: Float64, dtype: np.dtype[Any]) -> bool:
    """Is rounding all that `dtype` does to it: no overflow, and hardly an entry that falls below the normal range?"""
    with np.errstate(over="ignore"):
        rounded = new.astype(dtype).astype(np.float64)
    tiny = float(ml_dtypes.finfo(dtype).tiny)  # type: ignore[no-untyped-call]
    lost = (np.abs(rounded) < tiny) & (new != 0) & (np.abs(np.broadcast_to(old, new.shape)) >= tiny)
    return bool(np.isfinite(rounded).all()) and float(lost.mean()) < 0.01
