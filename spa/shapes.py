"""The shape of every value, and the values of the small integer tensors from which shapes are computed.

Symbolic dimensions are not carried as expressions. The network is instantiated with two different assignments of
sizes to symbols; what differs between the two is dynamic, what agrees is static. So `Shape -> Gather -> Mul -> Concat`
chains are plain arithmetic on numbers, and every rule after this sees concrete sizes.

One pass in topological order: known operands are evaluated (`onnx.reference`), everything else goes through ONNX's
own inference for that one node, so a shape that a chain computes is there when the next node needs it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TypeProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from spa.contrib_shapes import output_types

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

UNKNOWN = (9973, 9967)  # stand-ins for sizes that depend on data: they differ, hence count as dynamic
KNOWN_INTS = 1 << 20  # elements: integer constants up to this size are read
KNOWN_FLOATS = 64  # elements: so are float constants, such as Clip bounds and Resize scales
EVALUATED = 1 << 16  # elements: results of arithmetic on known tensors up to this size are kept
# (size of leading axes, size of other axes) for the two instantiations, tried in this order until the network accepts them
SIZES = (((2, 64), (3, 96)), ((2, 224), (3, 256)), ((2, 16), (3, 24)), ((2, 4096), (3, 5120)), ((1, 64), (1, 96)))
# their results depend on no element of the input, only on its shape
SHAPE_OPS = {"Shape", "Size"}
UNEVALUATED = {
    "If",
    "Loop",
    "Scan",
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}


@dataclass
class Shapes:
    """What is known before any weight is read. Keys are the values of the analysed graph, of subgraphs too."""

    shape: dict[ir.Value, Shape | None] = field(default_factory=dict)
    dynamic: dict[ir.Value, tuple[bool, ...]] = field(default_factory=dict)
    known: dict[ir.Value, Array] = field(default_factory=dict)
    varies: dict[ir.Value, npt.NDArray[np.bool_]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    dtype: dict[ir.Value, int] = field(default_factory=dict)

    def static(self, value: ir.Value | None) -> Array | None:
        """The value of a tensor, where it is known and depends on no input."""
        if value is None or value not in self.known or self.varies[value].any():
            return None
        return self.known[value]


def infer(model: ir.Model, sizes: dict[str, int] | None = None) -> Shapes:
    """Shapes of all values; `sizes` fixes symbolic dimensions by name (or `input/axis` where they have none)."""
    symbols = free_symbols(model, sizes or {})
    if not symbols:
        run = Instance(model, sizes or {}, UNKNOWN[0])
        other = run if not run.guessed else Instance(model, sizes or {}, UNKNOWN[1])
        return _join(run, other, sizes or {})
    best: tuple[Instance, Instance, dict[str, int]] | None = None
    for first, second in SIZES:
        a, b = (
            {s: pick[0] if lead else pick[1] for s, lead in symbols.items()} | (sizes or {}) for pick in (first, second)
        )
        if first == second or a == b:
            continue
        left = Instance(model, a, UNKNOWN[0])
        if best is None or left.failures < best[0].failures:
            best = left, Instance(model, b, UNKNOWN[1]), a
        if not best[0].failures and not best[1].failures:
            break
    assert best is not None
    return _join(*best)


def _join(a: Instance, b: Instance, sizes: dict[str, int]) -> Shapes:
    out = Shapes(sizes=sizes, known=a.known)
    for value, kind in a.types.items():
        shape, other = a.shape(value), b.shape(value)
        if shape is None or other is None or len(shape) != len(other):
            shape = None
        out.shape[value] = shape
        out.dynamic[value] = () if shape is None or other is None else tuple(map(operator.ne, shape, other))
        if kind.HasField("tensor_type"):
            out.dtype[value] = kind.tensor_type.elem_type
    for value, known in a.known.items():
        twin = b.known.get(value)
        same = twin is not None and twin.shape == known.shape
        out.varies[value] = np.asarray(known != twin) if same else np.ones(known.shape, bool)
    return out


def free_symbols(model: ir.Model, fixed: dict[str, int]) -> dict[str, bool]:
    """Symbol -> does it stand for a leading axis (a batch, most likely)?"""
    found: dict[str, bool] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                for name in _names(symbol(value, axis, dim)):
                    if name not in fixed:
                        found.setdefault(name, axis == 0)
    return found


def symbol(value: ir.Value, axis: int, dim: Any) -> str:
    text = getattr(dim, "value", None)
    return text if isinstance(text, str) and text else f"{value.name}/{axis}"


def _names(text: str) -> list[str]:
    try:
        return (
            [n.id for n in ast.walk(ast.parse(text, mode="eval")) if isinstance(n, ast.Name)]
            if "/" not in text
            else [text]
        )
    except SyntaxError:
        return [text]


_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


def resolve(text: str, sizes: dict[str, int]) -> int:
    """The size that a symbol such as `N` or `past_length + 1` takes under an assignment."""
    if text in sizes:
        return sizes[text]

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return sizes[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return int(_ARITHMETIC[type(node.op)](value(node.left), value(node.right)))
        raise ValueError(f"cannot read the dimension '{text}'")

    return value(ast.parse(text, mode="eval").body)


def input_shape(value: ir.Value, sizes: dict[str, int]) -> Shape | None:
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else resolve(symbol(value, i, d), sizes) for i, d in enumerate(value.shape))


class Instance:
    """Inference under one assignment of sizes: `types` of all values, `known` contents of small ones."""

    def __init__(self, model: ir.Model, sizes: dict[str, int], unknown: int) -> None:
        self.types: dict[ir.Value, TypeProto] = {}
        self.known: dict[ir.Value, Array] = {}
        self.failures = 0
        self.guessed = False
        self.unknown = unknown
        self.model = model
        self.opsets = dict(model.opset_imports)
        self.opset_protos = [helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        for value in model.graph.inputs:
            if isinstance(value.type, ir.TensorType | None) and value.dtype is not None:
                self.types[value] = _tensor(value.dtype.value, input_shape(value, sizes))
            elif value.type is not None:
                self.types[value] = ir.serde.serialize_type(value.type)
        self.graph(model.graph)

    def shape(self, value: ir.Value) -> Shape | None:
        kind = self.types.get(value)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        return tuple(d.dim_value for d in kind.tensor_type.shape.dim)

    def graph(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            self.constant(value, value.const_value)
        for node in graph:
            self.node(node)

    def constant(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        if tensor is None:
            return
        self.types[value] = _tensor(tensor.dtype.value, tensor.shape.numpy())
        limit = KNOWN_FLOATS if tensor.dtype.is_floating_point() else KNOWN_INTS
        if tensor.size <= limit and tensor.dtype != ir.DataType.STRING:
            self.known[value] = tensor.numpy()

    def node(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and node.domain == "":
            self.constant(node.outputs[0], constant_tensor(node))
            return
        for attr in node.attributes.values():
            for body in subgraphs(attr):
                self.body(node, body)
        operands = [v for v in node.inputs if v is not None]
        plain = bool(operands) and node.domain == "" and node.op_type not in UNEVALUATED
        shaped = plain and node.op_type in SHAPE_OPS and self.shape(operands[0]) is not None
        if (shaped or (plain and all(v in self.known for v in operands))) and self.evaluate(node):
            return
        found = self.infer(node)
        for value in node.outputs:
            kind = found.get(value.name or "") or _declared(value)
            if kind is not None:
                self.types[value] = self.complete(kind)

    def body(self, node: ir.Node, body: ir.Graph) -> None:
        """Bind the inputs of a subgraph from the node that owns it (Loop, Scan), then infer inside."""
        outer = list(node.inputs)
        if node.op_type == "Loop":
            given: list[ir.Value | None] = [None, None, *outer[2:]]
        elif node.op_type == "Scan":
            given = list(outer)
        else:
            given = []
        scanned = node.attributes["num_scan_inputs"].as_int() if node.op_type == "Scan" else 0
        for i, inner in enumerate(body.inputs):
            kind = self.types.get(given[i]) if i < len(given) and given[i] is not None else None  # type: ignore[arg-type]
            if kind is not None and i >= len(given) - scanned and scanned:
                dims = self.shape(given[i]) or ()  # type: ignore[arg-type]
                kind = _tensor(kind.tensor_type.elem_type, dims[1:])
            if kind is None and inner.dtype is not None:
                kind = _tensor(inner.dtype.value, () if node.op_type == "Loop" and i < 2 else None)
            if kind is not None:
                self.types[inner] = kind
        self.graph(body)

    def evaluate(self, node: ir.Node) -> bool:
        out = (
            self.shape_of(node)
            if node.op_type in SHAPE_OPS
            else fold(node, [self.known.get(v) if v else None for v in node.inputs], self.opsets)
        )
        if out is None or len(out) != len(node.outputs):
            return False
        if any(not isinstance(a, np.ndarray | np.generic) or a.size > EVALUATED for a in out):
            return False
        for value, array in zip(node.outputs, out, strict=True):
            self.known[value] = np.asarray(array)
            self.types[value] = _tensor(helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.shape(array))
        return True

    def shape_of(self, node: ir.Node) -> list[Array] | None:
        dims = np.array(self.shape(node.inputs[0]), np.int64)  # type: ignore[arg-type]
        if node.op_type == "Size":
            return [np.array(dims.prod(), np.int64)]
        start, end = (
            node.attributes[k].as_int() if k in node.attributes else d for k, d in (("start", 0), ("end", len(dims)))
        )
        return [dims[start:end]]

    def infer(self, node: ir.Node) -> dict[str, TypeProto]:
        by_graph = {"If": ["then_branch", "else_branch"], "Loop": ["body"], "Scan": ["body"]}.get(node.op_type, [])
        if by_graph and node.domain == "":
            return self.outputs_of_bodies(node, [node.attributes[k].as_graph() for k in by_graph])
        version = node.version or self.opsets.get(node.domain, 1)
        # onnxruntime's optimizer also puts LayerNormalization into networks of older opsets
        if node.domain == "com.microsoft" or not defs.has(node.op_type, version, node.domain):
            return output_types(node, [None if v is None else self.types.get(v) for v in node.inputs])
        types = {v.name or "": self.types[v] for v in node.inputs if v is not None and v in self.types}
        if any(v is not None and v not in self.types for v in node.inputs):
            return {}
        data = {
            v.name or "": numpy_helper.from_array(self.known[v])
            for v in node.inputs
            if v is not None and v in self.known and self.known[v].size <= 4096
        }
        try:
            schema = schema_with_inference(node.op_type, version, node.domain)
            found = shape_inference.infer_node_outputs(
                schema, ir.serde.serialize_node(node), types, data, None, self.opset_protos
            )
        except Exception:
            # the op rejects these sizes: another assignment may do, and an unknown shape blocks what touches it
            self.failures += 1
            return {}
        if node.domain == "ai.onnx.ml" or node.op_type in UNINFERRED:  # inference tells little or nothing here
            return output_types(node, [None if v is None else self.types.get(v) for v in node.inputs]) | _complete(
                found
            )
        return dict(found)

    def outputs_of_bodies(self, node: ir.Node, bodies: list[ir.Graph]) -> dict[str, TypeProto]:
        """Types of the outputs of If, Loop and Scan from the bodies; scanned outputs gain a leading axis of unknown size."""
        carried = {"If": len(node.outputs), "Loop": len(node.inputs) - 2}.get(node.op_type, 0)
        if node.op_type == "Scan":
            carried = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
        skip = 1 if node.op_type == "Loop" else 0
        found = {}
        for i, value in enumerate(node.outputs):
            kinds = [k for b in bodies if (k := self.types.get(b.outputs[i + skip])) is not None]
            if len(kinds) < len(bodies) or not all(k.HasField("tensor_type") for k in kinds):
                continue
            kind = kinds[0]
            shapes = [self.shape(b.outputs[i + skip]) for b in bodies]
            if any(s is None for s in shapes):
                continue
            first = shapes[0] or ()
            if any(len(s or ()) != len(first) for s in shapes):
                continue
            dims = [d if all(s and s[k] == d for s in shapes) else 0 for k, d in enumerate(first)]
            if i >= carried:
                length = self.shape(node.inputs[-1]) if node.op_type == "Scan" and node.inputs[-1] is not None else None
                dims = [length[0] if length else 0, *dims]
            found[value.name or ""] = _tensor(kind.tensor_type.elem_type, tuple(dims))
        return found

    def complete(self, kind: TypeProto) -> TypeProto:
        """Put the stand-in where a size depends on data."""
        if kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"):
            for dim in kind.tensor_type.shape.dim:
                if not dim.HasField("dim_value") or (dim.dim_value == 0 and not dim.HasField("dim_value")):
                    dim.dim_value = self.unknown
                    self.guessed = True
        return kind


def _complete(found: dict[str, TypeProto]) -> dict[str, TypeProto]:
    return {n: t for n, t in found.items() if not t.HasField("tensor_type") or t.tensor_type.HasField("shape")}


def _tensor(dtype: int, shape: Iterable[int] | None) -> TypeProto:
    return helper.make_tensor_type_proto(dtype, None if shape is None else list(shape))


def _declared(value: ir.Value) -> TypeProto | None:
    """What the file says of a value whose node tells nothing; symbols become unknown sizes."""
    if value.dtype is None or value.shape is None:
        return None
    return _tensor(value.dtype.value, [d if isinstance(d, int) else None for d in value.shape])  # type: ignore[misc]


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node, in whichever attribute it stands."""
    for name, attr in node.attributes.items():
        if name == "value":
            return attr.as_tensor()
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.array(attr.value, np.int64))
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.array(attr.value, np.float32))
    return None


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of the output of a Constant node; None for any other value."""
    if value is None:
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    return constant_tensor(node) if node is not None and node.op_type == "Constant" and node.domain == "" else None


ORIGIN = "spa.origin"  # in Value.meta: what a plan calls a constant that was expanded out of a local function


def constants(model: ir.Model) -> dict[ir.Value, str]:
    """Every initializer and Constant output, in subgraphs and local functions too, and the name a plan gives it."""
    found: dict[ir.Value, str] = {}
    for graph in [model.graph, *model.graph.subgraphs()]:
        found.update((v, v.name or "") for v in graph.initializers.values())
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and node.domain == "" and constant_tensor(node) is not None:
            found[node.outputs[0]] = str(node.outputs[0].meta.get(ORIGIN, node.outputs[0].name))
    for function in model.functions.values():
        for node in function.all_nodes():
            if node.op_type == "Constant" and node.domain == "" and constant_tensor(node) is not None:
                found[node.outputs[0]] = f"{function.domain}::{function.name}/{node.outputs[0].name}"
    return found


def subgraphs(attr: ir.Attr) -> Iterator[ir.Graph]:
    if attr.type == ir.AttributeType.GRAPH:
        yield attr.as_graph()
    elif attr.type == ir.AttributeType.GRAPHS:
        yield from attr.as_graphs()


UNINFERRED = ("Attention", "GroupNormalization", "MeanVarianceNormalization")


def schema_with_inference(kind: str, version: int, domain: str) -> defs.OpSchema:
    """The schema of an operator; where that version has no inference, the next one's, which has the same shapes."""
    schema = defs.get_schema(kind, version, domain)
    newest = defs.onnx_opset_version() if domain == "" else version
    for later in range(version, newest + 1):
        if schema.has_type_and_shape_inference_function:
            break
        schema = defs.get_schema(kind, later, domain)
    return schema


def _attr(node: ir.Node, name: str, default: Any = None) -> Any:
    return node.attributes[name].value if name in node.attributes else default


# Plain numpy for what shape chains are made of (exact for these dtypes); everything else goes through onnx.reference.
_NUMPY = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Equal": operator.eq, "Less": operator.lt,
    "Greater": operator.gt, "And": operator.and_, "Or": operator.or_, "Not": np.logical_not, "Identity": lambda x: x,
    "Where": np.where, "Neg": operator.neg, "Sqrt": np.sqrt,
}  # fmt: skip


def fold(node: ir.Node, operands: list[Array | None], opsets: dict[str, int]) -> list[Array] | None:
    """Evaluate one node on known operands; None where it cannot be."""
    kind = node.op_type
    try:
        with np.errstate(all="ignore"):
            if kind in _NUMPY and all(o is not None for o in operands):
                return [np.asarray(_NUMPY[kind](*operands))]  # type: ignore[operator]
            if kind == "Gather" and operands[0] is not None and operands[1] is not None:
                return [np.take(operands[0], operands[1], axis=_attr(node, "axis", 0))]
            if kind == "Concat":
                return [np.concatenate(operands, axis=_attr(node, "axis", 1))]  # type: ignore[arg-type]
            if kind == "Cast" and operands[0] is not None:
                return [operands[0].astype(helper.tensor_dtype_to_np_dtype(_attr(node, "to")))]
            if kind in ("Unsqueeze", "Squeeze") and operands[0] is not None:
                axes = (
                    _attr(node, "axes")
                    if len(operands) < 2 or operands[1] is None
                    else operands[1].reshape(-1).tolist()
                )
                if kind == "Unsqueeze":
                    return [np.expand_dims(operands[0], tuple(int(a) for a in axes))]
                return [np.squeeze(operands[0], None if axes is None else tuple(int(a) for a in axes))]
            version = node.version or opsets.get("", 18)
            proto = ir.serde.serialize_node(node)
            untyped = helper.make_empty_tensor_value_info
            graph = helper.make_graph(
                [proto], "f", [untyped(n) for n in dict.fromkeys(proto.input) if n], [untyped(n) for n in proto.output]
            )
            single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
            feeds = {v.name or "": o for v, o in zip(node.inputs, operands, strict=True) if v is not None}
            return [np.asarray(a) for a in ReferenceEvaluator(single).run(None, feeds)]
    except Exception:  # an op without reference, or operands it rejects: its result is simply not known
        return None
