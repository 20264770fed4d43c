"""What no kernel of our own covers, bound to the blocks and threads of a GPU: TVM's rules, and for the rest every parallel loop."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from tvm.s_tir import dlight

from spa.codegen.tvm_api.library import PrimFunc, tirx, tvm, tvm_ffi

BOUND_THREADS = 256  # per block, of loops that only say that they are parallel


def cuda_target(arch: str) -> Any:
    return tvm.target.Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})


RULES = (
    dlight.gpu.Matmul,
    dlight.gpu.GEMV,
    dlight.gpu.Reduction,
    dlight.gpu.GeneralReduction,
    dlight.gpu.Fallback,
)


def schedule_cuda(kernels: Mapping[str, PrimFunc], own: Container[str], arch: str) -> dict[str, PrimFunc]:
    """Every kernel scheduled by the first of TVM's rules that takes it; those of our `own` are already. What no rule takes
    (loops that TVM writes by hand) is bound when it is lowered, see `bind_rest`."""
    rules = [rule() for rule in RULES]
    return {
        name: kernel if name in own else next((f for r in rules if (f := _apply(r, kernel, arch)) is not None), kernel)
        for name, kernel in kernels.items()
    }


def _apply(rule: Any, kernel: PrimFunc, arch: str) -> PrimFunc | None:
    target = cuda_target(arch)
    try:
        with target:
            found = rule.apply(kernel, target, False)
    except Exception:  # rules assert what they have not checked
        return None
    if found is None:
        return None
    schedule = found[0] if isinstance(found, list) else found
    result = schedule.mod["main"].with_attrs(dict(kernel.attrs))
    return result if _is_bound(result) else None


def _is_bound(kernel: PrimFunc) -> bool:
    bound = []
    tvm_ffi.structural_walk(
        kernel.body, (tirx.For, lambda loop: bound.append(1) if loop.kind == tirx.ForKind.THREAD_BINDING else None)
    )
    return bool(bound)


@tvm.transform.module_pass(opt_level=0, name="BindRest")  # type: ignore[untyped-decorator]
def bind_rest(module: Any, context: Any) -> Any:
    """What no rule has scheduled: every parallel loop becomes a launch, what stands between them one of a single thread."""
    functions = {
        var: tirx.PrimFunc(list(f.params), _bound(f.body), f.ret_type, f.attrs) for var, f in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


def _launches(body: Any) -> bool:
    found: list[int] = []
    tvm_ffi.structural_walk(body, (tirx.AttrStmt, lambda a: found.append(1) if a.attr_key == "thread_extent" else None))
    return bool(found)


def _bound(body: Any) -> Any:
    if isinstance(body, tirx.SeqStmt):
        return tirx.SeqStmt([_bound(part) for part in body.seq])
    if isinstance(body, tirx.AttrStmt) and body.attr_key != "thread_extent":
        return _bound(body.body)
    if isinstance(body, (tirx.AllocBuffer, tirx.DeclBuffer)) or _launches(body):
        return body
    if isinstance(body, tirx.For) and body.kind == tirx.ForKind.PARALLEL:
        dtype = str(body.loop_var.ty.dtype)
        block, thread = (tirx.Var(name, dtype) for name in ("block", "thread"))
        at = block * BOUND_THREADS + thread
        inner = tirx.SeqStmt([tirx.Bind(body.loop_var, at + body.min), _serially(body.body)])
        extent = (body.extent + BOUND_THREADS - 1) // BOUND_THREADS
        guarded = tirx.IfThenElse(at < body.extent, inner, None)
        return _threads(guarded, block, extent, thread, BOUND_THREADS)
    return _threads(_serially(body), tirx.Var("block", "int32"), 1, tirx.Var("thread", "int32"), 1)


def _threads(body: Any, block: Any, blocks: Any, thread: Any, threads: int) -> Any:
    for var, extent, tag in ((thread, threads, "threadIdx.x"), (block, blocks, "blockIdx.x")):
        extent = tirx.const(extent, str(var.ty.dtype)) if isinstance(extent, int) else extent
        axis = tirx.IterVar(tvm.ir.Range(tirx.const(0, str(var.ty.dtype)), extent), var, tirx.IterVar.ThreadIndex, tag)
        body = tirx.AttrStmt(axis, "thread_extent", extent, body)
    return body


def _serially(body: Any) -> Any:
    """Parallel loops inside a thread."""

    def rewrite(loop: Any) -> Any:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return tvm_ffi.structural_map(body, (tirx.For, rewrite))
