"""Runs the TIR of CUDA kernels, as it is right before it becomes C, on the CPU: see `machine` for what it watches over.

Every expression and statement becomes one Python function of a `State`; scalars are numpy arrays over the threads (or
of no axes where all threads agree), vectors have a last axis for their elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from expressions import expression, numpy_type
from instructions import instruction
from machine import Array, Memory, Threads
from state import Diverged, State, Statement
from warpgroup import Products, device_function

from spa.codegen.tvm_api import tirx
from spa.codegen.tvm_api import tvm as tvm_module

LANES_AT_ONCE = 1 << 15  # threads; more blocks run one batch after the other


def launch(function: Any, arguments: Sequence[Array], grid: Sequence[int], block: Sequence[int], shared: int) -> None:
    """Run a device function on flat arrays, in the order of its parameters."""
    body = compile_statement(function.body)
    blocks, per_block = int(np.prod(grid)), int(np.prod(block))
    batch = max(1, LANES_AT_ONCE // per_block)
    first = 0
    while first < blocks:
        threads = Threads(first, min(batch, blocks - first), tuple(grid), tuple(block))
        state = State(threads, products=Products())
        for parameter, array in zip(function.params, arguments, strict=True):
            state.memories[parameter] = Memory(str(parameter.name), array.reshape(1, -1), "global", threads, True)
        state.variables["shared"] = shared
        try:
            body(state)
        except Diverged:
            if batch == 1:
                raise
            batch = 1  # what was written is written again
            continue
        first += threads.blocks
        assert not any(state.groups) and not state.issued, "copies that nobody waited for"
        assert not state.products.sums, "products that nobody waited for"


# Statements ------------------------------------------------------------------------------------------------------


def compile_statement(node: Any) -> Statement:
    return STATEMENTS[type(node)](node)


def _sequence(node: Any) -> Statement:
    parts = [compile_statement(part) for part in node.seq]

    def run(s: State) -> None:
        for part in parts:
            part(s)

    return run


def _attribute(node: Any) -> Statement:
    body = compile_statement(node.body)
    if node.attr_key != "thread_extent":
        return body
    var, tag = node.node.var, str(node.node.thread_tag)

    def run(s: State) -> None:
        s.variables[var] = s.threads.axis(tag).astype(str(var.ty.dtype))
        body(s)

    return run


def _bind(node: Any) -> Statement:
    var, value = node.var, expression(node.value)

    def run(s: State) -> None:
        s.variables[var] = value(s)

    return run


def _declare(node: Any) -> Statement:
    source = node.data.args[0] if isinstance(node.data, tvm_module.ir.Call) else node.data

    def run(s: State) -> None:
        s.memories[node.buffer] = s.memories[source]

    return run


def _allocate(node: Any) -> Statement:
    buffer, scope = node.buffer, str(node.buffer.scope())
    shape = tuple(int(d) for d in buffer.shape)
    dtype, lanes = numpy_type(str(buffer.dtype))
    tail = (lanes,) if lanes > 1 else ()

    def run(s: State) -> None:
        shared = scope.startswith("shared")
        size = int(np.prod(shape))
        count = s.threads.blocks if shared else s.threads.count
        cells = np.empty((count, size, *tail), dtype)
        cells.view(np.uint8)[...] = 0xFF  # NaN, or a number nobody expects
        if scope == "shared.dyn":
            assert cells[0].nbytes <= s.variables["shared"], "the launch asks for too little shared memory"
        memory = Memory(str(buffer.name), cells, "shared" if shared else "local", s.threads, shared)
        if shared:  # one behind the other, from an address that is aligned to little
            memory.base = max(
                (m.base + m.cells[0].nbytes + 63 & ~63 for m in s.memories.values() if m.base), default=1088
            )
        s.memories[buffer] = memory

    return run


def _loop(node: Any) -> Statement:
    var, begin, extent, body = (
        node.loop_var,
        expression(node.min),
        expression(node.extent),
        compile_statement(node.body),
    )
    dtype = np.dtype(str(var.ty.dtype))

    def run(s: State) -> None:
        lowest, count, outer = begin(s), extent(s), s.mask
        if np.ndim(count):
            mine = count[s.active()]
            if mine.size and (mine == mine[0]).all():
                count = mine[0]
        most = int(np.max(count[s.active()], initial=0)) if np.ndim(count) else int(count)
        for i in range(most):
            if np.ndim(count):
                s.mask = (i < count) if outer is None else outer & (i < count)
            s.variables[var] = (lowest + i).astype(dtype) if np.ndim(lowest) else dtype.type(lowest + i)
            body(s)
        s.mask = outer

    return run


def _if(node: Any) -> Statement:
    condition, then = expression(node.condition), compile_statement(node.then_case)
    otherwise = compile_statement(node.else_case) if node.else_case is not None else None

    def run(s: State) -> None:
        outer, holds = s.mask, condition(s)
        for branch, chosen in ((then, holds), (otherwise, np.logical_not(holds))):
            if branch is None:
                continue
            with_it = np.broadcast_to(chosen, (s.threads.count,)) if outer is None else outer & chosen
            if with_it.any():
                s.mask = None if with_it.all() else with_it
                branch(s)
        s.mask = outer

    return run


def _store(node: Any) -> Statement:
    buffer, value, (index,) = node.buffer, expression(node.value), [expression(i) for i in node.indices]

    def run(s: State) -> None:
        memory, lanes, v, at = s.memories[buffer], s.active(), value(s), index(s)
        wide = memory.cells.ndim == 3
        if np.ndim(at) == 0 or (np.ndim(at) == 1):
            at = s.spread(at)[lanes]
            v = np.broadcast_to(v, (s.threads.count, *np.shape(v)[1:])) if wide else s.spread(v)
            memory.write(lanes, at, v[lanes])
        else:
            at = np.broadcast_to(at, (s.threads.count, at.shape[1]))[lanes]
            v = np.broadcast_to(v, (s.threads.count, at.shape[1]))[lanes]
            memory.write(lanes, at, v)

    return run


def _evaluate(node: Any) -> Statement:
    call = node.value
    if not isinstance(call, tvm_module.ir.Call):
        return lambda s: None
    name = call.op.name.removeprefix("tirx.")
    if name == "tvm_storage_sync":
        scope = str(call.args[0].value)
        return lambda s: s.threads.warp_barrier() if scope == "warp" else s.threads.barrier(s.mask)
    if name == "cuda.func_call":
        return device_function(call)
    if name.startswith("ptx."):
        return instruction(call)
    value = expression(call)
    return lambda s: value(s) and None


STATEMENTS: dict[Any, Callable[[Any], Statement]] = {
    tirx.SeqStmt: _sequence,
    tirx.AttrStmt: _attribute,
    tirx.Bind: _bind,
    tirx.DeclBuffer: _declare,
    tirx.AllocBuffer: _allocate,
    tirx.For: _loop,
    tirx.IfThenElse: _if,
    tirx.BufferStore: _store,
    tirx.Evaluate: _evaluate,
}
