"""From CUDA C to PTX and cubins: nvcc where there is one (a toolkit, or NVIDIA's packages from PyPI), else NVRTC."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spa.errors import SpaError

INSTALL = "pip install 'spa-onnx[cuda]' (nvcc without a toolkit), or the CUDA toolkit of your system"
FLAGS = ("-O3", "-std=c++17")


@dataclass(frozen=True)
class Resources:
    """What ptxas says of a kernel: registers of a thread; bytes of its stack, spilled, of static shared memory."""

    registers: int
    stack: int
    spills: int
    shared: int


@dataclass(frozen=True, eq=False)
class Image:
    """Code for one architecture. `resources` by symbol; empty where the compiler does not say."""

    arch: str
    ptx: bytes
    cubin: bytes
    resources: Mapping[str, Resources]


@cache
def find_nvcc() -> str | None:
    """`SPA_NVCC`, `CUDA_HOME` or `CUDA_PATH`, the PATH, NVIDIA's packages, the usual folder."""
    if "SPA_NVCC" in os.environ:
        return shutil.which(os.environ["SPA_NVCC"])
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    candidates = [str(f / "nvcc") for f in folders] + [shutil.which("nvcc") or ""]
    candidates += [str(f / "bin" / "nvcc") for f in _packages()] + ["/usr/local/cuda/bin/nvcc"]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def _packages() -> list[Path]:
    """Folders of NVIDIA's packages from PyPI that look like a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    return [f for root in roots for f in sorted(root.glob("cu*")) if f.is_dir()]


@cache
def find_nvrtc() -> str | None:
    """The library of NVIDIA's run-time compiler, where no other is asked for."""
    if "SPA_NVCC" in os.environ:
        return None
    for folder in [*_packages(), Path("/usr/local/cuda")]:
        for found in sorted(folder.glob("lib*/libnvrtc.so*")):
            if "builtins" not in found.name and "alt" not in found.name:
                return str(found)
    return None


@cache
def identity() -> str:
    """Which compiler it is: part of what an artifact depends on."""
    nvcc = find_nvcc()
    if nvcc is None:
        return f"nvrtc {find_nvrtc()}" if find_nvrtc() else ""
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    return next((line for line in done.stdout.splitlines() if "release" in line), nvcc)


def compile_images(source: str, archs: Sequence[str], directory: Path) -> tuple[Image, ...] | None:
    """Images for each architecture, or None where there is no compiler. Raises `SpaError` where it refuses the code."""
    if find_nvcc() is not None:
        return tuple(_nvcc(source, arch, directory) for arch in archs)
    if find_nvrtc() is not None:
        return tuple(by_nvrtc(source, arch) for arch in archs)
    return None


def _nvcc(source: str, arch: str, directory: Path) -> Image:
    """In `directory`, with relative paths so that no path gets into an artifact."""
    (directory / "kernels.cu").write_text(source)
    command = [
        str(find_nvcc()),
        "-cubin",
        "-keep",
        *_architecture(arch),
        *FLAGS,
        "-w",
        "-Xptxas",
        "-v",
        "kernels.cu",
        "-o",
        "k.cubin",
    ]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _refused(arch, done.stderr)
    ptx, cubin = (
        (directory / name).read_bytes() for name in ("kernels.ptx", "k.cubin")
    )  # kept on the way to the cubin
    return Image(arch, ptx, cubin, resources(done.stderr))


def _architecture(arch: str) -> list[str]:
    """Options of nvcc. For architectures whose code runs on no other card the short form is not enough.

    >>> _architecture("sm_90a")
    ['-gencode=arch=compute_90a,code=sm_90a']
    """
    return [f"-gencode=arch=compute_{arch[3:]},code={arch}"] if arch.endswith("a") else [f"-arch={arch}"]


def _refused(arch: str, said: str) -> SpaError:
    first = next((line for line in said.splitlines() if "error" in line or "fatal" in line), said.strip()[:300])
    hint = "leave this architecture out of --cuda-arch" if "gpu-architecture" in said else "this is a bug of spa"
    return SpaError(f"the CUDA compiler refuses the kernels: {first[:300]}", arch, hint)


def resources(said: str) -> dict[str, Resources]:
    """From the words of `ptxas -v`.

    >>> resources('''ptxas info    : Compiling entry function 'k' for 'sm_80'
    ... ptxas info    : Function properties for k
    ...     0 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
    ... ptxas info    : Used 54 registers, used 1 barriers, 16 bytes smem, 384 bytes cmem[0]''')
    {'k': Resources(registers=54, stack=0, spills=4, shared=16)}
    """
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        stack, stores, loads = (
            _number(part, rf"(\d+) bytes {what}") for what in ("stack", "spill stores", "spill loads")
        )
        found[name] = Resources(
            _number(part, r"Used (\d+) registers"), stack, stores + loads, _number(part, r"(\d+) bytes smem")
        )
    return found


def _number(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


# NVRTC -----------------------------------------------------------------------------------------------------------


def by_nvrtc(source: str, arch: str) -> Image:
    """The same from the run-time compiler. It says nothing of resources."""
    library = ctypes.CDLL(str(find_nvrtc()))
    folders = [f / "include" / part for f in [*_packages(), Path("/usr/local/cuda")] for part in ("", "cccl")]
    includes = [f"-I{folder}" for folder in folders if folder.is_dir()]
    program = ctypes.c_void_p()
    _checked(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None), arch)
    options = [f"--gpu-architecture={arch}", "--std=c++17", *includes]
    table = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    if library.nvrtcCompileProgram(program, len(options), table):
        raise _refused(arch, _take(library, program, "ProgramLog").decode(errors="replace"))
    ptx, cubin = _take(library, program, "PTX"), _take(library, program, "CUBIN")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return Image(arch, ptx.rstrip(b"\0"), cubin, {})


def _take(library: Any, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, data)
    return data.raw


def _checked(code: int, arch: str) -> None:
    if code:
        raise SpaError(f"NVRTC failed with code {code}", arch, "reinstall nvidia-cuda-nvrtc")


def entries(source: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(symbol, types of its parameters) of every kernel in CUDA C."""
    for match in re.finditer(r'extern "C" __global__ void[^(]*(?:\([^)]*\) )?(\w+)\(([^)]*)\)\s*\{', source):
        parameters = [p.strip() for p in match[2].split(",") if p.strip()]
        yield match[1], tuple(p.rsplit(" ", 1)[0] for p in parameters)
