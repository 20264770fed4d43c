"""Engines for WebAssembly modules: wasmtime in this process, Node beside it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from spa.errors import MissingTool, SpaError
from spa.runtime.child import Child
from spa.runtime.engine import ALIGNMENT, InProcess, fail, split
from spa.runtime.load import Target
from spa.runtime.tensor import Array, ordered
from spa.runtime.toolchain import need


class Wasmtime(InProcess):
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
        fail(exports[f"{target.prefix}_init"](self._store, memory, size, slot), target.prefix)
        instance = int.from_bytes(self._memory.read(self._store, slot, slot + 4), "little")
        self._run, self._run_step = exports[f"{target.prefix}_run"], exports[f"{target.prefix}_run_step"]
        self._parts = int(exports[f"{target.prefix}_steps"](self._store))
        self._arguments = (self._store, instance, *tables)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for at, array in zip(self._input_at, ordered(feeds, self.target.inputs), strict=True):
            self._memory.write(self._store, array.tobytes(), at)
        self.step()
        places = zip(self.target.outputs, self._output_at, strict=True)
        return split(
            b"".join(bytes(self._memory.read(self._store, at, at + t.nbytes)) for t, at in places), self.target.outputs
        )

    def close(self) -> None: ...


def flags(node: str, target: Target) -> list[str]:
    """What Node must be told to run a target: before version 21 it has relaxed SIMD behind a flag."""
    if "+relaxed-simd" not in target.features:
        return []
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return ["--experimental-wasm-relaxed-simd"] if int(version.lstrip("v").split(".")[0]) < 21 else []


class Node(Child):
    """The ES module in a Node process, as a user of the bundle would load it."""

    def __init__(self, target: Target) -> None:
        self.target, node = target, need("node")
        target.file(target.library)
        module = target.file(f"{target.prefix}.mjs").resolve()
        script = Path(__file__).parent / "wasm" / "node.mjs"
        super().__init__()
        self.start([node, *flags(node, target), str(script), module.as_uri(), str(self.folder)])

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
