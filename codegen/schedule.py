"""Default schedules for what no kernel of our own covers: nothing fast, but nothing absurd.

Every kernel is a chain of stages that FuseTIR put into one function, each with a full buffer between it and the next.

1. Stages without a reduction are inlined into their readers (padding stays: its bounds checks would sit in the
   innermost loop), so that an element-wise chain is one loop and needs no scratch.
2. A reduction runs its last spatial axis innermost where that axis is contiguous in something it reads, so that vectors
   fill with neighbours instead of with strides; before it come the reduced axes. An axis which that read does not
   depend on (output channels) is tiled into the innermost loops, which share the read.
3. What follows the reduction and reads only its result (bias, activation, residual) is computed row by row beside it.

4. A long reduction along a row (means, softmax, normalisation) becomes partial ones side by side: they fill a vector,
   and the error of a sum of n terms falls with their number.

A stage that does not take a step keeps its own loops: the schedule primitives refuse what they cannot prove.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

from spa.codegen.tvm_api import BlockFacts, Lowered, ScheduleError, block_facts, new_schedule

MIN_INNER = 4  # elements: below, an innermost spatial loop costs more than it gives
LANES = 16  # partial reductions
LONG_REDUCTION = 128  # elements
SHARED_TILE = 4  # outputs (of other channels, other rows) that share one read of a row


def schedule(lowered: Lowered, own: Container[str]) -> Lowered:
    """The same program with its kernels rescheduled, except those of our `own`, which came with their schedule."""
    kernels = {name: f if name in own else schedule_kernel(f) for name, f in lowered.kernels.items()}
    return replace(lowered, kernels=kernels)


def schedule_kernel(kernel: Any) -> Any:
    """One PrimFunc; returned as it is where it cannot be scheduled at all."""
    try:
        sch = new_schedule(kernel)
        _inline(sch)
        for block in sch.get_child_blocks(sch.get_sblock("root")):
            _order(sch, block)
    except ScheduleError:
        return kernel
    return sch.mod["main"].with_attrs(dict(kernel.attrs))


def _inline(sch: Any) -> None:
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        facts = block_facts(sch, block)
        if facts.reductions or facts.conditional:
            continue
        try:
            sch.compute_inline(block)
        except ScheduleError:
            continue  # it writes an output, or several stages read it in ways that do not compose


def _order(sch: Any, block: Any) -> None:
    facts = block_facts(sch, block)
    if not facts.reductions:
        return
    if not facts.last_axis_contiguous or facts.extents[facts.last_spatial] < MIN_INNER:
        with contextlib.suppress(ScheduleError):
            _fold_lanes(sch, block, facts)
        return
    loops = sch.get_loops(block)
    if len(loops) != len(facts.extents):
        return
    inner = [loops[facts.last_spatial]]
    outer = [loops[i] for i in range(len(loops)) if i not in facts.reductions and i != facts.last_spatial]
    reduced = [loops[i] for i in facts.reductions]
    tiled = next((i for i in facts.shared if facts.extents[i] % SHARED_TILE == 0), None)
    if tiled is not None:
        whole, part = sch.split(loops[tiled], [None, SHARED_TILE])
        outer[outer.index(loops[tiled])] = whole
        inner.insert(0, part)
    sch.reorder(*outer, *reduced, *inner)
    if tiled is not None:
        sch.unroll(inner[0])
    readers = sch.get_consumers(block)
    if outer and len(readers) == 1:
        with contextlib.suppress(ScheduleError):
            sch.reverse_compute_at(readers[0], outer[-1])
    sch.decompose_reduction(block, reduced[0])


def _fold_lanes(sch: Any, block: Any, facts: BlockFacts) -> None:
    """A long reduction as `LANES` (or half, or a quarter) partial ones, which fill a vector, and their sum."""
    total = math.prod(facts.extents[i] for i in facts.reductions)
    lanes = next((n for n in (LANES, LANES // 2, LANES // 4) if total % n == 0), 0)
    if total < LONG_REDUCTION or not lanes or facts.reductions[0] != len(facts.extents) - len(facts.reductions):
        return
    reduced = sch.get_loops(block)[-len(facts.reductions) :]
    fused = sch.fuse(*reduced) if len(reduced) > 1 else reduced[0]
    _, part = sch.split(fused, [None, lanes])
    sch.rfactor(part, len(facts.extents) - len(facts.reductions))
