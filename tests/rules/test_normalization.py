"""Normalisations: per channel exact, over the channel refused, RMS exact by rescaling."""

from __future__ import annotations

import numpy as np
from few_ops import attributes, find
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich, values

import spa

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)


@few
@given(tail=TAIL, nonzero=st.booleans(), epsilon=st.sampled_from([1e-5, 1e-1]), seed=SEEDS)
def test_batch_norm(tail: str, nonzero: bool, epsilon: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants = {k: values(rng, 6) for k in "sbm"} | {"v": np.abs(values(rng, 6)) + 0.1}
    model = sandwich(
        [node("BatchNormalization", "a s b m v", "z", epsilon=epsilon)],
        (2, 6, 4),
        1,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants=constants,
    )
    check(model, seed, cuts="w0:1 s b m v", atol=1e-4)


@few
@given(tail=TAIL, nonzero=st.booleans(), seed=SEEDS)
def test_instance_norm(tail: str, nonzero: bool, seed: int) -> None:
    constants = {k: values(np.random.default_rng(seed), 6) for k in "sb"}
    check(
        sandwich(
            [node("InstanceNormalization", "a s b", "z")],
            (2, 6, 4),
            1,
            kind=tail,
            nonzero=nonzero,
            seed=seed,
            constants=constants,
        ),
        seed,
        cuts="w0:1 s b",
        atol=1e-4,
    )


@few
@given(groups=st.sampled_from([2, 3, 6]), old=st.booleans(), tail=TAIL, nonzero=st.booleans(), seed=SEEDS)
def test_group_norm(groups: int, old: bool, tail: str, nonzero: bool, seed: int) -> None:
    """Whole groups go."""
    constants = {k: values(np.random.default_rng(seed), groups if old else 6) for k in "sb"}
    middle = node("GroupNormalization", "a s b", "z", num_groups=groups)
    model = sandwich(
        [middle], (2, 6, 4), 1, kind=tail, nonzero=nonzero, seed=seed, constants=constants, opset=18 if old else 21
    )
    # opset 18's is deprecated: the checker passes none
    cut, removed = check(model, seed, cuts="w0:1 s b", atol=1e-4, checked=not old)
    each = 6 // groups
    gone = removed["w0"]["1"]
    assert len(gone) == each * len({i // each for i in gone})
    assert attributes(find(cut, "GroupNormalization"))["num_groups"] == groups - len(gone) // each


@few
@given(
    axis=st.sampled_from([-1, 1, 2]),
    channel=st.integers(0, 2),
    scaled=st.booleans(),
    shift=st.booleans(),
    tail=TAIL,
    nonzero=st.booleans(),
    seed=SEEDS,
)
def test_layer_norm(axis: int, channel: int, scaled: bool, shift: bool, tail: str, nonzero: bool, seed: int) -> None:
    shape = (4, 5, 6)
    inner = shape[axis % 3 :]
    constants = {"s": values(np.random.default_rng(seed), *inner), "b": values(np.random.default_rng(seed + 1), *inner)}
    middle = node("LayerNormalization", "a s b" if shift else "a s", "z", axis=axis)
    used = {k: v for k, v in constants.items() if k in middle.input}
    model = sandwich([middle], shape, channel, kind=tail, nonzero=nonzero, seed=seed, constants=used)
    mixed = channel >= axis % 3
    check(model, seed, atol=1e-4, keeps="w0:1" if mixed else "", cuts="w0:1" if tail == "weight" and not mixed else "")


@few
@given(
    axis=st.sampled_from([-1, 1, 2]),
    channel=st.integers(0, 2),
    squash=st.booleans(),
    tail=TAIL,
    epsilon=st.sampled_from([1e-6, 0.3]),
    seed=SEEDS,
)
def test_rms_norm(axis: int, channel: int, squash: bool, tail: str, epsilon: float, seed: int) -> None:
    """Zeros do not count in a sum of squares: the mean is rescaled, and the axis may shrink."""
    from sandwich import reference

    shape = (4, 5, 6)
    constants = {"s": values(np.random.default_rng(seed), *shape[axis % 3 :])}
    nodes = [
        node("Sigmoid" if squash else "Relu", "a", "r"),
        node("RMSNormalization", "r s", "z", axis=axis, epsilon=epsilon),
    ]
    model = sandwich(nodes, shape, channel, kind=tail, nonzero=False, seed=seed, constants=constants)
    mixed = channel >= axis % 3
    check(
        model,
        seed,
        runner=reference,
        atol=1e-4,
        keeps="w0:1" if mixed and squash else "",
        cuts="w0:1" if tail == "weight" and not (mixed and squash) else "",
    )


@few
@given(
    op=st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]),
    opset=st.sampled_from([11, 13]),
    axis=st.integers(0, 2),
    channel=st.integers(0, 2),
    tail=TAIL,
    seed=SEEDS,
)
def test_softmax(op: str, opset: int, axis: int, channel: int, tail: str, seed: int) -> None:
    model = sandwich([node(op, "a", "z", axis=axis)], (4, 5, 6), channel, kind=tail, seed=seed, opset=opset)
    mixed = channel == axis if opset == 13 else channel >= axis
    check(model, seed, keeps="w0:1" if mixed else "", cuts="w0:1" if tail == "weight" and not mixed else "")


@few
@given(
    op=st.sampled_from(["LRN", "LpNormalization", "MeanVarianceNormalization"]),
    channel=st.integers(0, 3),
    squash=st.booleans(),
    tail=TAIL,
    seed=SEEDS,
)
def test_others(op: str, channel: int, squash: bool, tail: str, seed: int) -> None:
    options = {
        "LRN": {"size": 3},
        "LpNormalization": {"axis": 1, "p": 2},
        "MeanVarianceNormalization": {"axes": [0, 2, 3]},
    }
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r"), node(op, "r", "z", **options[op])]
    model = sandwich(nodes, (4, 6, 3, 5), channel, kind=tail, nonzero=False, seed=seed, opset=13)
    mixed = {
        "LRN": channel == 1,
        "LpNormalization": channel == 1 and squash,
        "MeanVarianceNormalization": True,
    }[op]
    check(model, seed, atol=1e-4, keeps="w0:1" if mixed else "", cuts="w0:1" if tail == "weight" and not mixed else "")


def test_approximate_groups_are_marked() -> None:
    """What is refused for exactness alone can be asked for, and says so."""
    constants = {"s": values(np.random.default_rng(0), 6)}
    model = sandwich([node("LayerNormalization", "a s", "z")], (2, 6), 1, constants=constants)
    assert not any(g.id == "w0:1" for g in spa.analyze(model).groups)
    (group,) = [g for g in spa.analyze(model, allow_approximate=True).groups if g.id == "w0:1"]
    assert not group.exact and group.notes
