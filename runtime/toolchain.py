"""The tools we need beside Python packages: where they are and how to install them; our cache folder; this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from spa.errors import MissingTool

INSTALL = {
    "zig": "pip install ziglang",
    "tvm": "pip install apache-tvm==0.27.0.post1",
    "wasmtime": "pip install wasmtime",
    "qemu-aarch64": "apt-get install qemu-user-static",
    "node": "apt-get install nodejs",
    "npm": "apt-get install npm",
    "chromium": "apt-get install chromium, or set SPA_CHROMIUM to the path of Chromium or Chrome",
}
# Other systems, where they differ from Linux: platform.system() -> tool -> how
ELSEWHERE = {
    "Darwin": {
        "qemu-aarch64": "not to be had for macOS: run arm artifacts on a board or in a Linux container",
        "node": "brew install node",
        "npm": "brew install node",
        "chromium": "brew install --cask chromium, or set SPA_CHROMIUM to the path of Chromium or Chrome",
    },
    "Windows": {
        "qemu-aarch64": "not to be had for Windows: run arm artifacts on a board or in WSL",
        "node": "winget install OpenJS.NodeJS.LTS",
        "npm": "winget install OpenJS.NodeJS.LTS",
        "chromium": "not driven on Windows: use WSL",
    },
}
NO_TVM = "not to be had for Intel Macs: compile in a Linux container"
PURPOSE = {
    "zig": "links every target",
    "tvm": "generates the code of every target",
    "wasmtime": "runs wasm artifacts",
    "qemu-aarch64": "runs arm artifacts on other machines",
    "node": "runs wasm artifacts through their ES module",
    "npm": "installs onnxruntime-web for spa bench --against",
    "chromium": "runs wasm artifacts in a page",
}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MODULES = {"tvm": "tvm", "wasmtime": "wasmtime"}


def install(tool: str) -> str:
    """The command that installs a tool on this system, or what to do without it."""
    system = platform.system()
    if tool == "tvm" and system == "Darwin" and not is_aarch64():
        return NO_TVM
    return ELSEWHERE.get(system, {}).get(tool, INSTALL[tool])


def find(tool: str) -> str | None:
    """Where the tool is, or None. Imports nothing."""
    if tool in MODULES:
        spec = importlib.util.find_spec(MODULES[tool])
        return spec.origin if spec else None
    if tool == "zig":
        spec = importlib.util.find_spec("ziglang")
        for folder in (spec and spec.submodule_search_locations) or ():
            binary = Path(folder) / ("zig.exe" if os.name == "nt" else "zig")
            if binary.exists():
                return str(binary)
    if tool == "qemu-aarch64":
        return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if tool == "chromium":
        if os.name == "nt":  # it takes pipes by number there
            return None
        names = (os.environ["SPA_CHROMIUM"],) if os.environ.get("SPA_CHROMIUM") else CHROMIUM
        return next((path for name in names if (path := shutil.which(name))), None)
    return shutil.which(tool)


def need(tool: str) -> str:
    """Where the tool is. Raises `MissingTool` with the command that installs it."""
    found = find(tool)
    if found is None:
        raise MissingTool(f"{tool} is not installed: it {PURPOSE[tool]}", hint=install(tool))
    return found


def run_zig(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run zig in `directory`, with relative paths so that no path gets into an artifact."""
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(directory / ".zig")}
    return subprocess.run(
        [need("zig"), *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def cache_dir() -> Path:
    """`SPA_CACHE_DIR`, else the user's cache folder."""
    chosen = os.environ.get("SPA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        import platformdirs
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spa"
    return Path(platformdirs.user_cache_dir("spa", appauthor=False))


# x86-64 micro-architecture levels, highest first, with the /proc/cpuinfo flags that each adds to the one below
X86_LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
}


@cache
def machine_level() -> str:
    """The highest x86-64 level this machine has; `x86-64` where it has none or says nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if cpuinfo.exists():
        flags = next(
            (set(line.split()) for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), set()
        )
    reached = "x86-64"
    for level in reversed(X86_LEVELS):
        if not X86_LEVELS[level] <= flags:
            break
        reached = level
    return reached


def is_aarch64() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def runs_here(triple: str, cpu: str) -> bool:
    """Whether native code for this triple and x86-64 level runs on this machine."""
    if platform.system() != ("Darwin" if "apple" in triple else "Linux"):
        return False
    if triple.startswith(("aarch64", "arm64")):
        return is_aarch64()
    levels = ["x86-64", *reversed(X86_LEVELS)]
    return not is_aarch64() and (not cpu or (cpu in levels and levels.index(cpu) <= levels.index(machine_level())))
