"""Products in fp32 throughout, on the ordinary multiply-add units: for `--precision fp32`.

The same tiles and the same way of the activations as in `product`, but two stages, W packed [group, m tile, k tile, k, row],
and a thread holds thread_m x thread_n sums: in rows and columns that lie four by four, so that the threads of a warp
read neighbouring vectors of shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.codegen.cuda.sources import Place, Source, Tiling, mover
from spa.codegen.cuda.words import (
    axis,
    barrier,
    both,
    commit,
    copy_async,
    dynamic_shared,
    local,
    named,
    only,
    unrolled,
    wait_for_all_but,
    when,
)
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import FLOAT, Expr, argument, build, covering, function, loop
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

PAD = 4  # floats: rows of X in shared memory then begin in different banks
STAGES = 2


@dataclass(frozen=True)
class SimtTile:
    """A block of threads computes m x n, k at a time; a thread thread_m x thread_n of it."""

    m: int
    n: int
    k: int
    thread_m: int
    thread_n: int

    @property
    def threads(self) -> int:
        return self.m // self.thread_m * (self.n // self.thread_n)

    @property
    def name(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True)
class Simt:
    """All that a kernel's code depends on. `m`: of one group."""

    m: int
    groups: int
    source: Source
    tile: SimtTile
    ending: Ending

    @property
    def m_tiles(self) -> int:
        return covering(self.m, self.tile.m)

    @property
    def k_tiles(self) -> int:
        return covering(self.source.k, self.tile.k)


def pack_simt(w: Array, tile: SimtTile) -> tuple[Array, ...]:
    """W [groups, m, k] as [group, m tile, k tile, k, row]."""
    padded = np.pad(w, ((0, 0), (0, -w.shape[1] % tile.m), (0, -w.shape[2] % tile.k))).astype(np.float32)
    g, m, k = padded.shape
    parts = padded.reshape(g, m // tile.m, tile.m, k // tile.k, tile.k).transpose(0, 1, 3, 4, 2)
    return (np.ascontiguousarray(parts).reshape(-1),)


def build_simt(p: Simt) -> Any:
    """The PrimFunc: x, tensor operands, then w, bias, vectors, then y; all flat."""
    with function() as f:
        _Simt(p).write()
    return f.primfunc


class _Simt:
    def __init__(self, p: Simt) -> None:
        self.p, t = p, p.tile
        self.x = argument("x", p.source.size, p.source.dtype)
        tensors = p.ending.operands()
        self.w = argument("w", p.groups * p.m_tiles * p.k_tiles * t.m * t.k)
        self.out = Writer.declare(p.m, p.groups, p.source, p.ending, tensors)
        self.b_row = t.n + PAD
        self.a_size = t.k * t.m
        self.stage_size = self.a_size + t.k * self.b_row

    def write(self) -> None:
        p, t = self.p, self.p.tile
        with (
            axis("blockIdx.z", p.groups) as group,
            axis("blockIdx.y", p.m_tiles) as m_tile,
            axis("blockIdx.x", covering(p.source.n, t.n)) as n_tile,
            axis("threadIdx.x", t.threads) as thread,
        ):
            self.thread = thread
            self.first = named((group * p.m_tiles + m_tile) * p.k_tiles)
            self.row, self.column = named(thread // (t.n // t.thread_n) * 4), named(thread % (t.n // t.thread_n) * 4)
            self.shared = dynamic_shared(STAGES * self.stage_size, FLOAT)
            self.a, self.b = local(t.thread_m, FLOAT), local(t.thread_n, FLOAT)
            self.sums = local(t.thread_m * t.thread_n, FLOAT)
            place: Place = lambda k, n: k * self.b_row + n  # noqa: E731
            tiling = Tiling(t.k, t.n, t.threads, thread, named(n_tile * t.n), group)
            self.mover = mover(p.source, self.x, tiling, self.shared, place, k_last=False)
            self._multiply()
            self._leave(group, m_tile, n_tile)

    def _multiply(self) -> None:
        t = self.p.tile
        with unrolled(t.thread_m * t.thread_n) as i:
            build.buffer_store(self.sums, tirx.const(0.0, FLOAT), [i])
        self._fetch(0, 0)
        self.mover.place(self.a_size)
        commit()
        with loop(self.p.k_tiles) as i:
            wait_for_all_but(0)
            barrier()
            following, stage = i + 1, named((i + 1) % STAGES * self.stage_size)
            with when(following < self.p.k_tiles):
                self._fetch(following, stage)
            commit()
            self._step(named(i % STAGES * self.stage_size))
            with when(following < self.p.k_tiles):
                self.mover.place(stage + self.a_size)
        wait_for_all_but(0)

    def _fetch(self, i: Expr, to: Expr) -> None:
        t = self.p.tile
        chunks = t.m * t.k // 4
        with unrolled(covering(chunks, t.threads)) as j:
            chunk = j * t.threads + self.thread
            with only(chunks % t.threads == 0 or chunk < chunks):
                copy_async(self.shared, to + chunk * 4, self.w, (self.first + i) * (t.m * t.k) + chunk * 4)
        self.mover.fetch(i * t.k, to + self.a_size)

    def _step(self, stage: Expr) -> None:
        t = self.p.tile
        with unrolled(t.k) as k:
            for registers, count, size, first, row in (
                (self.a, t.thread_m, t.m, self.row, stage + k * t.m),
                (self.b, t.thread_n, t.n, self.column, stage + self.a_size + k * self.b_row),
            ):
                with unrolled(count // 4) as four:
                    value = self.shared[tirx.Ramp(row + first + four * (size // (count // 4)), 1, 4)]
                    build.buffer_store(registers, value, [tirx.Ramp(four * 4, 1, 4)])
            with unrolled(t.thread_m) as i, unrolled(t.thread_n) as j:
                at = i * t.thread_n + j
                build.buffer_store(self.sums, self.a[i] * self.b[j] + self.sums[at], [at])

    def _leave(self, group: Expr, m_tile: Expr, n_tile: Expr) -> None:
        p, t = self.p, self.p.tile
        with unrolled(t.thread_m) as i, unrolled(t.thread_n) as j:
            m = m_tile * t.m + self.row + i // 4 * (t.m // (t.thread_m // 4)) + i % 4
            n = n_tile * t.n + self.column + j // 4 * (t.n // (t.thread_n // 4)) + j % 4
            conditions = [m < p.m] if p.m % t.m else []
            conditions += [n < p.source.n] if p.source.n % t.n else []
            with only(both(*conditions)):
                self.out.finish(self.sums[i * t.thread_n + j], group, m, n)
