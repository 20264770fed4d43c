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
