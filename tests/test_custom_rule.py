"""The example of a rule from outside, as a user would install it: through the entry point `spa.rules`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from few_ops import draw_masks, feed, gone, network, node, reasons, weights
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from oracle_slice import masked

import spa
import spa.coupling.rules as rules
from spa.model import Model
from spa.planning import from_masks

EXAMPLE = Path(__file__).parent.parent / "examples" / "custom_rule"


class GroupedScale(OpRun):  # type: ignore[misc]
    """The operator itself, for onnx's reference implementation."""

    op_domain = "acme"

    def _run(self, x: Any, scale: Any, groups: int | None = None) -> tuple[Any]:
        assert groups == len(scale)
        factor = np.repeat(scale, x.shape[1] // len(scale))
        return (x * factor.reshape(1, -1, *[1] * (x.ndim - 2)),)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = [EntryPoint(n, v, "spa.rules") for n, v in project["entry-points"]["spa.rules"].items()]
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(rules, "entry_points", lambda group: points)
    rules.table.cache_clear()
    yield
    rules.table.cache_clear()


def scaled() -> Model:
    nodes = [node("Conv", "x w0", "h"), node("GroupedScale", "h s", "z", "acme", groups=4), node("Conv", "z wo", "y")]
    model = network(nodes, {"x": (1, 3, 4, 4)}, ["y"], weights(w0=(8, 3, 1, 1), s=(4,), wo=(5, 8, 1, 1)))
    proto = model.to_proto()
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 8, 4, 4]))
    return spa.load(proto)


def run(proto: onnx.ModelProto) -> Any:
    return ReferenceEvaluator(proto, new_ops=[GroupedScale]).run(None, feed(proto, 0))[0]


def test_without_the_rule_the_operator_blocks() -> None:
    assert "no rule for the operator acme::GroupedScale" in reasons(scaled())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("seed", range(4))
def test_with_the_rule_groups_and_channels_within_them_can_go(seed: int) -> None:
    model = scaled()
    coupling = spa.analyze(model)
    assert sorted(g.size for g in coupling.groups) == [2, 4]
    plan = from_masks(coupling, draw_masks(coupling, seed))
    cut = spa.apply(model, plan).model.to_proto()
    assert gone(plan.removed, "s", 0) and gone(plan.removed, "w0", 0) == gone(plan.removed, "wo", 1)
    (op,) = [n for n in cut.graph.node if n.op_type == "GroupedScale"]
    assert op.attribute[0].i == 4 - len(gone(plan.removed, "s", 0))
    np.testing.assert_allclose(run(cut), run(masked(model.to_proto(), plan.removed)), atol=1e-5)


def test_the_rule_takes_less_than_30_lines() -> None:
    lines = (EXAMPLE / "acme_rules.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 30
