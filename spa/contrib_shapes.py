"""Output types of operators for which ONNX has no schema or no inference: com.microsoft ops, which onnxruntime's
optimizer emits, `SimplifiedLayerNormalization`, which it emits in the default domain, and ai.onnx.ml ops.

A row of the table gives, from the operands' shapes, one shape per output (None: unknown) and, where it is not that of
the first operand, the element type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, TypeProto, defs, helper, shape_inference

Shape = tuple[int, ...]
Typed = Shape | tuple[int, Shape] | None  # a shape, (element type, shape), or not known
Row = Callable[[ir.Node, list[Shape | None]], Sequence[Typed]]


def output_types(node: ir.Node, types: list[TypeProto | None]) -> dict[str, TypeProto]:
    """Output name -> type, as far as the row of the operator tells."""
    if node.op_type in PLAIN:
        return _as_plain(node, types)
    row = ROWS.get(node.op_type)
    first = next((t for t in types if t is not None and t.HasField("tensor_type")), None)
    if row is None or first is None:
        return {}
    try:
        found = row(node, [_dims(t) for t in types])
    except (AssertionError, IndexError, TypeError, ValueError, ZeroDivisionError):  # an operand is missing or unknown
        return {}
    kind = next((t for t in types[OPERAND.get(node.op_type, 0) :] if t is not None), first).tensor_type.elem_type
    out = {}
    for value, typed in zip(node.outputs, found, strict=False):
        if typed is None or not value.name:
            continue
        dtype, shape = (typed[0], typed[1]) if len(typed) == 2 and isinstance(typed[1], tuple) else (kind, typed)
        out[value.name] = helper.make_tensor_type_proto(int(dtype), [n for n in shape if isinstance(n, int)])
    return out


def _dims(kind: TypeProto | None) -> Shape | None:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value for d in kind.tensor_type.shape.dim)


def _attr(node: ir.Node, name: str, default: Any = None) -> Any:
    return node.attributes[name].value if name in node.attributes else default


# -- ops that ONNX knows under another name

PLAIN = {
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "NhwcConv": "Conv",
    "NhwcFusedConv": "Conv",
    "NhwcMaxPool": "MaxPool",
}
PLAIN_ATTRIBUTES = (
    "alpha",
    "beta",
    "transA",
    "transB",
    "group",
    "pads",
    "strides",
    "dilations",
    "kernel_shape",
    "auto_pad",
    "ceil_mode",
)


def _as_plain(node: ir.Node, types: list[TypeProto | None]) -> dict[str, TypeProto]:
    """Inference of the op without its fused activation, and with channels in second place."""
    proto = ir.serde.serialize_node(node)
    proto.op_type, proto.domain = PLAIN[node.op_type], ""
    keep = [a for a in proto.attribute if a.name in PLAIN_ATTRIBUTES]
    del proto.attribute[:]
    proto.attribute.extend(keep)
    last = node.op_type.startswith("Nhwc")
    given = {n: t for n, t in zip(proto.input, types, strict=False) if t is not None and n}
    del proto.input[1 if proto.op_type == "MaxPool" else 3 :]
    x = types[0]
    if last and (dims := _dims(x)) and x is not None:
        given[proto.input[0]] = helper.make_tensor_type_proto(x.tensor_type.elem_type, [dims[0], dims[-1], *dims[1:-1]])
    try:
        found = shape_inference.infer_node_outputs(defs.get_schema(proto.op_type, 13), proto, given)
    except Exception:  # onnx raises several kinds; an unknown shape blocks what touches it
        return {}
    if last:
        for name, kind in found.items():
            batch, channels, *positions = _dims(kind) or (0, 0)
            found[name] = helper.make_tensor_type_proto(kind.tensor_type.elem_type, [batch, *positions, channels])
    return dict(found)


# -- rows


def _same(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    return [s[0]]


def _normalised(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    """Output, and what training saves of it."""
    assert s[0] is not None
    axis = int(_attr(node, "axis", -1)) % len(s[0])
    saved = (TensorProto.FLOAT, tuple(n if i < axis else 1 for i, n in enumerate(s[0])))
    return [s[0], saved, saved]


def _skip_normalised(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None
    saved = (TensorProto.FLOAT, (*s[0][:-1], 1))
    return [s[0], saved, saved, s[0]]


def _embedded(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None and s[2] is not None
    y = (*s[0], s[2][-1])
    return [y, (TensorProto.INT32, s[0][:1]), y]


def _broadcast(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    return [tuple(int(n) for n in np.broadcast_shapes(*(t for t in s if t is not None)))]


def _q_broadcast(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    return _broadcast(node, [s[0], s[3]])


def _halved(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None
    return [(*s[0][:-1], s[0][-1] // 2)]


def _twice(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    return [s[0], s[0]]


def _gathered(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    """Rows of a table: where several numbers share a byte, blocks tell its width."""
    data, indices, scales = s[0], s[1], s[2]
    assert data is not None and indices is not None and scales is not None
    at, along = int(_attr(node, "gather_axis", 0)) % len(data), int(_attr(node, "quantize_axis", 1)) % len(data)
    blocks = scales[along] * int(_attr(node, "block_size", 128))
    per_byte = 8 // int(_attr(node, "bits", 4))
    width = data[along] if data[along] * per_byte > blocks else data[along] * per_byte
    dims = [*data[:along], width, *data[along + 1 :]]
    return [(*dims[:at], *indices, *dims[at + 1 :])]


def _matmul(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None and s[1] is not None
    a, b = list(s[0]), list(s[1])
    for dims, flag, batch in ((a, "transA", "transBatchA"), (b, "transB", "transBatchB")):
        if _attr(node, batch, 0):
            dims[:-1] = [*dims[1:-1], dims[0]]
        if _attr(node, flag, 0) and len(dims) > 1:
            dims[-1], dims[-2] = dims[-2], dims[-1]
    lead = np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2]))
    return [(*map(int, lead), *a[-2:-1], *b[-1:][: len(b) - 1])]


def _blocks(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None
    return [(*s[0][:-1], int(_attr(node, "N")))]


def _onnx_attention(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    """Output, present keys and values, scores."""
    q, k, v = s[0], s[1], s[2]
    past = s[4] if len(s) > 4 else None
    assert q is not None and k is not None and v is not None
    if len(q) == 3:
        heads, kv = int(_attr(node, "q_num_heads")), int(_attr(node, "kv_num_heads"))
        y: Shape = (*q[:2], heads * v[2] // kv)
        d, e, length, queries = k[2] // kv, v[2] // kv, k[1], q[1]
    else:
        heads, kv, d, e, length, queries = q[1], k[1], k[3], v[3], k[2], q[2]
        y = (*q[:3], e)
    length += past[2] if past else 0
    return [y, (q[0], kv, length, d), (q[0], kv, length, e), (q[0], heads, queries, length)]


def _attention(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    if node.domain == "":
        return _onnx_attention(node, s)
    x, w = s[0], s[1]
    assert x is not None and w is not None
    heads = int(_attr(node, "num_heads", 1))
    sizes = _attr(node, "qkv_hidden_sizes") or [w[1] // 3] * 3
    past = s[4] if len(s) > 4 and node.op_type == "Attention" else s[8] if len(s) > 8 else None
    length = x[1] + (past[3] if past else 0)
    return [(*x[:2], int(sizes[2])), (2, x[0], heads, length, int(sizes[1]) // heads)]


def _q_attention(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    return [None if t is None else (TensorProto.FLOAT, t) for t in _attention(node, s)]  # type: ignore[misc]


def _multi_head(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    s = [*s, *[None] * (8 - len(s))]
    q, k, v, past = s[0], s[1], s[2], s[6]
    heads = int(_attr(node, "num_heads", 1))
    assert q is not None
    if len(q) == 5:  # packed (B, S, heads, 3, head size)
        return [(q[0], q[1], q[2] * q[4]), *[(q[0], q[2], q[1] + (past[2] if past else 0), q[4])] * 2]
    assert k is not None
    if len(k) == 5:
        return [(q[0], q[1], k[2] * k[4]), *[(q[0], heads, k[1], k[4])] * 2]
    assert v is not None
    if len(k) == 4:  # keys and values of another sequence, as (B, heads, T, head size)
        return [(q[0], q[1], v[1] * v[3]), k, v]
    length = k[1] + (past[2] if past else 0)
    return [(q[0], q[1], v[-1]), *((q[0], heads, length, t[-1] // heads) for t in (k, v))]


def _group_query(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    s = [*s, *[None] * (5 - len(s))]
    q, k, past = s[0], s[1], s[3]
    heads, kv = int(_attr(node, "num_heads", 1)), int(_attr(node, "kv_num_heads", 1))
    assert q is not None
    size = q[-1] // heads if k else q[-1] // (heads + 2 * kv)  # without keys: all three packed into the query
    length = None if past is None else past[2] if past[2] > q[1] else past[2] + q[1]
    cache = (q[0], kv, length if length is not None else q[1], size)
    return [(*q[:-1], heads * size), cache, cache]


def _features(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    """Feature vectors side by side."""
    assert s[0] is not None
    return [(TensorProto.FLOAT, (s[0][0], sum(math.prod(t[1:]) for t in s if t is not None)))]


def _float_same(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None
    return [(TensorProto.FLOAT, s[0])]


def _extracted(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None and s[1] is not None
    return [(*(s[0][:-1] or (1,)), math.prod(s[1]))]


def _regressed(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None
    rows = s[0][0] if len(s[0]) > 1 else 1
    return [(TensorProto.FLOAT, (rows, int(_attr(node, "targets", _attr(node, "n_targets", 1)))))]


def _classified(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    assert s[0] is not None
    rows = s[0][0] if len(s[0]) > 1 else 1
    strings = _attr(node, "classlabels_strings") or ()
    labels = strings or _attr(node, "classlabels_int64s") or _attr(node, "classlabels_ints") or ()
    return [
        (TensorProto.STRING if strings else TensorProto.INT64, (rows,)),
        (TensorProto.FLOAT, (rows, max(len(labels), 1))),
    ]


def _matmul_to_float(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    return [(TensorProto.FLOAT, shape) for shape in _matmul(node, s)]  # type: ignore[misc]


def _q_gemm(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    """A, scale, zero point, B, scale, zero point, C, then scale and zero point of an output that is quantised too."""
    (shape,) = _matmul(node, [s[0], s[3]])
    return [shape if len(s) > 8 and s[8] is not None else (TensorProto.FLOAT, shape)]  # type: ignore[list-item]


def _q_concat(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    """Scale and zero point of the output, then every operand with its own."""
    parts = s[2::3]
    assert parts[0] is not None
    axis = int(_attr(node, "axis", 1)) % len(parts[0])
    return [tuple(sum(p[axis] for p in parts if p) if i == axis else n for i, n in enumerate(parts[0]))]


def _q_pool(node: ir.Node, s: list[Shape | None]) -> list[Typed]:
    """QLinearGlobalAveragePool, and QLinearAveragePool with explicit padding."""
    x = s[0]
    assert x is not None
    last = bool(_attr(node, "channels_last", 0))
    spatial = x[1:-1] if last else x[2:]
    if node.op_type == "QLinearAveragePool":
        if _attr(node, "auto_pad", "NOTSET") != "NOTSET":
            return [None]
        kernel, rank = _attr(node, "kernel_shape"), len(spatial)
        steps, pads = _attr(node, "strides", [1] * rank), _attr(node, "pads", [0] * 2 * rank)
        up = steps if _attr(node, "ceil_mode", 0) else [1] * rank
        out = [(n + pads[i] + pads[i + rank] - kernel[i] + up[i] - 1) // steps[i] + 1 for i, n in enumerate(spatial)]
    else:
        out = [1] * len(spatial)
    return [(x[0], *out, x[-1]) if last else (*x[:2], *out)]


ROWS: dict[str, Row] = {
    **dict.fromkeys(("Gelu", "QuickGelu", "ScaledSiLU", "RotaryEmbedding", "GemmaRotaryEmbedding", "Trilu", "Inverse", "BiasSoftmax"), _same),
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"), _same),
    **dict.fromkeys(("GroupNormalization", "MeanVarianceNormalization"), _same),
    **dict.fromkeys(("GroupNorm", "GatedRMSNorm", "BranchwiseRMSNorm", "MoE", "QMoE"), _same),
    **dict.fromkeys(("BiasGelu", "FastGelu", "BiasAdd", "GatedAdd"), _broadcast),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), _normalised),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_normalised),
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation"), _matmul),
    **dict.fromkeys(("MultiHeadAttention", "DecoderMaskedMultiHeadAttention"), _multi_head),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _matmul_to_float),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _q_broadcast),
    "QGemm": _q_gemm, "QLinearConcat": _q_concat, "QLinearGlobalAveragePool": _q_pool, "QLinearAveragePool": _q_pool,
    **dict.fromkeys(("Scaler", "Normalizer", "Imputer"), _float_same),
    **dict.fromkeys(("LinearRegressor", "SVMRegressor", "TreeEnsembleRegressor"), _regressed),
    **dict.fromkeys(("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"), _classified),
    "EmbedLayerNormalization": _embedded, "BiasSplitGelu": _halved, "SkipGroupNorm": _twice, "BiasDropout": _twice,
    "MatMulNBits": _blocks, "Attention": _attention, "QAttention": _q_attention, "GroupQueryAttention": _group_query,
    "GatherBlockQuantized": _gathered,
    "Binarizer": _same, "FeatureVectorizer": _features, "ArrayFeatureExtractor": _extracted,
}  # fmt: skip
OPERAND = {
    "EmbedLayerNormalization": 2,
    "QLinearConcat": 2,
    "GatherBlockQuantized": 2,
}  # whose element type the outputs have, where it is not the first operand
