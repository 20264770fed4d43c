"""The JSON Schemas of docs/schemas hold for what spa really writes, and refuse what it does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from docs_runner import spa

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "docs" / "schemas"
Json = dict[str, Any]


def schema(name: str) -> Json:
    found: Json = json.loads((SCHEMAS / f"{name}.json").read_text("utf-8"))
    return found


def holds(name: str, document: Json) -> None:
    """Valid, and no key that the schema does not describe: readers should find every key there."""
    rules = schema(name)
    jsonschema.validate(document, rules, jsonschema.Draft202012Validator)
    unknown = set(document) - set(rules["properties"])
    assert not unknown, f"describe {sorted(unknown)} in docs/schemas/{name}.json"


def run(*words: str, code: int = 0) -> str:
    ended, printed = spa(list(words))
    assert ended == code, printed
    return printed


def document(*words: str, code: int = 0) -> Json:
    """The JSON that a command prints, with its notes around it."""
    printed = run(*words, code=code)
    found: Json = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    return found


@pytest.fixture
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes((models / "digits.onnx").read_bytes())
    (tmp_path / "data.npz").write_bytes((models / "digits.npz").read_bytes())
    (tmp_path / "graded_schema.py").write_text("def accuracy(path):\n    return 0.5\n")
    return tmp_path


RUNS = {
    "weights alone": ["--ratio", "0.25"],
    "calibrated": ["--macs", "0.7", "--calib", "data.npz{samples=64}"],
    "by drift": ["--max-drift", "0.2", "--calib", "data.npz{samples=64}"],
    "thinned": ["--sparsity", "2:4"],
    "by a metric": ["--ratio", "0.25", "--eval", "graded_schema:accuracy"],
    "pipeline": ["--pipeline", "fold,halve"],
    "nothing proven": ["--ratio", "0.25", "--no-verify"],
}


@pytest.mark.parametrize("name", RUNS)
def test_report_and_plan_of(name: str, here: Path) -> None:
    plan = [] if name == "pipeline" else ["--plan", "plan.json"]
    holds("report", document("prune", "net.onnx", *RUNS[name], *plan, "--json"))
    if plan:
        holds("plan", json.loads((here / "plan.json").read_text()))


def test_a_dry_run_and_groups_that_are_kept(here: Path) -> None:
    holds("report", document("prune", "net.onnx", "--ratio", "0.25", "--dry-run", "--json"))
    holds("report", document("prune", "net.onnx", "--ratio", "0.25", "--keep", "stem*", "--json"))


@pytest.mark.codegen
def test_every_file_of_a_bundle(here: Path) -> None:
    holds("report", document("prune", "net.onnx", "-o", "out", "--ratio", "0.5", "--target", "host", "--json"))
    for name in ("plan", "report", "manifest"):
        holds(name, json.loads((here / "out" / f"{name}.json").read_text()))
    timing = document("bench", "out", "--target", "host", "--runs", "3", "--against", "onnxruntime", "--json")
    holds("bench", timing)


def test_timings(here: Path) -> None:
    holds("bench", document("bench", "net.onnx", "--runs", "3", "--json"))


def test_a_check_that_fails_passes_and_meets_errors(here: Path) -> None:
    run("check", "net.onnx", "--update")
    holds("check", document("check", "net.onnx", "--format", "json"))
    holds("baseline", json.loads((here / "spa-baseline.json").read_text()))
    failed = document("check", "net.onnx", "--budget", "macs=1", "--format", "json", code=1)
    holds("check", failed)
    assert not failed["ok"]
    (here / "bad.onnx").write_bytes(b"no network")
    holds("check", document("check", "bad.onnx", "--format", "json", code=2))


BREAKS: dict[str, list[Callable[[Json], object]]] = {
    "plan": [
        lambda d: d.pop("removed"),
        lambda d: d.update(schema=2),
        lambda d: next(iter(d["removed"].values())).update(rows=[0]),
        lambda d: d["groups"][0].update(removed=[-1]),
    ],
    "report": [lambda d: d.pop("after"), lambda d: d["before"].update(macs=0.5), lambda d: d.update(verified="yes")],
}


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, rows in BREAKS.items() for i in range(len(rows))])
def test_what_is_wrong_is_refused(name: str, number: int, here: Path) -> None:
    report = document("prune", "net.onnx", "--ratio", "0.25", "--plan", "plan.json", "--json")
    good = {"plan": json.loads((here / "plan.json").read_text()), "report": report}[name]
    bad = copy.deepcopy(good)
    BREAKS[name][number](bad)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema(name), jsonschema.Draft202012Validator)


@pytest.mark.parametrize("file", sorted(SCHEMAS.glob("*.json")), ids=lambda f: f.stem)
def test_the_schemas_are_schemas(file: Path) -> None:
    rules = json.loads(file.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(rules)
    assert rules["title"] and rules["description"]
