"""Einsum of any equation."""

from __future__ import annotations

import numpy as np
import pytest
from few_ops import network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sandwich import check, node, values

from spa.coupling.rules.einsum import terms

SIZES = dict(zip("abcdef", (2, 3, 4, 5, 6, 3), strict=True))
TERM = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True).map("".join)


@settings(max_examples=60)
@given(
    left=TERM,
    right=TERM,
    third=st.none() | TERM,
    order=st.randoms(use_true_random=False),
    implicit=st.booleans(),
    squash=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_equation(
    left: str, right: str, third: str | None, order: object, implicit: bool, squash: bool, seed: int
) -> None:
    """x goes through a weight whose columns are the last letter of the first operand; so does the output."""
    inputs = [left, right, *([third] if third else [])]
    letters = sorted(set("".join(inputs)))
    out = (
        [c for c in letters if "".join(inputs).count(c) == 1]
        if implicit
        else [c for c in letters if order.random() < 0.6]
    )  # type: ignore[attr-defined]
    assume(out)
    if not implicit:
        order.shuffle(out)  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    constants = {"w0": values(rng, 3, SIZES[left[-1]]), "w1": values(rng, SIZES[out[-1]], 2)}
    constants |= {f"c{k}": values(rng, *(SIZES[c] for c in term)) for k, term in enumerate(inputs[1:])}
    equation = ",".join(inputs) + ("" if implicit else "->" + "".join(out))
    operands = " ".join(["r" if squash else "a", *(f"c{k}" for k in range(len(inputs) - 1))])
    nodes = [
        node("MatMul", "x w0", "a"),
        *([node("Sigmoid", "a", "r")] if squash else []),
        node("Einsum", operands, "z", equation=equation),
        node("MatMul", "z w1", "y"),
    ]
    model = network(nodes, {"x": [*(SIZES[c] for c in left[:-1]), 3]}, ["y"], constants)
    letter = left[-1]
    forgotten = letter not in out and (not squash or "".join(inputs).count(letter) > 1)
    check(model, seed, cuts="w0:1" if forgotten or letter == out[-1] else "")


@settings(max_examples=30)
@given(
    equation=st.sampled_from(["...ij,jk->...ik", "...ij,jk", "b...j,jk->b...k", "...j->...", "ij...,jk->ik...", "i...->...i", " b s h , h d -> b s d "]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_ellipsis(equation: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = equation.replace(" ", "").partition(",")[0].partition("->")[0]
    constants = {"w0": values(rng, 3, 5), "w1": values(rng, 5, 4), "c": values(rng, 5, 6)}
    nodes = [node("MatMul", "x w0", "a")]
    if axis in ("ij...", "i..."):
        nodes.append(node("Transpose", "a", "t", perm=[0, 2, 1] if axis == "ij..." else [2, 0, 1]))
    nodes.append(node("Einsum", nodes[-1].output[0] + (" c" if "," in equation else ""), "z", equation=equation))
    nodes.append(node("MatMul", "z w1", "y") if equation == "i...->...i" else node("Identity", "z", "y"))
    check(
        network(
            nodes, {"x": (2, 4, 3)}, ["y"], {k: v for k, v in constants.items() if any(k in n.input for n in nodes)}
        ),
        seed,
        cuts="w0:1",
    )


@pytest.mark.parametrize("equation", ["ii->i", "ii->", "ii,i->i", "iij->j"])
def test_diagonals_are_refused(equation: str) -> None:
    rng = np.random.default_rng(0)
    first = equation.replace("->", ",").split(",")[0]
    constants = {"w0": values(rng, 3, 4), "i": values(rng, 4)}
    lead = [4] * (len(first) - 1) if first != "iij" else [4, 4]
    nodes = [node("MatMul", "x w0", "a"), node("Einsum", "a i" if "," in equation else "a", "y", equation=equation)]
    model = network(
        nodes, {"x": [*lead, 3]}, ["y"], {k: v for k, v in constants.items() if k == "w0" or "," in equation}
    )
    check(model, keeps="" if first == "iij" else "w0:1")


def test_an_equation_that_does_not_fit() -> None:
    assert terms("ij,jk->ik", [2], 2) is None
    assert terms("ij->ij", [3], 2) is None
    assert terms("i...j", [2], 2) == ([["i", "j"]], ["i", "j"])
