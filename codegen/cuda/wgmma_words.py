"""Words of Hopper's warpgroup products beside those of `words`: descriptors, the products, what orders them.

A warpgroup is four warps, 128 threads. Its products run on their own: they read shared memory and add to registers until
`finish_all_but` says that they are done; nobody may touch either before. `ready` comes before the first product and after
every other use of its registers; `seen_by_products` after writes to shared memory, before the barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spa.codegen.cuda.words import BFLOAT, HALF, address, named
from spa.codegen.kernels.vector import Expr
from spa.codegen.tvm_api import tirx
from spa.codegen.tvm_api.cuda import device_function, ptx, shared_address

WARPGROUP = 128  # threads
ROWS = 64  # of Y that one product computes
PTX_NAMES = {HALF: "f16", BFLOAT: "bf16"}
QUAD = "uint64"


def shared_number(buffer: Any, index: Expr) -> Expr:
    """The byte address of an element in shared memory, as a number."""
    return named(shared_address(address(buffer, index)))


def described(number: Expr) -> Expr:
    """A shared byte address as the part of a descriptor that it is: without its lowest four bits."""
    bits = tirx.const(0x3FFFF, "uint32")
    return named(tirx.Cast(QUAD, (number & bits) >> tirx.const(4, "uint32")))


def moved(part: Expr, size: Expr) -> Expr:
    """An address of `described`, `size` bytes further on."""
    return part + tirx.Cast(QUAD, size // 16) if not isinstance(size, int) else part + tirx.const(size // 16, QUAD)


def ready() -> None:
    ptx("wgmma.fence.sync.aligned")


def commit_products() -> None:
    ptx("wgmma.commit_group.sync.aligned")


def finish_all_but(groups: int) -> None:
    ptx("wgmma.wait_group.sync.aligned", groups)


def settle() -> None:
    """All products are done. The fence keeps ptxas from moving conversions of their sums up, before the wait: it would then
    run the products one by one, and say so (C7514)."""
    finish_all_but(0)
    ptx("fence.acq_rel.cta")


def seen_by_products() -> None:
    """What this thread has written to shared memory, and waited for, can be read by products after the next barrier."""
    ptx("fence.proxy.async.shared::cta")


def multiply(
    sums: Sequence[Expr],
    a: Expr,
    b: Expr,
    operand: str,
    n_last: bool,
    metadata: Expr | None = None,
    selector: int = 0,
) -> None:
    """sums += A B: A 64 x 16 and B 16 x n by their descriptors, or A 64 x 32 of 2:4 and B 32 x n. `n_last`: B is MN-major."""
    count, kind = len(sums), PTX_NAMES[operand]
    sparse = metadata is not None
    shape = f"m64n{2 * count}k{32 if sparse else 16}"
    name = f"wgmma{'_sp' if sparse else ''}_{shape}_{kind}_{selector}{int(n_last)}"
    outs = ", ".join(f"%{i}" for i in range(count))
    ins = f"%{count}, %{count + 1}" + (f", %{count + 2}, {selector}" if sparse else "")
    mnemonic = f"wgmma.mma_async{'.sp' if sparse else ''}.sync.aligned.{shape}.f32.{kind}.{kind}"
    text = f"{{ .reg .pred p; setp.ne.b32 p, 1, 0; {mnemonic} {{{outs}}}, {ins}, p, 1, 1, 0, {int(n_last)}; }}"
    parameters = ", ".join([*(f"float& d{i}" for i in range(count)), "uint64_t a", "uint64_t b", *["uint e"] * sparse])
    bound = ", ".join(f'"+f"(d{i})' for i in range(count))
    given = '"l"(a), "l"(b)' + (', "r"(e)' if sparse else "")
    source = f"__forceinline__ __device__ void {name}({parameters}) {{\n  asm volatile({_quoted(text)} : {bound} : {given});\n}}\n"
    device_function(name, source, *sums, a, b, *([metadata] if sparse else []))


def store_transposed(number: Expr, sums: Sequence[Expr], kind: str) -> None:
    """Four matrices 8 x 8 of sums, rounded, each turned over: thread 8 q + r gives the shared address of row r of matrix q as
    it lies there; a thread holds elements 2 (lane % 4) and the next of column lane / 4: two of `sums` for each matrix."""
    name = f"store_transposed_{PTX_NAMES[kind]}"
    rounded = " ".join(f"cvt.rn.{PTX_NAMES[kind]}x2.f32 r{q}, %{2 * q + 2}, %{2 * q + 1};" for q in range(4))
    text = f"{{ .reg .b32 r<4>; {rounded} stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {{r0, r1, r2, r3}}; }}"
    parameters = ", ".join(["uint at", *(f"float s{i}" for i in range(8))])
    given = ", ".join(['"r"(at)', *(f'"f"(s{i})' for i in range(8))])
    source = f"__forceinline__ __device__ void {name}({parameters}) {{\n  asm volatile({_quoted(text)} :: {given} : {_quoted('memory')});\n}}\n"
    device_function(name, source, number, *sums)


def copy_chunk(target: Any, to: Expr, source: Any, at: Expr) -> None:
    """16 bytes, at once. (TVM's vectors lose sight of what lies side by side behind an exclusive or.)"""
    source_code = "__forceinline__ __device__ void copy_chunk(void* to, const void* from) {\n  *(uint4*)to = *(const uint4*)from;\n}\n"
    device_function("copy_chunk", source_code, address(target, to), address(source, at))


def _quoted(text: str) -> str:
    return f'"{text}"'


def hold(register: Expr) -> None:
    """The compiler must not move uses of this register across here: it does not know that products run on their own."""
    source = '__forceinline__ __device__ void hold(float& r) {\n  asm volatile("" : "+f"(r) :: "memory");\n}\n'
    device_function("hold", source, register)
