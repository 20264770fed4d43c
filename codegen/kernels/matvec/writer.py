"""The code around a form of weights: tiles of features, groups of inputs with scales of their own, and what follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spa.codegen.kernels.epilogue import Spot, evaluate
from spa.codegen.kernels.matvec.format import Format
from spa.codegen.kernels.matvec.tiling import Tiling
from spa.codegen.kernels.parallel import parallel
from spa.codegen.kernels.tile import bucket
from spa.codegen.kernels.vector import Expr, argument, function, load, loop, number, put, registers, store
from spa.codegen.layer import Step


@dataclass(frozen=True)
class Matvec:
    """All that a kernel's code depends on: W [k, tiling.m] in a `format`, with scales for each of so many `groups` of
    inputs (0: none). `sizes`: elements of the packed arrays; kernels of about equal size share their code."""

    k: int
    tiling: Tiling
    format: Format
    groups: int
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]
    sizes: tuple[int, ...] = field(compare=False)
    buckets: tuple[int, ...] = ()

    @classmethod
    def of(cls, sizes: tuple[int, ...], **facts: Any) -> Matvec:
        return cls(**facts, sizes=sizes, buckets=tuple(bucket(size) for size in sizes))


class _Writer:
    def __init__(self, p: Matvec) -> None:
        self.p, m = p, p.tiling.m
        self.x = argument("x", p.k)
        self.tensors = [argument(f"t{i}", size) for i, size in enumerate(p.tensors)]
        kinds = zip(p.sizes, p.format.dtypes, strict=True)
        self.packed = [argument(f"w{i}", size, dtype) for i, (size, dtype) in enumerate(kinds)]
        self.scales = argument("scales", p.groups * p.tiling.tiles * p.tiling.size) if p.groups else None
        self.bias = argument("bias", m) if p.bias else None
        self.vectors = argument("vectors", p.vectors * m) if p.vectors else None
        self.y = argument("y", m)

    def write(self) -> None:
        p, lanes = self.p, self.p.tiling.lanes
        balance = f"w{p.format.balance}" if p.format.balance >= 0 else None
        with parallel(p.tiling.tiles, sums=balance) as tile:
            totals = self._scaled(tile) if self.scales is not None else self._sums(tile, 0, p.k)
            start = p.tiling.start(tile)
            for v, total in enumerate(totals):
                self._finish(total, start + v * lanes)

    def _sums(self, tile: Expr, begin: Expr, count: int) -> list[Expr]:
        """A vector of sums over inputs begin .. begin + count for each vector of features."""
        p = self.p
        sums = registers(p.format.chains, p.tiling.width, p.tiling.lanes)
        for chain in sums:
            for register in chain:
                put(register, number(0, p.tiling.lanes))
        p.format.multiply(self.packed, self.x, tile, p.k, begin, count, sums)
        totals = [register[0] for register in sums[0]]
        for chain in sums[1:]:
            totals = [total + register[0] for total, register in zip(totals, chain, strict=True)]
        return totals

    def _scaled(self, tile: Expr) -> list[Expr]:
        """As `_sums`, over all inputs: those of each group times its scales."""
        p, lanes, width = self.p, self.p.tiling.lanes, self.p.tiling.width
        (totals,) = registers(1, width, lanes)
        for total in totals:
            put(total, number(0, lanes))
        with loop(p.groups) as group:
            size = p.k // p.groups
            sums = self._sums(tile, group * size, size)
            for v, (total, value) in enumerate(zip(totals, sums, strict=True)):
                scale = load(self.scales, ((tile * p.groups + group) * width + v) * lanes, lanes)
                put(total, value * scale + total[0])
        return [total[0] for total in totals]

    def _finish(self, value: Expr, feature: Expr) -> None:
        p, lanes, m = self.p, self.p.tiling.lanes, self.p.tiling.m

        def vector(i: int) -> Expr:
            return load(self.vectors, i * m + feature, lanes)

        if self.bias is not None:
            value = value + load(self.bias, feature, lanes)
        value = evaluate(p.steps, value, feature, vector, self.tensors, lanes, Spot(0, feature, m))
        store(self.y, value, feature, lanes)


def build_matvec(p: Matvec) -> Any:
    """The PrimFunc: x, tensor operands, then the packed arrays, scales, bias, vectors, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc
