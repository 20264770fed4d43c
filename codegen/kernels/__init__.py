"""Kernels of our own: one file per family. The order is the order in which they are asked."""

from __future__ import annotations

from spa.codegen.kernels import batched, conv, depthwise, elementwise, gemm, matvec, moves, pool, recurrent, rows, spmm
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
    recurrent.offer,
    rows.offer,
    elementwise.offer,
)

OPERATORS = ("Recurrent",)  # not ONNX's: what preparation makes for them, since nobody else could compute it
