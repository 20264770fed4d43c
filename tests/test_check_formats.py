"""The formats of spa check, read back by what reads them: XML and JSON parsers, GitHub's own unescaping, markdown tables."""

from __future__ import annotations

import html
import json
import re
import urllib.parse
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa.checking.checked import Checked, Report
from spa.checking.compare import Change, findings
from spa.checking.config import Wanted
from spa.checking.formats import COMMENT_LIMIT, FORMATS, MARK, cell, command, printable
from spa.checking.limits import parse_limit
from spa.checking.metrics import Layer, Measured
from spa.errors import ModelError

HOSTILE = "l|a`y<script>alert(1)</script>\n::error::@all [x](http://e.vil) 100% , & \x1b[31m"


def layer(name: str, size: int) -> Layer:
    return Layer(name, "Conv", "float32", (1, size, 4, 4), size, 16 * size, 4 * size, size)


def model(key: str = "nets/a.onnx", name: str = "conv") -> Checked:
    """Over in bytes, within in macs; one layer grew, one appeared, one vanished."""
    before = Measured("0" * 64, {"file_bytes": 100_000, "macs": 5}, (layer(name, 10), layer("old", 1)))
    now = Measured(
        "1" * 64, {"file_bytes": 150_000, "macs": 5, "drift": float("nan")}, (layer(name, 20), layer("new", 2))
    )
    limits = {"file_bytes": "+2%", "macs": 10, "drift": 0.1}
    wanted = Wanted({m: (parse_limit(m, text),) for m, text in limits.items()})
    changed = (
        Change(before.layers[0], now.layers[0]),
        Change(None, now.layers[1]),
        Change(before.layers[1], None),
    )
    return Checked(key, Path(key), now, before, tuple(findings(wanted, now, before)), changed)


def report(*models: Checked) -> Report:
    return Report(models, Path("spa-baseline.json"), notes=("a note",))


BROKEN = Checked("b.onnx", Path("b.onnx"), error=ModelError("it is torn", "b.onnx", "export it again"))


def test_text_names_limits_and_layers() -> None:
    lines = FORMATS["text"](report(model(), BROKEN)).splitlines()
    assert lines[0] == "FAILED nets/a.onnx"
    assert lines[1].strip() == (
        "file_bytes is 150.00 kB, at most 102.00 kB is allowed (+2% of the baseline's 100.00 kB, now +50.00 %)"
    )
    assert "drift is not a number, at most 0.1 is allowed" in lines[2]
    assert [line.split()[:2] for line in lines[3:6]] == [["conv", "grew:"], ["new", "appeared:"], ["old", "vanished:"]]
    assert lines[6] == "ERROR  b.onnx" and "export it again" in lines[9]
    assert "2 models checked, 1 over its limits, 1 not measured" in lines
    assert report(model(), BROKEN).exit_code == 2 and report(model()).exit_code == 1 and report().exit_code == 0


def test_json_has_everything_and_no_nan() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(FORMATS["json"](report(model(), BROKEN)), parse_constant=refuse)
    assert document["schema"] == 1 and document["exit_code"] == 2 and not document["ok"]
    first, second = document["models"]
    assert first["status"] == "failed" and first["at_fault"] == ["conv", "new", "old"]
    assert {f["metric"]: f["status"] for f in first["findings"]} == {
        "file_bytes": "failed",
        "macs": "ok",
        "drift": "failed",
    }
    assert first["metrics"]["drift"] is None and first["baseline"]["file_bytes"] == 100_000
    assert second["error"] == {"what": "it is torn", "where": "b.onnx", "try": "export it again"}


def test_junit_counts_and_survives_hostile_names() -> None:
    text = FORMATS["junit"](report(model(HOSTILE, HOSTILE), BROKEN))
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    (suite,) = root
    cases = list(suite)
    assert int(suite.attrib["tests"]) == len(cases) == 4
    assert int(suite.attrib["failures"]) == len(root.findall(".//failure")) == 2
    assert int(suite.attrib["errors"]) == len(root.findall(".//error")) == 1
    assert all(case.attrib["name"] and case.attrib["classname"] for case in cases)
    failure = cases[0].find("failure")
    assert failure is not None and "<script>" in (failure.text or "") and "\x1b" not in text
    assert [child.tag for child in cases[1]] == [], "what holds has no failure"


def parsed(line: str) -> tuple[str, dict[str, str], str]:
    """As the runner reads a command (actions/runner, ActionCommand.cs): properties up to `::`, then the message."""
    match = re.fullmatch(r"::(\w+) ([^\n]*?)::([^\n]*)", line)
    assert match, line

    def plain(text: str) -> str:
        for code, sign in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            text = text.replace(code, sign)
        return text

    rows = (pair.split("=", 1) for pair in match[2].split(","))
    return match[1], {k: plain(v) for k, v in rows}, plain(match[3])


@given(st.text(st.characters(codec="utf-8", exclude_characters="\u00a0")), st.text(min_size=1))
def test_commands_are_one_line_and_read_back(message: str, title: str) -> None:
    title = title.replace("\u00a0", " ")
    line = command("error", message, title=title)
    assert "\n" not in line and "\r" not in line
    head, _, body = line.removeprefix("::error title=").partition("::")
    assert ":" not in head and "," not in head
    unescaped = re.sub("%(3A|2C|0D|0A|25)", lambda code: chr(int(code[1], 16)), head)
    assert unescaped == title
    assert re.sub("%(0D|0A|25)", lambda code: chr(int(code[1], 16)), body) == message


def test_annotations_name_file_metric_and_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    row = model()
    inside = Checked(**{**vars(row), "path": tmp_path / "sub" / "a.onnx"})
    lines = [line for line in FORMATS["github"](report(inside, BROKEN)).splitlines() if line.startswith("::")]
    found = [parsed(line) for line in lines]
    errors = [(properties, message) for kind, properties, message in found if kind == "error"]
    assert len(errors) == 3
    assert errors[0][0] == {"file": "sub/a.onnx", "title": "spa check: file_bytes of nets/a.onnx"}
    assert errors[0][1].splitlines()[0].startswith("file_bytes is 150.00 kB, at most 102.00 kB")
    assert [line.split()[0] for line in errors[0][1].splitlines()[1:]] == ["conv", "new", "old"]
    assert errors[2][1].splitlines()[0] == "it is torn"
    assert [kind for kind, _, _ in found[3:]] == ["notice"] * 2


def test_hostile_names_start_no_command_of_their_own() -> None:
    text = FORMATS["github"](report(model(HOSTILE, HOSTILE)))
    assert sum(line.startswith("::error") for line in text.splitlines()) == 2


def test_sarif_has_what_code_scanning_needs() -> None:
    """Required properties of SARIF 2.1.0 (OASIS, sections 3.13 to 3.27), and what GitHub asks beyond them."""
    document = json.loads(FORMATS["sarif"](report(model("nets/my net.onnx", HOSTILE), BROKEN)))
    assert document["version"] == "2.1.0" and "sarif-2.1.0" in document["$schema"]
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] and all(rule["id"] and rule["shortDescription"]["text"] for rule in driver["rules"])
    assert len({rule["id"] for rule in driver["rules"]}) == len(driver["rules"]) == 3
    assert len(run["results"]) == 3
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] == "error" and result["message"]["text"] and result["partialFingerprints"]
        place = result["locations"][0]["physicalLocation"]
        assert place["region"]["startLine"] == 1
        assert re.fullmatch(r"[\w./%~-]+", place["artifactLocation"]["uri"])
    first = run["results"][0]["locations"][0]
    assert urllib.parse.unquote(first["physicalLocation"]["artifactLocation"]["uri"]) == "nets/my net.onnx"
    assert [place["name"] for place in first["logicalLocations"]] == [HOSTILE, "new", "old"]
    assert json.loads(FORMATS["sarif"](report()))["runs"][0]["results"] == []


def test_markdown_tables_hold_their_columns() -> None:
    text = FORMATS["markdown"](report(model("nets/a|b.onnx", HOSTILE)))
    assert text.startswith(MARK)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows[:5]} == {7}
    assert {row.count("|") for row in rows[5:]} == {3}
    assert "<script>" not in text and "@all" not in text and "](http" not in text and "\x1b" not in text
    assert "| file&#95;bytes | 100.00 kB | 150.00 kB | +50.00 % | +2% | ❌ failed |" in text


@given(st.text())
def test_a_cell_shows_what_it_was_given(raw: str) -> None:
    shown = cell(raw)
    assert not set("|<>`*_[]@#!\\\n").difference("#") & set(re.sub(r"&#\d+;", "", shown))
    assert html.unescape(shown) == printable(raw.replace("\n", " ").replace("\u00a0", " "))


def test_a_comment_stays_under_githubs_limit() -> None:
    many = [model(f"nets/{i}.onnx", "layer" * 20) for i in range(300)]
    text = FORMATS["markdown"](report(*many, BROKEN))
    assert len(text) < COMMENT_LIMIT + 5000 < 65_536
    assert "more models" in text and text.index("b.onnx") < text.index("nets/0.onnx"), "errors first"
