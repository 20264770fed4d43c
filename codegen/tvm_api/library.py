"""What is imported of TVM itself; everything else in this project that needs it gets it from here.

Tried with Apache TVM 0.27.
"""

from __future__ import annotations

from typing import Any

from spa.errors import MissingTool

try:
    import tvm
    import tvm_ffi
    from tvm import relax, s_tir, te, tirx
    from tvm.relax.expr_functor import PyExprMutator, mutator
    from tvm.relax.frontend.onnx import onnx_frontend
    from tvm.script import ir_builder
except ImportError as error:
    raise MissingTool("TVM is not installed", hint="pip install 'spa-onnx[codegen]'") from error

__all__ = [
    "PrimFunc",
    "PyExprMutator",
    "first_line",
    "ir_builder",
    "mutator",
    "onnx_frontend",
    "op_names",
    "relax",
    "s_tir",
    "te",
    "tirx",
    "tvm",
    "tvm_ffi",
]

PrimFunc = Any  # tirx.PrimFunc: TVM ships no types


def first_line(error: Exception) -> str:
    """The error in one line: TVM's own messages end with what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def op_names(body: Any) -> set[str]:
    """Names of the ops called in a TIR body, without their dialect."""
    names: set[str] = set()
    tvm_ffi.structural_walk(body, (tvm.ir.Call, lambda call: names.add(getattr(call.op, "name", "").split(".")[-1])))
    return names
