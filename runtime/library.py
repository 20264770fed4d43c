"""Engines for machine code: the shared library in this process, the static one under qemu."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spa.errors import SpaError, Unsupported, UsageError
from spa.runtime.engine import ALIGNMENT, InProcess, fail, split
from spa.runtime.load import Target
from spa.runtime.tensor import Array, Tensor, ordered
from spa.runtime.toolchain import need


def _empty(outputs: Sequence[Tensor]) -> list[Array]:
    return [np.empty(t.shape, t.dtype) for t in outputs]


def _table(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))


class Native(InProcess):
    """The shared library in this process, through ctypes."""

    def __init__(self, target: Target, threads: int = 1) -> None:
        self.target = target
        library = ctypes.CDLL(str(target.file(target.library).resolve()))
        size = self._function(library, "instance_bytes", [], ctypes.c_size_t)()
        self._memory = np.empty(size + ALIGNMENT, np.uint8)
        start = self._memory.ctypes.data + -self._memory.ctypes.data % ALIGNMENT
        self._instance = ctypes.c_void_p()
        init = self._function(library, "init", [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p], ctypes.c_int32)
        fail(init(start, size, ctypes.byref(self._instance)), target.prefix)
        self._run = self._function(library, "run", [ctypes.c_void_p] * 3, ctypes.c_int32)
        self._run_step = self._function(library, "run_step", [ctypes.c_void_p] * 3 + [ctypes.c_int32], ctypes.c_int32)
        self._parts = int(self._function(library, "steps", [], ctypes.c_int32)())
        self._set_threads = self._function(library, "set_threads", [ctypes.c_void_p, ctypes.c_int32], ctypes.c_int32)
        if self._set_threads(self._instance, threads):
            raise UsageError(f"{threads} threads cannot be had", hint="fewer --threads")
        self._inputs: list[Array] = [np.zeros(t.shape, t.dtype) for t in target.inputs]
        self._outputs = _empty(target.outputs)
        self._arguments = (self._instance, _table(self._inputs), _table(self._outputs))

    def _function(self, library: ctypes.CDLL, name: str, arguments: list[Any], result: Any) -> Any:
        function = getattr(library, f"{self.target.prefix}_{name}")
        function.argtypes, function.restype = arguments, result
        return function

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for place, array in zip(self._inputs, ordered(feeds, self.target.inputs), strict=True):
            place[...] = array
        self.step()
        return {t.name: a.copy() for t, a in zip(self.target.outputs, self._outputs, strict=True)}

    def close(self) -> None:
        """End the threads; without this they wait until the process ends."""
        self._set_threads(self._instance, 1)


class Qemu:
    """The static library in a small program of its own, under qemu's user mode emulation."""

    def __init__(self, target: Target, threads: int = 1) -> None:
        from spa.runtime.runner import build_runner

        self.target, self._qemu = target, need("qemu-aarch64")
        self._program, self._threads = build_runner(target), threads

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        arrays = ordered(feeds, self.target.inputs)
        with tempfile.TemporaryDirectory(prefix="spa-") as folder:
            source, sink = Path(folder) / "inputs", Path(folder) / "outputs"
            source.write_bytes(b"".join(a.tobytes() for a in arrays))
            done = subprocess.run(
                [self._qemu, str(self._program), str(source), str(sink), str(self._threads)],
                capture_output=True,
                text=True,
                check=False,
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

    def parts(self) -> int:
        return 0

    def part(self, index: int) -> float:
        return self.step()

    def close(self) -> None: ...
