"""Instruction sets as kernels see them: one row each. The same TIR serves all; only these numbers differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from spa.codegen import calibration
from spa.codegen.target import Target

SCATTERED = 1.25  # of loads from the second cache, measured on sparse 3x3 convolutions with AVX-512


@dataclass(frozen=True)
class Isa:
    """`lanes`: float32 per vector. `registers`: vector registers a tile may fill. `fma`, `load`, `splat`: cycles of
    throughput that a vector multiply-add, a vector load and a scalar spread over a vector take (for comparing tiles
    with each other, not for times). `far`: the load of a vector that is in
    the second cache only. `latency`: cycles from one multiply-add to the next on the same register.
    `l1`, `l2`: bytes of the caches, as far as one may count on them. `ahead`: elements before their use at which weights are
    asked for; 0: the machine does so by itself, or cannot be asked. `sums`: vectors that a tile may add up at once, where that is
    fewer than registers would hold."""

    name: str
    lanes: int
    registers: int
    fma: float
    load: float
    splat: float
    far: float
    latency: float
    l1: int
    l2: int
    ahead: int = 0
    sums: int = 64

    @property
    def scattered(self) -> Isa:
        """For pixels that are read where they lie: rows of different channels push each other out of the first cache,
        and vectors reach into a second line of it."""
        each = SCATTERED * self.far
        return replace(self, load=each, far=each)


AVX512 = Isa("avx512", 16, 32, 0.5, 0.5, 0.5, 1.3, 4, 48 << 10, 1 << 20, ahead=2048)
AVX2 = Isa("avx2", 8, 16, 0.5, 0.5, 0.5, 1.0, 4, 32 << 10, 256 << 10, ahead=2048)
# without fused multiply-adds a product needs a register of its own before it is added, and only adding makes one wait
SSE = Isa("sse", 4, 15, 1.0, 0.5, 1.0, 0.6, 4, 32 << 10, 256 << 10, ahead=2048)
NEON = Isa("neon", 4, 32, 0.5, 0.5, 0.5, 0.8, 4, 32 << 10, 256 << 10)
# an engine's own code for sixteen registers, of which it keeps some; spreading a number is what costs there. From nine sums on
# V8 keeps some of them in memory: twice the time
SIMD128 = Isa("simd128", 4, 14, 1.0, 0.5, 3.0, 0.6, 8, 32 << 10, 256 << 10, sums=8)
RELAXED_SIMD = replace(SIMD128, name="relaxed-simd", fma=0.5, latency=4)

LEVELS = {"x86-64-v4": AVX512, "x86-64-v3": AVX2}


def isa_of(target: Target) -> Isa:
    """The row of a target, with what was measured on this machine for its instruction set (`spa bench --calibrate`)."""
    row = shipped_isa(target)
    measured: dict[str, Any] = {**calibration.read(row.name)}
    return replace(row, **measured)


def shipped_isa(target: Target) -> Isa:
    """The row of a target: by its architecture, then by its x86-64 level."""
    if target.is_wasm:
        return RELAXED_SIMD if "+relaxed-simd" in target.features else SIMD128
    if target.triple.startswith(("aarch64", "arm64")):
        return NEON
    return LEVELS.get(target.cpu, SSE)
