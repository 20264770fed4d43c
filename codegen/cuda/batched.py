"""Products of two activations on tensor cores (attention): Y[b, t, n] = s * sum over k of A[b, t, k] B[b, k, n], for all b.

Both are read through views (`codegen/views.py`): heads that lie side by side, slices, transposes and heads that share
their keys are strides here, and where a Transpose follows, the result is written where it belongs. As in `product`, tiles
pass through shared memory in a ring of stages; which way round a tile of B lies there depends on how B lies in memory.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spa.codegen.cuda import table
from spa.codegen.cuda.cost import Arch, Work, arch_of, microseconds
from spa.codegen.cuda.fragments import PAD, Fragments
from spa.codegen.cuda.layers import FLOATS
from spa.codegen.cuda.sources import Rows
from spa.codegen.cuda.strided import Strided, StridedMover
from spa.codegen.cuda.tile import Tile
from spa.codegen.cuda.words import (
    NARROW,
    OPERANDS,
    WARP,
    axis,
    barrier,
    both,
    commit,
    dynamic_shared,
    named,
    only,
    unrolled,
    wait_for_all_but,
    when,
)
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.epilogue import sizes_of, splits
from spa.codegen.kernels.vector import Expr, argument, covering, function, loop, product
from spa.codegen.layer import Kernel, Layer
from spa.codegen.target import Target
from spa.codegen.tvm_api import tirx
from spa.codegen.views import View, contiguous, joined

MOST_BATCHES = 65535  # blocks along z
LEAST = 8  # of k and n


@dataclass(frozen=True)
class Batched:
    """All that a kernel's code depends on. `batch`: (extent, stride in Y) of the batch's axes; `row`: elements from one row
    of Y to the next; `operand`: the type in which both factors are multiplied."""

    a: Strided
    b: Strided
    batch: tuple[tuple[int, int], ...]
    row: int
    tile: Tile
    operand: str
    scale: float
    ending: Ending

    @property
    def batches(self) -> int:
        return product([n for n, _ in self.batch])

    @property
    def t(self) -> int:
        return self.a.shape[0]

    @property
    def k(self) -> int:
        return self.a.shape[1]

    @property
    def n(self) -> int:
        return self.b.shape[1]


def offer(layer: Layer, target: Target) -> Kernel | None:
    """MatMul of two operands of at least two axes, each an activation or a constant, in a precision that tensor cores have."""
    x, other = (*layer.inputs, None, None)[:2]
    if layer.op != "MatMul" or not {0, 1} <= layer.views.keys() or x is None or other is None:
        return None
    a, b = layer.views[0], layer.views[1]
    operand = x.dtype if x.dtype == other.dtype and x.dtype in NARROW else OPERANDS[target.features[0]]
    if (
        operand not in NARROW
        or {x.dtype, other.dtype, layer.output.dtype} - {*FLOATS}
        or min(len(a.shape), len(b.shape)) < 2
    ):
        return None
    t, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    outer = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    there = layer.strides or contiguous((*outer, t, n))
    if min(k, n) < LEAST or product(outer) > MOST_BATCHES or len(there) != len(outer) + 2 or there[-1] != 1:
        return None
    if not splits(layer.epilogue, n):
        return None
    arch = arch_of(target.cpu)
    axes = joined(zip(outer, a.leading(outer), b.leading(outer), there[:-2], strict=True))

    def matrix(view: View, of: int, dtype: str) -> Strided:
        strides = (view.strides[-2], view.strides[-1])
        return Strided(
            view.size, view.offset, (view.shape[-2], view.shape[-1]), strides, tuple(s[of] for s in axes), dtype
        )

    kernels = [
        Batched(
            a=matrix(a, 1, x.dtype),
            b=matrix(b, 2, other.dtype),
            batch=tuple((s[0], s[3]) for s in axes),
            row=there[-2],
            tile=tile,
            operand=operand,
            scale=a.scale * b.scale,
            ending=_ending(layer),
        )
        for tile in table.BATCHED
    ]
    p = min(kernels, key=lambda p: (predicted(p, arch), p.tile.m * p.tile.n))
    return Kernel(
        family="batched",
        format="dense",
        tile=f"{p.tile.name}-{'rows' if p.b.inner == 0 else 'columns'}-{operand}",
        why=f"{p.batches} products [{t}, {k}] x [{k}, {n}], read in place: {predicted(p, arch):.1f} us predicted on {arch.name}",
        activations=(0, 1, *layer.tensors),
        weights=layer.vectors(),
        build=partial(build_batched, p),
        key=p,
        viewed=True,
    )


def predicted(p: Batched, arch: Arch) -> float:
    t = p.tile
    sizes = {True: 2, False: 4}
    read = p.batches * (p.t * p.k * sizes[p.a.dtype in NARROW] + p.k * p.n * sizes[p.b.dtype in NARROW])
    return microseconds(
        arch,
        Work(
            blocks=p.batches * covering(p.t, t.m) * covering(p.n, t.n),
            steps=covering(p.k, t.k),
            flops=2 * t.m * t.n * t.k,
            rate=arch.tensor,
            threads=t.threads,
            shared=t.stages * (t.m + t.n) * t.k * 2,
            bytes=read + p.batches * p.t * p.n * sizes[p.ending.dtype in NARROW],
        ),
    )


def _ending(layer: Layer) -> Ending:
    types = tuple(t.dtype for t in (layer.inputs[i] for i in layer.tensors) if t is not None)
    return Ending(False, layer.epilogue, len(layer.channels), sizes_of(layer), layer.output.dtype, types)


def build_batched(p: Batched) -> Any:
    """The PrimFunc: a, b, tensor operands, vectors, then y; all flat."""
    with function() as f:
        _Batched(p).write()
    return f.primfunc


class _Batched:
    """The parts of one kernel: arguments, then what its threads know, then its steps."""

    def __init__(self, p: Batched) -> None:
        self.p, t = p, p.tile
        self.a, self.b = argument("a", p.a.size, p.a.dtype), argument("b", p.b.size, p.b.dtype)
        tensors = p.ending.operands()
        self.out = Writer.declare(p.n, 1, Rows(p.batches * p.t, p.k, p.a.dtype), p.ending, tensors)
        self.k_last = p.b.inner == 0  # neighbours of B in memory differ in k: so they do in shared memory
        self.a_row, self.b_row = t.k + PAD, (t.k if self.k_last else t.n) + PAD
        self.a_size = t.m * self.a_row
        self.stage_size = self.a_size + (t.n if self.k_last else t.k) * self.b_row

    def write(self) -> None:
        p, t = self.p, self.p.tile
        with (
            axis("blockIdx.z", p.batches) as batch,
            axis("blockIdx.y", covering(p.t, t.m)) as m_tile,
            axis("blockIdx.x", covering(p.n, t.n)) as n_tile,
            axis("threadIdx.x", t.threads) as thread,
        ):
            lane, warp = named(thread % WARP), named(thread // WARP)
            warp_m, warp_n = named(warp // t.warps_n * t.warp_m), named(warp % t.warps_n * t.warp_n)
            self.shared = dynamic_shared(t.stages * self.stage_size, p.operand)
            self.fragments = Fragments(t, p.operand, lane, warp_m, warp_n)
            self.row, self.column = named(m_tile * t.m), named(n_tile * t.n)
            a, b, y = self._begins(batch)
            move = partial(StridedMover, threads=t.threads, thread=thread, shared=self.shared)
            self.a_mover = move(
                source=p.a, x=self.a, begin=a, tile=(t.m, t.k), place=lambda m, k: m * self.a_row + k, contiguous=1
            )
            self.b_mover = move(
                source=p.b,
                x=self.b,
                begin=b,
                tile=(t.k, t.n),
                place=lambda k, n: n * self.b_row + k if self.k_last else k * self.b_row + n,
                contiguous=0 if self.k_last else 1,
            )
            self._multiply()
            self._leave(batch, y)

    def _begins(self, batch: Expr) -> tuple[Expr, Expr, Expr]:
        """Where the matrices of a batch begin in A, B and Y."""
        p = self.p
        a, b, y = p.a.offset, p.b.offset, 0
        inner = 1
        axes = list(zip(p.batch, p.a.batch, p.b.batch, strict=True))
        for depth, ((extent, in_y), in_a, in_b) in enumerate(reversed(axes)):
            part = batch if inner == 1 else batch // inner
            part = part if depth == len(axes) - 1 else named(part % extent)
            a, b, y = a + part * in_a, b + part * in_b, y + part * in_y
            inner *= extent
        return named(a), named(b), named(y)

    def _multiply(self) -> None:
        t = self.p.tile
        steps = covering(self.p.k, t.k)
        self.fragments.clear()
        for ahead in range(t.stages - 1):
            if ahead < steps:
                self._fetch(ahead, ahead * self.stage_size)
                self._place(ahead * self.stage_size)
            commit()
        with loop(steps) as i:
            wait_for_all_but(t.stages - 2)
            barrier()
            following = i + (t.stages - 1)
            stage = named(following % t.stages * self.stage_size)
            with self._if_there(following, steps):
                self._fetch(following, stage)
            commit()
            self._step(named(i % t.stages * self.stage_size))
            with self._if_there(following, steps):
                self._place(stage)
        wait_for_all_but(0)

    def _if_there(self, i: Expr, steps: int) -> Any:
        if isinstance(i, int):
            return nullcontext() if i < steps else when(tirx.const(False, "bool"))
        return when(i < steps)

    def _fetch(self, i: Expr, to: Expr) -> None:
        k = i * self.p.tile.k
        self.a_mover.fetch(self.row, k, to)
        self.b_mover.fetch(k, self.column, to + self.a_size)

    def _place(self, to: Expr) -> None:
        self.a_mover.place(to)
        self.b_mover.place(to + self.a_size)

    def _step(self, stage: Expr) -> None:
        t, f = self.p.tile, self.fragments
        with unrolled(t.k // f.depth) as s:
            f.load_a(self.shared, stage, self.a_row, s * f.depth)
            f.load_b(self.shared, named(stage + self.a_size), self.b_row, s * f.depth, self.k_last)
            f.multiply()

    def _leave(self, batch: Expr, y: Expr) -> None:
        p, t = self.p, self.p.tile
        with self.fragments.each() as (value, row, column):
            m, n = self.row + row, self.column + column
            conditions = [m < p.t] if p.t % t.m else []
            conditions += [n < p.n] if p.n % t.n else []
            with only(both(*conditions)):
                value = value if p.scale == 1 else value * tirx.FloatImm("float32", p.scale)
                self.out.finish(value, 0, n, batch * p.t + m, y + m * p.row + n)
