"""Where every intermediate lives: one static arena, planned over lifetimes; sums in place of one of their terms."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
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


def plan_memory(
    program: Program, scratch: Mapping[str, int], in_place: Mapping[str, Sequence[int]] | None = None
) -> Layout:
    """Lay out a program; `scratch` gives the bytes that each kernel needs while it runs, `in_place` those of its arguments
    whose memory its output may take over."""
    direct: dict[int, int] = {}
    copies: list[tuple[Ref, int]] = []
    for output, ref in enumerate(program.results):
        if ref.kind == "value" and ref.index not in direct:
            direct[ref.index] = output
        else:
            copies.append((ref, output))
    lives = _lives(program, direct)
    own = [Lifetime(scratch.get(call.kernel, 0), step, step) for step, call in enumerate(program.calls)]
    apart = {i: i for i in lives}
    together = _taken_over(program, lives, in_place or {})
    # memory that is kept longer may leave gaps elsewhere: whichever plan is smaller
    offsets, arena = min(
        (_placed(len(program.values), lives, owner, own) for owner in (together, apart)), key=lambda plan: plan[1]
    )
    consts, weights = [], 0
    for const in program.consts:
        consts.append(weights)
        weights += align(max(const.nbytes, 1))
    n = len(program.values)
    return Layout(tuple(offsets[:n]), tuple(offsets[n:]), tuple(consts), arena, weights, direct, tuple(copies))


def _lives(program: Program, direct: Container[int]) -> dict[int, Lifetime]:
    """Of every value that some call reads or writes and that is no output."""
    lives: dict[int, Lifetime] = {}
    for step, call in enumerate(program.calls):
        for arg in call.args:
            if arg.kind == "value" and arg.index not in direct:
                before = lives.get(arg.index)
                size = max(program.values[arg.index], 1)
                lives[arg.index] = Lifetime(size, step if before is None else before.first, step)
    return lives


def _taken_over(
    program: Program, lives: Mapping[int, Lifetime], in_place: Mapping[str, Sequence[int]]
) -> dict[int, int]:
    """For each value the first of those whose memory it takes over, one after the other: itself where it takes none.

    A call's output may have that of an argument which the kernel allows, which is as large, which the call gets once, and
    which is not needed any more.
    """
    owner = {i: i for i in lives}
    for step, call in enumerate(program.calls):
        output = call.args[-1]
        if output.kind != "value" or output.index not in lives or lives[output.index].first < step:
            continue
        for position in in_place.get(call.kernel, ()):
            arg = call.args[position]
            if arg.kind != "value" or arg.index not in lives or call.args.count(arg) > 1:
                continue
            if lives[arg.index].last == step and lives[arg.index].size == lives[output.index].size:
                owner[output.index] = owner[arg.index]
                break
    return owner


def _placed(
    count: int, lives: Mapping[int, Lifetime], owner: Mapping[int, int], own: list[Lifetime]
) -> tuple[list[int], int]:
    """Offsets of all `count` values and then of the calls' `own` memory, and total bytes: what shares memory lives as one."""
    whole: dict[int, Lifetime] = {}
    for i, life in lives.items():
        first = whole.get(owner[i], life)
        whole[owner[i]] = Lifetime(life.size, min(first.first, life.first), max(first.last, life.last))
    slots = [whole.get(i, Lifetime(0, 0, 0)) for i in range(count)]
    offsets, arena = place([*slots, *own])
    return [offsets[owner.get(i, i)] for i in range(count)] + offsets[count:], arena
