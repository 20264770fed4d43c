"""Default schedules keep the numbers, inline what is element-wise, and put rows innermost."""

from __future__ import annotations

import pytest
import zoo

from spa.codegen import tvm_api
from spa.codegen.bundle import compile
from spa.codegen.prepare import interface, prepare
from spa.codegen.schedule import schedule
from spa.codegen.target import resolve

pytestmark = pytest.mark.codegen


def kernels(text: str) -> dict[str, str]:
    model = prepare(zoo.network(text), {}, tvm_api.imported_ops())
    lowered = tvm_api.lower(tvm_api.import_onnx(model, {}, {}), *interface(model), resolve("host"), {})
    return {name: kernel.script() for name, kernel in schedule(lowered, ()).kernels.items()}


def test_elementwise_chains_need_no_buffers() -> None:
    (script,) = kernels(
        "g (float[3,40] x) => (float[3,40] y) { a = Tanh(x) b = Mul(a, x) c = Exp(b) y = Add(c, x) }"
    ).values()
    assert "alloc_buffer" not in script
    assert script.count("T.grid") == 1


def test_convolution_runs_along_rows() -> None:
    text = """g (float[1,8,12,12] x) => (float[1,8,12,12] y) <float[8,8,3,3] w, float[8] b>
    { c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c) }"""
    (script,) = kernels(text).values()
    lines = [line.strip() for line in script.splitlines()]
    update = next(i for i, line in enumerate(lines) if "conv2d_nchw_update" in line)
    assert "xx" in lines[update - 1] and "unroll" in lines[update - 2] and "rc, ry, rx" in lines[update - 3]
    assert lines.count('with T.sblock("compute"):') == 1  # bias and activation in one, inside the row loop
    assert "pad_temp" in script  # not inlined into the innermost loop


def test_long_sums_are_partial_sums_side_by_side() -> None:
    (script,) = kernels("g (float[4,256] x) => (float[4,256] y) { y = Softmax(x) }").values()
    lines = [line.strip() for line in script.splitlines()]
    for stage in ("T_softmax_maxelem_rf", "T_softmax_expsum_rf"):
        at = lines.index(f'with T.sblock("{stage}"):')
        assert "T.int64(16), T.int64(16)" in lines[at - 1]


def test_a_mean_over_many_elements_is_exact_enough() -> None:
    model = zoo.network("g (float[1,2,112,112] x) => (float[1,2,1,1] y) { y = GlobalAveragePool(x) }")
    values = zoo.feeds(model)
    values["x"] += 100
    exact = values["x"].astype("f8").mean((2, 3), keepdims=True)
    assert abs(compile(model, "host").run(values)["y"] / exact - 1).max() < 3e-6
