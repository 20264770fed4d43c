"""Operators of onnxruntime's own domain, com.microsoft, that its optimizer puts in place of ONNX's.

Most are an ONNX operator with something fused behind it: a bias, an activation, a residual. The rule is then the
operator's own, and what is fused only decides whether a masked channel is still zero.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows
from spa.coupling.rules.attention import MICROSOFT
from spa.coupling.rules.contraction import WINDOW, contract, conv, follow_group, gemm, matmul
from spa.coupling.rules.normalization import MIXED, rescale_rms, rms_norm

# activations that onnxruntime fuses, by their value at zero
ZERO_AT_ZERO = {
    "Relu",
    "LeakyRelu",
    "Tanh",
    "Elu",
    "Selu",
    "Softsign",
    "ScaledTanh",
    "Gelu",
    "FastGelu",
    "QuickGelu",
    "",
}


def keeps_zero(op: Op) -> bool:
    """Is the fused activation zero at zero?"""
    name = op.attr("activation", "")
    name = name.decode() if isinstance(name, bytes) else str(name)
    params = [float(p) for p in op.attr("activation_params") or ()]
    if name == "Clip" and len(params) == 2:
        return params[0] <= 0 <= params[1]
    return name in ZERO_AT_ZERO


def all_nonzero(op: Op, g: Axes) -> None:
    for axis in range(len(op.shape(op.out))):
        g.mark((op.out, axis), False)


def summed(op: Op, g: Axes, operands: list[ir.Value]) -> None:
    """y = f(sum of operands, broadcast to y), f(0) = 0."""
    y = op.out
    rank = len(op.shape(y))
    for axis, n in enumerate(op.shape(y)):
        zero = True
        for v in operands:
            own = axis - rank + len(op.shape(v))
            carried = own >= 0 and op.shape(v)[own] == n
            if carried:
                g.same((v, own), (y, axis))
            zero = zero and carried and g.zero((v, own))
        g.mark((y, axis), zero)


def given(op: Op, *positions: int) -> list[ir.Value]:
    return [v for i in positions or range(len(op.inputs)) if (v := op.input(i)) is not None]


# -- contractions


def fused_conv(op: Op, g: Axes) -> None:
    """Conv, then + Z, then an activation."""
    conv(op, g)
    z = op.input(3)
    if z is not None:
        for axis in range(len(op.shape(z))):
            g.same((z, axis), (op.out, axis))
            g.mark((op.out, axis), g.zero((z, axis)))
    if not keeps_zero(op):
        all_nonzero(op, g)


def nhwc_conv(op: Op, g: Axes) -> None:
    """x (N, ..., C), W (O, C/group, ...) -> y (N, ..., O); Z as in FusedConv."""
    x, w, b, y = op.inputs[0], op.inputs[1], op.input(2), op.out
    assert x is not None and w is not None
    last, groups, outputs = len(op.shape(x)) - 1, int(op.attr("group", 1)), op.shape(w)[0]
    group = g.virtual("group", groups)
    g.same((x, 0), (y, 0))
    g.same((w, 0), (y, last))
    g.factor((x, last), [(group, groups), ((w, 1), op.shape(w)[1])])
    g.factor((y, last), [(group, groups), (g.virtual("within", outputs // groups), outputs // groups)])
    if not g.zero((x, last)) and not g.zero((w, 1)):
        g.freeze((x, last), "summed against a value that masking does not make zero", approximate=True)
    if b is not None:
        g.same((b, 0), (y, last))
    zero = g.zero((w, 0)) and (b is None or g.zero((b, 0))) and keeps_zero(op)
    z = op.input(3)
    if z is not None:
        for axis in range(last + 1):
            g.same((z, axis), (y, axis))
        zero = zero and g.zero((z, last))
    for axis in range(last + 1):
        g.mark((y, axis), axis == last and zero)
    for v, spatial in ((x, range(1, last)), (y, range(1, last)), (w, range(2, last + 1))):
        for axis in spatial:
            g.freeze((v, axis), WINDOW)
            if v is w:
                g.kernel.add((v, axis))


def fused_gemm(op: Op, g: Axes) -> None:
    gemm(op, g)
    if not keeps_zero(op):
        all_nonzero(op, g)


def fused_matmul(op: Op, g: Axes) -> None:
    """alpha A' B', then an activation."""
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        return blocked(op, g)
    matmul(op, g)
    if not keeps_zero(op):
        all_nonzero(op, g)
    return None


def mixture(op: Op, g: Axes) -> None:
    """MoE: x (..., H), router (tokens, E), fc1 (E, f U, H) and its bias, fc2 (E, H, U) and its bias, fc3 (E, U, H) and its
    bias: per token the sum over its experts of fc2 (act(fc1 x) * fc3 x). Units U end in fc2, which is zero where they
    are masked. Where swiglu is fused (f = 2), fc1 holds gates and units: interleaved (U, 2), or one after the other.
    Experts compete for tokens: none can go."""
    x, y = op.inputs[0], op.out
    fc1, bias1, fc2, bias2, fc3, bias3 = (op.input(i) for i in range(2, 8))
    assert x is not None and fc1 is not None and fc2 is not None
    last, units = len(op.shape(x)) - 1, op.shape(fc2)[2]
    twice = op.shape(fc1)[1] // units
    both, unit = (g.virtual("both", twice), twice), ((fc2, 2), units)
    g.freeze(both[0], "gates belong to their units")
    g.factor((fc1, 1), [unit, both] if int(op.attr("swiglu_fusion", 0)) == 1 else [both, unit])
    for v in (fc1, bias1, fc2, bias2, fc3, bias3, op.input(1)):
        if v is not None:
            g.freeze((v, 1 if v is op.input(1) else 0), "experts compete for tokens")
    for v, axis, slot in (
        (bias1, 1, (fc1, 1)),
        (fc3, 1, unit[0]),
        (bias3, 1, unit[0]),
        (bias2, 1, (fc2, 1)),
        (fc3, 2, (fc1, 2)),
    ):
        if v is not None:
            g.same((v, axis), slot)
    contract(g, x, last, fc1, 2)
    if not g.zero((fc2, 2)):
        g.freeze((fc2, 2), "summed against a value that masking does not make zero", approximate=True)
    g.same((fc2, 1), (y, last))
    g.same((x, last), (y, last))  # kernels take the width of what they return from what they read
    for axis in range(last):
        g.freeze((x, axis), "tokens")
        g.freeze((y, axis), "tokens")
        g.mark((y, axis), False)
    g.mark((y, last), g.zero((fc2, 1)) and (bias2 is None or g.zero((bias2, 1))))


# -- normalisation


def skip_layer_norm(op: Op, g: Axes) -> None:
    """LayerNorm(input + skip + bias), and that sum as output 3."""
    skipped(op, g, gamma=(2, 3), bias=4)
    g.freeze((op.out, len(op.shape(op.out)) - 1), MIXED, approximate=True)


def skip_rms_norm(op: Op, g: Axes) -> None:
    """RMSNorm(input + skip + bias), and that sum as output 3."""
    zero = skipped(op, g, gamma=(2,), bias=3)
    last = (op.out, len(op.shape(op.out)) - 1)
    if not zero:
        g.freeze(last, MIXED, approximate=True)
    saved(op, g)


def skipped(op: Op, g: Axes, gamma: tuple[int, ...], bias: int) -> bool:
    """The axes of both; is the normalised sum zero at a masked channel?"""
    y = op.out
    operands = given(op, 0, 1, bias)
    summed(op, g, operands)
    last = len(op.shape(y)) - 1
    zero = g.zero((y, last))
    weights = given(op, *gamma)
    for v in weights:
        g.same((v, 0), (y, last))
    total = op.outputs[3] if len(op.outputs) > 3 else None
    for axis in range(last + 1):
        if total is not None and op.shape(total):
            g.same((total, axis), (y, axis))
            g.mark((total, axis), g.zero((y, axis)))
        g.mark((y, axis), axis == last and all(g.zero((v, 0)) for v in weights))
    if all(g.zero((v, 0)) for v in weights):
        g.nonzero.discard((y, last))  # gamma and beta make it zero, whatever the sum is
    return zero


def saved(op: Op, g: Axes) -> None:
    """The deviation that training saves is not what is left of it once epsilon is rescaled."""
    if any(v.uses() or v.is_graph_output() for v in op.outputs[1:3] if v.name):
        g.freeze((op.out, len(op.shape(op.out)) - 1), "its deviation is an output of its own")


def simplified(op: Op, g: Axes) -> None:
    rms_norm(op, g)
    saved(op, g)


def rescale_skip(op: Op, edit: Edit) -> None:
    """See `spa.coupling.rules.normalization`; the default of epsilon is this operator's own."""
    slot = (op.out, len(op.shape(op.out)) - 1)
    before, after = edit.coupling.axes.add(slot), edit.count(slot)
    if before != after:
        edit.set_attr(op, "epsilon", float(op.attr("epsilon", 1e-12)) * before / after)
        edit.scale_input(op, 2, (before / after) ** 0.5)


def embed_layer_norm(op: Op, g: Axes) -> None:
    """Three tables looked up and summed, then LayerNorm. ids (B, S), tables (V, H), gamma, beta (H)."""
    ids, y = op.inputs[0], op.out
    assert ids is not None
    for v in given(op, 2, 3, 4):
        g.freeze((v, 0), "indexed by data")
        g.same((v, 1), (y, 2))
    for v in given(op, 5, 6):
        g.same((v, 0), (y, 2))
    total = op.outputs[2] if len(op.outputs) > 2 else None
    for axis in (0, 1):
        g.same((ids, axis), (y, axis))
        g.mark((y, axis), False)
    for axis in range(3):
        if total is not None and op.shape(total):
            g.same((total, axis), (y, axis))
            g.mark((total, axis), axis == 2)
    g.mark((y, 2), all(g.zero((v, 0)) for v in given(op, 5, 6)))
    g.freeze((y, 2), MIXED, approximate=True)
    if len(op.outputs) > 1:
        g.freeze_all(op.outputs[1], "lengths of sequences")


def gather_blocks(op: Op, g: Axes) -> None:
    """GatherBlockQuantized: rows of a table (V, H), kept as small integers, several to a byte maybe, with a scale per block
    of H. Masked scales make their block zero. Other axes than these are not taken apart."""
    data, indices, scales, y = op.inputs[0], op.inputs[1], op.inputs[2], op.out
    assert data is not None and indices is not None and scales is not None
    blocks, width, last = op.shape(scales)[-1], op.shape(y)[-1], len(op.shape(y)) - 1
    along = int(op.attr("gather_axis", 0)), int(op.attr("quantize_axis", 1)) % 2
    if len(op.shape(data)) != 2 or along != (0, 1) or width % blocks or op.shape(data)[1] % blocks:
        return blocked(op, g)
    block, points = g.virtual("blocks", blocks), op.input(3)
    for slot in ((data, 1), (y, last)):
        inside = g.virtual(slot, g.add(slot) // blocks)
        g.freeze(inside, "channels of one quantisation block")
        g.factor(slot, [(block, blocks), (inside, g.add(slot) // blocks)])
    g.same((scales, 1), block)
    if points is not None and op.shape(points) == op.shape(scales):
        g.same((points, 1), block)
    elif points is not None:
        g.freeze(block, "zero points of several blocks share bytes")
    for v in (data, scales, points):
        if v is not None:
            g.freeze((v, 0), "indexed by data")
    for axis in range(last):
        g.same((indices, axis), (y, axis))
        g.mark((y, axis), False)
    g.mark((y, last), g.zero((scales, 1)))
    return None


def group_norm(op: Op, g: Axes) -> None:
    """x (N, H, W, C), or (N, C, H, W) with channels_last=0; gamma, beta (C). SkipGroupNorm: f(x + skip + bias), and the sum."""
    x, y = op.inputs[0], op.out
    assert x is not None
    rank, groups = len(op.shape(x)), int(op.attr("groups"))
    channel = rank - 1 if op.attr("channels_last", 1) else 1
    n = op.shape(x)[channel] // groups
    within = g.virtual("within", n)
    g.factor((y, channel), [(g.virtual("group", groups), groups), (within, n)])
    g.freeze(within, MIXED, approximate=True)
    for v in given(op, 3):
        for axis, size in enumerate(op.shape(v)):
            if size == op.shape(x)[channel]:
                g.same((v, len(op.shape(v)) - 1 if len(op.shape(v)) < rank else channel), (y, channel))
            elif size > 1:
                g.same((v, axis), (y, axis))
    for v in given(op, 1, 2, 4):
        g.same((v, 0), (y, channel))
    for t in [x, *op.outputs]:
        for axis in range(len(op.shape(t))):
            g.same((t, axis), (y, axis))
            if axis not in (0, channel):
                g.freeze((t, axis), MIXED)
            g.mark((t, axis), t is x or (axis == channel and t is y and all(g.zero((v, 0)) for v in given(op, 1, 2))))


def follow_groups(op: Op, edit: Edit) -> None:
    edit.set_attr(op, "groups", edit.count_virtual(op, "group", int(op.attr("groups"))))


# -- element-wise


def biased(op: Op, g: Axes) -> None:
    """BiasGelu, FastGelu, BiasAdd, ...: f(sum of operands), f(0) = 0."""
    summed(op, g, given(op))


def activation(op: Op, g: Axes) -> None:
    """f of the first operand, f(0) = 0; a second one is a number."""
    summed(op, g, given(op, 0))


def gated_add(op: Op, g: Axes) -> None:
    """X + Y * gate, with one gate per row."""
    summed(op, g, given(op, 0, 1))
    gate = op.inputs[2]
    assert gate is not None
    for axis in range(len(op.shape(gate)) - 1):
        g.same((gate, axis), (op.out, axis))


def bias_split_gelu(op: Op, g: Axes) -> None:
    """The halves of x + bias: left * gelu(right)."""
    x, bias, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None and bias is not None
    last = len(op.shape(x)) - 1
    half = op.shape(y)[last]
    two = g.virtual("two", 2)
    g.factor((x, last), [(two, 2), ((y, last), half)])
    g.freeze(two, "the two halves are multiplied")
    g.same((x, last), (bias, 0))
    for axis in range(last):
        g.same((x, axis), (y, axis))
        g.mark((y, axis), False)
    g.mark((y, last), g.zero((x, last)) and g.zero((bias, 0)))


def bias_softmax(op: Op, g: Axes) -> None:
    x, bias, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None
    rank = len(op.shape(x))
    axis = int(op.attr("axis", 1)) % rank
    for i in range(rank):
        g.same((x, i), (y, i))
        g.mark((y, i), False)
        if i >= axis:
            g.freeze((x, i), f"{op.kind} over this axis", approximate=True)
    g.freeze_all(bias, f"bias of {op.kind}")


def bias_dropout(op: Op, g: Axes) -> None:
    """data + bias + residual, where it is not in training."""
    if op.input(4) is not None and (op.known(4) is None or bool(np.any(op.known(4)))):
        return blocked(op, g)
    summed(op, g, given(op, 0, 1, 2))
    for axis in range(len(op.shape(op.out)) if len(op.outputs) > 1 and op.shape(op.outputs[1]) else 0):
        g.same((op.outputs[1], axis), (op.out, axis))
        g.mark((op.outputs[1], axis), False)
    return None


# -- the rest


def last_two(op: Op, g: Axes) -> None:
    """Inverse, Trilu: matrices in the last two axes, a batch of them before."""
    x, y = op.inputs[0], op.out
    assert x is not None
    rank = len(op.shape(x))
    for axis in range(rank):
        g.same((x, axis), (y, axis))
        g.mark((y, axis), op.kind == "Trilu" and g.zero((x, axis)))
        if axis >= rank - 2:
            g.freeze((x, axis), f"{op.kind} of this matrix")
        elif op.kind == "Inverse" and g.zero((x, axis)):
            g.freeze((x, axis), "masking makes this matrix zero, which has no inverse")


def nhwc_max_pool(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    last = len(op.shape(x)) - 1
    for axis in range(last + 1):
        if axis in (0, last):
            g.same((x, axis), (y, axis))
            g.mark((y, axis), g.zero((x, axis)))
        else:
            g.freeze((x, axis), WINDOW)
            g.freeze((y, axis), WINDOW)


def blocked(op: Op, g: Axes) -> None:
    """Axes are known to be tied in ways that no rule states."""
    for v in [*op.inputs, *op.outputs]:
        g.freeze_all(v, f"{op.kind} in this form is not taken apart")


BLOCKED = (
    "QMoE", "MatMulBnb4", "MatMulFpQ4", "MatMulNBitsQkv", "MatMulNBitsMlp", "QEmbedLayerNormalization",
    "GatedRMSNorm", "BranchwiseRMSNorm", "WordConvEmbedding", "TorchEmbedding", "CausalConvWithState", "GemmFloat8",
)  # fmt: skip

RULES: Table = (
    rows(fused_conv, "FusedConv", domain=MICROSOFT, repair=follow_group)
    | rows(nhwc_conv, "NhwcConv", "NhwcFusedConv", domain=MICROSOFT, repair=follow_group)
    | rows(fused_gemm, "FusedGemm", domain=MICROSOFT)
    | rows(fused_matmul, "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
    | rows(mixture, "MoE", domain=MICROSOFT, note="units and channels; experts are blocked")
    | rows(skip_layer_norm, "SkipLayerNormalization", domain=MICROSOFT, note="the axis is blocked")
    | rows(skip_rms_norm, "SkipSimplifiedLayerNormalization", domain=MICROSOFT, repair=rescale_skip)
    | rows(simplified, "SimplifiedLayerNormalization", repair=rescale_rms)
    | rows(simplified, "SimplifiedLayerNormalization", domain=MICROSOFT, repair=rescale_rms)
    | rows(embed_layer_norm, "EmbedLayerNormalization", domain=MICROSOFT, note="the axis is blocked")
    | rows(gather_blocks, "GatherBlockQuantized", domain=MICROSOFT, note="whole blocks of channels")
    | rows(group_norm, "GroupNorm", "SkipGroupNorm", domain=MICROSOFT, repair=follow_groups, note="whole groups")
    | rows(biased, "BiasGelu", "FastGelu", "BiasAdd", domain=MICROSOFT)
    | rows(activation, "Gelu", "QuickGelu", "ScaledSiLU", domain=MICROSOFT)
    | rows(gated_add, "GatedAdd", domain=MICROSOFT)
    | rows(bias_split_gelu, "BiasSplitGelu", domain=MICROSOFT)
    | rows(bias_softmax, "BiasSoftmax", domain=MICROSOFT, note="the axis is blocked")
    | rows(bias_dropout, "BiasDropout", domain=MICROSOFT, note="exact, not in training")
    | rows(last_two, "Inverse", "Trilu", domain=MICROSOFT, note="matrices are blocked")
    | rows(nhwc_max_pool, "NhwcMaxPool", domain=MICROSOFT, note="positions are blocked")
    | rows(blocked, *BLOCKED, domain=MICROSOFT, note="blocked: not taken apart")
)
