"""Products on tensor cores: Y[m, n] = sum over k of W[m, k] X[k, n], W constant, operands fp16 or bf16, sums fp32.

A block of threads computes a tile of Y, a warp a part of it in registers, as m16n8k16 products (dense and block-sparse W)
or sparse m16n8k32 products (2:4). Tiles of W and X pass through shared memory in a ring of stages: while one is
multiplied, the next are on their way. Rows in shared memory are 16 bytes longer than their content, so that
the eight rows that ldmatrix reads lie in different banks.

    dense   W packed [group, m tile, k tile, row, k]
    2:4     the same of what is stored, k / 2, and the metadata words [group, m tile, k tile, row / 16, k / 16, 8]
    bsr     the blocks [block, row, k] of an m tile one behind the other; `ptr` and `columns` say which they are

After the loop each thread holds four values of every m16n8 product: they get bias and epilogue and go straight to Y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from spa.codegen.cuda.fragments import PAD, Fragments
from spa.codegen.cuda.sources import Place, Source, Tiling, mover
from spa.codegen.cuda.tile import Tile
from spa.codegen.cuda.words import (
    HALF,
    WARP,
    WORD,
    axis,
    barrier,
    both,
    commit,
    copy_async,
    dynamic_shared,
    named,
    only,
    static_shared,
    unrolled,
    wait_for_all_but,
    when,
)
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import Expr, argument, covering, function, loop
from spa.codegen.tvm_api import tirx

Form = Literal["dense", "2:4", "bsr"]


@dataclass(frozen=True)
class Product:
    """All that a kernel's code depends on. `m`: of one group. `blocks`: stored blocks of a block-sparse W. `operand`: the type
    in which both factors are multiplied."""

    m: int
    groups: int
    source: Source
    tile: Tile
    form: Form
    ending: Ending
    blocks: int = 0
    operand: str = HALF

    @property
    def m_tiles(self) -> int:
        return covering(self.m, self.tile.m)

    @property
    def k_tiles(self) -> int:
        return covering(self.source.k, self.tile.k)

    @property
    def stored_k(self) -> int:
        """Stored values per row of a tile of W."""
        return self.tile.k // 2 if self.form == "2:4" else self.tile.k

    @property
    def w_tiles(self) -> int:
        return self.blocks if self.form == "bsr" else self.groups * self.m_tiles * self.k_tiles


def build_product(p: Product) -> Any:
    """The PrimFunc: x, tensor operands, then w, (metadata | ptr, columns), bias, vectors, then y; all flat."""
    with function() as f:
        _Product(p).write()
    return f.primfunc


class _Product:
    """The parts of one kernel: arguments, then what its threads know, then its steps."""

    def __init__(self, p: Product) -> None:
        t = p.tile
        self.p = p
        self.x = argument("x", p.source.size, p.source.dtype)
        tensors = p.ending.operands()
        self.w = argument("w", p.w_tiles * t.m * p.stored_k, p.operand)
        self.words = t.m // 16 * (t.k // 16) * 8  # metadata of a tile
        self.meta = argument("meta", p.w_tiles * self.words, WORD) if p.form == "2:4" else None
        self.ptr = argument("ptr", p.m_tiles + 1, "int32") if p.form == "bsr" else None
        self.columns = argument("columns", p.blocks, "int32") if p.form == "bsr" else None
        self.out = Writer.declare(p.m, p.groups, p.source, p.ending, tensors)
        self.a_row, self.a_size = p.stored_k + PAD, t.m * (p.stored_k + PAD)
        k_last = p.source.k_last
        self.b_row = (t.k if k_last else t.n) + PAD
        self.stage_size = self.a_size + (t.n if k_last else t.k) * self.b_row

    def write(self) -> None:
        p, t = self.p, self.p.tile
        n_tiles = covering(p.source.n, t.n)
        with (
            axis("blockIdx.z", p.groups) as group,
            axis("blockIdx.y", p.m_tiles) as m_tile,
            axis("blockIdx.x", n_tiles) as n_tile,
            axis("threadIdx.x", t.threads) as thread,
        ):
            self.group, self.m_tile, self.n_tile, self.thread = group, m_tile, n_tile, thread
            lane, warp = named(thread % WARP), named(thread // WARP)
            warp_m, warp_n = named(warp // t.warps_n * t.warp_m), named(warp % t.warps_n * t.warp_n)
            self.shared = dynamic_shared(t.stages * self.stage_size, p.operand)
            self.shared_meta = static_shared(t.stages * self.words, WORD) if self.meta is not None else None
            self.fragments = Fragments(t, p.operand, lane, warp_m, warp_n, self.meta is not None)
            place: Place = (lambda k, n: n * self.b_row + k) if p.source.k_last else (lambda k, n: k * self.b_row + n)
            tiling = Tiling(t.k, t.n, t.threads, thread, named(n_tile * t.n), group)
            self.mover = mover(p.source, self.x, tiling, self.shared, place, p.source.k_last)
            self._choose_tiles()
            self._multiply()
            self._leave()

    def _choose_tiles(self) -> None:
        """Which tiles of W this block of threads walks over: from `first`, `count` of them."""
        p = self.p
        self.first: Expr
        self.count: Expr
        if self.ptr is not None:
            self.first = named(self.ptr[self.m_tile])
            self.count = named(self.ptr[self.m_tile + 1] - self.first)
        else:
            self.first, self.count = named((self.group * p.m_tiles + self.m_tile) * p.k_tiles), p.k_tiles

    def _multiply(self) -> None:
        t = self.p.tile
        self.fragments.clear()
        for ahead in range(t.stages - 1):
            with self._if_there(ahead):
                self._fetch(ahead, ahead * self.stage_size, ahead)
                self.mover.place(ahead * self.stage_size + self.a_size)
            commit()
        with loop(self.count) as i:
            wait_for_all_but(t.stages - 2)
            barrier()  # what the others fetched is there, and nobody reads the stage that is filled next
            following = i + (t.stages - 1)
            stage = named(following % t.stages)
            with self._if_there(following):
                self._fetch(following, stage * self.stage_size, stage)
            commit()
            self._step(named(i % t.stages))
            with self._if_there(following):
                self.mover.place(stage * self.stage_size + self.a_size)
        wait_for_all_but(0)

    def _if_there(self, i: Expr) -> Any:
        if isinstance(i, int) and isinstance(self.count, int):
            return only(i < self.count or tirx.const(False, "bool"))
        return when(i < self.count)

    def _fetch(self, i: Expr, to: Expr, stage: Expr) -> None:
        """Tile i of W and what it meets of X, into a stage."""
        p, t = self.p, self.p.tile
        tile = self.first + i
        per_row = p.stored_k // 8
        chunks = t.m * per_row
        with unrolled(covering(chunks, t.threads)) as j:
            chunk = j * t.threads + self.thread
            with only(chunks % t.threads == 0 or chunk < chunks):
                at = to + chunk // per_row * self.a_row + chunk % per_row * 8
                copy_async(self.shared, at, self.w, tile * (t.m * p.stored_k) + chunk * 8)
        if self.meta is not None:
            quads = self.words // 4
            with unrolled(covering(quads, t.threads)) as j:
                quad = j * t.threads + self.thread
                with only(quads % t.threads == 0 or quad < quads):
                    copy_async(self.shared_meta, stage * self.words + quad * 4, self.meta, tile * self.words + quad * 4)
        k = self.columns[tile] * t.k if self.columns is not None else i * t.k
        self.mover.fetch(k, to + self.a_size)

    def _step(self, stage: Expr) -> None:
        """Multiply one stage."""
        t, f = self.p.tile, self.fragments
        a, b = named(stage * self.stage_size), named(stage * self.stage_size + self.a_size)
        with unrolled(t.k // f.depth) as s:
            f.load_a(self.shared, a, self.a_row, s * 16)
            if self.shared_meta is not None:
                f.load_metadata(self.shared_meta, stage * self.words, s)
            f.load_b(self.shared, b, self.b_row, s * f.depth, self.p.source.k_last)
            f.multiply()

    def _leave(self) -> None:
        p, t = self.p, self.p.tile
        with self.fragments.each() as (value, row, column):
            m, n = self.m_tile * t.m + row, self.n_tile * t.n + column
            conditions = [m < p.m] if p.m % t.m else []
            conditions += [n < p.source.n] if p.source.n % t.n else []
            with only(both(*conditions)):
                self.out.finish(value, self.group, m, n)
