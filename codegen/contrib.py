"""com.microsoft operators and simple ai.onnx.ml ones, by ONNX's own: one rule each in `RULES`.

They are replaced before constants are folded. A rule that gives False waits for shapes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from spa.codegen.replacing import Builder, Replace, attributes, replaced, where
from spa.errors import Unsupported

DOMAINS = ("com.microsoft", "ai.onnx.ml")


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with these operators replaced; changed in place. Raises `Unsupported` for forms that cannot be. Some need
    shapes that are known only when those before them are replaced: hence again, as long as there is progress."""
    left = _left(model)
    while left:
        model, before = replaced(model, RULES, DOMAINS), left
        left = _left(model)
        if len(left) == len(before):
            raise Unsupported(
                f"{left[0].op_type} cannot be compiled: the shape of its input is not known", where(left[0])
            )
    return model


def _left(model: onnx.ModelProto) -> list[NodeProto]:
    return [n for n in model.graph.node if n.domain in DOMAINS and n.op_type in RULES]


def _scalar(build: Builder, value: float) -> str:
    return build.constant(np.array(value, np.float32))


def _integers(build: Builder, *values: int) -> str:
    return build.constant(np.array(values, np.int64))


def _inputs(node: NodeProto, count: int) -> list[str]:
    return [*node.input, *[""] * count][:count]


def _outputs(node: NodeProto, *only: int) -> None:
    """Refuse outputs other than `only`."""
    if any(name and i not in only for i, name in enumerate(node.output)):
        raise Unsupported(
            f"{node.op_type} cannot be compiled: an output beside its result is asked for",
            where(node),
            "export it without that output",
        )


def _sum(build: Builder, *names: str) -> str:
    total, *others = [n for n in names if n]
    for name in others:
        total = build.add("Add", [total, name])
    return total


def _normalised(build: Builder, node: NodeProto, x: str, scale: str, shift: str, output: str) -> None:
    epsilon = float(attributes(node).get("epsilon", 1e-12))
    if build.opset < 17:  # which has no such operator
        centred = build.add("Sub", [x, build.reduced("ReduceMean", x, [-1])])
        spread = build.reduced("ReduceMean", build.add("Mul", [centred, centred]), [-1])
        root = build.add("Sqrt", [build.add("Add", [spread, _scalar(build, epsilon)])])
        scaled = build.add("Mul", [build.add("Div", [centred, root]), scale])
        build.name("Add" if shift else "Identity", [scaled, shift] if shift else [scaled], output)
        return
    build.name("LayerNormalization", [x, scale, *([shift] if shift else [])], output, axis=-1, epsilon=epsilon)


def _skip_norm(node: NodeProto, build: Builder) -> None:
    """(x + skip + bias), normalised; output 3 is the sum."""
    _outputs(node, 0, 3)
    x, skip, gamma, beta, bias = _inputs(node, 5)
    total = _sum(build, x, skip, bias)
    if len(node.output) > 3 and node.output[3]:
        build.name("Identity", [total], node.output[3])
    _normalised(build, node, total, gamma, beta, node.output[0])


def _skip_rms(node: NodeProto, build: Builder) -> None:
    """The same by the root of the mean square, without a mean or a shift."""
    _outputs(node, 0, 3)
    x, skip, gamma, bias = _inputs(node, 4)
    total = _sum(build, x, skip, bias)
    if len(node.output) > 3 and node.output[3]:
        build.name("Identity", [total], node.output[3])
    square = build.add("Mul", [total, total])
    mean = build.reduced("ReduceMean", square, [-1])
    root = build.add("Sqrt", [build.add("Add", [mean, _scalar(build, float(attributes(node).get("epsilon", 1e-5)))])])
    build.name("Mul", [build.add("Div", [total, root]), gamma], node.output[0])


def _gelu(build: Builder, x: str, output: str) -> None:
    """x (1 + erf(x / sqrt 2)) / 2"""
    error = build.add("Erf", [build.add("Mul", [x, _scalar(build, 0.5**0.5)])])
    factor = build.add("Add", [error, _scalar(build, 1)])
    build.name("Mul", [build.add("Mul", [x, factor]), _scalar(build, 0.5)], output)


def _bias_gelu(node: NodeProto, build: Builder) -> None:
    _gelu(build, _sum(build, *node.input), node.output[0])


def _fast_gelu(node: NodeProto, build: Builder) -> None:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2"""
    x = _sum(build, *node.input)
    cube = build.add("Mul", [build.add("Mul", [x, x]), x])
    inner = build.add("Add", [x, build.add("Mul", [cube, _scalar(build, 0.044715)])])
    curve = build.add("Tanh", [build.add("Mul", [inner, _scalar(build, math.sqrt(2 / math.pi))])])
    factor = build.add("Add", [curve, _scalar(build, 1)])
    build.name("Mul", [build.add("Mul", [x, factor]), _scalar(build, 0.5)], node.output[0])


def _quick_gelu(node: NodeProto, build: Builder) -> None:
    """x sigmoid(alpha x)"""
    alpha = _scalar(build, float(attributes(node).get("alpha", 1.702)))
    gate = build.add("Sigmoid", [build.add("Mul", [node.input[0], alpha])])
    build.name("Mul", [node.input[0], gate], node.output[0])


def _fused_matmul(node: NodeProto, build: Builder) -> bool | None:
    """alpha op(A) op(B), op swapping the last two axes where asked for."""
    options = attributes(node)
    if options.get("transBatchA", 0) or options.get("transBatchB", 0):
        raise Unsupported("FusedMatMul with transBatchA or transBatchB cannot be compiled", where(node))
    factors = []
    for name, turned in zip(node.input, (options.get("transA", 0), options.get("transB", 0)), strict=True):
        shape = build.shape(name)
        if turned and shape is None:
            return False
        if turned and shape is not None and len(shape) > 1:
            perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
            factors.append(build.add("Transpose", [name], perm=perm))
        else:
            factors.append(name)
    product = build.add("MatMul", factors, ())
    build.name("Mul", [product, _scalar(build, float(options.get("alpha", 1.0)))], node.output[0])
    return None


def _activated(node: NodeProto, build: Builder, op: str, inputs: list[str], own: dict[str, Any]) -> None:
    """An operator with its activation behind it."""
    options = attributes(node)
    name = (options.get("activation") or b"").decode()
    numbers = list(options.get("activation_params", ()))
    if "activation_alpha" in options:
        numbers = [options[k] for k in ("activation_alpha", "activation_beta") if k in options]
    known = {
        "Relu": (),
        "Sigmoid": (),
        "Tanh": (),
        "LeakyRelu": ("alpha",),
        "HardSigmoid": ("alpha", "beta"),
        "Clip": (),
    }
    if name and name not in known:
        raise Unsupported(f"{node.op_type} with the activation {name} cannot be compiled", where(node))
    if not name:
        build.name(op, inputs, node.output[0], **own)
        return
    result = build.add(op, inputs, (), **own)
    if name == "Clip":
        build.name("Clip", [result, *[_scalar(build, n) for n in numbers]], node.output[0])
        return
    build.name(name, [result], node.output[0], **dict(zip(known[name], numbers, strict=False)))


def _own(node: NodeProto) -> dict[str, Any]:
    return {k: v for k, v in attributes(node).items() if not k.startswith("activation")}


def _fused_conv(node: NodeProto, build: Builder) -> None:
    x, w, b, z = _inputs(node, 4)
    if z:
        raise Unsupported("FusedConv with a sum cannot be compiled", where(node), "optimise less before exporting")
    _activated(node, build, "Conv", [x, w, *([b] if b else [])], _own(node))


def _fused_gemm(node: NodeProto, build: Builder) -> None:
    _activated(node, build, "Gemm", list(node.input), _own(node))


def _embed_norm(node: NodeProto, build: Builder) -> bool | None:
    """Embeddings of words, positions and segments, normalised; the second output counts the tokens that are not masked."""
    ids, segments, words, positions, segment_table, gamma, beta, mask, place = _inputs(node, 9)
    shape = build.shape(ids)
    if shape is None:
        return False
    place = place or _integers(build, *range(shape[1]))
    x = build.add("Gather", [words, ids], ())
    x = _sum(build, x, build.add("Gather", [positions, place], ()))
    if segments:
        x = _sum(build, x, build.add("Gather", [segment_table, segments], ()))
    if len(node.output) > 2 and node.output[2]:
        build.name("Identity", [x], node.output[2])
    _normalised(build, node, x, gamma, beta, node.output[0])
    if len(node.output) > 1 and node.output[1]:
        if mask:
            build.name(
                "Cast", [build.reduced("ReduceSum", mask, [1], keepdims=0)], node.output[1], to=TensorProto.INT32
            )
        else:
            build.name("Identity", [build.constant(np.zeros(shape[0], np.int32))], node.output[1])
    return None


def _attention(node: NodeProto, build: Builder) -> bool | None:
    """softmax(Q K^T / sqrt d + mask) V of x W + b. The mask: none, a count of tokens [batch], or 0 and 1 [batch, tokens]."""
    _outputs(node, 0)
    x, weight, bias, mask, past, added, past_length = _inputs(node, 7)
    options, shape = attributes(node), build.shape(weight)
    if past or past_length or options.get("qkv_hidden_sizes") or options.get("do_rotary", 0) or shape is None:
        raise Unsupported(
            "Attention (com.microsoft) with a past, rotary embeddings or hidden sizes cannot be compiled", where(node)
        )
    size_of = build.shape(x)
    if size_of is None or (mask and build.shape(mask) is None):
        return False
    tokens = np.arange(size_of[1], dtype=np.int32)
    heads, width = int(options["num_heads"]), shape[1] // 3
    size = width // heads
    scale = float(options.get("scale", 0) or size**-0.5)
    packed = build.add("MatMul", [x, weight], ())
    packed = build.add("Add", [packed, bias], ()) if bias else packed
    split = _integers(build, *size_of[:2], 3, heads, size)
    # [batch, tokens, 3, heads, size] -> 3 of [batch, heads, tokens, size]
    turned = build.add("Transpose", [build.add("Reshape", [packed, split], ())], (), perm=[2, 0, 3, 1, 4])
    q, k, v = (build.add("Gather", [turned, build.constant(np.array(i, np.int64))], (), axis=0) for i in range(3))
    scores = build.add("MatMul", [q, build.add("Transpose", [k], (), perm=[0, 1, 3, 2])], ())
    scores = build.add("Mul", [scores, _scalar(build, scale)], ())
    lowest = float(options.get("mask_filter_value", -10000.0))
    if mask:
        scores = build.add("Add", [scores, _masked(build, node, mask, tokens, lowest)], ())
    if options.get("unidirectional", 0):
        later = np.where(tokens > tokens[:, None], lowest, 0).astype(np.float32)
        scores = build.add("Add", [scores, build.constant(later)], ())
    if added:
        scores = build.add("Add", [scores, added], ())
    mixed = build.add("MatMul", [build.add("Softmax", [scores], (), axis=-1), v], ())
    back = build.add("Transpose", [mixed], (), perm=[0, 2, 1, 3])
    build.name("Reshape", [back, _integers(build, *size_of[:2], width)], node.output[0])
    return None


def _masked(build: Builder, node: NodeProto, mask: str, tokens: np.ndarray[Any, Any], lowest: float) -> str:
    """What is added to the scores [batch, heads, tokens, tokens]: `lowest` for what is masked."""
    rank = len(build.shape(mask) or ())
    if rank == 1:  # so many tokens from the left
        limits = build.add("Unsqueeze", [mask, _integers(build, 1)], ())
        off = build.add("GreaterOrEqual", [build.constant(tokens), limits], ())
    elif rank == 2:
        off = build.add("Equal", [mask, build.constant(np.array(0, np.int32))], ())
    else:
        raise Unsupported("Attention (com.microsoft) with such a mask cannot be compiled", where(node))
    added = build.add("Mul", [build.add("Cast", [off], (), to=TensorProto.FLOAT), _scalar(build, lowest)], ())
    return build.add("Unsqueeze", [added, _integers(build, 1, 2)], ())


def _scaler(node: NodeProto, build: Builder) -> None:
    """(x - offset) * scale"""
    options = attributes(node)
    offset, scale = (build.constant(np.array(options[k], np.float32)) for k in ("offset", "scale"))
    x = build.add("Cast", [node.input[0]], (), to=TensorProto.FLOAT)
    build.name("Mul", [build.add("Sub", [x, offset], ()), scale], node.output[0])


def _array_features(node: NodeProto, build: Builder) -> None:
    """Columns of the last axis; of a vector a matrix of one row."""
    shape = build.shape(node.input[0])
    flat = build.add("Reshape", [node.input[1], _integers(build, -1)], ())
    picked = build.add("Gather", [node.input[0], flat], (), axis=-1)
    if shape is not None and len(shape) == 1:
        build.name("Unsqueeze", [picked, _integers(build, 0)], node.output[0])
    else:
        build.name("Identity", [picked], node.output[0])


RULES: dict[str, Replace] = {
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms,
    "BiasGelu": _bias_gelu,
    "Gelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "EmbedLayerNormalization": _embed_norm,
    "Attention": _attention,
    "Scaler": _scaler,
    "ArrayFeatureExtractor": _array_features,
}
