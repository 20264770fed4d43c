"""Parallel loops -> the part of one member of a team: every thread runs the whole kernel, and of each parallel loop its share.

A kernel with parallel loops gets three more arguments: `task`, `tasks` and the `team`, whose barrier
`<prefix>__barrier(team)` waits for all. What is no parallel loop is run by task 0 alone. Behind either stands a barrier,
so that whatever comes next sees all of it; which thread computed what changes no result.

Memory allocated inside a parallel loop is a thread's own, all other memory the team's (`own_scratch` and `scratch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spa.codegen.tvm_api.library import tirx, tvm, tvm_ffi

BALANCE = (
    "spa.balance"  # annotation of a parallel loop: the argument with a running sum over its work, see `<prefix>__split`
)
EVERYONE = "spa.everyone"  # a "parallel loop" whose body each thread runs once, sharing the parallel loops in it
FLAT = (
    tirx.AllocBuffer,
    tirx.DeclBuffer,
    tirx.Bind,
    tirx.Return,
)  # for every thread: they hold for what is behind them


@dataclass(frozen=True)
class Member:
    """What a thread knows of its team inside a kernel."""

    prefix: str
    task: Any
    tasks: Any
    team: Any

    @classmethod
    def new(cls, prefix: str) -> Member:
        handle = tvm.ir.PointerType(tvm.ir.PrimType("uint8"))
        return cls(prefix, tirx.Var("task", "int32"), tirx.Var("tasks", "int32"), tirx.Var("team", handle))

    @property
    def params(self) -> list[Any]:
        return [self.task, self.tasks, self.team]

    def barrier(self) -> Any:
        return tirx.Evaluate(tirx.call_extern("int32", f"{self.prefix}__barrier", self.team))

    def bound(self, loop: Any, task: Any, pointers: dict[str, Any]) -> Any:
        """Where the share of a task begins."""
        name = loop.annotations.get(BALANCE)
        if name is None:
            return tirx.truncdiv(loop.extent * task, self.tasks)
        return tirx.call_extern("int32", f"{self.prefix}__split", pointers[str(name)], loop.extent, task, self.tasks)


def is_parallel(loop: Any) -> bool:
    return isinstance(loop, tirx.For) and loop.kind == tirx.ForKind.PARALLEL


def has_parallel(body: Any) -> bool:
    """Whether a statement holds a parallel loop."""
    found = False

    def look(loop: Any) -> None:
        nonlocal found
        found = found or is_parallel(loop)

    tvm_ffi.structural_walk(body, (tirx.For, look))
    return found


def serial(body: Any) -> Any:
    """Parallel loops as serial ones."""

    def rewrite(loop: Any) -> Any:
        if not is_parallel(loop):
            return loop
        if EVERYONE in loop.annotations:
            return loop.body
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return tvm_ffi.structural_map(body, (tirx.For, rewrite))


def _outermost(body: Any, rewrite: Callable[[Any], Any]) -> Any:
    """Rewrite the parallel loops that lie in no other."""
    if is_parallel(body):
        return rewrite(body)
    if isinstance(body, tirx.SeqStmt):
        return tirx.SeqStmt([_outermost(s, rewrite) for s in body.seq])
    if isinstance(body, tirx.For):
        return tirx.For(body.loop_var, body.min, body.extent, body.kind, _outermost(body.body, rewrite))
    return body


def shared(
    body: Any, member: Member, pointers: dict[str, Any], own: Callable[[Any], Any], common: Callable[[Any], Any]
) -> Any:
    """The body of a kernel as one member of a team runs it. `pointers`: arguments by name; `own(loop body)` moves what
    is allocated there to the thread's own memory, `common(AllocBuffer)` what is allocated outside to the team's."""

    def share(loop: Any) -> Any:
        """A thread's part of a parallel loop, in which the others are serial."""
        kind = str(loop.loop_var.ty)
        bounds = (member.bound(loop, task, pointers) for task in (member.task, member.task + 1))
        begin, end = (loop.min + (b if kind == "int32" else tirx.Cast(kind, b)) for b in bounds)
        first, extent = tirx.Var("first", kind), tirx.Var("share", kind)
        part = tirx.For(loop.loop_var, first, extent, tirx.ForKind.SERIAL, serial(loop.body))
        return tirx.SeqStmt([tirx.Bind(first, begin), tirx.Bind(extent, end - first), part])

    def visit(statement: Any) -> Any:
        if is_parallel(statement):
            everyone = EVERYONE in statement.annotations
            part = _outermost(statement.body, share) if everyone else share(statement)
            return tirx.SeqStmt([own(part), member.barrier()])
        if isinstance(statement, tirx.SeqStmt):
            return sequence(list(statement.seq))
        if isinstance(statement, tirx.For):
            return tirx.For(statement.loop_var, statement.min, statement.extent, statement.kind, visit(statement.body))
        if isinstance(statement, tirx.AttrStmt):
            return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, visit(statement.body))
        raise TypeError(f"a parallel loop inside a {type(statement).__name__}")

    def sequence(statements: list[Any]) -> Any:
        done: list[Any] = []
        alone: list[Any] = []

        def close() -> None:
            if alone:
                guarded = alone[0] if len(alone) == 1 else tirx.SeqStmt(list(alone))
                done.extend([tirx.IfThenElse(member.task == 0, guarded, None), member.barrier()])
                alone.clear()

        for statement in statements:
            if isinstance(statement, FLAT):
                close()
                done.append(common(statement) if isinstance(statement, tirx.AllocBuffer) else statement)
            elif has_parallel(statement):
                close()
                done.append(visit(statement))
            else:
                alone.append(statement)
        close()
        return done[0] if len(done) == 1 else tirx.SeqStmt(done)

    return visit(body)
