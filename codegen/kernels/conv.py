"""Convolutions (not depthwise) as products: dense or sparse, the tile, the way to the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from spa.codegen.kernels import winograd
from spa.codegen.kernels.epilogue import overwritten
from spa.codegen.kernels.isa import Isa, isa_of
from spa.codegen.kernels.product import Product, Way, build_product
from spa.codegen.kernels.tile import bucket, columns_of, dense_cost, dense_tile, sparse_columns, sparse_cost
from spa.codegen.kernels.vector import product
from spa.codegen.kernels.window import Planes, Window, planes_of, tap_offset, taps_of, window_of
from spa.codegen.layer import Array, Kernel, Layer
from spa.codegen.target import Target

BLOCKS = (8, 4, 2, 1)  # heights of sparse blocks
PACKED_FROM = 32  # output channels that pay for copying the pixels of a tile
FEW = 16  # tiles of pixels: weights that are read so few times come from far
FETCHED = 4  # weights per step that pay for asking for them
SPARSE_BELOW = 0.75  # share of the dense time that a sparse kernel may be predicted to take: predictions are not exact
WINOGRAD_BELOW = 0.8  # the same for minimal filtering


@dataclass(frozen=True)
class Choice:
    """A format, with its predicted cycles. `rows` 0: none."""

    rows: int
    columns: int
    cycles: float
    entries: int = 0


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Conv with constant weights, one- or two-dimensional, float32."""
    if layer.op != "Conv" or 1 not in layer.consts or layer.output.dtype != "float32":
        return None
    weight = layer.consts[1]
    groups = int(layer.attributes.get("group", 1))
    w = window_of(layer, weight.shape[2:])
    if w is None or (len(layer.operands) > 2 and layer.operands[2] is not None and 2 not in layer.consts):
        return None
    machine, m = isa_of(target), weight.shape[0] // groups
    isa = machine
    flat_weight = weight.reshape(groups, m, -1)
    planes = planes_of(w)
    one_row = planes.pitch == w.out[1]
    length, rows_of_pixels = w.out[0] * w.out[1], 1
    way: Way = "direct"
    if not one_row:
        flat = (w.out[0] - 1) * planes.pitch + w.out[1]
        length, way, rows_of_pixels = _row_or_flat(isa, w, flat)
        if way == "direct" and target.is_wasm and m >= PACKED_FROM:
            way = "packed"
    elif product(w.kernel) == 1 and length > 2 * isa.lanes and m >= PACKED_FROM:
        way = "packed"
    if way != "packed":
        isa = isa.scattered
    k, depth = flat_weight.shape[2], w.channels // groups
    rows, columns = dense_tile(isa, m, length, k, depth)
    dense = Choice(rows, columns, groups * rows_of_pixels * dense_cost(isa, m, length, k, depth, rows, columns))
    sparse = _sparse_choice(isa, flat_weight, length, depth, rows_of_pixels)
    density = np.count_nonzero(weight) / weight.size
    fast = winograd.choice(weight, w, machine)
    if fast is not None and fast[0] < min(WINOGRAD_BELOW * dense.cycles, sparse.cycles / SPARSE_BELOW):
        why = f"density {density:.2f}: direct {dense.cycles:.3g} cycles, by minimal filtering {fast[0]:.3g}"
        return winograd.kernel(layer, w, machine, fast[1], why)
    best = sparse if sparse.cycles < SPARSE_BELOW * dense.cycles else dense
    why = f"density {density:.2f}: dense {dense.cycles:.3g} cycles, sparse {sparse.rows}x1 {sparse.cycles:.3g}"
    bytes_of_weights = flat_weight[0].size * 4 if best is dense else best.entries * best.rows * 4
    pixels = columns_of(isa, length, best.columns)
    cold = rows_of_pixels * len(pixels.tiles()) < FEW and best.rows >= FETCHED
    p = Product(
        window=w,
        planes=planes,
        taps=taps_of(w, planes),
        groups=groups,
        m=m,
        rows=best.rows,
        columns=pixels,
        way=way,
        blocks_outside=way == "direct" and bytes_of_weights > isa.l2,
        ahead=isa.ahead if cold else 0,
        bucket=bucket(best.entries) if best.entries else -1,
        entries=best.entries,
        bias=2 in layer.consts,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=len(layer.tensors),
    )
    packed = pack_sparse(p, flat_weight) if best is sparse else (pack_dense(p, flat_weight),)
    return Kernel(
        family="conv",
        format="dense" if best is dense else "csr" if p.rows == 1 else f"block{p.rows}x1",
        tile=f"{p.rows}x{best.columns * p.columns.lanes}-{way}-{isa.name}",
        why=why,
        activations=(0, *layer.tensors),
        weights=(*packed, *layer.vectors(layer.consts.get(2))),
        build=partial(build_product, p),
        key=p,
        in_place=overwritten(layer, (0, *layer.tensors), p.even),
    )


def _row_or_flat(isa: Isa, w: Window, flat: int) -> tuple[int, Way, int]:
    """Rows of pixels as they are, or all as one: what wastes less, counting what leaving takes."""
    rows = w.out[0] * columns_of(isa, w.out[1], 1).vectors * columns_of(isa, w.out[1], 1).lanes
    if w.out[1] < isa.lanes:
        rows = w.out[0] * covering_lanes(isa, w.out[1])
    together = columns_of(isa, flat, 1).padded * (1 + 6 / (product(w.kernel) * w.channels))
    return (w.out[1], "direct", w.out[0]) if rows <= together else (flat, "flat", 1)


def covering_lanes(isa: Isa, length: int) -> int:
    """What a row costs in lanes of the machine, if it is shorter than a vector."""
    columns = columns_of(isa, length, 1)
    return columns.vectors * isa.lanes


def _sparse_choice(isa: Isa, weight: Array, length: int, depth: int, rows_of_pixels: int) -> Choice:
    best = Choice(0, 0, float("inf"))
    for height in BLOCKS:
        m = weight.shape[1]
        if m % height:
            continue
        occupied = (weight.reshape(weight.shape[0], m // height, height, -1) != 0).any(2)
        entries, blocks = int(occupied.sum()), weight.shape[0] * (m // height)
        columns = sparse_columns(isa, blocks, entries, length, depth, height)
        cycles = rows_of_pixels * sparse_cost(isa, blocks, entries, length, depth, height, columns)
        if cycles < best.cycles:
            best = Choice(height, columns, cycles, max(entries, 1))
    return best


def _ordered(p: Product, weight: Array) -> Array:
    """[groups, m, channels, taps] with the taps in the order in which the kernel meets them."""
    width = p.window.kernel[1]
    order = [r * width + s for group in p.taps for r, s in group.order]
    return np.asarray(weight.reshape(p.groups, p.m, -1, len(order))[..., order])


def pack_dense(p: Product, weight: Array) -> Array:
    """[groups][blocks][k][rows]; the last block begins so that it ends with the last channel."""
    ordered = _ordered(p, weight).reshape(p.groups, p.m, p.k)
    firsts = [min(b * p.rows, p.m - p.rows) for b in range(p.blocks)]
    return np.stack([ordered[:, f : f + p.rows].transpose(0, 2, 1) for f in firsts], 1).astype(np.float32).reshape(-1)


def pack_sparse(p: Product, weight: Array) -> tuple[Array, Array, Array]:
    """(ip, ix, va): where each block's entries begin, the place of their k in X, their values."""
    ordered = _ordered(p, weight) if p.way == "packed" else weight
    blocks = ordered.reshape(p.groups * p.blocks, p.rows, p.k)
    block, k = np.nonzero((blocks != 0).any(1))
    ip = np.concatenate([[0], np.cumsum(np.bincount(block, minlength=len(blocks)))])
    places = np.arange(p.k) * p.pitch if p.way == "packed" else _places(p.window, p.planes)[: p.k]
    va = blocks[block, :, k]
    if not len(k):
        return ip.astype(np.int32), np.zeros(1, np.int32), np.zeros(p.rows, np.float32)
    return ip.astype(np.int32), places[k].astype(np.int32), va.astype(np.float32).reshape(-1)


def _places(w: Window, planes: Planes) -> Array:
    """Where k = (channel, tap) lies behind a pixel's place."""
    kernel = [tap_offset(w, planes, r, s) for r in range(w.kernel[0]) for s in range(w.kernel[1])]
    return np.asarray((np.arange(w.channels)[:, None] * planes.channel + np.array(kernel)).reshape(-1))
