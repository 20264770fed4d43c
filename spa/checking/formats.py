"""A report for people and for machines: text, JSON, markdown, JUnit, GitHub annotations, SARIF.

Names of layers and files come from models, that is from anywhere: each format escapes them in its own way.
"""

from __future__ import annotations

import json
import math
import os
import re
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spa._version import __version__
from spa.checking.config import placed
from spa.checking.wording import advice, against, amount, sentence, story, summary

if TYPE_CHECKING:
    from spa.checking.checked import Checked, Report

SHOWN = 10  # layers per model
MARK = "<!-- spa-check -->"  # by which a comment is found again
COMMENT_LIMIT = 60_000  # characters: GitHub takes 65,536


# Formats --------------------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """For a terminal; a model that holds is one line."""
    lines = []
    for m in report.models:
        lines.append(f"{ {'ok': 'ok    ', 'failed': 'FAILED', 'error': 'ERROR '}[m.status] } {printable(m.key)}")
        if m.error:
            lines += [f"    {printable(line)}" for line in str(m.error).splitlines()]
        lines += [f"    {sentence(f)}" for f in m.findings if f.status != "ok"]
        guilty = m.at_fault
        lines += [f"      {printable(c.layer.name)} {story(c)}" for c in guilty[:SHOWN]]
        lines += [f"      and {len(guilty) - SHOWN} more layers"] if len(guilty) > SHOWN else []
    lines += [summary(report), *advice(report)]
    return "\n".join(lines).replace("\u00a0", " ")


def as_json(report: Report) -> str:
    """One document; docs/check.md has its keys."""
    return json.dumps(document(report), indent=1, allow_nan=False)


def document(report: Report) -> dict[str, Any]:
    return {
        "schema": 1,
        "ok": report.ok,
        "exit_code": report.exit_code,
        "baseline": str(report.baseline),
        "updated": report.updated,
        "notes": list(report.notes),
        "models": [
            {
                "model": m.key,
                "status": m.status,
                "error": None
                if m.error is None
                else {"what": m.error.what, "where": m.error.where, "try": m.error.hint},
                "sha256": m.now and m.now.sha256,
                "metrics": finite(m.now.metrics) if m.now else {},
                "baseline": finite(m.before.metrics) if m.before else None,
                "findings": [finite(vars(f)) for f in m.findings],
                "at_fault": [c.layer.name for c in m.at_fault],
                "layers": [
                    {"name": c.layer.name, "change": c.word(), "before": c.before and c.before.to_json()}
                    | {"after": c.after and c.after.to_json()}
                    for c in m.changes
                ],
            }
            for m in report.models
        ],
    }


def finite(row: Any) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in dict(row).items()}


def markdown(report: Report) -> str:
    """For a step summary or a comment: failures in full, the rest in a table, cut before GitHub's limit."""
    parts = [MARK, f"### spa check: {summary(report)}", ""]
    room = COMMENT_LIMIT
    order = sorted(report.models, key=lambda m: ("error", "failed", "ok").index(m.status))
    for number, m in enumerate(order):
        block = _block(m)
        room -= len(block)
        if room < 0:
            parts.append(f"... and {len(order) - number} more models")
            break
        parts.append(block)
    return "\n".join([*parts, *(f"- {cell(line)}" for line in advice(report))]) + "\n"


def _block(m: Checked) -> str:
    sign = {"ok": "✅", "failed": "❌", "error": "⚠️"}[m.status]
    lines = [f"<details{' open' * (m.status != 'ok')}><summary>{sign} <code>{cell(m.key)}</code></summary>", ""]
    if m.error:
        lines += [cell(str(m.error)), ""]
    if m.findings:
        lines += ["| metric | baseline | now | change | limit | |", "|---|---:|---:|---:|---:|---|"]
        for f in m.findings:
            numbers = [amount(f.metric, f.baseline), amount(f.metric, f.value), against(f), f.limit]
            lines.append(f"| {' | '.join(map(cell, [f.metric, *numbers]))} | {'❌ ' * f.bad}{f.status} |")
        lines.append("")
    if guilty := m.at_fault:
        lines += ["| layer at fault | what happened |", "|---|---|"]
        lines += [f"| <code>{cell(c.layer.name)}</code> | {cell(story(c))} |" for c in guilty[:SHOWN]]
        lines += [f"| and {len(guilty) - SHOWN} more | |"] if len(guilty) > SHOWN else []
        lines.append("")
    return "\n".join([*lines, "</details>", ""])


def junit(report: Report) -> str:
    """One test case per limit; a model that could not be measured is an error."""
    cases = sum(max(1, len(m.findings)) for m in report.models)
    counts = {
        "tests": str(cases),
        "failures": str(sum(len(m.failed) for m in report.models)),
        "errors": str(sum(m.error is not None for m in report.models)),
    }
    root = ET.Element("testsuites", {"name": "spa check", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": "spa check", **counts})
    for m in report.models:
        guilty = "\n".join(f"{c.layer.name} {story(c)}" for c in m.at_fault)
        if m.error or not m.findings:
            case = ET.SubElement(suite, "testcase", classname=_xml(m.key), name="measured")
            if m.error:
                ET.SubElement(case, "error", message=_xml(m.error.what)).text = _xml(str(m.error))
            continue
        for f in m.findings:
            case = ET.SubElement(suite, "testcase", classname=_xml(m.key), name=_xml(f"{f.metric} {f.limit}"))
            if f.bad:
                failure = ET.SubElement(case, "failure", message=_xml(sentence(f)), type="budget")
                failure.text = _xml(f"{sentence(f)}\n{guilty}".strip())
    ET.indent(root)
    return ET.tostring(root, "unicode", xml_declaration=True) + "\n"


def _xml(raw: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", raw).replace("\u00a0", " ")


def github(report: Report) -> str:
    """Workflow commands: an annotation per limit that fails, on the model's file, naming the layers; notes as notices.

    The file is relative to the repository (GITHUB_WORKSPACE) where that is known."""
    lines = []
    for m in report.models:
        file = in_repository(m.path)
        if m.error:
            lines.append(command("error", str(m.error), file=file, title=f"spa check: {m.key} cannot be measured"))
        guilty = m.at_fault
        names = "".join(f"\n{c.layer.name} {story(c)}" for c in guilty[:SHOWN])
        names += f"\nand {len(guilty) - SHOWN} more layers" if len(guilty) > SHOWN else ""
        for f in m.failed:
            layers = names if f.status == "failed" else ""
            lines.append(command("error", sentence(f) + layers, file=file, title=f"spa check: {f.metric} of {m.key}"))
    lines += [command("notice", line, title="spa check") for line in advice(report)]
    return "\n".join([*lines, summary(report)])


def command(kind: str, message: str, **properties: str) -> str:
    """`::error file=a.onnx,title=...::message`, escaped as actions/toolkit does.

    >>> command("error", "50%\\nmore", title="a: b, c")
    '::error title=a%3A b%2C c::50%25%0Amore'
    """

    def data(raw: str) -> str:
        return raw.replace("\u00a0", " ").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    given = ",".join(f"{k}={data(v).replace(':', '%3A').replace(',', '%2C')}" for k, v in properties.items())
    return f"::{kind} {given}::{data(message)}"


def in_repository(path: Path) -> str:
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    full = placed(path)
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else path.as_posix()


def sarif(report: Report) -> str:
    """SARIF 2.1.0, for code scanning: one result per limit that fails, one rule per metric."""
    results, rules = [], dict[str, dict[str, Any]]()
    for m in report.models:
        rows: list[tuple[str, str, bool]] = [(f.metric, sentence(f), f.status == "failed") for f in m.failed]
        if m.error:
            rows = [("measured", str(m.error), False)]
        names = [c.layer.name for c in m.at_fault]
        for metric, message, blame in rows:
            rule = f"spa/{metric}"
            rules.setdefault(rule, {"id": rule, "name": metric, "shortDescription": {"text": f"Limit of {metric}"}})
            place = {"artifactLocation": {"uri": urllib.parse.quote(in_repository(m.path))}, "region": {"startLine": 1}}
            layers = [f"{c.layer.name} {story(c)}" for c in m.at_fault[:SHOWN]] if blame else []
            results.append(
                {
                    "ruleId": rule,
                    "ruleIndex": list(rules).index(rule),
                    "level": "error",
                    "message": {"text": "\n".join([message, *layers]).replace("\u00a0", " ")},
                    "locations": [
                        {
                            "physicalLocation": place,
                            "logicalLocations": [{"name": n, "kind": "member"} for n in names[:SHOWN] if n],
                        }
                    ],
                    "partialFingerprints": {"spaCheck/v1": f"{m.key}:{metric}"},
                }
            )
    driver = {"name": "spa check", "version": __version__, "rules": list(rules.values())}
    run = {"tool": {"driver": driver}, "columnKind": "utf16CodeUnits", "results": results}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1)


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text,
    "json": as_json,
    "markdown": markdown,
    "junit": junit,
    "github": github,
    "sarif": sarif,
}


# Escapes --------------------------------------------------------------------------------------------------------


def printable(raw: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in raw)


def cell(raw: str) -> str:
    """Markdown that shows the text as it is, in a table too: whatever has a meaning becomes a numeric reference."""
    plain = printable(raw.replace("\n", " ").replace("\u00a0", " "))
    return re.sub(r"[^\w\s.,/()%+-]|_|(?<=www)\.", lambda sign: f"&#{ord(sign[0])};", plain)
