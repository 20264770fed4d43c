"""What is asked of TVM for CUDA: schedules for what no kernel of our own covers, kernels split from their launches, CUDA C.

A kernel is a PrimFunc over buffers, its loops bound to blocks and threads. TVM's TIR passes split it into device
functions and a host function whose body is nothing but allocations and launches; the launches leave this module as plain
data, the allocations as offsets into one scratch area. The order of a device function's parameters is that of the launch,
not of the PrimFunc.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tvm.backend.cuda.op import cuda_cvta_generic_to_shared, cuda_func_call

from spa.codegen.tvm_api.cuda_schedules import bind_rest, cuda_target
from spa.codegen.tvm_api.cuda_schedules import schedule_cuda as schedule_cuda
from spa.codegen.tvm_api.library import PrimFunc, first_line, ir_builder, s_tir, tirx, tvm
from spa.errors import Unsupported

AXES = ("x", "y", "z")
ALIGNMENT = 256  # bytes: of allocations in scratch


@dataclass(frozen=True)
class Pointer:
    """What a device function's parameter points to: buffer `index` of the kernel, or byte `index` of its scratch."""

    kind: Literal["argument", "scratch"]
    index: int


@dataclass(frozen=True)
class Launch:
    """One launch of a device function. `shared`: bytes of dynamic shared memory."""

    symbol: str
    arguments: tuple[Pointer, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int


@dataclass(frozen=True, eq=False)
class Device:
    """CUDA C of all kernels; by kernel its launches in order and the bytes of scratch they share. `functions`: the TIR of
    each symbol as it was before it became C."""

    source: str
    launches: Mapping[str, tuple[Launch, ...]]
    scratch: Mapping[str, int]
    functions: Mapping[str, PrimFunc]


def ptx(instruction: str, *operands: Any) -> None:
    """One PTX instruction as a statement of the kernel being written; operands flat, destinations first."""
    builder = ir_builder.tirx
    builder.evaluate(builder.ptx[instruction](*operands))


def device_function(name: str, source: str, *operands: Any) -> None:
    """A call of a device function, as a statement; `source` defines it, once per file. Operands that it takes by reference
    are elements of buffers."""
    ir_builder.tirx.evaluate(cuda_func_call(name, *operands, source_code=source))


def shared_address(pointer: Any) -> Any:
    """The number, uint32, by which PTX knows a place in shared memory."""
    return cuda_cvta_generic_to_shared(pointer)


def _passes(own: bool) -> list[Any]:
    """TVM's own pipeline for GPUs up to the calling convention of its runtime. Kernels of our own bring their barriers
    and the layout of their shared memory, so what would add to them is left out."""
    s, x = s_tir.transform, tirx.transform
    front = [s.CanonicalizeLoop(), s.LowerCrossThreadReduction(), s.LowerInitBlock()]
    front += [s.PlanAndUpdateBufferAllocationLocation(), s.ConvertBlocksToOpaque(), s.LiftThreadBinding()]
    front += [] if own else [s.CompactBufferAllocation()]  # it does not see how far an address is read
    front += [s.LowerAutoCopy(), s.UnifyThreadBinding(), s.LowerMatchBuffer()]
    front += [s.StmtSimplify(), s.AnnotateIrregularLoop(), s.LowerOpaqueBlock(), bind_rest, x.FlattenBuffer()]
    front += [x.BF16ComputeLegalize(), x.NarrowDataType(32), s.LoopPartition(), x.VectorizeLoop(True)]
    front += [] if own else [s.InjectVirtualThread(), s.InjectDoubleBuffer(), x.StorageRewrite()]
    front += [s.HoistIfThenElse(), x.UnrollLoop(), s.RenormalizeSplitPattern(), x.StmtSimplify(), x.RemoveNoOp()]
    front += [s.RewriteUnsafeSelect(), x.CommonSubexprElim(), x.FP8ComputeLegalize(), x.VerifyMemory()]
    front += [x.AnnotateEntryFunc()]
    if not own:
        front += [s.ThreadSync("shared"), s.ThreadSync("shared.dyn"), s.ThreadSync("warp")]
        front += [s.InferFragment(), s.LowerThreadAllreduce(), s.MergeSharedMemoryAllocations()]
    return [*front, x.SplitHostDevice()]


def _is_device(f: PrimFunc) -> bool:
    return int(f.attrs.get("calling_conv", 0)) == 2


def emit_cuda(kernels: Mapping[str, PrimFunc], own: Container[str], arch: str, symbols: Mapping[str, str]) -> Device:
    """CUDA C for these kernels, bound to threads. `symbols` gives the C name of each."""
    launches: dict[str, tuple[Launch, ...]] = {}
    scratch: dict[str, int] = {}
    functions: dict[str, PrimFunc] = {}
    try:
        for ours in (True, False):
            some = {name: f for name, f in kernels.items() if (name in own) == ours}
            _lower(some, ours, arch, symbols, launches, scratch, functions)
        source = _source(functions, arch)
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(f"TVM cannot generate CUDA: {first_line(error)}") from error
    return Device(source, launches, scratch, functions)


def _lower(
    kernels: Mapping[str, PrimFunc],
    own: bool,
    arch: str,
    symbols: Mapping[str, str],
    launches: dict[str, tuple[Launch, ...]],
    scratch: dict[str, int],
    functions: dict[str, PrimFunc],
) -> None:
    if not kernels:
        return
    target = cuda_target(arch)
    named = {name: f.with_attr("global_symbol", symbols[name]) for name, f in kernels.items()}
    module = tirx.transform.BindTarget(target)(tvm.IRModule(named))
    config = {"tirx.UnrollLoop": {"explicit_unroll": False}}
    with target, tvm.transform.PassContext(config=config):
        module = tvm.transform.Sequential(_passes(own))(module)
        split: dict[bool, list[Any]] = {True: [], False: []}
        for var, f in module.functions.items():
            split[_is_device(f)].append((var, f))
        x = tirx.transform
        passes = [x.FP8StorageLegalize(), x.BF16StorageLegalize(), x.LowerWarpMemory(), x.StmtSimplify()]
        device = tvm.transform.Sequential(passes)(tvm.IRModule(dict(split[True])))
    functions |= {str(f.attrs["global_symbol"]): f for f in device.functions.values()}
    for var, f in split[False]:
        launches[var.name_hint], scratch[var.name_hint] = _launches(f)


def _launches(host: PrimFunc) -> tuple[tuple[Launch, ...], int]:
    """A host function's launches in order, and the scratch it allocates."""
    where: dict[Any, Pointer] = {param: Pointer("argument", i) for i, param in enumerate(host.params)}
    top = 0
    found: list[Launch] = []

    def visit(statement: Any) -> None:
        nonlocal top
        if isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                visit(part)
        elif isinstance(statement, tirx.DeclBuffer):
            where[statement.buffer] = where[_buffer_of(statement.data)]
        elif isinstance(statement, tirx.AllocBuffer):
            where[statement.buffer] = Pointer("scratch", top)
            top += -(-_nbytes(statement.buffer) // ALIGNMENT) * ALIGNMENT
        elif isinstance(statement, tirx.Evaluate) and getattr(statement.value.op, "name", "").endswith(
            "call_ffi_kernel"
        ):
            found.append(_launch(statement.value, where))
        elif isinstance(statement, tirx.AttrStmt):
            visit(statement.body)
        else:
            raise Unsupported(
                f"a kernel that is more than launches: {type(statement).__name__}", str(host.attrs["global_symbol"])
            )

    visit(host.body)
    return tuple(found), top


def _buffer_of(data: Any) -> Any:
    """The buffer of `buffer.data`."""
    return data.args[0] if isinstance(data, tvm.ir.Call) else data


def _nbytes(buffer: Any) -> int:
    return math.prod(int(d) for d in buffer.shape) * ((int(buffer.dtype.bits) * int(buffer.dtype.lanes) + 7) // 8)


def _launch(call: Any, where: Mapping[Any, Pointer]) -> Launch:
    symbol, *rest = call.args
    names = [str(p) for p in call.attrs["launch_params"]]
    sizes = dict(zip(names, (int(v) for v in rest[len(rest) - len(names) :]), strict=True))
    pointers = tuple(where[_buffer_of(a)] for a in rest[: len(rest) - len(names)])

    def extents(of: str) -> tuple[int, int, int]:
        x, y, z = (sizes.get(f"{of}Idx.{axis}", 1) for axis in AXES)
        return x, y, z

    return Launch(
        str(symbol.value), pointers, extents("block"), extents("thread"), sizes.get("tirx.use_dyn_shared_memory", 0)
    )


def _source(functions: Mapping[str, PrimFunc], arch: str) -> str:
    """CUDA C of device functions."""
    target = cuda_target(arch)
    with target:
        module = tirx.transform.LowerIntrin()(tvm.IRModule(dict(functions)))
        return str(tvm.get_global_func("target.build.cuda")(module, target).inspect_source())
