"""Einsum of two operands as products, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
import zoo
from onnx import TensorProto, helper

from spa.codegen.bundle import compile
from spa.codegen.einsum import products

pytestmark = pytest.mark.codegen

SIZES = dict(zip("abcdehijkntwxy", (2, 3, 5, 7, 4, 3, 6, 8, 9, 10, 5, 11, 2, 13), strict=True))
PRODUCTS = (
    *(
        "ij,jk->ik",
        "ij,kj->ik",
        "ji,jk->ki",
        "td,edh->eth",
        "eth,ehd->etd",
        "bhtd,bhkd->bhtk",
        "bthd,bkhd->bhtk",
        "xyhwc,hkc->xyhwk",
    ),
    *("ij,j->i", "j,jk->k", "abc,abc->ab", "bij,bjk->bki", "abij,jk->abik", "abc,bc->ab"),
)
OTHERS = ("ij,kl->ijkl", "ij,ij->", "abcd,cd->ab")


def network(equations: tuple[str, ...]) -> tuple[zoo.onnx.ModelProto, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    nodes, inputs, outputs, values = [], [], [], {}
    random = np.random.default_rng(0)
    for i, equation in enumerate(equations):
        names = []
        for j, term in enumerate(equation.split("->")[0].split(",")):
            names.append(f"x{i}_{j}")
            shape = [SIZES.get(letter, 4) for letter in term]
            inputs.append(helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape))
            values[names[-1]] = random.standard_normal(shape).astype(np.float32)
        nodes.append(helper.make_node("Einsum", names, [f"y{i}"], equation=equation, name=f"n{i}"))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return zoo.onnx.shape_inference.infer_shapes(model, strict_mode=True), values


def test_as_numpy() -> None:
    model, values = network(PRODUCTS)
    expected = {f"y{i}": np.einsum(e, values[f"x{i}_0"], values[f"x{i}_1"]) for i, e in enumerate(PRODUCTS)}
    bundle = compile(model, "host")
    families = {row["family"] for row in bundle.manifest["targets"]["host"]["kernels"]}
    assert families <= {"batched", "moves"}
    zoo.assert_same(bundle.run(values), expected)


def test_products_alone_are_replaced() -> None:
    model, _ = network((*PRODUCTS, *OTHERS))
    left = [n for n in products(model).graph.node if n.op_type == "Einsum"]
    assert {helper.get_attribute_value(n.attribute[0]).decode() for n in left} == set(OTHERS)
