"""How many blocks of a kernel one multiprocessor runs at once, and what keeps it from more.

By the rules of the CUDA occupancy calculator: registers are given to warps in steps of 256, shared memory to blocks in
steps of 128 bytes, 1 KB more for the system. Sizes per compute capability from the CUDA C++ programming guide, "Technical
Specifications per Compute Capability".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spa.codegen.kernels.vector import covering

WARP = 32
REGISTERS, REGISTER_STEP = 64 << 10, 256
SHARED_STEP, SYSTEM_SHARED = 128, 1 << 10


@dataclass(frozen=True)
class Multiprocessor:
    """What one can hold at most: threads, blocks, bytes of shared memory."""

    threads: int
    blocks: int
    shared: int

    @property
    def shared_of_block(self) -> int:
        """Bytes that one block may ask for."""
        return self.shared - SYSTEM_SHARED


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(2048, 32, 164 << 10),
    "sm_86": Multiprocessor(1536, 16, 100 << 10),
    "sm_87": Multiprocessor(1536, 16, 164 << 10),
    "sm_89": Multiprocessor(1536, 24, 100 << 10),
    "sm_90": Multiprocessor(2048, 32, 228 << 10),
    "sm_100": Multiprocessor(2048, 32, 228 << 10),
    "sm_103": Multiprocessor(2048, 32, 228 << 10),
    "sm_120": Multiprocessor(1536, 24, 100 << 10),
}


@dataclass(frozen=True)
class Occupancy:
    """`blocks` of a kernel side by side, the `share` of the threads there could be, and which resource ends first."""

    blocks: int
    share: float
    limited_by: str


def occupancy(arch: str, threads: int, registers: int, shared: int) -> Occupancy | None:
    """Of blocks of so many threads, registers per thread, bytes of shared memory; None for architectures without numbers.

    >>> occupancy("sm_80", 256, 128, 60 << 10)
    Occupancy(blocks=2, share=0.25, limited_by='registers')
    >>> occupancy("sm_90", 128, 255, 100 << 10)
    Occupancy(blocks=2, share=0.125, limited_by='registers')
    """
    m = MULTIPROCESSORS.get(re.sub(r"\D+$", "", arch))
    if m is None:
        return None
    warps = covering(threads, WARP)
    per_warp = max(covering(registers * WARP, REGISTER_STEP), 1) * REGISTER_STEP
    per_block = covering(shared, SHARED_STEP) * SHARED_STEP + SYSTEM_SHARED
    room = {
        "registers": REGISTERS // (per_warp * warps),
        "shared memory": m.shared // per_block,
        "threads": m.threads // (warps * WARP),
        "blocks": m.blocks,
    }
    if shared > m.shared_of_block:
        room["shared memory"] = 0
    limit = min(room, key=lambda what: room[what])
    return Occupancy(room[limit], room[limit] * warps * WARP / m.threads, limit)
