"""Budgets set by what comes out: the bisection, a user's metric, and every way in which that metric can be wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import onnxruntime
from test_prune_cli import call

import spa
import spa.cli
from spa.drift import LEVELS, Knob, plan_by_drift, plan_by_metric, search
from spa.errors import CheckFailed, UsageError
from spa.metric import as_metric
from spa.model import Model
from spa.planning import Plan

FOLDER = Path(__file__).parent.parent / "models"
DATA = np.load(FOLDER / "digits.npz")
CALIB = {"x": DATA["calib_x"][:128]}


def accuracy(network: Any) -> float:
    """Of a path or a model, on images that neither training nor calibration saw."""
    proto = network.to_proto() if isinstance(network, Model) else onnx.load(network)
    return float((onnxruntime(proto, {"x": DATA["test_x"]})[0].argmax(1) == DATA["test_y"]).mean())


MODULE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_keep_accuracy import accuracy
import spa

def path_only(path):
    return accuracy(path)

def of_model(model: spa.Model) -> float:
    return accuracy(model)

def parameters(path):
    return spa.load(path).inspect().params

CALLS = []

def only_once(path):
    CALLS.append(path)
    return 1.0 if len(CALLS) == 1 else 0.0

def worse_than_nothing(path):
    return float("nan")

def text(path):
    return "high"

def nothing(path):
    pass

def broken(path):
    return [][1]

def stopped(path):
    raise KeyboardInterrupt

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of metrics, imported afresh."""
    import sys

    monkeypatch.delitem(sys.modules, "metrics_of_mine", raising=False)
    (tmp_path / "metrics_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keep(function: str, loss: Any, out: Path, *more: Any) -> tuple[int, str, str]:
    options = ["--eval", f"metrics_of_mine:{function}", "--keep-accuracy", loss, *more]
    return call("prune", FOLDER / "digits.onnx", "-o", out, *options)


def test_the_accuracy_asked_for_is_kept(here: Path) -> None:
    out = here / "o.onnx"
    np.savez(here / "calib.npz", **CALIB)
    code, stdout, stderr = keep("path_only", 0.01, out, "--calib", here / "calib.npz", "--json")
    document = json.loads(stdout)
    found = document["drift"]["metric"]
    assert code == 0 and found["before"] == pytest.approx(accuracy(FOLDER / "digits.onnx"))
    assert found["after"] == pytest.approx(accuracy(out)) and found["after"] >= found["before"] - 0.01
    share = document["after"]["macs"] / document["before"]["macs"]
    assert share < 0.6
    trials = found["trials"]
    assert min(t["macs"] for t in trials if t["fits"]) == pytest.approx(share, abs=1e-3)
    assert all(t["fits"] == (t["value"] >= found["before"] - 0.01) for t in trials)
    assert stderr.count("of the MACs: metrics_of_mine:path_only") == len(trials) <= 9
    assert document["drift"]["top1"] > 0.9  # judged as well
    assert "metrics_of_mine:path_only: 0.9933 before" in keep("path_only", 0.01, out, "-n", "--force")[1]


def test_without_calibration_there_is_a_warning_and_more_goes_for_more(here: Path) -> None:
    left = []
    for loss in (0.0, 0.3):
        code, stdout, stderr = keep("of_model", loss, here / f"{loss}.onnx", "--json")
        assert code == 0 and "without --calib nothing is mended" in stderr
        left.append(json.loads(stdout)["after"]["macs"])
    assert left[1] < left[0]
    assert accuracy(here / "0.3.onnx") >= accuracy(FOLDER / "digits.onnx") - 0.3


def test_where_nothing_may_go_the_network_is_written_as_it_is(here: Path) -> None:
    code, stdout, _ = keep("parameters", 0, here / "o.onnx", "--no-fold", "--json")
    document = json.loads(stdout)
    assert code == 0 and document["pruned_groups"] == 0 and document["after"] == document["before"]
    assert document["drift"]["metric"]["after"] == document["drift"]["metric"]["before"]


def test_where_even_nothing_removed_fails_it_says_how_far_it_got(here: Path) -> None:
    code, _, message = keep("only_once", 0.5, here / "o.onnx")
    assert code == 1 and "is 0 with nothing removed, 0.5 wanted" in message and "kept it is 0.0" in message
    assert not (here / "o.onnx").exists()


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("worse_than_nothing", 1, "of the network as it is is nan"),
        ("broken", 1, "raised IndexError"),
        ("text", 2, "returned str 'high', not a number"),
        ("nothing", 2, "returned NoneType None, not a number"),
        ("number", 2, "is int, not a function"),
        ("missing", 2, "finds no 'missing'"),
    ],
)
def test_a_metric_that_is_none_is_named(here: Path, function: str, code: int, words: str) -> None:
    for option in (["--keep-accuracy", 0.01], ["--macs", 0.5]):
        found, _, message = call(
            "prune", FOLDER / "digits.onnx", "-o", here / "o.onnx", "--eval", f"metrics_of_mine:{function}", *option
        )
        assert found == code and words in message and len(message.splitlines()) <= 3
    assert not (here / "o.onnx").exists()
    assert function != "broken" or "metrics_of_mine.py, line" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eval", "nowhere_to_be_found:f", "--keep-accuracy", 0.1], "cannot import 'nowhere_to_be_found'"),
        (["--eval", "folder/metric.py:f", "--keep-accuracy", 0.1], "folder.metric:f"),
        (["--eval", "metrics_of_mine", "--keep-accuracy", 0.1], "is not module:function"),
        (["--keep-accuracy", 0.1], "--eval module:function"),
        (["--eval", "metrics_of_mine:path_only", "--keep-accuracy", -0.1], "which is no amount"),
    ],
)
def test_usage(here: Path, arguments: list[Any], words: str) -> None:
    code, _, message = call("prune", FOLDER / "digits.onnx", "-n", *arguments)
    assert code == 2 and words in message
    both = call("prune", FOLDER / "digits.onnx", "-n", *arguments, "--eval", "metrics_of_mine:path_only", "--macs", 0.5)
    assert both[0] == 2


def test_a_metric_beside_another_budget_is_told_before_and_after(here: Path) -> None:
    out = here / "o.onnx"
    options = ["--ratio", 0.25, "--eval", "metrics_of_mine:path_only", "--json"]
    code, stdout, _ = call("prune", FOLDER / "digits.onnx", "-o", out, *options)
    found = json.loads(stdout)["drift"]["metric"]
    assert code == 0 and found["name"] == "metrics_of_mine:path_only"
    assert (found["before"], found["after"]) == (accuracy(FOLDER / "digits.onnx"), accuracy(out))


def test_an_interrupt_in_the_metric_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (here / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "temporary"))
    arguments = ["--eval", "metrics_of_mine:stopped", "--keep-accuracy", "0.01"]
    with pytest.raises(SystemExit) as stop:
        spa.cli.main(["prune", str(FOLDER / "digits.onnx"), "-o", str(here / "o.onnx"), *arguments])
    assert stop.value.code == 130
    assert not (here / "o.onnx").exists() and not list((here / "temporary").iterdir())


def test_metrics_from_python() -> None:
    model = spa.load(FOLDER / "digits.onnx")
    coupling = spa.analyze(model)
    seen: list[float] = []

    def parameters(model: spa.Model) -> np.float32:
        seen.append(model.inspect().params)
        return np.float32(seen[-1])

    plan, facts = plan_by_metric(model, coupling, parameters, 20_000.0, fold=False)
    left = spa.apply(model, plan).model.inspect().params
    assert model.inspect().params - 20_000 <= left < model.inspect().params - 15_000
    assert facts["after"] == left and facts["before"] == seen[0]
    assert len(seen) == len(set(seen))  # the same network is not measured twice
    with pytest.raises(UsageError, match="returned bool"):
        as_metric(lambda path: True)(model)
    with pytest.raises(CheckFailed, match="raised ZeroDivisionError: division"):
        as_metric(lambda path: 1 / 0)(model)
    assert as_metric(as_metric(parameters)).name.endswith("parameters")


@dataclass(frozen=True)
class Dial(Knob):
    """Positions that come to `distinct` different plans, each network known by its number; none beyond `end`."""

    distinct: int = LEVELS
    end: int = LEVELS
    made: list[int] = field(default_factory=list)

    def network(self, plan: Plan) -> Model:
        self.made.append(plan.removed["w"]["0"][0])
        return self.model


@given(
    least=st.floats(0, 1), distinct=st.sampled_from([1, 3, 40, LEVELS]), end=st.integers(0, LEVELS), nan=st.booleans()
)
def test_the_search_finds_the_last_position_that_fits(least: float, distinct: int, end: int, nan: bool) -> None:
    model = spa.load(FOLDER / "cancer.onnx")

    def plan_at(level: int) -> Plan:
        if level > end:
            raise CheckFailed("so little cannot be kept")
        return Plan({}, {"w": {"0": [level * distinct // LEVELS]}})

    dial = Dial(model, plan_at, None, None, False, distinct, end)

    def measure(network: Model) -> float:
        value = 1 - dial.made[-1] / distinct
        return float("nan") if nan and value < least else value

    plan, trial, trials = search(dial, measure, lambda value: value >= least)
    fitting = [k for k in range(1, end + 1) if 1 - (k * distinct // LEVELS) / distinct >= least]
    assert plan.removed == plan_at(max(fitting, default=0)).removed
    assert (trial is None) == (not fitting)
    assert len(dial.made) == len(set(dial.made)) == len(trials) <= 9
    assert trial is None or (trial in trials and trial.fits and trial.value is not None)


def test_drift_and_metric_share_the_search() -> None:
    """A metric that is minus the drift on the same inputs gives the plan that the drift gives (unmended: what is judged by
    drift is mended without the inputs that judge)."""
    from spa.drift import drift
    from spa.verification import Session

    model = spa.load(FOLDER / "cancer.onnx")
    coupling = spa.analyze(model)
    feeds = [{"x": np.load(FOLDER / "cancer.npz")["calib_x"][k : k + 16]} for k in range(0, 64, 16)]
    held = feeds[3]
    reference = [Session(model).run(held)]
    by_drift, facts = plan_by_drift(model, coupling, 0.5, feeds=feeds, repair=False)
    assert facts["value"] <= 0.5 and facts["inputs"] == 16 and facts["data"] == "given"

    def closeness(network: Model) -> float:
        return -drift(reference, [Session(network).run(held)])

    by_metric, found = plan_by_metric(model, coupling, closeness, 0.5, feeds=feeds, repair=False)
    assert by_metric.removed == by_drift.removed != {}
    assert -found["after"] == pytest.approx(facts["value"])
