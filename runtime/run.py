"""Running the artifacts of a bundle: natively, under qemu, in wasmtime and in Node.

An `Engine` is one loaded instance: `run(feeds)` gives the outputs, `step()` runs once more on the same inputs and gives
the seconds it took.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from spa.errors import MissingTool, SpaError, Unsupported, UsageError
from spa.runtime.load import Target, target_of
from spa.runtime.tensor import Array, Tensor, ordered
from spa.runtime.toolchain import need, runs_here

ALIGNMENT = 64  # bytes: of an instance's memory
ENGINES = {"host": ("native",), "arm": ("native", "qemu"), "wasm": ("wasmtime", "node")}


class Engine(Protocol):
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...
    def step(self) -> float: ...
    def close(self) -> None: ...


def run(
    bundle: Path, feeds: Mapping[str, Array], target: str | None = None, engine: str | None = None
) -> dict[str, Array]:
    """Run a bundle once. Raises `UsageError` for feeds that do not fit, `MissingTool` where nothing can run it."""
    loaded = open_engine(target_of(bundle, target), engine)
    try:
        return loaded.run(feeds)
    finally:
        loaded.close()


def open_engine(target: Target, engine: str | None = None) -> Engine:
    """Load a target; without `engine`, arm runs natively where it can and under qemu elsewhere, wasm in wasmtime."""
    choices = ENGINES.get(target.name, ("native",))
    if engine is not None and engine not in choices:
        raise UsageError(f"'{engine}' does not run the target '{target.name}'", hint="one of " + ", ".join(choices))
    if target.name == "wasm":
        return Node(target) if engine == "node" else Wasmtime(target)
    here = runs_here(target.triple, target.cpu)
    if target.name == "arm" and (engine == "qemu" or (engine is None and not here)):
        return Qemu(target)
    if not here:
        raise Unsupported(
            f"this machine cannot run code for {target.cpu or target.triple}",
            f"target '{target.name}'",
            "compile it on this machine, or for a lower level",
        )
    return Native(target)


def _fail(code: int, prefix: str) -> None:
    if code:
        raise SpaError(f"{prefix} returned error {code}", "runtime", "compile the bundle again")


def _empty(outputs: Sequence[Tensor]) -> list[Array]:
    return [np.empty(t.shape, t.dtype) for t in outputs]


def _table(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))


class Native:
    """The shared library in this process, through ctypes."""

    def __init__(self, target: Target) -> None:
        self.target = target
        library = ctypes.CDLL(str(target.file(target.library).resolve()))
        size = self._function(library, "instance_bytes", [], ctypes.c_size_t)()
        self._memory = np.empty(size + ALIGNMENT, np.uint8)
        start = self._memory.ctypes.data + -self._memory.ctypes.data % ALIGNMENT
        self._instance = ctypes.c_void_p()
        init = self._function(library, "init", [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p], ctypes.c_int32)
        _fail(init(start, size, ctypes.byref(self._instance)), target.prefix)
        self._run = self._function(library, "run", [ctypes.c_void_p] * 3, ctypes.c_int32)
        self._inputs: list[Array] = [np.zeros(t.shape, t.dtype) for t in target.inputs]
        self._outputs = _empty(target.outputs)
        self._tables = _table(self._inputs), _table(self._outputs)

    def _function(self, library: ctypes.CDLL, name: str, arguments: list[Any], result: Any) -> Any:
        function = getattr(library, f"{self.target.prefix}_{name}")
        function.argtypes, function.restype = arguments, result
        return function

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for place, array in zip(self._inputs, ordered(feeds, self.target.inputs), strict=True):
            place[...] = array
        self.step()
        return {t.name: a.copy() for t, a in zip(self.target.outputs, self._outputs, strict=True)}

    def step(self) -> float:
        begin = time.perf_counter()
        code = self._run(self._instance, *self._tables)
        seconds = time.perf_counter() - begin
        _fail(code, self.target.prefix)
        return seconds

    def close(self) -> None: ...


class Qemu:
    """The static library in a small program of its own, under qemu's user mode emulation."""

    def __init__(self, target: Target) -> None:
        from spa.runtime.runner import build_runner

        self.target, self._qemu = target, need("qemu-aarch64")
        self._program = build_runner(target)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        arrays = ordered(feeds, self.target.inputs)
        with tempfile.TemporaryDirectory(prefix="spa-") as folder:
            source, sink = Path(folder) / "inputs", Path(folder) / "outputs"
            source.write_bytes(b"".join(a.tobytes() for a in arrays))
            done = subprocess.run(
                [self._qemu, str(self._program), str(source), str(sink)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SpaError(
                    f"{self.target.prefix} failed under qemu: {done.returncode} {done.stderr.strip()[-200:]}", "runtime"
                )
            return split(sink.read_bytes(), self.target.outputs)

    def step(self) -> float:
        raise Unsupported(
            "emulation says nothing about time", "target 'arm' under qemu", "run the bench on an aarch64 machine"
        )

    def close(self) -> None: ...


def split(data: bytes, outputs: Sequence[Tensor]) -> dict[str, Array]:
    """Outputs that lie one behind the other."""
    result, at = {}, 0
    for t in outputs:
        result[t.name] = (
            np.frombuffer(data, t.dtype, t.nbytes // np.dtype(t.dtype).itemsize, at).reshape(t.shape).copy()
        )
        at += t.nbytes
    return result


class Wasmtime:
    """The module in wasmtime, in this process."""

    def __init__(self, target: Target) -> None:
        try:
            import wasmtime
        except ImportError as error:
            raise MissingTool(
                "wasmtime is not installed: it runs wasm artifacts", hint="pip install wasmtime, or --engine node"
            ) from error
        self.target = target
        engine = wasmtime.Engine()
        module = wasmtime.Module.from_file(engine, str(target.file(target.library)))
        self._store = wasmtime.Store(engine)
        exports: Any = wasmtime.Instance(self._store, module, []).exports(self._store)
        self._memory = exports["memory"]
        if "_initialize" in exports:
            exports["_initialize"](self._store)
        top = int(exports["__heap_base"].value(self._store))

        def take(count: int) -> int:
            nonlocal top
            at = -(-top // ALIGNMENT) * ALIGNMENT
            top = at + count
            return at

        size = exports[f"{target.prefix}_instance_bytes"](self._store)
        memory = take(size)
        self._input_at = [take(t.nbytes) for t in target.inputs]
        self._output_at = [take(t.nbytes) for t in target.outputs]
        tables = [take(4 * len(at) + 4) for at in (self._input_at, self._output_at)]
        pages = -(-top // 65536) - self._memory.size(self._store)
        if pages > 0:
            self._memory.grow(self._store, pages)
        for table, places in zip(tables, (self._input_at, self._output_at), strict=True):
            self._memory.write(self._store, np.array(places, "<u4").tobytes(), table)
        slot = tables[0] + 4 * len(self._input_at)
        _fail(exports[f"{target.prefix}_init"](self._store, memory, size, slot), target.prefix)
        instance = int.from_bytes(self._memory.read(self._store, slot, slot + 4), "little")
        self._run = exports[f"{target.prefix}_run"]
        self._arguments = (instance, *tables)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for at, array in zip(self._input_at, ordered(feeds, self.target.inputs), strict=True):
            self._memory.write(self._store, array.tobytes(), at)
        self.step()
        places = zip(self.target.outputs, self._output_at, strict=True)
        return split(
            b"".join(bytes(self._memory.read(self._store, at, at + t.nbytes)) for t, at in places), self.target.outputs
        )

    def step(self) -> float:
        begin = time.perf_counter()
        code = self._run(self._store, *self._arguments)
        seconds = time.perf_counter() - begin
        _fail(code, self.target.prefix)
        return seconds

    def close(self) -> None: ...


class Node:
    """The ES module in a Node process, as a user of the bundle would load it."""

    def __init__(self, target: Target) -> None:
        self.target, node = target, need("node")
        target.file(target.library)
        module = target.file(f"{target.prefix}.mjs").resolve()
        script = Path(__file__).parent / "wasm" / "node.mjs"
        self._folder = tempfile.TemporaryDirectory(prefix="spa-")
        self._errors = (Path(self._folder.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            [node, str(script), module.as_uri(), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise SpaError(f"{self.target.prefix} failed in Node: {self._errors.read().strip()[-300:]}", "runtime")
        result: dict[str, Any] = json.loads(answer)
        return result

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        folder = Path(self._folder.name)
        (folder / "inputs").write_bytes(b"".join(a.tobytes() for a in ordered(feeds, self.target.inputs)))
        self._ask("run")
        return split((folder / "outputs").read_bytes(), self.target.outputs)

    def step(self) -> float:
        return float(self._ask("step")["ms"]) / 1e3

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
