"""spa check: what is measured, limits, the baseline, and the layers at fault."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spa
from spa.checking import baseline as baselines
from spa.checking.compare import changes
from spa.checking.config import PER_MODEL, Wanted, flat, load
from spa.checking.limits import KINDS, parse_limit
from spa.checking.metrics import Layer, measure
from spa.cli import main
from spa.cost import inspect
from spa.errors import UsageError
from spa.sparsity.storage import file_sizes

ROOT = Path(__file__).parent.parent


def network(path: Path, widths: Mapping[str, int], seed: int = 0, dtypes: Mapping[str, type] | None = None) -> Path:
    """A chain of dense layers with names and widths; a layer stored in another type is cast when it is read."""
    rng = np.random.default_rng(seed)
    nodes, weights, now, width = [], [], "x", 8
    for name, out in widths.items():
        kind = (dtypes or {}).get(name, np.float32)
        weights.append(onnx.numpy_helper.from_array(rng.standard_normal((width, out)).astype(kind), f"{name}.weight"))
        read = f"{name}.weight"
        if kind is not np.float32:
            nodes.append(onnx.helper.make_node("Cast", [read], [f"{name}.wide"], name=f"{name}.cast", to=1))
            read = f"{name}.wide"
        nodes.append(onnx.helper.make_node("MatMul", [now, read], [f"{name}.out"], name=name))
        nodes.append(onnx.helper.make_node("Relu", [f"{name}.out"], [f"{name}.act"], name=f"{name}.relu"))
        now, width = f"{name}.act", out
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 8])],
        [onnx.helper.make_tensor_value_info(now, 1, ["N", width])],
        weights,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


WIDTHS = {"stem": 16, "middle": 32, "tail": 16, "head": 4}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one network and a configuration, and the working directory in it."""
    network(tmp_path / "nets" / "a.onnx", WIDTHS)
    configure(tmp_path, '[check]\nmodels = ["nets/*.onnx"]\nbudgets = { file_bytes = "+2%", macs = "+0%" }\n')
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def configure(folder: Path, text: str) -> None:
    (folder / "spa.toml").write_text(text)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    code = stop.value.code
    assert isinstance(code, int)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# The whole way ---------------------------------------------------------------------------------------------------


def test_a_larger_model_fails_and_its_three_layers_are_named(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network(repository / "nets" / "a.onnx", WIDTHS, dtypes={"stem": np.float16})
    assert call(capsys, "check", "--update")[0] == 0
    assert call(capsys, "check")[0] == 0
    # middle grows (and with it what tail reads: told as grown too), extra appears, stem changes its type
    network(repository / "nets" / "a.onnx", {"stem": 16, "extra": 16, "middle": 32, "tail": 24, "head": 4})
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(repository / "summary.md"))
    code, out, _ = call(capsys, "check", "--format", "github", "--format", "json=report.json")
    assert code == 1
    row = json.loads((repository / "report.json").read_text())["models"][0]
    told = {layer["name"]: layer["change"] for layer in row["layers"]}
    assert told == {"stem": "changed dtype", "extra": "appeared", "tail": "grew", "head": "grew"}
    assert set(row["at_fault"]) == set(told)
    (line,) = [x for x in out.splitlines() if x.startswith("::error") and "file_bytes" in x]
    assert "file=nets/a.onnx" in line
    assert all(name in line for name in ("stem changed dtype", "extra appeared", "tail grew"))
    summary = (repository / "summary.md").read_text()
    assert "extra" in summary and "1 over its limits" in summary
    assert call(capsys, "check", "--update")[0] == 0
    assert call(capsys, "check")[0] == 0


def test_growth_appearance_and_type_are_the_three(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Widths between layers stay, so that exactly three layers differ."""
    path = repository / "nets" / "a.onnx"
    network(path, {"stem": 16, "middle": 16, "tail": 16, "head": 4}, dtypes={"tail": np.float16})
    call(capsys, "check", "--update")
    network(path, {"stem": 16, "middle": 16, "tail": 16, "extra": 16, "head": 64})
    code, out, _ = call(capsys, "check")
    assert code == 1
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith("      ")]
    assert sorted(rows) == [["extra", "appeared:"], ["head", "grew:"], ["tail", "changed"]]
    assert rows[0] == ["head", "grew:"], "the largest first"
    assert "float16 > float32" in out


def test_a_layer_that_vanished_is_told(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "check", "--update")
    network(repository / "nets" / "a.onnx", {"stem": 16, "tail": 90, "head": 4})
    code, out, _ = call(capsys, "check")
    assert code == 1 and "middle vanished" in out and "tail grew" in out


def test_better_than_the_baseline_holds_and_update_ratchets(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "check", "--update")
    small = network(repository / "nets" / "a.onnx", {"stem": 4, "head": 4})
    code, out, _ = call(capsys, "check")
    assert code == 0 and "--update keeps it" in out
    call(capsys, "check", "--update")
    network(small, WIDTHS)
    assert call(capsys, "check")[0] == 1, "the old size is too large for the new baseline"


def test_absolute_limits_hold_after_an_update_too(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(
        repository, '[check]\nmodels = ["nets/*.onnx"]\nbudgets = { params = 100, file_bytes = ["1KB", "+2%"] }\n'
    )
    code, out, _ = call(capsys, "check", "--update")
    assert code == 1 and "params is 1216, at most 100 is allowed" in out
    assert (repository / "spa-baseline.json").exists()


def test_a_model_that_is_new_fails_where_its_limits_need_a_baseline(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "check", "--update")
    network(repository / "nets" / "b.onnx", {"head": 4})
    code, out, _ = call(capsys, "check")
    assert code == 1 and "ok     nets/a.onnx" in out and "needs a baseline" in out
    assert call(capsys, "check", "nets/b.onnx", "--budget", "file_bytes=1MB", "--budget", "macs=1M")[0] == 0


def test_an_update_of_named_models_leaves_the_others(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network(repository / "nets" / "b.onnx", {"head": 4})
    call(capsys, "check", "--update")
    before = json.loads((repository / "spa-baseline.json").read_text())["models"]
    network(repository / "nets" / "b.onnx", {"head": 2})
    network(repository / "nets" / "a.onnx", {"head": 2})
    call(capsys, "check", "--update", "nets/b.onnx")
    after = json.loads((repository / "spa-baseline.json").read_text())["models"]
    assert after["nets/a.onnx"] == before["nets/a.onnx"] and after["nets/b.onnx"] != before["nets/b.onnx"]
    (repository / "nets" / "b.onnx").unlink()
    code, _out, _ = call(capsys, "check", "--format", "text", "nets/a.onnx", "--budget", "macs=1M", "--update")
    assert code == 0 and "nets/b.onnx" in (repository / "spa-baseline.json").read_text()
    call(capsys, "check", "--update")
    assert "nets/b.onnx" not in (repository / "spa-baseline.json").read_text()


def test_without_a_configuration_the_baseline_names_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "a.onnx", WIDTHS)
    code, _, err = call(capsys, "check")
    assert code == 2 and "nothing to check" in err
    code, _, err = call(capsys, "check", "a.onnx")
    assert code == 2 and "there is no baseline" in err and "--update" in err
    assert call(capsys, "check", "a.onnx", "--update")[0] == 0
    assert call(capsys, "check")[0] == 0
    network(tmp_path / "a.onnx", {**WIDTHS, "head": 40})
    code, out, _ = call(capsys, "check")
    assert code == 1 and "head grew" in out


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "corrupt"),
        ('{"schema": 1}', "models"),
        ('{"schema": "x", "models": {}}', "schema"),
        ('{"schema": 1, "models": {"nets/a.onnx": {"sha256": "", "metrics": {"macs": "many"}}}}', "macs"),
        ('{"schema": 1, "models": {"a": {"sha256": "", "metrics": {}, "layers": {"l": {"params": 1}}}}}', "a: l"),
        ("<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n", "merge conflict"),
        ("\udcff", "corrupt"),
    ],
)
def test_a_corrupt_baseline_says_how_to_mend_it(
    repository: Path, capsys: pytest.CaptureFixture[str], text: str, word: str
) -> None:
    file = repository / "spa-baseline.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    code, out, err = call(capsys, "check")
    assert code == 2 and not out
    assert word in err and "spa-baseline.json" in err and "spa check --update" in err and "git checkout" in err
    assert len(err.splitlines()) <= 3
    code, out, _ = call(capsys, "check", "--update")
    assert code == 0 and "written anew" in out
    assert call(capsys, "check")[0] == 0


def test_a_baseline_of_a_newer_spa_is_not_overwritten(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '{"schema": 2, "versions": {"spa": "9.0"}, "models": {}}'
    (repository / "spa-baseline.json").write_text(text)
    for more in ([], ["--update"]):
        code, _, err = call(capsys, "check", *more)
        assert code == 2 and "schema 2" in err and "9.0" in err
    assert (repository / "spa-baseline.json").read_text() == text


def test_an_unreadable_model_is_told_and_the_others_are_checked(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "check", "--update")
    (repository / "nets" / "b.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    code, out, _ = call(capsys, "check")
    assert code == 2 and "ERROR  nets/b.onnx" in out and "ok     nets/a.onnx" in out and "LFS" in out
    before = (repository / "spa-baseline.json").read_text()
    code, out, _ = call(capsys, "check", "--update")
    assert code == 2 and "is as it was" in out and (repository / "spa-baseline.json").read_text() == before
    assert call(capsys, "check", "missing.onnx")[0] == 2


def test_an_error_of_ours_names_the_model_and_the_others_are_checked(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network(repository / "nets" / "b.onnx", {"head": 4})
    call(capsys, "check", "--update")

    def failing(path: Path, *rest: Any) -> Any:
        if path.name == "b.onnx":
            raise KeyError("surprise")
        return measure(path, *rest)

    monkeypatch.setattr("spa.checking.metrics.measure", failing)
    code, out, _ = call(capsys, "check")
    assert code == 70 and "ok     nets/a.onnx" in out and "ERROR  nets/b.onnx" in out and "surprise" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[check]\nmodel = 3\n", ["'model'", "[check]"]),
        ("[check]\nmodles = []\n", ["modles", "did you mean 'models'?"]),
        ('[check]\nmodels = ["no/*.onnx"]\n', ["no file matches", "no/*.onnx"]),
        ('[check]\nmodels = ["nets/*"]\nbudgets = { file_byte = 3 }\n', ["file_byte", "try: file_bytes"]),
        ('[check]\nmodels = ["nets/*"]\nbudgets = { macs = "10%" }\n', ["percent of what", "+10%"]),
        ('[check]\nmodels = ["nets/*"]\nbudgets = { macs = "many" }\n', ["no number"]),
        ('[check]\nmodels = ["nets/*"]\nbudgets = { macs = true }\n', ["True"]),
        ('[check]\nmodels = ["nets/*"]\nfloors = { macs = -1 }\n', ["floor"]),
        ('[check]\nmodels = ["nets/*"]\nbudgets = { latency_ms = 3 }\n', ["speedup"]),
        ('[check]\nmodels = ["nets/*"]\nbudgets = { drift = 0.1 }\n', ["needs a reference"]),
        ('[check]\nmodels = ["nets/*"]\nbudgets = { code_bytes = 3 }\n', ["names no target"]),
        ('[check]\nmodels = ["nets/*"]\nshapes = { x = "1,2" }\n', ["shape of 'x'"]),
        ('[check]\nmodels = ["nets/*"]\n[check.model."nets/a.onnx"]\nspeed = 3\n', ["speed", "nets/a.onnx"]),
        ("[check\n", ["not readable", "line 1"]),
    ],
)
def test_a_wrong_configuration_says_where(
    repository: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    configure(repository, text)
    code, _, err = call(capsys, "check")
    assert code == 2
    assert all(word in err for word in words), err
    assert len(err.splitlines()) <= 3


# Configuration ---------------------------------------------------------------------------------------------------


def test_later_tables_and_the_call_win_and_origins_are_shown(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(
        repository,
        '[check]\nmodels = ["nets/*.onnx"]\nbudgets = { macs = "+0%", params = 9 }\n'
        '[check.model."nets/a.onnx"]\nbudgets = { macs = "+5%", artifact_bytes.host = "1MB" }\nfloors = { macs = 10 }\n',
    )
    how = load(budgets={"params": 10})
    settings = how.settings(repository / "nets" / "a.onnx")
    assert {k: s.value for k, s in settings.items()} == {
        "budgets.macs": "+5%",
        "budgets.params": 10,
        "budgets.artifact_bytes.host": "1MB",
        "floors.macs": 10,
    }
    code, out, _ = call(capsys, "config", "show", "--origin")
    assert code == 0
    assert 'budgets.macs = "+5%"' in out and '# spa.toml [check.model."nets/a.onnx"]' in out and "# default" in out
    code, out, _ = call(capsys, "config", "show", "--json", "--origin")
    table = json.loads(out)["settings"]['check.model."nets/a.onnx"']
    assert table["budgets.params"] == {"value": 9, "origin": "spa.toml [check]"}


def test_pyproject_counts_and_the_nearest_file_wins(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = repository / "inner"
    network(inner / "c.onnx", {"head": 4})
    (inner / "pyproject.toml").write_text('[tool.spa.check]\nmodels = ["c.onnx"]\nbudgets = { params = 10 }\n')
    (inner / "deep").mkdir()
    monkeypatch.chdir(inner / "deep")
    code, out, _ = call(capsys, "check")
    assert code == 1 and "FAILED c.onnx" in out and "params is 32" in out
    (inner / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert load().file == repository / "spa.toml", "a pyproject.toml without [tool.spa] is none of ours"
    assert load().key(inner / "c.onnx") == "inner/c.onnx"


def test_a_model_that_links_to_a_store_keeps_its_name(repository: Path) -> None:
    path = repository / "nets" / "a.onnx"
    store = repository / "store" / "0f"
    store.parent.mkdir()
    path.rename(store)
    path.symlink_to(store)
    configure(repository, '[check]\nmodels = ["nets/*.onnx"]\n[check.model."nets/a.onnx"]\nbudgets = { params = 1 }\n')
    (row,) = spa.check().models
    assert (row.key, row.status) == ("nets/a.onnx", "failed")


def test_shapes_of_the_configuration_count(repository: Path) -> None:
    path = repository / "nets" / "a.onnx"
    one, four = (measure(path, Wanted(shapes=shapes), frozenset()).metrics["macs"] for shapes in ({}, {"x": (4, 8)}))
    assert four == 4 * one


# Numbers ---------------------------------------------------------------------------------------------------------


def test_what_is_measured_is_what_the_file_holds(repository: Path) -> None:
    path = network(repository / "nets" / "a.onnx", WIDTHS, dtypes={"stem": np.float16, "head": np.int8})
    found = measure(path, Wanted(), frozenset({"gzip_bytes", "packed_bytes"}))
    data = path.read_bytes()
    proto = onnx.load(path)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    cost = inspect(spa.load(path))
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.metrics["file_bytes"] == len(data)
    assert (found.metrics["file_bytes"], found.metrics["gzip_bytes"]) == file_sizes(spa.load(path))
    assert abs(found.metrics["gzip_bytes"] - len(gzip.compress(data, 6))) <= 32
    assert found.metrics["params"] == sum(w.size for w in weights.values()) == cost.params
    assert found.metrics["nonzero"] == sum(np.count_nonzero(w) for w in weights.values())
    assert found.metrics["macs"] == 8 * 16 + 16 * 32 + 32 * 16 + 16 * 4
    assert found.metrics["peak_activation_bytes"] == 4 * (32 + 32)
    assert (found.metrics["nodes"], found.metrics["opset"]) == (len(proto.graph.node), 18)
    assert 0 < found.metrics["packed_bytes"] <= found.metrics["bytes"] + 64 * len(weights)
    rows = {layer.name: layer for layer in found.layers}
    assert {n: layer.dtype for n, layer in rows.items()} == {
        "stem": "float16",
        "middle": "float32",
        "tail": "float32",
        "head": "int8",
    }
    for name, layer in rows.items():
        weight = weights[f"{name}.weight"]
        assert (layer.params, layer.bytes, layer.nonzero) == (weight.size, weight.nbytes, np.count_nonzero(weight))


def test_data_beside_the_model_count(tmp_path: Path) -> None:
    proto = onnx.load(network(tmp_path / "a.onnx", WIDTHS))
    onnx.save(proto, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=16)
    inside, outside = (measure(tmp_path / name, Wanted(), frozenset({"gzip_bytes"})) for name in ("a.onnx", "b.onnx"))
    files = [tmp_path / "b.onnx", tmp_path / "b.data"]
    assert outside.metrics["file_bytes"] == sum(f.stat().st_size for f in files)
    assert outside.sha256 == hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    assert outside.layers == inside.layers
    assert outside.metrics["gzip_bytes"] == file_sizes(spa.load(tmp_path / "b.onnx"))[1]


def test_each_model_is_read_once(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens of model files, counted by Python's audit hook in a process of its own."""
    code = (
        "import sys, collections\n"
        "seen = collections.Counter()\n"
        "sys.addaudithook(lambda e, a: seen.update([str(a[0])]) if e == 'open' and str(a[0]).endswith('.onnx') else None)\n"
        "import spa\n"
        "report = spa.check(budgets={'gzip_bytes': '1MB', 'nonzero': '1M', 'macs': '1M', 'file_bytes': '1MB'})\n"
        "assert report.ok, report\n"
        "print(list(seen.values()))"
    )
    network(repository / "nets" / "b.onnx", {"head": 4})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 1]"


def test_gzip_is_measured_only_where_it_is_asked_or_known(repository: Path) -> None:
    plain = spa.check(update=True).models[0]
    assert plain.now is not None and "gzip_bytes" not in plain.now.metrics
    spa.check(update=True, budgets={"gzip_bytes": "1MB"})
    again = spa.check().models[0]
    assert again.now is not None and "gzip_bytes" in again.now.metrics


@given(st.floats(-1e9, 1e9), st.floats(-90, 90))
@settings(max_examples=50)
def test_relative_limits(baseline: float, percent: float) -> None:
    bound = parse_limit("macs", f"{percent:+f}%").bound(baseline)
    assert bound == pytest.approx(baseline + abs(baseline) * round(percent, 6) / 100)
    assert parse_limit("macs", f"{percent:+f}").bound(baseline) == pytest.approx(baseline + round(percent, 6))
    assert parse_limit("macs", percent).bound(None) == percent


def test_floors_forgive_small_changes_but_not_absolute_limits(repository: Path) -> None:
    spa.check(update=True)
    path = network(repository / "nets" / "a.onnx", {**WIDTHS, "head": 5})
    more = 16  # multiply-accumulates of one more output
    for floor, status in ((more - 1, "failed"), (more, "ignored")):
        configure(
            repository,
            f'[check]\nmodels = ["nets/*.onnx"]\nbudgets = {{ macs = ["+0%", 2e6] }}\nfloors = {{ macs = {floor} }}\n',
        )
        first, second = spa.check().models[0].findings
        assert (first.status, second.status) == (status, "ok")
    configure(repository, '[check]\nmodels = ["nets/*.onnx"]\nbudgets = { macs = 1231 }\nfloors = { macs = 1000 }\n')
    assert inspect(spa.load(path)).macs == 1232
    assert spa.check().models[0].findings[0].status == "failed"


# Layers ----------------------------------------------------------------------------------------------------------


def layers(*rows: Sequence[Any]) -> list[Layer]:
    return [Layer(name, "Conv", "float32", (1, n), n, n, 4 * n, n) for name, n in rows]


def told(before: list[Layer], after: list[Layer]) -> list[tuple[str, str]]:
    return [(c.layer.name, c.word()) for c in changes(before, after)]


def test_numbered_names_that_shift_are_no_change() -> None:
    old = layers(("Conv_0", 8), ("Conv_1", 16), ("Conv_2", 32), ("Conv_3", 64))
    new = layers(("Conv_0", 8), ("Conv_1", 11), ("Conv_2", 16), ("Conv_3", 32), ("Conv_4", 64))
    assert told(old, new) == [("Conv_1", "appeared")]
    assert told(new, old) == [("Conv_1", "vanished")]


def test_names_are_believed_where_layers_are_alike() -> None:
    old = layers(("a", 8), ("b", 8), ("c", 8))
    assert told(old, layers(("a", 8), ("c", 8))) == [("b", "vanished")]
    assert told(old, layers(("c", 8), ("a", 8), ("b", 8))) == [], "another order is no change"


def test_layers_of_one_name_are_told_apart(tmp_path: Path) -> None:
    twice = layers(("a", 8), ("a", 9), ("a#2", 10), ("", 3))
    names = [name for name, _ in baselines.named(tuple(twice))]
    assert len(set(names)) == 4 and names[0] == "a" and "a#2" in names


# The baseline ----------------------------------------------------------------------------------------------------


def test_the_baseline_reads_well_and_survives_a_round_trip(repository: Path) -> None:
    network(repository / "nets" / "0.onnx", {'hostile "name"\n<b>é': 4})
    spa.check(update=True)
    file = repository / "spa-baseline.json"
    text = file.read_text("utf-8")
    assert text.endswith("}\n") and not text.endswith("\n\n")
    lines = [line for line in text.splitlines() if '"op"' in line]
    assert len(lines) == 5, "one line per layer"
    document = json.loads(text)
    assert list(document["models"]) == sorted(document["models"])
    assert list(document["models"]["nets/a.onnx"]["layers"]) == list(WIDTHS), "in the order of the graph"
    found = baselines.load(file)
    assert found is not None and baselines.text_of(found) == text
    stamp = file.stat().st_mtime_ns
    assert not spa.check(update=True).updated and file.stat().st_mtime_ns == stamp, "nothing new, nothing written"


def test_the_baseline_fits_its_schema(repository: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs" / "schemas" / "baseline.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    spa.check(update=True)
    document = json.loads((repository / "spa-baseline.json").read_text())
    jsonschema.validate(document, schema)
    for wrong in ({**document, "schema": 2}, {k: v for k, v in document.items() if k != "models"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_write_that_fails_leaves_the_old_baseline(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spa.check(update=True)
    before = (repository / "spa-baseline.json").read_bytes()
    network(repository / "nets" / "a.onnx", {"head": 4})

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="cannot be written: No space left"):
        spa.check(update=True)
    monkeypatch.undo()
    assert (repository / "spa-baseline.json").read_bytes() == before
    assert sorted(p.name for p in repository.iterdir()) == ["nets", "spa-baseline.json", "spa.toml"]


# What must be run ------------------------------------------------------------------------------------------------


def test_drift_accuracy_and_speed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network(repository / "dense.onnx", WIDTHS)
    path = network(repository / "nets" / "a.onnx", WIDTHS, seed=1)
    (repository / "graded_check.py").write_text("def accuracy(path):\n    return 0.9\n")
    text = (
        '[check]\nmodels = ["nets/*.onnx"]\nreference = "dense.onnx"\nmetric = "graded_check:accuracy"\n'
        'record = ["latency_ms"]\nbudgets = {{ drift = {drift}, accuracy = {accuracy}, speedup = {speedup} }}\n'
    )
    configure(repository, text.format(drift=0.01, accuracy=0.95, speedup=1e9))
    (row,) = spa.check(start=repository).models
    assert {f.metric: f.status for f in row.findings} == dict.fromkeys(("drift", "accuracy", "speedup"), "failed")
    assert row.now is not None and row.now.metrics["latency_ms"] > 0 and row.now.metrics["accuracy"] == 0.9
    network(path, WIDTHS)
    configure(repository, text.format(drift=0, accuracy=0.9, speedup=1e-9))
    assert spa.check(start=repository).ok, "the reference itself does not drift"
    configure(
        repository, '[check]\nmodels = ["nets/*"]\nmetric = "graded_check:accuracy"\nbudgets = { accuracy = "-1%" }\n'
    )
    spa.check(update=True)
    (repository / "graded_check.py").write_text("def accuracy(path):\n    return 0.88\n")
    code = "import spa; report = spa.check(); print(report); raise SystemExit(report.exit_code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 1 and "accuracy is 0.88, at least 0.891 is allowed" in done.stdout, (
        done.stdout + done.stderr
    )


def test_bytes_of_a_bundle_and_one_that_is_stale(repository: Path) -> None:
    path = repository / "nets" / "a.onnx"
    folder = repository / "made.spa"
    (folder / "host").mkdir(parents=True)
    (folder / "host" / "liba.so").write_bytes(b"x" * 5000)
    manifest = {
        "schema": 1,
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "targets": {"host": {"path": "host", "library": "liba.so", "code_bytes": 700}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    configure(
        repository,
        '[check]\nmodels = ["nets/*.onnx"]\nbundle = "made.spa"\n'
        "[check.budgets]\nartifact_bytes.host = 4999\ncode_bytes.host = 700\n",
    )
    first, second = spa.check().models[0].findings
    assert (first.value, first.status, second.value, second.status) == (5000, "failed", 700, "ok")
    network(path, {"head": 4})
    (row,) = spa.check().models
    assert row.status == "error" and "another network" in str(row.error) and spa.check().exit_code == 1


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs" / "check.md").read_text("utf-8")
    assert all(f"`{name}{'.TARGET' if kind.per_target else ''}`" in text for name, kind in KINDS.items())
    example = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0]
    table = tomllib.loads(example)["check"]
    root = Path("nowhere")
    assert Wanted.of(dict(flat({k: v for k, v in table.items() if k in PER_MODEL}, "")), root).shapes
    assert Wanted.of(dict(flat(table["model"]["models/digits.onnx"], "")), root).record == {"latency_ms"}


# pytest ----------------------------------------------------------------------------------------------------------


def under_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "spa.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_fixture_fails_with_the_text_of_the_check(repository: Path) -> None:
    (repository / "pytest.ini").write_text("[pytest]\n")
    (repository / "test_sizes.py").write_text(
        "def test_all(spa_check):\n    spa_check()\n\n"
        "def test_one(spa_check):\n    spa_check('nets/a.onnx', file_bytes='1KB', macs='1G')\n"
    )
    missing = under_pytest(repository)
    assert missing.returncode == 1 and "there is no baseline" in missing.stdout
    assert "1 passed" in under_pytest(repository, "--spa-update", "-k", "all").stdout
    done = under_pytest(repository)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout and "at most 1.00 kB is allowed" in done.stdout


def test_the_plugin_is_declared_and_imports_nothing_heavy() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]["pytest11"]
    assert list(declared.values()) == ["spa.pytest_plugin"]
    code = (
        "import sys, spa.pytest_plugin\n"
        "print(sorted({'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'click', 'rich', 'spa.checking'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
