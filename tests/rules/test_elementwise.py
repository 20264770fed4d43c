"""Element-wise operators: what they make of a masked channel decides who may read it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from few_ops import network
from hypothesis import given, settings
from hypothesis import strategies as st
from sandwich import TAILS, check, node, sandwich, values

from spa.coupling.rules.elementwise import FIRST_ZERO, ODD, OTHER

FLOAT_ONLY = sorted(
    ({*ODD, *OTHER} | {"Clip", "Dropout"})
    - {"BitCast", "Cast", "IsNaN", "IsInf", "Not", "BitwiseNot", "Acos", "Acosh", "Asin", "Atanh", "Log", "Sqrt", "Reciprocal", "Celu"}
)  # fmt: skip
# where the argument must lie, reached by a function that keeps zero or not
DOMAIN = {
    "Acos": "Tanh",
    "Asin": "Tanh",
    "Atanh": "Tanh",
    "Sqrt": "Abs",
    "Acosh": "Exp",
    "Log": "Exp",
    "Reciprocal": "Exp",
}
few = settings(max_examples=50)
SHAPES = st.sampled_from([((2, 6), 1), ((2, 6, 3), 1), ((2, 3, 6), 2), ((1, 4, 3, 3), 1), ((6, 2), 0)])
SEEDS = st.integers(0, 999)


@settings(max_examples=80)
@given(
    op=st.sampled_from([*FLOAT_ONLY, *DOMAIN]),
    shape=SHAPES,
    tail=st.sampled_from(TAILS),
    nonzero=st.booleans(),
    seed=SEEDS,
)
def test_one_operand(op: str, shape: tuple[tuple[int, ...], int], tail: str, nonzero: bool, seed: int) -> None:
    before = [node(DOMAIN[op], "a", "d")] if op in DOMAIN else []
    opset = 23 if op not in ("Swish",) else 24
    model = sandwich(
        [*before, node(op, "d" if before else "a", "z")], *shape, kind=tail, nonzero=nonzero, seed=seed, opset=opset
    )
    check(model, seed, cuts="w0:1" if tail == "weight" and op not in ("Log", "Reciprocal") else "", atol=1e-4)


@settings(max_examples=40)
@given(
    op=st.sampled_from(["Clip6", "Clip11", "Shrink", "Elu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu"]),
    low=st.floats(-1, 1, width=16), high=st.floats(-1, 1, width=16), tail=st.sampled_from(TAILS), seed=SEEDS,
)  # fmt: skip
def test_attributes_decide_about_zero(op: str, low: float, high: float, tail: str, seed: int) -> None:
    low, high = min(low, high), max(low, high)
    constants = {}
    if op == "Clip6":
        middle, opset = node("Clip", "a", "z", min=low, max=high), 7
    elif op == "Clip11":
        middle, opset = node("Clip", "a low high", "z"), 13
        constants = {"low": np.array(low, np.float32), "high": np.array(high, np.float32)}
    else:
        named = {"Shrink": {"lambd": low, "bias": high}, "HardSigmoid": {"alpha": high, "beta": low}}
        middle, opset = node(op, "a", "z", **named.get(op, {"alpha": high})), 13
    check(
        sandwich([middle], (2, 6, 3), 1, kind=tail, seed=seed, constants=constants, opset=opset),
        seed,
        cuts="w0:1" if tail == "weight" else "",
    )


@settings(max_examples=80)
@given(
    op=st.sampled_from(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Mod", "Where", "SwiGLU"]),
    form=st.sampled_from(["channel", "scalar", "whole", "position", "self"]), swap=st.booleans(), positive=st.booleans(),
    nonzero=st.booleans(), tail=st.sampled_from(TAILS), seed=SEEDS,
)  # fmt: skip
def test_two_operands(op: str, form: str, swap: bool, positive: bool, nonzero: bool, tail: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = {"channel": (6, 1), "scalar": (), "whole": (2, 6, 3), "position": (3,), "self": (1,)}[form]
    c = values(rng, *shape) if op != "Pow" else np.asarray(rng.integers(1, 4, shape), np.float32)
    constants = {"c": np.abs(c) + 0.1 if positive else c, "flag": np.asarray(rng.random((2, 6, 3)) < 0.5)}
    other = "a" if form == "self" else "c"
    swap = swap and op not in ("PRelu", "Pow")
    if op == "SwiGLU" and form not in ("whole", "self"):
        return None
    options = {"fmod": 1} if op == "Mod" else {}
    operands = f"{other} a" if swap else f"a {other}"
    middle = node(op, f"flag {operands}" if op == "Where" else operands, "z", **options)
    used = {k: v for k, v in constants.items() if k in middle.input}
    model = sandwich(
        [middle],
        (2, 6, 3),
        1,
        kind=tail,
        nonzero=nonzero,
        seed=seed,
        constants=used,
        opset=28 if op == "SwiGLU" else 13,
    )
    if op == "SwiGLU":
        from sandwich import reference

        return check(model, seed, runner=reference, cuts="w0:1" if tail == "weight" else "") and None
    sure = tail == "weight" and op not in FIRST_ZERO and op != "Pow"
    check(model, seed, cuts="w0:1" if sure else "", atol=1e-4)
    return None


@few
@given(
    op=st.sampled_from(
        ["And", "Or", "Xor", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "IsNaN", "IsInf"]
    ),
    tail=st.sampled_from(TAILS),
    seed=SEEDS,
)
def test_truth_values(op: str, tail: str, seed: int) -> None:
    to_bool = {"to": onnx.TensorProto.BOOL}
    if op in ("And", "Or", "Xor", "Not"):
        before = [node("Cast", "a", "p", **to_bool), node("Greater", "a c", "q")]
        middle = node(op, "p" if op == "Not" else "p q", "t")
    else:
        before, middle = [], node(op, "a" if op.startswith("Is") else "a c", "t")
    nodes = [*before, middle, node("Cast", "t", "z", to=onnx.TensorProto.FLOAT)]
    c = {"c": values(np.random.default_rng(seed), 6, 1)} if any("c" in n.input for n in nodes) else {}
    check(
        sandwich(nodes, (2, 6, 3), 1, kind=tail, seed=seed, constants=c, opset=19),
        seed,
        cuts="w0:1" if tail == "weight" else "",
    )


@few
@given(
    op=st.sampled_from(["BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Mod"]),
    tail=st.sampled_from(TAILS),
    form=st.sampled_from(["channel", "scalar"]),
    seed=SEEDS,
)
def test_integers(op: str, tail: str, form: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = np.asarray(rng.integers(1, 5, (6, 1) if form == "channel" else ()), np.uint32)
    nodes = [
        node("Abs", "a", "p"), node("Mul", "p hundred", "h"), node("Cast", "h", "i", to=onnx.TensorProto.UINT32),
        node(op, "i" if op == "BitwiseNot" else "i c", "j", **({"direction": "LEFT"} if op == "BitShift" else {})),
        node("Cast", "j", "z", to=onnx.TensorProto.FLOAT),
    ]  # fmt: skip
    constants = {"hundred": np.array(100, np.float32)} | ({} if op == "BitwiseNot" else {"c": c})
    sure = tail == "weight" and not (op == "Mod" and form == "channel")
    check(
        sandwich(nodes, (2, 6, 3), 1, kind=tail, seed=seed, constants=constants, opset=18),
        seed,
        cuts="w0:1" if sure else "",
    )


def test_a_masked_divisor_is_refused() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": values(rng, 3, 6), "v": values(rng, 3, 6), "u": values(rng, 6, 2)}
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "x v", "b"),
        node("Div", "a b", "c"),
        node("MatMul", "c u", "y"),
    ]
    check(network(nodes, {"x": (2, 3)}, ["y"], constants), keeps="w v:1 u:0")


@pytest.mark.parametrize("op", ["CastLike", "Cast"])
def test_casts(op: str) -> None:
    middle = node("CastLike", "a c", "d") if op == "CastLike" else node("Cast", "a", "d", to=onnx.TensorProto.DOUBLE)
    constants = {"c": np.zeros(1, np.float64)} if op == "CastLike" else {}
    nodes = [middle, node("Cast", "d", "z", to=onnx.TensorProto.FLOAT)]
    for kind in TAILS:
        check(sandwich(nodes, (2, 6), 1, kind=kind, nonzero=False, constants=constants), cuts="w0:1")
