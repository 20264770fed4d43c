"""The table of rules against ONNX's list of operators."""

from __future__ import annotations

import pytest
from onnx import defs

from spa.coupling.rules import table

# nobody has looked at these yet: what they touch is blocked with "no rule for the operator"
WITHOUT_RULE = {
    "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence",
}  # fmt: skip


OPSET = 28  # the newest that has been looked at


def operators() -> set[str]:
    """Every operator of ai.onnx up to that opset, in any version."""
    return {s.name for s in defs.get_all_schemas_with_history() if s.domain == "" and s.since_version <= OPSET}


def test_operators_without_a_rule_are_these() -> None:
    assert operators() - {kind for domain, kind in table() if domain == ""} == WITHOUT_RULE


@pytest.mark.skipif(defs.onnx_opset_version() < OPSET, reason="an older onnx lacks the newest operators")
def test_rules_name_operators_that_exist() -> None:
    beyond = {"SimplifiedLayerNormalization"}  # onnxruntime's, in the default domain
    assert {kind for domain, kind in table() if domain == ""} - operators() <= beyond


def test_what_a_rule_blocks_is_said() -> None:
    assert all(rule.note for rule in table().values())
