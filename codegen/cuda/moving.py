"""How tiles get from memory to shared memory: what all that move them have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from spa.codegen.cuda.words import chosen, local
from spa.codegen.kernels.vector import Expr, build, product
from spa.codegen.kernels.window import Window
from spa.codegen.tvm_api import tirx

Place = Callable[[Expr, Expr], Expr]  # (k, n) of a tile -> where in shared memory


@dataclass(frozen=True)
class Tiling:
    """A tile of `depth` k x `width` n, moved by `threads` threads; `thread` is this one, `first` its first n, `group`
    the group of a grouped convolution."""

    depth: int
    width: int
    threads: int
    thread: Expr
    first: Expr
    group: Expr


class Mover(Protocol):
    def fetch(self, k: Expr, to: Expr) -> None:
        """Set out for the tile that begins at k; `to`: where in shared memory its stage begins."""

    def place(self, to: Expr) -> None:
        """What came into registers, to shared memory."""


def inside(value: Expr, limit: int, step: int) -> Any:
    """`value` < `limit`; True where no tile reaches beyond."""
    return True if limit % step == 0 else value < limit


class Registers:
    """Loads into registers, `lanes` neighbours at a time."""

    def __init__(self, x: Any, threads: int, thread: Expr, shared: Any, lanes: int, units: int, dtype: str) -> None:
        self.x, self.threads, self.thread, self.shared, self.lanes = x, threads, thread, shared, lanes
        self.count = -(-units // threads)
        self.units, self.dtype = units, dtype
        self.registers = local(self.count, dtype if lanes == 1 else f"{dtype}x{lanes}")

    def load(self, i: Expr, condition: Any, at: Expr) -> None:
        zero = tirx.const(0.0, self.dtype)
        if self.lanes > 1:
            value = chosen(condition, self.x[tirx.Ramp(at, 1, self.lanes)], tirx.Broadcast(zero, self.lanes))
        else:
            value = chosen(condition, self.x[at], zero)
        build.buffer_store(self.registers, value, [i])

    def store(self, i: Expr, to: Expr) -> None:
        kind = str(self.shared.dtype)
        value = self.registers[i]
        if kind != self.dtype:
            value = tirx.Cast(kind if self.lanes == 1 else f"{kind}x{self.lanes}", value)
        build.buffer_store(self.shared, value, [to if self.lanes == 1 else tirx.Ramp(to, 1, self.lanes)])

    def unit(self, i: Expr) -> Expr:
        return i * self.threads + self.thread

    def mine(self, i: Expr) -> Any:
        """Whether unit i of this thread exists."""
        return True if self.units % self.threads == 0 else self.unit(i) < self.units


def bounds(at: Expr, w: Window, axis: int) -> list[Any]:
    """Conditions under which a row (axis 0) or column (1) of the picture exists; those that always hold left out."""
    lowest = -w.pads[axis]
    highest = (w.out[axis] - 1) * w.strides[axis] + (w.kernel[axis] - 1) * w.dilations[axis] - w.pads[axis]
    return ([at >= 0] if lowest < 0 else []) + ([at < w.size[axis]] if highest >= w.size[axis] else [])


class Seen:
    """Sizes of pictures seen through a window, as a matrix [k, n]."""

    window: Window
    groups: int

    @property
    def channels(self) -> int:
        """Of one group."""
        return self.window.channels // self.groups

    @property
    def pixels(self) -> int:
        return product(self.window.out)

    @property
    def n(self) -> int:
        return self.window.batch * self.pixels

    @property
    def k(self) -> int:
        return self.channels * product(self.window.kernel)

    @property
    def size(self) -> int:
        return self.window.batch * self.window.channels * product(self.window.size)
