"""Kernels of our own: one file per family. The order is the order in which they are asked."""

from __future__ import annotations

from spa.codegen.kernels import batched, conv, depthwise, elementwise, gemm, matvec, moves, pool, rows, spmm
from spa.codegen.layer import Offer

FAMILIES: tuple[Offer, ...] = (
    spmm.offer,
    matvec.offer,
    gemm.offer,
    batched.offer,
    depthwise.offer,
    conv.offer,
    moves.offer,
    pool.offer,
    rows.offer,
    elementwise.offer,
)
