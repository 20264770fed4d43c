"""Progress of long work: whoever does it tells how far it is, whoever cares listens.

with progress.listening(lambda what, done, total: print(what, done, total)):
    spa.prune(model, macs=0.5, calib=data)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


def _silent(what: str, done: int, total: int) -> None:
    pass


_listener: ContextVar[Listener] = ContextVar("listener", default=_silent)


def tell(what: str, done: int, total: int) -> None:
    _listener.get()(what, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
