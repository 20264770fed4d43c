"""The CUDA driver through ctypes: as much of it as running an artifact takes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from typing import Any

from spa.errors import MissingTool, SpaError, Unsupported
from spa.runtime.tensor import Array

COMPUTE_MAJOR, COMPUTE_MINOR, MAX_DYNAMIC_SHARED = 75, 76, 8  # of cuDeviceGetAttribute, cuFuncSetAttribute
DEFAULT_SHARED = 48 << 10  # bytes of dynamic shared memory that need no permission
OUT_OF_MEMORY = 2
NON_BLOCKING, THREAD_LOCAL = 1, 1  # of cuStreamCreate, cuStreamBeginCapture
INSTALL = "run it on a machine with an NVIDIA GPU and its driver; --target host runs here"

Handle = ctypes.c_void_p
Pointer = ctypes.c_uint64


def library() -> Any:
    """libcuda, or what `SPA_LIBCUDA` names instead. Raises `MissingTool` where there is none."""
    usual = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    name = os.environ.get("SPA_LIBCUDA", usual)
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise MissingTool("there is no CUDA driver on this machine", str(error), INSTALL) from error


class Driver:
    """One device, its primary context current in the calling thread."""

    def __init__(self, device: int = 0) -> None:
        self._cuda = library()
        if self._cuda.cuInit(0):
            raise MissingTool("the CUDA driver finds no GPU", "cuInit", INSTALL)
        self.device = ctypes.c_int()
        if self._cuda.cuDeviceGet(ctypes.byref(self.device), device):
            raise MissingTool(f"there is no GPU number {device}", "cuDeviceGet", INSTALL)
        self._context = Handle()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self.device)
        self.call("cuCtxSetCurrent", self._context)

    def call(self, function: str, *arguments: Any) -> None:
        """Raises `SpaError` with the driver's words where the call fails."""
        code = getattr(self._cuda, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            said = (text.value or b"unknown error").decode(errors="replace")
            hint = "a smaller batch, or another GPU" if code == OUT_OF_MEMORY else "compute-sanitizer says more"
            raise SpaError(f"the CUDA driver refused {function}: {said}", "runtime", hint)

    @property
    def name(self) -> str:
        """Of the card."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, 256, self.device)
        return text.value.decode(errors="replace")

    @property
    def version(self) -> str:
        """Of CUDA that the driver knows: 13.0."""
        number = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    @property
    def compute(self) -> tuple[int, int]:
        """Compute capability, major and minor."""
        return self._attribute(COMPUTE_MAJOR), self._attribute(COMPUTE_MINOR)

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), which, self.device)
        return value.value

    def load(self, image: bytes) -> Handle:
        """A module from a cubin, or from PTX, which the driver compiles."""
        module = Handle()
        self.call("cuModuleLoadData", ctypes.byref(module), image + b"\0")
        return module

    def unload(self, module: Handle) -> None:
        self.call("cuModuleUnload", module)

    def function(self, module: Handle, symbol: str, shared: int) -> Handle:
        """A kernel that may use `shared` bytes of dynamic shared memory."""
        found = Handle()
        self.call("cuModuleGetFunction", ctypes.byref(found), module, symbol.encode())
        if shared > DEFAULT_SHARED:
            self.call("cuFuncSetAttribute", found, MAX_DYNAMIC_SHARED, shared)
        return found

    def allocate(self, size: int) -> int:
        pointer = Pointer()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value

    def free(self, pointer: int) -> None:
        self.call("cuMemFree_v2", Pointer(pointer))

    def upload(self, to: int, array: Array, stream: Handle) -> None:
        source = ctypes.c_void_p(array.ctypes.data)
        self.call("cuMemcpyHtoDAsync_v2", Pointer(to), source, ctypes.c_size_t(array.nbytes), stream)

    def download(self, array: Array, source: int, stream: Handle) -> None:
        target = ctypes.c_void_p(array.ctypes.data)
        self.call("cuMemcpyDtoHAsync_v2", target, Pointer(source), ctypes.c_size_t(array.nbytes), stream)

    def copy(self, to: int, source: int, size: int, stream: Handle) -> None:
        self.call("cuMemcpyDtoDAsync_v2", Pointer(to), Pointer(source), ctypes.c_size_t(size), stream)

    def stream(self) -> Handle:
        made = Handle()
        self.call("cuStreamCreate", ctypes.byref(made), NON_BLOCKING)
        return made

    def synchronize(self, stream: Handle) -> None:
        self.call("cuStreamSynchronize", stream)

    def launch(
        self,
        function: Handle,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        stream: Handle,
        pointers: Sequence[int],
    ) -> None:
        values = [Pointer(p) for p in pointers]
        table = (ctypes.c_void_p * max(len(values), 1))(*(ctypes.addressof(v) for v in values))
        self.call("cuLaunchKernel", function, *grid, *block, shared, stream, table, None)

    def begin_capture(self, stream: Handle) -> None:
        self.call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)

    def end_capture(self, stream: Handle) -> Handle:
        """What was captured, ready to replay."""
        graph, ready = Handle(), Handle()
        self.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        self.call("cuGraphDestroy", graph)
        return ready

    def replay(self, graph: Handle, stream: Handle) -> None:
        self.call("cuGraphLaunch", graph, stream)

    def event(self) -> Handle:
        made = Handle()
        self.call("cuEventCreate", ctypes.byref(made), 0)
        return made

    def record(self, event: Handle, stream: Handle) -> None:
        self.call("cuEventRecord", event, stream)

    def seconds(self, begin: Handle, end: Handle) -> float:
        """Between two events that have passed."""
        elapsed = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(elapsed), begin, end)
        return elapsed.value / 1e3

    def close(self) -> None:
        self.call("cuDevicePrimaryCtxRelease_v2", self.device)


def choose_image(images: Sequence[dict[str, Any]], compute: tuple[int, int]) -> tuple[str, str]:
    """(kind, file) of the image for a card: the cubin of the same major and the nearest lower minor version, else the
    newest PTX that is not newer than the card. What was compiled for sm_90a and the like runs on that card only. Raises
    `Unsupported`."""

    def version(image: dict[str, Any]) -> tuple[int, int]:
        number = int("".join(c for c in image["arch"] if c.isdigit()))
        return number // 10, number % 10

    def runs(image: dict[str, Any]) -> bool:
        return version(image) == compute if image["arch"].endswith("a") else version(image) <= compute

    older = sorted((i for i in images if runs(i)), key=lambda i: (version(i), i["arch"]))
    same = [i for i in older if version(i)[0] == compute[0]]
    if same:
        return "cubin", str(same[-1]["cubin"])
    if older:
        return "ptx", str(older[-1]["ptx"])
    card = f"sm_{compute[0]}{compute[1]}"
    raise Unsupported(
        f"nothing in the bundle runs on this GPU ({card})", "target 'cuda'", f"compile with --cuda-arch {card}"
    )
