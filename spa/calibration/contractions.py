"""Which nodes of a network are readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spa.calibration.readers import Reader, as_reader
from spa.calibration.recurrent import RECURRENT, recurrent_readers
from spa.coupling.axes import Op
from spa.shapes import tensor_of

if TYPE_CHECKING:
    from spa.coupling import Coupling


def contractions(coupling: Coupling) -> list[Reader]:
    """All contractions with a constant floating-point weight, in order of execution."""
    found = []
    for op in coupling.ops:
        for reader in readers_at(op):
            tensor = tensor_of(reader.weight) if reader.weight in coupling.constants else None
            if tensor is not None and tensor.dtype.is_floating_point():
                found.append(reader)
    return found


def readers(coupling: Coupling) -> list[Reader]:
    """The contractions whose contracted axis a group runs through."""
    live = {d for g in coupling.groups for d in g.labels}
    return [r for r in contractions(coupling) if coupling.dims.of.get((r.weight, r.axis), -1) in live]


def readers_at(op: Op) -> list[Reader]:
    """What a node reads with weights; whether they are constant is not asked here."""
    if op.kind in RECURRENT:
        return recurrent_readers(op)
    reader = as_reader(op)
    return [] if reader is None else [reader]
