"""Kernels in TIR -> one object file with a plain C interface.

The kernels run through TVM's usual TIR passes up to the one that would wrap them in packed functions; there `_plain`
turns buffers into raw pointers instead, `_lift_scratch` every allocation into an offset from one more pointer, and what
is left needs nothing but libm and memcpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa.codegen.target import Target
from spa.codegen.tvm_api.library import PrimFunc, first_line, s_tir, tirx, tvm, tvm_ffi
from spa.codegen.tvm_api.planned_calls import Lowered
from spa.codegen.tvm_api.targets import tvm_target
from spa.errors import Unsupported

STACK_BYTES = 1024  # allocations of this size or more leave the stack (TVM would ask its runtime for them)


@dataclass(frozen=True)
class Object:
    """An object file, and for each kernel the scratch bytes its last pointer must have."""

    data: bytes
    scratch: dict[str, int]


def _serial(body: Any) -> Any:
    """Parallel loops as serial ones: there is no thread pool to run them."""

    def rewrite(loop: Any) -> Any:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return tvm_ffi.structural_map(body, (tirx.For, rewrite))


def _plain(module: Any) -> Any:
    """Buffer parameters -> raw pointers, return int32: what MakePackedAPI does, without its calling convention."""
    plain = {}
    for var, f in module.functions.items():
        params, declarations = [], []
        for param in f.params:
            if tirx.is_buffer_var(param):
                pointer = tirx.Var(param.name + "_ptr", tirx.buffer_data_pointer_type(param))
                params.append(pointer)
                declarations.append(tirx.DeclBuffer(param, data=pointer))
            else:
                params.append(param)
        body = _serial(f.body)
        for key, value in (("device_type", 1), ("device_id", 0)):  # LowerTVMBuiltin asks for both
            body = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.IntImm("int32", value), body)
        body = tirx.SeqStmt([*declarations, body, tirx.Return(tirx.IntImm("int32", 0))])
        plain[var] = tirx.PrimFunc(params, body, tvm.ir.PrimType("int32"), f.attrs)
    return tvm.IRModule(plain, attrs=module.attrs)


def _lift_scratch(f: PrimFunc) -> tuple[PrimFunc, int]:
    """Allocations -> offsets from one more pointer argument, so that the object needs no allocator."""
    scratch = tirx.Var("scratch", tvm.ir.PointerType(tvm.ir.PrimType("uint8")))
    top = 0

    def rewrite(statement: Any) -> Any:
        nonlocal top
        buffer = statement.buffer
        size = math.prod(int(d) for d in buffer.shape) * ((buffer.dtype.bits * buffer.dtype.lanes + 7) // 8)
        if buffer.scope() == "global" and size < STACK_BYTES:
            return statement
        offset, top = top, (top + size + 63) // 64 * 64
        pointer = tirx.reinterpret(tirx.buffer_data_pointer_type(buffer), tirx.handle_add_byte_offset(scratch, offset))
        return tirx.DeclBuffer(buffer, data=pointer)

    body = tvm_ffi.structural_map(f.body, (tirx.AllocBuffer, rewrite))
    return tirx.PrimFunc([*f.params, scratch], body, f.ret_type, f.attrs), top


def _pipeline(scratch: dict[str, int]) -> Any:
    """TVM's TIR passes up to its packed calling convention, then our own; fills `scratch`."""
    s, x = s_tir.transform, tirx.transform
    before = [
        *(
            s.CanonicalizeLoop(),
            s.LowerCrossThreadReduction(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
        ),
        *(s.ConvertBlocksToOpaque(), s.CompactBufferAllocation(), s.LowerMatchBuffer(), x.StmtSimplify()),
        *(
            s.AnnotateIrregularLoop(),
            s.LowerOpaqueBlock(),
            x.FlattenBuffer(),
            x.BF16ComputeLegalize(),
            x.NarrowDataType(32),
        ),
        *(s.LoopPartition(), x.VectorizeLoop(True), x.StorageRewrite(), s.HoistIfThenElse(), x.UnrollLoop()),
        *(
            s.RenormalizeSplitPattern(),
            x.StmtSimplify(),
            x.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            x.CommonSubexprElim(),
        ),
        *(x.FP8ComputeLegalize(), x.VerifyMemory()),
    ]

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def plain(module: Any, context: Any) -> Any:
        module = tvm.transform.Sequential(before)(module)
        module = tvm.transform.Sequential([x.FP8StorageLegalize(), x.BF16StorageLegalize()])(_plain(module))
        lifted = {}
        for var, f in module.functions.items():
            lifted[var], scratch[var.name_hint] = _lift_scratch(f)
        return tvm.IRModule(lifted, attrs=module.attrs)

    host = tvm.transform.Sequential([x.LowerTVMBuiltin(), x.LowerIntrin()])
    return plain, lambda: host, lambda: tvm.transform.Sequential([x.LowerIntrin()])


def emit(lowered: Lowered, target: Target, symbols: dict[str, str], directory: Path) -> Object:
    """Compile the kernels to one object; `symbols` gives the C name of each. Each takes its pointers in order and one
    more to its scratch, and returns 0. `directory` holds the file while it is written."""
    if not lowered.kernels:
        return Object(b"", {})
    scratch: dict[str, int] = {}
    tirx.register_tir_pipeline("spa", lambda: _pipeline(scratch))
    module = tvm.IRModule({name: f.with_attr("global_symbol", symbols[name]) for name, f in lowered.kernels.items()})
    path = directory / "kernels.o"
    try:
        with tvm.target.Target({"kind": "llvm"}):
            library = tirx.build(module, target=tvm_target(target), pipeline="spa")
        library.write_to_file(str(path), "o")
    except Exception as error:
        raise Unsupported(f"TVM cannot generate code for {target.name}: {first_line(error)}") from error
    return Object(path.read_bytes(), scratch)
