"""Kernels in TIR -> one object file with a plain C interface.

The kernels run through TVM's usual TIR passes up to the one that would wrap them in packed functions; there `_plain`
turns buffers into raw pointers instead, `_with_scratch` every allocation into an offset from one more pointer, and what
is left needs nothing but libm and memcpy. Parallel loops become serial, or the parts of a team (see `teams`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spa.codegen.target import Target
from spa.codegen.tvm_api import teams
from spa.codegen.tvm_api.library import PrimFunc, first_line, s_tir, tirx, tvm, tvm_ffi
from spa.codegen.tvm_api.planned_calls import Lowered
from spa.codegen.tvm_api.targets import tvm_target
from spa.errors import Unsupported

STACK_BYTES = 1024  # allocations of this size or more leave the stack (TVM would ask its runtime for them)


@dataclass(frozen=True)
class Own:
    """Of its scratch, the bytes that each thread of a team needs for itself: where they begin, how many."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Object:
    """An object file, and for each kernel the scratch bytes its last pointer must have. `teams`: the kernels that
    threads run together, see `emit`."""

    data: bytes
    scratch: dict[str, int]
    teams: dict[str, Own] = field(default_factory=dict)


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
        body = f.body
        for key, value in (("device_type", 1), ("device_id", 0)):  # LowerTVMBuiltin asks for both
            body = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.IntImm("int32", value), body)
        body = tirx.SeqStmt([*declarations, body, tirx.Return(tirx.IntImm("int32", 0))])
        plain[var] = tirx.PrimFunc(params, body, tvm.ir.PrimType("int32"), f.attrs)
    return tvm.IRModule(plain, attrs=module.attrs)


class _Scratch:
    """Allocations -> offsets from one more pointer argument, so that the object needs no allocator."""

    def __init__(self, name: str) -> None:
        self.pointer = tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType("uint8")))
        self.top = 0

    def move(self, statement: Any) -> Any:
        """An AllocBuffer, whatever its size."""
        buffer = statement.buffer
        offset, self.top = self.top, (self.top + _nbytes(buffer) + 63) // 64 * 64
        pointer = tirx.handle_add_byte_offset(self.pointer, offset)
        return tirx.DeclBuffer(buffer, data=tirx.reinterpret(tirx.buffer_data_pointer_type(buffer), pointer))

    def move_all(self, body: Any) -> Any:
        """Those that are too large for the stack."""

        def rewrite(statement: Any) -> Any:
            buffer = statement.buffer
            fits = buffer.scope() == "global" and _nbytes(buffer) < STACK_BYTES
            return statement if fits else self.move(statement)

        return tvm_ffi.structural_map(body, (tirx.AllocBuffer, rewrite))


def _nbytes(buffer: Any) -> int:
    return math.prod(int(d) for d in buffer.shape) * ((int(buffer.dtype.bits) * int(buffer.dtype.lanes) + 7) // 8)


def _with_scratch(f: PrimFunc, prefix: str | None) -> tuple[PrimFunc, int, Own | None]:
    """The function with its scratch as an argument, its bytes, and what of them is a thread's own, if it has a team."""
    scratch = _Scratch("scratch")
    if prefix is None or not teams.has_parallel(f.body):
        body = scratch.move_all(teams.serial(f.body))
        return tirx.PrimFunc([*f.params, scratch.pointer], body, f.ret_type, f.attrs), scratch.top, None
    own, member = _Scratch("own"), teams.Member.new(prefix)
    pointers = {p.name.removesuffix("_ptr"): p for p in f.params}
    body = teams.shared(f.body, member, pointers, own.move_all, scratch.move)
    body = scratch.move_all(body)
    params = [*f.params, scratch.pointer, own.pointer, *member.params]
    return tirx.PrimFunc(params, body, f.ret_type, f.attrs), scratch.top + own.top, Own(scratch.top, own.top)


def _pipeline(found: Object, prefix: str | None) -> Any:
    """TVM's TIR passes up to its packed calling convention, then our own; fills `scratch` and `teams` of `found`."""
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
            lifted[var], found.scratch[var.name_hint], own = _with_scratch(f, prefix)
            if own is not None:
                found.teams[var.name_hint] = own
        return tvm.IRModule(lifted, attrs=module.attrs)

    host = tvm.transform.Sequential([x.LowerTVMBuiltin(), x.LowerIntrin()])
    return plain, lambda: host, lambda: tvm.transform.Sequential([x.LowerIntrin()])


def emit(lowered: Lowered, target: Target, symbols: dict[str, str], directory: Path, team: str | None = None) -> Object:
    """Compile the kernels to one object; `symbols` gives the C name of each. Each takes its pointers in order and one
    more to its scratch, and returns 0. `directory` holds the file while it is written.

    With `team`, a C name, kernels with parallel loops are for threads, and take their own scratch, `int32_t task`,
    `int32_t tasks` and a pointer to their team after that; they call `<team>__barrier` and `<team>__split`.
    """
    if not lowered.kernels:
        return Object(b"", {})
    path = directory / "kernels.o"
    library, found = _build(lowered, target, symbols, team)
    library.write_to_file(str(path), "o")
    return replace(found, data=path.read_bytes())


def assembly(lowered: Lowered, target: Target, symbols: dict[str, str], team: str | None = None) -> str:
    """What `emit` would put into the object, as text for an assembler."""
    library, _ = _build(lowered, target, symbols, team)
    return str(library.inspect_source("s"))


def _build(lowered: Lowered, target: Target, symbols: dict[str, str], team: str | None) -> tuple[Any, Object]:
    try:
        return _compiled(lowered.kernels, target, symbols, team)
    except Exception as error:
        where = _culprit(lowered.kernels, target, symbols, team)
        raise Unsupported(
            f"TVM cannot generate code for {target.name}: {first_line(error)}",
            where and f"kernel {where}",
            "replace or cut off the operators it stands for",
        ) from error


def _compiled(
    kernels: Mapping[str, PrimFunc], target: Target, symbols: dict[str, str], team: str | None
) -> tuple[Any, Object]:
    found = Object(b"", {})
    tirx.register_tir_pipeline("spa", lambda: _pipeline(found, team))
    module = tvm.IRModule({name: f.with_attr("global_symbol", symbols[name]) for name, f in kernels.items()})
    with tvm.target.Target({"kind": "llvm"}):
        return tirx.build(module, target=tvm_target(target), pipeline="spa"), found


def _culprit(kernels: Mapping[str, PrimFunc], target: Target, symbols: dict[str, str], team: str | None) -> str:
    """The first kernel that cannot be compiled alone, or nothing: its name tells TVM's operators in it."""
    for name, kernel in kernels.items():
        try:
            _compiled({name: kernel}, target, symbols, team)
        except Exception:
            return name
    return ""
