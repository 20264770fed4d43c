"""spa explain: groups in words, ways to what blocks them, pictures, and bisection of a prune that fails."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from few_ops import network, node, weights
from hypothesis import given
from hypothesis import strategies as st

import spa
import spa.coupling.analysis as analysis
from spa.bisection import bisect, ddmin
from spa.cli.explain import explain
from spa.coupling.axes import Axes, Op
from spa.coupling.explain import REMEDIES, find, remedy
from spa.coupling.picture import NODES, draw
from spa.coupling.rules import Rule, Table
from spa.errors import UsageError
from spa.model import Model

SVG = "{http://www.w3.org/2000/svg}"


def residual(blocks: int = 1, name: str = "r") -> Model:
    """x w0 -> h; h + relu(h w) in blocks; -> y. Returns a hidden axis tied through additions."""
    nodes = [node("MatMul", "x w0", "h0")]
    constants = weights(w0=(5, 8), wo=(8, 3))
    for k in range(blocks):
        constants |= weights(k, **{f"u{k}": (8, 6), f"d{k}": (6, 8)})
        nodes += [
            node("MatMul", f"h{k} u{k}", f"{name}{k}_up"),
            node("Relu", f"{name}{k}_up", f"{name}{k}_act"),
            node("MatMul", f"{name}{k}_act d{k}", f"{name}{k}_down"),
            node("Add", f"h{k} {name}{k}_down", f"h{k + 1}"),
        ]
    nodes.append(node("MatMul", f"h{blocks} wo", "y"))
    return network(nodes, {"x": (2, 5)}, ["y"], constants)


def test_overview_lists_groups_and_what_blocks_the_others() -> None:
    text = spa.analyze(residual()).explain()
    assert text.splitlines()[0] == "2 groups of coupled channels can be pruned, 2 blocked"
    assert "w0:1      8 channels, slices of 4 constants" in text
    assert "blocked: wo:1: output 'y' of the network" in text


def test_a_group_names_its_constants_and_what_ties_them() -> None:
    text = spa.analyze(residual()).explain("w0:1")
    for line in ("MatMul 'h0': w0 axis 1", "u0 axis 0", "d0 axis 1", "wo axis 0"):
        assert line in text
    assert "Add 'h1', which adds them up: h0, r0_down" in text


@pytest.mark.parametrize("name", ["w0", "h0", "h1", "w0:1", "u0:0"])
def test_weights_values_nodes_and_axes_find_the_group(name: str) -> None:
    assert "w0:1" in [g.id for g in find(spa.analyze(residual()), name)[0]]


def test_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no group, weight, value or node is called 'nobody'"):
        spa.analyze(residual()).explain("nobody")


def test_a_blocked_axis_tells_the_way_and_the_remedy() -> None:
    nodes = [node("MatMul", "x w0", "h"), node("Softmax", "h", "s", axis=-1), node("MatMul", "s wo", "y")]
    coupling = spa.analyze(network(nodes, {"x": (2, 5)}, ["y"], weights(w0=(5, 8), wo=(8, 3))))
    text = coupling.explain("w0:1")
    assert "because: Softmax over this axis (Softmax 's')" in text
    assert "--allow-approximate" in text
    assert text.index("w0, axis 1") < text.index("h, axis 1, through MatMul 'h'") < text.index("where it must stay")
    assert "blocked; the way there" in coupling.explain("s:1")


def test_every_remedy_fits_a_reason_that_is_given() -> None:
    """Reasons are texts: one that is reworded must not silently lose its remedy."""
    files = Path(analysis.__file__).parent.rglob("*.py")
    sources = "\n".join(p.read_text() for p in files if p.name != "explain.py")
    for part, words in REMEDIES:
        assert part.rstrip("'") in sources and words, part
    nodes = [node("MatMul", "x w0", "h"), node("Mystery", "h", "y", "some.where")]
    model = network(nodes, {"x": (2, 5)}, ["y"], weights(w0=(5, 8)))
    proto = model.to_proto()
    proto.opset_import.append(onnx.helper.make_opsetid("some.where", 1))
    blocked = spa.analyze(spa.load(proto)).blocked
    assert any("entry point spa.rules" in remedy(r) for b in blocked for r in b.reasons)


# -- pictures


def parse_svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


@given(blocks=st.integers(1, 20))
def test_pictures_are_well_formed_and_boxes_do_not_overlap(blocks: int) -> None:
    coupling = spa.analyze(residual(blocks))
    group = coupling.group("w0:1")
    assert group is not None
    root = parse_svg(draw(coupling, group))
    boxes = [{k: float(r.attrib[k]) for k in ("x", "y", "width", "height")} for r in root.findall(f"{SVG}g/{SVG}rect")]
    assert 1 < len(boxes) <= NODES
    for i, a in enumerate(boxes):
        assert a["x"] >= 0 and a["x"] + a["width"] <= float(root.attrib["width"])
        assert a["y"] + a["height"] <= float(root.attrib["height"])
        for b in boxes[:i]:
            apart = (
                a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
                or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]
            )  # fmt: skip
            assert apart
    assert len(root.findall(f"{SVG}path[@class='tied']")) >= len(boxes) - 1


def test_names_are_escaped() -> None:
    model = residual(name='<b>&"x"')
    coupling = spa.analyze(model)
    group = coupling.group("w0:1")
    assert group is not None
    titles = [t.text for t in parse_svg(draw(coupling, group)).iter(f"{SVG}title")]
    assert '<b>&"x"0_up' in titles


# -- bisection


@given(
    st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1, max_size=4)))
)
def test_ddmin_finds_exactly_what_is_needed(case: tuple[int, set[int]]) -> None:
    n, needed = case
    assert set(ddmin(range(n), lambda some: needed <= set(some))) == needed


def gates() -> Model:
    """Two chains of which one sums a sigmoid over its channels."""
    nodes = [
        node("MatMul", "x w0", "a"), node("Relu", "a", "ar"), node("MatMul", "ar v0", "p"),
        node("MatMul", "x w1", "b"), node("Sigmoid", "b", "bs"), node("ReduceSum", "bs last", "q", keepdims=1),
        node("Add", "p q", "y"),
    ]  # fmt: skip
    constants = weights(w0=(5, 8), v0=(8, 3), w1=(5, 6)) | {"last": np.array([-1], np.int64)}
    return network(nodes, {"x": (2, 5)}, ["y"], constants)


def test_bisection_says_when_nothing_fails() -> None:
    fault = bisect(gates(), spa.analyze(gates()))
    assert fault.groups == [] and fault.pruned == 1
    assert str(fault).startswith("nothing fails: 1 group pruned")


def test_bisection_finds_the_group_and_the_node_of_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    right = analysis.table()

    def wrong(op: Op, g: Axes) -> None:
        """Says that sigmoid(0) is zero."""
        for axis in range(2):
            g.same((op.inputs[0], axis), (op.out, axis))

    def table() -> Table:
        return right | {("", "Sigmoid"): Rule(wrong)}

    monkeypatch.setattr(analysis, "table", table)
    fault = bisect(gates(), spa.analyze(gates()))
    assert fault.groups == ["w1:1"] and fault.pruned == 2
    assert "'q' (ReduceSum)" in fault.where
    assert "1 of 2 groups fail together" in str(fault)


# -- the command


def call(*arguments: str) -> Any:
    return CliRunner().invoke(explain, list(arguments), catch_exceptions=False, standalone_mode=False)


def test_the_command_writes_text_json_and_pictures(tmp_path: Path) -> None:
    path, picture = str(residual().save(tmp_path / "m.onnx")), tmp_path / "g.svg"
    assert "groups of coupled channels" in call(path).output
    document = json.loads(call(path, "w0:1", "--json").output)
    assert document["groups"][0]["nodes"] and document["schema"] == 1
    call(path, "w0:1", "--svg", str(picture))
    assert parse_svg(picture.read_text()).tag == f"{SVG}svg"
    with pytest.raises(UsageError, match="exists"):
        call(path, "w0:1", "--svg", str(picture))
    with pytest.raises(UsageError, match="one group"):
        call(path, "--svg", str(tmp_path / "other.svg"))
    assert call(path, "--bisect").return_value == 0


def test_the_examples_of_the_documentation(models: Path) -> None:
    """Every `$ spa explain` in docs/explain.md prints what stands below it."""
    text = (models.parent / "docs" / "explain.md").read_text(encoding="utf-8")
    blocks = re.findall(r"    \$ spa explain models/(.*)\n((?:    .*\n)+)", text)
    assert len(blocks) == 3
    for command, expected in blocks:
        name, *rest = command.split()
        got = re.sub(r"error \S+ of", "error E of", call(str(models / name), *rest).output)
        wanted = re.sub(r"error \S+ of", "error E of", textwrap.dedent(expected))
        assert [line.strip() for line in got.splitlines()] == [line.strip() for line in wanted.splitlines()]
