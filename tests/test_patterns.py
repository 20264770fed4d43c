"""Patterns: their text, their masks against a checker of its own and against brute force, tails, and all views of weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from check_patterns import fault
from hypothesis import given, settings
from hypothesis import strategies as st

from spa.errors import UsageError
from spa.sparsity.layers import View
from spa.sparsity.patterns import parse

TEXTS = [
    "2:4",
    "1:4",
    "4:8",
    "3:5",
    "g2:4",
    "g8x1:4",
    "unstructured:0.37",
    "fanin:0.6",
    "block4x1:0.5",
    "block1x4:0.7",
    "block2x3:0.5",
    "block16x1:0.25",
]


@pytest.mark.parametrize("text", [*TEXTS, "kernel:0.5"])
def test_the_text_of_a_pattern_is_its_name(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text", ["", "2", "5:4", "0:4", "block4:0.5", "block0x1:0.5", "unstructured", "unstructured:1"]
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@settings(max_examples=60)
@given(text=st.sampled_from(TEXTS), rows=st.integers(1, 19), cols=st.integers(1, 23), seed=st.integers(0, 99))
def test_masks_have_their_pattern_and_one_weight_more_breaks_it(text: str, rows: int, cols: int, seed: int) -> None:
    pattern, rng = parse(text), np.random.default_rng(seed)
    scores = rng.random((rows, cols)) + 0.01
    mask = pattern.mask(scores)
    assert pattern.check(mask) and not fault(mask, 1, text)
    for r, c in zip(*np.nonzero(~mask), strict=True):
        more = mask.copy()
        more[r, c] = True
        assert not pattern.check(more) and fault(more, 1, text)


@settings(max_examples=20)
@given(
    rows=st.integers(1, 6), channels=st.integers(1, 6), ratio=st.sampled_from([0.25, 0.5, 0.8]), seed=st.integers(0, 9)
)
def test_kernels_go_whole(rows: int, channels: int, ratio: float, seed: int) -> None:
    pattern = parse(f"kernel:{ratio}")
    mask = pattern.mask(np.random.default_rng(seed).random((rows, 9 * channels)), 9)
    kernels = mask.reshape(rows, 9, channels)
    assert (kernels.all(1) == kernels.any(1)).all()
    assert pattern.check(mask, 9) and not fault(mask, 9, str(pattern))


@settings(max_examples=30)
@given(
    rows=st.integers(1, 6),
    channels=st.integers(1, 7),
    k=st.integers(1, 10),
    most=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_kernels_keep_few_taps_in_few_shapes(rows: int, channels: int, k: int, most: int, seed: int) -> None:
    pattern, scores = parse(f"taps{k}x{most}"), np.random.default_rng(seed).random((rows, 9 * channels)) + 0.01
    mask = pattern.mask(scores, 9)
    assert pattern.check(mask, 9) and not fault(mask, 9, str(pattern))
    kernels = mask.reshape(rows, 9, channels).swapaxes(1, 2).reshape(-1, 9)
    assert (kernels.sum(1) == min(k, 9)).all() and len(np.unique(kernels, axis=0)) <= most
    if k < 9:
        more = mask.copy()
        more[0, 0] = True
        more[0, ::channels] |= np.arange(9) == np.flatnonzero(~mask[0, ::channels])[0]
        assert not pattern.check(more, 9) and fault(more, 9, str(pattern))


def test_one_shape_more_than_allowed_is_a_fault() -> None:
    kernels = np.zeros((3, 9), bool)
    for i in range(3):
        kernels[i, i : i + 4] = True
    assert parse("taps4x3").check(kernels, 9) and not fault(kernels, 9, "taps4x3")
    assert not parse("taps4x2").check(kernels, 9) and fault(kernels, 9, "taps4x2")


def test_the_shapes_are_those_that_keep_most() -> None:
    """Two shapes of two taps for kernels with three taps: all pairs of shapes tried."""
    scores = np.random.default_rng(3).random((1, 3 * 40)) ** 3
    kernels = scores.reshape(3, 40).T
    ways = [np.array(w) for w in ([1, 1, 0], [1, 0, 1], [0, 1, 1])]
    best = max(np.maximum(kernels @ a, kernels @ b).sum() for a, b in itertools.combinations(ways, 2))
    assert scores[parse("taps2x2").mask(scores, 3)].sum() >= 0.98 * best


@pytest.mark.parametrize(
    ("text", "shape"), [("2:4", (2, 6)), ("g2x1:2", (4, 4)), ("block2x2:0.5", (4, 4)), ("fanin:0.5", (2, 5))]
)
def test_of_all_masks_with_the_pattern_the_one_with_the_most_score_is_taken(text: str, shape: tuple[int, int]) -> None:
    pattern = parse(text)
    scores = np.random.default_rng(1).random(shape)
    best = 0.0
    for bits in itertools.product([False, True], repeat=shape[0] * shape[1]):
        mask = np.array(bits).reshape(shape)
        total = float(scores[mask].sum())
        if total > best and not fault(mask, 1, text):
            best = total
    assert scores[pattern.mask(scores)].sum() == pytest.approx(best)


def test_a_tail_keeps_its_share_rounded_up() -> None:
    assert parse("2:4").mask(np.ones((1, 7)))[0].tolist() == [True, True, False, False, True, True, False]
    assert parse("1:4").mask(np.ones((1, 5)))[0].sum() == 2


@settings(max_examples=20)
@given(groups=st.integers(1, 3), rows=st.integers(1, 4), channels=st.integers(1, 4), taps=st.integers(1, 4))
def test_a_view_and_back_is_the_weight(groups: int, rows: int, channels: int, taps: int) -> None:
    view = View((groups, rows, channels, taps), (0, 1, 3, 2), (groups, rows, taps * channels), taps)
    array = np.random.default_rng(0).standard_normal((groups * rows, channels, taps)).astype(np.float32)
    matrix = view.matrix(array)
    assert (matrix[0, 0, :channels] == array[0, :, 0]).all()  # the inputs of the first tap
    assert (view.tensor(matrix, array) == array).all()
