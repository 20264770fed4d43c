"""Detection, warping and what mixes some axes only: channels pass, positions stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from few_ops import attributes, find, network
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, reference, sandwich, values

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)


@few
@given(
    mode=st.sampled_from(["linear", "nearest"]),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    tail=TAIL,
    bias=st.booleans(),
    seed=SEEDS,
)
def test_grid_sample(mode: str, padding: str, tail: str, bias: bool, seed: int) -> None:
    grid = np.random.default_rng(seed).uniform(-1.2, 1.2, (2, 3, 2, 2)).astype(np.float32)
    middle = node("GridSample", "a grid", "z", mode=mode, padding_mode=padding)
    model = sandwich(
        [middle],
        (2, 6, 4, 4),
        1,
        (2, 6, 3, 2),
        1,
        kind=tail,
        nonzero=bias,
        seed=seed,
        constants={"grid": grid},
        opset=20,
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "", keeps="grid")


@few
@given(
    op=st.sampled_from(["RoiAlign", "MaxRoiPool"]),
    mode=st.sampled_from(["avg", "max"]),
    tail=TAIL,
    bias=st.booleans(),
    seed=SEEDS,
)
def test_rois(op: str, mode: str, tail: str, bias: bool, seed: int) -> None:
    corner = np.random.default_rng(seed).uniform(0, 2, (3, 4)).astype(np.float32)
    corner[:, 2:] += 2
    constants = {"rois": corner, "which": np.array([0, 1, 1])}
    middle = node("RoiAlign", "a rois which", "z", mode=mode, output_height=2, output_width=2)
    if op == "MaxRoiPool":
        constants = {"rois": np.concatenate([constants["which"][:, None], corner], 1).astype(np.float32)}
        middle = node(op, "a rois", "z", pooled_shape=[2, 2])
    model = sandwich(
        [middle], (2, 6, 4, 4), 1, (3, 6, 2, 2), 1, kind=tail, nonzero=bias, seed=seed, constants=constants, opset=16
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "", keeps="rois")


@few
@given(
    groups=st.sampled_from([1, 2]),
    offsets=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    mask=st.booleans(),
    squash=st.booleans(),
    seed=SEEDS,
)
def test_deform_conv(groups: int, offsets: int, bias: bool, mask: bool, squash: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants = {
        "w0": values(rng, 8, 3, 1, 1), "w": values(rng, 6, 8 // groups, 2, 2), "offset": values(rng, 2, offsets * 8, 3, 3),
        "b": values(rng, 6), "m": values(rng, 2, offsets * 4, 3, 3), "w1": values(rng, 4, 6, 1, 1),
    }  # fmt: skip
    nodes = [node("Conv", "x w0", "a"), node("Sigmoid" if squash else "Relu", "a", "r")]
    nodes += [
        node(
            "DeformConv",
            f"r w offset {'b' if bias else '_'} {'m' if mask else '_'}",
            "d",
            group=groups,
            offset_group=offsets,
        ),
        node("Conv", "d w1", "y"),
    ]
    used = {i for n in nodes for i in n.input}
    model = network(nodes, {"x": (2, 3, 4, 4)}, ["y"], {k: v for k, v in constants.items() if k in used}, opset=19)
    cut, removed = check(model, seed, cuts="w0:0 w:0 w1:1", runner=reference, atol=1e-4)
    left = attributes(find(cut, "DeformConv"))
    assert left.get("offset_group", 1) * 8 == offsets * 8 - len(removed.get("offset", {}).get("1", []))


@few
@given(
    sizes=st.tuples(*[st.sampled_from([3, 4, 6])] * 2), named=st.booleans(), tail=TAIL, bias=st.booleans(), seed=SEEDS
)
def test_center_crop_pad(sizes: tuple[int, int], named: bool, tail: str, bias: bool, seed: int) -> None:
    """The channel's own size in the target follows."""
    target = [*sizes] if named else [2, 6, *sizes]
    middle = node("CenterCropPad", "a target", "z", **({"axes": [2, -1]} if named else {}))
    constants = {"target": np.array(target, np.int64)}
    model = sandwich(
        [middle], (2, 6, 4, 4), 1, (2, 6, *sizes), 1, kind=tail, nonzero=bias, seed=seed, constants=constants, opset=18
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(
    bias=st.booleans(),
    past=st.booleans(),
    activation=st.sampled_from(["none", "silu"]),
    squash=st.booleans(),
    seed=SEEDS,
)
def test_causal_conv(bias: bool, past: bool, activation: str, squash: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants = {"w": values(rng, 6, 1, 3), "b": values(rng, 6), "p": values(rng, 2, 6, 2)}
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r")]
    nodes.append(
        node(
            "CausalConvWithState", f"r w {'b' if bias else '_'} {'p' if past else '_'}", "z next", activation=activation
        )
    )
    used = {i for n in nodes for i in n.input}
    model = sandwich(
        nodes,
        (2, 6, 5),
        1,
        kind="weight",
        seed=seed,
        constants={k: v for k, v in constants.items() if k in used},
        opset=27,
    )
    check(model, seed, cuts="w0:1 w:0", runner=reference)


# op -> (attributes, other operands, axes that stay, shape of the result)
MIXERS = {
    "Trilu": ({"upper": 0}, {}, {1, 2}, (4, 5, 5)),
    "Det": ({}, {}, {1, 2}, (4,)),
    "ReverseSequence": ({"time_axis": 1, "batch_axis": 0}, {"lengths": np.array([1, 5, 3, 2])}, {0, 1}, (4, 5, 5)),
    "CumSum": ({}, {"axis": np.array(1)}, {1}, (4, 5, 5)),
    "ArgMax": ({"axis": 1, "keepdims": 1}, {}, {1}, (4, 1, 5)),
}


@few
@given(op=st.sampled_from(sorted(MIXERS)), channel=st.integers(0, 2), tail=TAIL, bias=st.booleans(), seed=SEEDS)
def test_axes_beside_the_mixed_ones_pass(op: str, channel: int, tail: str, bias: bool, seed: int) -> None:
    options, constants, stays, out = MIXERS[op]
    nodes = [node(op, " ".join(["a", *constants]), "m", **options), node("Cast", "m", "z", to=onnx.TensorProto.FLOAT)]
    channel = channel if channel < len(out) else 0
    model = sandwich(
        nodes, (4, 5, 5), channel, out, channel, kind=tail, nonzero=bias, seed=seed, constants=constants, opset=18
    )
    check(model, seed, **({"keeps": "w0:1"} if channel in stays else {"cuts": "w0:1" if tail == "weight" else ""}))


@few
@given(
    channel=st.integers(0, 2),
    axis=st.sampled_from([1, -2, 2]),
    old=st.booleans(),
    tail=TAIL,
    bias=st.booleans(),
    seed=SEEDS,
)
def test_dft(channel: int, axis: int, old: bool, tail: str, bias: bool, seed: int) -> None:
    shape = (3, 4, 5, 1)
    constants = {} if old else {"axis": np.array(axis)}
    middle = node("DFT", "a", "z", axis=axis) if old else node("DFT", "a _ axis", "z")
    model = sandwich(
        [middle],
        shape,
        channel,
        (3, 4, 5, 2),
        channel,
        kind=tail,
        nonzero=bias,
        seed=seed,
        constants=constants,
        opset=17 if old else 20,
    )
    check(
        model,
        seed,
        atol=1e-4,
        **({"keeps": "w0:1"} if channel == axis % 4 else {"cuts": "w0:1" if tail == "weight" else ""}),
    )


@pytest.mark.parametrize(
    ("op", "operands", "constants", "options"),
    [
        ("NonZero", "a", {}, {}), ("Unique", "a", {}, {}), ("Unique", "a", {}, {"axis": 1}), ("EyeLike", "a", {}, {}),
        ("RandomNormalLike", "a", {}, {}), ("RandomUniformLike", "a", {}, {}), ("Bernoulli", "a", {}, {}), ("Multinomial", "a", {}, {"sample_size": 3}),
        ("NonMaxSuppression", "b s", {}, {}), ("AffineGrid", "t size", {"size": np.array([2, 3, 4, 4])}, {}),
    ],
)  # fmt: skip
def test_refusals_say_why(op: str, operands: str, constants: dict[str, np.ndarray], options: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    reshapes = {"b": (1, 2, 4), "s": (1, 1, 8), "t": (2, 2, 3)}
    nodes = [node("MatMul", "x w0", "a")]
    first = operands.split()[0]
    if first in reshapes:
        constants = constants | {
            f"shape_{k}": np.array(s) for k, s in reshapes.items() if k in operands.split() and k != "s"
        }
        nodes += [node("Reshape", f"a shape_{first}", first)]
        width = int(np.prod(reshapes[first])) // 2
        if first == "b":
            constants["scores"] = np.ones((1, 1, 2), np.float32)
            operands = "b scores"
    else:
        width = 4
    nodes.append(node(op, operands, "r", **options))
    nodes.append(node("Identity", "r", "y"))
    kind = (
        onnx.TensorProto.INT64
        if op in ("NonZero", "NonMaxSuppression")
        else onnx.TensorProto.INT32
        if op == "Multinomial"
        else onnx.TensorProto.FLOAT
    )
    model = network(
        nodes, {"x": (2, 3)}, ["y"], {"w0": values(rng, 3, width), **constants}, types={"y": kind}, opset=20
    )
    import spa

    blocked = [b for b in spa.analyze(model).blocked if b.group.startswith("w0:1")]
    assert any(op in str(r) for b in blocked for r in b.reasons), [str(r) for b in blocked for r in b.reasons]
