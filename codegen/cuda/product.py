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

from spa.codegen.cuda.sources import Place, Source, Tiling, mover
from spa.codegen.cuda.tile import Tile
from spa.codegen.cuda.words import (
    BFLOAT,
    HALF,
    WARP,
    WORD,
    address,
    axis,
    barrier,
    both,
    commit,
    copy_async,
    dynamic_shared,
    local,
    named,
    only,
    ptx,
    static_shared,
    unrolled,
    wait_for_all_but,
    when,
)
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import Expr, argument, build, covering, function, loop
from spa.codegen.tvm_api import tirx

PAD = 8  # halves
PTX_NAMES = {HALF: "f16", BFLOAT: "bf16"}
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
            self.lane, warp = named(thread % WARP), named(thread // WARP)
            self.warp_m, self.warp_n = named(warp // t.warps_n * t.warp_m), named(warp % t.warps_n * t.warp_n)
            self.shared = dynamic_shared(t.stages * self.stage_size, p.operand)
            self.shared_meta = static_shared(t.stages * self.words, WORD) if self.meta is not None else None
            self.a = local(t.rows * 4, WORD)
            self.b = local(t.columns * self.b_words, WORD)
            self.e = local(t.rows, WORD) if self.meta is not None else None
            self.sums = local(t.rows * t.columns * 4, "float32")
            place: Place = (lambda k, n: n * self.b_row + k) if p.source.k_last else (lambda k, n: k * self.b_row + n)
            tiling = Tiling(t.k, t.n, t.threads, thread, named(n_tile * t.n), group)
            self.mover = mover(p.source, self.x, tiling, self.shared, place, p.source.k_last)
            self._choose_tiles()
            self._multiply()
            self._leave()

    @property
    def b_words(self) -> int:
        return 4 if self.p.form == "2:4" else 2

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
        with unrolled(t.rows * t.columns * 4) as i:
            build.buffer_store(self.sums, tirx.const(0.0, "float32"), [i])
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
        p, t = self.p, self.p.tile
        depth = 32 if p.form == "2:4" else 16  # k of one instruction
        a, b = named(stage * self.stage_size), named(stage * self.stage_size + self.a_size)
        with unrolled(t.k // depth) as s:
            with unrolled(t.rows) as i:
                row = self.warp_m + i * 16 + self.lane % 16
                at = a + row * self.a_row + s * 16 + self.lane // 16 * 8
                self._load(self.a, i * 4, 4, self.shared, at, "")
                if self.shared_meta is not None:
                    quad = ((self.warp_m // 16 + i) * (t.k // 16) + s * 2 + self.lane % 2) * 8 + self.lane // 4
                    build.buffer_store(self.e, self.shared_meta[stage * self.words + quad], [i])
            self._load_b(b, s * depth)
            with unrolled(t.rows) as i, unrolled(t.columns) as j:
                self._mma(i, j)

    def _load_b(self, b: Expr, k: Expr) -> None:
        """The fragments of all columns of the warp: four matrices of 8 x 8 at a time, of one n8 (2:4) or of two."""
        t, lane = self.p.tile, self.lane
        if self.p.form == "2:4":
            along_k, along_n, at_once = lane // 8 * 8 + lane % 8, 0, 1
            row_k, row_n = lane // 8 * 8, lane % 8
        else:
            along_k, along_n, at_once = lane % 16, lane // 16 * 8, 2
            row_k, row_n = lane // 8 % 2 * 8, lane // 16 * 8 + lane % 8
        with unrolled(t.columns // at_once) as j:
            n = self.warp_n + j * (8 * at_once)
            row, column = (n + row_n, k + row_k) if self.p.source.k_last else (k + along_k, n + along_n)
            at = b + row * self.b_row + column
            self._load(self.b, j * 4, 4, self.shared, at, "" if self.p.source.k_last else ".trans")

    def _load(self, target: Any, first: Expr, count: int, source: Any, at: Expr, how: str) -> None:
        registers = [target[first + r] for r in range(count)]
        ptx(f"ldmatrix.sync.aligned.m8n8.x{count}{how}.shared.b16", *registers, address(source, at))

    def _mma(self, i: Expr, j: Expr) -> None:
        t, kind = self.p.tile, PTX_NAMES[self.p.operand]
        d = [self.sums[(i * t.columns + j) * 4 + r] for r in range(4)]
        a = [self.a[i * 4 + r] for r in range(4)]
        b = [self.b[j * self.b_words + r] for r in range(self.b_words)]
        if self.e is None:
            ptx(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32", *d, *a, *b, *d)
        else:
            name = f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32"
            ptx(name, *d, *a, *b, *d, self.e[i], 0)

    def _leave(self) -> None:
        p, t = self.p, self.p.tile
        with unrolled(t.rows) as i, unrolled(t.columns) as j, unrolled(4) as r:
            m = self.m_tile * t.m + self.warp_m + i * 16 + self.lane // 4 + r // 2 * 8
            n = self.n_tile * t.n + self.warp_n + j * 8 + self.lane % 4 * 2 + r % 2
            conditions = [m < p.m] if p.m % t.m else []
            conditions += [n < p.source.n] if p.source.n % t.n else []
            with only(both(*conditions)):
                self.out.finish(self.sums[(i * t.columns + j) * 4 + r], self.group, m, n)
