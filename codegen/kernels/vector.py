"""Words in which kernels are written: vectors, tiles of registers and loops in TIR.

Accumulators are buffers of one vector each: indexed by constants only, they become registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spa.codegen.tvm_api import ir_builder, tirx

build: Any = ir_builder.tirx

Expr = Any  # a TIR expression, or an int
FLOAT = "float32"


@dataclass
class Function:
    """A PrimFunc being written: `primfunc` is there once the `with` ends."""

    primfunc: Any = None


@contextmanager
def function() -> Iterator[Function]:
    """`with function() as f:` around the declaration of arguments and the body."""
    written = Function()
    with ir_builder.IRBuilder() as builder:
        with build.prim_func(s_tir=True):
            build.func_name("kernel")
            build.func_attr({"tirx.noalias": True})
            yield written
        written.primfunc = builder.get()


def argument(name: str, size: int, dtype: str = FLOAT) -> Any:
    """A buffer of so many elements, flat."""
    return build.arg(name, build.Buffer((size,), dtype))


def scratch(size: int) -> Any:
    """Memory for this call, of so many floats."""
    return build.alloc_buffer((max(size, 257),), FLOAT, scope="global")  # below a KB it would be stack, and unaligned


def scratch_vectors(count: int, lanes: int) -> Any:
    """Memory for this call, of so many vectors. Where all that is kept are whole vectors: TVM's rewriting of storage
    cannot mix it up with registers then."""
    dtype = FLOAT if lanes == 1 else f"{FLOAT}x{lanes}"
    return build.alloc_buffer((max(count, 256 // lanes + 1),), dtype, scope="global")


def registers(rows: int, columns: int, lanes: int) -> list[list[Any]]:
    """`rows` x `columns` vectors."""
    dtype = FLOAT if lanes == 1 else f"{FLOAT}x{lanes}"
    return [[build.alloc_buffer((1,), dtype, scope="global") for _ in range(columns)] for _ in range(rows)]


@contextmanager
def loop(extent: Expr, begin: Expr = 0) -> Iterator[Expr]:
    """A serial loop over [begin, begin + extent); none where the extent is one."""
    if isinstance(extent, int) and extent == 1:
        yield begin
    elif isinstance(begin, int) and begin == 0:
        with build.serial(0, extent) as i:
            yield i
    else:
        with build.serial(0, extent) as i:
            yield begin + i


def span(at: Expr, lanes: int, stride: int = 1) -> Expr:
    return at if lanes == 1 else tirx.Ramp(at, stride, lanes)


def load(buffer: Any, at: Expr, lanes: int) -> Expr:
    return buffer[span(at, lanes)]


def fetch(buffer: Any, at: Expr) -> None:
    """Ask for an element's cache line early. Nothing is read: `at` may lie outside."""
    read, near, data = (tirx.IntImm("int32", i) for i in (0, 3, 1))
    build.evaluate(tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(buffer[at]), read, near, data))


def store(buffer: Any, value: Expr, at: Expr, lanes: int) -> None:
    build.buffer_store(buffer, value, [span(at, lanes)])


def splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def number(value: float, lanes: int) -> Expr:
    return splat(tirx.FloatImm(FLOAT, float(value)), lanes)


def put(register: Any, value: Expr) -> None:
    build.buffer_store(register, value, [0])


def fits(lanes: int, length: int) -> int:
    """The most lanes, a power of two, that a row of this length fills.

    >>> fits(16, 49), fits(16, 14), fits(4, 3)
    (16, 8, 2)
    """
    while lanes > length:
        lanes //= 2
    return max(lanes, 1)


def covering(length: int, lanes: int) -> int:
    """Vectors that cover a row, the last one shifted back so that none leaves it."""
    return -(-length // lanes)


def shifted(i: Expr, step: int, size: int, length: int) -> Expr:
    """Where part `i` of a row begins, the last one shifted back so that it ends with the row."""
    if isinstance(i, int):
        return min(i * step, length - size)
    return i * step if length % step == 0 and size == step else tirx.Min(i * step, length - size)


def evens(buffer: Any, at: Expr, lanes: int) -> Expr:
    """Elements at, at + 2, ... as one vector; nothing behind the last of them is read."""
    if lanes == 1:
        return buffer[at]
    first, second = load(buffer, at, lanes), load(buffer, at + lanes - 1, lanes)
    half = lanes // 2
    indices = [2 * i for i in range(half)] + [lanes + 1 + 2 * i for i in range(half)]
    return tirx.Shuffle([first, second], [tirx.IntImm("int32", i) for i in indices])


def lanes_of(values: Sequence[Expr], picked: Sequence[int]) -> Expr:
    """A vector of these lanes of some vectors, counted through all of them."""
    return tirx.Shuffle(list(values), [tirx.IntImm("int32", i) for i in picked])


def fold(value: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All lanes of a vector combined into a number."""
    while lanes > 1:
        lanes //= 2
        value = combine(lanes_of([value], range(lanes)), lanes_of([value], range(lanes, 2 * lanes)))
    return value


def transposed(tile: Sequence[Any], lanes: int) -> None:
    """Lane j of register i for lane i of register j, in place: for each bit of the indices, what differs in it changes
    places."""
    bit = 1
    while bit < lanes:
        for i in range(lanes):
            if i & bit:
                continue
            a, b = tile[i], tile[i | bit]
            low = [j if not j & bit else lanes + (j ^ bit) for j in range(lanes)]
            high = [j | bit if not j & bit else lanes + j for j in range(lanes)]
            first, second = registers(1, 2, lanes)[0]
            put(first, lanes_of([a[0], b[0]], low))
            put(second, lanes_of([a[0], b[0]], high))
            put(a, first[0])
            put(b, second[0])
        bit *= 2


def product(values: Sequence[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result
