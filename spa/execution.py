"""Where tasks run: in this process, in others, or on a cluster; always through `concurrent.futures.Executor`.

with execution.on(workers=2):                         # or cluster="tcp://host:8786"
    spa.prune(model, macs=0.5, calib=data)
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from spa.errors import MissingTool, UsageError

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


_executor: ContextVar[tuple[Executor, int]] = ContextVar("executor", default=(Inline(), 1))


def executor() -> Executor:
    """The one to hand tasks to."""
    return _executor.get()[0]


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in order; as many are drawn, and so submitted, before the first is waited for as run at once."""
    waiting = iter(items)
    queue = deque(islice(waiting, _executor.get()[1]))
    while queue:
        yield queue.popleft()
        queue.extend(islice(waiting, 1))


WIDE = 768  # rows of a matrix from which on BLAS threads pay


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def blas(size: int) -> Iterator[None]:
    """One thread for linear algebra on matrices of this size where they are small: more gain nothing then, and where
    cores are shared, waiting for one another costs them twenty times the work."""
    if size >= WIDE:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def on(workers: int = 0, cluster: str | None = None) -> Iterator[Executor]:
    """Tasks go to `workers` processes, or to the dask.distributed scheduler at `cluster`; by default to this process.

    Raises `MissingTool` without dask.distributed, `UsageError` where no scheduler answers."""
    if cluster is not None:
        with connected(cluster) as (found, width), using(found, width):
            yield found
    elif workers > 1:
        spawn = multiprocessing.get_context("spawn")  # forked, the threads of onnxruntime would hang
        with ProcessPoolExecutor(workers, spawn) as pool, using(pool, workers + 1):
            yield pool
    else:
        yield executor()


@contextmanager
def using(chosen: Executor, width: int) -> Iterator[None]:
    token = _executor.set((chosen, width))
    try:
        yield
    finally:
        _executor.reset(token)


@contextmanager
def connected(address: str) -> Iterator[tuple[Executor, int]]:
    try:
        import distributed
    except ImportError:
        raise MissingTool(
            "a cluster needs dask.distributed", hint="pip install 'spa-onnx[dask]', here and on the workers"
        ) from None
    connect: Any = distributed.Client
    try:
        client = connect(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UsageError(f"no scheduler answers: {error}", address, "dask scheduler; then tcp://host:8786") from None
    with client:
        yield client.get_executor(), sum(client.ncores().values()) + 1
