"""What follows a layer element by element, on vectors in registers: one row per operator.

exp is our own, because a vector of TVM's becomes as many calls of libm as it has lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spa.codegen.kernels.vector import FLOAT, Expr, load, number, product, splat
from spa.codegen.layer import Arg, Layer, Step
from spa.codegen.tvm_api import tirx

# log2(e), and ln(2) in a part of few bits and the rest (Cody and Waite's reduction)
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
# exp(r) on |r| <= ln(2)/2, as r^2 p(r) + r + 1 (Cephes, expf.c), highest power first
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# tanh(x) = x + x^3 p(x^2) on |x| < 0.625 (Cephes, tanhf.c)
TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
# erf(x) = x p(x^2) / q(x^2) on |x| < 4, its saturation (the minimax quotient of Eigen and XLA)
ERF_P = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
ERF_Q = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
    -1.42647390514189e-02,
)


def _polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """Horner's rule, highest power first."""
    value = number(coefficients[0], lanes)
    for c in coefficients[1:]:
        value = value * x + number(c, lanes)
    return value


def clamp(x: Expr, low: float, high: float, lanes: int) -> Expr:
    return tirx.Min(tirx.Max(x, number(low, lanes)), number(high, lanes))


def exp(x: Expr, lanes: int) -> Expr:
    """e^x = 2^n e^r with n = round(x log2 e), |r| <= ln(2)/2; relative error about 1e-7; saturates at the ends."""
    x = clamp(x, -87.3, 88.3, lanes)
    n = tirx.floor(x * number(LOG2E, lanes) + number(0.5, lanes))
    r = x - n * number(LN2_HIGH, lanes) - n * number(LN2_LOW, lanes)
    mantissa = _polynomial(r, EXP, lanes) * (r * r) + r + number(1, lanes)
    suffix = "" if lanes == 1 else f"x{lanes}"
    bits = tirx.Cast(f"int32{suffix}", n) + splat(tirx.IntImm("int32", 127), lanes)
    return mantissa * tirx.reinterpret(f"{FLOAT}{suffix}", bits << splat(tirx.IntImm("int32", 23), lanes))


def sigmoid(x: Expr, lanes: int) -> Expr:
    return number(1, lanes) / (number(1, lanes) + exp(-x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """1 - 2 / (e^2x + 1), and near zero, where that cancels, a polynomial."""
    square = x * x
    near = x + x * square * _polynomial(square, TANH, lanes)
    far = number(1, lanes) - number(2, lanes) / (exp(x + x, lanes) + number(1, lanes))
    return tirx.Select(square < number(0.625**2, lanes), near, far)


def erf(x: Expr, lanes: int) -> Expr:
    x = clamp(x, -4, 4, lanes)
    square = x * x
    return x * _polynomial(square, ERF_P, lanes) / _polynomial(square, ERF_Q, lanes)


def gelu(x: Expr, lanes: int) -> Expr:
    return number(0.5, lanes) * x * (number(1, lanes) + erf(x * number(0.5**0.5, lanes), lanes))


def hard_sigmoid(x: Expr, alpha: Expr, beta: Expr, lanes: int) -> Expr:
    return tirx.Min(tirx.Max(alpha * x + beta, number(0, lanes)), number(1, lanes))


def _hard_swish(x: Expr, lanes: int) -> Expr:
    return x * hard_sigmoid(x, number(1 / 6, lanes), number(0.5, lanes), lanes)


def _leaky(x: Expr, slope: Expr, lanes: int) -> Expr:
    return tirx.Max(x, number(0, lanes)) + slope * tirx.Min(x, number(0, lanes))


def _elu(x: Expr, alpha: Expr, lanes: int) -> Expr:
    return tirx.Max(x, number(0, lanes)) + alpha * (exp(tirx.Min(x, number(0, lanes)), lanes) - number(1, lanes))


def power(x: Expr, exponent: float, lanes: int) -> Expr:
    """x to one of `fusion.POWERS`."""
    if exponent < 0:
        return number(1, lanes) / power(x, -exponent, lanes)
    if exponent == 0.5:
        return tirx.sqrt(x)
    return x if exponent == 1 else x * power(x, exponent - 1, lanes)


# operator -> its value, from the vectors of its operands (attributes are operands too) and the lanes
OPS: dict[str, Callable[..., Expr]] = {
    "Add": lambda a, b, lanes: a + b,
    "Sub": lambda a, b, lanes: a - b,
    "Mul": lambda a, b, lanes: a * b,
    "Div": lambda a, b, lanes: a / b,
    "Max": lambda a, b, lanes: tirx.Max(a, b),
    "Min": lambda a, b, lanes: tirx.Min(a, b),
    "Relu": lambda x, lanes: tirx.Max(x, number(0, lanes)),
    "Clip": lambda x, low, high, lanes: tirx.Min(tirx.Max(x, low), high),
    "LeakyRelu": _leaky,
    "PRelu": _leaky,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _hard_swish,
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "Erf": erf,
    "Gelu": gelu,
    "Neg": lambda x, lanes: number(0, lanes) - x,
    "Abs": lambda x, lanes: tirx.Max(x, number(0, lanes) - x),
    "Exp": lambda x, lanes: exp(x, lanes),
    "Sqrt": lambda x, lanes: tirx.sqrt(x),
    "Reciprocal": lambda x, lanes: number(1, lanes) / x,
    "Elu": _elu,
}


LONG = frozenset({"Sigmoid", "Tanh", "Erf", "Gelu", "Exp", "Elu"})  # of OPS: those that take tens of instructions


@dataclass(frozen=True)
class Spot:
    """Where in an output of rows of `length` a vector begins."""

    row: Expr
    column: Expr
    length: int


def sizes_of(layer: Layer) -> tuple[int, ...]:
    """Elements of each tensor operand, in the order of `Layer.tensors`."""
    return tuple(0 if t is None else product(t.shape) for t in (layer.inputs[i] for i in layer.tensors))


def overwritten(layer: Layer, activations: Sequence[int], once: bool) -> tuple[int, ...]:
    """`Kernel.in_place` of a kernel that evaluates the steps where it stores, if it does so `once` for each element (edges
    that are computed twice would read their own result): the tensor operands as large as the output."""
    used = [a for s in layer.epilogue for a in s.args if a.kind == "tensor"]
    whole = {a.index for a in used} - {a.index for a in used if a.axes}
    inputs = [layer.inputs[i] for i in activations]
    same = [t is not None and (t.shape, t.dtype) == (layer.output.shape, layer.output.dtype) for t in inputs]
    allowed = once and not layer.strides
    return tuple(i for i, at in enumerate(activations) if allowed and same[i] and at in whole)


def splits(steps: Sequence[Step], length: int) -> bool:
    """Whether every tensor that is broadcast is one number, or one stretch of memory, over any row of `length`."""
    return all(a.axes[-1][0] % length == 0 for s in steps for a in s.args if a.axes)


def broadcast(buffer: Any, axes: tuple[tuple[int, int], ...], spot: Spot, lanes: int) -> Expr:
    """The vector of a tensor that is broadcast (`Arg.axes`) at a place of the output."""
    offset: Expr = 0
    inner = 1  # rows from one index of the axis to the next
    for depth, (extent, stride) in enumerate(reversed(axes)):
        rows, step = (extent, stride) if depth else (extent // spot.length, stride * spot.length)
        if stride and rows > 1:
            index = spot.row if inner == 1 else spot.row // inner
            offset += (index if depth == len(axes) - 1 else index % rows) * step
        inner *= rows
    if axes[-1][1]:
        return load(buffer, offset + spot.column, lanes)
    return splat(buffer[offset], lanes)


def evaluate(
    steps: Sequence[Step],
    result: Expr,
    at: Expr,
    channel: Callable[[int], Expr],
    tensors: Sequence[Any],
    lanes: int,
    spot: Spot | None = None,
) -> Expr:
    """The last step's value. `result`: the layer's own. `at`: where in the output; `tensors`: the buffers of the tensor
    operands, by the order in which the steps name them first. `channel(i)`: the vector of row i of the channels. `spot`:
    for tensors that are broadcast."""
    order: list[int] = []

    def operand(arg: Arg) -> Expr:
        if arg.kind == "value":
            return values[arg.index]
        if arg.kind == "channel":
            return channel(arg.index)
        if arg.kind == "scalar":
            return number(arg.number, lanes)
        if arg.index not in order:
            order.append(arg.index)
        buffer = tensors[order.index(arg.index)]
        if not arg.axes:
            return load(buffer, at, lanes)
        assert spot is not None
        return broadcast(buffer, arg.axes, spot, lanes)

    values = [result]
    for step in steps:
        if step.op == "Pow":
            values.append(power(operand(step.args[0]), step.args[1].number, lanes))
        else:
            values.append(OPS[step.op](*[operand(a) for a in step.args], lanes=lanes))
    return values[-1]
