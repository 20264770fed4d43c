"""Giving back to an exported network what its exporter does not know, wherever nobody touched it.

Three messages: the network as it was, that network through an import and export alone, and with changes in between. An
element that is equal in the last two was not touched, and is taken from the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import onnx

MODEL = ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version")


class Named(Protocol):
    name: str


def restore(changed: onnx.ModelProto, original: onnx.ModelProto, untouched: onnx.ModelProto) -> None:
    """Edits `changed` in place."""
    for name in MODEL:
        if getattr(changed, name) == getattr(untouched, name):
            copied(changed, original, name)
    changed.metadata_props.extend(original.metadata_props)
    have = {o.domain: o.version for o in changed.opset_import}
    for entry in original.opset_import:
        if entry.domain not in have:
            changed.opset_import.add().CopyFrom(entry)
    by_key = {(f.domain, f.name): f for f in original.functions}
    same = {(f.domain, f.name): f for f in untouched.functions}
    for function in changed.functions:
        key = (function.domain, function.name)
        if key in by_key and function == same.get(key):
            function.CopyFrom(by_key[key])
        elif key in by_key:
            restore_nodes(function.node, by_key[key].node, same[key].node if key in same else ())
    restore_graph(changed.graph, original.graph, untouched.graph)


def copied(target: Any, source: Any, name: str) -> None:
    if source.HasField(name):
        setattr(target, name, getattr(source, name))
    else:
        target.ClearField(name)


def restore_graph(changed: onnx.GraphProto, original: onnx.GraphProto, untouched: onnx.GraphProto) -> None:
    if changed.doc_string == untouched.doc_string:
        copied(changed, original, "doc_string")
    changed.metadata_props.extend(original.metadata_props)
    restore_nodes(changed.node, original.node, untouched.node)
    produced = {name for n in changed.node for name in n.output} | {t.name for t in changed.initializer}
    restore_weights(changed, original, untouched)
    for field in ("input", "output", "value_info"):
        was, same = named(getattr(original, field)), named(getattr(untouched, field))
        for value in getattr(changed, field):
            if value.name in was and value == same.get(value.name):
                value.CopyFrom(was[value.name])
    shown = {v.name for field in ("input", "output", "value_info") for v in getattr(changed, field)}
    known = {v.name for v in untouched.value_info}
    for value in original.value_info:
        if value.name in produced and value.name not in shown | known:
            changed.value_info.add().CopyFrom(value)
    for note in original.quantization_annotation:
        if note.tensor_name in produced | shown:
            changed.quantization_annotation.add().CopyFrom(note)


def restore_weights(changed: onnx.GraphProto, original: onnx.GraphProto, untouched: onnx.GraphProto) -> None:
    """Initializers that nobody reads, and those that are inputs with a default: both are lost on the way. Documentation."""
    have, lost = {t.name for t in changed.initializer}, {t.name for t in original.initializer}
    lost -= {t.name for t in untouched.initializer}
    for tensor in original.initializer:
        if tensor.name in lost - have:
            changed.initializer.add().CopyFrom(tensor)
    have |= lost
    inputs = {v.name for v in [*changed.input, *untouched.input]}
    missing = [v for v in original.input if v.name not in inputs and v.name in have]
    if not missing:
        return
    order = {v.name: i for i, v in enumerate(original.input)}
    every = sorted([*changed.input, *missing], key=lambda v: order.get(v.name, len(order)))
    kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in every]
    del changed.input[:]
    changed.input.extend(kept)


def restore_nodes(
    changed: Iterable[onnx.NodeProto], original: Iterable[onnx.NodeProto], untouched: Iterable[onnx.NodeProto]
) -> None:
    """Nodes are known by what they produce."""
    was = {(n.op_type, *n.output): n for n in original}
    same = {(n.op_type, *n.output): n for n in untouched}
    for node in changed:
        key = (node.op_type, *node.output)
        if key not in was or key not in same:
            continue
        if node == same[key]:
            node.CopyFrom(was[key])
            continue
        for name in ("doc_string", "overload"):
            copied(node, was[key], name)
        node.metadata_props.extend(was[key].metadata_props)
        restore_attributes(node, was[key], same[key])


def restore_attributes(changed: onnx.NodeProto, original: onnx.NodeProto, untouched: onnx.NodeProto) -> None:
    was, same, have = named(original.attribute), named(untouched.attribute), named(changed.attribute)
    for name, attribute in was.items():
        if name not in have and name not in same:  # of a type that was not understood
            changed.attribute.add().CopyFrom(attribute)
        elif name in have and have[name] == same.get(name):
            have[name].CopyFrom(attribute)
        elif name in have and name in same and attribute.HasField("g") and have[name].HasField("g"):
            restore_graph(have[name].g, attribute.g, same[name].g)


def named(values: Iterable[Any]) -> dict[str, Any]:
    return {v.name: v for v in values}
