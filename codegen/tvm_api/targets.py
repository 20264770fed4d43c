"""Our targets as TVM's."""

from __future__ import annotations

from typing import Any

from spa.codegen.target import Target
from spa.codegen.tvm_api.library import tvm


def tvm_target(target: Target) -> Any:
    """The LLVM target of a triple, CPU and features."""
    record: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple}
    if target.cpu:
        record["mcpu"] = target.cpu
    if target.features:
        record["mattr"] = list(target.features)
    if target.is_wasm:
        record["vector-width"] = 32 * target.lanes  # else TVM warns that it has to guess
    return tvm.target.Target(record)
