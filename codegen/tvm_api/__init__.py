"""Everything that is asked of TVM, in one package: no other file imports it.

`frontend` imports a network, `planned_calls` reduces it to kernels and calls, `schedules` shows a kernel to schedules
of ours, `objects` emits an object file. What leaves is plain data, or TVM's but handed back unopened; those who write
expressions of their own (kernels, converters) get TVM's modules from here.
"""

from __future__ import annotations

from spa.codegen.tvm_api.frontend import Converter, constant, import_onnx, imported_ops
from spa.codegen.tvm_api.library import PrimFunc, ir_builder, onnx_frontend, relax, te, tirx, tvm
from spa.codegen.tvm_api.objects import Object, Own, assembly, emit
from spa.codegen.tvm_api.planned_calls import Lowered, lower
from spa.codegen.tvm_api.schedules import BlockFacts, ScheduleError, block_facts, new_schedule
from spa.codegen.tvm_api.teams import BALANCE, EVERYONE

__all__ = [
    "BALANCE",
    "EVERYONE",
    "BlockFacts",
    "Converter",
    "Lowered",
    "Object",
    "Own",
    "PrimFunc",
    "ScheduleError",
    "assembly",
    "block_facts",
    "constant",
    "emit",
    "import_onnx",
    "imported_ops",
    "ir_builder",
    "lower",
    "new_schedule",
    "onnx_frontend",
    "relax",
    "te",
    "tirx",
    "tvm",
]
