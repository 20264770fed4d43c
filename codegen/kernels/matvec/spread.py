"""Values that lie one behind the other, spread over the lanes of a vector by bits: how each instruction set does that.

- AVX-512: expand. It takes the register it writes as an operand, so expanding into a fresh one waits for whatever that
  held before (six cycles a vector, all in a row): here a vector is expanded onto itself, and lanes without a value, which
  keep rubbish, are left out by a masked multiply-add.
- AVX2: a permutation by a row of a table with an entry per byte of bits; the sign of an index says that its lane has a value.

NEON and simd128 could do as AVX2 (tbl, swizzle), four lanes at a time: some forty instructions for sixteen weights, which
takes as long as reading them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spa.codegen.kernels.isa import AVX2, AVX512
from spa.codegen.kernels.matvec.permutation import permute
from spa.codegen.kernels.vector import FLOAT, Expr, load, span, splat
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

LANES = {AVX512.name: 16, AVX2.name: 8}
EXPAND = "llvm.x86.avx512.mask.expand.v16f32"


def table(lanes: int) -> Array:
    """AVX2's: a row of `lanes` per word of bits."""
    if lanes == LANES[AVX512.name]:
        return np.zeros(1, np.int32)
    words = np.arange(1 << lanes)[:, None] >> np.arange(lanes) & 1
    return np.where(words, np.cumsum(words, 1) - words - (1 << 31), 0).astype(np.int32).reshape(-1)


def added(total: Expr, values: Any, at: Expr, word: Expr, rows: Any, x: Expr, lanes: int) -> Expr:
    """total + x * the values from `at` on, in the lanes that `word` (int32) has bits for."""
    found = load(values, at, lanes)
    if lanes == 16:
        one = tirx.IntImm("int32", 1)
        bits = splat(one, lanes) << span(tirx.IntImm("int32", 0), lanes)
        kept = tirx.NE(splat(word, lanes) & bits, splat(tirx.IntImm("int32", 0), lanes))
        spread = tirx.call_llvm_pure_intrin(f"{FLOAT}x{lanes}", EXPAND, found, found, kept)
        return tirx.Select(kept, spread * x + total, total)
    row = load(rows, word * lanes, lanes)
    kept = row >> splat(tirx.IntImm("int32", 31), lanes)
    spread = tirx.reinterpret(f"int32x{lanes}", permute(AVX2.name, found, row)) & kept
    return tirx.reinterpret(f"{FLOAT}x{lanes}", spread) * x + total
