"""Quantised networks: a removed channel holds its zero point, scales and zero points follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from few_ops import MICROSOFT, network
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, reference, sandwich, values

few = settings(max_examples=50)
SEEDS = st.integers(0, 999)
TAIL = st.sampled_from(TAILS)
KIND = st.sampled_from([np.int8, np.uint8])
ZEROS = st.sampled_from(["none", "zero", "scalar", "channel"])
Array = npt.NDArray[np.generic]


def scale(rng: np.random.Generator, *shape: int) -> Array:
    return np.asarray(0.01 + 0.03 * rng.random(shape), np.float32)


def point(rng: np.random.Generator, kind: type[np.generic], *shape: int) -> Array:
    return np.asarray(rng.integers(1, 20, shape), kind)


def weight(rng: np.random.Generator, kind: type[np.generic], *shape: int) -> Array:
    info = np.iinfo(kind)
    return rng.integers(info.min // 2, info.max // 2, shape).astype(kind)


def parameters(
    rng: np.random.Generator, kind: type[np.generic], zeros: str, n: int, name: str
) -> tuple[str, dict[str, Array]]:
    """Scale and zero point of a tensor, per tensor or per channel, as operands and constants."""
    shape = (n,) if zeros == "channel" else ()
    found = {f"{name}_scale": scale(rng, *shape)}
    if zeros != "none":
        found[f"{name}_zero"] = point(rng, kind, *shape) if zeros != "zero" else np.zeros(shape, kind)
    return " ".join(found), found


@few
@given(zeros=ZEROS, kind=KIND, axis=st.integers(-3, 2), other=st.booleans(), tail=TAIL, bias=st.booleans(), seed=SEEDS)
def test_activations(
    zeros: str, kind: type[np.generic], axis: int, other: bool, tail: str, bias: bool, seed: int
) -> None:
    """Quantised and back, also with another zero point on the way back."""
    rng, shape = np.random.default_rng(seed), (2, 6, 4)
    there, constants = parameters(rng, kind, zeros, shape[axis], "q")
    if zeros == "none":
        kind = np.uint8
    back = there
    if other and zeros != "none":
        back, more = parameters(rng, kind, zeros, shape[axis], "d")
        constants |= more
    nodes = [
        node("QuantizeLinear", f"a {there}", "q", axis=axis),
        node("Transpose", "q", "t", perm=[0, 1, 2]),
        node("DequantizeLinear", f"t {back}", "z", axis=axis),
    ]
    check(
        sandwich(nodes, shape, 1, kind=tail, nonzero=bias, seed=seed, constants=constants),
        seed,
        cuts="w0:1" if tail == "weight" else "",
    )


@few
@given(zeros=ZEROS, kind=KIND, axis=st.integers(0, 1), tail=TAIL, squash=st.booleans(), seed=SEEDS)
def test_weights(zeros: str, kind: type[np.generic], axis: int, tail: str, squash: bool, seed: int) -> None:
    """Quantised weights on both sides of the channels."""
    rng = np.random.default_rng(seed)
    first, constants = parameters(rng, kind, zeros, (3, 6)[axis], "q")
    last, more = parameters(rng, kind, zeros, (6, 4)[axis], "p")
    constants |= more | {"w0": weight(rng, kind, 3, 6), "w1": weight(rng, kind, 6, 4), "axis": np.array([1])}
    nodes = [
        node("DequantizeLinear", f"w0 {first}", "d0", axis=axis),
        node("MatMul", "x d0", "a"),
        node("Sigmoid" if squash else "Relu", "a", "r"),
    ]
    if tail == "weight":
        nodes += [node("DequantizeLinear", f"w1 {last}", "d1", axis=axis), node("MatMul", "r d1", "y")]
    else:
        nodes.append(node("ReduceSum", "r axis", "y"))
    used = {n for v in nodes for n in v.input}
    model = network(nodes, {"x": (2, 3)}, ["y"], {k: v for k, v in constants.items() if k in used})
    cuts = "w0:1 w1:0" if tail == "weight" else "" if squash else "w0:1"
    if axis == 1 and zeros == "channel" and cuts:
        cuts += " q_scale:0 q_zero:0"
    check(model, seed, cuts=cuts)


@few
@given(
    kind=st.sampled_from(["int8", "uint8", "int4", "uint4"]), axis=st.integers(0, 1), zeros=st.booleans(), seed=SEEDS
)
def test_blocks(kind: str, axis: int, zeros: bool, seed: int) -> None:
    """Scales per block of 4: whole blocks go."""
    rng = np.random.default_rng(seed)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper()))
    shape = (3, 8) if axis else (8, 6)
    blocks = (3, 2) if axis else (2, 6)
    constants = {
        "w": rng.integers(0, 7, shape).astype(dtype),
        "s": scale(rng, *blocks),
        "p": rng.integers(0, 5, blocks).astype(dtype),
    }
    constants |= {"w0": values(rng, 3, 8), "w1": values(rng, 8, 2)}
    dense = node("DequantizeLinear", "w s p" if zeros else "w s", "d", axis=axis, block_size=4)
    nodes = [dense, node("MatMul", "x d", "a"), node("Relu", "a", "r"), node("MatMul", "r w1", "y")]
    if axis == 0:
        nodes = [dense, node("MatMul", "x w0", "a"), node("Relu", "a", "r"), node("MatMul", "r d", "y")]
    used = {n for v in nodes for n in v.input}
    model = network(nodes, {"x": (2, 3)}, ["y"], {k: v for k, v in constants.items() if k in used})
    _, removed = check(model, seed, cuts=f"w:{axis} s:{axis}", runner=reference)
    gone = removed["w"][str(axis)]
    assert {i // 4 for i in gone} == set(removed["s"][str(axis)]) and len(gone) % 4 == 0


@few
@given(
    zeros=st.sampled_from(["zero", "scalar", "channel"]),
    group=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    out=st.sampled_from([0, 7]),
    same=st.booleans(),
    seed=SEEDS,
)
def test_qlinear_conv(zeros: str, group: int, bias: bool, out: int, same: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants: dict[str, Array] = {
        "s": scale(rng),
        "z": np.array(out, np.uint8),
        "other": np.array(out if same else out + 3, np.uint8),
    }
    nodes, x, channels = [node("QuantizeLinear", "x s z", "q")], "q", 4
    for k, (n, groups) in enumerate(((8, 1), (8, group), (4, 1))):
        text, more = parameters(rng, np.int8, zeros, n, f"p{k}")
        constants |= more | {
            f"w{k}": weight(rng, np.int8, n, channels // groups, 1, 1),
            f"b{k}": np.asarray(rng.integers(-99, 99, n), np.int32),
        }
        zero = "z" if k else "other"
        nodes.append(
            node(
                "QLinearConv",
                f"{x} s {'z' if k != 1 else 'other'} w{k} {text} s {zero}" + (f" b{k}" if bias else ""),
                f"y{k}",
                group=groups,
            )
        )
        x, channels = f"y{k}", n
    nodes.append(node("DequantizeLinear", f"{x} s z", "y"))
    used = {n for v in nodes for n in v.input}
    model = network(nodes, {"x": (1, 4, 3, 3)}, ["y"], {k: v for k, v in constants.items() if k in used})
    check(model, seed, cuts="w0:0 w1:0 w2:1")


@few
@given(
    op=st.sampled_from(["QLinearMatMul", "MatMulInteger", "ConvInteger"]),
    zeros=st.sampled_from(["none", "zero", "scalar", "channel"]),
    activation=st.sampled_from(["zero", "point"]),
    tail=TAIL,
    seed=SEEDS,
)
def test_integer_products(op: str, zeros: str, activation: str, tail: str, seed: int) -> None:
    """Channels of the integer weight of the first product, read by a second."""
    rng = np.random.default_rng(seed)
    spatial = (1, 1) if op == "ConvInteger" else ()
    zeros = "scalar" if zeros == "channel" and spatial else zeros  # onnxruntime takes one zero point there
    constants: dict[str, Array] = {
        "s": scale(rng),
        "z": np.array(0 if activation == "zero" else 9, np.uint8),
        "axis": np.array([1]),
    }
    nodes, x = [], "x"
    for k, shape in enumerate(((3, 6), (6, 4))[: 2 if tail == "weight" else 1]):
        text, more = parameters(
            rng, np.int8, zeros if zeros != "none" or op != "QLinearMatMul" else "zero", shape[1], f"p{k}"
        )
        w = weight(rng, np.int8, *(shape if not spatial else (*shape[::-1], *spatial)))
        constants |= more | {f"w{k}": w}
        nodes.append(node("QuantizeLinear", f"{x} s z", f"q{k}"))
        if op == "QLinearMatMul":
            nodes += [node(op, f"q{k} s z w{k} {text} s z", f"m{k}"), node("DequantizeLinear", f"m{k} s z", f"a{k}")]
        else:
            zero = text.partition(" ")[2]
            nodes += [
                node(op, f"q{k} w{k} z {zero}".strip(), f"m{k}"),
                node("Cast", f"m{k}", f"c{k}", to=1),
                node("Mul", f"c{k} s", f"a{k}"),
            ]
        x = f"a{k}"
    nodes.append(node("Identity", x, "y") if tail == "weight" else node("ReduceSum", f"{x} axis", "y"))
    used = {n for v in nodes for n in v.input}
    model = network(
        nodes, {"x": (2, 3, *spatial) if spatial else (2, 3)}, ["y"], {k: v for k, v in constants.items() if k in used}
    )
    check(model, seed, cuts="w0:0 w1:1" if tail == "weight" and spatial else "w0:1 w1:0" if tail == "weight" else "")


@few
@given(tail=TAIL, bias=st.booleans(), squash=st.booleans(), seed=SEEDS)
def test_dynamic_quantisation(tail: str, bias: bool, squash: bool, seed: int) -> None:
    """The range is taken over all channels, zero included: a channel may go where it is zero."""
    rng = np.random.default_rng(seed)
    constants = {"w1": weight(rng, np.int8, 6, 4), "wz": np.array(3, np.int8)}
    nodes = [node("Sigmoid" if squash else "Relu", "a", "r"), node("DynamicQuantizeLinear", "r", "q s p")]
    nodes += [node("MatMulInteger", "q w1 p wz", "m"), node("Cast", "m", "c", to=1), node("Mul", "c s", "y")]
    first = [node("MatMul", "x w0", "h"), node("Add", "h b", "a")] if bias else [node("MatMul", "x w0", "a")]
    constants |= {"w0": values(rng, 3, 6)} | ({"b": values(rng, 6)} if bias else {})
    check(
        network([*first, *nodes], {"x": (2, 3)}, ["y"], constants),
        seed,
        **({"keeps": "w0:1"} if squash else {"cuts": "w0:1 w1:0"}),
    )


@few
@given(
    op=st.sampled_from(["QLinearAdd", "QLinearMul"]),
    points=st.tuples(*[st.sampled_from([0, 5])] * 3),
    constant=st.booleans(),
    tail=TAIL,
    bias=st.booleans(),
    seed=SEEDS,
)
def test_qlinear_of_two(
    op: str, points: tuple[int, int, int], constant: bool, tail: str, bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    constants: dict[str, Array] = {f"z{k}": np.array(p, np.uint8) for k, p in enumerate(points)} | {
        f"s{k}": scale(rng) for k in range(3)
    }
    nodes = [node("QuantizeLinear", "a s0 z0", "p")]
    if constant:
        constants["o"] = weight(rng, np.uint8, 6, 1)
    else:
        nodes.append(node("QuantizeLinear", "a s1 z1", "o"))
    nodes += [node(op, "p s0 z0 o s1 z1 s2 z2", "r", MICROSOFT), node("DequantizeLinear", "r s2 z2", "z")]
    check(
        sandwich(nodes, (2, 6, 3), 1, kind=tail, nonzero=bias, seed=seed, constants=constants),
        seed,
        cuts="w0:1" if tail == "weight" else "",
        full_check=False,
    )


@few
@given(
    op=st.sampled_from(["QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearConcat"]),
    points=st.tuples(*[st.sampled_from([0, 5])] * 2), last=st.booleans(), tail=TAIL, bias=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_qlinear_of_one(op: str, points: tuple[int, int], last: bool, tail: str, bias: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants: dict[str, Array] = {f"z{k}": np.array(p, np.uint8) for k, p in enumerate(points)} | {
        f"s{k}": scale(rng) for k in range(2)
    }
    shape, axis, out = (2, 6, 4, 4), 1, (2, 6, 4, 4)
    options: dict[str, object] = {}
    operands = "p s0 z0 s1 z1"
    if op == "QLinearConcat":
        operands, out = "s1 z1 p s0 z0 p s0 z0", (2, 12, 4, 4)
        options["axis"] = 1
    elif op.endswith("Pool"):
        if last:
            shape, axis = (2, 4, 4, 6), 3
        options["channels_last"] = int(last)
        out = shape
        if op == "QLinearAveragePool":
            options |= {"kernel_shape": [2, 2], "strides": [2, 2]}
        out = tuple(n if i in (0, axis) else n // 2 if op == "QLinearAveragePool" else 1 for i, n in enumerate(shape))
    nodes = [
        node("QuantizeLinear", "a s0 z0", "p"),
        node(op, operands, "r", MICROSOFT, **options),
        node("DequantizeLinear", "r s1 z1", "z"),
    ]
    model = sandwich(nodes, shape, axis, out, axis, kind=tail, nonzero=bias, seed=seed, constants=constants)
    check(model, seed, cuts="w0:1" if tail == "weight" else "", full_check=False)


@few
@given(bits=st.sampled_from([4, 8]), flat=st.booleans(), zeros=st.booleans(), bias=st.booleans(), seed=SEEDS)
def test_matmul_nbits(bits: int, flat: bool, zeros: bool, bias: bool, seed: int) -> None:
    """The hidden units of two packed products: rows of the first, whole blocks of the second."""
    rng = np.random.default_rng(seed)
    constants: dict[str, Array] = {}
    nodes, x = [], "x"
    for k, (depth, n) in enumerate(((32, 64), (64, 8))):
        blocks = depth // 16
        constants |= {
            f"w{k}": rng.integers(0, 255, (n, blocks, 16 * bits // 8)).astype(np.uint8),
            f"s{k}": scale(rng, *((n * blocks,) if flat else (n, blocks))),
        }
        row = -(-blocks * bits // 8)
        constants |= (
            {f"z{k}": rng.integers(0, 255, (n * row,) if flat else (n, row)).astype(np.uint8)}
            if zeros and k == 0
            else {}
        )
        constants |= {f"b{k}": values(rng, n)} if bias else {}
        zero = f"z{k}" if f"z{k}" in constants else "_"
        operands = f"{x} w{k} s{k} {zero} _ {f'b{k}' if bias else '_'}"
        nodes.append(node("MatMulNBits", operands, f"a{k}", MICROSOFT, K=depth, N=n, bits=bits, block_size=16))
        nodes.append(node("Relu", f"a{k}", f"r{k}"))
        x = f"r{k}"
    nodes.append(node("Identity", x, "y"))
    check(network(nodes, {"x": (2, 32)}, ["y"], constants), seed, cuts="w0:0 s0:0 w1:1", full_check=False, atol=1e-4)


@pytest.mark.parametrize("op", ["MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"])
@pytest.mark.parametrize("columns", [True, False])
def test_fused_integer_products(op: str, columns: bool) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n = (6,) if columns else ()
        constants: dict[str, Array] = {
            "s": scale(rng),
            "z": np.array(5, np.uint8),
            "w": weight(rng, np.uint8, 3, 6),
            "ws": scale(rng, *n),
            "wz": point(rng, np.uint8, *n),
        }
        constants |= {"b": values(rng, 6), "w1": values(rng, 6, 2), "c": np.asarray(rng.integers(-50, 50, 6), np.int32)}
        quantise = [node("QuantizeLinear", "x s z", "q")]
        product = {
            "MatMulIntegerToFloat": [*quantise, node(op, "q w s ws z wz b", "a", MICROSOFT)],
            "DynamicQuantizeMatMul": [node(op, "x w ws wz b", "a", MICROSOFT)],
            "QGemm": [*quantise, node(op, "q s z w ws wz c", "a", MICROSOFT, alpha=1.0)],
        }[op]
        nodes = [*product, node("MatMul", "a w1", "y")]
        used = {i for v in nodes for i in v.input}
        model = network(nodes, {"x": (2, 3)}, ["y"], {k: v for k, v in constants.items() if k in used})
        check(model, seed, cuts="w:1 w1:0", full_check=False)
