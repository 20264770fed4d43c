"""Engines for WebAssembly modules: wasmtime in this process, Node beside it."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from spa.errors import MissingTool, SpaError, Unsupported, UsageError
from spa.runtime.child import Child
from spa.runtime.engine import ALIGNMENT, InProcess, fail, split
from spa.runtime.load import Target
from spa.runtime.tensor import Array, ordered
from spa.runtime.toolchain import need

PAGE = 65536  # bytes
STACK = 65536  # of a thread
MAX_THREADS = 64


def check_threads(target: Target, threads: int) -> None:
    """Raises `Unsupported` for a module that is not for threads, `UsageError` for a number that no module is for."""
    if threads > 1 and not is_shared(target):
        raise Unsupported(
            f"this wasm artifact runs in one thread, not in {threads}",
            str(target.folder),
            "compile it with --wasm-threads",
        )
    if threads > MAX_THREADS:
        raise UsageError(f"{threads} threads cannot be had", hint=f"--threads {MAX_THREADS} at most")


def is_shared(target: Target) -> bool:
    """Whether a module takes memory that several instances of it may share."""
    return "+atomics" in target.features


class Wasmtime(InProcess):
    """The module in wasmtime, in this process. More threads are instances of their own on the same memory."""

    def __init__(self, target: Target, threads: int = 1) -> None:
        try:
            import wasmtime
        except ImportError as error:
            raise MissingTool(
                "wasmtime is not installed: it runs wasm artifacts", hint="pip install wasmtime, or --engine node"
            ) from error
        check_threads(target, threads)
        self.target, shared = target, is_shared(target)
        config = wasmtime.Config()
        if shared:
            config.wasm_threads = config.shared_memory = True
        engine = wasmtime.Engine(config)
        module = wasmtime.Module.from_file(engine, str(target.file(target.library)))
        memory: Any = _shared_memory(engine, module) if shared else None
        imports = [memory] if shared else []

        def instance() -> tuple[Any, Any]:
            store = wasmtime.Store(engine)
            return store, wasmtime.Instance(store, module, imports).exports(store)

        self._store, exports = instance()
        if "_initialize" in exports:
            exports["_initialize"](self._store)
        top = int(exports["__heap_base"].value(self._store))

        def take(count: int) -> int:
            nonlocal top
            at = -(-top // ALIGNMENT) * ALIGNMENT
            top = at + count
            return at

        def call(name: str, *arguments: int) -> int:
            return int(exports[f"{target.prefix}_{name}"](self._store, *arguments))

        size = call("instance_bytes")
        place = take(size)
        self._input_at = [take(t.nbytes) for t in target.inputs]
        self._output_at = [take(t.nbytes) for t in target.outputs]
        tables = [take(4 * len(at) + 4) for at in (self._input_at, self._output_at)]
        pool_bytes = call("pool_bytes", threads) if threads > 1 else 0
        pool, stacks = take(pool_bytes), [take(STACK) + STACK for _ in range(1, threads)]
        self._memory = memory if shared else _Own(exports["memory"], self._store)
        self._memory.reach(top)
        for table, places in zip(tables, (self._input_at, self._output_at), strict=True):
            self._memory.write(table, b"".join(p.to_bytes(4, "little") for p in places))
        slot = tables[0] + 4 * len(self._input_at)
        fail(call("init", place, size, slot), target.prefix)
        state = int.from_bytes(self._memory.read(slot, 4), "little")
        self._run, self._run_step = exports[f"{target.prefix}_run"], exports[f"{target.prefix}_run_step"]
        self._parts = call("steps")
        self._arguments = (self._store, state, *tables)
        self._threads: list[threading.Thread] = []
        self._end: Callable[[], int]
        if threads > 1:
            fail(call("pool", state, pool, pool_bytes, threads, 1), target.prefix)
            self._end = partial(call, "end", state)
            self._threads = [
                _thread(*instance(), target.prefix, state, stack, task) for task, stack in enumerate(stacks, 1)
            ]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for at, array in zip(self._input_at, ordered(feeds, self.target.inputs), strict=True):
            self._memory.write(at, array.tobytes())
        self.step()
        places = zip(self.target.outputs, self._output_at, strict=True)
        return split(b"".join(self._memory.read(at, t.nbytes) for t, at in places), self.target.outputs)

    def _timed(self, function: Any, *more: int) -> float:
        try:
            return super()._timed(function, *more)
        except BaseException:
            self.close()  # the other threads wait in the middle of a run
            raise

    def close(self) -> None:
        """End the threads; without this they wait until the process ends."""
        if self._threads:
            self._end()
        for thread in self._threads:
            thread.join()
        self._threads = []


def _thread(store: Any, exports: Any, prefix: str, state: int, stack: int, task: int) -> threading.Thread:
    """A thread that is about to wait in its instance for runs, or that has ended them all because it failed."""

    def work() -> None:
        exports["__stack_pointer"].set_value(store, stack)
        try:
            exports[f"{prefix}_join"](store, state, task)
        finally:
            exports[f"{prefix}_end"](store, state)

    thread = threading.Thread(target=work, daemon=True, name=f"{prefix} {task}")
    thread.start()
    return thread


class _Own:
    """The memory of an instance."""

    def __init__(self, memory: Any, store: Any) -> None:
        self._memory, self._store = memory, store

    def reach(self, top: int) -> None:
        pages = -(-top // PAGE) - self._memory.size(self._store)
        if pages > 0:
            self._memory.grow(self._store, pages)

    def write(self, at: int, data: bytes) -> None:
        self._memory.write(self._store, data, at)

    def read(self, at: int, count: int) -> bytes:
        return bytes(self._memory.read(self._store, at, at + count))


def _shared_memory(engine: Any, module: Any) -> Any:
    """The memory that instances of a module share, as `_Own` is one instance's."""
    import wasmtime
    from wasmtime import _ffi

    class Shared(wasmtime.SharedMemory):
        def _as_extern(self) -> Any:  # wasmtime 50 passes a pointer to the pointer here, which ctypes refuses
            union = _ffi.wasmtime_extern_union(sharedmemory=self.ptr())
            return _ffi.wasmtime_extern_t(_ffi.WASMTIME_EXTERN_SHAREDMEMORY, union)

        def reach(self, top: int) -> None:
            pages = -(-(top - self.data_len()) // PAGE)
            if pages > 0:
                self.grow(pages)

        def _place(self, at: int) -> int:
            return int(ctypes.cast(self.data_ptr(), ctypes.c_void_p).value or 0) + at

        def write(self, at: int, data: bytes) -> None:
            ctypes.memmove(self._place(at), data, len(data))

        def read(self, at: int, count: int) -> bytes:
            return ctypes.string_at(self._place(at), count)

    (declared,) = module.imports
    limits = declared.type.limits
    return Shared(engine, wasmtime.MemoryType(wasmtime.Limits(limits.min, limits.max), shared=True))


def flags(node: str, target: Target) -> list[str]:
    """What Node must be told to run a target: before version 21 it has relaxed SIMD behind a flag."""
    if "+relaxed-simd" not in target.features:
        return []
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return ["--experimental-wasm-relaxed-simd"] if int(version.lstrip("v").split(".")[0]) < 21 else []


class Node(Child):
    """The ES module in a Node process, as a user of the bundle would load it."""

    def __init__(self, target: Target, threads: int = 1) -> None:
        self.target, node = target, need("node")
        check_threads(target, threads)
        target.file(target.library)
        module = target.file(f"{target.prefix}.mjs").resolve()
        script = Path(__file__).parent / "wasm" / "node.mjs"
        super().__init__()
        self.start([node, *flags(node, target), str(script), module.as_uri(), str(self.folder), str(threads)])

    def failed(self, said: str) -> SpaError:
        return SpaError(f"{self.target.prefix} failed in Node: {said.strip()[-300:]}", "runtime")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        (self.folder / "inputs").write_bytes(b"".join(a.tobytes() for a in ordered(feeds, self.target.inputs)))
        self.ask("run")
        return split((self.folder / "outputs").read_bytes(), self.target.outputs)

    def step(self) -> float:
        return float(self.ask("step")["ms"]) / 1e3

    def parts(self) -> int:
        return int(self.ask("parts")["parts"])

    def part(self, index: int) -> float:
        return float(self.ask(f"part {index}")["ms"]) / 1e3

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
