"""What the emulator knows while it runs: variables, memories, who is active, and which copies are under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from machine import Array, Memory, Threads

Expr = Callable[["State"], Any]
Statement = Callable[["State"], None]


@dataclass(eq=False)
class State:
    """Of one batch of blocks: variables, memories, who is active (None: all), and copies under way."""

    threads: Threads
    variables: dict[Any, Any] = field(default_factory=dict)
    memories: dict[Any, Memory] = field(default_factory=dict)
    mask: Array | None = None
    issued: list[Any] = field(default_factory=list)
    groups: list[list[Any]] = field(default_factory=list)
    products: Any = None

    def active(self) -> Array:
        return self.threads.lane if self.mask is None else np.flatnonzero(self.mask)

    def spread(self, value: Any) -> Array:
        """A scalar for each thread."""
        return np.broadcast_to(np.asarray(value), (self.threads.count,)) if np.ndim(value) == 0 else value


@dataclass(frozen=True)
class Place:
    """`&buffer[index]`"""

    memory: Memory
    index: Array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        """The byte addresses."""
        numbers = self.memory.base + self.index * self.memory.cells.itemsize
        return np.asarray(numbers, dtype or np.uint32)


class Diverged(Exception):
    """Blocks of one batch take different ways through what is tracked for all of them together."""


def everyone(state: State) -> None:
    """Raise `Diverged` unless all threads are here."""
    if state.mask is not None:
        raise Diverged
