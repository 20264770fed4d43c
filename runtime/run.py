"""Running the artifacts of a bundle: natively, under qemu, in wasmtime, in Node and in Chromium."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spa.errors import Unsupported, UsageError
from spa.runtime.engine import Engine
from spa.runtime.library import Native, Qemu
from spa.runtime.load import Target, target_of
from spa.runtime.module import Node, Wasmtime
from spa.runtime.tensor import Array
from spa.runtime.toolchain import runs_here

ENGINES = {
    "host": ("native",),
    "arm": ("native", "qemu"),
    "wasm": ("wasmtime", "node", "chromium"),
    "cuda": ("driver",),
}


def engines(name: str, triple: str) -> tuple[str, ...]:
    """What runs a target; one from outside is run as ours of the same architecture is."""
    alike = "wasm" if triple.startswith("wasm") else "arm" if triple.startswith("aarch64") else "host"
    return ENGINES.get(name) or ENGINES[alike]


def run(
    bundle: Path,
    feeds: Mapping[str, Array],
    target: str | None = None,
    engine: str | None = None,
    threads: int = 1,
) -> dict[str, Array]:
    """Run a bundle once. Raises `UsageError` for feeds that do not fit, `MissingTool` where nothing can run it."""
    loaded = open_engine(target_of(bundle, target), engine, threads)
    try:
        return loaded.run(feeds)
    finally:
        loaded.close()


def open_engine(target: Target, engine: str | None = None, threads: int = 1, beside: Engine | None = None) -> Engine:
    """Load a target; without `engine`, arm runs natively where it can and under qemu elsewhere, wasm in wasmtime. In
    Chromium it shares the page of the one it is to run `beside`."""
    choices = engines(target.name, target.triple)
    if engine is not None and engine not in choices:
        raise UsageError(f"'{engine}' does not run the target '{target.name}'", hint="one of " + ", ".join(choices))
    if threads < 1:
        raise UsageError(f"no such number of threads: {threads}", hint="--threads 1")
    if target.name == "cuda":
        from spa.runtime.cuda.engine import Cuda

        return Cuda(target)
    if "node" in choices:
        if engine == "chromium":
            from spa.runtime.browser import Chromium

            return Chromium(target, threads, beside.tab if isinstance(beside, Chromium) else None)
        return Node(target, threads) if engine == "node" else Wasmtime(target, threads)
    here = runs_here(target.triple, target.cpu)
    if "qemu" in choices and (engine == "qemu" or (engine is None and not here)):
        return Qemu(target, threads)
    if not here:
        raise Unsupported(
            f"this machine cannot run code for {target.cpu or target.triple}",
            f"target '{target.name}'",
            "compile it on this machine, or for a lower level",
        )
    return Native(target, threads)
