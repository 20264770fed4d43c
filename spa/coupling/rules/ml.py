"""ai.onnx.ml: the operators of classical pipelines that move, scale or weigh features. Features are the last axis.

Their parameters are attributes, of which no slice is ever masked, so a removed feature must be zero where it is read;
the attributes of the features that stay follow.
"""

from __future__ import annotations

import numpy as np

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Table, rows

ML = "ai.onnx.ml"
# attributes with one number per feature, or one for all
PER_FEATURE = {"Scaler": ("offset", "scale"), "Imputer": ("imputed_value_floats", "imputed_value_int64s")}


def features(op: Op) -> int:
    return max(len(op.shape(op.inputs[0])) - 1, 0)


def same_axes(op: Op, g: Axes, zero: bool) -> None:
    """`zero`: a feature that is zero stays so."""
    x, y = op.inputs[0], op.out
    assert x is not None
    for axis in range(min(len(op.shape(x)), len(op.shape(y)))):
        g.same((x, axis), (y, axis))
        g.mark((y, axis), zero and g.zero((x, axis)))


def scaler(op: Op, g: Axes) -> None:
    """(x - offset) * scale."""
    same_axes(op, g, not np.any(op.attr("offset") or (0.0,)))


def imputer(op: Op, g: Axes) -> None:
    """Values equal to `replaced_value` (not-a-number, by default) are replaced."""
    replaced = op.attr("replaced_value_float", op.attr("replaced_value_int64", 0.0))
    same_axes(op, g, replaced != 0)


def binarizer(op: Op, g: Axes) -> None:
    same_axes(op, g, float(op.attr("threshold", 0.0)) >= 0)


def mapped(op: Op, g: Axes) -> None:
    """LabelEncoder, CategoryMapper: an element at a time, through a table."""
    same_axes(op, g, False)


def follow_features(op: Op, edit: Edit) -> None:
    """The numbers of the features that stay."""
    x = op.inputs[0]
    assert x is not None
    kept = edit.kept((x, features(op)))
    for name in PER_FEATURE.get(op.kind, ()):
        values = op.attr(name)
        if kept is not None and values is not None and len(values) == len(kept):
            edit.set_attr(op, name, [v for v, k in zip(values, kept, strict=True) if k])


def normalizer(op: Op, g: Axes) -> None:
    """Over the features: a sum of absolute values or of squares forgets zeros, a maximum does not."""
    same_axes(op, g, True)
    x = op.inputs[0]
    assert x is not None
    if op.attr("norm", "MAX") in ("MAX", b"MAX"):
        g.freeze((x, features(op)), "divided by the largest of this axis", approximate=True)
    else:
        g.need_zero((x, features(op)), "normalised over this axis: removing a channel changes the others")


def extractor(op: Op, g: Axes) -> None:
    """ArrayFeatureExtractor: elements of the last axis, picked by indices."""
    x, y, known = op.inputs[0], op.out, op.known(1)
    assert x is not None
    last, out = features(op), len(op.shape(y)) - 1
    for axis in range(last):
        g.same((x, axis), (y, axis))
        g.mark((y, axis), g.zero((x, axis)))
    g.mark((y, out), g.zero((x, last)))
    if known is None:
        g.freeze((x, last), "indexed by data")
    else:
        g.link((x, last), (y, out), known.reshape(-1).astype(np.int64), np.arange(known.size))
    g.freeze_all(op.inputs[1], "indices")


def follow_extractor(op: Op, edit: Edit) -> None:
    x, known = op.inputs[0], op.known(1)
    assert x is not None
    if known is None:
        return
    last = features(op)
    index = edit.positions((x, last))[known.reshape(-1)[edit.kept_or_all((op.out, len(op.shape(op.out)) - 1))]]
    edit.require(bool((index >= 0).all()), op, "an ArrayFeatureExtractor takes a removed feature")
    edit.set_input(op, 1, index.astype(np.int64).reshape((-1,) if known.ndim == 1 else (1, -1)))


def vectorizer(op: Op, g: Axes) -> None:
    """FeatureVectorizer: matrices side by side."""
    y, offset, zero = op.out, 0, True
    for x in op.inputs:
        assert x is not None
        if len(op.shape(x)) != 2:
            return blocked(op, g)
        n = op.shape(x)[1]
        g.same((x, 0), (y, 0))
        g.link((x, 1), (y, 1), np.arange(n), np.arange(offset, offset + n))
        zero = zero and g.zero((x, 1))
        offset += n
    g.mark((y, 0), False)
    g.mark((y, 1), zero)
    return None


def follow_vectorizer(op: Op, edit: Edit) -> None:
    if "inputdimensions" in op.node.attributes:
        edit.set_attr(op, "inputdimensions", [edit.count((x, 1)) for x in op.inputs if x is not None])


def linear(op: Op, g: Axes) -> None:
    """LinearRegressor, LinearClassifier: coefficients (targets, features), in an attribute, times x."""
    x = op.inputs[0]
    assert x is not None
    g.need_zero((x, features(op)), "weighed by coefficients that masking does not make zero")
    for y in op.outputs:
        for axis in range(len(op.shape(y))):
            if axis == 0 and len(op.shape(x)) == 2:
                g.same((x, 0), (y, 0))
            elif axis > 0:
                g.freeze((y, axis), f"targets of {op.kind}")
            g.mark((y, axis), False)


def follow_linear(op: Op, edit: Edit) -> None:
    x = op.inputs[0]
    assert x is not None
    kept = edit.kept((x, features(op)))
    if kept is not None:
        table = np.asarray(op.attr("coefficients"), np.float32).reshape(-1, len(kept))
        edit.set_attr(op, "coefficients", table[:, kept].reshape(-1).tolist())


def blocked(op: Op, g: Axes) -> None:
    for v in [*op.inputs, *op.outputs]:
        g.freeze_all(v, f"{op.kind} reads features by their place")


BLOCKED = (
    "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "SVMClassifier", "SVMRegressor", "OneHotEncoder", "CastMap",
    "DictVectorizer", "ZipMap",
)  # fmt: skip

RULES: Table = (
    rows(scaler, "Scaler", domain=ML, repair=follow_features)
    | rows(imputer, "Imputer", domain=ML, repair=follow_features)
    | rows(binarizer, "Binarizer", domain=ML)
    | rows(mapped, "LabelEncoder", "CategoryMapper", domain=ML)
    | rows(normalizer, "Normalizer", domain=ML, note="exact where masking gives zero; MAX is blocked")
    | rows(extractor, "ArrayFeatureExtractor", domain=ML, repair=follow_extractor, note="exact for constant indices")
    | rows(vectorizer, "FeatureVectorizer", domain=ML, repair=follow_vectorizer)
    | rows(
        linear,
        "LinearRegressor",
        "LinearClassifier",
        domain=ML,
        repair=follow_linear,
        note="exact where masking gives zero",
    )
    | rows(blocked, *BLOCKED, domain=ML, note="blocked: features by their place")
)
