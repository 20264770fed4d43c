"""What a PyTorch module says about sizes, once its tensors have become shorter.

One row per family of modules: the class, and the function that sets its attributes from the tensors that are left and
from the masks of what went (tensor name -> axis -> mask).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from spa.coupling.analysis import Mask
from spa.errors import Unsupported
from spa.interop.torch_names import Cut

Cuts = Mapping[str, Cut]  # of one module's own tensors

# attributes of attention written with Linear layers, as the common libraries call them
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
HEAD_SIZE = ("head_dim", "attention_head_size", "dim_head", "d_head", "head_size")
INNER = ("inner_dim", "all_head_size", "split_size", "attn_dim")


def groups_left(mask: Mask | None, groups: int, where: str) -> int:
    """Whole groups that are left of an axis [groups * n]; each must lose the same number of channels.

    >>> groups_left(np.array([True, True, False, False]), 2, ""), groups_left(None, 4, "")
    (1, 4)
    """
    if mask is None or groups == 1:
        return groups
    lost = mask.reshape(groups, -1).sum(1)
    whole = mask.size // groups
    if len(set(lost[lost < whole].tolist())) > 1:
        raise Unsupported(f"the groups of '{where}' lose different numbers of channels", where)
    return int((lost < whole).sum())


def linear(m: Any, cuts: Cuts, where: str) -> None:
    m.out_features, m.in_features = m.weight.shape


def bilinear(m: Any, cuts: Cuts, where: str) -> None:
    m.out_features, m.in1_features, m.in2_features = m.weight.shape


def convolution(m: Any, cuts: Cuts, where: str) -> None:
    """Weight [out, in / groups, ...], transposed [in, out / groups, ...]."""
    m.groups = groups_left(cuts.get("weight", {}).get(0), m.groups, where)
    rows, columns = m.weight.shape[0], m.weight.shape[1] * m.groups
    m.out_channels, m.in_channels = (columns, rows) if m.transposed else (rows, columns)


def batch_norm(m: Any, cuts: Cuts, where: str) -> None:
    m.num_features = len(m.weight if m.weight is not None else m.running_mean)


def group_norm(m: Any, cuts: Cuts, where: str) -> None:
    m.num_groups = groups_left(cuts.get("weight", {}).get(0), m.num_groups, where)
    m.num_channels = len(m.weight)


def layer_norm(m: Any, cuts: Cuts, where: str) -> None:
    m.normalized_shape = tuple(m.weight.shape)


def rms_norm(m: Any, cuts: Cuts, where: str) -> None:
    """Removed channels were zero: eps' = eps C/C' and w' = w sqrt(C/C') keep y = x rsqrt(sum(x^2)/C + eps) w."""
    before = int(np.prod(m.normalized_shape))
    m.normalized_shape = tuple(m.weight.shape)
    ratio = before / int(np.prod(m.normalized_shape))
    m.eps = (torch.finfo(m.weight.dtype).eps if m.eps is None else m.eps) * ratio
    with torch.no_grad():
        m.weight.mul_(ratio**0.5)


def prelu(m: Any, cuts: Cuts, where: str) -> None:
    m.num_parameters = len(m.weight)


def embedding(m: Any, cuts: Cuts, where: str) -> None:
    m.num_embeddings, m.embedding_dim = m.weight.shape


def recurrent(m: Any, cuts: Cuts, where: str) -> None:
    units = {len(getattr(m, n)[0]) for n in dict(m.named_parameters()) if n.startswith("weight_hh")}
    inputs = {getattr(m, n).shape[1] for n in dict(m.named_parameters()) if n.startswith("weight_ih_l0")}
    if len(units) > 1 or m.proj_size:
        raise Unsupported(
            f"the layers of {type(m).__name__} '{where}' would have different hidden sizes: {sorted(units)}",
            where,
            "one module per layer, or --keep",
        )
    (m.hidden_size,), (m.input_size,) = units, inputs
    m.flatten_parameters()


def refuse_packed_attention(m: Any, cuts: Cuts, where: str) -> None:
    raise Unsupported(
        "nn.MultiheadAttention ties heads x head size to the width of its input: it cannot lose either alone",
        where,
        "--keep its group when planning, or attention written with Linear layers",
    )


Setter = Callable[[Any, Cuts, str], None]
ROWS: tuple[tuple[tuple[type[nn.Module], ...], Setter], ...] = (
    ((nn.Linear,), linear),
    ((nn.Bilinear,), bilinear),
    ((nn.modules.conv._ConvNd,), convolution),
    ((nn.modules.batchnorm._NormBase,), batch_norm),  # instance normalisation is one too
    ((nn.GroupNorm,), group_norm),
    ((nn.LayerNorm,), layer_norm),
    ((nn.RMSNorm,), rms_norm),
    ((nn.PReLU,), prelu),
    ((nn.Embedding, nn.EmbeddingBag), embedding),
    ((nn.RNNBase,), recurrent),
    ((nn.MultiheadAttention,), refuse_packed_attention),
)


def follow(module: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """Set what every module of a network says about its sizes. `cuts`: full tensor name -> what went."""
    owned: dict[str, dict[str, Cut]] = {}
    for name, cut in cuts.items():
        prefix, _, leaf = name.rpartition(".")
        owned.setdefault(prefix, {})[leaf] = cut
    for where, m in module.named_modules():
        if where in owned:
            for classes, setter in ROWS:
                if isinstance(m, classes):
                    setter(m, owned[where], where)
        paths = {n: f"{where}.{n}" if where else n for n, _ in m.named_children()}
        heads(m, {n: owned[p] for n, p in paths.items() if p in owned})


def heads(m: nn.Module, children: Mapping[str, Mapping[str, Cut]]) -> None:
    """Attention written with Linear layers: numbers of heads and their size follow from what its projections lose."""
    own = vars(m)
    count = next((n for n in HEADS if isinstance(own.get(n), int)), None)
    weights = [cut["weight"] for cut in children.values() if "weight" in cut]
    outer = [c[0] for c in weights if 0 in c]  # masks of what the projections give
    if count is None or not outer:
        return
    inner = [c[1] for c in weights if 1 in c] or outer
    named = next((n for n in HEAD_SIZE if isinstance(own.get(n), int)), None)
    size = own[named] if named else min(len(mask) for mask in inner) // own[count]
    width, left = own[count] * size, size
    for name in [count, *(n for n in KEY_HEADS if isinstance(own.get(n), int))]:
        number: int = own[name]
        # one projection each, or keys and values, or all three in one
        found = next(((k, mask) for k in (1, 2, 3) for mask in outer if len(mask) == k * number * size), None)
        if found is not None:
            packed, mask = found
            rows = mask.reshape(packed * number, size)
            kept = rows[~rows.all(1)]
            left = int((~kept[0]).sum())
            setattr(m, name, len(kept) // packed)
    if named:
        setattr(m, named, left)
    for name in INNER:
        if own.get(name) == width:
            setattr(m, name, own[count] * left)
