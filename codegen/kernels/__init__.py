"""Kernels of our own: one file per family. The order is the order in which they are asked."""

from __future__ import annotations

from spa.codegen.kernels import conv, depthwise, gemm
from spa.codegen.layer import Offer

FAMILIES: tuple[Offer, ...] = (gemm.offer, depthwise.offer, conv.offer)
