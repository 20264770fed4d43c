"""Where every intermediate lives: one static arena, planned over lifetimes."""

from __future__ import annotations

from dataclasses import dataclass

from spa.codegen.program import Program, Ref

ALIGNMENT = 64  # bytes: a cache line and the widest vector


@dataclass(frozen=True)
class Lifetime:
    """`size` bytes are needed from call `first` to call `last`, both included."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Layout:
    """Byte offsets into the arena (of values, and of the scratch of each call), into the weights, and both totals.
    `direct`: value -> output that it is written to at once; `copies`: (source, output) to copy at the end."""

    values: tuple[int, ...]
    scratch: tuple[int, ...]
    consts: tuple[int, ...]
    arena_bytes: int
    weight_bytes: int
    direct: dict[int, int]
    copies: tuple[tuple[Ref, int], ...]


def align(n: int) -> int:
    """`n` bytes, rounded up to the alignment.

    >>> align(1), align(64)
    (64, 64)
    """
    return (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def place(lifetimes: list[Lifetime]) -> tuple[list[int], int]:
    """Offsets and total bytes: largest first, each at the lowest gap free of everything that lives at the same time.

    A call reads and writes within one step, so what it reads never overlaps what it writes.

    >>> place([Lifetime(64, 0, 1), Lifetime(64, 1, 2), Lifetime(64, 2, 3)])
    ([0, 64, 0], 128)
    """
    offsets, total = [0] * len(lifetimes), 0
    placed: list[int] = []
    for i in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first, i)):
        now = lifetimes[i]
        if now.size == 0:
            continue
        taken = sorted(
            (offsets[j], offsets[j] + align(lifetimes[j].size))
            for j in placed
            if lifetimes[j].first <= now.last and now.first <= lifetimes[j].last
        )
        at = 0
        for begin, end in taken:
            if begin - at >= align(now.size):
                break
            at = max(at, end)
        offsets[i] = at
        total = max(total, at + align(now.size))
        placed.append(i)
    return offsets, total


def plan_memory(program: Program, scratch: dict[str, int]) -> Layout:
    """Lay out a program; `scratch` gives the bytes that each kernel needs while it runs."""
    direct: dict[int, int] = {}
    copies: list[tuple[Ref, int]] = []
    for output, ref in enumerate(program.results):
        if ref.kind == "value" and ref.index not in direct:
            direct[ref.index] = output
        else:
            copies.append((ref, output))
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, call in enumerate(program.calls):
        for arg in call.args:
            if arg.kind == "value":
                first.setdefault(arg.index, step)
                last[arg.index] = step
    lifetimes = [
        Lifetime(0 if i in direct else max(size, 1), first.get(i, 0), last.get(i, 0))
        if i in first
        else Lifetime(0, 0, 0)
        for i, size in enumerate(program.values)
    ]
    lifetimes += [Lifetime(scratch.get(call.kernel, 0), step, step) for step, call in enumerate(program.calls)]
    offsets, arena = place(lifetimes)
    consts, weights = [], 0
    for const in program.consts:
        consts.append(weights)
        weights += align(max(const.nbytes, 1))
    n = len(program.values)
    return Layout(tuple(offsets[:n]), tuple(offsets[n:]), tuple(consts), arena, weights, direct, tuple(copies))
