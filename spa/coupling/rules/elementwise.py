"""Element-wise ops: index i of an output axis is index i of every operand that is not broadcast there.

What masking leaves: f(0) = 0 keeps a masked index zero; a sum needs all operands to be zero, a product only one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spa.coupling.axes import Axes, Op
from spa.coupling.rules import Table, rows

# f(0) = 0
ODD = (
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "LeakyRelu",
    "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "IsNaN", "IsInf", "Identity", "Cast",
)  # fmt: skip
OTHER = (
    "Acos",
    "Acosh",
    "BitwiseNot",
    "Cos",
    "Cosh",
    "Exp",
    "HardSigmoid",
    "Log",
    "Not",
    "Reciprocal",
    "Sigmoid",
    "Softplus",
)
EXPLODES = ("Log", "Reciprocal", "Acosh")  # at zero
ALL_ZERO = ("Add", "Sub", "Max", "Min", "Sum", "Mean", "Or", "Xor", "BitwiseOr", "BitwiseXor", "Less", "Greater")
ANY_ZERO = ("Mul", "And", "BitwiseAnd", "SwiGLU")
FIRST_ZERO = ("PRelu", "BitShift", "Div", "Mod")
DIVIDES = ("Div", "Mod")


def is_zero(op: Op, value: ir.Value) -> bool:
    known = op.shapes.static(value)
    return known is not None and known.dtype.kind in "fiub" and not np.any(known)


def unary(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    for axis in range(len(op.shape(y))):
        g.same((x, axis), (y, axis))
        zero = g.zero((x, axis))
        if op.kind in EXPLODES and zero:
            g.freeze((x, axis), "masking makes this zero, where the function is not finite")
        g.mark((y, axis), op.kind in ODD and zero and float(op.attr("lambd", 0.5)) >= 0)  # Shrink


def broadcast(op: Op, g: Axes) -> None:
    operands = [v for v in op.inputs if v is not None]
    y = op.out
    rank = len(op.shape(y))
    for axis, n in enumerate(op.shape(y)):
        if n <= 1:
            continue
        carried: list[bool] = []  # per operand: zero at a masked index of this axis
        for v in operands:
            own = axis - rank + len(op.shape(v))
            if own >= 0 and op.shape(v)[own] == n:
                g.same((v, own), (y, axis))
                carried.append(g.zero((v, own)))
            else:
                carried.append(is_zero(op, v))
        g.mark((y, axis), result_zero(op, g, carried, axis - rank))


def result_zero(op: Op, g: Axes, zero: list[bool], back: int) -> bool:
    """Is f of the operands zero, given which of them are zero (and finite otherwise)?"""
    if op.kind in DIVIDES and zero[1]:
        freeze_operand(op, g, 1, back, "masking makes this divisor zero")
    if op.kind == "Pow":
        exponent = op.known(1)
        if zero[0] and (exponent is None or bool(np.any(exponent < 0))):
            freeze_operand(op, g, 0, back, "masking makes this base zero, and the exponent may be negative")
        return zero[0] and exponent is not None and bool(np.all(exponent > 0))
    if op.kind == "Where":
        return all(zero[1:])
    if op.kind in FIRST_ZERO:
        return zero[0]
    if op.kind in ANY_ZERO:
        return any(zero)
    return op.kind in ALL_ZERO and all(zero)


def freeze_operand(op: Op, g: Axes, i: int, back: int, text: str) -> None:
    value = op.inputs[i]
    own = back + len(op.shape(value))
    if value is not None and own >= 0 and op.shape(value)[own] > 1:
        g.freeze((value, own), text)


def clip(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    low, high = (op.attr(k) if op.input(i) is None else op.known(i) for i, k in ((1, "min"), (2, "max")))
    # a bound that is given but not known might exclude zero
    unsure = any(op.input(i) is not None and bound is None for i, bound in ((1, low), (2, high)))
    keeps = not unsure and (low is None or bool(np.all(low <= 0))) and (high is None or bool(np.all(high >= 0)))
    for axis in range(len(op.shape(y))):
        g.same((x, axis), (y, axis))
        g.mark((y, axis), keeps and g.zero((x, axis)))


def first_operand(op: Op, g: Axes) -> None:
    """CastLike, Dropout: the first operand through, and the mask of Dropout beside it."""
    x = op.inputs[0]
    for y in op.outputs:
        for axis in range(len(op.shape(y))):
            g.same((x, axis), (y, axis))
            g.mark((y, axis), g.zero((x, axis)) and y is op.out)
    if op.kind == "Dropout" and op.known(2) is not None and op.known(2):
        g.freeze_all(x, "Dropout in training mode is random")


RULES: Table = (
    rows(unary, *ODD, *OTHER)
    | rows(broadcast, *ALL_ZERO, *ANY_ZERO, *FIRST_ZERO, "Equal", "LessOrEqual", "GreaterOrEqual", "Pow", "Where")
    | rows(clip, "Clip")
    | rows(first_operand, "CastLike", "Dropout")
)
