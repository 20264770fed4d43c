"""Pipelines: text to passes and back, and what users see when the text is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx_text import ops, parse

from spa.cli.passes import passes as passes_command
from spa.errors import UsageError
from spa.model import Model
from spa.passes.fold import Fold
from spa.pipeline import PASSES, Pipeline, Result, available, pass_class


@dataclass(frozen=True)
class Probe:
    """A pass with an option of every kind."""

    name: ClassVar[str] = "probe"
    ratio: float = 0.5
    count: int | None = None
    flag: bool = False
    text: str = "x"
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = (1,)
    choice: Literal["local", "global"] = "local"
    either: int | str = 0

    def run(self, model: Model) -> Result:
        return Result(model, facts={"probe": self.ratio})


@dataclass(frozen=True)
class Strict:
    """A pass that needs an option and checks it."""

    ratio: float
    name: ClassVar[str] = "strict"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError("ratio must lie between 0 and 1")

    def run(self, model: Model) -> Result:
        return Result(model)


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes that somebody else installed, one of them broken, and one that wants the name of ours."""
    found = [
        EntryPoint("probe", f"{__name__}:Probe", "spa.passes"),
        EntryPoint("strict", f"{__name__}:Strict", "spa.passes"),
        EntryPoint("broken", "no_such_module:Broken", "spa.passes"),
        EntryPoint("fold", f"{__name__}:Probe", "spa.passes"),
    ]
    monkeypatch.setattr("spa.pipeline.entry_points", lambda group: [e for e in found if e.group == group])


@pytest.mark.parametrize(
    "text",
    [
        "fold",
        "fold{batchnorm=false},fold",
        "probe{ratio=0.25,count=3,flag=true}",
        'probe{text="a, {b}",words=[a,b]}',
        "probe{numbers=[],either=many}",
        "",
    ],
)
def test_text_round_trip(text: str) -> None:
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    assert Pipeline.parse(str(pipeline)) == pipeline


@given(
    st.builds(
        Probe,
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        count=st.none() | st.integers(),
        flag=st.booleans(),
        text=st.text(),
        words=st.lists(st.text(min_size=1)).map(tuple),
        numbers=st.lists(st.integers()).map(tuple),
        choice=st.sampled_from(["local", "global"]),
        either=st.integers(),
    )
)
def test_any_options_survive_the_text(probe: Probe) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PASSES, "probe", f"{__name__}:Probe")
        assert Pipeline.parse(str(Pipeline((probe, probe)))) == Pipeline((probe, probe))


def test_spaces_do_not_matter() -> None:
    assert str(Pipeline.parse(" probe { ratio = 0.25 , flag = yes } , fold ")) == "probe{ratio=0.25,flag=true},fold"


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("fould", "no pass is called 'fould'", "did you mean 'fold'?"),
        ("zzz", "no pass is called 'zzz'", "spa passes"),
        ("fold{batchnrm=true}", "the pass 'fold' has no option 'batchnrm'", "did you mean 'batchnorm'?"),
        ("fold{zzz=1}", "the pass 'fold' has no option 'zzz'", "it has constants, "),
        ("fold{batchnorm=maybe}", "'maybe' is neither true nor false", ""),
        ("fold{max_bytes=1.5}", "'1.5' is not a whole number", ""),
        ("probe{ratio=half}", "'half' is not a number", ""),
        ("probe{choice=globl}", "'globl' is no choice for probe{choice=...}", "did you mean 'global'?"),
        ("probe{flag=true,flag=false}", "the option 'flag' of 'probe' is given twice", ""),
        ("probe{flag}", "cannot read the options of 'probe': 'flag'", "name{option=value,...}"),
        ("probe{flag=true", "cannot read the pipeline from column 1", "name{option=value,...}"),
        ("fold,,fold", "cannot read the pipeline from column 6", "name{option=value,...}"),
        ("fold,", "cannot read the pipeline from column 6", "name{option=value,...}"),
        ("fold fold", "cannot read the pipeline from column 1", "name{option=value,...}"),
        ("strict", "the pass 'strict' needs ratio", "strict{ratio=...}"),
        ("strict{ratio=2}", "the pass 'strict' rejects its options: ratio must lie between 0 and 1", ""),
        ("broken", "the pass 'broken' cannot be imported: No module named 'no_such_module'", ""),
    ],
)
def test_errors_say_what_and_what_to_try(text: str, what: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Pipeline.parse(text)
    assert caught.value.what.startswith(what)
    assert hint in caught.value.hint


def test_run_passes_the_model_on_and_merges_facts() -> None:
    model = parse("agraph (float[N,3] x) => (float[N,3] y) { t = Identity(x)  y = Relu(t) }")
    result = Pipeline.parse("fold,probe{ratio=0.25}").run(model)
    assert ops(result.model) == ["Relu"]
    assert ops(model) == ["Identity", "Relu"]
    assert result.plan is None
    assert result.facts["probe"] == 0.25 and result.facts["fold"]["identities"] == 1


def test_an_empty_pipeline_changes_nothing() -> None:
    model = parse("agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert Pipeline().run(model).model is model


def test_passes_from_outside_do_not_shadow_ours() -> None:
    assert pass_class("probe") is Probe
    assert pass_class("fold") is Fold
    assert available()["fold"] == PASSES["fold"]


def test_the_table_names_classes_that_exist() -> None:
    for name in PASSES:
        assert pass_class(name).name == name


def test_importing_the_table_imports_no_pass() -> None:

    code = "import sys, spa.pipeline; print({'numpy', 'onnx', 'onnx_ir'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_passes_verb_lists_ours_and_others() -> None:
    table = CliRunner().invoke(passes_command, [], catch_exceptions=False)
    assert table.exit_code == 0
    assert "batchnorm: bool = true" in table.output
    assert "ratio: float = required" in table.output
    rows: dict[str, Any] = {
        r["name"]: r for r in json.loads(CliRunner().invoke(passes_command, ["--json"]).output)["passes"]
    }
    assert {"fold", "probe", "strict", "broken"} <= set(rows)
    assert "cannot be imported" in rows["broken"]["error"]
    assert rows["probe"]["options"][0] == {"name": "ratio", "type": "float", "default": "0.5", "required": False}


def test_entry_points_of_this_environment_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spa.pipeline.entry_points", importlib.metadata.entry_points)
    assert set(PASSES) <= set(available())
