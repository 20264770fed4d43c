"""3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144.

Y = A^T [(G g G^T) * (B^T d B)] A for tiles d of 6 x 6 pixels, four apart (Lavin and Gray, 2016, "Fast algorithms for
convolutional neural networks", section 4.2, arXiv:1509.09308). Summed over channels that is a product per place p of the
36: M[p] = U[p] V[p] with U the transformed weights, V [channels, tiles]. A band of tile rows at a time, in three steps
that threads share: B^T d B of all channels, the 36 products, A^T M A and what follows the layer.

The price: weights take 36 / 9 times the memory, and sums of larger terms round off more, about 1e-5 of the largest output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from spa.codegen.kernels.isa import Isa
from spa.codegen.kernels.tile import Columns, columns_of, dense_cost, dense_tile
from spa.codegen.kernels.vector import covering, fits
from spa.codegen.kernels.window import Window
from spa.codegen.kernels.winograd_writer import OUT, PLACES, build_winograd
from spa.codegen.layer import Array, Kernel, Layer, Step

G = np.array(
    [[1 / 4, 0, 0], [-1 / 6] * 3, [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)
INPUT_STEPS, OUTPUT_STEPS = 340, 250  # instructions for a vector of tiles of one channel
# bytes per cycle that come from the second cache, from the next, from beyond; how much larger the next may be
NEAR, FAR, BEYOND, NEXT = 32, 8, 3, 8
PRICE = 16  # multiply-adds that each byte by which the weights grow must save
LINE = 16  # floats of a cache line


@dataclass(frozen=True)
class Winograd:
    """All that a kernel's code depends on. `band`: tile rows at a time; `rows`: output channels of a tile of the products,
    whose `columns` are the tiles of a band; `lanes`: tiles that are transformed at once; `ahead` as in `Product`."""

    window: Window
    m: int
    band: int
    rows: int
    columns: Columns
    lanes: int
    ahead: int
    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: int

    @property
    def tiles(self) -> tuple[int, int]:
        return _tiles(self.window)

    @property
    def pitch(self) -> int:
        """Of V and M: tiles of a band, padded to whole vectors."""
        return self.columns.length

    def apart(self, lines: int) -> int:
        """Elements from one place to the next in V or M: a line of the cache more than it takes, so that the 36 places of
        a tile do not meet in one set of it."""
        return lines * self.pitch + LINE

    @property
    def blocks(self) -> int:
        return covering(self.m, self.rows)


def _tiles(w: Window) -> tuple[int, int]:
    return covering(w.out[0], OUT), covering(w.out[1], OUT)


def choice(weight: Array, w: Window, isa: Isa) -> tuple[float, int] | None:
    """(cycles, band) of a dense convolution this way: what it is expected to take, and a price for the larger weights."""
    if (w.kernel, w.strides, w.dilations) != ((3, 3), (1, 1), (1, 1)) or weight.shape[1] != w.channels:
        return None
    if min(_tiles(w)[1], w.size[1]) < 2:
        return None
    price = PRICE * isa.fma / isa.lanes * (PLACES - 9) * weight.shape[0] * w.channels * 4
    cycles, band = min((_cycles(isa, w, weight.shape[0], band), band) for band in range(1, _tiles(w)[0] + 1))
    return cycles + price, band


def kernel(layer: Layer, w: Window, isa: Isa, band: int, why: str) -> Kernel:
    weight = layer.consts[1]
    rows, columns = _product(isa, w, weight.shape[0], band)
    p = Winograd(
        window=w,
        m=weight.shape[0],
        band=band,
        rows=rows,
        columns=columns,
        lanes=fits(isa.lanes, _tiles(w)[1]),
        ahead=isa.ahead if rows >= 4 else 0,
        bias=2 in layer.consts,
        steps=layer.epilogue,
        vectors=len(layer.channels),
        tensors=len(layer.tensors),
    )
    return Kernel(
        family="winograd",
        format="dense",
        tile=f"{rows}x{columns.widest * columns.lanes}-{isa.name}",
        why=why,
        activations=(0, *layer.tensors),
        weights=(pack(p, weight), *layer.vectors(layer.consts.get(2))),
        build=partial(build_winograd, p),
        key=p,
    )


def _product(isa: Isa, w: Window, m: int, band: int) -> tuple[int, Columns]:
    """Output channels of a tile of the products, and their columns: whole vectors."""
    count = band * _tiles(w)[1]
    padded = columns_of(isa, count, 1).padded
    rows, widest = dense_tile(isa, m, padded, w.channels, w.channels)
    return rows, columns_of(isa, padded, widest)


def _cycles(isa: Isa, w: Window, m: int, band: int) -> float:
    """For one picture."""
    rows, columns = _product(isa, w, m, band)
    high, wide = _tiles(w)
    vectors = band * covering(wide, fits(isa.lanes, wide))
    transforms = vectors * (w.channels * INPUT_STEPS + m * OUTPUT_STEPS) * isa.fma
    products = PLACES * dense_cost(isa, m, columns.length, w.channels, w.channels, rows, columns.widest)
    moved, weights = PLACES * columns.length * (w.channels + m) * 4, PLACES * m * w.channels * 4
    kept = moved + weights
    traffic = (2 * moved + weights) / (NEAR if kept <= isa.l2 else FAR if kept <= NEXT * isa.l2 else BEYOND)
    return covering(high, band) * (transforms + products + traffic) + weights / FAR


def pack(p: Winograd, weight: Array) -> Array:
    """G g G^T of W [m, channels, 3, 3] as [36][blocks][channels][rows]; the last block ends with the last channel."""
    u = np.einsum("ir,mcrs,js->ijmc", G, weight.astype(np.float64), G).reshape(PLACES, p.m, -1)
    firsts = [min(b * p.rows, p.m - p.rows) for b in range(p.blocks)]
    blocks = np.stack([u[:, f : f + p.rows].transpose(0, 2, 1) for f in firsts], 1)
    return np.ascontiguousarray(blocks, np.float32).reshape(-1)
