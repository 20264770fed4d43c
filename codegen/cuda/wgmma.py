"""Products on Hopper's tensor cores: the same Y[m, n] = sum over k of W[m, k] X[k, n] as in `product`, in warpgroup products
(wgmma.mma_async, and its sparse form for 2:4), which alone reach what these cards can do. For sm_90a only.

A block of threads computes a tile of Y, a warpgroup whole rows of it. Both operands are read from shared memory by the
tensor cores themselves, so a step is little more than its products: they run while the threads fetch. Step i of the loop:

    wait for own copies of stage i; make them visible to products; barrier
        -> stage i is there, and everybody has finished the products of step i - 2: its stage is free
    products of stage i set out
    stage i + ahead is fetched, into the place of i - 2 (and what came by registers for the one before is put there)
    wait for the products of step i - 1

    dense   W as images of stages, see `wgmma_pack`
    2:4     the same of what is stored, and the metadata words [group, m tile, k tile, row / 16, lane]

X is K-major where its k are neighbours in memory, MN-major where its n are: products read both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from spa.codegen.cuda.sources import Place, Source, Tiling, mover
from spa.codegen.cuda.wgmma_ending import Corner, is_staged, leave_directly, leave_through_shared
from spa.codegen.cuda.wgmma_layout import ALIGNMENT, k_major, k_major_descriptor, mn_major, mn_major_descriptor
from spa.codegen.cuda.wgmma_tile import DEPTH, WgmmaTile
from spa.codegen.cuda.wgmma_words import (
    ROWS,
    WARPGROUP,
    commit_products,
    described,
    finish_all_but,
    hold,
    moved,
    multiply,
    ready,
    seen_by_products,
    settle,
    shared_number,
)
from spa.codegen.cuda.words import (
    HALF,
    WARP,
    WORD,
    axis,
    barrier,
    commit,
    copy_async,
    dynamic_shared,
    local,
    named,
    only,
    static_shared,
    unrolled,
    wait_for_all_but,
    when,
)
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import Expr, argument, build, covering, function, loop
from spa.codegen.tvm_api import tirx

BYTES = 2  # of an operand
NEIGHBOURS = 2048  # rows of Y that blocks running at one time share: they read the same tiles from the L2


@dataclass(frozen=True)
class WgmmaProduct:
    """All that a kernel's code depends on. `m`: of one group. `operand`: the type that is multiplied."""

    m: int
    groups: int
    source: Source
    tile: WgmmaTile
    form: Literal["dense", "2:4"]
    ending: Ending
    operand: str = HALF

    @property
    def m_tiles(self) -> int:
        return covering(self.m, self.tile.m)

    @property
    def n_tiles(self) -> int:
        return covering(self.source.n, self.tile.n)

    @property
    def k_tiles(self) -> int:
        return covering(self.source.k, DEPTH)

    @property
    def stored_k(self) -> int:
        """Stored values per row of a stage of W."""
        return DEPTH // 2 if self.form == "2:4" else DEPTH

    @property
    def w_tiles(self) -> int:
        return self.groups * self.m_tiles * self.k_tiles

    @property
    def stage_size(self) -> int:
        """Elements."""
        return self.tile.m * self.stored_k + self.tile.n * DEPTH

    @property
    def shared_bytes(self) -> int:
        """Dynamic and static."""
        return ALIGNMENT + self.tile.stages * (self.stage_size * BYTES + self.words * 4)

    @property
    def words(self) -> int:
        """Metadata of a stage."""
        return self.tile.m // 16 * WARP if self.form == "2:4" else 0


def build_wgmma(p: WgmmaProduct) -> Any:
    """The PrimFunc: x, tensor operands, then w, (metadata), bias, vectors, then y; all flat."""
    with function() as f:
        _Wgmma(p).write()
    return f.primfunc


class _Wgmma:
    def __init__(self, p: WgmmaProduct) -> None:
        t = p.tile
        self.p = p
        self.x = argument("x", p.source.size, p.source.dtype)
        tensors = p.ending.operands()
        self.w = argument("w", p.w_tiles * t.m * p.stored_k, p.operand)
        self.meta = argument("meta", p.w_tiles * p.words, WORD) if p.form == "2:4" else None
        self.out = Writer.declare(p.m, p.groups, p.source, p.ending, tensors)
        self.a_size = t.m * p.stored_k

    def write(self) -> None:
        p, t = self.p, self.p.tile
        with (
            axis("blockIdx.z", p.groups) as group,
            axis("blockIdx.x", p.m_tiles * p.n_tiles) as block,
            axis("threadIdx.x", t.threads) as thread,
        ):
            self.group, self.thread = group, thread
            self._choose_tile(block)
            self.lane, self.warp = named(thread % WARP), named(thread // WARP % 4)
            self.first_row = named(thread // WARPGROUP * (t.rows * ROWS))
            self.shared = dynamic_shared(t.stages * p.stage_size + ALIGNMENT // BYTES, p.operand)
            self.shared_meta = static_shared(t.stages * p.words, WORD) if self.meta is not None else None
            number = shared_number(self.shared, 0)
            slack = (tirx.const(0, WORD) - number) & tirx.const(ALIGNMENT - 1, WORD)
            self.origin = named(tirx.Cast("int32", slack) // BYTES)  # the pattern of swizzles is one of addresses
            self.stages = described(number + slack)
            self.sums = local(t.rows * t.n // 2, "float32")
            self.e = local(t.rows, WORD) if self.meta is not None else None
            place: Place = (
                (lambda k, n: k_major(n, k, DEPTH)) if p.source.k_last else (lambda k, n: mn_major(k, n, DEPTH))
            )
            tiling = Tiling(DEPTH, t.n, t.threads, thread, named(self.n_tile * t.n), group)
            self.mover = mover(p.source, self.x, tiling, self.shared, place, p.source.k_last)
            self.first = named((group * p.m_tiles + self.m_tile) * p.k_tiles)
            self._multiply()
            self._leave()

    def _choose_tile(self, block: Expr) -> None:
        """Blocks go through a band of rows of Y column by column, then through the next band."""
        p = self.p
        band = min(max(NEIGHBOURS // p.tile.m, 1), p.m_tiles)
        at, inside = block // (band * p.n_tiles), block % (band * p.n_tiles)
        high = band if p.m_tiles % band == 0 else named(tirx.Min(band, p.m_tiles - at * band))
        self.m_tile, self.n_tile = named(at * band + inside % high), named(inside // high)

    def _multiply(self) -> None:
        p, t = self.p, self.p.tile
        count = t.rows * t.n // 2
        with unrolled(count) as i:
            build.buffer_store(self.sums, tirx.const(0.0, "float32"), [i])
        late = t.ahead > 1  # what comes by registers is then placed a step after it was asked for
        for ahead in range(t.ahead):
            with self._if_there(ahead):
                self._fetch(ahead, ahead)
                if not late or ahead < t.ahead - 1:
                    self.mover.place(self._x_of(ahead))
            commit()
        self._hold(count)
        with loop(p.k_tiles) as i:
            wait_for_all_but(t.ahead - 1)
            seen_by_products()
            barrier()
            self._set_out(named(i % t.stages))
            following = i + t.ahead
            if late:
                self._place(following - 1)
            with self._if_there(following):
                self._fetch(following, named(following % t.stages))
            commit()
            if not late:
                self._place(following)
            finish_all_but(1)
        settle()
        self._hold(count)
        wait_for_all_but(0)

    def _if_there(self, i: Expr) -> Any:
        count = self.p.k_tiles
        return only(i < count or tirx.const(False, "bool")) if isinstance(i, int) else when(i < count)

    def _place(self, i: Expr) -> None:
        """What was fetched of X for step i, from registers into its stage."""
        with self._if_there(i):
            self.mover.place(self._x_of(named(i % self.p.tile.stages)))

    def _hold(self, count: int) -> None:
        for i in range(count):
            hold(self.sums[i])

    def _x_of(self, stage: Expr) -> Expr:
        """Where the X of a stage begins, in elements."""
        return self.origin + stage * self.p.stage_size + self.a_size

    def _fetch(self, i: Expr, stage: Expr) -> None:
        """Tile i of W and what it meets of X, into a stage."""
        p, t = self.p, self.p.tile
        tile, to = self.first + i, self.origin + stage * p.stage_size
        self._copy(self.shared, to, self.w, tile * self.a_size, self.a_size // 8, 8)
        if self.meta is not None:
            self._copy(self.shared_meta, stage * p.words, self.meta, tile * p.words, p.words // 4, 4)
        self.mover.fetch(i * t.k, to + self.a_size)

    def _copy(self, target: Any, to: Expr, source: Any, at: Expr, chunks: int, lanes: int) -> None:
        """As it is, in chunks of 16 bytes."""
        threads = self.p.tile.threads
        with unrolled(covering(chunks, threads)) as j:
            chunk = j * threads + self.thread
            with only(chunks % threads == 0 or chunk < chunks):
                copy_async(target, to + chunk * lanes, source, at + chunk * lanes)

    def _set_out(self, stage: Expr) -> None:
        """The products of a stage."""
        p, t = self.p, self.p.tile
        depth = 32 if p.form == "2:4" else 16  # k of one product
        a_flags = k_major_descriptor(p.stored_k)
        b_flags = k_major_descriptor(DEPTH) if p.source.k_last else mn_major_descriptor(DEPTH)
        row_bytes = p.stored_k * BYTES
        here = named(moved(self.stages, stage * (p.stage_size * BYTES)))
        a = named(moved(here, self.first_row * row_bytes) + tirx.const(a_flags, "uint64"))
        b = named(moved(here, self.a_size * BYTES) + tirx.const(b_flags, "uint64"))
        b_step = depth * BYTES if p.source.k_last else depth * BYTES * ROWS
        if self.shared_meta is not None:
            with unrolled(t.rows) as i:
                at = ((self.first_row // ROWS + i) * 4 + self.warp) * WARP + self.lane
                build.buffer_store(self.e, self.shared_meta[stage * p.words + at], [i])
        ready()
        each = t.n // 2
        for s in range(DEPTH // depth):
            for i in range(t.rows):
                sums = [self.sums[i * each + r] for r in range(each)]
                meta = self.e[i] if self.e is not None else None
                at = moved(a, i * ROWS * row_bytes + s * 32)
                multiply(sums, at, moved(b, s * b_step), p.operand, not p.source.k_last, meta, s)
        commit_products()

    def _leave(self) -> None:
        p, t = self.p, self.p.tile
        first_m = named(self.m_tile * t.m + self.first_row)
        corner = Corner(self.group, first_m, self.n_tile * t.n, self.warp, self.lane)
        if is_staged(p.m, p.groups, p.source, p.ending, p.operand):
            barrier()  # nobody's products read the stages any more
            place = self.origin + self.first_row * t.n
            leave_through_shared(p.m, t, self.out, self.sums, corner, self.shared, place, self.thread % WARPGROUP)
        else:
            leave_directly(p.m, t, self.out, self.sums, corner)
