"""Which warpgroup products could compute a layer, and how long they would take: what `families` asks where the architecture
has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from spa.codegen.cuda import pack, table, wgmma_pack
from spa.codegen.cuda.cost import L2_PER_SM, Arch, Work, microseconds
from spa.codegen.cuda.layers import Matrix
from spa.codegen.cuda.sources import Planes
from spa.codegen.cuda.wgmma import WgmmaProduct, build_wgmma
from spa.codegen.cuda.wgmma_layout import CHUNK
from spa.codegen.cuda.wgmma_tile import DEPTH, WgmmaTile
from spa.codegen.cuda.wgmma_words import ROWS
from spa.codegen.cuda.writer import Ending
from spa.codegen.kernels.vector import covering
from spa.codegen.layer import Array, Kernel, Layer

Form = Literal["dense", "2:4"]
HALF_BYTES = 2
STEP_US = 0.15  # from one barrier to the next, at least
SHARED_PER_SM = 205e3  # bytes per microsecond through a multiprocessor's shared memory: 128 in a cycle
GATHERED = (
    128  # columns where pixels are fetched one by one: each must meet many rows of W to be worth its instructions
)
SUMS = 128  # of a thread: with more there are no registers left for X on its way
STORED = {"dense": 1.0, "2:4": 0.5 + 1 / 16}  # bytes of W, of those of dense W


def predicted(matrix: Matrix, arch: Arch, operand: str) -> Iterator[tuple[Form, WgmmaTile, float]]:
    """(form, tile, microseconds); none where the architecture has no warpgroup products."""
    if not arch.warpgroup:
        return
    s = matrix.source
    gathered = isinstance(s, Planes) and not s.pointwise
    copied = s.k_last and s.dtype == operand and s.k % CHUNK == 0
    forms: dict[Form, tuple[WgmmaTile, ...]] = {"dense": table.WGMMA_DENSE}
    if _is_sparse(matrix.weight):
        forms["2:4"] = table.WGMMA_TWO_OF_FOUR
    for form, tiles in forms.items():
        for tile in tiles:
            if (copied or tile.sums <= SUMS) and (not gathered or tile.n <= GATHERED):
                yield form, tile, _microseconds(matrix, arch, tile, form)


def _is_sparse(w: Array) -> bool:
    return bool(np.count_nonzero(w) <= 0.5 * w.size) and pack.is_two_of_four(w)


def _through_shared(tile: WgmmaTile, form: Form) -> float:
    """Bytes of a step: W and X arrive; every 64 rows of W are read once, X by each of them."""
    w, x = tile.m * DEPTH * STORED[form], tile.n * DEPTH
    return HALF_BYTES * (2 * w + x * (1 + tile.m / ROWS))


def _microseconds(matrix: Matrix, arch: Arch, tile: WgmmaTile, form: Form) -> float:
    s = matrix.source
    stage = HALF_BYTES * DEPTH * (tile.m * STORED[form] + tile.n)
    moved = (s.size + matrix.groups * matrix.m * s.n) * np.dtype(s.dtype).itemsize
    work = Work(
        blocks=matrix.groups * covering(matrix.m, tile.m) * covering(s.n, tile.n),
        steps=covering(s.k, DEPTH),
        flops=2 * tile.m * tile.n * DEPTH,
        rate=arch.warpgroup * (arch.warpgroup_sparse if form == "2:4" else 1.0),
        threads=tile.threads,
        shared=int(tile.stages * stage),
        bytes=matrix.weight.size * HALF_BYTES * STORED[form] + moved,
        traffic=max(stage, _through_shared(tile, form) * L2_PER_SM / SHARED_PER_SM),
        step=STEP_US,
    )
    return microseconds(arch, work)


def kernel_of(
    layer: Layer, matrix: Matrix, form: Form, tile: WgmmaTile, operand: str, ending: Ending, name: str, why: str
) -> Kernel:
    """One of those that were predicted; `name`: what the manifest calls its tile."""
    packing = wgmma_pack.pack_two_of_four if form == "2:4" else wgmma_pack.pack_dense
    p = WgmmaProduct(matrix.m, matrix.groups, matrix.source, tile, form, ending, operand)
    return Kernel(
        family="wgmma",
        format=form,
        tile=name,
        why=why,
        activations=(0, *layer.tensors),
        weights=(*packing(matrix.weight, tile, operand), *layer.vectors(matrix.bias)),
        build=lambda: build_wgmma(p),
        key=p,
    )
