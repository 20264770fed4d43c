"""The C++ launcher: built with zig, with the system's compiler and with CMake; what it tells the driver, and what it says on errors."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from machine import Array
from stub import Stub, build, compiler, run
from test_cuda_networks import MIXED, compiled

from spa.codegen.bundle import Bundle
from spa.codegen.cuda import artifact, toolchain
from spa.runtime.load import target_of
from spa.runtime.run import open_engine

pytestmark = [
    pytest.mark.codegen,
    pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc: without cubins there is no library"),
]
NO_DRIVER, NO_DEVICE, NO_CODE, FAILED = 2, 3, 4, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any], Path]:
    """A bundle with most kinds of kernels, its device functions, and the stub."""
    found: dict[str, Any] = {}
    original = artifact.lower_gpu

    def lower(*arguments: Any) -> Any:
        gpu = original(*arguments)
        found.update(gpu.device.functions)
        return gpu

    folder = tmp_path_factory.mktemp("launcher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "lower_gpu", lower)
        bundle = compiled(zoo.network(MIXED), folder / "out", "mixed", precision="fp32")
    return bundle, found, build(folder)


@pytest.fixture
def stub(made: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("SPA_LIBCUDA", str(made[2]))
    loaded = Stub(made[2])
    loaded.computing(made[1])
    yield loaded


class Library:
    """The launcher's C interface."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.mixed_cuda_message.restype = ctypes.c_char_p
        self.c.mixed_cuda_input_bytes.restype = ctypes.c_size_t
        self.net = ctypes.c_void_p()

    def create(self, device: int = 0) -> int:
        return int(self.c.mixed_cuda_create(device, ctypes.byref(self.net)))

    @property
    def message(self) -> str:
        return str(self.c.mixed_cuda_message(self.net).decode())

    def run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> int:
        def table(arrays: Mapping[str, Array]) -> Any:
            return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays.values()))

        return int(self.c.mixed_cuda_run(self.net, table(feeds), table(outputs)))

    def destroy(self) -> None:
        self.c.mixed_cuda_destroy(self.net)
        self.net = ctypes.c_void_p()


def test_it_tells_the_driver_what_the_python_runner_does(made: Any, stub: Stub) -> None:
    bundle, _, _ = made
    model = zoo.network(MIXED)
    feeds, expected = zoo.feeds(model), zoo.reference(model, zoo.feeds(model))
    library = Library(bundle.path / "cuda" / "libmixed_cuda.so")
    assert library.c.mixed_cuda_input_bytes(0) == feeds["x"].nbytes and library.c.mixed_cuda_input_bytes(1) == 0
    assert library.create() == 0, library.message
    outputs = {name: np.zeros_like(value) for name, value in expected.items()}
    assert library.run(feeds, outputs) == 0, library.message
    stub.check_errors()
    zoo.assert_same(outputs, expected)
    for value in outputs.values():
        value[...] = 0
    assert library.c.mixed_cuda_capture(library.net) == 0
    assert library.run(feeds, outputs) == 0
    assert "cuGraphLaunch" in stub.log
    zoo.assert_same(outputs, expected)
    library.destroy()
    stub.check()
    by_library = [line for line in stub.log if line.startswith("cuLaunchKernel")]

    stub.library.stub_reset()
    stub.computing(made[1])
    engine = open_engine(target_of(bundle.path, "cuda"))
    engine.run(feeds)
    engine.close()
    stub.check()
    by_runner = [line for line in stub.log if line.startswith("cuLaunchKernel")]
    # symbol, grid, block, shared memory, and how far every pointer is from the end of its memory
    assert by_library == by_runner and len(by_library) > 5


def test_device_memory_of_the_caller(made: Any, stub: Stub) -> None:
    """`enqueue`: pointers on the device, nothing is copied, nobody waits."""
    model = zoo.network(MIXED)
    feeds, expected = zoo.feeds(model), zoo.reference(model, zoo.feeds(model))
    library = Library(made[0].path / "cuda" / "libmixed_cuda.so")
    assert library.create() == 0
    before = len(stub.log)

    def place(array: Array) -> int:
        pointer = ctypes.c_uint64()
        assert stub.library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)) == 0
        ctypes.memmove(pointer.value, array.ctypes.data, array.nbytes)
        return pointer.value

    pointers = [place(a) for a in (*feeds.values(), *(np.zeros_like(v) for v in expected.values()))]
    inputs, outputs = (ctypes.c_uint64 * 1)(pointers[0]), (ctypes.c_uint64 * 2)(*pointers[1:])
    assert library.c.mixed_cuda_enqueue(library.net, inputs, outputs, None) == 0
    assert not any("DtoH" in line or "Synchronize" in line for line in stub.log[before:])
    for pointer, value in zip(pointers[1:], expected.values(), strict=True):
        got = np.frombuffer((ctypes.c_uint8 * value.nbytes).from_address(pointer), value.dtype).reshape(value.shape)
        np.testing.assert_allclose(got, value, atol=1e-4 * np.ptp(value))
    for pointer in pointers:
        stub.library.cuMemFree_v2(ctypes.c_uint64(pointer))
    library.destroy()
    stub.check()


def test_which_image(made: Any, stub: Stub) -> None:
    """The bundle has a cubin and PTX for sm_80."""
    path = made[0].path / "cuda" / "libmixed_cuda.so"
    for compute, expected in (((8, 0), "cubin"), ((8, 9), "cubin"), ((9, 0), "ptx"), ((12, 0), "ptx")):
        stub.library.stub_reset()
        stub.library.stub_compute(*compute)
        library = Library(path)
        assert library.create() == 0
        assert f"cuModuleLoadData {expected}" in stub.log
        library.destroy()
    stub.library.stub_compute(7, 5)
    library = Library(path)
    assert library.create() == NO_CODE and "sm_75" in library.message
    library.destroy()
    stub.check()


def test_errors_are_told_and_leave_nothing(made: Any, stub: Stub, tmp_path: Path) -> None:
    path = made[0].path / "cuda" / "libmixed_cuda.so"
    library = Library(path)
    assert library.create(device=1) == NO_DEVICE
    library.destroy()
    calls = 0
    while True:  # every call of the driver that create and one run make, failing in turn
        calls += 1
        stub.library.stub_reset()
        stub.library.stub_fail_after(calls)
        library = Library(path)
        code = library.create()
        if code == 0:
            feeds = zoo.feeds(zoo.network(MIXED))
            outputs = {k: np.zeros(v, np.float32) for k, v in (("y", (2, 10)), ("f", (1, 32, 10, 10)))}
            code = library.run(feeds, outputs)
            if code == 0:
                break
        assert code in (NO_DEVICE, FAILED)
        assert library.message
        library.destroy()
        stub.check()
    assert calls > 20
    library.destroy()
    os.environ["SPA_LIBCUDA"] = str(tmp_path / "none.so")
    library = Library(path)
    assert library.create() == NO_DRIVER and "none.so" in library.message
    library.destroy()
    library.c.mixed_cuda_destroy(None)


def test_it_builds_with_the_systems_compiler(made: Any, tmp_path: Path) -> None:
    folder = made[0].path / "cuda"
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fPIC", "-shared", f"-Wa,-I{folder}"]
    run([compiler(), *flags, str(folder / "mixed_cuda.cpp"), "-o", "libmixed.so", "-ldl"], tmp_path)
    header = "#include <mixed.h>\nint main(void) { return MIXED_CUDA_INPUTS - 1; }\n"
    (tmp_path / "main.c").write_text(header)
    run([compiler(), "-x", "c", "-std=c99", "-pedantic", "-Werror", f"-I{folder}", "main.c", "-o", "main"], tmp_path)
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", "libmixed.so"], cwd=tmp_path, capture_output=True, text=True
    )
    names = {line.split()[-1] for line in exported.stdout.splitlines()}
    assert exported.returncode or {n for n in names if not n.startswith("_")} == {
        f"mixed_cuda_{f}"
        for f in ("create", "run", "enqueue", "capture", "message", "destroy", "input_bytes", "output_bytes")
    }


def test_it_builds_and_runs_with_cmake(made: Any, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    compiler()
    folder = made[0].path / "cuda"
    run(["cmake", "-S", str(folder), "-B", str(tmp_path)], tmp_path)
    run(["cmake", "--build", str(tmp_path)], tmp_path)
    environment = {**os.environ, "SPA_LIBCUDA": str(made[2])}
    done = subprocess.run([tmp_path / "mixed_example"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "graph:" in done.stdout
    environment["SPA_LIBCUDA"] = str(tmp_path / "none.so")
    done = subprocess.run([tmp_path / "mixed_example"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "no CUDA driver" in done.stderr
