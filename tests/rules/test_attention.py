"""Fused attention and rotary embeddings: heads and head dimensions go, attributes follow, numbers stay."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from few_ops import Array, attributes, find, gone, microsoft, network, node, prune_and_compare, reasons, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import spa

SEQUENCE, WIDTH = 3, 5
SEEDS = st.integers(0, 999)
few = settings(max_examples=20)


def project(name: str, x: str, out: str, bias: bool) -> list[onnx.NodeProto]:
    if not bias:
        return [node("MatMul", f"{x} w{name}", out)]
    return [node("MatMul", f"{x} w{name}", f"{out}_"), node("Add", f"{out}_ b{name}", out)]


def only_used(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> dict[str, Array]:
    used = {n for made in nodes for n in made.input}
    return {k: v for k, v in constants.items() if k in used}


def split_heads(x: str, out: str) -> list[onnx.NodeProto]:
    """(B, S, heads * dim) -> (B, heads, S, dim)."""
    return [node("Reshape", f"{x} shape_{out}", f"{out}_r"), node("Transpose", f"{out}_r", out, perm=[0, 2, 1, 3])]


@few
@given(
    kv=st.integers(1, 3), repeat=st.integers(1, 3), d=st.integers(2, 5), e=st.integers(1, 4), rank=st.sampled_from([3, 4]),
    bias=st.booleans(), scaled=st.booleans(), mask=st.sampled_from([None, "scores", "heads"]), causal=st.booleans(),
    softcap=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_onnx_attention(
    kv: int,
    repeat: int,
    d: int,
    e: int,
    rank: int,
    bias: bool,
    scaled: bool,
    mask: str | None,
    causal: bool,
    softcap: bool,
    seed: int,
) -> None:
    heads = kv * repeat
    shapes = {"wq": (WIDTH, heads * d), "wk": (WIDTH, kv * d), "wv": (WIDTH, kv * e), "wo": (heads * e, 4)}
    constants = weights(
        seed,
        **shapes,
        bq=(heads * d,),
        bk=(kv * d,),
        bv=(kv * e,),
        m=((heads if mask == "heads" else 1), SEQUENCE, SEQUENCE),
    )
    options = {"is_causal": int(causal)} | ({"scale": 0.3} if scaled else {}) | ({"softcap": 2.0} if softcap else {})
    nodes = [n for k in "qkv" for n in project(k, "x", k, bias)]
    operands = "q k v"
    if rank == 4:
        nodes += [n for k in "qkv" for n in split_heads(k, f"{k}4")]
        for k, shape in (("q4", (heads, d)), ("k4", (kv, d)), ("v4", (kv, e))):
            constants[f"shape_{k}"] = np.array([0, 0, *shape], np.int64)
        operands = "q4 k4 v4"
    else:
        options |= {"q_num_heads": heads, "kv_num_heads": kv}
    nodes.append(node("Attention", operands + (" m" if mask else ""), "a", **options))
    last = "a"
    if rank == 4:
        constants["merge"] = np.array([0, 0, -1], np.int64)
        nodes += [node("Transpose", "a", "at", perm=[0, 2, 1, 3]), node("Reshape", "at merge", "am")]
        last = "am"
    nodes.append(node("MatMul", f"{last} wo", "y"))
    cut, removed = prune_and_compare(network(nodes, {"x": (2, SEQUENCE, WIDTH)}, ["y"], constants), seed)
    left = attributes(find(cut, "Attention"))
    queries, keys = heads * d - len(gone(removed, "wq", 1)), kv * d - len(gone(removed, "wk", 1))
    assert queries < heads * d, "head dimensions of more than one can always go"
    assert (heads * e > 1) == bool(gone(removed, "wo", 0))
    if rank == 3:
        assert queries / left["q_num_heads"] == keys / left["kv_num_heads"]
    assert left["scale"] == pytest.approx(0.3 if scaled else 1 / math.sqrt(d))


@few
@given(kv=st.integers(1, 3), repeat=st.integers(1, 2), d=st.integers(1, 3), past=st.booleans(), seed=SEEDS)
def test_onnx_attention_with_cache(kv: int, repeat: int, d: int, past: bool, seed: int) -> None:
    """A cache that the network reads or returns has a fixed size: only the queries of each key-value head are free."""
    heads = kv * repeat
    constants = weights(seed, wq=(WIDTH, heads * d), wk=(WIDTH, kv * d), wv=(WIDTH, kv * d), wo=(heads * d, 4))
    nodes = [n for k in "qkv" for n in project(k, "x", k, False)]
    inputs: dict[str, tuple[int, ...]] = {"x": (2, SEQUENCE, WIDTH)}
    if past:
        inputs |= {"pk": (2, kv, 2, d), "pv": (2, kv, 2, d)}
    operands = "q k v" + (" _ pk pv" if past else "")
    nodes += [node("Attention", operands, "a nk nv", q_num_heads=heads, kv_num_heads=kv), node("MatMul", "a wo", "y")]
    cut, removed = prune_and_compare(network(nodes, inputs, ["y", "nk", "nv"], constants), seed)
    assert not gone(removed, "wk", 1) and not gone(removed, "wv", 1)
    assert attributes(find(cut, "Attention"))["kv_num_heads"] == kv
    assert bool(gone(removed, "wo", 0)) == (repeat > 1)


@few
@given(
    heads=st.integers(1, 4), d=st.integers(2, 4), e=st.integers(2, 4), sizes=st.booleans(), scores=st.booleans(),
    causal=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_packed_attention(heads: int, d: int, e: int, sizes: bool, scores: bool, causal: bool, seed: int) -> None:
    """The bias is optional by the schema, yet onnxruntime crashes without it."""
    e = e if sizes else d
    columns = heads * (2 * d + e)
    constants = weights(
        seed, w0=(WIDTH, 6), w=(6, columns), b=(columns,), wo=(heads * e, 4), s=(1, heads, SEQUENCE, SEQUENCE)
    )
    options = {"qkv_hidden_sizes": [heads * d, heads * d, heads * e]} if sizes else {}
    operands = f"h w b _ _ {'s' if scores else ''}"
    nodes = [
        node("MatMul", "x w0", "h"),
        microsoft("Attention", operands, "a", num_heads=heads, unidirectional=int(causal), **options),
        node("MatMul", "a wo", "y"),
    ]
    cut, removed = prune_and_compare(network(nodes, {"x": (2, SEQUENCE, WIDTH)}, ["y"], constants), seed)
    assert gone(removed, "w", 0) and gone(removed, "w", 1) and gone(removed, "wo", 0)
    left = attributes(find(cut, "Attention"))
    assert left["scale"] == pytest.approx(1 / math.sqrt(d))
    if "qkv_hidden_sizes" in left:
        assert sum(left["qkv_hidden_sizes"]) == columns - len(gone(removed, "w", 1))


@few
@given(
    heads=st.integers(1, 4), d=st.integers(2, 4), e=st.integers(2, 4), bias=st.booleans(), cross=st.booleans(),
    spread=st.booleans(), scores=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_multi_head_attention(
    heads: int, d: int, e: int, bias: bool, cross: bool, spread: bool, scores: bool, seed: int
) -> None:
    """Keys and values as (B, T, heads * dim), or `spread` as (B, heads, T, dim)."""
    other, length = ("z", 4) if cross else ("x", SEQUENCE)
    e, bias = (d, False) if spread else (e, bias)
    constants = weights(
        seed,
        wq=(WIDTH, heads * d), wk=(WIDTH, heads * d), wv=(WIDTH, heads * e), wo=(heads * e, 4),
        b=(heads * (2 * d + e),), s=(1, heads, SEQUENCE, length),
    )  # fmt: skip
    constants["shape_k4"] = constants["shape_v4"] = np.array([0, 0, heads, d], np.int64)
    nodes = [*project("q", "x", "q", False), *project("k", other, "k", False), *project("v", other, "v", False)]
    nodes += [n for k in "kv" for n in split_heads(k, f"{k}4")] if spread else []
    operands = f"q {'k4 v4' if spread else 'k v'} {'b' if bias else '_'} _ {'s' if scores else '_'}"
    nodes += [microsoft("MultiHeadAttention", operands, "a", num_heads=heads), node("MatMul", "a wo", "y")]
    inputs = {"x": (2, SEQUENCE, WIDTH)} | ({"z": (2, length, WIDTH)} if cross else {})
    cut, removed = prune_and_compare(network(nodes, inputs, ["y"], only_used(nodes, constants)), seed)
    assert gone(removed, "wo", 0) and gone(removed, "wq", 1)
    assert attributes(find(cut, "MultiHeadAttention"))["scale"] == pytest.approx(1 / math.sqrt(d))
    assert not bias or len(gone(removed, "b", 0)) >= 3


def test_packed_multi_head_attention_has_heads_and_dimensions() -> None:
    """(B, S, heads, 3, d) runs on GPUs only: the coupling alone."""
    constants = weights(w=(WIDTH, 4 * 3 * 6), wo=(4 * 6, 4)) | {"shape": np.array([0, 0, 4, 3, 6], np.int64)}
    nodes = [
        node("MatMul", "x w", "h"),
        node("Reshape", "h shape", "p"),
        microsoft("MultiHeadAttention", "p", "a", num_heads=4),
        node("MatMul", "a wo", "y"),
    ]
    coupling = spa.analyze(network(nodes, {"x": (2, SEQUENCE, WIDTH)}, ["y"], constants))
    assert sorted(g.size for g in coupling.groups) == [4, 6]


@few
@given(
    kv=st.integers(1, 3), repeat=st.integers(1, 3), packed=st.booleans(), turned=st.booleans(), sink=st.booleans(), seed=SEEDS
)  # fmt: skip
def test_group_query_attention(kv: int, repeat: int, packed: bool, turned: bool, sink: bool, seed: int) -> None:
    """Heads go, head dimensions stay. The cache is dropped, so that keys and values are free."""
    d, heads = 16, kv * repeat
    shapes = {
        "wq": (WIDTH, heads * d),
        "wk": (WIDTH, kv * d),
        "wv": (WIDTH, kv * d),
        "wp": (WIDTH, (heads + 2 * kv) * d),
    }
    constants = weights(seed, **shapes, wo=(heads * d, 4), sink=(heads,), cos=(8, d // 2), sin=(8, d // 2))
    constants |= {"lengths": np.full((2,), SEQUENCE - 1, np.int32), "total": np.array(SEQUENCE, np.int32)}
    nodes = [node("MatMul", "x wp", "q")] if packed else [n for k in "qkv" for n in project(k, "x", k, False)]
    operands = f"q {'_ _' if packed else 'k v'} _ _ lengths total {'cos sin' if turned else '_ _'} _ _ {'sink' if sink else '_'}"
    nodes.append(
        microsoft("GroupQueryAttention", operands, "a nk nv", num_heads=heads, kv_num_heads=kv, do_rotary=int(turned))
    )
    nodes.append(node("MatMul", "a wo", "y"))
    model = network(nodes, {"x": (2, SEQUENCE, WIDTH)}, ["y"], only_used(nodes, constants))
    cut, removed = prune_and_compare(model, seed)
    left = attributes(find(cut, "GroupQueryAttention"))
    assert bool(gone(removed, "wo", 0)) == (heads > 1)
    assert len(gone(removed, "wo", 0)) == (heads - left["num_heads"]) * d
    assert left["num_heads"] % left["kv_num_heads"] == 0
    assert "head sizes in steps of 8" in reasons(model)


@few
@given(
    contrib=st.booleans(), heads=st.integers(1, 3), pairs=st.integers(1, 4), rest=st.sampled_from([0, 2, 3]),
    interleaved=st.booleans(), rank=st.sampled_from([3, 4]), seed=SEEDS,
)  # fmt: skip
def test_rotary_embedding(
    contrib: bool, heads: int, pairs: int, rest: int, interleaved: bool, rank: int, seed: int
) -> None:
    """Pairs move together; what is not rotated is free."""
    rest = 2 * (rest // 2) if contrib or rank == 4 else rest  # kernels want even heads there
    if contrib and rank == 4 and rest:
        rank = 3
    d = 2 * pairs + rest
    constants = weights(seed, w=(WIDTH, heads * d), wo=(heads * d, 4), cos=(8, pairs), sin=(8, pairs))
    constants |= {"at": np.arange(2 * SEQUENCE).reshape(2, SEQUENCE) % 8, "merge": np.array([0, 0, -1], np.int64)}
    constants["shape_h4"] = np.array([0, 0, heads, d], np.int64)
    options = {"interleaved": int(interleaved)} | ({"rotary_embedding_dim": 2 * pairs} if rest else {})
    if rank == 3 and (rest or not contrib):
        options["num_heads"] = heads
    nodes = [node("MatMul", "x w", "h"), *(split_heads("h", "h4") if rank == 4 else [])]
    x = "h4" if rank == 4 else "h"
    if contrib:
        nodes.append(microsoft("RotaryEmbedding", f"{x} at cos sin", "r", **options))
    else:
        nodes.append(node("RotaryEmbedding", f"{x} cos sin at", "r", **options))
    last = "r"
    if rank == 4:
        nodes += [node("Transpose", "r", "rt", perm=[0, 2, 1, 3]), node("Reshape", "rt merge", "m")]
        last = "m"
    nodes.append(node("MatMul", f"{last} wo", "y"))
    model = network(nodes, {"x": (2, SEQUENCE, WIDTH)}, ["y"], only_used(nodes, constants))
    _, removed = prune_and_compare(model, seed)
    assert len(gone(removed, "cos", 1)) == len(gone(removed, "sin", 1)) < pairs
    assert bool(gone(removed, "wo", 0)) == (heads > 1 or pairs > 1 or rest > 1)


@few
@given(heads=st.integers(1, 3), d=st.integers(2, 4), per_column=st.booleans(), zero_point=st.booleans(), seed=SEEDS)
def test_quantised_attention(heads: int, d: int, per_column: bool, zero_point: bool, seed: int) -> None:
    """Scales per column are masked with their column; one scale for all needs zero points of zero."""
    columns = 3 * heads * d
    rng = np.random.default_rng(seed)
    constants = weights(seed, b=(columns,), wo=(heads * d, 4))
    constants |= {
        "w": rng.integers(-9, 9, (WIDTH, columns)).astype(np.int8),
        "xs": np.array(0.1, np.float32),
        "ws": np.full((columns,) if per_column else (), 0.1, np.float32),
        "xz": np.array(3, np.uint8),
        "wz": np.full((columns,) if per_column else (), 2 if zero_point else 0, np.int8),
    }
    nodes = [microsoft("QAttention", "x w b xs ws _ xz wz", "a", num_heads=heads), node("MatMul", "a wo", "y")]
    model = network(nodes, {"x": (2, SEQUENCE, WIDTH)}, ["y"], constants, types={"x": onnx.TensorProto.UINT8})
    _, removed = prune_and_compare(model, seed)
    assert bool(gone(removed, "w", 1)) == (per_column or not zero_point or heads > 1)


def test_operators_that_are_not_taken_apart_say_so() -> None:
    nodes = [
        node("MatMul", "x w", "q"),
        microsoft("DecoderMaskedMultiHeadAttention", "q q q", "a", num_heads=2),
        node("MatMul", "a w", "y"),
    ]
    model = network(nodes, {"x": (1, 1, 4)}, ["y"], weights(w=(4, 4)))
    assert "DecoderMaskedMultiHeadAttention in this form is not taken apart" in reasons(model)
