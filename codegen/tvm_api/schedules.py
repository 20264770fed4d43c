"""What a schedule asks of a kernel: TVM's schedules, and the facts of a block as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spa.codegen.tvm_api.library import PrimFunc, op_names, s_tir, tirx, tvm, tvm_ffi

ScheduleError = s_tir.schedule.schedule.ScheduleError


@dataclass(frozen=True)
class BlockFacts:
    """What a schedule asks of a block. Axes by their position: `extents` of all, those that are `reductions`, the
    last that is none (`last_spatial`, -1 without), whether what is reduced has that one last
    (`last_axis_contiguous`), and the spatial ones that this read does not depend on (`shared`).
    `conditional`: reads are guarded by a condition."""

    extents: tuple[int, ...]
    reductions: tuple[int, ...]
    last_spatial: int
    last_axis_contiguous: bool
    shared: tuple[int, ...]
    conditional: bool


def new_schedule(kernel: PrimFunc) -> Any:
    return s_tir.Schedule(tvm.IRModule({"main": kernel}), error_render_level="none")


def block_facts(schedule: Any, block: Any) -> BlockFacts:
    statement = schedule.get(block)
    axes = list(statement.iter_vars)
    reductions = tuple(i for i, axis in enumerate(axes) if int(axis.iter_type) == tirx.IterVar.CommReduce)
    spatial = [i for i in range(len(axes)) if i not in reductions]
    last = spatial[-1] if spatial else -1
    reduced = [axes[i].var for i in reductions]
    rows = [r for r in statement.reads if any(_uses(d.min, v) for d in r.region for v in reduced)]
    row = next((r for r in rows if last >= 0 and _uses(r.region[-1].min, axes[last].var)), None)
    shared = [] if row is None else [i for i in spatial if not any(_uses(d.min, axes[i].var) for d in row.region)]
    extents = tuple(int(axis.dom.extent) for axis in axes)
    conditional = "if_then_else" in op_names(statement.body)
    return BlockFacts(extents, reductions, last, row is not None, tuple(shared), conditional)


def _uses(expr: Any, var: Any) -> bool:
    found = False

    def look(seen: Any) -> None:
        nonlocal found
        found = found or seen.same_as(var)

    tvm_ffi.structural_walk(expr, (tirx.Var, look))
    return found
