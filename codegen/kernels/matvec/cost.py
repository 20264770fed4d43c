"""Times of one row times a matrix, in cycles: those of the instructions, or of reading the weights if that takes longer."""

from __future__ import annotations

from spa.codegen.kernels.isa import AVX2, AVX512, NEON, RELAXED_SIMD, SIMD128, SSE, Isa
from spa.codegen.kernels.matvec.bits import Bits
from spa.codegen.kernels.matvec.codes import Codes
from spa.codegen.kernels.matvec.format import Format
from spa.codegen.kernels.matvec.groups import Groups

# Bytes per cycle that one core gets from memory: 37 GB/s at 4.1 GHz where this was written; ARM's boards and phones have less
STREAM, STREAM_NEON = 9.0, 6.0
# Cycles for sixteen weights: decode, multiply, add; measured with weights in the second cache, NEON's counted
CODES = {
    AVX512.name: {8: 1.1, 4: 0.9},
    AVX2.name: {8: 1.8, 4: 2.4},
    SSE.name: {8: 4.8, 4: 6.0},
    NEON.name: {8: 6.0, 4: 6.5},
    SIMD128.name: {8: 5.8, 4: 6.1},
    RELAXED_SIMD.name: {8: 5.0, 4: 5.3},
}
# ... of sixteen places of a pattern, and of sixteen inputs that are picked, floats or codes
PICK = {
    AVX512.name: (0.2, {32: 1.3, 8: 1.5, 4: 1.5}),
    AVX2.name: (0.1, {32: 2.2, 8: 3.0, 4: 3.5}),
    NEON.name: (0.5, {32: 11.0, 8: 15.0, 4: 15.0}),
}
SPREAD = {AVX512.name: 2.5, AVX2.name: 3.7}  # sixteen places by their bits


def reading(isa: Isa, dense: int, nbytes: float) -> float:
    """Cycles to read so many bytes of a matrix of `dense` as floats: small ones may have stayed in the second cache."""
    if dense <= isa.l2 // 2:
        return nbytes * isa.far / (4 * isa.lanes)
    return nbytes / (STREAM_NEON if isa.name == NEON.name else STREAM)


def decoding(isa: Isa, form: Format, weights: int) -> float:
    """Cycles for the instructions, of so many weights with their zeros."""
    if isinstance(form, Codes):
        each = CODES[isa.name][form.stored.bits]
    elif isinstance(form, Groups):
        place, picked = PICK[isa.name]
        each = place + form.n / form.of * picked[form.stored.bits]
    else:
        assert isinstance(form, Bits)
        each = SPREAD[isa.name]
    return weights / 16 * each
