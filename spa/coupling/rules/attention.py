"""Fused attention: heads and head dimensions as factors of the hidden axes.

Query head h reads key and value head h // r, so with K key-value heads and r queries for each

    query  (K, r, d)     key (K, d)     value (K, e)     output (K, r, e)

A key-value head goes together with its r query heads; index j of r goes in all of them, which leaves every key-value
head as many queries as any other. Index d is summed over in the scores, index e passes to the output. What an operator
of 1/sqrt(d) computes from d keeps its old value in the attribute `scale`.

Positions are never channels: axes of keys and values along the sequence are blocked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spa.coupling.axes import Axes, Op, Slot
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows
from spa.coupling.rules.contraction import contract

MICROSOFT = "com.microsoft"
OVER_POSITIONS = "attention over these positions"
UNEQUAL = "summed against a value that masking does not make zero"
Part = tuple[Slot, int]


@dataclass(frozen=True)
class Heads:
    """The factors of one node: key-value heads, queries for each, dimension of scores, dimension of values."""

    kv: Part
    repeat: Part
    d: Part
    e: Part

    @property
    def query(self) -> list[Part]:
        return [self.kv, self.repeat]

    @property
    def key(self) -> list[Part]:
        return [self.kv]


def heads_of(g: Axes, kv: int, repeat: int, d: int, e: int, *, tied: bool = False) -> Heads:
    """`tied`: the operator has but one head size, for scores and values alike."""
    scores = (g.virtual("d", d), d)
    values = scores if tied else (g.virtual("e", e), e)
    return Heads((g.virtual("kv", kv), kv), (g.virtual("repeat", repeat), repeat), scores, values)


@dataclass(frozen=True)
class Zero:
    """Is an operand zero at a masked head, and at a masked index of the head dimension?"""

    heads: bool
    dims: bool

    def __and__(self, other: Zero | bool) -> Zero:
        heads, dims = (other.heads, other.dims) if isinstance(other, Zero) else (other, other)
        return Zero(self.heads and heads, self.dims and dims)


def place(g: Axes, v: ir.Value, heads: list[Part], dim: Part) -> Zero:
    """(B, S, heads * dim), or (B, heads, S, dim)."""
    if len(g.shapes.shape.get(v) or ()) == 3:
        g.factor((v, 2), [*heads, dim])
        return Zero(g.zero((v, 2)), g.zero((v, 2)))
    g.factor((v, 1), heads)
    g.same((v, 3), dim[0])
    return Zero(g.zero((v, 1)), g.zero((v, 3)))


def mark(g: Axes, v: ir.Value, zero: Zero) -> None:
    """What `place` reads, for an output. Other axes hold mixtures."""
    rank = len(g.shapes.shape.get(v) or ())
    for axis in range(rank):
        if rank == 3:
            g.mark((v, axis), axis == 2 and zero.heads and zero.dims)
        else:
            g.mark((v, axis), (axis == 1 and zero.heads) or (axis == 3 and zero.dims))


def positions(rank: int) -> int:
    """The axis of the sequence in (B, S, hidden) and (B, heads, S, dim)."""
    return 1 if rank == 3 else 2


def sections(g: Axes, slot: Slot, named: list[tuple[str, list[Part]]]) -> None:
    """One axis holds several hidden axes side by side: packed projections and their bias."""
    offset = 0
    for name, parts in named:
        n = math.prod(size for _, size in parts)
        inner = g.virtual(name, n)
        g.factor(inner, parts)
        g.link(slot, inner, np.arange(offset, offset + n), np.arange(n))
        offset += n


def bias_of_scores(op: Op, g: Axes, v: ir.Value | None, heads: list[Part]) -> None:
    """A mask or bias that broadcasts to (B, heads, S, T)."""
    shape = op.shape(v)
    for axis, n in enumerate(shape):
        back = axis - len(shape)
        if v is None or n == 1:
            continue
        if back == -3 and n == math.prod(size for _, size in heads):
            g.factor((v, axis), heads)
        elif back == -4:
            g.same((v, axis), (op.out, 0))
        else:
            g.freeze((v, axis), OVER_POSITIONS)


def scores(op: Op, g: Axes, heads: Heads, q: Zero, k: Zero) -> None:
    """Index d ends in the product of queries and keys: one of them must be zero there."""
    if not q.dims and not k.dims:
        g.freeze(heads.d[0], UNEQUAL, approximate=True)


def caches(
    op: Op, g: Axes, heads: Heads, pairs: list[tuple[ir.Value | None, ir.Value | None, Part, Zero]]
) -> list[Zero]:
    """Past and present (B, heads, T, dim) of keys and values: what is attended to is both one after the other."""
    found = []
    for past, present, dim, zero in pairs:
        for v in (past, present):
            if v is not None and len(op.shape(v)) == 4:
                held = place(g, v, heads.key, dim)
                zero = zero & held if v is past else zero
                g.freeze((v, 2), OVER_POSITIONS)
        if present is not None and len(op.shape(present)) == 4:
            mark(g, present, zero)
        found.append(zero)
    return found


def output(op: Op, i: int) -> ir.Value | None:
    """Output i, where the node has it and it is typed."""
    return op.outputs[i] if i < len(op.outputs) and op.shape(op.outputs[i]) else None


def couple_scores_output(op: Op, g: Axes, i: int, heads: list[Part]) -> None:
    """The optional output (B, heads, S, T) of the scores themselves."""
    v = output(op, i)
    if v is not None:
        bias_of_scores(op, g, v, heads)
        for axis in range(4):
            g.mark((v, axis), False)


# -- ai.onnx


def attention(op: Op, g: Axes) -> None:
    """Attention (23 and up): Q, K, V of rank 3 or 4, attn_mask, past_key, past_value, nonpad_kv_seqlen."""
    q, k, v, y = op.inputs[0], op.inputs[1], op.inputs[2], op.out
    assert q is not None and k is not None and v is not None
    rank = len(op.shape(q))
    if rank == 3:
        queries, keys = int(op.attr("q_num_heads")), int(op.attr("kv_num_heads"))
        d, e = op.shape(q)[2] // queries, op.shape(v)[2] // keys
    else:
        queries, keys, d, e = op.shape(q)[1], op.shape(k)[1], op.shape(q)[3], op.shape(v)[3]
    heads = heads_of(g, keys, queries // keys, d, e)
    zq, zk, zv = (
        place(g, t, h, dim)
        for t, h, dim in ((q, heads.query, heads.d), (k, heads.key, heads.d), (v, heads.key, heads.e))
    )
    zk, zv = caches(
        op, g, heads, [(op.input(4), output(op, 1), heads.d, zk), (op.input(5), output(op, 2), heads.e, zv)]
    )
    scores(op, g, heads, zq, zk)
    place(g, y, heads.query, heads.e)
    mark(g, y, zv & Zero(queries == keys, True))
    couple_batch(op, g, [q, k, v])
    bias_of_scores(op, g, op.input(3), heads.query)
    couple_scores_output(op, g, 3, heads.query)


def couple_batch(op: Op, g: Axes, operands: list[ir.Value]) -> None:
    for v in operands:
        g.same((v, 0), (op.out, 0))
    for v in [*operands, op.out]:
        g.freeze((v, positions(len(op.shape(v)))), OVER_POSITIONS)


def left(op: Op, edit: Edit, key: str) -> int:
    return edit.count(((id(op.node), key), None))


def follow_attention(op: Op, edit: Edit) -> None:
    kv = left(op, edit, "kv")
    for name, n in (("q_num_heads", kv * left(op, edit, "repeat")), ("kv_num_heads", kv)):
        if name in op.node.attributes:
            edit.set_attr(op, name, n)
    keep_scale(op, edit, unset=None)


def keep_scale(op: Op, edit: Edit, *, unset: float | None = 0.0) -> None:
    """1/sqrt(d) of before, written out where d shrinks and no scale is given."""
    slot: Slot = ((id(op.node), "d"), None)
    before = edit.coupling.axes.add(slot)
    if edit.count(slot) != before and op.attr("scale") in (None, unset):
        edit.set_attr(op, "scale", 1 / math.sqrt(before))


# -- com.microsoft


def packed_attention(op: Op, g: Axes) -> None:
    """Attention: x (B, S, in), weight (in, 3 hidden), bias, mask, past (2, B, heads, P, d), attention_bias.
    QAttention: the same in integers, with input_scale, weight_scale, mask, zero points of input and weight, past."""
    x, w, y = op.inputs[0], op.inputs[1], op.out
    assert x is not None and w is not None
    quantised = op.kind == "QAttention"
    count = int(op.attr("num_heads"))
    sizes = [int(n) for n in op.attr("qkv_hidden_sizes") or [op.shape(w)[1] // 3] * 3]
    past, present = op.input(8 if quantised else 4), output(op, 1)
    one_size = quantised or any(t is not None and t.name for t in (past, present))
    heads = heads_of(g, count, 1, sizes[0] // count, sizes[2] // count, tied=one_size)
    columns: list[tuple[str, list[Part]]] = [
        ("q", [heads.kv, heads.d]),
        ("k", [heads.kv, heads.d]),
        ("v", [heads.kv, heads.e]),
    ]
    sections(g, (w, 1), columns)
    bias = op.input(2)
    per_column = [
        v
        for v in ([bias, op.input(4), op.input(7)] if quantised else [bias])
        if v is not None and op.shape(v)[-1:] == op.shape(w)[1:]
    ]
    for v in per_column:
        g.same((v, len(op.shape(v)) - 1), (w, 1))
    zero_rows, zero_columns = stored_zero(op, per_column) if quantised else (True, True)
    contract(g, x, 2, w, 0)
    if not zero_rows:
        g.freeze((x, 2), "masked rows of a quantised weight are not at their zero point")
    zero = Zero(True, True) & (g.zero((w, 1)) and zero_columns and (bias is None or g.zero((bias, 0))))
    zero = zero & packed_cache(op, g, heads, past, present, zero)
    scores(op, g, heads, zero, zero)
    if op.attr("do_rotary", 0):
        g.freeze(heads.d[0], "pairs of this axis are rotated")
    place(g, y, heads.key, heads.e)
    mark(g, y, zero)
    couple_batch(op, g, [x])
    if not quantised:
        bias_of_scores(op, g, op.input(5), heads.key)


def stored_zero(op: Op, per_column: list[ir.Value]) -> tuple[bool, bool]:
    """Does a masked row, a masked column of the quantised weight stand for zero? Zero points and scales per column are
    masked with their column."""
    point = op.input(7)
    known = op.known(7)
    plain = point is None or (known is not None and not np.any(known))
    return plain, plain or any(v in per_column for v in (op.input(4), point))


def packed_cache(op: Op, g: Axes, heads: Heads, past: ir.Value | None, present: ir.Value | None, zero: Zero) -> Zero:
    """Keys and values stacked: (2, B, heads, T, d)."""
    for v in (past, present):
        if v is None or len(op.shape(v)) != 5:
            continue
        g.factor((v, 2), heads.key)
        g.same((v, 4), heads.d[0])
        for axis in (0, 3):
            g.freeze((v, axis), OVER_POSITIONS)
        if v is past:
            zero = zero & Zero(g.zero((v, 2)), g.zero((v, 4)))
        else:
            for axis in range(5):
                g.mark((v, axis), (axis == 2 and zero.heads) or (axis == 4 and zero.dims))
    return zero


def follow_packed(op: Op, edit: Edit) -> None:
    kv, d = left(op, edit, "kv"), left(op, edit, "d")
    tied = ((id(op.node), "e"), None) not in edit.coupling.axes.size
    e = d if tied else left(op, edit, "e")
    edit.set_attr(op, "num_heads", kv)
    if "qkv_hidden_sizes" in op.node.attributes or d != e:
        edit.set_attr(op, "qkv_hidden_sizes", [kv * d, kv * d, kv * e])
    keep_scale(op, edit)


def multi_head(op: Op, g: Axes) -> None:
    """MultiHeadAttention: query, key, value (rank 3; key and value also (B, heads, T, dim); or packed with a rank of 5),
    bias over all three, key_padding_mask, attention_bias, past_key, past_value."""
    q, k, v, y = op.inputs[0], op.input(1), op.input(2), op.out
    assert q is not None
    count = int(op.attr("num_heads"))
    packed = next((t for t in (q, k) if t is not None and len(op.shape(t)) == 5), None)
    if any(op.input(i) is not None for i in (8, 9)) or op.attr("past_present_share_buffer", 0):
        return blocked(op, g)
    d = op.shape(packed)[4] if packed is not None else op.shape(q)[2] // count
    e = op.shape(y)[2] // count
    # keys and values that come as heads must have one size
    heads = heads_of(g, count, 1, d, e, tied=packed is not None or len(op.shape(k)) == 4)
    zeros: list[Zero] = []
    for t, dim in ((q, heads.d), (k, heads.d), (v, heads.e)):
        if t is None:
            zeros.append(zeros[-1])
        elif len(op.shape(t)) == 5:
            g.factor((t, 2), heads.key)
            g.same((t, 4), dim[0])
            g.freeze((t, 3), "queries, keys and values are packed along this axis")
            zeros.append(Zero(g.zero((t, 2)), g.zero((t, 4))))
        else:
            zeros.append(place(g, t, heads.key, dim))
    bias = op.input(3)
    if bias is not None:
        sections(
            g, (bias, 0), [("q", [*heads.key, heads.d]), ("k", [*heads.key, heads.d]), ("v", [*heads.key, heads.e])]
        )
        zeros = [z & g.zero((bias, 0)) for z in zeros]
    zq, zk, zv = zeros
    zk, zv = caches(
        op, g, heads, [(op.input(6), output(op, 1), heads.d, zk), (op.input(7), output(op, 2), heads.e, zv)]
    )
    scores(op, g, heads, zq, zk)
    place(g, y, heads.key, heads.e)
    mark(g, y, zv)
    for t in (q, k, v):
        if t is not None:
            g.same((t, 0), (y, 0))
            g.freeze((t, 2 if len(op.shape(t)) == 4 else 1), OVER_POSITIONS)
    g.freeze((y, 1), OVER_POSITIONS)
    bias_of_scores(op, g, op.input(5), heads.key)
    couple_scores_output(op, g, 3, heads.key)
    return None


def follow_multi_head(op: Op, edit: Edit) -> None:
    edit.set_attr(op, "num_heads", left(op, edit, "kv"))
    keep_scale(op, edit)


def group_query(op: Op, g: Axes) -> None:
    """GroupQueryAttention: query, key, value of rank 3 (or all packed into the query), past_key, past_value, seqlens_k,
    total_sequence_length, cos_cache, sin_cache, position_ids, attention_bias, head_sink, scales of a quantised cache,
    weights of norms of queries and keys. Head dimensions stay: kernels want multiples of 8 or 16."""
    q, k, v, y = op.inputs[0], op.input(1), op.input(2), op.out
    assert q is not None
    if any(op.input(i) is not None for i in (12, 13)):
        return blocked(op, g)
    queries, keys = int(op.attr("num_heads")), int(op.attr("kv_num_heads"))
    d = op.shape(y)[2] // queries
    heads = heads_of(g, keys, queries // keys, d, d, tied=True)
    g.freeze(heads.d[0], "the kernels of GroupQueryAttention take head sizes in steps of 8")
    if k is None or v is None:
        sections(
            g, (q, 2), [("q", [*heads.query, heads.d]), ("k", [*heads.key, heads.d]), ("v", [*heads.key, heads.d])]
        )
        zv = Zero(True, True) & g.zero((q, 2))
        operands = [q]
    else:
        zv = [place(g, t, h, heads.d) for t, h in ((q, heads.query), (k, heads.key), (v, heads.key))][2]
        operands = [q, k, v]
    # keys are normalised and rotated before they are stored: zero stays zero
    _, zv = caches(op, g, heads, [(op.input(3), output(op, 1), heads.d, zv), (op.input(4), output(op, 2), heads.d, zv)])
    place(g, y, heads.query, heads.d)
    mark(g, y, zv & (queries == keys))
    couple_batch(op, g, operands)
    bias_of_scores(op, g, op.input(10), heads.query)
    couple_scores_output(op, g, 3, heads.query)
    if (sink := op.input(11)) is not None:
        g.factor((sink, 0), heads.query)
    for i in (7, 8, 14, 15):
        g.freeze_all(op.input(i), "belongs to the head size of GroupQueryAttention")
    return None


def follow_group_query(op: Op, edit: Edit) -> None:
    kv = left(op, edit, "kv")
    edit.set_attr(op, "num_heads", kv * left(op, edit, "repeat"))
    edit.set_attr(op, "kv_num_heads", kv)


# -- rotary embeddings


def rotary(op: Op, g: Axes) -> None:
    """x (B, S, heads * d) or (B, heads, S, d); the first `rotary_embedding_dim` of d (all, where it is 0) are rotated in
    pairs: (2, pairs), or (pairs, 2) where interleaved. One row of the caches holds one angle per pair.
    ai.onnx: x, cos, sin, position_ids. com.microsoft: x, position_ids, cos, sin."""
    x, y = op.inputs[0], op.out
    contrib = op.node.domain == MICROSOFT
    cos, sin = (op.inputs[2], op.inputs[3]) if contrib else (op.inputs[1], op.inputs[2])
    assert x is not None and cos is not None and sin is not None
    if op.attr("is_packed_batching", 0):
        return blocked(op, g)
    pairs = op.shape(cos)[-1]
    last = op.shape(x)[-1]
    if len(op.shape(x)) == 4:
        count, d = op.shape(x)[1], last
    else:
        count = int(op.attr("num_heads", 0)) or last // (2 * pairs)
        d = last // count
    heads, dim = [(g.virtual("heads", count), count)], (g.virtual("d", d), d)
    for v in (x, y):
        place(g, v, heads, dim)
        g.same((v, 0), (y, 0))
    sequence = positions(len(op.shape(x)))
    g.same((x, sequence), (y, sequence))
    couple_pairs(op, g, dim, pairs, [cos, sin])
    for axis in range(len(op.shape(y))):
        g.mark((y, axis), g.zero((x, axis)))
    for v in (cos, sin):
        for axis in range(len(op.shape(v)) - 1):
            g.freeze((v, axis), "positions of rotary embeddings")
    g.freeze((x, sequence), "positions of rotary embeddings")
    return None


def couple_pairs(op: Op, g: Axes, dim: Part, pairs: int, angles: list[ir.Value]) -> None:
    turned, pair, two = g.virtual("turned", 2 * pairs), g.virtual("pairs", pairs), g.virtual("two", 2)
    g.link(dim[0], turned, np.arange(2 * pairs), np.arange(2 * pairs))
    g.factor(turned, [(pair, pairs), (two, 2)] if op.attr("interleaved", 0) else [(two, 2), (pair, pairs)])
    g.freeze(two, "two channels are rotated into each other")
    for v in angles:
        g.same((v, len(op.shape(v)) - 1), pair)


def follow_rotary(op: Op, edit: Edit) -> None:
    if op.attr("num_heads", 0):
        edit.set_attr(op, "num_heads", left(op, edit, "heads"))
    if op.attr("rotary_embedding_dim", 0):
        edit.set_attr(op, "rotary_embedding_dim", 2 * left(op, edit, "pairs"))


# -- operators that are not taken apart

BLOCKED = (
    "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "DecoderAttention", "PackedAttention", "PackedMultiHeadAttention",
    "PagedAttention", "SparseAttention", "LongformerAttention", "LinearAttention", "GatedRelativePositionBias", "RelativePositionBias",
    "GemmaRotaryEmbedding", "MRotaryEmbedding", "DynamicSparseAttention", "QOrderedAttention", "QOrderedLongformerAttention",
)  # fmt: skip


def blocked(op: Op, g: Axes) -> None:
    """Axes are known to be tied in ways that no rule states."""
    for v in [*op.inputs, *op.outputs]:
        g.freeze_all(v, f"{op.kind} in this form is not taken apart")


RULES: Table = (
    rows(attention, "Attention", repair=follow_attention, note="heads and head dimensions; positions are blocked")
    | rows(rotary, "RotaryEmbedding", repair=follow_rotary, note="heads, and pairs of head dimensions")
    | rows(
        packed_attention,
        "Attention",
        "QAttention",
        domain=MICROSOFT,
        repair=follow_packed,
        note="heads and head dimensions",
    )
    | rows(
        multi_head, "MultiHeadAttention", domain=MICROSOFT, repair=follow_multi_head, note="heads and head dimensions"
    )
    | rows(
        group_query,
        "GroupQueryAttention",
        domain=MICROSOFT,
        repair=follow_group_query,
        note="heads; head dimensions are blocked",
    )
    | rows(
        rotary, "RotaryEmbedding", domain=MICROSOFT, repair=follow_rotary, note="heads, and pairs of head dimensions"
    )
    | rows(blocked, *BLOCKED, domain=MICROSOFT, note="blocked: not taken apart")
)
