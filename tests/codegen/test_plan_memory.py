"""The arena: no two things that live at the same time overlap."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spa.codegen.plan_memory import ALIGNMENT, Lifetime, align, place, plan_memory
from spa.codegen.program import Call, Program, Ref, Tensor

lifetimes = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 12), st.integers(0, 6)).map(
        lambda t: Lifetime(t[0], t[1], t[1] + t[2])
    ),
    max_size=14,
)


@given(lifetimes)
def test_place(items: list[Lifetime]) -> None:
    offsets, total = place(items)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert all(offset + item.size <= total for offset, item in zip(offsets, items, strict=True) if item.size)
    for i, a in enumerate(items):
        for j, b in enumerate(items[:i]):
            if a.size and b.size and a.first <= b.last and b.first <= a.last:
                assert offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]
    most = max((sum(align(i.size) for i in items if i.first <= t <= i.last) for t in range(20)), default=0)
    assert most <= total <= sum(align(i.size) for i in items)


def test_outputs_go_straight_to_the_caller_and_the_rest_is_copied() -> None:
    x, y = Tensor("x", "float32", (16,)), Tensor("y", "float32", (16,))
    value, other, given_input = Ref("value", 0), Ref("value", 1), Ref("input", 0)
    program = Program(
        inputs=(x,),
        outputs=(y, y, y),
        values=(64, 64),
        consts=(np.zeros(3, np.float32), np.zeros(100, np.uint8)),
        calls=(Call("f", (given_input, other)), Call("g", (other, value))),
        results=(value, value, given_input),
    )
    layout = plan_memory(program, {"f": 100, "g": 0})
    assert layout.direct == {0: 0}
    assert layout.copies == ((value, 1), (given_input, 2))
    assert layout.consts == (0, 64)
    assert layout.weight_bytes == 64 + 128
    assert layout.arena_bytes == 64 + 128  # the value between the calls, and the scratch of f while it lives


def chain(*values: int, calls: tuple[tuple[str, tuple[int, ...]], ...], result: int) -> Program:
    """Calls over values of these sizes; -1 is the input."""
    x = Tensor("x", "float32", (16,))
    refs = [Ref("value", i) for i in range(len(values))]
    made = tuple(Call(name, tuple(Ref("input", 0) if i < 0 else refs[i] for i in args)) for name, args in calls)
    return Program((x,), (x,), values, (), made, (refs[result],))


def test_a_sum_takes_the_place_of_its_term() -> None:
    calls = (("f", (-1, 0)), ("g", (0, 1)), ("add", (1, 0, 2)), ("h", (2, 3)))
    program = chain(640, 640, 640, 64, calls=calls, result=3)
    apart = plan_memory(program, {})
    together = plan_memory(program, {}, {"add": (1,)})
    assert together.values[2] == together.values[0] != together.values[1]
    assert (apart.arena_bytes, together.arena_bytes) == (3 * 640, 2 * 640)
    assert plan_memory(program, {}, {"add": (0,)}).values[2] == together.values[1]


def test_what_is_needed_later_is_not_taken() -> None:
    add = {"add": (0, 1)}
    later = chain(
        640, 640, 640, 64, calls=(("f", (-1, 0)), ("g", (0, 1)), ("add", (0, 1, 2)), ("h", (2, 0, 3))), result=3
    )
    layout = plan_memory(later, {}, add)
    assert layout.values[2] == layout.values[1] != layout.values[0]
    twice = chain(640, 640, 64, calls=(("f", (-1, 0)), ("add", (0, 0, 1)), ("h", (1, 2))), result=2)
    assert len(set(plan_memory(twice, {}, add).values[:2])) == 2  # it reads its term in another way too
    smaller = chain(
        640, 320, 320, 64, calls=(("f", (-1, 0)), ("g", (0, 1)), ("add", (0, 1, 2)), ("h", (2, 3))), result=3
    )
    assert plan_memory(smaller, {}, {"add": (0,)}).values[2] != plan_memory(smaller, {}, {"add": (0,)}).values[0]
    given = chain(640, 64, calls=(("add", (-1, -1, 0)), ("h", (0, 1))), result=1)
    assert plan_memory(given, {}, add).arena_bytes == 640  # inputs are only read


programs = st.lists(
    st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.sampled_from(["f", "add"])),
    min_size=1,
    max_size=14,
)


@given(programs)
def test_values_keep_until_they_are_last_read(calls: list[tuple[list[int], str]]) -> None:
    """Played through: every call writes its own number into its output's memory, and finds in its arguments those of the calls
    that made them."""
    made = tuple((name, (*(a % (i + 1) - 1 for a in args), i)) for i, (args, name) in enumerate(calls))
    program = chain(*[64 + 64 * (i % 2) for i in range(len(calls))], calls=made, result=len(calls) - 1)
    layout = plan_memory(program, {"f": 64}, {"add": (0,)})
    memory: dict[int, int] = {}
    for i, (_, args) in enumerate(made):
        for a in args[:-1]:
            if a >= 0:
                begin = layout.values[a]
                assert all(memory[at] == a for at in range(begin, begin + program.values[a]))
        if i not in layout.direct:
            memory |= dict.fromkeys(range(layout.values[i], layout.values[i] + program.values[i]), i)
    assert max(memory, default=-1) < layout.arena_bytes
