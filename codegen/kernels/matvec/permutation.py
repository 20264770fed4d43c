"""Lanes of a vector picked by indices: what each instruction set has for it."""

from __future__ import annotations

from spa.codegen.kernels.isa import AVX2, AVX512, NEON
from spa.codegen.kernels.vector import FLOAT, Expr, splat
from spa.codegen.tvm_api import tirx

WHOLE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}
BYTES = "llvm.aarch64.neon.tbl1.v16i8"
LANES = {AVX512.name: 16, AVX2.name: 8, NEON.name: 4}


def permute(isa: str, values: Expr, index: Expr) -> Expr:
    """values[index] lane by lane; of an index (int32) only the bits count that a vector has lanes for. Where bytes are
    picked, the four of lane i are those from 4 i on. simd128 picks bytes too (swizzle), but that takes engines so long that
    nothing is gained: a matrix of 2:4 took 12 cycles for sixteen weights in Node where a dense one takes 7."""
    lanes = LANES[isa]
    if lanes in WHOLE:
        return tirx.call_llvm_pure_intrin(f"{FLOAT}x{lanes}", WHOLE[lanes], values, index)
    low, each, first = (splat(tirx.IntImm("int32", n), lanes) for n in (lanes - 1, 0x04040404, 0x03020100))
    operands = [tirx.reinterpret("int8x16", v) for v in (values, (index & low) * each + first)]
    return tirx.reinterpret(f"{FLOAT}x{lanes}", tirx.call_llvm_pure_intrin("int8x16", BYTES, *operands))
