"""One row times a sparse or quantised matrix: every form on every instruction set against numpy, and who is asked for what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zoo
from onnx import helper, numpy_helper

from spa.codegen.bundle import Bundle, compile
from spa.codegen.kernels.isa import AVX512, Isa
from spa.codegen.kernels.matvec import choose
from spa.runtime.load import target_of
from spa.runtime.run import open_engine
from spa.runtime.toolchain import is_aarch64

pytestmark = pytest.mark.codegen
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A matrix, and the form in which it is to be tried where the instruction set has it."""

    form: str
    matrix: Array


def sparse(k: int, m: int, density: float) -> Array:
    random = np.random.default_rng(k * m)
    return (random.standard_normal((k, m)) * (random.random((k, m)) < density)).astype(np.float32)


def grouped(k: int, m: int, n: int, of: int) -> Array:
    """N of M inputs per feature."""
    random = np.random.default_rng(k * m)
    order = random.permuted(np.broadcast_to(np.arange(of)[None, :, None], (k // of, of, m)), axis=1)
    return (random.standard_normal((k, m)) * (order.reshape(k, m) < n)).astype(np.float32)


def quantised(matrix: Array, bits: int, groups: int = 1) -> Array:
    """On a symmetric grid per feature and group of inputs, as DequantizeLinear gives it."""
    k, m = matrix.shape
    blocks = matrix.reshape(groups, k // groups, m)
    scales = (np.abs(blocks).max(1, keepdims=True) / (2 ** (bits - 1) - 1)).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1))
    return np.asarray(np.round(blocks / scales) * scales, np.float32).reshape(k, m)


CASES = (
    *(Case("bitmap", sparse(k, m, d)) for k, m, d in ((37, 64, 0.5), (1, 16, 0.5), (64, 96, 0.3), (5, 48, 0))),
    *(Case("bitmap", sparse(k, m, d)) for k, m, d in ((31, 37, 1), (101, 83, 0.5), (7, 1000, 0.02))),
    *(Case(f"int{b}", quantised(sparse(64, 64, 1), b)) for b in (8, 4)),
    *(Case(f"int{b}", quantised(sparse(37, 31, 0.7), b)) for b in (8, 4)),
    *(Case(f"int{b}", quantised(sparse(96, 100, 1), b, 3)) for b in (8, 4)),
    *(Case(f"int{b}", quantised(sparse(2, 17, 1), b)) for b in (8, 4)),
    *(Case(f"2:4 int{b}", quantised(grouped(64, 80, 2, 4), b)) for b in (8, 4)),
    *(Case(f"2:4 int{b}", quantised(grouped(96, 33, 2, 4), b, 2)) for b in (8, 4)),
    *(Case(f"{n}:{of}", grouped(of * 6, 70, n, of)) for n, of in ((1, 2), (2, 4), (1, 4), (4, 8), (3, 8))),
    *(Case(f"{n}:{of}", grouped(of * 5, 19, n, of)) for n, of in ((1, 2), (2, 4), (5, 8), (2, 16), (5, 16))),
)


def network(matrices: list[Array]) -> Any:
    nodes, inputs, outputs, constants = [], [], [], []
    for i, matrix in enumerate(matrices):
        k, m = matrix.shape
        constants += [numpy_helper.from_array(np.linspace(-1, 1, m, dtype=np.float32), f"b{i}")]
        constants += [numpy_helper.from_array(matrix, f"w{i}")]
        nodes.append(helper.make_node("Gemm", [f"x{i}", f"w{i}", f"b{i}"], [f"p{i}"], name=f"n{i}"))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"y{i}"]))
        inputs.append(helper.make_tensor_value_info(f"x{i}", 1, (1, k)))
        outputs.append(helper.make_tensor_value_info(f"y{i}", 1, (1, m)))
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def expected(matrices: list[Array], values: dict[str, Array]) -> dict[str, Array]:
    found = {}
    for i, matrix in enumerate(matrices):
        bias = np.linspace(-1, 1, matrix.shape[1])
        found[f"y{i}"] = np.maximum(values[f"x{i}"].astype(np.float64) @ matrix + bias, 0).astype(np.float32)
    return found


def formats(bundle: Bundle, target: str) -> dict[str, str]:
    return {row["layer"]: row["format"] for row in bundle.manifest["targets"][target]["kernels"]}


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case in its form, however slow that is predicted to be."""
    wanted = {case.matrix.tobytes(): case.form for case in CASES}
    every = choose.candidates

    def only(isa: Isa, matrix: Array) -> Iterator[choose.Candidate]:
        return (c for c in every(isa, matrix) if c.format.name == wanted[matrix.tobytes()])

    monkeypatch.setattr(choose, "candidates", only)
    monkeypatch.setattr(choose, "WORTH", np.inf)


CODES = {case.form for case in CASES if case.form in ("int8", "int4")}
GROUPS = {case.form for case in CASES if ":" in case.form}
FOURS = {form for form in GROUPS if form[2] in "24"}
FORMS = {  # by the place's name: what it has kernels for; the others have codes only
    "x86-64-v4": CODES | GROUPS | {"bitmap"},
    "x86-64-v3": CODES | {g for g in GROUPS if ":16" not in g} | {"bitmap"},
    "arm": CODES | FOURS,
}


@zoo.everywhere
@pytest.mark.usefixtures("forced")
def test_every_form(place: zoo.Place) -> None:
    has = FORMS.get(str(place), CODES)
    matrices = [case.matrix for case in CASES]
    model = network(matrices)
    values = zoo.feeds(model)
    bundle = place.compile(model, use_cache=False)
    zoo.assert_same(place.run(bundle, values), expected(matrices, values))
    found = formats(bundle, place.target)
    for i, case in enumerate(CASES):
        assert found[f"n{i}"] == (case.form if case.form in has else "dense"), case.form


@pytest.mark.usefixtures("forced")
def test_threads_change_no_bit() -> None:
    matrices = [case.matrix for case in CASES]
    model = network(matrices)
    values = zoo.feeds(model)
    bundle = compile(model, "host", use_cache=False)
    results = []
    for threads in (1, 3):
        engine = open_engine(target_of(bundle.path, "host"), threads=threads)
        results.append(engine.run(values))
        engine.close()
    for name, value in results[0].items():
        assert (value == results[1][name]).all(), name


LARGE = {
    "half": sparse(512, 768, 0.5),
    "tenth": sparse(512, 768, 0.1),
    "most": sparse(512, 768, 0.95),
    "none": sparse(512, 768, 1),
    "small": sparse(64, 64, 0.5),
    "int8": quantised(sparse(512, 768, 1), 8),
    "int4": quantised(sparse(512, 768, 1), 4, 16),
    "2:4": grouped(512, 768, 2, 4),
    "1:4 int8": quantised(grouped(512, 768, 1, 4), 8),
}


@pytest.mark.parametrize("target", ["host", "arm", "wasm"])
def test_the_fastest_form_is_chosen_and_said(target: str) -> None:
    bundle = compile(
        network(list(LARGE.values())),
        target,
        host_level=None if is_aarch64() else "x86-64-v4" if target == "host" else None,
    )
    rows = {row["layer"]: row for row in bundle.manifest["targets"][target]["kernels"]}
    found = {name: rows[f"n{i}"]["format"] for i, name in enumerate(LARGE)}
    assert found["none"] == found["most"] == found["small"] == "dense"
    assert found["int8"] == "int8" and found["int4"] == "int4"
    if target == "host" and not is_aarch64():
        assert found["half"] == found["tenth"] == "bitmap"
        assert found["2:4"] == "2:4" and found["1:4 int8"] == "1:4 int8"
    for row in rows.values():
        assert row["family"] != "matvec" or "bytes per weight: dense" in row["why"]


def test_predictions_follow_the_bytes() -> None:
    """A form of fewer zeros is never predicted to be faster."""
    took = [min(c.cycles for c in choose.candidates(AVX512, sparse(512, 768, d))) for d in (0.2, 0.4, 0.6, 0.8)]
    assert took == sorted(took)
