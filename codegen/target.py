"""The targets: what TVM and the linker need to know of each. One row per target; nothing else lists them."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from spa.errors import UsageError
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


ARM = Target("arm", "aarch64-linux-gnu", "", ("+neon",), "aarch64-linux-gnu.2.17", 4, ".so")
WASM = Target("wasm", "wasm32-unknown-unknown", "", ("+simd128",), "wasm32-freestanding", 4, ".wasm")
NAMES = ("host", "arm", "wasm")


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


def resolve(name: str, host_level: str | None = None) -> Target:
    """The target of that name; raises `UsageError` with the names there are."""
    if name == "host":
        return host(host_level)
    for target in (ARM, WASM):
        if target.name == name:
            return target
    raise UsageError(f"no such target: {name}", hint="one of " + ", ".join(NAMES))
