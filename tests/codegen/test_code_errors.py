"""Where TVM cannot generate code, the error names the kernel at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spa.codegen import tvm_api
from spa.codegen.kernels.vector import argument, function, store
from spa.codegen.program import Program
from spa.codegen.target import host
from spa.codegen.tvm_api import tirx
from spa.codegen.tvm_api.planned_calls import Lowered
from spa.errors import Unsupported

pytestmark = pytest.mark.codegen


def kernel(value: Any) -> Any:
    """y[0] = value(x[0])"""
    with function() as f:
        x, y = argument("x", 4), argument("y", 4)
        store(y, value(x[0]), 0, 1)
    return f.primfunc


def test_the_kernel_at_fault_is_named(tmp_path: Path) -> None:
    unknown = lambda x: tirx.call_intrin("float32", "tirx.tvm_thread_allreduce", x)  # noqa: E731
    kernels = {"relu": kernel(lambda x: x + x), "resize2d_concatenate": kernel(unknown)}
    lowered = Lowered(Program((), (), (), (), (), ()), kernels)
    with pytest.raises(Unsupported, match="resize2d_concatenate") as refused:
        tvm_api.emit(lowered, host(), {name: f"k_{name}" for name in kernels}, tmp_path)
    assert refused.value.exit_code == 3 and refused.value.hint
