"""Expressions of TIR as functions of a `State`: numpy arrays over the threads."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401  # makes numpy know bfloat16
import numpy as np
from state import Expr, State

from spa.codegen.tvm_api import tirx
from spa.codegen.tvm_api import tvm as tvm_module


def numpy_type(dtype: str) -> tuple[np.dtype[Any], int]:
    """float32x4 -> (float32, 4); bfloat16 is a type of ml_dtypes"""
    base, _, lanes = dtype.partition("x")
    return np.dtype("bool" if base == "bool" else base), int(lanes or 1)


def _type(node: Any) -> tuple[np.dtype[Any], int]:
    return numpy_type(str(node.ty.dtype))


def expression(node: Any) -> Expr:
    for kind, compile_it in EXPRESSIONS.items():
        if isinstance(node, kind):
            return compile_it(node)
    raise NotImplementedError(f"{type(node).__name__}: {node}")


def _constant(node: Any) -> Expr:
    value = _type(node)[0].type(node.value)
    return lambda s: value


def _variable(node: Any) -> Expr:
    return lambda s: s.variables[node]


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Any], Expr]:
    def compile_it(node: Any) -> Expr:
        a, b = expression(node.a), expression(node.b)
        lanes = _type(node.a)[1]

        def run(s: State) -> Any:
            x, y = a(s), b(s)
            if lanes > 1:
                x, y = _columns(x), _columns(y)
            with np.errstate(all="ignore"):
                return function(x, y)

        return run

    return compile_it


def _columns(value: Any) -> Any:
    """A scalar beside vectors."""
    return value[:, None] if np.ndim(value) == 1 else value


def _truncated(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind == "f":
        return np.asarray(a / b, np.asarray(a).dtype)[()]
    b = np.where(b == 0, 1, b)
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.asarray(a).dtype)[()]


def _remainder(a: Any, b: Any) -> Any:
    return (a - _truncated(a, b) * b).astype(np.asarray(a).dtype)


def _floored(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(a, np.where(b == 0, 1, b).astype(np.asarray(b).dtype)[()])


def _cast(node: Any) -> Expr:
    value, (dtype, _) = expression(node.value), _type(node)

    def run(s: State) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(value(s)).astype(dtype)[()]

    return run


def _select(node: Any) -> Expr:
    condition, then, otherwise = map(expression, (node.condition, node.true_value, node.false_value))
    lanes = _type(node)[1]

    def run(s: State) -> Any:
        parts = condition(s), then(s), otherwise(s)
        return np.where(*(map(_columns, parts) if lanes > 1 else parts))

    return run


def _short(stop: bool) -> Callable[[Any], Expr]:
    """`a && b`, `a || b`: where a decides, b is not evaluated."""

    def compile_it(node: Any) -> Expr:
        a, b = expression(node.a), expression(node.b)

        def run(s: State) -> Any:
            first, outer = np.asarray(a(s)), s.mask
            rest = (first != stop) if outer is None else outer & (first != stop)
            s.mask = np.broadcast_to(rest, (s.threads.count,))
            if not s.mask.any():
                s.mask = outer
                return first
            second = b(s)
            s.mask = outer
            return first | second if stop else first & second

        return run

    return compile_it


def _ramp(node: Any) -> Expr:
    base, stride, lanes = expression(node.base), expression(node.stride), int(node.lanes)
    return lambda s: np.atleast_1d(base(s))[:, None] + np.arange(lanes) * np.atleast_1d(stride(s))[:, None]


def _broadcast(node: Any) -> Expr:
    value, lanes = expression(node.value), int(node.lanes)

    def run(s: State) -> Any:
        v = np.atleast_1d(value(s))
        return np.broadcast_to(v[:, None], (v.shape[0], lanes))

    return run


def _shuffle(node: Any) -> Expr:
    parts, order = [expression(v) for v in node.vectors], [int(i) for i in node.indices]

    def run(s: State) -> Any:
        count = s.threads.count
        columns = [p(s) for p in parts]
        joined = np.concatenate(
            [
                np.broadcast_to(
                    c if np.ndim(c) == 2 else np.atleast_1d(c)[:, None],
                    (count, np.shape(c)[1] if np.ndim(c) == 2 else 1),
                )
                for c in columns
            ],
            axis=1,
        )
        return joined[:, order[0]] if len(order) == 1 else joined[:, order]

    return run


def _load(node: Any) -> Expr:
    buffer, (index,) = node.source, [expression(i) for i in node.indices]

    def run(s: State) -> Any:
        memory, at = s.memories[buffer], index(s)
        if memory.scope == "local" and np.ndim(at) == 0 and memory.guarded is None:
            return memory.cells[:, int(at)].copy()
        lanes = s.active()
        if np.ndim(at) == 2:
            at = np.broadcast_to(at, (s.threads.count, at.shape[1]))
            result = np.zeros(at.shape, memory.cells.dtype)
        else:
            at = s.spread(at)
            result = np.zeros((s.threads.count, *memory.cells.shape[2:]), memory.cells.dtype)
        result[lanes] = memory.read(lanes, at[lanes])
        return result

    return run


def _not(node: Any) -> Expr:
    value = expression(node.a)
    return lambda s: np.logical_not(value(s))


def _let(node: Any) -> Expr:
    value, body = expression(node.value), expression(node.body)

    def run(s: State) -> Any:
        s.variables[node.var] = value(s)
        return body(s)

    return run


def _call(node: Any) -> Expr:
    from intrinsics import intrinsic

    return intrinsic(node)


EXPRESSIONS: dict[Any, Callable[[Any], Expr]] = {
    tvm_module.ir.Call: _call,
    tirx.IntImm: _constant,
    tirx.FloatImm: _constant,
    tirx.Add: _binary(operator.add),
    tirx.Sub: _binary(operator.sub),
    tirx.Mul: _binary(operator.mul),
    tirx.Div: _binary(_truncated),
    tirx.Mod: _binary(_remainder),
    tirx.FloorDiv: _binary(_floored(operator.floordiv)),
    tirx.FloorMod: _binary(_floored(operator.mod)),
    tirx.Min: _binary(np.fmin),
    tirx.Max: _binary(np.fmax),
    tirx.EQ: _binary(operator.eq),
    tirx.NE: _binary(operator.ne),
    tirx.LT: _binary(operator.lt),
    tirx.LE: _binary(operator.le),
    tirx.GT: _binary(operator.gt),
    tirx.GE: _binary(operator.ge),
    tirx.LShift: _binary(operator.lshift),
    tirx.RShift: _binary(operator.rshift),
    tirx.BitwiseAnd: _binary(operator.and_),
    tirx.BitwiseOr: _binary(operator.or_),
    tirx.BitwiseXor: _binary(operator.xor),
    tirx.And: _short(False),
    tirx.Or: _short(True),
    tirx.Not: _not,
    tirx.Cast: _cast,
    tirx.Select: _select,
    tirx.Ramp: _ramp,
    tirx.Broadcast: _broadcast,
    tirx.Shuffle: _shuffle,
    tvm_module.ir.TensorLoad: _load,
    tirx.Let: _let,
    tirx.Var: _variable,
}
