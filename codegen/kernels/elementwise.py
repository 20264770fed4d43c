"""Element-wise chains that follow no layer: the first step reads its operands from memory, the rest goes on in registers.

The output is taken as rows over which every operand that is broadcast is one number or one stretch of memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from spa.codegen.kernels.epilogue import OPS, Spot, evaluate, overwritten, sizes_of
from spa.codegen.kernels.isa import isa_of
from spa.codegen.kernels.parallel import MANY, WORTH, parallel
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    fits,
    function,
    load,
    number,
    product,
    shifted,
    store,
)
from spa.codegen.layer import Kernel, Layer, Step
from spa.codegen.target import Target

SHORT = 4  # elements: rows below this are left to TVM


@dataclass(frozen=True)
class Elementwise:
    """All that a kernel's code depends on: an output of `rows` rows of `length`, whose last axis has `channels`."""

    rows: int
    length: int
    channels: int
    lanes: int
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Any operator of `epilogue.OPS` with an operand that is no constant; its own step is the first of the epilogue."""
    if layer.op not in {*OPS, "Pow"} or not layer.epilogue or layer.epilogue[0].op != layer.op:
        return None
    size, isa = product(layer.output.shape), isa_of(target)
    last = layer.output.shape[-1] if layer.output.shape else 1
    inner = [a.axes[-1][0] for s in layer.epilogue for a in s.args if a.axes]
    inner += [last] if layer.channels else []
    length = math.gcd(size, *inner)
    if length < min(SHORT, size):
        return None
    p = Elementwise(
        rows=size // length,
        length=length,
        channels=last,
        lanes=fits(isa.lanes, length),
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=sizes_of(layer),
    )
    return Kernel(
        family="elementwise",
        format="dense",
        tile=f"1x{p.lanes}-{isa.name}",
        why=" ".join(step.op for step in layer.epilogue),
        activations=layer.tensors,
        weights=layer.vectors(),
        build=partial(build_elementwise, p),
        key=p,
        in_place=overwritten(layer, layer.tensors, p.length % p.lanes == 0),
    )


def build_elementwise(p: Elementwise) -> Any:
    """The PrimFunc: tensor operands, vectors, then y; all flat."""
    with function() as f:
        tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        vectors = argument("vectors", p.vectors * p.channels) if p.vectors else None
        y = argument("y", p.rows * p.length)
        worth = p.rows * p.length >= WORTH
        by_rows, columns = worth and p.rows >= MANY, covering(p.length, p.lanes)
        with parallel(p.rows, shared=by_rows) as row, parallel(columns, shared=worth and not by_rows) as i:
            column = shifted(i, p.lanes, p.lanes, p.length)
            at = row * p.length + column

            def vector(i: int, column: Expr = column) -> Expr:
                return load(vectors, i * p.channels + column, p.lanes)

            spot = Spot(row, column, p.length)
            store(y, evaluate(p.steps, number(0, p.lanes), at, vector, tensors, p.lanes, spot), at, p.lanes)
    return f.primfunc
