"""spa check on compiled artifacts: bytes of library and code per target, from a bundle that is named, or compiled now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_check import network

import spa

pytestmark = pytest.mark.codegen
TARGETS = ("host", "wasm")
BUDGETS = "".join(f'artifact_bytes.{t} = "+1%"\ncode_bytes.{t} = "+1%"\n' for t in TARGETS)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network and its bundle for two targets, with limits on both; the working directory in it."""
    monkeypatch.chdir(tmp_path)
    compiled(tmp_path, 32)
    return tmp_path


def compiled(folder: Path, width: int, bundle: str = "bundle = 'net.spa'\n") -> None:
    path = network(folder / "net.onnx", {"stem": width, "head": 4})
    spa.compile(path, TARGETS, folder / "net.spa", shapes={"x": (1, 8)}, force=True)
    text = f"[check]\nmodels = ['net.onnx']\n{bundle}shapes = {{ x = [1, 8] }}\n[check.budgets]\n{BUDGETS}"
    (folder / "spa.toml").write_text(text)


def test_what_is_measured_are_the_files_of_the_bundle(repository: Path) -> None:
    assert spa.check(update=True).ok
    (row,) = spa.check().models
    assert row.now is not None
    manifest = json.loads((repository / "net.spa" / "manifest.json").read_text())
    for target in TARGETS:
        facts = manifest["targets"][target]
        size = (repository / "net.spa" / facts["path"] / facts["library"]).stat().st_size
        assert row.now.metrics[f"artifact_bytes.{target}"] == size
        assert row.now.metrics[f"code_bytes.{target}"] == facts["code_bytes"] < size
    baseline = json.loads((repository / "spa-baseline.json").read_text())
    assert set(baseline["models"]["net.onnx"]["metrics"]) >= {f"artifact_bytes.{t}" for t in TARGETS}


def test_a_larger_library_fails_on_every_target(repository: Path) -> None:
    spa.check(update=True)
    compiled(repository, 512)
    report = spa.check()
    (row,) = report.models
    failed = {f.metric for f in row.findings if f.status == "failed"}
    assert report.exit_code == 1 and failed >= {f"artifact_bytes.{t}" for t in TARGETS}


def test_without_a_bundle_it_is_compiled_and_measures_the_same(repository: Path) -> None:
    spa.check(update=True)
    before = spa.check().models[0].now
    compiled(repository, 32, bundle="")
    after = spa.check().models[0].now
    assert before is not None and after is not None and before.metrics == after.metrics


def test_a_target_or_a_library_that_is_not_there_is_told(repository: Path) -> None:
    spa.check(update=True)
    text = (repository / "spa.toml").read_text()
    (repository / "spa.toml").write_text(text.replace(BUDGETS, "artifact_bytes.arm = '1MB'\n"))
    (row,) = spa.check().models
    assert row.status == "error" and "'arm'" in str(row.error) and "host, wasm" in str(row.error)
    (repository / "spa.toml").write_text(text)
    (repository / "net.spa" / "wasm" / "net.wasm").unlink()
    (row,) = spa.check(budgets={"artifact_bytes.wasm": "1MB"}).models
    assert row.status == "error" and "incomplete" in str(row.error)
