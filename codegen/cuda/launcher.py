"""The C++ side of an artifact: header, launcher with its tables, CMake file, example; and the library, built with zig."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from spa._version import __version__
from spa.codegen.cuda.launch_table import Place, Table
from spa.codegen.link import TEMPLATES
from spa.codegen.plan_memory import Layout
from spa.codegen.program import C_TYPE, Program, Tensor
from spa.codegen.target import Target
from spa.errors import SpaError
from spa.runtime.toolchain import run_zig

FILES = {
    "model.h": "{name}.h",
    "launcher.cpp": "{name}_cuda.cpp",
    "CMakeLists.txt": "CMakeLists.txt",
    "example.cpp": "example.cpp",
}


def generate(
    name: str, title: str, program: Program, layout: Layout, table: Table, archs: Sequence[str]
) -> dict[str, bytes]:
    """The sources; `archs` those that there are images for."""
    arguments: list[str] = []
    launches = []
    for entry in table.entries:
        sizes = ", ".join("{" + ", ".join(map(str, size)) + "}" for size in (entry.launch.grid, entry.launch.block))
        first, count = len(arguments), len(entry.arguments)
        launches.append(f'    {{"{entry.launch.symbol}", {sizes}, {entry.launch.shared}, {first}, {count}}},')
        arguments += [f"    {_argument(place)}," for place in entry.arguments]
    embeds = [f'EMBED({name}__cuda_weights, "{name}.weights.bin")']
    for arch in archs:
        embeds += [f'EMBED({name}__{arch}_{kind}, "{name}.{arch}.{kind}")' for kind in ("cubin", "ptx")]
    images = [
        f"    {{{major}, {minor}, {str(arch.endswith('a')).lower()}, {name}__{arch}_cubin, {name}__{arch}_ptx}},"
        for arch, major, minor in map(_version, archs)
    ]
    fields = {
        "name": name,
        "NAME": name.upper(),
        "title": re.sub(r"[^\w.\- ]", "?", title),
        "version": __version__,
        "inputs": len(program.inputs),
        "outputs": len(program.outputs),
        "input_docs": describe(program.inputs) or " *   none",
        "output_docs": describe(program.outputs),
        "input_bytes": ", ".join(str(t.nbytes) for t in program.inputs) or "0",
        "output_bytes": ", ".join(str(t.nbytes) for t in program.outputs),
        "device_bytes": layout.arena_bytes
        + layout.weight_bytes
        + sum(t.nbytes for t in (*program.inputs, *program.outputs)),
        "weight_bytes": layout.weight_bytes,
        "arena_bytes": layout.arena_bytes,
        "arguments": "\n".join(arguments) or "    {INPUT, 0},",
        "launches": "\n".join(launches) or '    {"", {0, 0, 0}, {0, 0, 0}, 0, 0, 0},',
        "launch_count": len(launches),
        "most_arguments": max((len(e.arguments) for e in table.entries), default=0),
        "copies": "\n".join(f"    {{{_argument(place)}, {output}, {size}}}," for place, output, size in table.copies),
        "embeds": "\n".join(embeds),
        "images": "\n".join(images) or "    {1 << 20, 0, false, 0, 0},",
    }
    folder = TEMPLATES / "cuda"
    return {
        target.format(name=name): Template((folder / source).read_text()).substitute(fields).encode()
        for source, target in FILES.items()
    }


def describe(tensors: Sequence[Tensor]) -> str:
    """Lines of a C comment; a name must not end it."""
    names = [re.sub(r"[^\w.:\- ]", "?", t.name) for t in tensors]
    return "\n".join(
        f" *   {i}: {name}: {t.dtype} {list(t.shape)} ({C_TYPE[t.dtype]}, {t.nbytes} bytes)"
        for i, (t, name) in enumerate(zip(tensors, names, strict=True))
    )


def _argument(place: Place) -> str:
    return f"{{{place.space.upper()}, {place.at}}}"


def _version(arch: str) -> tuple[str, int, int]:
    """sm_90a -> 9, 0"""
    number = int(re.sub(r"\D", "", arch))
    return arch, number // 10, number % 10


def build_library(name: str, files: Mapping[str, bytes], target: Target, directory: Path) -> bytes:
    """`lib<name>_cuda.so`, from these files in an empty `directory`."""
    for path, data in files.items():
        (directory / path).write_bytes(data)
    flags = [
        "-O2",
        "-g0",
        "-std=c++17",
        "-fno-exceptions",
        "-fno-rtti",
        "-fvisibility=hidden",
        "-fno-sanitize=all",
        "-Wa,-I.",
    ]
    out = f"lib{name}_cuda.so"
    command = ["c++", "-target", target.zig, *flags, "-nostdlib++", "-shared", "-fPIC", "-s", f"{name}_cuda.cpp"]
    done = run_zig([*command, "-o", out, f"-Wl,-soname,{out}", "-Wl,--build-id=none", "-ldl"], directory)
    if done.returncode:
        raise SpaError(
            f"zig c++ failed: {done.stderr.strip()[-600:]}", "launcher", "this is a bug of spa: please report it"
        )
    return (directory / out).read_bytes()
