"""From an object of kernels to artifacts: C glue from a template, then zig as compiler and linker for every target."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import spa.runtime
from spa._version import __version__
from spa.codegen.plan_memory import ALIGNMENT, Layout, align
from spa.codegen.program import C_TYPE, Program, Ref, Tensor
from spa.codegen.target import Target
from spa.errors import SpaError
from spa.runtime.toolchain import run_zig

TEMPLATES = Path(spa.runtime.__path__[0])
HEADER_BYTES = ALIGNMENT  # of an instance, before its arena
EXPORTS = ("instance_bytes", "arena_bytes", "input_bytes", "output_bytes", "init", "run", "steps", "run_step")
THREADS = ("set_threads",)  # more, where there are threads
WASM_THREADS = ("pool_bytes", "pool", "join", "end")  # there a loader starts them
THREADED = "threads.c"  # natively the only source that needs more than a compiler: pthreads
MAX_MEMORY = (1 << 32) - (1 << 16)  # bytes that a module of 32 bits may ever ask for: a loader asks for less
KEYWORDS = frozenset(  # of C and C++
    """
    alignas alignof and asm auto bool break case catch char class const constexpr continue default delete do
    double else enum explicit export extern false float for friend goto if inline int long main namespace new not
    nullptr operator or private protected public register restrict return short signed sizeof static struct switch
    template this throw true try typedef typename union unsigned using virtual void volatile while xor
    """.split()  # noqa: SIM905  # a list takes sixty lines
)


@dataclass(frozen=True)
class Glue:
    """Generated sources of one network. `instance_bytes`: memory of an instance; `own_bytes`: and of each more thread."""

    header: str
    sources: Mapping[str, str]
    weights: bytes
    instance_bytes: int
    own_bytes: int


def c_name(name: str) -> str:
    """A model's name as a C identifier.

    >>> c_name("MobileNet-v2 1.0"), c_name("3d"), c_name("class"), c_name("")
    ('MobileNet_v2_1_0', 'm3d', 'class_model', 'model')
    """
    clean = re.sub(r"[^A-Za-z0-9]+", "_", name.encode("ascii", "ignore").decode()).strip("_") or "model"
    clean = "m" + clean if clean[0].isdigit() else clean
    return (clean + "_model" if clean in KEYWORDS else clean)[:64]


def _checked(arguments: list[str], directory: Path) -> None:
    done = run_zig(arguments, directory)
    if done.returncode:
        raise SpaError(
            f"zig {arguments[0]} failed: {done.stderr.strip()[-600:]}", "link", "this is a bug of spa: please report it"
        )


def _docs(tensors: tuple[Tensor, ...]) -> str:
    safe = [re.sub(r"[^\w.:\-/ ]", "?", t.name) for t in tensors]  # a name must not end the comment
    safe = [s.replace("*/", "?/").replace("/*", "/?") for s in safe]
    return "\n".join(
        f" *   {i}: {s}: {t.dtype} {list(t.shape)} ({C_TYPE[t.dtype]}, {t.nbytes} bytes)"
        for i, (t, s) in enumerate(zip(tensors, safe, strict=True))
    )


def generate(
    name: str,
    title: str,
    program: Program,
    layout: Layout,
    symbols: Mapping[str, str],
    magic: int,
    target: Target,
    teams: Mapping[str, tuple[int, int]],
) -> Glue:
    """C header, sources and weights of a planned network; `name` is a C identifier, `symbols` names the kernels. `teams`:
    those that all threads run together, and where in its scratch what each needs for itself begins, and its bytes."""

    def pointer(ref: Ref) -> str:
        if ref.kind == "input":
            return f"inputs[{ref.index}]"
        if ref.kind == "const":
            return f"weights + {layout.consts[ref.index]}"
        if ref.index in layout.direct:
            return f"outputs[{layout.direct[ref.index]}]"
        return f"arena + {layout.values[ref.index]}"

    steps, declared = [], {}
    for call, scratch in zip(program.calls, layout.scratch, strict=True):
        arguments = [pointer(arg) for arg in call.args] + [f"arena + {scratch}"]
        types = ["const void *"] * len(arguments)
        symbol, team = symbols[call.kernel], teams.get(call.kernel)
        if team is not None:
            arguments += [f"OWN({scratch + team[0]})", "team->task", "team->tasks", "team"]
            types += ["const void *", "int32_t", "int32_t", "const void *"]
        declared[symbol] = f"extern int32_t {symbol}({', '.join(types)});"
        done = f"code |= {symbol}({', '.join(arguments)});"
        steps.append(done if team is not None else _alone(name, done))
    for ref, output in layout.copies:
        size = program.outputs[output].nbytes
        steps.append(_alone(name, f"__builtin_memcpy(outputs[{output}], {pointer(ref)}, {size});"))
    fields: dict[str, Any] = {
        "name": name,
        "NAME": name.upper(),
        "title": re.sub(r"[^\w.\- ]", "?", title),
        "version": __version__,
        "instance": f"{name}_instance",
        "header": f"{name}.h",
        "header_bytes": HEADER_BYTES,
        "magic": f"0x{magic:016x}",
        "weights": f"{name}__weights",
        "declarations": "\n".join(declared.values()),
        "calls": "\n".join(
            f"        case {i}:\n            {step}\n            break;" for i, step in enumerate(steps)
        ),
        "steps": len(steps),
        "own_bytes": own_bytes(teams),
        "and_threads": "" if target.is_wasm else f", and pthreads for {name}_set_threads",
        "or_threads": ", or in several" if target.has_threads else "",
        "inputs": len(program.inputs),
        "outputs": len(program.outputs),
        "input_bytes": ", ".join(str(t.nbytes) for t in program.inputs) or "0",
        "output_bytes": ", ".join(str(t.nbytes) for t in program.outputs),
        "input_docs": _docs(program.inputs) or " *   none",
        "output_docs": _docs(program.outputs),
        "arena_bytes": layout.arena_bytes,
        "instance_bytes": HEADER_BYTES + layout.arena_bytes,
    }
    blob = bytearray(layout.weight_bytes)
    for const, offset in zip(program.consts, layout.consts, strict=True):
        raw = np.ascontiguousarray(const).tobytes()
        blob[offset : offset + len(raw)] = raw

    def filled(file: str, folder: str = "native") -> str:
        return Template((TEMPLATES / folder / file).read_text()).substitute(fields)

    sources = {file: filled(file) for file in ("team.h", "model.c")}
    fields["threads"] = ""
    if target.has_threads:
        folder = "wasm" if target.is_wasm else "native"
        fields["threads"], sources[THREADED] = filled("threads.h", folder), filled(THREADED, folder)
    weights = bytes(blob) or bytes(align(1))
    return Glue(filled("model.h"), sources, weights, fields["instance_bytes"], fields["own_bytes"])


def own_bytes(teams: Mapping[str, tuple[int, int]]) -> int:
    """Scratch that each thread but the first needs for itself."""
    return align(max([1, *(size for _, size in teams.values())]))


def _alone(name: str, statement: str) -> str:
    """For the first thread; the others wait."""
    return f"if (!team->task) {statement}\n            {name}__barrier(team);"


def link(name: str, glue: Glue, kernels: bytes, target: Target, directory: Path) -> dict[str, bytes]:
    """The native files of a target: name -> content. Works inside `directory`, which must be empty."""
    (directory / f"{name}.h").write_text(glue.header)
    for file, source in glue.sources.items():
        (directory / file).write_text(source)
    (directory / "weights.bin").write_bytes(glue.weights)
    fields = {"alignment": ALIGNMENT, "weights": f"{name}__weights"}
    (directory / "weights.c").write_text(Template((TEMPLATES / "native" / "weights.c").read_text()).substitute(fields))
    flags = ["-O2", "-g0", "-std=gnu23", "-fno-sanitize=all", "-fno-stack-protector"]
    flags += _machine(target) if target.is_wasm else ["-fPIC"]
    objects = []
    for file in (*(f for f in glue.sources if f.endswith(".c")), "weights.c"):
        hosted = [] if file == THREADED and not target.is_wasm else ["-ffreestanding"]
        objects.append(file.replace(".c", ".o"))
        _checked(["cc", "-target", target.zig, *flags, *hosted, "-c", file, "-o", objects[-1]], directory)
    if kernels:
        (directory / "kernels.o").write_bytes(kernels)
        objects.append("kernels.o")
    more = () if not target.has_threads else WASM_THREADS if target.is_wasm else THREADS
    exports = [f"{name}_{e}" for e in (*EXPORTS, *more)]
    if target.is_wasm:
        return {f"{name}.wasm": _wasm(objects, exports, target, directory)}
    files = {f"lib{name}{target.library}": _shared(name, objects, exports, target, directory)}
    if target.name != "host":  # boards link statically
        files[f"lib{name}.a"] = _archive(name, objects, directory)
    files[f"{name}.h"] = glue.header.encode()
    return files


def _shared(name: str, objects: list[str], exports: list[str], target: Target, directory: Path) -> bytes:
    out = f"lib{name}{target.library}"
    command = ["cc", "-target", target.zig, "-O2", "-shared", "-fPIC", "-s", *objects, "-o", out, "-lm", "-lpthread"]
    if target.library == ".so":
        names = "".join(f"{e}; " for e in exports)
        (directory / "exports.map").write_text(f"{{ global: {names}local: *; }};\n")
        command += [
            "-Wl,--version-script=exports.map",
            f"-Wl,-soname,{out}",
            "-Wl,--build-id=none",
            "-Wl,--gc-sections",
        ]
    _checked(command, directory)
    return (directory / out).read_bytes()


def _archive(name: str, objects: list[str], directory: Path) -> bytes:
    """One object per network, stripped of debug information, in an archive without times and owners; a second one is
    only linked (and only then needs pthreads) where threads are asked for."""
    threads = THREADED.replace(".c", ".o")
    whole = [o for o in objects if o != threads]
    for out, parts in ((f"{name}.o", whole), (f"{name}_threads.o", [threads])):
        _checked(["ld.lld", "-m", "aarch64linux", "-r", "-S", *parts, "-o", out], directory)
    _checked(["ar", "rcsD", f"lib{name}.a", f"{name}.o", f"{name}_threads.o"], directory)
    return (directory / f"lib{name}.a").read_bytes()


def _machine(target: Target) -> list[str]:
    return [f"-m{feature.removeprefix('+')}" for feature in target.features]


def _wasm(objects: list[str], exports: list[str], target: Target, directory: Path) -> bytes:
    """A module without imports, but for the memory where threads share it. The kernels may need more of libm than the
    compiler's own routines: then WASI's."""
    shared = ["--import-memory", "--export-memory", "--shared-memory", f"--max-memory={MAX_MEMORY}"]
    common = [
        "-O2",
        *_machine(target),
        "-s",
        *objects,
        "-o",
        "out.wasm",
        *(f"-Wl,--export={e}" for e in [*exports, "__heap_base"]),
        "-Wl,-z,stack-size=65536",
    ]
    if target.has_threads:
        common += [f"-Wl,{option}" for option in (*shared, "--export=__stack_pointer")]
    done = run_zig(["cc", "-target", "wasm32-freestanding", "-Wl,--no-entry", *common], directory)
    if done.returncode and "undefined symbol" in done.stderr:
        _checked(["cc", "-target", "wasm32-wasi", "-mexec-model=reactor", *common, "-lm"], directory)
    elif done.returncode:
        raise SpaError(f"zig cc failed: {done.stderr.strip()[-600:]}", "link", "this is a bug of spa: please report it")
    return (directory / "out.wasm").read_bytes()
