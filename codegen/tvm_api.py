"""Everything that is asked of TVM, in one place: import a network, reduce it to planned calls, emit an object file.

Tried with Apache TVM 0.27. What leaves this module is plain data, or TVM's but handed back unopened.

How an object gets a plain C interface: the kernels run through TVM's usual TIR passes up to the one that would wrap
them in packed functions; there `_plain` turns buffers into raw pointers instead, `_lift_scratch` every allocation into
an offset from one more pointer, and what is left needs nothing but libm and memcpy.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from spa.codegen.program import Call, Program, Ref, Tensor
from spa.codegen.target import Target
from spa.errors import MissingTool, Unsupported

try:
    import tvm
    import tvm_ffi
    from tvm import relax as relax  # `as`: for `converters`, which builds expressions of its own
    from tvm import s_tir
    from tvm import te as te
    from tvm import tirx as tirx
    from tvm.relax.expr_functor import PyExprMutator, mutator
    from tvm.relax.frontend.onnx import onnx_frontend as onnx_frontend
    from tvm.script import ir_builder as ir_builder  # kernels of our own are written with it
except ImportError as error:
    raise MissingTool("TVM is not installed", hint="pip install 'spa-onnx[codegen]'") from error

STACK_BYTES = 1024  # allocations of this size or more leave the stack (TVM would ask its runtime for them)

# a declared kernel: operator pattern 8 (opaque) keeps it from being fused, it brings its own epilogue
STUB = {"op_pattern": 8, "tirx.noalias": True}

PrimFunc = Any  # tirx.PrimFunc: TVM ships no types
Converter = Callable[[Any, Sequence[Any], dict[str, Any], Any], Any]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program and the TIR of its kernels."""

    program: Program
    kernels: dict[str, PrimFunc]


@dataclass(frozen=True)
class Object:
    """An object file, and for each kernel the scratch bytes its last pointer must have."""

    data: bytes
    scratch: dict[str, int]


def imported_ops() -> frozenset[str]:
    """ONNX op types that the frontend can import. It never looks at a node's domain: the caller must."""
    return frozenset(onnx_frontend._get_convert_map()) | {"Constant"}


# ---------------------------------------------------------------------------------------------- import


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

    def convert(bb: Any, inputs: Sequence[Any], attr: dict[str, Any], params: Any) -> Any:
        if not added:  # one function, however many layers call it
            operands = [([int(d) for d in v.ty.shape.values], str(v.ty.dtype)) for v in inputs]
            buffers = [tirx.decl_buffer(*o) for o in [*operands, (list(out.shape), out.dtype)]]
            body = tirx.Evaluate(tirx.IntImm("int32", 0))
            stub = tirx.PrimFunc(buffers, body).with_attrs({**STUB, "spa.kernel": name})  # else equal ones become one
            added.append(bb.add_func(stub, name))
        return bb.emit(relax.call_tir(added[0], list(inputs), relax.TensorType(out.shape, out.dtype)))

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
            f"TVM cannot import the network: {_first_line(error)}",
            where and f"an operator {where}",
            "simplify or replace this operator",
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


# ------------------------------------------------------------------------------------- planned calls


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
        with _target(target):
            module = tvm.transform.Sequential(passes)(module)
    except Exception as error:
        raise Unsupported(f"TVM cannot lower the network: {_first_line(error)}") from error
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
    if _op_names(kernel.body) & {"tvm_call_packed", "tvm_call_cpacked", "tvm_call_packed_lowered"}:
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


# ---------------------------------------------------------------------------------------------- emit


def _target(target: Target) -> Any:
    record: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple}
    if target.cpu:
        record["mcpu"] = target.cpu
    if target.features:
        record["mattr"] = list(target.features)
    if target.is_wasm:
        record["vector-width"] = 32 * target.lanes  # else TVM warns that it has to guess
    return tvm.target.Target(record)


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
            library = tirx.build(module, target=_target(target), pipeline="spa")
        library.write_to_file(str(path), "o")
    except Exception as error:
        raise Unsupported(f"TVM cannot generate code for {target.name}: {_first_line(error)}") from error
    return Object(path.read_bytes(), scratch)


# ------------------------------------------------------------------------------------------ schedules

ScheduleError = s_tir.schedule.schedule.ScheduleError


@dataclass(frozen=True)
class BlockFacts:
    """What a schedule asks of a block. Axes by their position: `extents` of all, those that are `reductions`, the
    last that is none (`last_spatial`, -1 without), whether what is reduced has that one last
    (`last_axis_contiguous`), and the spatial ones that this read does not depend on (`shared`).
    `conditional`: reads are guarded by a condition."""

    extents: tuple[int, ...]
    reductions: tuple[int, ...]
    last_spatial: int
    last_axis_contiguous: bool
    shared: tuple[int, ...]
    conditional: bool


def new_schedule(kernel: PrimFunc) -> Any:
    return s_tir.Schedule(tvm.IRModule({"main": kernel}), error_render_level="none")


def block_facts(schedule: Any, block: Any) -> BlockFacts:
    statement = schedule.get(block)
    axes = list(statement.iter_vars)
    reductions = tuple(i for i, axis in enumerate(axes) if int(axis.iter_type) == tirx.IterVar.CommReduce)
    spatial = [i for i in range(len(axes)) if i not in reductions]
    last = spatial[-1] if spatial else -1
    reduced = [axes[i].var for i in reductions]
    rows = [r for r in statement.reads if any(_uses(d.min, v) for d in r.region for v in reduced)]
    row = next((r for r in rows if last >= 0 and _uses(r.region[-1].min, axes[last].var)), None)
    shared = [] if row is None else [i for i in spatial if not any(_uses(d.min, axes[i].var) for d in row.region)]
    extents = tuple(int(axis.dom.extent) for axis in axes)
    conditional = "if_then_else" in _op_names(statement.body)
    return BlockFacts(extents, reductions, last, row is not None, tuple(shared), conditional)


def _op_names(body: Any) -> set[str]:
    names: set[str] = set()
    tvm_ffi.structural_walk(body, (tvm.ir.Call, lambda call: names.add(getattr(call.op, "name", "").split(".")[-1])))
    return names


def _uses(expr: Any, var: Any) -> bool:
    found = False

    def look(seen: Any) -> None:
        nonlocal found
        found = found or seen.same_as(var)

    tvm_ffi.structural_walk(expr, (tirx.Var, look))
    return found
