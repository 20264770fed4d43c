"""What a real run leaves for its report: curves, the networks a search tried, command, recipe and environment, and a page
that shows them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_prune_cli import call

from spa.report.gather import gather
from spa.report.page import html
from spa.report.run import find

CALIB = "digits.npz{samples=48}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and two bundles: by budget (curves) and by drift (a search)."""
    folder = tmp_path_factory.mktemp("runs")
    models = Path(__file__).parent.parent / "models"
    for name in ("digits.onnx", "digits.npz"):
        shutil.copy(models / name, folder / name)
    for name, budget in (("budget", ["--macs", "0.6"]), ("search", ["--max-drift", "0.2"])):
        command = ["prune", "digits.onnx", "-o", name, *budget, "--calib", CALIB]
        code = "from spa.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def report(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "report.json").read_text("utf-8"))
    return found


def test_the_curves_are_those_the_plan_was_made_by(runs: Path) -> None:
    found = report(runs, "budget")["curves"]
    plan = json.loads((runs / "budget" / "plan.json").read_text("utf-8"))
    assert found and {c["group"] for c in found} <= {g["id"] for g in plan["groups"]}
    for curve in found:
        assert len(curve["counts"]) == len(curve["errors"]) > 3
        assert curve["counts"][0] == 0 and curve["errors"][0] == 0
        assert curve["counts"] == sorted(curve["counts"])


def test_a_search_leaves_what_it_tried(runs: Path) -> None:
    document = report(runs, "search")
    trials = document["pareto"]
    assert len(trials) >= 3 and {t["fits"] for t in trials} == {True, False}
    assert all(t["fits"] == (t["value"] <= 0.2) for t in trials)
    best = min(t["macs"] for t in trials if t["fits"])
    assert best == pytest.approx(document["after"]["macs"] / document["before"]["macs"], abs=1e-5)


@pytest.mark.parametrize("name", ["budget", "search"])
def test_the_page_shows_all_of_it(name: str, runs: Path) -> None:
    gathered = gather(find(runs / name, dense=runs / "digits.onnx"))
    page = html(gathered)
    made = gathered.data["made"]
    assert (
        made["command"].startswith("spa prune ../digits.onnx ")
        and "--calib &#39;../digits.npz{samples=48}&#39;" in page
    )
    assert "[calibration]" in made["recipe"] and "[calibration]" in page
    assert made["environment"]["onnxruntime"] in page and "machine" in made["environment"]
    assert ('id="curves"' in page) == bool(gathered.data["curves"])
    assert ("What was tried" in page) == bool(gathered.data["pareto"]) == (name == "search")


def test_no_path_and_no_time_is_in_a_bundle(runs: Path) -> None:
    for name in ("budget", "search"):
        text = "".join(f.read_text("utf-8") for f in sorted((runs / name).glob("*.*")) if f.suffix != ".onnx")
        assert str(runs) not in text and '"seconds"' not in text


def test_json_has_the_command_from_here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    code, out, err = call("prune", "digits.onnx", "-n", "--ratio", "0.25", "--json")
    assert code == 0, err
    assert json.loads(out)["command"] == "spa prune digits.onnx --ratio 0.25"
