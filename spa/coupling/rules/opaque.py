"""Operators that mix what they are given: nothing, or only the axes beside those they mix, can be pruned.

Each stands here with its reason, so that "no rule" means that nobody has looked at an operator yet.
"""

from __future__ import annotations

from collections.abc import Callable

from spa.coupling.axes import Axes, Op
from spa.coupling.rules import Rule, Table

# everything they touch stays
BLOCKED = (
    dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "random: fewer elements draw other numbers",
    )
    | dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), "a table whose entries depend on its size")
    | dict.fromkeys(("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"), "text")
    | dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), "a loss over classes that labels name")
    | {
        "AffineGrid": "coordinates depend on the size of the grid",
        "EyeLike": "ones stand where two positions are equal",
        "ImageDecoder": "an image in a file",
        "LinearAttention": "heads of a recurrent attention",
        "MaxUnpool": "flat indices into the whole tensor",
        "NonMaxSuppression": "boxes and classes are ranked against each other",
        "NonZero": "coordinates of elements that depend on data",
        "Range": "counts positions",
        "Unique": "elements are compared with each other",
    }
)  # fmt: skip


def block(op: Op, g: Axes) -> None:
    for v in (*op.inputs, *op.outputs):
        g.freeze_all(v, f"{op.kind}: {BLOCKED[op.kind]}")


def _last_two(op: Op, rank: int) -> set[int]:
    return {rank - 2, rank - 1}


def _sequence(op: Op, rank: int) -> set[int]:
    return {0, 1}


def _transformed(op: Op, rank: int) -> set[int]:
    """DFT: one axis, and the last, which holds real and imaginary parts."""
    if "axis" in op.node.attributes or op.opset < 20:
        return {int(op.attr("axis", 1)) % rank, rank - 1}
    known = op.known(2)
    axis = -2 if op.input(2) is None else None if known is None else int(known.reshape(-1)[0])
    return set(range(rank)) if axis is None else {axis % rank, rank - 1}


def _framed(op: Op, rank: int) -> set[int]:
    return set(range(1, rank))


# axes that are mixed; the others pass, and stay zero where they are
MIXED: dict[str, tuple[Callable[[Op, int], set[int]], str]] = {
    "Trilu": (_last_two, "a triangle of rows and columns"),
    "Det": (_last_two, "the determinant of these axes"),
    "ReverseSequence": (_sequence, "steps of sequences of different lengths"),
    "DFT": (_transformed, "transformed along this axis"),
    "STFT": (_framed, "frames of a signal"),
}


def mix(op: Op, g: Axes) -> None:
    x, y = op.inputs[0], op.out
    assert x is not None
    rank = len(op.shape(x))
    axes, why = MIXED[op.kind]
    over = axes(op, rank)
    for axis in range(rank):
        if axis in over:
            g.freeze((x, axis), f"{op.kind}: {why}")
        else:
            g.same((x, axis), (y, axis))
            g.mark((y, axis), g.zero((x, axis)))
    for axis in range(len(op.shape(y))):
        if axis in over or axis >= rank:
            g.freeze((y, axis), f"{op.kind}: {why}")
    for v in op.inputs[1:]:
        g.freeze_all(v, f"{op.kind}: {why}")


RULES: Table = {("", kind): Rule(block, note="blocked: " + why) for kind, why in BLOCKED.items()} | {
    ("", kind): Rule(mix, note="blocked: " + why) for kind, (_, why) in MIXED.items()
}
