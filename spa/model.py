"""Reading and writing networks: the only place that touches protobuf and files.

A `Model` wraps an `onnx_ir.Model`. Weights in external files stay on disk until they are looked at. Everything that
ONNX can say (metadata, functions, subgraphs, opset imports, ir_version) survives a round trip unchanged;
`sparse_initializer`, which onnx-ir drops, is made dense on load; `training_info` is lost. Both are noted in
`Model.notes`.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from spa.errors import ModelError, UsageError
from spa.sparse_file import thin_out
from spa.spill import release

PROTOBUF_LIMIT = 2**31 - 1  # bytes: larger models keep their weights in a file beside them
INLINE_LIMIT = 1024  # bytes: smaller tensors stay in the .onnx file, so that shapes can be read without the data


@dataclass(eq=False)
class Model:
    """A network: its graph in `onnx_ir`, the file it came from, and what was noticed while reading it."""

    graph_ir: ir.Model
    source: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ir(self) -> ir.Model:
        return self.graph_ir

    @property
    def name(self) -> str:
        """The file's stem, or the graph's name where it never was a file."""
        return self.source.stem if self.source else (self.graph_ir.graph.name or "model")

    def clone(self) -> Model:
        """An independent copy of the graph; tensors are shared until they are replaced."""
        return Model(self.graph_ir.clone(), self.source, list(self.notes))

    def to_proto(self) -> onnx.ModelProto:
        """The whole network with all its weights in one message (under 2 GB)."""
        return ir.to_proto(ir.external_data.load_to_model(self.graph_ir.clone()))

    def save(self, path: str | os.PathLike[str], *, force: bool = False, sparse: bool = False) -> Path:
        """Write to `path` atomically; weights go to `<name>.data` beside it where the input had external data or
        the message would pass 2 GB. `sparse`: those with few nonzeros as `sparse_initializer` (`spa.sparse_file`), where
        they stay in the message. Raises `UsageError` when the file exists and `force` is not given."""
        return save(self, Path(path), force=force, sparse=sparse)

    @property
    def sha256(self) -> str:
        """Of the file it came from; of the serialised graph where there is none."""
        if self.source is None:
            return hashlib.sha256(self.to_proto().SerializeToString(deterministic=True)).hexdigest()
        with self.source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def inspect(self) -> Any:
        """Parameters, multiply-accumulates, bytes and peak activation memory (`spa.cost.Cost`)."""
        from spa.cost import inspect

        return inspect(self)


def load(source: str | os.PathLike[str] | onnx.ModelProto | Model) -> Model:
    """Read a network from a file or a message.

    Raises `ModelError` for a file that is missing, truncated, not ONNX or invalid, and for external data that is
    missing, too short or outside the model's folder.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, None)
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"no such file: {path}", hint=_which(path))
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is not a readable ONNX file ({path.stat().st_size} bytes): {_first_line(error)}",
            hint="is the download complete? A Git LFS pointer? Export the network again",
        ) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    return _from_proto(proto, path)


def _which(path: Path) -> str:
    return "name the .onnx file in this folder" if path.is_dir() else "check the path"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _from_proto(proto: onnx.ModelProto, path: Path | None) -> Model:
    where = str(path or proto.graph.name)
    if not proto.graph.node and not proto.graph.output:
        raise ModelError("the file holds no ONNX graph", where, "export the network again")
    if not proto.opset_import:
        raise ModelError("the model names no operator set (opset_import is empty)", where, "export the network again")
    for tensor in _stored(proto):
        _check_tensor(tensor, path, where)
    if _has_sparse(proto):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto = copy  # the message belongs to the caller
    notes = [_densify(sparse, graph, path) for graph in _graphs(proto) for sparse in list(graph.sparse_initializer)]
    for graph in _graphs(proto):
        del graph.sparse_initializer[:]
    if proto.training_info:
        notes.append("training_info was dropped: spa works on networks for inference")
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx-ir raises many kinds; each means that the message contradicts itself
        raise ModelError(
            f"the ONNX graph is invalid: {_first_line(error)}", where, "onnx.checker.check_model shows more"
        ) from None
    if path is not None:
        ir.external_data.set_base_dir(model.graph, path.parent)
    _check_edges(model, where)
    return Model(model, path, notes)


def _check_edges(model: ir.Model, where: str) -> None:
    """Every value that is read must be written by someone."""
    known = {id(v) for v in model.graph.inputs} | {id(v) for v in model.graph.initializers.values()}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        known.update(id(v) for v in node.outputs)
        for attr in node.attributes.values():
            graphs = (
                [attr.value]
                if attr.type == ir.AttributeType.GRAPH
                else attr.value
                if attr.type == ir.AttributeType.GRAPHS
                else []
            )
            for graph in graphs:
                known.update(id(v) for v in [*graph.inputs, *graph.initializers.values()])
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for v in node.inputs:
            if v is not None and id(v) not in known:
                raise ModelError(
                    f"the tensor '{v.name}' is read but never produced", f"{where}, node '{node.name}' ({node.op_type})"
                )
    for v in model.graph.outputs:
        if id(v) not in known:
            raise ModelError(f"the graph output '{v.name}' is never produced", where)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and all subgraphs, those of functions too."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        if isinstance(graph, onnx.GraphProto):
            yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else attribute.graphs


def _stored(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the file: initializers, sparse ones, and the attributes of nodes."""
    graphs = list(_graphs(proto))
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for owner in [*graphs, *proto.functions]:
        for node in owner.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else attribute.tensors


def _has_sparse(proto: onnx.ModelProto) -> bool:
    return any(graph.sparse_initializer for graph in _graphs(proto))


def _densify(sparse: onnx.SparseTensorProto, graph: onnx.GraphProto, path: Path | None) -> str:
    """Move a sparse initializer into the dense ones; COO indices are [nnz] flat or [nnz, rank]."""
    base = str(path.parent) if path is not None else ""
    values, indices = (onnx.numpy_helper.to_array(t, base) for t in (sparse.values, sparse.indices))
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        dense[np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)] = values
    except (IndexError, ValueError) as error:
        raise ModelError(
            f"the sparse initializer '{sparse.values.name}' is invalid: {error}", str(path or "")
        ) from None
    graph.initializer.append(onnx.numpy_helper.from_array(dense, sparse.values.name))
    return f"sparse initializer '{sparse.values.name}' ({values.size} of {dense.size} entries) was made dense"


def _check_tensor(tensor: onnx.TensorProto, path: Path | None, where: str) -> None:
    """Is all of the tensor there, in the message or in a file inside the model's folder? Reads no data."""
    where = f"{where}, tensor '{tensor.name}'"
    if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return  # of no fixed size
    size = _bytes(tensor)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise ModelError(f"the tensor holds {len(tensor.raw_data)} bytes, its shape needs {size}", where)
        return
    if path is None:
        return  # a message whose data lie wherever the caller keeps them
    entry = {e.key: e.value for e in tensor.external_data}
    location, root = entry.get("location", ""), path.parent.resolve()
    target = (root / location).resolve()
    if not target.is_relative_to(root):
        raise ModelError(
            f"external data outside the model's folder: {location}", where, "move the data beside the model"
        )
    if not target.is_file():
        raise ModelError(f"external data file is missing: {location}", where, "copy it beside the model")
    try:
        offset, length = int(entry.get("offset", 0)), int(entry.get("length", size))
    except ValueError:
        offset = length = -1
    if offset < 0 or length != size:
        raise ModelError(f"external data of the wrong extent: {entry}, the shape needs {size} bytes", where)
    if target.stat().st_size < offset + length:
        have = f"{target.name} has {target.stat().st_size} bytes, {offset + length} needed"
        raise ModelError(f"external data file is too short: {have}", where, "is the download complete?")


def _bytes(tensor: onnx.TensorProto) -> int:
    """What the shape asks for; two 4-bit values share a byte."""
    bits: int = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    return -(-bits // 8)


def save(model: Model, path: Path, *, force: bool = False, sparse: bool = False) -> Path:
    """See `Model.save`. The data file, where there is one, is in place before the model that names it."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"-o {path / (model.name + '.onnx')}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--force to replace it, or another -o")
    try:
        return _write(model.graph_ir, path, sparse)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}", hint="another -o") from error


def _write(graph: ir.Model, path: Path, sparse: bool) -> Path:
    tensors = [t for t in _tensors(graph) if t is not None]
    external = (
        any(isinstance(t, ir.ExternalTensor) for t in tensors) or sum(t.nbytes for t in tensors) > PROTOBUF_LIMIT // 2
    )
    if not external:
        proto = ir.to_proto(graph)
        if sparse:
            thin_out(proto)
        data = proto.SerializeToString(deterministic=True)
        write_atomic(path, lambda tmp: tmp.write_bytes(data))
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        digest = _tensor_digest(tensors)
        side = f"{path.stem}.{digest}.data"  # named by content: an older model beside it keeps its own data
        ir.save(graph.clone(), stage / path.name, external_data=side, size_threshold_bytes=INLINE_LIMIT)
        if (stage / side).exists():
            (stage / side).replace(path.parent / side)
        (stage / path.name).replace(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return path


def _tensor_digest(tensors: list[ir.TensorProtocol]) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(f"{t.name}{t.dtype}{t.shape}".encode())
        digest.update(t.tobytes())
        release(t)
    return digest.hexdigest()[:12]


def _tensors(model: ir.Model) -> list[ir.TensorProtocol | None]:
    found: list[ir.TensorProtocol | None] = [v.const_value for v in model.graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                found += [v.const_value for v in attr.as_graph().initializers.values()]
    return found


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary name in the same folder and rename it into place; on any failure nothing remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    tmp = Path(name)
    try:
        write(tmp)
        tmp.chmod(0o644)
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)
