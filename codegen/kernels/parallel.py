"""Loops whose iterations threads may share (see `codegen/tvm_api/teams.py`); on targets without threads plain loops.

What an iteration writes outside itself, no other iteration may read or write; memory that it needs it allocates inside.
Everything else in a kernel with such loops is run by one thread while the others wait, so all heavy work belongs into
them. Where there is a choice: enough iterations that their number hardly matters, and work enough in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spa.codegen.kernels.vector import Expr, build, loop
from spa.codegen.tvm_api import BALANCE, EVERYONE

MANY = 16  # iterations that threads share evenly enough
WORTH = 4096  # elements that are moved or added up: below, waiting for each other takes longer


@contextmanager
def parallel(extent: int, sums: str | None = None, shared: bool = True) -> Iterator[Expr]:
    """A loop over [0, extent); `sums` names an argument: int32, the entries before each iteration, and of all. Not
    `shared`: a serial loop."""
    if extent == 1 or not shared:
        with loop(extent) as i:
            yield i
        return
    with build.parallel(0, extent, annotations={BALANCE: sums} if sums else None) as i:
        yield i


@contextmanager
def everyone() -> Iterator[None]:
    """What every thread does for itself, with memory allocated inside, but for its share of the parallel loops there.
    Anything outside of them is to do the same however often it is done."""
    with build.parallel(0, MANY, annotations={EVERYONE: True}):
        yield
