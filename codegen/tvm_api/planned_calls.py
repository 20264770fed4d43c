"""A Relax module -> kernels in TIR and the straight line of calls that makes up the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.codegen.program import Call, Program, Ref, Tensor
from spa.codegen.target import Target
from spa.codegen.tvm_api.library import PrimFunc, PyExprMutator, first_line, mutator, op_names, relax, tirx, tvm
from spa.codegen.tvm_api.targets import tvm_target
from spa.errors import Unsupported


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program and the TIR of its kernels."""

    program: Program
    kernels: dict[str, PrimFunc]


def _fold_table() -> dict[str, Callable[..., Any]]:
    """Relax ops that only move constants around: folded here in numpy, where TVM would compile a kernel for each."""

    def reshape(call: Any, x: Any) -> Any:
        return x.reshape([int(d) for d in call.ty.shape.values])

    def permute(call: Any, x: Any) -> Any:
        axes = call.attrs.axes
        return x.transpose(None if axes is None else [int(a) for a in axes])

    def broadcast(call: Any, x: Any) -> Any:
        return np.broadcast_to(x, [int(d) for d in call.ty.shape.values])

    def astype(call: Any, x: Any) -> Any:
        return x.astype(str(call.ty.dtype))

    return {
        "relax.reshape": reshape,
        "relax.expand_dims": reshape,
        "relax.squeeze": reshape,
        "relax.flatten": reshape,
        "relax.permute_dims": permute,
        "relax.broadcast_to": broadcast,
        "relax.astype": astype,
    }


FOLDED = _fold_table()


@mutator
class _FoldMoves(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        fold = FOLDED.get(getattr(call.op, "name", ""))
        source = (
            self.lookup_binding(call.args[0])
            if fold and isinstance(call.args[0], relax.Var)
            else call.args[0]
            if fold
            else None
        )
        if fold is None or not isinstance(source, tvm.ir.GenericConst):
            return call
        return relax.const(np.ascontiguousarray(fold(call, source.value.numpy())))


@tvm.transform.module_pass(opt_level=0, name="FoldMoves")  # type: ignore[untyped-decorator]
def _fold_moves(module: Any, context: Any) -> Any:
    folder = _FoldMoves(module)
    folder.builder_.update_func(module.get_global_var("main"), folder.visit_expr(module["main"]))
    return folder.builder_.get()


def lower(
    module: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], target: Target, own: dict[str, PrimFunc]
) -> Lowered:
    """Relax module -> fused kernels and the calls that make up `main`; `own`: the kernels by name that were only
    declared so far. Raises `Unsupported` for control flow, for
    shapes known only at run time, and for ops that need the TVM runtime."""
    p = relax.transform
    passes = [
        *(
            p.DecomposeOpsForInference(),
            p.CanonicalizeBindings(),
            _fold_moves,
            p.DeadCodeElimination(),
            p.LegalizeOps(),
        ),
        *(p.AnnotateTIROpPattern(), p.FoldConstant(), p.FuseOps(), p.FuseTIR(), p.DeadCodeElimination()),
        *(p.RewriteDataflowReshape(), p.ToNonDataflow(), p.RemovePurityChecking(), p.CallTIRRewrite()),
    ]
    try:
        with tvm_target(target):
            module = tvm.transform.Sequential(passes)(module)
    except Exception as error:
        raise Unsupported(f"TVM cannot lower the network: {first_line(error)}") from error
    program = _walk(module["main"], tuple(inputs), tuple(outputs))
    used = {call.kernel for call in program.calls}
    kernels = {var.name_hint: _from_the_start(f) for var, f in module.functions.items() if var.name_hint in used}
    for name, kernel in kernels.items():
        _check_alone(name, kernel)
    kernels = {name: own.get(name, kernel) for name, kernel in kernels.items()}
    return Lowered(program, kernels)


def _from_the_start(kernel: PrimFunc) -> PrimFunc:
    """Buffers that may begin anywhere in their memory (some scatters ask for it) begin at its start here."""
    moved = {p: tirx.decl_buffer(list(p.shape), str(p.dtype), name=p.name) for p in kernel.params if _floats(p)}
    return kernel.specialize(moved) if moved else kernel


def _floats(param: Any) -> bool:
    return tirx.is_buffer_var(param) and not isinstance(param.elem_offset, tirx.IntImm)


def _check_alone(name: str, kernel: PrimFunc) -> None:
    """Sorting and the like call back into TVM's library: those cannot run alone."""
    if op_names(kernel.body) & {"tvm_call_packed", "tvm_call_cpacked", "tvm_call_packed_lowered"}:
        raise Unsupported("an operator needs TVM's own library at run time", f"kernel {name}", "replace this operator")


def _walk(main: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Program:
    where: dict[Any, Any] = {param: Ref("input", i) for i, param in enumerate(main.params)}
    values: list[int] = []
    consts: list[np.ndarray[Any, Any]] = []
    const_index: dict[Any, int] = {}
    calls: list[Call] = []

    def resolve(expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return where[expr]
        if isinstance(expr, tvm.ir.GenericConst):
            if expr not in const_index:
                const_index[expr] = len(consts)
                consts.append(expr.value.numpy())
            return Ref("const", const_index[expr])
        if isinstance(expr, relax.Tuple):
            return [resolve(field) for field in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return resolve(expr.tuple_value)[expr.index]
        raise Unsupported(
            f"a value known only at run time: {_text(expr)}", hint="fix the shapes; control flow cannot be compiled"
        )

    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if not isinstance(value, relax.Call):
                where[binding.var] = [] if _is_unit(value) else resolve(value)
                continue
            if isinstance(value.op, tvm.ir.GlobalVar):
                flat: list[Ref] = []
                for arg in value.args:
                    ref = resolve(arg)
                    flat += ref if isinstance(ref, list) else [ref]
                calls.append(Call(value.op.name_hint, tuple(flat)))
                continue
            name = getattr(value.op, "name", "")
            if name == "relax.builtin.alloc_tensor":
                where[binding.var] = Ref("value", len(values))
                values.append(_nbytes(binding.var.ty))
            elif name in ("relax.reshape", "relax.memory.view", "relax.memory.ensure_zero_offset"):
                where[binding.var] = resolve(value.args[0])
            elif name in ("relax.memory.kill_storage", "relax.memory.kill_tensor"):
                continue
            else:
                raise Unsupported(
                    f"'{name or _text(value)}' cannot run alone",
                    hint="it needs shapes or values known only at run time",
                )
    result = resolve(main.body.body)
    results = tuple(result) if isinstance(result, list) else (result,)
    return Program(inputs, outputs, tuple(values), tuple(consts), tuple(calls), results)


def _is_unit(value: Any) -> bool:
    return isinstance(value, relax.Tuple) and not value.fields


def _text(value: Any) -> str:
    return (str(value).splitlines() or [""])[0][:120]


def _nbytes(ty: Any) -> int:
    dims = getattr(ty.shape, "values", None)
    if dims is None or not all(isinstance(d, (int, tirx.IntImm)) for d in dims):
        raise Unsupported(f"a shape known only at run time: {_text(ty)}", hint="fix the shapes of the inputs")
    dtype = tvm.DataType(str(ty.dtype))
    return math.prod(int(d) for d in dims) * ((int(dtype.bits) * int(dtype.lanes) + 7) // 8)
