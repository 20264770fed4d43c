"""What calls inside expressions mean: mathematics, bits, conditions, and values of other threads of the warp."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from expressions import expression
from machine import WARP, Array
from scipy import special
from state import Expr, Place, State

MATHS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "erf": special.erf,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.round,
    "nearbyint": np.round,
    "fabs": np.abs,
    "abs": np.abs,
    "pow": np.power,
    "fma": lambda a, b, c: a * b + c,
    "isnan": np.isnan,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "bitwise_not": operator.invert,
    "shift_left": operator.lshift,
    "shift_right": operator.rshift,
    "likely": lambda x: x,
}


def intrinsic(node: Any) -> Expr:
    name = node.op.name.removeprefix("tirx.").removeprefix("prim.")
    if name in MATHS:
        return _maths(node, MATHS[name])
    if name in SPECIAL:
        return SPECIAL[name](node)
    raise NotImplementedError(f"{name}: {node}")


def _maths(node: Any, function: Callable[..., Any]) -> Expr:
    operands = [expression(a) for a in node.args]
    dtype = str(node.ty.dtype).partition("x")[0]

    def run(s: State) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(function(*(o(s) for o in operands))).astype(dtype)[()]

    return run


def _if_then_else(node: Any) -> Expr:
    """Only the branch that is taken is evaluated, per thread."""
    condition, then, otherwise = (expression(a) for a in node.args)

    def run(s: State) -> Any:
        outer, holds = s.mask, condition(s)
        results = []
        for value, chosen in ((then, holds), (otherwise, np.logical_not(holds))):
            s.mask = np.broadcast_to(chosen if outer is None else outer & chosen, (s.threads.count,))
            results.append(value(s) if s.mask.any() else None)
        s.mask = outer
        if results[0] is None or results[1] is None:
            return results[1] if results[0] is None else results[0]
        wide = max(np.ndim(r) for r in results) == 2
        return np.where(holds[:, None] if wide and np.ndim(holds) else holds, *results)

    return run


def _reinterpret(node: Any) -> Expr:
    value, dtype = expression(node.args[0]), str(node.ty.dtype).partition("x")[0]
    return lambda s: np.ascontiguousarray(value(s)).view(dtype)[()]


def _shuffled(lane: Callable[[Array, Array, int], Array], width_at: int, by: int, value_at: int) -> Any:
    """The value that another thread of the warp holds; a lane outside keeps its own."""

    def compile_it(node: Any) -> Expr:
        value, distance = expression(node.args[value_at]), expression(node.args[by])
        width = int(node.args[width_at])

        def run(s: State) -> Any:
            t = s.threads
            mine = t.in_block % WARP
            source = lane(mine, s.spread(distance(s)), width)
            inside = (source // width == mine // width) & (source >= 0)
            other = t.lane + np.where(inside, source - mine, 0)
            exists = (other < t.count) & (t.block_of[np.minimum(other, t.count - 1)] == t.block_of)
            return s.spread(value(s))[np.where(exists, other, t.lane)]

        return run

    return compile_it


def _address(node: Any) -> Expr:
    load = node.args[0]
    buffer, index = load.source, expression(load.indices[0])
    return lambda s: Place(s.memories[buffer], s.spread(index(s)))


SPECIAL: dict[str, Callable[[Any], Expr]] = {
    "if_then_else": _if_then_else,
    "reinterpret": _reinterpret,
    "tvm_warp_activemask": lambda node: lambda s: np.uint32(0xFFFFFFFF),
    "tvm_warp_shuffle": _shuffled(lambda mine, at, width: mine // width * width + at, 3, 2, 1),
    "tvm_warp_shuffle_down": _shuffled(lambda mine, by, width: mine + by, 3, 2, 1),
    "tvm_warp_shuffle_up": _shuffled(lambda mine, by, width: mine - by, 3, 2, 1),
    "tvm_warp_shuffle_xor": _shuffled(lambda mine, by, width: mine ^ by, 3, 2, 1),
    "address_of": _address,
    "cuda.cvta_generic_to_shared": lambda node: expression(node.args[0]),
    "tvm_thread_invariant": lambda node: expression(node.args[0]),
}
