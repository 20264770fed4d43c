"""A GPU for tests: memory of many threads at once, with every hazard that lock-step execution would hide.

All threads of all blocks take each statement together, one numpy array over the threads per value. That alone would make
a forgotten barrier invisible, so shared and global memory remember who touched each cell since which barrier, and what
is still on its way (cp.async): touching a cell of another thread without a barrier between raises `Race`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WARP = 32
NOBODY = -1
MANY = -2


class Race(AssertionError):
    """Two threads touched one cell, one of them writing, with nothing between that orders them."""


class OutOfBounds(AssertionError):
    """A thread that is active left its buffer."""


@dataclass(eq=False)
class Threads:
    """Of `blocks` blocks of `block` threads: ids of all threads, thread by thread within a block, block by block."""

    first: int
    blocks: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]

    def __post_init__(self) -> None:
        self.per_block = int(np.prod(self.block))
        self.count = self.blocks * self.per_block
        self.lane = np.arange(self.count)
        self.block_of = self.lane // self.per_block
        self.in_block = self.lane % self.per_block
        self.warps_per_block = -(-self.per_block // WARP)
        self.warp_of = self.block_of * self.warps_per_block + self.in_block // WARP
        self.epoch = np.zeros(self.blocks, np.int64)  # barriers that a block has passed
        self.warp_epoch = np.zeros(self.blocks * self.warps_per_block, np.int64)

    def axis(self, tag: str) -> Array:
        """threadIdx.x and the like, [threads]."""
        size, at = (self.block, self.in_block) if tag.startswith("thread") else (self.grid, self.block_of + self.first)
        axis = "xyz".index(tag[-1])
        return np.asarray(at // int(np.prod(size[:axis], initial=1)) % size[axis])

    def barrier(self, mask: Array | None) -> None:
        active = np.ones(self.count, bool) if mask is None else mask
        per_block = active.reshape(self.blocks, -1)
        if not (per_block.all(1) | ~per_block.any(1)).all():
            raise Race("a barrier that only some threads of a block reach")
        self.epoch[per_block[:, 0]] += 1

    def warp_barrier(self) -> None:
        self.warp_epoch += 1


@dataclass(eq=False)
class Memory:
    """Cells [instances, size]: one instance per thread (local), per block (shared), or one (global)."""

    name: str
    cells: Array
    scope: str
    threads: Threads
    tracked: bool = False
    size: int = field(init=False)
    base: int = 0  # of shared memory: the byte address where it begins
    guarded: Array | None = None  # of registers: those that products use

    def __post_init__(self) -> None:
        self.size = self.cells.shape[1]
        if self.tracked:
            shape = self.cells.shape[:2]
            self.writer = np.full(shape, NOBODY)
            self.reader = np.full(shape, NOBODY)
            self.write_epoch, self.read_epoch = np.full(shape, -1), np.full(shape, -1)
            self.write_warp_epoch, self.read_warp_epoch = np.full(shape, -1), np.full(shape, -1)
            self.in_flight = np.zeros(shape, bool)
            self.unfenced, self.fenced_epoch = np.zeros(shape, bool), np.full(shape, -1)  # see `warpgroup`

    def instance(self, lanes: Array) -> Any:
        return lanes if self.scope == "local" else self.threads.block_of[lanes] if self.scope == "shared" else 0 * lanes

    def read(self, lanes: Array, index: Array) -> Array:
        """Cells `index` [lanes] or [lanes, n] as these lanes see them."""
        self._check(lanes, index)
        at, who = self._place(lanes, index)
        if self.tracked:
            self._ordered(at, who, self.writer, self.write_epoch, self.write_warp_epoch, "read of a cell written by")
            if self.in_flight[at].any():
                raise Race(f"{self.name}: read of a cell that cp.async has not been waited for")
            epoch = self.threads.epoch[self.threads.block_of[who]]
            fresh = self.read_epoch[at] != epoch
            other = ~fresh & (self.reader[at] != who)
            self.reader[at] = np.where(other, MANY, who)
            shared = self.reader[at] != who
            self.reader[at[0][shared], at[1][shared]] = MANY  # several threads of this statement read one cell
            self.read_epoch[at] = epoch
            self.read_warp_epoch[at] = self.threads.warp_epoch[self.threads.warp_of[who]]
        return np.asarray(self.cells[at])

    def write(self, lanes: Array, index: Array, value: Array) -> None:
        """`value` like the index, or with one more axis for cells that are vectors."""
        self.reserve(lanes, index)
        at, who = self._place(lanes, index)
        self.cells[at] = value
        if self.tracked:
            self.writer[at] = who
            if (self.writer[at] != who).any() and not np.array_equal(
                self.cells[at], np.broadcast_to(value, self.cells[at].shape), equal_nan=self.cells.dtype.kind == "f"
            ):
                raise Race(f"{self.name}: two threads write one cell at once")
            self.unfenced[at] = True
            self.write_epoch[at] = self.threads.epoch[self.threads.block_of[who]]
            self.write_warp_epoch[at] = self.threads.warp_epoch[self.threads.warp_of[who]]

    def reserve(self, lanes: Array, index: Array) -> None:
        """Raise where a write now could meet another thread's access."""
        self._check(lanes, index)
        if self.tracked:
            at, who = self._place(lanes, index)
            self._ordered(at, who, self.writer, self.write_epoch, self.write_warp_epoch, "write over a write by")
            self._ordered(at, who, self.reader, self.read_epoch, self.read_warp_epoch, "write over a read by")

    def fly(self, lanes: Array, index: Array, flying: bool) -> None:
        if self.tracked:
            self.in_flight[self._place(lanes, index)[0]] = flying

    def _place(self, lanes: Array, index: Array) -> tuple[tuple[Any, Array], Array]:
        who = lanes if index.ndim == 1 else np.broadcast_to(lanes[:, None], index.shape)
        return (self.instance(who), index), who

    def _check(self, lanes: Array, index: Array) -> None:
        if index.size and (index.min() < 0 or index.max() >= self.size):
            raise OutOfBounds(f"{self.name}[{index.min()}..{index.max()}], {self.size} elements")
        if self.guarded is not None and self.guarded[index].any():
            raise Race(f"{self.name}: a register that products use, and nobody has waited for them")

    def _ordered(self, at: Any, who: Array, other: Array, epoch: Array, warp_epoch: Array, what: str) -> None:
        t = self.threads
        them = other[at]
        same_block = ((them == MANY) & (self.scope == "shared")) | (t.block_of[np.maximum(them, 0)] == t.block_of[who])
        unordered = (them != NOBODY) & (them != who)
        # a barrier orders threads of one block only
        unordered &= ~same_block | (epoch[at] == t.epoch[t.block_of[who]])
        same_warp = (them >= 0) & (t.warp_of[np.maximum(them, 0)] == t.warp_of[who])
        unordered &= ~(same_warp & (warp_epoch[at] < t.warp_epoch[t.warp_of[who]]))
        if unordered.any():
            first = np.argwhere(unordered)[0]
            raise Race(
                f"{self.name}: {what} thread {them[tuple(first)]}, no barrier between (thread {who[tuple(first)]})"
            )
