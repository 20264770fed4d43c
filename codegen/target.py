"""The targets: what TVM and the linker need to know of each. One row per target; nothing else lists them."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points

from spa.errors import Unsupported, UsageError
from spa.runtime.toolchain import X86_LEVELS, is_aarch64, machine_level


@dataclass(frozen=True)
class Target:
    """`triple`, `cpu`, `features`: what LLVM generates for. `zig`: the target the linker uses.
    `lanes`: float32 per vector register. `library`: suffix of the artifact that runs."""

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    zig: str
    lanes: int
    library: str

    @property
    def is_wasm(self) -> bool:
        return self.triple.startswith("wasm")

    @property
    def has_threads(self) -> bool:
        """Whether threads may share a run."""
        return not self.is_wasm or "+atomics" in self.features


ARM = Target("arm", "aarch64-linux-gnu", "", ("+neon",), "aarch64-linux-gnu.2.17", 4, ".so")
WASM = Target("wasm", "wasm32-unknown-unknown", "", ("+simd128",), "wasm32-freestanding", 4, ".wasm")
RELAXED = ("+relaxed-simd",)  # multiply-add in one instruction
SHARED = ("+atomics", "+bulk-memory")  # memory that workers share
ENTRY_POINTS = "spa.targets"
NAMES = ("host", "arm", "wasm", "cuda")
CUDA_ARCHS = ("sm_80", "sm_90")
PRECISIONS = ("fp16", "bf16", "fp32")


def host(level: str | None = None) -> Target:
    """The machine we run on; `level` names an x86-64 level instead of what this machine has."""
    arm, system = is_aarch64(), platform.system()
    if level is not None and (arm or level not in X86_LEVELS):
        raise UsageError(
            f"no such level of this host: {level}",
            hint="one of " + ", ".join(X86_LEVELS) if not arm else "leave it out",
        )
    library = ".dylib" if system == "Darwin" else ".so"
    if arm:
        triple, zig = ("arm64-apple-macos", "aarch64-macos") if system == "Darwin" else (ARM.triple, ARM.zig)
        return Target("host", triple, "", ("+neon",), zig, 4, library)
    cpu = level or machine_level()
    triple, zig = (
        ("x86_64-apple-macos", "x86_64-macos") if system == "Darwin" else ("x86_64-linux-gnu", "x86_64-linux-gnu.2.17")
    )
    return Target("host", triple, cpu, (), zig, {"x86-64-v4": 16, "x86-64-v3": 8}.get(cpu, 4), library)


def cuda(archs: str | None = None, precision: str | None = None) -> Target:
    """NVIDIA GPUs: `archs` by commas ("sm_80,sm_90"); `precision` of the operands of products on tensor cores. Its
    launcher runs on this machine's kind."""
    names = tuple(a.strip() for a in archs.split(",") if a.strip()) if archs else CUDA_ARCHS
    known = [re.fullmatch(r"sm_(\d{2,3})a?", a) for a in names]
    if not names or any(m is None or int(m[1]) < 80 for m in known):
        raise UsageError(f"no such GPU architecture: {archs}", hint="sm_80 or newer, several by commas: sm_80,sm_90")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"no such precision: {precision}", hint="one of " + ", ".join(PRECISIONS))
    ordered = sorted(set(names), key=lambda a: (int(re.sub(r"\D", "", a)), a))
    return Target(
        "cuda", "nvptx64-nvidia-cuda", ",".join(ordered), (precision or PRECISIONS[0],), host().zig, 32, ".so"
    )


def resolve(
    name: str,
    host_level: str | None = None,
    cuda_archs: str | None = None,
    precision: str | None = None,
    relaxed_simd: bool = False,
    wasm_threads: bool = False,
) -> Target:
    """The target of that name. Raises `UsageError` with the names there are, `Unsupported` for a host we have no linker for."""
    if name == "host" and platform.system() not in ("Linux", "Darwin"):
        raise Unsupported(f"no libraries for {platform.system()} yet", "target 'host'", "--target wasm, or WSL")
    if name == "host":
        return host(host_level)
    if name == "cuda":
        return cuda(cuda_archs, precision)
    if name == "wasm":
        more = (RELAXED if relaxed_simd else ()) + (SHARED if wasm_threads else ())
        return replace(WASM, features=WASM.features + more)
    if name == "arm":
        return ARM
    points = {p.name: p for p in entry_points(group=ENTRY_POINTS)}
    if name in points:
        return outside(points[name])
    raise UsageError(f"no such target: {name}", hint="one of " + ", ".join([*NAMES, *points]))


def names() -> tuple[str, ...]:
    """Ours, then those of entry points. A name of ours cannot be taken over."""
    return (*NAMES, *(p.name for p in entry_points(group=ENTRY_POINTS) if p.name not in NAMES))


def outside(point: EntryPoint) -> Target:
    """The target of an entry point: a `Target` of that name. Raises `UsageError` for anything else."""
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the target '{point.name}' cannot be imported: {error}", point.value) from error
    if not isinstance(found, Target) or found.name != point.name:
        hint = "a Target whose name is that of the entry point"
        raise UsageError(f"the target '{point.name}' is {found!r:.100}", point.value, hint)
    return found
