"""ONNX -> a Relax module, with converters of our own before the frontend's."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from spa.codegen.program import Tensor
from spa.codegen.tvm_api.library import first_line, onnx_frontend, relax, tirx, tvm
from spa.errors import Unsupported

# a declared kernel: operator pattern 8 (opaque) keeps it from being fused, it brings its own epilogue
STUB = {"op_pattern": 8, "tirx.noalias": True}

Converter = Callable[[Any, Sequence[Any], dict[str, Any], Any], Any]


def imported_ops() -> frozenset[str]:
    """ONNX op types that the frontend can import. It never looks at a node's domain: the caller must."""
    return frozenset(onnx_frontend._get_convert_map()) | {"Constant"}


class _Override:
    """A converter in the form the frontend expects: `get_converter(opset)` gives the function."""

    def __init__(self, function: Converter) -> None:
        self.function = function

    def get_converter(self, opset: int) -> Converter:
        return self.function


def constant(expr: Any) -> np.ndarray[Any, Any] | None:
    """The value of a Relax constant, or None for anything else."""
    return np.asarray(expr.value.numpy()) if isinstance(expr, tvm.ir.GenericConst) else None


@contextlib.contextmanager
def _converters(extra: dict[str, Converter]) -> Iterator[None]:
    original = onnx_frontend._get_convert_map
    table = {**original(), **{name: _Override(function) for name, function in extra.items()}}
    onnx_frontend._get_convert_map = lambda: table
    try:
        yield
    finally:
        onnx_frontend._get_convert_map = original


def _call_kernel(name: str, out: Tensor) -> Converter:
    """A call of a function without a body: Relax need not know more of a kernel of our own than its operands."""
    added: list[Any] = []
    shapes: list[list[int]] = []

    def convert(bb: Any, inputs: Sequence[Any], attr: dict[str, Any], params: Any) -> Any:
        if not added:  # one function, however many layers call it
            operands = [([int(d) for d in v.ty.shape.values], str(v.ty.dtype)) for v in inputs]
            buffers = [tirx.decl_buffer(*o) for o in [*operands, (list(out.shape), out.dtype)]]
            body = tirx.Evaluate(tirx.IntImm("int32", 0))
            stub = tirx.PrimFunc(buffers, body).with_attrs({**STUB, "spa.kernel": name})  # else equal ones become one
            added.append(bb.add_func(stub, name))
            shapes.extend(shape for shape, _ in operands)
        flat = [  # kernels see no shapes: as many elements are enough
            v if [int(d) for d in v.ty.shape.values] == shape else bb.emit(relax.op.reshape(v, shape))
            for v, shape in zip(inputs, shapes, strict=True)
        ]
        return bb.emit(relax.call_tir(added[0], flat, relax.TensorType(out.shape, out.dtype)))

    return convert


def import_onnx(model: onnx.ModelProto, kernels: dict[str, Tensor], converters: dict[str, Converter]) -> Any:
    """The Relax module of a model with static shapes. Nodes whose op type is a key of `kernels` become calls of a
    function of that name (their inputs in order, then the output); `converters` come before the frontend's own.
    Raises `Unsupported` where the frontend gives up."""
    said = io.StringIO()
    calls = {op: _call_kernel(op, out) for op, out in kernels.items()}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), _converters({**converters, **calls}):
            warnings.simplefilter("ignore")
            return onnx_frontend.from_onnx(model, keep_params_in_input=False)
    except Unsupported:
        raise
    except Exception as error:  # the frontend raises every kind there is
        first = next(
            (line for line in said.getvalue().splitlines() if line.startswith("Error converting operator")), ""
        )
        where = first.removeprefix("Error converting operator ").split(", with inputs")[0]
        raise Unsupported(
            f"TVM cannot import the network: {first_line(error)}",
            where and f"an operator {where}",
            "simplify or replace this operator",
        ) from error
