"""Which kernel a layer gets: what can compute it, each with its predicted time, and the fastest of them.

spa.codegen.dispatch asks `offer`; the reason goes into the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from spa.codegen.cuda import depthwise, few, pack, simt, table, wgmma_offer
from spa.codegen.cuda.cost import ASYNC_STEP_US, SPARSE_BELOW, STEP_US, Arch, Work, arch_of, microseconds, transfer_us
from spa.codegen.cuda.layers import Matrix, ending_of, matrix_of, reaches, residual_behind
from spa.codegen.cuda.product import Form, Product, build_product
from spa.codegen.cuda.sources import Planes, Rows, Source, Windows, at_once
from spa.codegen.cuda.tile import Tile
from spa.codegen.cuda.words import NARROW, OPERANDS
from spa.codegen.kernels.vector import FLOAT, covering, product
from spa.codegen.layer import Array, Kernel, Layer
from spa.codegen.target import Target

SHORT = {dtype: precision for precision, dtype in OPERANDS.items()}
HALF_BYTES, FLOAT_BYTES, WORD_BYTES = 2, 4, 4
MIN_TENSOR = 16  # outputs and inputs below which tensor cores would multiply little but padding
GATHER = 1.3  # what a product with few columns pays for reading X at stored positions


@dataclass(frozen=True, eq=False)
class Candidate:
    """A kernel that could compute a layer, and the microseconds it is predicted to take."""

    family: str
    format: str
    tile: str
    us: float
    make: Callable[[], Kernel]


def offer(layer: Layer, target: Target) -> Kernel | None:
    """The fastest candidate; a sparse one only where it beats the best dense one by a margin."""
    layer = residual_behind(layer)
    matrix = matrix_of(layer)
    if matrix is None or not reaches(layer, matrix):
        return None
    arch = arch_of(target.cpu)
    found = [*candidates(layer, matrix, arch, OPERANDS[target.features[0]])]
    dense = [c for c in found if c.format == "dense"]
    if not dense:
        return None
    best_dense = min(dense, key=lambda c: c.us)
    best = min(found, key=lambda c: c.us)
    if best.format != "dense" and best.us > SPARSE_BELOW * best_dense.us:
        best = best_dense
    return best.make()


def candidates(layer: Layer, matrix: Matrix, arch: Arch, operand: str) -> Iterator[Candidate]:
    """All kernels that could compute a layer with operands rounded to this type; activations that are narrow stay as they are."""
    s = matrix.source
    if s.dtype in NARROW and (operand != FLOAT or pack.is_exact(matrix.weight, s.dtype)):
        operand = s.dtype
    if not isinstance(s, Rows) and s.channels == 1 and s.groups > 1:
        yield _depthwise(layer, matrix, s, arch)
        return
    if isinstance(s, Rows) and s.n <= few.MOST_COLUMNS:
        yield from _few(layer, matrix, s, arch, operand)
    if operand in NARROW and min(matrix.m, s.k) >= MIN_TENSOR:
        yield from _tensor(layer, matrix, arch, operand)
        return
    if not isinstance(s, Windows):
        yield from _simt(layer, matrix, arch)


# Tensor cores ----------------------------------------------------------------------------------------------------


def _tensor(layer: Layer, matrix: Matrix, arch: Arch, operand: str) -> Iterator[Candidate]:
    w = matrix.weight
    for shape, big, us in wgmma_offer.predicted(matrix, arch, operand):
        why, name = _why(matrix, us, arch), f"{big.name}-{way_of(matrix.source)}-{SHORT[operand]}"
        make = partial(wgmma_offer.kernel_of, layer, matrix, shape, big, operand, ending_of(layer, matrix), name, why)
        yield Candidate("wgmma", shape, big.name, us, make)
    for tile in table.DENSE:
        yield _product(layer, matrix, arch, operand, tile, "dense", covering(matrix.source.k, tile.k))
    density = np.count_nonzero(w) / max(w.size, 1)
    if density <= 0.5 and pack.is_two_of_four(w):
        for tile in table.TWO_OF_FOUR:
            yield _product(layer, matrix, arch, operand, tile, "2:4", covering(matrix.source.k, tile.k))
    if density <= 0.6 and matrix.groups == 1:
        for tile in table.BLOCKS:
            alive = _blocks(w[0], tile.m)
            if alive.mean() <= 0.6:  # the longest row of blocks decides when its tile is done
                yield _product(layer, matrix, arch, operand, tile, "bsr", float(alive.sum(1).max(initial=1)))


def _blocks(w: Array, size: int) -> Array:
    """Which blocks size x size hold something."""
    padded = np.pad(w, ((0, -w.shape[0] % size), (0, -w.shape[1] % size))) != 0
    return np.asarray(padded.reshape(padded.shape[0] // size, size, -1, size).any((1, 3)))


def _product(layer: Layer, matrix: Matrix, arch: Arch, operand: str, tile: Tile, form: Form, steps: float) -> Candidate:
    s = matrix.source
    blocks = matrix.groups * covering(matrix.m, tile.m) * covering(s.n, tile.n)
    stored = {"dense": 1.0, "2:4": 0.5 + 1 / 16, "bsr": steps * tile.k / s.k}[form]
    item = np.dtype(s.dtype).itemsize
    width = tile.k // 2 if form == "2:4" else tile.k
    work = Work(
        blocks=blocks,
        steps=steps,
        flops=2 * tile.m * tile.n * tile.k,
        rate=arch.tensor * (arch.sparse if form == "2:4" else 1.0),
        threads=tile.threads,
        shared=tile.stages * (tile.m * width + tile.n * tile.k) * HALF_BYTES,
        gathered=tile.n * tile.k / at_once(s),
        step=ASYNC_STEP_US if s.dtype == operand and at_once(s) > 1 else STEP_US,
        bytes=matrix.weight.size * HALF_BYTES * stored + (s.size + matrix.groups * matrix.m * s.n) * item,
    )
    name = f"block{tile.m}x{tile.m}" if form == "bsr" else form
    us = microseconds(arch, work)
    return Candidate(
        "tensor", name, tile.name, us, partial(_make_product, layer, matrix, operand, tile, form, name, us, arch)
    )


def _make_product(
    layer: Layer, matrix: Matrix, operand: str, tile: Tile, form: Form, name: str, us: float, arch: Arch
) -> Kernel:
    w = matrix.weight
    packed = (
        pack.pack_two_of_four(w, tile, operand)
        if form == "2:4"
        else pack.pack_blocks(w, tile.m, operand)
        if form == "bsr"
        else pack.pack_dense(w, tile, operand)
    )
    p = Product(
        m=matrix.m,
        groups=matrix.groups,
        source=matrix.source,
        tile=tile,
        form=form,
        ending=ending_of(layer, matrix),
        blocks=len(packed[-1]) if form == "bsr" else 0,
        operand=operand,
    )
    way = way_of(matrix.source)
    return Kernel(
        family="tensor",
        format=name,
        tile=f"{tile.name}-{way}-{SHORT[operand]}",
        why=_why(matrix, us, arch),
        activations=(0, *layer.tensors),
        weights=(*packed, *layer.vectors(matrix.bias)),
        build=partial(build_product, p),
        key=p,
    )


# Ordinary cores --------------------------------------------------------------------------------------------------


def _simt(layer: Layer, matrix: Matrix, arch: Arch) -> Iterator[Candidate]:
    s = matrix.source
    for tile in table.SIMT:
        work = Work(
            blocks=matrix.groups * covering(matrix.m, tile.m) * covering(s.n, tile.n),
            steps=covering(s.k, tile.k),
            flops=2 * tile.m * tile.n * tile.k,
            rate=arch.fp32,
            threads=tile.threads,
            shared=2 * (tile.m + tile.n) * tile.k * FLOAT_BYTES,
            bytes=(matrix.weight.size + s.size + matrix.groups * matrix.m * s.n) * FLOAT_BYTES,
        )
        us = microseconds(arch, work)
        yield Candidate("simt", "dense", tile.name, us, partial(_make_simt, layer, matrix, tile, us, arch))


def _make_simt(layer: Layer, matrix: Matrix, tile: simt.SimtTile, us: float, arch: Arch) -> Kernel:
    p = simt.Simt(
        m=matrix.m,
        groups=matrix.groups,
        source=matrix.source,
        tile=tile,
        ending=ending_of(layer, matrix),
    )
    return Kernel(
        family="simt",
        format="dense",
        tile=f"{tile.name}-{way_of(matrix.source)}",
        why=_why(matrix, us, arch),
        activations=(0, *layer.tensors),
        weights=(*simt.pack_simt(matrix.weight, tile), *layer.vectors(matrix.bias)),
        build=partial(simt.build_simt, p),
        key=p,
    )


def _few(layer: Layer, matrix: Matrix, s: Rows, arch: Arch, operand: str) -> Iterator[Candidate]:
    w = matrix.weight[0]
    item = FLOAT_BYTES if operand == FLOAT else HALF_BYTES
    kept = np.count_nonzero(w)

    def candidate(name: str, size: float, form: str, rows: int, pattern: tuple[int, int]) -> Candidate:
        us = transfer_us(arch, size)
        make = partial(_make_few, layer, matrix, s, operand, name, us, arch, form, rows, pattern)
        return Candidate("few", name, "warp", us, make)

    yield candidate("dense", w.size * item, "dense", 1, (0, 0))
    if kept > 0.7 * w.size:
        return
    for rows in table.FEW_ROWS:
        padded = np.pad(w, ((0, -len(w) % rows), (0, 0))) != 0
        entries = int(padded.reshape(-1, rows, w.shape[1]).any(1).sum())
        name = "csr" if rows == 1 else f"block{rows}x1"
        yield candidate(name, GATHER * entries * (rows * item + WORD_BYTES), "block", rows, (0, 0))
    for m in table.PATTERNS:
        groups = np.pad(w, ((0, 0), (0, -w.shape[1] % m))).reshape(len(w), -1, m)
        n = int((groups != 0).sum(2).max(initial=1)) or 1
        bits = 2 if m <= 4 else 4
        if n <= m // 2:
            size = GATHER * groups.shape[1] * len(w) * n * (item + bits / 8)
            yield candidate(f"{n}:{m}", size, "N:M", 1, (n, m))


def _make_few(
    layer: Layer,
    matrix: Matrix,
    s: Rows,
    dtype: str,
    name: str,
    us: float,
    arch: Arch,
    form: str,
    rows: int,
    pattern: tuple[int, int],
) -> Kernel:
    w = matrix.weight[0]
    packed = (
        few.pack_few_blocks(w, rows, dtype)
        if form == "block"
        else few.pack_few_nm(w, *pattern, dtype)
        if form == "N:M"
        else few.pack_few_dense(w, dtype)
    )
    values = packed[2] if form == "block" else packed[0]
    p = few.Few(
        m=matrix.m,
        source=s,
        form=form,  # type: ignore[arg-type]
        rows=rows,
        stored=len(values),
        w_dtype=dtype,
        ending=ending_of(layer, matrix),
        pattern=pattern,
    )
    return Kernel(
        family="few",
        format=name,
        tile=f"warp-{rows}x{s.n}-{SHORT[dtype]}",
        why=_why(matrix, us, arch),
        activations=(0, *layer.tensors),
        weights=(*packed, *layer.vectors(matrix.bias)),
        build=partial(few.build_few, p),
        key=p,
    )


def _depthwise(layer: Layer, matrix: Matrix, s: Planes | Windows, arch: Arch) -> Candidate:
    item = np.dtype(s.dtype).itemsize
    us = transfer_us(arch, (s.size + product(layer.output.shape)) * item)

    def make() -> Kernel:
        p = depthwise.Depthwise(
            m=matrix.m,
            source=s,
            ending=ending_of(layer, matrix),
        )
        return Kernel(
            family="depthwise",
            format="dense",
            tile=f"{depthwise.THREADS}-{way_of(s)}",
            why=_why(matrix, us, arch),
            activations=(0, *layer.tensors),
            weights=(depthwise.pack(matrix.weight, s), *layer.vectors(matrix.bias)),
            build=partial(depthwise.build_depthwise, p),
            key=p,
        )

    return Candidate("depthwise", "dense", "", us, make)


def way_of(source: Source) -> str:
    """How a kernel gets at its activations, and in which layout."""
    return "rows" if isinstance(source, Rows) else "nhwc" if isinstance(source, Windows) else "gather"


def _why(matrix: Matrix, us: float, arch: Arch) -> str:
    w = matrix.weight
    density = np.count_nonzero(w) / max(w.size, 1)
    return f"m {matrix.m}, n {matrix.source.n}, k {matrix.source.k}, density {density:.2f}: {us:.1f} us predicted on {arch.name}"
