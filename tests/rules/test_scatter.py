"""Gathers and scatters by element or coordinate, Compress, OneHot, Col2Im."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich, values

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)
INT = onnx.TensorProto.INT64


def indices(rng: np.random.Generator, shape: tuple[int, ...], limit: int, data: bool, name: str = "i"):  # type: ignore[no-untyped-def]
    """As an input or as a constant, and what to feed."""
    array = rng.integers(-limit, limit, shape)
    if data:
        return {"inputs": {name: shape}, "types": {name: INT}}, {name: array}
    return {"constants": {name: array}}, {}


@few
@given(
    axis=st.integers(-3, 2),
    channel=st.integers(0, 2),
    less=st.booleans(),
    data=st.booleans(),
    nonzero=st.booleans(),
    tail=TAIL,
    seed=SEEDS,
)
def test_gather_elements(axis: int, channel: int, less: bool, data: bool, nonzero: bool, tail: str, seed: int) -> None:
    shape, rng = (4, 6, 5), np.random.default_rng(seed)
    size = tuple(n - less if i != axis % 3 else 3 for i, n in enumerate(shape))
    given_, feeds = indices(rng, size, shape[axis], data)
    model = sandwich(
        [node("GatherElements", "a i", "z", axis=axis)],
        shape,
        channel,
        size,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        **given_,
    )
    indexed = axis % 3 == channel
    check(
        model,
        seed,
        given=feeds,
        keeps="w0:1" if indexed else "",
        cuts="w0:1" if tail == "weight" and not indexed and not data else "",
    )


@few
@given(
    axis=st.integers(-3, 2), channel=st.integers(0, 2), less=st.booleans(), data=st.booleans(), nonzero=st.booleans(), live=st.booleans(),
    reduction=st.sampled_from(["none", "add", "mul", "max", "min"]), old=st.booleans(), tail=TAIL, seed=SEEDS,
)  # fmt: skip
def test_scatter_elements(
    axis: int,
    channel: int,
    less: bool,
    data: bool,
    nonzero: bool,
    live: bool,
    reduction: str,
    old: bool,
    tail: str,
    seed: int,
) -> None:
    shape, rng = (4, 6, 5), np.random.default_rng(seed)
    size = tuple(n - less if i != axis % 3 else 2 for i, n in enumerate(shape))
    order = np.argsort(rng.random((*size[: axis % 3], shape[axis], *size[axis % 3 + 1 :])), axis=axis)
    index = np.take(order, range(2), axis=axis)  # no place twice
    constants = {"i": index, "u": values(rng, *size)}
    feeds = {"i": constants.pop("i")} if data else {}
    given_ = {"inputs": {"i": size}, "types": {"i": INT}} if data else {}
    options = {} if old else {"reduction": reduction}
    middle = [
        node("Sigmoid", "u", "v"),
        node("Scatter" if old else "ScatterElements", "a i v" if live else "a i u", "z", axis=axis, **options),
    ]
    model = sandwich(
        middle if live else middle[1:],
        shape,
        channel,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants=constants,
        opset=9 if old else 18,
        **given_,
    )
    indexed = axis % 3 == channel
    check(
        model,
        seed,
        given=feeds,
        keeps="w0:1" if indexed else "",
        cuts="w0:1" if tail == "weight" and not indexed and not data else "",
    )


@few
@given(
    length=st.integers(1, 3),
    batch=st.integers(0, 1),
    outer=st.integers(0, 2),
    channel=st.integers(0, 2),
    data=st.booleans(),
    nonzero=st.booleans(),
    tail=TAIL,
    seed=SEEDS,
)
def test_gather_nd(
    length: int, batch: int, outer: int, channel: int, data: bool, nonzero: bool, tail: str, seed: int
) -> None:
    shape, rng = (4, 6, 5), np.random.default_rng(seed)
    length = min(length, 3 - batch)
    lead = (*shape[:batch], *(2, 3)[: max(outer, 1 - batch)])
    index = np.stack([rng.integers(0, shape[batch + k], lead) for k in range(length)], axis=-1)
    out = (*lead, *shape[batch + length :])
    if not out:
        return
    given_ = {"inputs": {"i": index.shape}, "types": {"i": INT}} if data else {"constants": {"i": index}}
    passes = channel < batch or channel >= batch + length
    where = channel if channel < batch else len(lead) + channel - batch - length if passes else 0
    model = sandwich(
        [node("GatherND", "a i", "z", batch_dims=batch)],
        shape,
        channel,
        out,
        where,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        **given_,
    )
    sure = tail == "weight" and passes and (channel >= batch or not data)
    check(
        model,
        seed,
        given={"i": index} if data else {},
        cuts="w0:1" if sure else "",
        keeps="" if passes or (length == 1 and channel == 0 and not data) else "w0:1",
    )


@few
@given(outer=st.integers(1, 2), tail=TAIL, nonzero=st.booleans(), seed=SEEDS)
def test_gather_nd_of_one_axis_is_a_gather(outer: int, tail: str, nonzero: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.stack([rng.permutation(6)[:3] for _ in range(outer)]).reshape((outer, 3, 1) if outer > 1 else (3, 1))
    model = sandwich(
        [node("GatherND", "a i", "z")],
        (6, 4),
        0,
        (*index.shape[:-1], 4),
        index.ndim - 2,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants={"i": index},
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(
    length=st.integers(1, 3), outer=st.integers(1, 2), channel=st.integers(0, 2), data=st.booleans(), nonzero=st.booleans(), live=st.booleans(),
    reduction=st.sampled_from(["none", "add", "mul", "max", "min"]), tail=TAIL, seed=SEEDS,
)  # fmt: skip
def test_scatter_nd(
    length: int, outer: int, channel: int, data: bool, nonzero: bool, live: bool, reduction: str, tail: str, seed: int
) -> None:
    shape, rng = (4, 6, 5), np.random.default_rng(seed)
    lead = (1, 3)[2 - outer :] if outer == 2 else (3,)
    flat = rng.permutation(int(np.prod(shape[:length])))[: int(np.prod(lead))]
    index = np.stack(np.unravel_index(flat, shape[:length]), axis=-1).reshape(*lead, length)
    constants = {"i": index, "u": values(rng, *lead, *shape[length:])}
    given_ = {"inputs": {"i": index.shape}, "types": {"i": INT}} if data else {}
    if data:
        constants.pop("i")
    middle = [node("Sigmoid", "u", "v"), node("ScatterND", "a i v" if live else "a i u", "z", reduction=reduction)]
    model = sandwich(
        middle if live else middle[1:],
        shape,
        channel,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants=constants,
        opset=18,
        **given_,
    )
    passes = channel >= length
    mapped = length == 1 and channel == 0 and not data
    check(
        model,
        seed,
        given={"i": index} if data else {},
        cuts="w0:1" if tail == "weight" and (passes or mapped) else "",
        keeps="" if passes or mapped else "w0:1",
    )


@few
@given(outer=st.integers(1, 2), live=st.booleans(), tail=TAIL, nonzero=st.booleans(), seed=SEEDS)
def test_scatter_nd_of_one_axis_maps_rows(outer: int, live: bool, tail: str, nonzero: bool, seed: int) -> None:
    """Rows of the updates go with the rows that they replace."""
    rng = np.random.default_rng(seed)
    index = rng.permutation(6)[:4].reshape((2, 2, 1) if outer == 2 else (4, 1)) - 6 * (seed % 2)
    constants = {"i": index, "u": values(rng, *index.shape[:-1], 3)}
    middle = [node("Sigmoid", "u", "v"), node("ScatterND", "a i v" if live else "a i u", "z")]
    model = sandwich(
        middle if live else middle[1:], (6, 3), 0, kind=tail, nonzero=nonzero, seed=seed, constants=constants
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(
    known=st.booleans(),
    flat=st.booleans(),
    short=st.booleans(),
    channel=st.integers(0, 1),
    tail=TAIL,
    nonzero=st.booleans(),
    seed=SEEDS,
)
def test_compress(known: bool, flat: bool, short: bool, channel: int, tail: str, nonzero: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    condition = rng.random(6 - short) < 0.6
    condition[:3] = True
    chosen = int(condition.sum())
    given_ = (
        {"constants": {"c": condition}}
        if known
        else {"inputs": {"c": condition.shape}, "types": {"c": onnx.TensorProto.BOOL}}
    )
    middle = node("Compress", "a c", "z", **({} if flat else {"axis": 1}))
    out, where = ((chosen,), 0) if flat else ((4, chosen), channel)
    model = sandwich([middle], (4, 6), channel, out, where, kind=tail, nonzero=nonzero, seed=seed, **given_)
    check(
        model,
        seed,
        given={} if known else {"c": condition},
        cuts="w0:1" if tail == "weight" and not flat and channel == 0 else "",
    )


@few
@given(axis=st.integers(-3, 2), tail=TAIL, seed=SEEDS)
def test_one_hot(axis: int, tail: str, seed: int) -> None:
    constants = {"depth": np.array(4), "values": np.array([0.0, 1.0], np.float32)}
    shape = (2, 6)
    out = [*shape]
    out.insert(axis % 3, 4)
    where = 1 + (axis % 3 <= 1)
    nodes = [node("Cast", "a", "i", to=INT), node("OneHot", "i depth values", "z", axis=axis)]
    check(
        sandwich(nodes, shape, 1, out, where, kind=tail, seed=seed, constants=constants),
        seed,
        cuts="w0:1" if tail == "weight" else "",
    )


@few
@given(tail=TAIL, nonzero=st.booleans(), block=st.sampled_from([(2, 2), (1, 3), (1, 1)]), seed=SEEDS)
def test_col2im(tail: str, nonzero: bool, block: tuple[int, int], seed: int) -> None:
    """Whole channels go, each with its rows of the block."""
    taps = block[0] * block[1]
    image = (block[0] * 2, block[1] * 3)
    nodes = [
        node("Reshape", "a split", "s"), node("Col2Im", "s image block", "z", strides=list(block)),
    ]  # fmt: skip
    constants = {"split": np.array([2, 5 * taps, 6]), "image": np.array(image), "block": np.array(block)}
    model = sandwich(
        nodes,
        (2, 5, taps, 6),
        1,
        (2, 5, *image),
        1,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants=constants,
        opset=18,
    )
    check(model, seed, cuts="w0:1" if tail == "weight" else "")


@few
@given(channel=st.integers(0, 3), circular=st.booleans(), at=st.booleans(), seed=SEEDS)
def test_tensor_scatter(channel: int, circular: bool, at: bool, seed: int) -> None:
    from sandwich import reference

    rng = np.random.default_rng(seed)
    shape = (2, 3, 5, 4)
    constants = {"u": values(rng, 2, 3, 2, 4), "i": np.array([1, 2])}
    if not at:
        constants.pop("i")
    middle = node("TensorScatter", "a u i" if at else "a u", "z", mode="circular" if circular else "linear")
    model = sandwich([middle], shape, channel, seed=seed, constants=constants, opset=24)
    check(model, seed, runner=reference, **({"keeps": "w0:1"} if channel == 2 else {"cuts": "w0:1"}))
