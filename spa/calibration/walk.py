"""Walk: a network run piece by piece over all calibration inputs, in memory bounded by what is still to be read.

Weights are read when their piece is run; those in a file stay there until then, and afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from spa.calibration.readers import Array
from spa.inputs import Feeds
from spa.spill import release

if TYPE_CHECKING:
    import onnxruntime as ort

    from spa.model import Model


class Walk:
    """Runs a network piece by piece over all calibration inputs, so that weights may change on the way.

    `advance(op)` computes everything up to `op`, and keeps only the values that nodes from `op` on still read. A weight
    that was replaced (`replace`) holds for all nodes not yet run. `constants`: the initializers by name."""

    def __init__(self, model: Model, feeds: Sequence[Feeds]) -> None:
        self.proto, self.constants = apart(model)
        self.nodes = list(self.proto.graph.node)
        self.live: list[dict[str, Array]] = [dict(f) for f in feeds]
        self.outputs = [o.name for o in self.proto.graph.output]
        self.at = 0
        self.changed: set[str] = set()
        self.place = {o: i for i, n in enumerate(self.nodes) for o in n.output}
        self.last: dict[str, int] = dict.fromkeys(self.outputs, len(self.nodes))
        for i, node in enumerate(self.nodes):
            for name in used_names(node):
                self.last[name] = max(self.last.get(name, -1), i)

    def replace(self, name: str, new: Array | ir.TensorProtocol) -> None:
        self.changed.add(name)
        kind = self.constants[name].dtype
        self.constants[name] = ir.Tensor(new, kind, name=name) if isinstance(new, np.ndarray) else new

    def constant(self, name: str) -> Array:
        return self.constants[name].numpy()

    def advance(self, output: str | None = None) -> None:
        """Run all nodes before the one that produces `output`; all of them without one."""
        end = len(self.nodes) if output is None else self.place[output]
        if end <= self.at:
            return
        piece = self.nodes[self.at : end]
        self.at = end
        made = {o for n in piece for o in n.output if o}
        read = {name for n in piece for name in used_names(n)}
        keep = [name for name in made if self.last.get(name, -1) >= end]
        if keep:
            session = self._session(piece, sorted(read - made), keep)
            names = {i.name for i in session.get_inputs()}
            for values in self.live:
                results = session.run(keep, {n: values[n] for n in names})
                values.update((name, np.asarray(a)) for name, a in zip(keep, results, strict=True))
        for values in self.live:
            for name in [n for n in values if self.last.get(n, -1) < end]:
                del values[name]

    def value(self, name: str, values: Mapping[str, Array]) -> Array:
        """A constant, or what is live of one batch."""
        return self.constant(name) if name in self.constants else values[name]

    def probe(self, output: str, position: int) -> list[Array]:
        """Per batch: the output at `position`, asked for or not, of the node that gives `output` and comes next."""
        node = onnx.NodeProto()
        node.CopyFrom(self.nodes[self.place[output]])
        names = [*node.output, *[""] * (position + 1 - len(node.output))]
        names[position] = names[position] or f"{output}/output{position}"
        del node.output[:]
        node.output.extend(names)
        session = self._session([node], sorted(set(used_names(node))), [names[position]])
        inputs = [i.name for i in session.get_inputs()]
        return [np.asarray(session.run(None, {n: values[n] for n in inputs})[0]) for values in self.live]

    def advance_to(self, names: Collection[str]) -> None:
        """Run all nodes before the first that reads one of these constants."""
        first = next((n for n in self.nodes[self.at :] if any(u in names for u in used_names(n))), None)
        if first is not None:
            self.advance(next(o for o in first.output if o))

    def branch(self, names: Sequence[str]) -> Branch:
        """The rest of the network from here on, with the constants of these names free."""
        rest = self.nodes[self.at :]
        made = {o for n in rest for o in n.output if o}
        read = {name for n in rest for name in used_names(n)} | {n for n in self.outputs if n not in made}
        wanted = [n for n in self.outputs if n in made]
        proto = self._piece(rest, sorted(read - made), wanted, set(names)) if wanted else None
        inputs = {i.name for i in proto.graph.input} if proto else set()
        passed = [n for n in self.outputs if n not in made]
        return Branch(
            proto.SerializeToString() if proto else b"",
            self.outputs,
            wanted,
            [{n: a for n, a in values.items() if n in inputs or n in passed} for values in self.live],
            {n: self.constant(n) for n in names if n in inputs},
        )

    def _session(self, piece: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> ort.InferenceSession:
        return open_session(self._piece(piece, inputs, outputs))

    def _piece(
        self, piece: list[onnx.NodeProto], inputs: list[str], outputs: list[str], free: Collection[str] = ()
    ) -> onnx.ModelProto:
        first = self.live[0]
        given = [
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(first[n].dtype), [None] * first[n].ndim
            )
            for n in inputs
            if n not in self.constants and n in first
        ] + [
            onnx.helper.make_tensor_value_info(n, self.constants[n].dtype.value, list(self.constants[n].shape.numpy()))
            for n in inputs
            if n in free
        ]
        graph = onnx.helper.make_graph(
            piece,
            "piece",
            given,
            [onnx.helper.make_empty_tensor_value_info(n) for n in outputs],
            [stored(self.constants[n], n) for n in inputs if n in self.constants and n not in free],
        )
        return onnx.helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)


def apart(model: Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """A network without its initializers, and these."""
    graph, found = model.ir.clone(), dict[str, ir.TensorProtocol]()
    for name, value in list(graph.graph.initializers.items()):
        if value.const_value is not None:
            found[name] = value.const_value
            del graph.graph.initializers[name]
    return ir.to_proto(ir.external_data.load_to_model(graph)), found


def stored(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """With its data, also where these are in a file, which is closed again."""
    found = ir.to_proto(ir.Tensor(tensor.numpy(), tensor.dtype) if isinstance(tensor, ir.ExternalTensor) else tensor)
    release(tensor)
    found.name = name
    return found


@dataclass(frozen=True, eq=False)
class Branch:
    """The rest of a network, its constants, the values it starts from per batch, and the constants that may be replaced."""

    proto: bytes
    outputs: list[str]
    computed: list[str]
    live: list[dict[str, Array]]
    free: dict[str, Array]

    def run(self, trials: Iterable[Mapping[str, Array]]) -> Iterator[list[list[Array]]]:
        """The network's outputs per batch, for each set of replaced constants."""
        session = open_session(self.proto) if self.proto else None
        for weights in trials:
            results = []
            for values in self.live:
                given = {**values, **self.free, **{n: a for n, a in weights.items() if n in self.free}}
                if session is not None:
                    fed = {i.name: given[i.name] for i in session.get_inputs()}
                    results_here: Any = session.run(self.computed, fed)
                    given.update(zip(self.computed, results_here, strict=True))
                results.append([np.asarray(given[n]) for n in self.outputs])
            yield results


def open_session(proto: onnx.ModelProto | bytes) -> ort.InferenceSession:
    """For statistics, where onnxruntime's own rewriting is welcome."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def used_names(node: onnx.NodeProto) -> list[str]:
    """What a node reads, and what its subgraphs capture."""
    names = [n for n in node.input if n]
    for attr in node.attribute:
        for graph in [attr.g] if attr.type == onnx.AttributeProto.GRAPH else list(attr.graphs):
            names += [n for inner in graph.node for n in used_names(inner)]
    return names
