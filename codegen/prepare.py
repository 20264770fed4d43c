"""From any ONNX model to what can be compiled: functions inlined, shapes fixed, constants folded; or refused, with why.

Folding runs first because Relax's own compiles and runs a kernel per constant (seconds where onnxruntime takes
milliseconds). onnxruntime's basic level folds constants and BatchNormalization and stays within ONNX's own operators.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import TypeProto, ValueInfoProto, helper, version_converter

from spa.codegen.contrib import DOMAINS, RULES, plain
from spa.codegen.conv_transpose import convolved
from spa.codegen.einsum import products
from spa.codegen.flow import RULES as FLOW
from spa.codegen.flow import flat
from spa.codegen.heads import shared
from spa.codegen.layout import settle
from spa.codegen.norms import whole
from spa.codegen.program import DTYPES, Tensor
from spa.codegen.quantised import decoded
from spa.codegen.recurrent import unroll
from spa.errors import ModelError, Unsupported, UsageError

Shapes = Mapping[str, tuple[int, ...]]

# what the importer has but cannot do without a runtime beside it, or with shapes that depend on values
REFUSED = {
    "NonZero": "the shape of its output depends on the values",
    "Unique": "the shape of its output depends on the values",
    "Compress": "the shape of its output depends on the values",
    "NonMaxSuppression": "the shape of its output depends on the values",
    "AllClassNMS": "the shape of its output depends on the values",
    "If": "control flow that depends on values",
    "Loop": "control flow that depends on values",
    "Scan": "control flow that depends on values",
}
FOLDS = 3  # passes of onnxruntime's folding, at most
MIN_OPSET = 13  # below, the importer reads attributes that have become inputs wrongly or not at all


def prepare(model: onnx.ModelProto, shapes: Shapes, known: frozenset[str]) -> onnx.ModelProto:
    """A model with static shapes, no functions, folded constants, in operators of `known` only.

    Raises `Unsupported` for dynamic inputs, other domains, dtypes and operators that cannot be compiled, and
    `UsageError` for a shape of an input that is not there or does not fit. Nothing is compiled before.
    """
    model = _copy(model)
    _drop_initializer_inputs(model)
    _fix_shapes(model, shapes)
    model = decoded(model)
    _check_domains(model)
    model = plain(_inline(model, known))
    _check_tensors(model)
    model = _fold(_modern(model))
    if any(n.op_type in FLOW for n in model.graph.node):
        model = _fold(flat(model))  # constants again: what depends on the iteration
    model = decoded(model)
    own = "Recurrent" in known  # the target has kernels of ours
    model = settle(convolved(unroll(whole(products(shared(model)))) if own else model))
    model = _inline(model, known)
    _check_operators(model, known)
    return model


def interface(model: onnx.ModelProto) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of a prepared model. Raises `Unsupported` where a shape is not static."""
    return tuple(_tensor(v, "input") for v in model.graph.input), tuple(
        _tensor(v, "output") for v in model.graph.output
    )


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _drop_initializer_inputs(model: onnx.ModelProto) -> None:
    """Old exports list weights among the inputs, which makes them replaceable, hence not constant."""
    weights = {t.name for t in model.graph.initializer}
    kept = [v for v in model.graph.input if v.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _dims(value: ValueInfoProto) -> list[int | str] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim]


def _fix_shapes(model: onnx.ModelProto, shapes: Shapes) -> None:
    inputs = {v.name: v for v in model.graph.input}
    for name in shapes:
        if name not in inputs:
            raise UsageError(f"a shape for '{name}', which is no input", hint="inputs: " + ", ".join(inputs))
    bound: dict[str, int] = {}
    for name, shape in shapes.items():
        declared = _dims(inputs[name])
        if declared is None:
            continue
        if len(declared) != len(shape) or any(
            isinstance(d, int) and d != n for d, n in zip(declared, shape, strict=False)
        ):
            raise UsageError(f"shape {list(shape)} does not fit input '{name}', declared as {declared}")
        for d, n in zip(declared, shape, strict=True):
            if isinstance(d, str) and d != "?" and bound.setdefault(d, n) != n:
                raise UsageError(f"dimension '{d}' of input '{name}' is given as {bound[d]} and as {n}")
    changed = False
    for name, value in inputs.items():
        declared = _dims(value)
        known: Sequence[int | str] | None = shapes.get(name)
        if known is None and declared is not None:
            known = [bound.get(d, d) if isinstance(d, str) else d for d in declared]
        if known is None or any(isinstance(d, str) for d in known):
            example = ",".join(str(d) if isinstance(d, int) else "1" for d in declared) if declared else "1,3,224,224"
            raise Unsupported(
                "the shape of an input is not fixed; memory is planned ahead, so it must be",
                f"input '{name}', declared as {declared if declared is not None else 'of any rank'}",
                f"--shape {name}:{example}",
            )
        if declared is None or any(isinstance(d, str) for d in declared):
            changed = True
            value.CopyFrom(
                helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, [int(d) for d in known])
            )
    if changed:  # what was inferred for other shapes must not be believed
        del model.graph.value_info[:]
        for output in model.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attr.g)


def _where(node: onnx.NodeProto) -> str:
    domain = f"{node.domain}::" if node.domain else ""
    return f"node '{node.name or (node.output[0] if node.output else '')}' ({domain}{node.op_type})"


def _check_domains(model: onnx.ModelProto) -> None:
    functions = {(f.domain, f.name) for f in model.functions}
    bodies = [model.graph.node, *(f.node for f in model.functions)]
    for nodes in bodies:
        for node in nodes:
            if node.domain in ("", "ai.onnx") or (node.domain, node.op_type) in functions:
                continue
            if node.domain in DOMAINS and node.op_type in RULES:
                continue
            raise Unsupported(
                f"operators of the domain '{node.domain}' cannot be compiled",
                _where(node),
                "export without custom operators, or put the operator's definition into the model as a function",
            )


def _inline(model: onnx.ModelProto, known: frozenset[str]) -> onnx.ModelProto:
    """Expand the model's own functions, and standard operators the importer lacks that ONNX defines by others."""
    from onnx import inliner

    if model.functions:
        try:
            model = inliner.inline_local_functions(model, convert_version=True)
        except Exception as error:
            raise ModelError(f"the model's functions cannot be expanded: {error}") from error
    opset = _opset(model)
    lacking = sorted(
        {
            n.op_type
            for n in _nodes(model.graph)
            if n.domain in ("", "ai.onnx") and n.op_type not in known and _has_body(n.op_type, opset)
        }
    )
    if lacking:
        with contextlib.suppress(Exception):  # where it cannot, the operator is refused by name below
            model = inliner.inline_selected_functions(
                model, [("", name) for name in lacking], exclude=False, inline_schema_functions=True
            )
    return model


def _has_body(op_type: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]  # stubs lag


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _check_tensors(model: onnx.ModelProto) -> None:
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if not value.type.HasField("tensor_type"):
                raise Unsupported("sequences, maps and optional values cannot be compiled", f"{kind} '{value.name}'")
            _check_dtype(value, kind)


def _check_dtype(value: ValueInfoProto, kind: str) -> None:
    code = value.type.tensor_type.elem_type
    if code not in DTYPES:
        name = onnx.TensorProto.DataType.Name(code) if code else "undefined"
        raise Unsupported(
            f"tensors of type {name.lower()} cannot be compiled",
            f"{kind} '{value.name}'",
            "cast it to float32 outside the network",
        )


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """Opset 18 for older models: the importer reads the older forms of several operators wrongly."""
    if _opset(model) >= MIN_OPSET:
        return model
    model.ir_version = max(model.ir_version, 4)  # below, the converter wants weights among the inputs
    try:
        return version_converter.convert_version(model, 18)
    except Exception as error:
        raise Unsupported(
            f"opset {_opset(model)} cannot be converted to 18: {(str(error).splitlines() or [''])[0][:200]}",
            hint="export the network again with opset 13 or newer",
        ) from error


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and BatchNormalization; on failure the model goes on as it is. Shapes that onnxruntime learns
    while it folds make constants of nodes that it has passed already: hence again, as long as there is something."""
    for _ in range(FOLDS):
        folded = _fold_once(model)
        if folded is model:
            break
        model = folded
        constants = {t.name for t in model.graph.initializer}
        if not any(n.input and all(not name or name in constants for name in n.input) for n in model.graph.node):
            break
    return _infer(model)


def _fold_once(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model if it cannot be folded."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            folded = onnx.load(path)
        except Exception:  # a model onnxruntime cannot load may still compile; the importer will judge
            return model
    if any(n.domain not in ("", "ai.onnx") for n in folded.graph.node):
        return model
    same = {v.name for v in folded.graph.input} == {v.name for v in model.graph.input}
    return folded if same else model


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise ModelError(f"shapes cannot be inferred: {(str(error).splitlines() or [''])[0][:200]}") from error


def _check_operators(model: onnx.ModelProto, known: frozenset[str]) -> None:
    for node in model.graph.node:
        if node.op_type in REFUSED:
            raise Unsupported(
                f"{node.op_type} cannot be compiled: {REFUSED[node.op_type]}",
                _where(node),
                "cut it off the network and run it outside",
            )
        if node.op_type not in known:
            raise Unsupported(
                f"{node.op_type} cannot be compiled: TVM has no importer for it",
                _where(node),
                "replace it, or cut it off the network",
            )
    for value in [*model.graph.output, *model.graph.value_info]:
        if value.type.WhichOneof("value") == TypeProto.TENSOR_TYPE_FIELD_NUMBER:
            continue
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            _check_dtype(value, "tensor")


def _tensor(value: ValueInfoProto, kind: str) -> Tensor:
    dims = _dims(value)
    if dims is None or any(isinstance(d, str) for d in dims):
        raise Unsupported(
            "the shape of a tensor depends on values, so memory cannot be planned",
            f"{kind} '{value.name}', inferred as {dims if dims is not None else 'of any rank'}",
            "cut the network before the operator that makes the shape dynamic",
        )
    shape = tuple(int(d) for d in dims)
    if math.prod(shape) == 0:
        raise Unsupported("an empty tensor cannot be compiled", f"{kind} '{value.name}' of shape {list(shape)}")
    return Tensor(value.name, DTYPES[value.type.tensor_type.elem_type][0], shape)
