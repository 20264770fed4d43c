"""Einsum of any equation."""

from __future__ import annotations

import numpy as np
import pytest
from few_ops import network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich, values

from spa.coupling.rules.einsum import terms

SIZES = dict(zip("abcdef", (2, 3, 4, 5, 6, 3), strict=True))
TAIL = st.sampled_from(TAILS)
TERM = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True).map("".join)


@settings(max_examples=120)
@given(
    left=TERM, right=TERM, third=st.none() | TERM, kept=st.sets(st.sampled_from("abcdef")), order=st.permutations("abcdef"), implicit=st.booleans(),
    channel=st.integers(0, 2), read=st.integers(0, 2), nonzero=st.booleans(), live=st.booleans(), tail=TAIL, seed=st.integers(0, 999),
)  # fmt: skip
def test_any_equation(
    left: str, right: str, third: str | None, kept: set[str], order: list[str], implicit: bool, channel: int, read: int, nonzero: bool, live: bool,
    tail: str, seed: int,
) -> None:  # fmt: skip
    """Any letter of the first operand carries the channels; `live`: no other operand is zero where it is masked."""
    terms_ = [left, right, *([third] if third else [])]
    text = "".join(terms_)
    once = sorted(c for c in set(text) if text.count(c) == 1)
    out = once if implicit else [c for c in order if c in text and c in kept]
    assume(out)
    rng = np.random.default_rng(seed)
    constants = {f"c{k}": values(rng, *(SIZES[c] for c in term)) for k, term in enumerate(terms_[1:])}
    names = [f"l{k}" if live else f"c{k}" for k in range(len(constants))]
    nodes = [node("Sigmoid", f"c{k}", f"l{k}") for k in range(len(constants))] if live else []
    equation = ",".join(terms_) + ("" if implicit else "->" + "".join(out))
    nodes.append(node("Einsum", " ".join(["a", *names]), "z", equation=equation))
    letter = left[channel % len(left)]
    place = out.index(letter) if letter in out else read % len(out)
    shape, result = ([SIZES[c] for c in t] for t in (left, out))
    model = sandwich(
        nodes, shape, left.index(letter), result, place, kind=tail, nonzero=nonzero, seed=seed, constants=constants
    )
    forgotten = not nonzero or (text.count(letter) > 1 and not live)
    check(model, seed, cuts="w0:1" if (letter in out and tail == "weight") or (letter not in out and forgotten) else "")


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
