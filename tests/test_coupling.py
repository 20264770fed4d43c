"""Coupling on small networks: which channels are tied, what is blocked and why, and that removal equals masking."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_text import parse
from oracle_slice import assert_masked_equal

import spa
from spa.coupling.rules.reshape import blocks
from spa.model import Model
from spa.planning import from_masks

RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {k: RNG.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def prune_some(model: Model, seed: int = 0, share: float = 0.4) -> tuple[Model, dict[str, dict[str, list[int]]]]:
    """Remove random channels of every group, at least one of each that has two, and compare with the masked network."""
    coupling = spa.analyze(model)
    rng = np.random.default_rng(seed)
    masks = {}
    for group in coupling.groups:
        mask = rng.random(group.size) < share
        mask[rng.integers(group.size)] = True
        mask[rng.integers(group.size)] = False
        masks[group.id] = mask
    plan = from_masks(coupling, masks)
    result = spa.apply(model, plan)
    assert_masked_equal(model, result.model, plan.removed, seed=seed)
    return result.model, plan.removed


RESIDUAL = """
agraph (float[1,3,8,8] x) => (float[1,4] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0, b0)
  r = Relu(a)
  c = Conv<pads=[1,1,1,1]>(r, w1)
  s = Add(r, c)
  g = GlobalAveragePool(s)
  f = Flatten(g)
  y = Gemm(f, w2, b2)
}
"""


def test_residual_sum_ties_both_branches() -> None:
    model = parse(RESIDUAL, weights(w0=(8, 3, 3, 3), b0=(8,), w1=(8, 8, 3, 3), w2=(8, 4), b2=(4,)))
    coupling = spa.analyze(model)
    assert [(g.id, g.size) for g in coupling.groups] == [("w0:0", 8)]
    constants = {(m.value, m.axis) for m in coupling.groups[0].members if m.constant}
    assert constants == {("w0", 0), ("b0", 0), ("w1", 0), ("w1", 1), ("w2", 0)}
    _, removed = prune_some(model)
    assert set(removed) == {"w0", "b0", "w1", "w2"}
    assert removed["w1"]["0"] == removed["w1"]["1"] == removed["w0"]["0"]


def test_flatten_ties_a_channel_to_all_its_positions() -> None:
    text = """agraph (float[1,3,4,4] x) => (float[1,5] y) {
      a = Conv(x, w0)
      f = Flatten(a)
      y = Gemm(f, w1)
    }"""
    model = parse(text, weights(w0=(6, 3, 1, 1), w1=(96, 5)))
    group = spa.analyze(model).groups[0]
    assert group.size == 6
    _, removed = prune_some(model)
    channels = removed["w0"]["0"]
    assert removed["w1"]["0"] == [c * 16 + i for c in channels for i in range(16)]


def test_groups_and_channels_within_them_are_groups_of_their_own() -> None:
    text = """agraph (float[1,3,4,4] x) => (float[1,5,4,4] y) {
      a = Conv(x, w0)
      b = Conv<group=4>(a, w1)
      y = Conv(b, w2)
    }"""
    model = parse(text, weights(w0=(12, 3, 1, 1), w1=(8, 3, 1, 1), w2=(5, 8, 1, 1)))
    coupling = spa.analyze(model)
    assert sorted(g.size for g in coupling.groups) == [2, 3, 4]  # outputs within, inputs within, whole groups
    cut, _ = prune_some(model)
    group = next(n for n in cut.ir.graph if n.attributes.get("group"))
    assert group.attributes["group"].as_int() < 4


def test_attention_heads_and_head_dimensions() -> None:
    text = """agraph (float[2,5,12] x) => (float[2,5,12] y) {
      q0 = MatMul(x, wq)
      k0 = MatMul(x, wk)
      v0 = MatMul(x, wv)
      shape = Constant<value_ints=[2,5,4,3]>()
      q1 = Reshape(q0, shape)
      k1 = Reshape(k0, shape)
      v1 = Reshape(v0, shape)
      q = Transpose<perm=[0,2,1,3]>(q1)
      k = Transpose<perm=[0,2,3,1]>(k1)
      v = Transpose<perm=[0,2,1,3]>(v1)
      s = MatMul(q, k)
      p = Softmax<axis=-1>(s)
      o = MatMul(p, v)
      t = Transpose<perm=[0,2,1,3]>(o)
      flat = Constant<value_ints=[2,5,-1]>()
      m = Reshape(t, flat)
      y = MatMul(m, wo)
    }"""
    model = parse(text, weights(wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12)))
    sizes = sorted(g.size for g in spa.analyze(model).groups)
    assert sizes == [3, 3, 4]  # dimensions of q and k, of v, and whole heads
    for seed in range(3):
        prune_some(model, seed)


def test_softmax_over_the_channels_blocks_with_a_reason() -> None:
    text = """agraph (float[1,6] x) => (float[1,4] y) {
      a = Gemm(x, w0)
      s = Softmax<axis=-1>(a)
      y = Gemm(s, w1)
    }"""
    coupling = spa.analyze(parse(text, weights(w0=(6, 8), w1=(8, 4))))
    assert not coupling.groups
    assert any("Softmax over this axis" in str(r) for b in coupling.blocked for r in b.reasons)
    loose = spa.analyze(parse(text, weights(w0=(6, 8), w1=(8, 4))), allow_approximate=True)
    assert [(g.size, g.exact) for g in loose.groups] == [(8, False)]


def test_sigmoid_channels_summed_against_each_other_are_blocked() -> None:
    """Masked channels hold 0.5 after a sigmoid: a product of two activations would see them, constants forget them."""
    text = """agraph (float[2,6] x) => (float[2,2] y, float[2,4] z) {
      a = Gemm(x, w0)
      s = Sigmoid(a)
      t = Transpose<perm=[1,0]>(s)
      y = MatMul(s, t)
      b = Gemm(x, w1)
      u = Sigmoid(b)
      z = Gemm(u, w2)
    }"""
    model = parse(text, weights(w0=(6, 8), w1=(6, 8), w2=(8, 4)))
    assert [g.id for g in spa.analyze(model).groups] == ["w1:1"]
    prune_some(model)


def test_an_operator_without_a_rule_blocks_what_it_touches() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"]),
        helper.make_node("Mystery", ["a"], ["b"], domain="my.domain", name="mystery"),
        helper.make_node("Gemm", ["b", "w1"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
        [onnx.numpy_helper.from_array(a, k) for k, a in weights(w0=(4, 8), w1=(8, 4)).items()],
        value_info=[helper.make_tensor_value_info("b", 1, [1, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)])
    coupling = spa.analyze(spa.load(model))
    assert not coupling.groups
    reasons = [r for b in coupling.blocked for r in b.reasons]
    assert any(r.text == "no rule for the operator my.domain::Mystery" and r.node == "mystery" for r in reasons)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 12), (2, 3, 4), [([0], [0]), ([1], [1, 2])]),
        ((2, 3, 4), (24,), [([0, 1, 2], [0])]),
        ((1, 8, 1), (8,), [([1], [0])]),
        ((6, 4), (4, 6), [([0, 1], [0, 1])]),
    ],
)
def test_blocks_of_a_reshape(before: tuple[int, ...], after: tuple[int, ...], expected: object) -> None:
    assert blocks(before, after) == expected


def test_reshape_without_common_factors_is_blocked() -> None:
    text = """agraph (float[1,5] x) => (float[4,3] y) {
      a = Gemm(x, w0)
      s = Constant<value_ints=[4,6]>()
      r = Reshape(a, s)
      t = Constant<value_ints=[6,4]>()
      u = Reshape(r, t)
      v = Transpose<perm=[1,0]>(u)
      y = MatMul(v, w1)
    }"""
    coupling = spa.analyze(parse(text, weights(w0=(5, 24), w1=(6, 3))))
    assert not coupling.groups
    assert any("share no factors" in str(r) for b in coupling.blocked for r in b.reasons)


def test_channel_shuffle_with_split_and_concat() -> None:
    text = """agraph (float[1,3,4,4] x) => (float[1,5,4,4] y) {
      a = Conv(x, w0)
      s = Constant<value_ints=[1,2,6,4,4]>()
      b = Reshape(a, s)
      c = Transpose<perm=[0,2,1,3,4]>(b)
      t = Constant<value_ints=[1,12,4,4]>()
      d = Reshape(c, t)
      e, f = Split<axis=1, num_outputs=2>(d)
      g = Conv(e, w1)
      h = Concat<axis=1>(g, f)
      y = Conv(h, w2)
    }"""
    model = parse(text, weights(w0=(12, 3, 1, 1), w1=(4, 6, 1, 1), w2=(5, 10, 1, 1)))
    for seed in range(4):
        prune_some(model, seed)


def test_computed_shapes_follow_and_scales_keep_their_value() -> None:
    """Reshape targets computed from Shape follow; 1/sqrt(d) does not."""
    text = """agraph (float[N,5,12] x) => (float[N,5,6] y) {
      a = MatMul(x, w0)
      shape = Shape(a)
      zero = Constant<value_ints=[0]>()
      one = Constant<value_ints=[1]>()
      two = Constant<value_ints=[2]>()
      n = Gather<axis=0>(shape, zero)
      l = Gather<axis=0>(shape, one)
      d = Gather<axis=0>(shape, two)
      four = Constant<value_ints=[4]>()
      e = Div(d, four)
      target = Concat<axis=0>(n, l, four, e)
      r = Reshape(a, target)
      df = Cast<to=1>(d)
      root = Sqrt(df)
      scaled = Div(r, root)
      minus = Constant<value_ints=[-1]>()
      back = Concat<axis=0>(n, l, minus)
      m = Reshape(scaled, back)
      y = MatMul(m, w1)
    }"""
    model = parse(text, weights(w0=(12, 24), w1=(24, 6)))
    assert sorted(g.size for g in spa.analyze(model).groups) == [4, 6]
    for seed in range(3):
        prune_some(model, seed)


def test_padding_over_channels() -> None:
    text = """agraph (float[1,4,6,6] x) => (float[1,3,6,6] y) {
      a = Conv(x, w0)
      p = Constant<value_ints=[0,2,0,0,0,4,0,0]>()
      b = Pad(a, p)
      c = Conv(x, w1)
      d = Add(b, c)
      r = Relu(d)
      y = Conv(r, w2)
    }"""
    model = parse(text, weights(w0=(4, 4, 1, 1), w1=(10, 4, 1, 1), w2=(3, 10, 1, 1)))
    for seed in range(4):
        prune_some(model, seed)


def test_shared_weights_are_one_group() -> None:
    text = """agraph (float[1,6] a, float[1,6] b) => (float[1,2] y) {
      p = Gemm(a, w0)
      q = Gemm(b, w0)
      d = Sub(p, q)
      r = Relu(d)
      y = Gemm(r, w1)
    }"""
    model = parse(text, weights(w0=(6, 8), w1=(8, 2)))
    assert [g.size for g in spa.analyze(model).groups] == [8]
    prune_some(model)


def test_to_networkx_holds_axes_maps_and_groups() -> None:
    model = parse(RESIDUAL, weights(w0=(8, 3, 3, 3), b0=(8,), w1=(8, 8, 3, 3), w2=(8, 4), b2=(4,)))
    graph = spa.analyze(model).to_networkx()
    assert graph.nodes["w0", 0]["groups"] == ["w0:0"]
    assert graph.has_edge(("w0", 0), ("a", 1))


def test_analysis_is_deterministic_and_leaves_the_model_alone() -> None:
    model = parse(RESIDUAL, weights(w0=(8, 3, 3, 3), b0=(8,), w1=(8, 8, 3, 3), w2=(8, 4), b2=(4,)))
    before = model.to_proto().SerializeToString(deterministic=True)
    first, second = spa.plan(model, ratio=0.5), spa.plan(model, ratio=0.5)
    assert first.to_json() == second.to_json()
    spa.prune(model, ratio=0.5)
    assert model.to_proto().SerializeToString(deterministic=True) == before
