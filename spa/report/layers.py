"""A row per layer: what it cost before, what it costs now, how dense it is, what computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spa.cost import Cost, Layer
    from spa.model import Model

KEYS = ("params", "macs", "bytes")


def rows(after: Cost, before: Cost | None, densities: dict[str, float]) -> list[dict[str, Any]]:
    """In the order of the network; layers that only the network before has stand where they stood. `before` is None in
    a row where nothing is known of it, `after` where the layer is gone (folded or removed)."""
    new = {layer.name: layer for layer in after.layers}
    old = {layer.name: layer for layer in before.layers} if before is not None else {}
    found = []
    for name in merged(list(old), list(new)):
        a, b = old.get(name), new.get(name)
        told: Layer | None = b or a
        assert told is not None
        change = "gone" if b is None else "new" if a is None else "same" if sized(a) == sized(b) else "smaller"
        found.append(
            {
                "name": name,
                "op": told.op,
                "shape": list(told.shape),
                "shape_before": list(a.shape) if a is not None else None,
                "before": {k: getattr(a, k) for k in KEYS} if a is not None else None,
                "after": {k: getattr(b, k) for k in KEYS} if b is not None else None,
                "change": change if before is not None else None,
                "density": densities.get(name) if b is not None else None,
            }
        )
    return found


def sized(layer: Layer) -> tuple[Any, ...]:
    return layer.op, layer.shape, layer.params, layer.macs, layer.bytes


def merged(old: list[str], new: list[str]) -> list[str]:
    """Both lists in one, each in its own order where they agree; what only `old` has follows what it followed there.

    >>> merged(["a", "x", "b"], ["a", "b", "c"])
    ['a', 'x', 'b', 'c']
    """
    both, place = set(new), dict.fromkeys(["", *new], 0)
    after: dict[str, list[str]] = {name: [] for name in place}
    last = ""
    for name in old:
        if name in both:
            last = name
        else:
            after[last].append(name)
    return [*after[""], *(n for name in dict.fromkeys(new) for n in (name, *(after[name] if name else [])))]


def densities(model: Model) -> dict[str, float]:
    """Node -> share of its weights that are not zero, for the nodes whose weights are matrices. Reads every weight."""
    from spa.coupling.prepare import inlined
    from spa.sparsity.storage import matrices

    found = {}
    for node in inlined(model).ir.graph.all_nodes():
        kept = size = 0
        for _, coded, _ in matrices(node):
            kept, size = kept + int(coded.kept.sum()), size + coded.codes.size
        if size:
            found[node.name or node.outputs[0].name or ""] = kept / size
    return found


def kernels(manifest: dict[str, Any], bench: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """A row per kernel of every target; milliseconds and share of peak where a profile of that target tells them."""
    found = []
    for target, facts in manifest.get("targets", {}).items():
        timed = {row.get("name"): row for doc in bench if doc.get("target") == target for row in doc.get("layers", [])}
        for row in facts.get("kernels", []):
            profile = timed.get(row.get("layer"), {})
            kept = {k: row.get(k, "") for k in ("layer", "kernel", "family", "format", "tile", "why")}
            found.append(
                {"target": target, **kept, "ms": profile.get("ms"), "share_of_peak": profile.get("share_of_peak")}
            )
    return found
