"""The stub driver built, and its launches computed by the emulator: an artifact runs end to end without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest

from spa.runtime.toolchain import run_zig

SOURCE = Path(__file__).parent / "stub_driver.c"
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)
)
COUNT = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_char_p)


def build(directory: Path) -> Path:
    """The stub as a library; with zig, which every compiled artifact needs anyway."""
    out = directory / "libstub.so"
    shutil.copy(SOURCE, directory / "stub_driver.c")
    done = run_zig(["cc", "-shared", "-fPIC", "-O1", "-g0", "-w", "stub_driver.c", "-o", out.name], directory)
    assert done.returncode == 0, done.stderr
    return out


class Stub:
    """The loaded stub. `computing(functions)` lets launches of these device functions be emulated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.stub_log.restype = ctypes.c_char_p
        self.library.stub_extent.restype = ctypes.c_size_t
        self.library.stub_extent.argtypes = [ctypes.c_uint64]
        self.library.stub_reset()
        self.errors: list[BaseException] = []

    @property
    def log(self) -> list[str]:
        return str(self.library.stub_log().decode()).splitlines()

    def computing(self, functions: Mapping[str, Any]) -> None:
        def launch(symbol: bytes, sizes: Any, shared: int, parameters: Any) -> int:
            function = functions[symbol.decode()]
            try:
                arrays = [self._array(parameters[i], p) for i, p in enumerate(function.params)]
                emulator.launch(function, arrays, list(sizes[:3]), list(sizes[3:6]), shared)
            except BaseException as error:  # it must not travel through C
                self.errors.append(error)
                return 719
            return 0

        self._kept = CALLBACK(launch), COUNT(lambda symbol: len(functions[symbol.decode()].params))
        self.library.stub_callback(*self._kept)

    def _array(self, place: int, parameter: Any) -> np.ndarray[Any, Any]:
        """From the pointer to the end of its allocation."""
        pointer = ctypes.c_uint64.from_address(place).value
        dtype = np.dtype(str(parameter.ty.element_type.dtype))
        count = self.library.stub_extent(pointer) // dtype.itemsize
        memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(pointer)
        return np.frombuffer(memory, dtype)

    def check_errors(self) -> None:
        if self.errors:
            raise self.errors[0]

    def check(self) -> None:
        """Nothing went wrong, and nothing is left."""
        self.check_errors()
        assert self.library.stub_allocated() == 0
        assert self.library.stub_contexts() == 0


def compiler() -> str:
    """g++ or clang++."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("needs g++ or clang++")
    return found


def run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
