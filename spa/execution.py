"""Where tasks run: in this process, in others, or on a cluster; always through `concurrent.futures.Executor`.

with execution.on(workers=2):                         # or cluster="tcp://host:8786"
    spa.prune(model, macs=0.5, calib=data)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import islice
from threading import Thread, current_thread, main_thread
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from spa.errors import MissingTool, SpaError, UsageError

T = TypeVar("T")
P = ParamSpec("P")

PATIENCE = 10  # seconds for a scheduler to answer, and to have a worker
SAME = ("numpy", "scipy", "onnxruntime")  # packages that shape a result: the same versions here and on a cluster


class Inline(Executor):
    """Runs a task when it is submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(ProcessPoolExecutor):
    """Processes that end when this one does, however it ends, and leave Ctrl-C to it."""

    def __init__(self, workers: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # forked, the threads of onnxruntime would hang
        super().__init__(workers, spawn, initializer=follow)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with unheard():  # a process is started here, and what a thread does not hear its children do not either
            return super().submit(fn, *args, **kwargs)


def follow() -> None:
    """End this process with the one that started it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


@contextmanager
def unheard() -> Iterator[None]:
    """Ctrl-C waits: for this thread and, by its mask, for the processes it starts. The mask alone does not do, since any
    other thread of this process may take the signal, and Python raises in the main one, wherever that is."""
    if current_thread() is not main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)


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

    Raises `UsageError` where no scheduler answers, where it has no workers or these have other versions, `MissingTool`
    without dask.distributed, and `SpaError` where a worker dies of its task."""
    if cluster is not None and workers > 1:
        raise UsageError("tasks go to processes here or to a cluster, not both", hint="--workers or --cluster")
    if cluster is not None:
        with connected(cluster) as (found, width), using(found, width):
            yield found
    elif workers > 1:
        with processes(workers) as pool, using(pool, workers + 1):
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
def processes(workers: int) -> Iterator[Executor]:
    others = set(multiprocessing.active_children())
    pool = Processes(workers)
    try:
        yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # nobody waits for its task any more
        if isinstance(error, BrokenProcessPool):
            raise SpaError(
                "a worker process died, killed or out of memory; what was measured before is kept",
                f"one of {workers} processes",
                "the same with fewer workers; in a script of your own, call from under if __name__ == '__main__'",
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def connected(address: str) -> Iterator[tuple[Executor, int]]:
    """The executor of the scheduler there, and how many tasks to hand out ahead."""
    try:
        import dask
        import distributed
    except ImportError:
        raise MissingTool(
            "a cluster needs dask.distributed", hint="pip install 'spa-onnx[dask]', here and on the workers"
        ) from None
    answers(address)
    config: Any = dask  # neither says what it exports
    cluster: Any = distributed
    try:
        client = cluster.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise unanswered(error, address) from None
    # values at the start of a branch are megabytes, and nothing better could be sent
    with client, config.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise UsageError("the scheduler has no workers", address, f"`dask worker {address}`") from None
        same_versions(client, address)
        try:
            yield client.get_executor(pure=False), sum(client.ncores().values()) + 1
        except (cluster.scheduler.KilledWorker, CancelledError) as error:
            raise SpaError(
                "the cluster lost a task: too many workers died of it, or the scheduler is gone",
                address,
                "workers with more memory, then the same again: what was measured before is kept",
            ) from error


def answers(address: str) -> None:
    """Raise `UsageError` where nobody listens: sooner than a client would, and a client that failed complains for long."""
    try:
        where = urlsplit(address)
        with socket.create_connection((where.hostname or "", where.port or 0), PATIENCE):
            pass
    except (OSError, ValueError) as error:
        raise unanswered(error, address) from None


def unanswered(error: Exception, address: str) -> UsageError:
    start = "`dask scheduler`, then `dask worker tcp://HOST:8786`, then --cluster tcp://HOST:8786"
    return UsageError(f"no scheduler answers: {str(error).splitlines()[0]}", address, start)


def same_versions(client: Any, address: str) -> None:
    """Raise `UsageError` where a worker would compute something else than this process."""
    packages = SAME

    def found() -> dict[str, str]:  # within: dask sends it as it is, to workers without spa too
        from importlib import metadata

        from spa._version import __version__

        return {"spa": __version__} | {p: metadata.version(p) for p in packages}

    here = found()
    for worker, there in client.run(found, on_error="return").items():
        if isinstance(there, Exception):
            raise UsageError(f"a worker has no spa: {there}", worker, f"pip install spa-onnx=={here['spa']} there")
        for package, version in here.items():
            if there[package] != version:
                raise UsageError(
                    f"a worker has {package} {there[package]}, and here is {version}",
                    f"{worker}, of {address}",
                    "the same versions here and on all workers",
                )
