"""The accuracy benchmark and its pictures, on the digits that ship with the project."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnxruntime as ort
import pytest

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"
EVALUATE = """
import numpy as np
import onnxruntime as ort

DATA = np.load({data!r})
TASKS = {{"digits": None}}


def calib(name, n):
    return DATA["calib_x"][:n]


def top1(name, path):
    logits = ort.InferenceSession(str(path)).run(None, {{"x": DATA["test_x"]}})[0]
    return dict(metric="top1", value=round(float((logits.argmax(1) == DATA["test_y"]).mean()), 4), n=len(logits))
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a benchmark as the command line does, with its folder first on the path; forgets it afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in ("accuracy", "pareto", "evaluate"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models" / "digits.onnx", tmp_path / "models")
    (tmp_path / "evaluate.py").write_text(EVALUATE.format(data=str(ROOT / "models" / "digits.npz")))
    return tmp_path


def rows_of(path: Path) -> dict[tuple[str, float], dict[str, Any]]:
    return {(r["method"], r["share"]): r for r in json.loads(path.read_text())}


def test_a_row_is_measured_written_and_not_measured_again(script: Callable[[str], ModuleType], folder: Path) -> None:
    accuracy, results, said = script("accuracy"), folder / "results.json", []
    arguments = [str(folder), "digits", "0.5", "--only", "data,weights,l2", "--results", str(results)]
    assert accuracy.main(arguments, said.append) == 0
    rows = rows_of(results)
    assert set(rows) == {("dense", 1.0), ("data", 0.5), ("weights", 0.5), ("l2", 0.5)}
    data = np.load(ROOT / "models" / "digits.npz")
    logits = ort.InferenceSession(str(folder / "models" / "digits.onnx")).run(None, {"x": data["test_x"]})[0]
    assert rows["dense", 1.0]["value"] == pytest.approx((logits.argmax(1) == data["test_y"]).mean(), abs=1e-4)
    assert all(r["macs"] <= 0.5 for (method, _), r in rows.items() if method != "dense")
    assert rows["data", 0.5]["value"] > rows["l2", 0.5]["value"]
    assert "| digits (" in said[-1]

    before, said = results.read_text(), []
    assert accuracy.main(arguments, said.append) == 0
    assert len(said) == 1 and results.read_text() == before  # nothing but the table

    stale = json.loads(before)
    for row in stale:
        row["source"] = "another" if row["method"] == "l2" else row["source"]
    results.write_text(json.dumps(stale))
    said = []
    accuracy.main(arguments, said.append)
    assert [s.split(":")[0] for s in said[:-1]] == ["digits 0.5 l2"]


def test_what_cannot_be_measured_says_why(script: Callable[[str], ModuleType], folder: Path) -> None:
    accuracy, results = script("accuracy"), folder / "results.json"
    # an environment without the tool
    arguments = [
        str(folder),
        "digits",
        "0.5",
        "--only",
        "onnxsim",
        "--results",
        str(results),
        "--others",
        sys.executable,
    ]
    if subprocess.run([sys.executable, "-c", "import onnxsim"], capture_output=True).returncode == 0:
        pytest.skip("onnxsim is installed here")
    assert accuracy.main(arguments, lambda _: None) == 0
    row = rows_of(results)["onnxsim", 0.5]
    assert row["value"] is None and row["note"].startswith("onnxsim does not start")
    with pytest.raises(SystemExit):
        accuracy.main([str(folder), "digits", "--only", "magic"])


def test_the_table_marks_what_misses_its_aim(script: Callable[[str], ModuleType]) -> None:
    accuracy = script("accuracy")
    name, (share, (aim, _)) = "dscnn_kws", next(iter(accuracy.AIMS["dscnn_kws"].items()))
    about = {
        "metric": "top1",
        "n": 1,
        "macs": share,
        "seconds": 1,
        "note": "",
        "date": "",
        "machine": "",
        "versions": "",
    }

    def shown(value: float) -> str:
        row = accuracy.Row(network=name, share=share, method="data", value=value, source="", **about)
        return str(accuracy.table({row.key: row}))

    assert f"| {100 * aim + 1:.1f} ({100 * aim:g}) |" in shown(aim + 0.01)
    assert f"| **{100 * aim - 1:.1f}** ({100 * aim:g}) |" in shown(aim - 0.01)


def test_the_picture_shows_every_point_where_it_belongs(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    accuracy, pareto = script("accuracy"), script("pareto")
    about = {
        "metric": "top1",
        "n": 1,
        "seconds": 1,
        "note": "",
        "date": "",
        "machine": "",
        "versions": "",
        "source": "",
    }
    values = {("dense", 1.0): 0.9, ("data", 0.75): 0.8, ("data", 0.5): 0.7, ("l2", 0.5): 0.2}
    rows = [accuracy.Row(network="a<b", share=s, method=m, macs=s, value=v, **about) for (m, s), v in values.items()]
    rows.append(accuracy.Row(network="a<b", share=0.5, method="onnxsim", macs=None, value=None, **about))
    path = tmp_path / "rows.json"
    accuracy.write(path, {r.key: r for r in rows})
    assert pareto.main([str(path), str(tmp_path)]) == 0
    tree = ElementTree.parse(tmp_path / "pareto_a<b.svg").getroot()
    marks = {
        g.get("class"): [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in g.iter(f"{SVG}circle")] for g in tree
    }
    (x1, y1), (x2, y2) = marks["data"]
    ((x3, y3),) = marks["l2"]
    assert x1 > x2 == x3 and "onnxsim" not in marks
    assert (y2 - y1) / 0.1 == pytest.approx((y3 - y2) / 0.5, abs=1.0)  # one scale for all
    told = next(t.text for g in tree for c in g.iter(f"{SVG}circle") for t in c)
    assert told == "256 samples: 80.0 at 75.0 % of the MACs"
    found = sorted(pareto.spread([5.0, 5.0, 7.0, 100.0]))
    assert all(b - a >= pareto.LABEL for a, b in pairwise(found))


def test_the_documented_table_is_what_was_measured(script: Callable[[str], ModuleType]) -> None:
    accuracy = script("accuracy")
    rows = accuracy.read(accuracy.RESULTS)
    assert accuracy.table(rows) in (ROOT / "docs" / "accuracy.md").read_text()
    assert all((ROOT / "docs" / "pictures" / f"pareto_{network}.svg").exists() for network, _, _ in rows)
