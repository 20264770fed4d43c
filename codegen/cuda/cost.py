"""How long a kernel would take: a model, with numbers from data sheets and efficiencies that are assumed, not measured.

    time = launch + max(bytes / bandwidth, waves * k steps * step)
    step = max(flops of the tiles that a multiprocessor runs side by side / its rate, bytes that they fetch / those of
               the L2 that come to it, what one step takes at least)

It only has to rank formats and tiles of one layer. A sparse form must win by a margin, because the model may be wrong and
dense is what everyone compares with.
"""

from __future__ import annotations

from dataclasses import dataclass

from spa.codegen.kernels.vector import covering

LAUNCH_US = 3.0
GATHER_US = 9e-5  # of a multiprocessor: some 15 instructions, 4 warps at once, 32 threads each
ASYNC_STEP_US = 0.2  # the same, where both factors are copied past the registers, two tiles ahead
STEP_US = 0.35  # from one barrier to the next, at least
SPARSE_BELOW = 0.9  # share of the dense time that a sparse form may take
SHARED_PER_SM = 160 << 10  # bytes that may be counted on
THREADS_PER_SM = 1536
L2_PER_SM = 75e3  # bytes per microsecond from the L2 to a multiprocessor: 45 of the 64 in a cycle


@dataclass(frozen=True)
class Arch:
    """`sms`: multiprocessors. `tensor`: TFLOP/s that `mma` reaches in fp16; `sparse`: how many times that 2:4 does.
    `fp32`: TFLOP/s. `bandwidth`: GB/s. `warpgroup`, `warpgroup_sparse`: as `tensor`, `sparse`, of wgmma where there is
    any. Of the data-centre card of the architecture."""

    name: str
    sms: int
    tensor: float
    sparse: float
    fp32: float
    bandwidth: float
    warpgroup: float = 0
    warpgroup_sparse: float = 0


# mma.sync reaches about two thirds of what Hopper's wgmma does; code for sm_90a runs on 9.0 and nowhere else
ARCHS = {
    a.name: a
    for a in (
        Arch("sm_80", 108, 250, 1.5, 17, 1500),
        Arch("sm_86", 84, 120, 1.5, 30, 700),
        Arch("sm_87", 16, 34, 1.5, 4, 180),
        Arch("sm_89", 142, 150, 1.5, 70, 860),
        Arch("sm_90", 132, 520, 1.4, 55, 3000),
        Arch("sm_90a", 132, 520, 1.4, 55, 3000, 650, 1.7),
        Arch("sm_100", 148, 600, 1.4, 65, 7000),
        Arch("sm_120", 170, 200, 1.4, 90, 1500),
    )
}


def arch_of(names: str) -> Arch:
    """The oldest of these architectures (they share their kernels), or the one before it that there are numbers for. What
    only sm_90a has counts where it is asked for alone."""
    if names in ARCHS:
        return ARCHS[names]
    oldest = min(int("".join(c for c in name if c.isdigit())) for name in names.split(","))
    common = [a for a in ARCHS.values() if a.name[3:].isdigit() and int(a.name[3:]) <= oldest]
    return max(common, key=lambda a: int(a.name[3:]))


@dataclass(frozen=True)
class Work:
    """A product as a kernel sees it: grid of tiles, k steps of one, what a step multiplies, what a block of threads takes.
    `rate`: TFLOP/s of the whole card for this kind of work. `bytes`: read and written in all. `traffic`: bytes that a step
    fetches (0: not counted). `step`: microseconds that one takes at least. `gathered`: fetches of a step,
    each with an address of its own."""

    blocks: int
    steps: float
    flops: float
    rate: float
    threads: int
    shared: int
    bytes: float
    traffic: float = 0
    step: float = STEP_US
    gathered: float = 0


def microseconds(arch: Arch, work: Work) -> float:
    """By the model above."""
    together = max(1, min(SHARED_PER_SM // max(work.shared, 1), THREADS_PER_SM // work.threads))
    waves = covering(work.blocks, arch.sms)  # tiles one multiprocessor computes
    side_by_side = min(together, waves)
    fetched = side_by_side * work.traffic / L2_PER_SM
    computed = work.flops / (work.rate / arch.sms * 1e6) + work.gathered * GATHER_US
    step = max(side_by_side * computed, fetched, work.step)
    multiply = covering(waves, side_by_side) * work.steps * step
    return LAUNCH_US + max(work.bytes / (arch.bandwidth * 1e3), multiply)


def transfer_us(arch: Arch, size: float) -> float:
    """A kernel that only waits for memory."""
    return LAUNCH_US + size / (arch.bandwidth * 1e3)
