"""Where tasks run: in this process, in others, or on a cluster; always through `concurrent.futures.Executor`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Inline(Executor):
    """Runs a task when it is submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def ahead(items: Iterable[T], executor: Executor) -> Iterator[T]:
    """The items in order; as many are drawn, and so submitted, before the first is waited for as the executor runs at once."""
    waiting = iter(items)
    queue = deque(islice(waiting, width(executor)))
    while queue:
        yield queue.popleft()
        queue.extend(islice(waiting, 1))


def width(executor: Executor) -> int:
    """How many tasks to keep submitted."""
    workers: Any = getattr(executor, "_max_workers", 0)
    return 1 if isinstance(executor, Inline) else int(workers or 4) + 1
