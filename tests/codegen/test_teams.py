"""Parallel loops as threads run them, on the TIR itself: who runs what, where barriers stand, whose memory is whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("tvm")

from spa.codegen.kernels.parallel import everyone, parallel
from spa.codegen.kernels.vector import argument, function, loop, number, scratch, store
from spa.codegen.tvm_api import tirx
from spa.codegen.tvm_api.teams import Member, has_parallel, serial, shared

pytestmark = pytest.mark.codegen


def written(body: Callable[[Any, Any], None]) -> Any:
    with function() as f:
        body(argument("x", 64), argument("y", 64))
    return f.primfunc.body


def together(body: Any) -> str:
    own: list[Any] = []
    lines = str(shared(body, Member.new("net"), {}, lambda part: own.append(part) or part, lambda alloc: alloc))
    assert own, "a loop that threads share has memory of its own"
    return lines


def copy(x: Any, y: Any) -> None:
    with parallel(64) as i:
        store(y, x[i], i, 1)


def prepared(x: Any, y: Any) -> None:
    with everyone():
        table = scratch(512)
        with loop(512) as j:
            store(table, number(1, 1), j, 1)
        with parallel(64) as i:
            store(y, x[i] + table[i], i, 1)


def test_alone_a_parallel_loop_is_a_loop_and_preparation_is_done_once() -> None:
    for body in (copy, prepared):
        text = str(serial(written(body)))
        assert "parallel" not in text and "spa.everyone" not in text
        assert text.count("for ") == (1 if body is copy else 2)


def test_each_thread_takes_its_share() -> None:
    text = together(written(copy))
    assert "64 * task" in text and "tasks" in text and "parallel" not in text
    assert text.count("net__barrier") == 1
    assert "if task == 0" not in text


def test_everyone_prepares_and_shares_only_the_loop() -> None:
    text = together(written(prepared))
    assert "range(512)" in text and "if task == 0" not in text
    assert text.index("range(512)") < text.index("64 * task")
    assert text.count("net__barrier") == 1


def test_what_is_no_parallel_loop_is_done_by_one_thread_between_barriers() -> None:
    def body(x: Any, y: Any) -> None:
        with loop(3) as n:
            with loop(8) as i:
                store(y, x[i], i + n, 1)
            with parallel(16) as i:
                store(y, x[i], i + 32, 1)

    text = together(written(body))
    assert text.index("if task == 0") < text.index("net__barrier") < text.index("16 * task")
    assert text.count("net__barrier") == 2
    assert "range(3)" in text


def test_nothing_is_left_parallel_inside_a_share() -> None:
    def body(x: Any, y: Any) -> None:
        with parallel(4) as i, parallel(16) as j:
            store(y, x[i * 16 + j], i * 16 + j, 1)

    found = shared(written(body), Member.new("net"), {}, lambda part: part, lambda alloc: alloc)
    assert not has_parallel(found)
    assert str(found).count("tasks") >= 2 and "16 * task" not in str(found)


def test_a_condition_around_a_parallel_loop_is_refused() -> None:
    inner = written(copy)
    loops: list[Any] = []
    from spa.codegen.tvm_api.library import tvm_ffi

    tvm_ffi.structural_walk(inner, (tirx.For, loops.append))
    conditional = tirx.IfThenElse(tirx.Var("c", "int32") == 0, loops[0], None)
    with pytest.raises(TypeError, match="IfThenElse"):
        shared(conditional, Member.new("net"), {}, lambda part: part, lambda alloc: alloc)
