"""Which layer gets which pattern, and why some are spared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import onnx_ir as ir

from spa.errors import UsageError
from spa.sparsity.layers import Layer
from spa.sparsity.patterns import Pattern, parse

if TYPE_CHECKING:
    from spa.coupling import Coupling

TINY = 512  # weights: less is not worth an index


@dataclass(frozen=True)
class Spared:
    """A layer that stays dense."""

    weight: str
    node: str
    reason: str


def overrides(texts: Sequence[str]) -> list[tuple[str, Pattern | None]]:
    """`glob=pattern` and `glob=dense`, the last match wins. Raises `UsageError`.

    >>> overrides(["head*=dense", "*=1:4"])[0]
    ('head*', None)
    """
    found = []
    for text in texts:
        glob, equals, pattern = text.rpartition("=")
        if not equals or not glob:
            raise UsageError(f"'{text}' names no layer and pattern", hint="GLOB=PATTERN, such as 'head*=dense'")
        found.append((glob, None if pattern == "dense" else parse(pattern)))
    return found


def select(
    coupling: Coupling, layers: Sequence[Layer], default: Pattern | None, rules: Sequence[tuple[str, Pattern | None]]
) -> tuple[dict[Layer, Pattern], list[Spared]]:
    """Patterns by layer, in order of execution, and what is spared.

    Without a rule of its own a layer is spared where it is the first or the last on its way through the network,
    depthwise, tiny, or an embedding. Raises `UsageError` for a rule that matches nothing."""
    for glob, _ in rules:
        if not any(fnmatch(n, glob) for layer in layers for n in (layer.name, layer.node)):
            raise UsageError(f"'{glob}' matches no layer", hint="`spa inspect` lists them")
    chosen, spared = {}, []
    ends = first_and_last(coupling, layers)
    for layer in layers:
        own = [p for glob, p in rules if fnmatch(layer.name, glob) or fnmatch(layer.node, glob)]
        reason = "asked for" if own and own[-1] is None else broken(layer)
        pattern = own[-1] if own else default
        if not reason and not own:
            reason = modest(layer) or ends.get(layer, "")
        if not reason and pattern is not None and pattern.kind == "taps" and layer.view.taps <= pattern.n:
            reason = f"no more than {pattern.n} taps"
        if reason or pattern is None:
            spared.append(Spared(layer.name, layer.node, reason or "no pattern for it"))
        else:
            chosen[layer] = pattern
    return chosen, spared


def broken(layer: Layer) -> str:
    """Why a layer cannot be thinned out even on request."""
    users = layer.weight.uses()
    if layer.uses != len(users):
        return "stands in a local function that is called more than once"
    if any(u.node.op_type != layer.op.kind or u.idx != layer.slot for u in users):
        return "another kind of operator reads it too"
    return ""


def modest(layer: Layer) -> str:
    if layer.op.kind == "Gather":
        return "an embedding"
    if layer.depthwise:
        return "depthwise"
    return "tiny" if layer.size < TINY or min(layer.view.shape[1:]) < 4 else ""


def first_and_last(coupling: Coupling, layers: Sequence[Layer]) -> dict[Layer, str]:
    """Layers before or behind which there is no other on any way through the network."""
    by_node = {layer.op.node: layer for layer in layers}
    below: dict[ir.Value, bool] = {}  # does a value depend on a layer's output?
    found: dict[Layer, str] = {}
    for op in coupling.ops:
        depends = any(below.get(v, False) for v in op.node.inputs if v is not None)
        if op.node in by_node and not depends:
            found[by_node[op.node]] = "the first layer"
        below.update(dict.fromkeys(op.outputs, depends or op.node in by_node))
    above: dict[ir.Value, bool] = {}
    for op in reversed(coupling.ops):
        leads = any(above.get(v, False) for v in op.outputs)
        if op.node in by_node and not leads:
            found[by_node[op.node]] = "the last layer"
        for v in op.node.inputs:
            if v is not None:
                above[v] = above.get(v, False) or leads or op.node in by_node
    return found
