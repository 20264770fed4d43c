"""What a model file holds: measured in one reading, without running it."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from spa.cost import DECODERS, is_parameter
from spa.cost import inspect as cost_of
from spa.coupling.prepare import inlined
from spa.model import Model, load
from spa.quantities import sizes_of
from spa.shapes import tensor_of

if TYPE_CHECKING:
    from spa.checking.config import Wanted

CHUNK = 1 << 20


@dataclass(frozen=True)
class Layer:
    """One node that has weights or multiplies. `shape`: of its output; `dtype`: of what its largest constant is stored in;
    `nonzero`: entries of its parameters that are not stored as 0."""

    name: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    params: int
    macs: int
    bytes: int
    nonzero: int

    @property
    def activations(self) -> int:
        """Elements of the output."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Without the name, which is its key."""
        return {k: list(v) if k == "shape" else v for k, v in asdict(self).items() if k != "name"}


@dataclass(frozen=True)
class Measured:
    """A model in numbers. `sha256`: of the file and of the files its weights lie in. `layers` in the order of the graph."""

    sha256: str
    metrics: dict[str, float]
    layers: tuple[Layer, ...] = ()


def measure(path: Path, wanted: Wanted, asked: frozenset[str]) -> Measured:
    """The numbers of a model. `gzip_bytes` and `packed_bytes` only where they are in `asked`: they take
    most of the time. Raises `ModelError`, `UsageError`."""
    model, sha256, sizes = read(path, "gzip_bytes" in asked)
    flat = inlined(model)
    cost = cost_of(flat, sizes_of(model, dict(wanted.shapes)))
    stored = stored_parameters(flat, {layer.name for layer in cost.layers})
    layers, nonzero = [], 0
    for layer in cost.layers:
        tensors = stored[layer.name].pop(0) if stored[layer.name] else []
        kept = sum(int(np.count_nonzero(t.numpy())) for t in tensors if is_parameter(t))
        nonzero += kept
        largest = max(tensors, key=lambda t: t.nbytes, default=None)
        dtype = str(largest.dtype.numpy()) if largest is not None else ""
        layers.append(Layer(layer.name, layer.op, dtype, layer.shape, layer.params, layer.macs, layer.bytes, kept))
    metrics: dict[str, float] = {
        **sizes,
        "bytes": cost.bytes,
        "params": cost.params,
        "nonzero": nonzero,
        "macs": cost.macs,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "nodes": sum(1 for _ in model.ir.graph.all_nodes()),
        "opset": max((v for d, v in model.ir.opset_imports.items() if d in ("", "ai.onnx")), default=0),
    }
    if "packed_bytes" in asked:
        from spa.sparsity.storage import storage

        metrics["packed_bytes"] = storage(model).packed_bytes
    return Measured(sha256, metrics, tuple(layers))


def read(path: Path, compress: bool) -> tuple[Model, str, dict[str, float]]:
    """The model, its sha256, and its bytes as they are and (with `compress`) after gzip, level 6, as `spa inspect` counts
    them. Every file is read once."""
    try:
        data = path.read_bytes()
        message = onnx.ModelProto.FromString(data)
    except Exception:
        load(path)  # says what is wrong, in its own words
        raise
    outside = any(t.data_location == onnx.TensorProto.EXTERNAL for t in message.graph.initializer)
    model = load(path) if outside or not message.graph.output else load(message)
    model = Model(model.ir, path, model.notes)
    tensors = (v.const_value for v in model.ir.graph.initializers.values())
    beside = sorted({Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)})
    digest, packer, size, packed = hashlib.sha256(), zlib.compressobj(6, wbits=31), 0, 0
    for piece in pieces(data, beside):
        digest.update(piece)
        size += len(piece)
        if compress:
            packed += len(packer.compress(piece))
    sizes: dict[str, float] = {"file_bytes": size}
    if compress:
        sizes["gzip_bytes"] = packed + len(packer.flush())
    return model, digest.hexdigest(), sizes


def pieces(data: bytes, beside: list[Path]) -> Iterator[bytes | memoryview]:
    view = memoryview(data)
    for start in range(0, len(data), CHUNK):
        yield view[start : start + CHUNK]
    for path in beside:
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece


def stored_parameters(model: Model, names: set[str]) -> defaultdict[str, list[list[ir.TensorProtocol]]]:
    """Constants of more than one element behind the nodes so named, in the order of the graph, each with the first node
    that reads it; past what only decodes or moves them."""
    found: defaultdict[str, list[list[ir.TensorProtocol]]] = defaultdict(list)
    seen = set[ir.Value]()
    for node in model.ir.graph.all_nodes():
        name = node.name or node.outputs[0].name or ""
        if name not in names:
            continue
        tensors, pending = [], [v for v in node.inputs if v is not None]
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            tensor, producer = tensor_of(value), value.producer()
            if tensor is not None:
                seen.add(value)
                tensors += [tensor] if tensor.size > 1 else []
            elif producer is not None and producer.op_type in DECODERS:
                pending += [v for v in producer.inputs if v is not None]
        found[name].append(tensors)
    return found
