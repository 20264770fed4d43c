"""onnxruntime's fused operators and ai.onnx.ml: each between two weights, pruned at random, equal to the masked network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from few_ops import (
    MICROSOFT,
    Array,
    attributes,
    find,
    gone,
    microsoft,
    network,
    node,
    prune_and_compare,
    reasons,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import spa
from spa.model import Model

SEQUENCE, WIDTH = 3, 5
SEEDS = st.integers(0, 999)
CHANNELS = st.integers(2, 7)
few = settings(max_examples=15)
ML = "ai.onnx.ml"


def between(nodes: list[onnx.NodeProto], constants: dict[str, Array], c: int, out: int, *, bias: bool = False) -> Model:
    """x w0 (+ b0) -> h [nodes] z -> z wo."""
    first = [node("MatMul", "x w0", "h0"), node("Add", "h0 b0", "h")] if bias else [node("MatMul", "x w0", "h")]
    ends = weights(99, w0=(WIDTH, c), b0=(c,), wo=(out, 4))
    if not bias:
        del ends["b0"]
    chain = [*first, *nodes, node("MatMul", "z wo", "y")]
    return network(chain, {"x": (2, SEQUENCE, WIDTH)}, ["y"], ends | constants)


# -- convolutions and products


@few
@given(
    group=st.sampled_from([1, 2, 4]), bias=st.booleans(), skip=st.booleans(), seed=SEEDS,
    activation=st.sampled_from(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", ""]),
)  # fmt: skip
def test_fused_conv(group: int, bias: bool, skip: bool, seed: int, activation: str) -> None:
    """Behind it a reduction over channels sees what masking leaves: zero, or what the activation makes of zero."""
    params = {"Clip": [0.5, 6.0], "LeakyRelu": [0.1], "HardSigmoid": [0.2, 0.5]}.get(activation)
    options: dict[str, Any] = {"activation": activation} if activation else {}
    options |= {"activation_params": params} if params else {}
    constants = weights(seed, w0=(8, 3, 1, 1), w=(8, 8 // group, 3, 3), b=(8,), wo=(4, 8, 1, 1))
    operands = f"h w {'b' if bias else '_'} {'h' if skip else ''}"
    nodes = [
        node("Conv", "x w0", "h"),
        microsoft("FusedConv", operands, "z", group=group, pads=[1] * 4, kernel_shape=[3, 3], **options),
        node("Conv", "z wo", "y"),
        node("ReduceSum", "z axis", "total"),
    ]
    constants["axis"] = np.array([1], np.int64)
    if not bias:
        del constants["b"]
    model = network(nodes, {"x": (1, 3, 5, 5)}, ["y", "total"], constants)
    cut, removed = prune_and_compare(model, seed)
    zero = activation not in ("Sigmoid", "Clip", "HardSigmoid")
    assert bool(gone(removed, "wo", 1)) == zero
    if zero and group > 1 and gone(removed, "w", 0):
        assert attributes(find(cut, "FusedConv"))["group"] <= group


@few
@given(c=CHANNELS, activation=st.sampled_from(["Relu", "Sigmoid", "Tanh"]), transposed=st.booleans(), seed=SEEDS)
def test_fused_gemm(c: int, activation: str, transposed: bool, seed: int) -> None:
    constants = weights(seed, w0=(c, WIDTH) if transposed else (WIDTH, c), b=(c,), wo=(c, 4))
    constants["axis"] = np.array([1], np.int64)
    nodes = [
        microsoft("FusedGemm", "x w0 b", "z", activation=activation, transB=int(transposed)),
        node("MatMul", "z wo", "y"),
        node("ReduceSum", "z axis", "total"),
    ]
    _, removed = prune_and_compare(network(nodes, {"x": (3, WIDTH)}, ["y", "total"], constants), seed)
    assert bool(gone(removed, "wo", 0)) == (activation != "Sigmoid")


@few
@given(c=CHANNELS, n=CHANNELS, left=st.booleans(), right=st.booleans(), seed=SEEDS)
def test_fused_matmul(c: int, n: int, left: bool, right: bool, seed: int) -> None:
    constants = weights(seed, w=(n, c) if right else (c, n), w0=(WIDTH, c), wo=(n, 4))
    nodes = [node("MatMul", "x w0", "h")]
    nodes += [node("Transpose", "h", "ht", perm=[0, 2, 1])] if left else []
    options = {"transA": int(left), "transB": int(right), "alpha": 0.5}
    nodes += [microsoft("FusedMatMul", f"{'ht' if left else 'h'} w", "z", **options), node("MatMul", "z wo", "y")]
    _, removed = prune_and_compare(network(nodes, {"x": (2, SEQUENCE, WIDTH)}, ["y"], constants), seed)
    assert gone(removed, "w0", 1) and gone(removed, "wo", 0)


# -- normalisation

RMS = {
    "RMSNormalization": lambda: [node("RMSNormalization", "h g", "z", epsilon=0.1)],
    "SimplifiedLayerNormalization": lambda: [node("SimplifiedLayerNormalization", "h g", "z", epsilon=0.1)],
    "decomposed": lambda: [
        node("Pow", "h two", "sq"),
        node("ReduceMean", "sq last", "mean", keepdims=1),
        node("Add", "mean eps", "me"),
        node("Sqrt", "me", "rms"),
        node("Div", "h rms", "n"),
        node("Mul", "g n", "z"),
    ],
    "reciprocal": lambda: [
        node("Mul", "h h", "sq"),
        node("ReduceMean", "sq last", "mean", keepdims=1),
        node("Add", "mean eps", "me"),
        node("Sqrt", "me", "rms"),
        node("Reciprocal", "rms", "inverse"),
        node("Mul", "h inverse", "n"),
        node("Mul", "n g", "z"),
    ],
}


@few
@given(form=st.sampled_from(sorted(RMS)), c=CHANNELS, bias=st.booleans(), seed=SEEDS)
def test_rms_normalisation_is_exact(form: str, c: int, bias: bool, seed: int) -> None:
    constants = weights(seed, g=(c,)) | {"eps": np.array([0.1], np.float32), "last": np.array([-1], np.int64)}
    constants["two"] = np.array(2.0, np.float32)
    nodes = RMS[form]()
    used = {n for made in nodes for n in made.input}
    model = between(nodes, {k: v for k, v in constants.items() if k in used}, c, c, bias=bias)
    _, removed = prune_and_compare(model, seed)
    assert gone(removed, "w0", 1) == gone(removed, "wo", 0) == gone(removed, "g", 0) != []


@few
@given(c=CHANNELS, bias=st.booleans(), total=st.booleans(), seed=SEEDS)
def test_skip_rms_normalisation_is_exact(c: int, bias: bool, total: bool, seed: int) -> None:
    operands, outputs = f"h h1 g {'b' if bias else ''}", "n _ _ s" if total else "n"
    nodes = [
        node("MatMul", "x w1", "h1"),
        microsoft("SkipSimplifiedLayerNormalization", operands, outputs, epsilon=0.1),
    ]
    nodes.append(node("Add", "n s", "z") if total else node("Identity", "n", "z"))
    constants = weights(seed, g=(c,), w1=(WIDTH, c)) | (weights(seed, b=(c,)) if bias else {})
    _, removed = prune_and_compare(between(nodes, constants, c, c), seed)
    assert gone(removed, "w0", 1) == gone(removed, "w1", 1) == gone(removed, "g", 0) == gone(removed, "wo", 0) != []


def test_the_saved_deviation_of_an_rms_normalisation_blocks_it() -> None:
    nodes = [node("SimplifiedLayerNormalization", "h g", "n inverse"), node("Mul", "n inverse", "z")]
    assert "its deviation is an output of its own" in reasons(between(nodes, weights(g=(6,)), 6, 6))


@few
@given(c=CHANNELS, kind=st.sampled_from(["SkipLayerNormalization", "EmbedLayerNormalization"]), seed=SEEDS)
def test_layer_normalisation_blocks_its_axis(c: int, kind: str, seed: int) -> None:
    if kind == "SkipLayerNormalization":
        nodes = [microsoft(kind, "h h g b", "z")]
        model = between(nodes, weights(seed, g=(c,), b=(c,)), c, c)
    else:
        tables = weights(seed, word=(9, c), place=(4, c), segment=(2, c), g=(c,), b=(c,), wo=(c, 4))
        nodes = [
            microsoft(kind, "x segments word place segment g b", "z lengths"),
            node("MatMul", "z wo", "y"),
        ]
        types = {"x": onnx.TensorProto.INT32, "segments": onnx.TensorProto.INT32}
        model = network(nodes, {"x": (2, 3), "segments": (2, 3)}, ["y"], tables, types=types)
    _, removed = prune_and_compare(model, seed)
    assert removed == {}
    assert "normalised over this axis" in reasons(model)
    assert any(not g.exact for g in spa.analyze(model, allow_approximate=True).groups)


# -- element by element

BIASED = {
    "BiasGelu": ("h b", 1),
    "FastGelu": ("h b", 1),
    "Gelu": ("h", 1),
    "QuickGelu": ("h", 1),
}


@few
@given(kind=st.sampled_from(sorted(BIASED)), c=CHANNELS, bias=st.booleans(), seed=SEEDS)
def test_activations_keep_zero(kind: str, c: int, bias: bool, seed: int) -> None:
    """Between an addition and a mean over the axis, which is exact as long as masked channels are zero."""
    nodes = [microsoft(kind, BIASED[kind][0], "a"), node("RMSNormalization", "a g", "z")]
    constants = weights(seed, g=(c,)) | (weights(seed, b=(c,)) if "b" in BIASED[kind][0] else {})
    _, removed = prune_and_compare(between(nodes, constants, c, c, bias=bias), seed)
    assert gone(removed, "w0", 1) == gone(removed, "wo", 0) != []


# -- operators with kernels for other devices only, in numpy


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


class BiasAdd(OpRun):  # type: ignore[misc]
    op_domain = MICROSOFT

    def _run(self, x: Any, bias: Any, skip: Any) -> tuple[Any]:
        return (x + bias + skip,)


class BiasSplitGelu(OpRun):  # type: ignore[misc]
    op_domain = MICROSOFT

    def _run(self, x: Any, bias: Any) -> tuple[Any]:
        left, right = np.split(x + bias, 2, axis=-1)
        return ((left * _gelu(right)).astype(np.float32),)


def _group_norm(x: Any, gamma: Any, beta: Any, groups: int, activation: int) -> Any:
    parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    y = ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * gamma + beta
    return (y / (1 + np.exp(-y)) if activation else y).astype(np.float32)


class GroupNorm(OpRun):  # type: ignore[misc]
    op_domain = MICROSOFT

    def _run(self, x: Any, gamma: Any, beta: Any, groups: int = 1, activation: int = 0) -> tuple[Any]:
        return (_group_norm(x, gamma, beta, groups, activation),)


class SkipGroupNorm(OpRun):  # type: ignore[misc]
    op_domain = MICROSOFT

    def _run(self, x: Any, gamma: Any, beta: Any, skip: Any, groups: int = 1, activation: int = 0) -> tuple[Any, Any]:
        return _group_norm(x + skip, gamma, beta, groups, activation), x + skip


class NhwcConv(OpRun):  # type: ignore[misc]
    """Three by three, padded by one."""

    op_domain = MICROSOFT

    def _run(self, x: Any, w: Any, b: Any, z: Any = 0.0, group: int = 1, **_: Any) -> tuple[Any]:
        h, v = x.shape[1:3]
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        windows = np.stack([padded[:, i : i + h, j : j + v] for i in range(3) for j in range(3)], -1)
        parts = windows.reshape(*x.shape[:3], group, -1, 9)
        kernels = w.reshape(group, w.shape[0] // group, w.shape[1], 9)
        y = np.einsum("nhvgck,gock->nhvgo", parts, kernels).reshape(*x.shape[:3], -1) + b + z
        return (y.astype(np.float32),)


class NhwcFusedConv(NhwcConv):
    op_domain = MICROSOFT


def reference(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Any]:
    ops = [BiasAdd, BiasSplitGelu, GroupNorm, SkipGroupNorm, NhwcConv, NhwcFusedConv]
    return list(ReferenceEvaluator(proto, new_ops=ops).run(None, feeds))


@few
@given(
    kind=st.sampled_from(["GroupNorm", "SkipGroupNorm", "NhwcConv", "NhwcFusedConv"]),
    groups=st.sampled_from([1, 2, 4]),
    seed=SEEDS,
)
def test_images_with_channels_last(kind: str, groups: int, seed: int) -> None:
    operands = {"NhwcConv": "h w b", "NhwcFusedConv": "h w b h", "GroupNorm": "h g b", "SkipGroupNorm": "h g b h"}[kind]
    own = {"pads": [1] * 4, "kernel_shape": [3, 3], "group": groups}
    options = own if "Conv" in kind else {"groups": groups, "activation": 1}
    outputs = "z s" if kind == "SkipGroupNorm" else "z"
    nodes = [node("MatMul", "x we", "h"), microsoft(kind, operands, outputs, **options), node("MatMul", "z wo", "y")]
    constants = weights(seed, we=(WIDTH, 8), wo=(8, 4), b=(8,))
    constants |= weights(seed, w=(8, 8 // groups, 3, 3)) if "Conv" in kind else weights(seed, g=(8,))
    cut, removed = prune_and_compare(network(nodes, {"x": (1, 6, 6, WIDTH)}, ["y"], constants), seed, runner=reference)
    left = attributes(find(cut, kind)).get("group" if "Conv" in kind else "groups", 1)
    if "Norm" in kind:
        assert left == groups - len(gone(removed, "wo", 0)) // (8 // groups)
        assert bool(gone(removed, "we", 1)) == (groups > 1)
    else:
        assert gone(removed, "wo", 0) and left <= groups


@few
@given(kind=st.sampled_from(["BiasAdd", "BiasSplitGelu"]), bias=st.booleans(), seed=SEEDS)
def test_biased_operators_of_other_devices(kind: str, bias: bool, seed: int) -> None:
    operands, out = ("h b k", 8) if kind == "BiasAdd" else ("h b", 4)
    nodes = [node("MatMul", "x wk", "k")] if kind == "BiasAdd" else []
    constants = weights(seed, b=(8,)) | (weights(seed, wk=(WIDTH, 8)) if kind == "BiasAdd" else {})
    model = between([*nodes, microsoft(kind, operands, "z")], constants, 8, out, bias=bias)
    _, removed = prune_and_compare(model, seed, runner=reference)
    assert len(gone(removed, "w0", 1)) == len(gone(removed, "wo", 0)) * (8 // out) > 0


@few
@given(c=CHANNELS, seed=SEEDS)
def test_layer_normalization_before_its_opset(c: int, seed: int) -> None:
    """onnxruntime's optimizer puts it into networks of older opsets too."""
    nodes = [
        node("MatMul", "x w0", "h"), node("LayerNormalization", "h g b", "n"), node("MatMul", "n w1", "m"),
        node("Relu", "m", "r"), node("MatMul", "r wo", "y"),
    ]  # fmt: skip
    constants = weights(seed, w0=(WIDTH, c), g=(c,), b=(c,), w1=(c, 6), wo=(6, 4))
    _, removed = prune_and_compare(network(nodes, {"x": (2, WIDTH)}, ["y"], constants, opset=14), seed)
    assert set(removed) == {"w1", "wo"}


def test_blocked_operators_say_so() -> None:
    nodes = [node("MatMul", "x router", "r"), microsoft("QMoE", "h r f1 s1 _ f2 s2", "z", k=1)]
    constants = weights(router=(WIDTH, 2), s1=(2, 8), s2=(2, 6))
    constants |= {"f1": np.zeros((2, 8, 3), np.uint8), "f2": np.zeros((2, 6, 4), np.uint8)}
    assert "QMoE in this form is not taken apart" in reasons(between(nodes, constants, 6, 6))


@few
@given(
    activation=st.sampled_from(["relu", "gelu", "silu", "identity", "swiglu"]), fusion=st.sampled_from([1, 2]), k=st.integers(1, 2),
    bias=st.booleans(), hidden=CHANNELS, units=CHANNELS, seed=SEEDS,
)  # fmt: skip
def test_mixture_of_experts(
    activation: str, fusion: int, k: int, bias: bool, hidden: int, units: int, seed: int
) -> None:
    swiglu = activation == "swiglu"
    twice = 2 if swiglu else 1
    constants = weights(
        seed, router=(WIDTH, 3), w0=(WIDTH, hidden), wo=(hidden, 4), f1=(3, twice * units, hidden), f2=(3, hidden, units),
        b1=(3, twice * units), b2=(3, hidden),
    )  # fmt: skip
    options = {"activation_type": activation, "k": k} | ({"swiglu_fusion": fusion} if swiglu else {})
    operands = f"h r f1 {'b1' if bias else '_'} f2 {'b2' if bias else '_'}"
    nodes = [
        node("MatMul", "x w0", "h"), node("MatMul", "x router", "r"), microsoft("MoE", operands, "z", **options),
        node("MatMul", "z wo", "y"),
    ]  # fmt: skip
    used = {n for made in nodes for n in made.input}
    model = network(nodes, {"x": (4, WIDTH)}, ["y"], {n: v for n, v in constants.items() if n in used})
    _, removed = prune_and_compare(model, seed)
    assert gone(removed, "w0", 1) == gone(removed, "wo", 0) != []
    assert len(gone(removed, "f1", 1)) == twice * len(gone(removed, "f2", 2)) > 0


@few
@given(blocks=st.integers(2, 4), points=st.booleans(), seed=SEEDS)
def test_gather_of_a_quantised_table(blocks: int, points: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants = weights(seed, s=(9, blocks), wo=(16 * blocks, 4))
    constants["t"] = rng.integers(0, 256, (9, 16 * blocks)).astype(np.uint8)
    constants["p"] = rng.integers(0, 256, (9, blocks)).astype(np.uint8)
    nodes = [
        microsoft("GatherBlockQuantized", f"t ids s {'p' if points else ''}", "z", bits=8, block_size=16),
        node("MatMul", "z wo", "y"),
    ]
    if not points:
        del constants["p"]
    model = network(nodes, {"ids": (2, 3)}, ["y"], constants, types={"ids": onnx.TensorProto.INT64})
    _, removed = prune_and_compare(model, seed)
    assert len(gone(removed, "t", 1)) == len(gone(removed, "wo", 0)) == 16 * len(gone(removed, "s", 1)) > 0


@few
@given(blocks=st.integers(2, 4), seed=SEEDS)
def test_gather_of_a_table_with_two_numbers_to_a_byte(blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants = weights(seed, s=(9, blocks), wo=(16 * blocks, 4))
    constants["t"] = rng.integers(0, 256, (9, 8 * blocks)).astype(np.uint8)
    nodes = [
        microsoft("GatherBlockQuantized", "t ids s", "z", bits=4, block_size=16, quantize_axis=1),
        node("MatMul", "z wo", "y"),
    ]
    model = network(nodes, {"ids": (2, 3)}, ["y"], constants, types={"ids": onnx.TensorProto.INT64})
    _, removed = prune_and_compare(model, seed)
    assert 2 * len(gone(removed, "t", 1)) == len(gone(removed, "wo", 0)) > 0


def test_inverse_and_trilu_keep_their_matrices() -> None:
    nodes = [microsoft("Trilu", "h", "z", upper=0)]
    _, removed = prune_and_compare(between(nodes, {}, 6, 6))
    assert removed == {}


# -- ai.onnx.ml


@few
@given(c=CHANNELS, per_feature=st.booleans(), offset=st.booleans(), seed=SEEDS)
def test_scaler(c: int, per_feature: bool, offset: bool, seed: int) -> None:
    """An offset makes masked features differ from zero, which a product with a weight forgets."""
    n = c if per_feature else 1
    rng = np.random.default_rng(seed)
    shift = rng.standard_normal(n).tolist() if offset else [0.0] * n
    constants = weights(seed, w0=(WIDTH, c), wo=(c, 4))
    nodes = [
        node("MatMul", "x w0", "h"),
        node("Scaler", "h", "z", ML, offset=shift, scale=rng.uniform(0.5, 2, n).tolist()),
        node("MatMul", "z wo", "y"),
    ]
    cut, removed = prune_and_compare(network(nodes, {"x": (3, WIDTH)}, ["y"], constants), seed)
    assert gone(removed, "wo", 0)
    if per_feature:
        assert len(attributes(find(cut, "Scaler"))["offset"]) == c - len(gone(removed, "wo", 0))


@few
@given(c=CHANNELS, norm=st.sampled_from(["MAX", "L1", "L2"]), seed=SEEDS)
def test_normalizer(c: int, norm: str, seed: int) -> None:
    constants = weights(seed, w0=(WIDTH, c), wo=(c, 4))
    nodes = [node("MatMul", "x w0", "h"), node("Normalizer", "h", "z", ML, norm=norm), node("MatMul", "z wo", "y")]
    _, removed = prune_and_compare(network(nodes, {"x": (3, WIDTH)}, ["y"], constants), seed)
    assert bool(gone(removed, "wo", 0)) == (norm != "MAX")


@few
@given(c=CHANNELS, seed=SEEDS, data=st.data())
def test_array_feature_extractor(c: int, seed: int, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, c - 1), min_size=2, max_size=6))
    constants = weights(seed, w0=(WIDTH, c), wo=(len(index), 4)) | {"at": np.array(index, np.int64)}
    nodes = [node("MatMul", "x w0", "h"), node("ArrayFeatureExtractor", "h at", "z", ML), node("MatMul", "z wo", "y")]
    _, removed = prune_and_compare(network(nodes, {"x": (3, WIDTH)}, ["y"], constants), seed)
    assert gone(removed, "wo", 0) == [k for k, i in enumerate(index) if i in gone(removed, "w0", 1)]


@few
@given(c=CHANNELS, bias=st.booleans(), seed=SEEDS)
def test_linear_regressor(c: int, bias: bool, seed: int) -> None:
    """Coefficients are an attribute, which masking never touches: features must be zero where they are read."""
    rng = np.random.default_rng(seed)
    constants = weights(seed, w0=(WIDTH, c)) | (weights(seed, b=(1,)) if bias else {})
    nodes = [node("MatMul", "x w0", "h0"), node("Add", "h0 b", "h") if bias else node("Relu", "h0", "h")]
    nodes.append(node("LinearRegressor", "h", "y", ML, coefficients=rng.standard_normal(2 * c).tolist(), targets=2))
    cut, removed = prune_and_compare(network(nodes, {"x": (3, WIDTH)}, ["y"], constants), seed)
    assert bool(gone(removed, "w0", 1)) == (not bias)
    assert len(attributes(find(cut, "LinearRegressor"))["coefficients"]) == 2 * (c - len(gone(removed, "w0", 1)))


@few
@given(c=CHANNELS, seed=SEEDS)
def test_feature_vectorizer(c: int, seed: int) -> None:
    constants = weights(seed, w0=(WIDTH, c), w1=(WIDTH, 3), wo=(c + 3, 4))
    nodes = [
        node("MatMul", "x w0", "h"),
        node("MatMul", "x w1", "k"),
        node("FeatureVectorizer", "h k", "z", ML, inputdimensions=[c, 3]),
        node("MatMul", "z wo", "y"),
    ]
    cut, removed = prune_and_compare(network(nodes, {"x": (3, WIDTH)}, ["y"], constants), seed)
    assert len(gone(removed, "wo", 0)) == len(gone(removed, "w0", 1)) + len(gone(removed, "w1", 1)) > 1
    assert sum(attributes(find(cut, "FeatureVectorizer"))["inputdimensions"]) == c + 3 - len(gone(removed, "wo", 0))


def nbits(rng: np.random.Generator, name: str, n: int, k: int, block: int = 16) -> dict[str, Array]:
    """A weight in 4 bits: packed numbers and one scale per block."""
    blocks = k // block
    return {
        f"{name}_b": rng.integers(0, 256, (n, blocks, block // 2)).astype(np.uint8),
        f"{name}_s": (0.05 * rng.standard_normal((n, blocks))).astype(np.float32),
    }


def in_nbits(x: str, name: str, out: str, n: int, k: int) -> onnx.NodeProto:
    return microsoft("MatMulNBits", f"{x} {name}_b {name}_s", out, N=n, K=k, bits=4, block_size=16)


@few
@given(kv=st.integers(1, 2), repeat=st.integers(1, 3), seed=SEEDS)
def test_a_decoder_layer_as_generation_runtimes_ship_it(kv: int, repeat: int, seed: int) -> None:
    """4-bit weights, a cache that is fed and returned, rotary embeddings inside the attention, RMSNorm with the residual.

    The cache fixes key-value heads and their size; queries of each head, blocks of the gated units and blocks of the
    residual stream can go."""
    d, hidden, units, heads = 16, 64, 48, kv * repeat
    rng = np.random.default_rng(seed)
    constants = weights(seed, embed=(9, hidden), g0=(hidden,), g1=(hidden,), g2=(hidden,), head=(hidden, 9))
    constants |= weights(seed, 1.0, cos=(8, d // 2), sin=(8, d // 2))
    sizes = {
        "q": (heads * d, hidden), "k": (kv * d, hidden), "v": (kv * d, hidden), "o": (hidden, heads * d),
        "gate": (units, hidden), "up": (units, hidden), "down": (hidden, units),
    }  # fmt: skip
    for name, (n, k) in sizes.items():
        constants |= nbits(rng, name, n, k)
    constants |= {"lengths": np.full((1,), 4, np.int32), "total": np.array(5, np.int32)}
    nodes = [
        node("Gather", "embed ids", "h0"),
        node("SimplifiedLayerNormalization", "h0 g0", "n0", epsilon=0.01),
        *(in_nbits("n0", k, k, *sizes[k]) for k in "qkv"),
        microsoft(
            "GroupQueryAttention", "q k v pk pv lengths total cos sin", "a nk nv",
            num_heads=heads, kv_num_heads=kv, do_rotary=1,
        ),
        in_nbits("a", "o", "ao", *sizes["o"]),
        microsoft("SkipSimplifiedLayerNormalization", "h0 ao g1", "n1 _ _ h1", epsilon=0.01),
        in_nbits("n1", "gate", "gate", *sizes["gate"]),
        in_nbits("n1", "up", "up", *sizes["up"]),
        node("Sigmoid", "gate", "gs"), node("Mul", "gate gs", "silu"), node("Mul", "silu up", "u"),
        in_nbits("u", "down", "d", *sizes["down"]),
        microsoft("SkipSimplifiedLayerNormalization", "h1 d g2", "n2", epsilon=0.01),
        node("MatMul", "n2 head", "y"),
    ]  # fmt: skip
    inputs = {"ids": (1, SEQUENCE), "pk": (1, kv, 2, d), "pv": (1, kv, 2, d)}
    model = network(nodes, inputs, ["y", "nk", "nv"], constants, types={"ids": onnx.TensorProto.INT64})
    cut, removed = prune_and_compare(model, seed)
    assert len(gone(removed, "embed", 1)) in (16, 32, 48) and gone(removed, "head", 0) == gone(removed, "embed", 1)
    assert len(gone(removed, "down_b", 1)) * 16 == len(gone(removed, "up_b", 0)) > 0
    assert bool(gone(removed, "q_b", 0)) == (repeat > 1) and not gone(removed, "k_b", 0)
    assert attributes(find(cut, "GroupQueryAttention"))["kv_num_heads"] == kv


# one operator between two weights: (nodes from h to z, what it does to a masked channel)
BETWEEN = {
    "ScaledSiLU": ([microsoft("ScaledSiLU", "h", "z", alpha=0.5)], "zero"),
    "GatedAdd": ([node("MatMul", "x wg", "gate"), microsoft("GatedAdd", "h h gate", "z")], "zero"),
    "Imputer": ([node("Imputer", "h", "z", ML, imputed_value_floats=[1.0], replaced_value_float=9.0)], "zero"),
    "Binarizer": ([node("Binarizer", "h", "z", ML, threshold=0.1)], "zero"),
    "low Binarizer": ([node("Binarizer", "h", "z", ML, threshold=-0.1)], "one"),
}


@few
@given(kind=st.sampled_from(sorted(BETWEEN)), c=CHANNELS, seed=SEEDS)
def test_what_is_left_of_a_masked_channel(kind: str, c: int, seed: int) -> None:
    """A product with a weight forgets it in any case; a sum only where it is zero."""
    nodes, leaves = BETWEEN[kind]
    constants = weights(seed, w0=(WIDTH, c), wo=(c, 4), wg=(WIDTH, 1)) | {"last": np.array([-1], np.int64)}
    for tail in ("product", "sum"):
        end = node("MatMul", "z wo", "y") if tail == "product" else node("ReduceSum", "z last", "y")
        chain = [node("MatMul", "x w0", "h"), *nodes, end]
        used = {n for made in chain for n in made.input}
        model = network(chain, {"x": (3, WIDTH)}, ["y"], {k: v for k, v in constants.items() if k in used})
        _, removed = prune_and_compare(model, seed)
        assert bool(gone(removed, "w0", 1)) == (tail == "product" or leaves == "zero")


@few
@given(c=CHANNELS, seed=SEEDS)
def test_linear_classifier(c: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = [
        node("MatMul", "x w0", "h"),
        node("LinearClassifier", "h", "label y", ML, coefficients=rng.standard_normal(3 * c).tolist(),
             intercepts=[0.1, 0.2, 0.3], classlabels_ints=[0, 1, 2], post_transform="SOFTMAX"),
    ]  # fmt: skip
    model = network(nodes, {"x": (3, WIDTH)}, ["y"], weights(seed, w0=(WIDTH, c)))
    cut, removed = prune_and_compare(model, seed)
    left = attributes(find(cut, "LinearClassifier"))["coefficients"]
    assert gone(removed, "w0", 1) and len(left) == 3 * (c - len(gone(removed, "w0", 1)))
