"""Hopper's warpgroup products by their meaning in the PTX ISA ("Asynchronous Warpgroup Level Matrix Instructions"): matrix
descriptors, the layouts that they describe, wgmma.mma_async and its sparse form, and what has to order them.

Written down apart from the kernels, like `instructions`. Products run on their own, so until they are waited for

    registers    of sums may not be touched (they are guarded); before the first product they must be fenced
    shared       must have been written before a barrier, and made visible to the asynchronous proxy by its writer before
                 that barrier; and stays as it is until the wait. After it, other threads may write once a barrier has passed
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from expressions import expression
from instructions import LANE, expanded
from machine import MANY, NOBODY, WARP, Array, Memory, Race
from state import State, Statement, everyone

from spa.codegen.tvm_api import tvm as tvm_module

WARPGROUP = 128
GROUP, IN_GROUP = LANE // 4, LANE % 4
ROW_BYTES = {1: 128, 2: 64, 3: 32}  # of swizzled layouts, by the mode in bits 62 and 63; 0 is no swizzle
CORE = 16  # bytes that are never split


@dataclass(eq=False)
class Products:
    """Those that have set out: per committed group what they read; sums that have not arrived, by register."""

    issued: list[Any] = field(default_factory=list)
    groups: list[list[Any]] = field(default_factory=list)
    sums: dict[tuple[Memory, int], Array] = field(default_factory=dict)
    fenced: dict[Memory, Array] = field(default_factory=dict)  # registers as the last wgmma.fence saw them


@dataclass(frozen=True, eq=False)
class Reading:
    """Cells [warpgroups, n] of the blocks [warpgroups, 1] that a product reads, and when it set out."""

    memory: Memory
    blocks: Array
    cells: Array
    epoch: Array
    registers: tuple[tuple[Memory, int], ...]


# Layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descriptor:
    """Byte address, offsets in bytes, mode of swizzling."""

    start: int
    leading: int
    stride: int
    mode: int

    @classmethod
    def decode(cls, bits: int) -> Descriptor:
        assert bits >> 49 & 7 == 0, "base offset: matrices begin where the pattern of the swizzle does"
        return cls((bits & 0x3FFF) << 4, (bits >> 16 & 0x3FFF) << 4, (bits >> 32 & 0x3FFF) << 4, bits >> 62 & 3)

    def k_major(self, rows: int, depth: int) -> Array:
        """Byte addresses [rows, depth] of 16-bit elements: rows along M or N, neighbours along K."""
        r, k = np.arange(rows)[:, None], 2 * np.arange(depth)[None]
        if self.mode == 0:
            return self.start + r // 8 * self.stride + k // CORE * self.leading + r % 8 * CORE + k % CORE
        width = ROW_BYTES[self.mode]
        begins = self.start % (8 * width)
        assert begins < width and begins + 2 * depth <= width, "a matrix leaves its rows"
        return self._swizzled(self.start + r // 8 * self.stride + r % 8 * width + k)

    def mn_major(self, columns: int, depth: int) -> Array:
        """Byte addresses [columns, depth]: neighbours along N."""
        n, k = 2 * np.arange(columns)[:, None], np.arange(depth)[None]
        if self.mode == 0:
            return self.start + n // CORE * self.stride + k // 8 * self.leading + k % 8 * CORE + n % CORE
        width = ROW_BYTES[self.mode]
        assert self.start % (8 * width) == 0, "a matrix begins with a whole square"
        return self._swizzled(self.start + n // width * self.leading + k // 8 * self.stride + k % 8 * width + n % width)

    def _swizzled(self, address: Array) -> Array:
        """Bits 4 and up are exclusive-ored with bits 7 and up, as many as there are pieces of 16 bytes in a row."""
        return np.asarray(address ^ ((address >> 7 & (ROW_BYTES[self.mode] // CORE - 1)) << 4))


def fragment(i: int) -> tuple[Array, Array]:
    """Row and column of register i of a thread's sums, [128] threads: D of m64nN."""
    warp, lane = np.divmod(np.arange(WARPGROUP), WARP)
    return 16 * warp + GROUP[lane] + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * IN_GROUP[lane] + i % 2


# Instructions ----------------------------------------------------------------------------------------------------


def ordering(tokens: list[str], operands: list[Any]) -> Statement:
    """wgmma.fence, commit_group, wait_group; fence.proxy.async; other fences."""
    if "proxy" in tokens:
        assert "async" in tokens
        return _make_visible
    if "commit_group" in tokens:
        return _commit
    if "wait_group" in tokens:
        return _wait(int(operands[0]))
    return _fence if "fence" in tokens else lambda s: None


def _make_visible(s: State) -> None:
    """What the threads that are here have written to shared memory can be seen by products of later epochs."""
    for memory in _shared(s):
        mine = memory.unfenced & ~memory.in_flight & np.isin(memory.writer, s.active())
        memory.unfenced[mine] = False
        memory.fenced_epoch[mine] = np.broadcast_to(s.threads.epoch[:, None], mine.shape)[mine]


def _shared(s: State) -> list[Memory]:
    return [m for m in {id(m): m for m in s.memories.values()}.values() if m.scope == "shared"]


def _fence(s: State) -> None:
    everyone(s)
    if not s.products.sums:
        s.products.fenced = {m: m.cells.copy() for m in s.memories.values() if m.scope == "local"}


def _commit(s: State) -> None:
    everyone(s)
    s.products.groups.append(s.products.issued)
    s.products.issued = []


def _wait(left: int) -> Statement:
    def run(s: State) -> None:
        everyone(s)
        p = s.products
        while len(p.groups) > left:
            for reading in p.groups.pop(0):
                _finish(s, reading)
        running = {r for group in [*p.groups, p.issued] for reading in group for r in reading.registers}
        for memory, index in [r for r in p.sums if r not in running]:
            memory.guarded[index] = False
            memory.cells[:, index] = p.sums.pop((memory, index))

    return run


def _finish(s: State, reading: Reading) -> None:
    """What a product read was left alone; from now on a barrier is enough."""
    memory, at = reading.memory, (reading.blocks, reading.cells)
    if memory.in_flight[at].any() or (memory.write_epoch[at] >= reading.epoch).any():
        raise Race(f"{memory.name}: written while a product reads it")
    memory.reader[at] = MANY
    memory.read_epoch[at] = s.threads.epoch[reading.blocks]


ASM = re.compile(r"wgmma\.mma_async(\.sp)?\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+) \{([^}]*)\}, ([^;]*);")


def device_function(call: Any) -> Statement:
    """A function in CUDA C, known by the assembly that it holds."""
    *operands, text = call.args[1:]
    if "*(uint4*)to = *(const uint4*)from;" in str(text.value):
        return _copy_chunk(*(expression(o) for o in operands))
    if "stmatrix" in str(text.value):
        return _stmatrix(operands, str(text.value))
    match = ASM.search(str(text.value))
    if match is None:
        assert 'asm volatile("" :' in str(text.value), f"a device function that the emulator does not know: {text}"
        return lambda s: None
    sparse, n, k, kind, other, sums, rest = match.groups()
    immediates = [part.strip() for part in rest.split(",")]
    assert kind == other and sums.split(", ") == [f"%{i}" for i in range(int(n) // 2)]
    assert "setp.ne.b32 p, 1, 0" in str(text.value) and int(k) == (32 if sparse else 16)
    count = int(n) // 2
    given = 3 if sparse else 2
    assert immediates[:given] == [f"%{count + i}" for i in range(given)]
    selector = int(immediates[given]) if sparse else 0
    predicate, scale_a, scale_b, a_last, b_last = immediates[-5:]
    assert (predicate, scale_a, scale_b, a_last) == ("p", "1", "1", "0")
    return _product(operands, int(n), int(k), kind, b_last == "1", selector)


def _product(operands: list[Any], n: int, k: int, kind: str, n_last: bool, selector: int) -> Statement:
    assert all(isinstance(o, tvm_module.ir.TensorLoad) for o in operands[: n // 2]), "sums are registers"
    registers = [(o.source, int(o.indices[0].value) if _is_constant(o) else o.indices[0]) for o in operands[: n // 2]]
    a, b, *meta = (expression(o) for o in operands[n // 2 :])
    indices = [expression(i) if not isinstance(i, int) else i for _, i in registers]

    def run(s: State) -> None:
        everyone(s)
        t = s.threads
        assert t.per_block % WARPGROUP == 0
        where = [
            (s.memories[buffer], i if isinstance(i, int) else int(i(s)))
            for (buffer, _), i in zip(registers, indices, strict=True)
        ]
        groups = t.count // WARPGROUP
        left = _read(s, s.spread(a(s)), 64, k // 2 if meta else k, kind, False, where)
        right = _read(s, s.spread(b(s)), n, k, kind, n_last, where)
        if meta:
            words = s.spread(meta[0](s)).reshape(-1, WARP)
            left = expanded(left.reshape(4 * groups, 16, 16), words, selector).reshape(groups, 64, 32)
        result = left @ right.transpose(0, 2, 1)
        for i, (memory, index) in enumerate(where):
            row, column = fragment(i)
            before = s.products.sums.get((memory, index))
            before = _free(s, memory, index) if before is None else before
            s.products.sums[memory, index] = before + result[:, row, column].reshape(-1)

    return run


def _stmatrix(operands: list[Any], text: str) -> Statement:
    """Pairs of sums rounded to registers of two halves (the first operand of cvt is the upper one), and four matrices 8 x 8 of
    such registers stored, each transposed: thread t holds elements 2 (t % 4) and the next of row t / 4, and they go to
    rows 2 (t % 4) and the next, at t / 4. Row r of matrix q begins where thread 8 q + r says."""
    assert "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {r0, r1, r2, r3};" in text
    rounded = re.findall(r"cvt\.rn\.(b?f16)x2\.f32 r(\d), %(\d+), %(\d+);", text)
    assert [int(r) for _, r, _, _ in rounded] == [0, 1, 2, 3]
    number, *values = [expression(o) for o in operands]
    sources = [values[int(part) - 1] for _, _, high, low in rounded for part in (low, high)]

    def run(s: State) -> None:
        everyone(s)
        numbers = np.asarray(number(s), np.int64)
        (memory,) = {m for m in _shared(s) if m.base <= numbers[0] < m.base + m.cells[0].nbytes}
        assert not (numbers % CORE).any(), "stmatrix: rows are aligned to 16 bytes"
        begins = ((numbers - memory.base) // 2).reshape(-1, 4, 8)  # [warps, matrix, row]
        rows = 2 * IN_GROUP[:, None] + np.arange(2)  # [thread, element]
        cells = np.stack([begins[:, q][:, rows] + GROUP[:, None] for q in range(4)], 2).reshape(s.threads.count, 8)
        held = np.stack([s.spread(v(s)) for v in sources], -1).astype(memory.cells.dtype)
        memory.write(s.threads.lane, cells, held)

    return run


def _copy_chunk(to: Any, source: Any) -> Statement:
    """16 bytes by each thread that is here."""

    def run(s: State) -> None:
        target, at, lanes = to(s), source(s), s.active()
        count = CORE // target.memory.cells.itemsize
        begins = [place.index[lanes] for place in (target, at)]
        assert not any((b % count).any() for b in begins), "16 bytes at once are aligned to 16"
        into, out_of = (b[:, None] + np.arange(count) for b in begins)
        target.memory.write(lanes, into, at.memory.read(lanes, out_of))

    return run


def _is_constant(load: Any) -> bool:
    return hasattr(load.indices[0], "value")


def _free(s: State, memory: Memory, index: int) -> Array:
    """A register that no product is using yet; guarded from here on."""
    seen = s.products.fenced.get(memory)
    now = memory.cells[:, index]
    if seen is None or not np.array_equal(seen[:, index], now, equal_nan=True):
        raise Race(f"{memory.name}[{index}]: no wgmma.fence between its last use and a product")
    if memory.guarded is None:
        memory.guarded = np.zeros(memory.size, bool)
    memory.guarded[index] = True
    return now.copy()


def _read(
    s: State, bits: Array, rows: int, depth: int, kind: str, n_last: bool, registers: list[tuple[Memory, int]]
) -> Array:
    """A matrix [warpgroups, rows, depth] by its descriptors."""
    t = s.threads
    per_group = bits.reshape(-1, WARPGROUP)
    assert (per_group == per_group[:, :1]).all(), "all threads of a warpgroup give one descriptor"
    decoded = [Descriptor.decode(int(d)) for d in per_group[:, 0]]
    addresses = np.stack([d.mn_major(rows, depth) if n_last else d.k_major(rows, depth) for d in decoded])
    (memory,) = {m for m in _shared(s) if m.base <= decoded[0].start < m.base + m.cells[0].nbytes}
    assert memory.cells.dtype.name == {"f16": "float16", "bf16": "bfloat16"}[kind]
    cells = (addresses - memory.base) // 2
    blocks = t.block_of[::WARPGROUP][:, None, None]
    at = (blocks, cells)
    assert cells.min() >= 0 and cells.max() < memory.size, "a descriptor leaves its buffer"
    epoch = t.epoch[blocks]
    if (memory.writer[at] == NOBODY).any() or memory.in_flight[at].any():
        raise Race(f"{memory.name}: a product reads what nobody has written, or waited for")
    if (memory.write_epoch[at] >= epoch).any():
        raise Race(f"{memory.name}: a product reads what was written since the last barrier")
    if memory.unfenced[at].any() or (memory.fenced_epoch[at] >= epoch).any():
        raise Race(
            f"{memory.name}: a product reads what its writer has not fenced (fence.proxy.async) before the barrier"
        )
    s.products.issued.append(Reading(memory, blocks, cells, epoch, tuple(registers)))
    return np.asarray(memory.cells[at], np.float32)
