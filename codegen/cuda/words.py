"""Words in which CUDA kernels are written, beside those of `kernels.vector`: threads, shared memory, PTX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from spa.codegen.kernels.vector import FLOAT, Expr, build
from spa.codegen.tvm_api import ir_builder, tirx
from spa.codegen.tvm_api.cuda import ptx as ptx

WARP = 32
HALF = "float16"
BFLOAT = "bfloat16"
NARROW = (HALF, BFLOAT)  # operands of tensor cores
OPERANDS = {"fp16": HALF, "bf16": BFLOAT, "fp32": FLOAT}  # of products, by --precision
WORD = "uint32"


@contextmanager
def axis(tag: str, extent: int) -> Iterator[Expr]:
    """blockIdx.x and the like, around the rest of the kernel."""
    with build.thread_binding(0, extent, thread=tag) as index:
        yield index


def dynamic_shared(size: int, dtype: str) -> Any:
    """The one dynamic allocation of a kernel: may be more than 48 KB, and does not count against static ones. Its C
    declaration is `extern`, so that kernels of one file that share a name must agree on the type: hence the name."""
    return _called(f"shared_{dtype}", build.alloc_buffer((size,), dtype, scope="shared.dyn"))


def static_shared(size: int, dtype: str) -> Any:
    return _called("static_shared", build.alloc_buffer((size,), dtype, scope="shared"))


def local(size: int, dtype: str) -> Any:
    """Registers, as long as every index is known once loops are unrolled."""
    return _called("registers", build.alloc_buffer((size,), dtype, scope="local"))


def _called(name: str, buffer: Any) -> Any:
    """The buffer, with this name in the generated C."""
    return ir_builder.IRBuilder.name(name, buffer)


@contextmanager
def unrolled(extent: int) -> Iterator[Expr]:
    """A loop that the CUDA compiler unrolls; none where the extent is one."""
    if extent == 1:
        yield 0
    else:
        with build.unroll(0, extent) as i:
            yield i


@contextmanager
def when(condition: Any) -> Iterator[None]:
    with build.If(condition), build.Then():
        yield


def only(condition: Any) -> AbstractContextManager[None]:
    """What follows, where the condition holds; True is no condition at all."""
    return nullcontext() if condition is True else when(condition)


def barrier() -> None:
    """All threads of the block arrive, and see what the others have written."""
    build.evaluate(build.tvm_storage_sync("shared"))


def named(value: Expr) -> Expr:
    """The value computed here, once."""
    return value if isinstance(value, int) else build.bind(value)


def both(*conditions: Any) -> Any:
    """All of these; those that are plainly true are left out."""
    rest = [c for c in conditions if c is not True]
    return tirx.all(*rest) if len(rest) > 1 else rest[0] if rest else True


def chosen(condition: Any, value: Expr, otherwise: Expr) -> Expr:
    """`value`, evaluated only where the condition holds."""
    return value if condition is True else build.if_then_else(condition, value, otherwise)


def address(buffer: Any, index: Expr) -> Any:
    return buffer.ptr_to([index])


def copy_async(target: Any, to: Expr, source: Any, at: Expr, condition: Any = True, count: int = 16) -> None:
    """16 bytes (or 8, or 4) from global to shared memory, on their way until waited for; zeros where the condition fails."""
    name = f"cp.async.{'cg' if count == 16 else 'ca'}.shared.global"
    if condition is True:
        ptx(name, address(target, to), address(source, at), count)
        return
    size = tirx.Select(condition, tirx.const(count, WORD), tirx.const(0, WORD))
    at = tirx.Select(condition, at, 0)
    ptx(name, address(target, to), address(source, at), count, size)


def commit() -> None:
    ptx("cp.async.commit_group")


def wait_for_all_but(groups: int) -> None:
    ptx("cp.async.wait_group", groups)


def shuffled(value: Expr, mask: int) -> Expr:
    """The value of the thread of the warp whose number differs in the bits of `mask`. All threads of the warp take part."""
    return build.tvm_warp_shuffle_xor(tirx.const(0xFFFFFFFF, WORD), value, mask, WARP, WARP)
