"""Recipes: a bundle's own replays to the same bytes, settings win in their order, and what nobody knows is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prune_cli import call

import spa
from spa import recipe, recipe_text
from spa.cli.prune import prune
from spa.errors import UsageError
from spa.pipeline import PASSES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network and its calibration inputs, the working directory."""
    for name in ("digits.onnx", "digits.npz"):
        shutil.copy(models / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("SPA_PRUNE")]:
        monkeypatch.delenv(name)
    return tmp_path


def state(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def ok(*args: Any) -> str:
    code, out, err = call(*args)
    assert code == 0, err
    return out


def origins(*args: Any) -> dict[str, dict[str, Any]]:
    tables = json.loads(ok("config", "show", "--origin", "--json", *args))["settings"]
    return {f"{t}.{k}".removeprefix("prune").lstrip("."): v for t, s in tables.items() for k, v in s.items()}


# Replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--macs", "0.6", "--calib", "digits.npz{samples=64}", "--seed", "3", "--shape", "x:1,1,8,8"),
        ("--ratio", "0.25", "--keep", "stem*", "--align", "4", "--sparsity", "2:4", "--no-rearrange", "--no-fold"),
        ("--pipeline", "slice{ratio=0.5},fold,halve"),
        ("--max-drift", "0.2", "--no-verify"),
        (),
    ],
)
def test_a_bundle_replays_to_the_same_bytes(place: Path, options: tuple[str, ...]) -> None:
    ok("prune", "digits.onnx", "-o", "first/bundle", *options)
    ok("prune", "--recipe", "first/bundle/recipe.toml", "-o", "again/bundle")
    assert state(place / "first") == state(place / "again")
    assert "recipe.toml" in state(place / "first/bundle")


@pytest.mark.codegen
def test_a_compiled_bundle_moved_with_its_inputs_replays_elsewhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok("prune", "digits.onnx", "-o", "run", "--ratio", "0.5", "--target", "wasm", "--shape", "x:1,1,8,8")
    other = place / "other"
    other.mkdir()
    shutil.copy("digits.onnx", other)
    shutil.copytree("run", other / "run")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ok("prune", "--recipe", "../other/run/recipe.toml", "-o", "../other/twin")
    assert state(place / "run") == state(other / "twin")
    assert "wasm/digits.wasm" in state(other / "twin")


def test_what_is_written_names_no_place_of_this_machine(place: Path) -> None:
    ok("prune", place / "digits.onnx", "-o", place / "run", "--ratio", "0.5", "--calib", place / "digits.npz")
    text = (place / "run" / "recipe.toml").read_text() + (place / "run" / "report.json").read_text()
    assert str(place) not in text and 'model = "../digits.onnx"' in text
    found = tomllib.loads((place / "run" / "recipe.toml").read_text())
    assert found["sha256"]["model"] == hashlib.sha256(Path("digits.onnx").read_bytes()).hexdigest()
    assert found["versions"]["spa"] == spa.__version__
    report = json.loads((place / "run" / "report.json").read_text())
    assert report["command"] == "spa prune ../digits.onnx --ratio 0.5 --calib ../digits.npz"
    assert report["environment"] == found["versions"]


def test_the_command_of_the_report_runs_from_the_bundle(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok("prune", "digits.onnx", "-o", "run", "--ratio", "0.25", "--allow-approximate", "--keep", "down*", "--no-fold")
    command = shlex.split(json.loads(Path("run/report.json").read_text())["command"])
    monkeypatch.chdir(place / "run")
    ok(*command[1:], "-o", "../twin")
    assert state(place / "run") == state(place / "twin")


def test_another_model_or_version_is_told(place: Path) -> None:
    ok("prune", "digits.onnx", "-o", "run", "--ratio", "0.5")
    assert "not as the recipe" not in call("prune", "--recipe", "run/recipe.toml", "-n")[2]
    proto = onnx.load("digits.onnx")
    proto.doc_string = "retrained"
    onnx.save(proto, "digits.onnx")
    text = Path("run/recipe.toml").read_text()
    Path("run/recipe.toml").write_text(text.replace(f'spa = "{spa.__version__}"', 'spa = "0.0.0"'))
    code, _, err = call("prune", "--recipe", "run/recipe.toml", "-n")
    assert code == 0 and f"spa {spa.__version__} instead of 0.0.0" in err and "another model file" in err


# Who wins --------------------------------------------------------------------------------------------------------


def test_the_order_is_default_project_recipe_environment_command_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "spa.toml").write_text(
        '[prune]\nseed = 1\ntargets = ["host"]\nchoice = { scope = "local", align = 2 }\n[prune.budget]\nmacs = 0.9\n'
    )
    (place / "r.toml").write_text('schema = 1\nmodel = "digits.onnx"\nseed = 2\n[choice]\nalign = 3\nkeep = ["a*"]\n')
    monkeypatch.setenv("SPA_PRUNE_ALIGN", "4")
    found = origins("--recipe", "r.toml", "--", "--keep", "b*")
    assert found["budget.macs"] == {"value": 0.9, "origin": "spa.toml [prune.budget]"}
    assert found["choice.scope"] == {"value": "local", "origin": "spa.toml [prune.choice]"}
    assert found["seed"] == {"value": 2, "origin": "r.toml"}
    assert found["targets"] == {"value": ["host"], "origin": "spa.toml [prune]"}
    assert found["choice.align"] == {"value": 4, "origin": "environment SPA_PRUNE_ALIGN"}
    assert found["choice.keep"] == {"value": ["b*"], "origin": "command line"}
    assert found["passes.fold"] == {"value": True, "origin": "default"}
    assert found["budget.ratio"] == {"value": None, "origin": "default"}


def test_lists_and_switches_come_from_the_environment_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_PRUNE_TARGETS", "host wasm")
    monkeypatch.setenv("SPA_PRUNE_NO_FOLD", "1")
    found = origins()
    assert found["targets"] == {"value": ["host", "wasm"], "origin": "environment SPA_PRUNE_TARGETS"}
    assert found["passes.fold"] == {"value": False, "origin": "environment SPA_PRUNE_NO_FOLD"}
    assert origins("--", "--fold")["passes.fold"] == {"value": True, "origin": "command line"}


def test_settings_take_effect(place: Path) -> None:
    (place / "pyproject.toml").write_text(
        "[tool.spa.prune.budget]\nratio = 0.5\n[tool.spa.prune.passes]\nfold = false\n"
    )
    assert (
        json.loads(ok("prune", "digits.onnx", "-n", "--json"))["after"]
        == json.loads(ok("prune", "digits.onnx", "-n", "--json", "--ratio", "0.5", "--no-fold"))["after"]
    )
    folded = json.loads(ok("prune", "digits.onnx", "-n", "--json", "--fold"))["after"]
    unfolded = json.loads(ok("prune", "digits.onnx", "-n", "--json"))["after"]
    assert folded["params"] < unfolded["params"]


@pytest.mark.parametrize("by", ["recipe", "environment", "command line"])
def test_a_budget_from_a_stronger_place_takes_the_others(place: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    (place / "spa.toml").write_text("[prune.budget]\nmacs = 0.9\n")
    (place / "r.toml").write_text('schema = 1\nmodel = "digits.onnx"\n[budget]\nratio = 0.5\n')
    arguments = ["--recipe", "r.toml"] if by == "recipe" else ["digits.onnx"]
    arguments += ["--ratio", "0.5"] if by == "command line" else []
    if by == "environment":
        monkeypatch.setenv("SPA_PRUNE_RATIO", "0.5")
    half = json.loads(ok("prune", *arguments, "-n", "--json"))["after"]
    (place / "spa.toml").unlink()
    monkeypatch.delenv("SPA_PRUNE_RATIO", raising=False)
    assert half == json.loads(ok("prune", "digits.onnx", "--ratio", "0.5", "-n", "--json"))["after"]
    assert call("prune", "digits.onnx", "--ratio", "0.5", "--macs", "0.5", "-n")[0] == 2


# What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema = 1\n[budgt]\nmacs = 0.5\n", ["'budgt'", "did you mean 'budget'?"]),
        ("schema = 1\n[budget]\nmac = 0.5\n", ["'mac'", "r.toml [budget]", "did you mean 'macs'?"]),
        ("schema = 1\nmacs = 0.5\n", ["'macs'", "did you mean 'budget.macs'?"]),
        ("schema = 1\ncalib = 'x'\n", ["'calib'", "did you mean 'calibration.inputs'?"]),
        ("schema = 1\n[budget]\nmacs = '0.5'\n", ["'budget.macs' is '0.5', not a number", "[budget]"]),
        ("schema = 1\n[passes]\nfold = 1\n", ["not true or false"]),
        ("schema = 1\nseed = 1.5\n", ["not a whole number"]),
        ("schema = 1\n[shapes]\nx = [1, 0]\n", ["not a table"]),
        ("schema = 1\nbudget = 3\n", ["'budget' is 3, not a table"]),
        ("schema = 2\n", ["schema 2"]),
        ("seed = 1\n", ["no schema", "schema = 1"]),
        ("schema = 1\n[[\n", ["cannot read the recipe"]),
        ("schema = 1\n", ["MODEL"]),
    ],
)
def test_a_wrong_recipe_says_where_and_what_was_meant(place: Path, text: str, words: list[str]) -> None:
    (place / "r.toml").write_text(text)
    before = state(place)
    code, out, err = call("prune", "--recipe", "r.toml")
    assert code == 2 and not out and state(place) == before
    assert all(word in err for word in words), err


def test_a_wrong_project_file_says_where(place: Path) -> None:
    (place / "spa.toml").write_text("[prun]\nseed = 1\n")
    assert "did you mean 'prune'?" in call("prune", "digits.onnx", "-n")[2]
    (place / "spa.toml").write_text("[prune.budget]\nmax_drfit = 1\n")
    code, _, err = call("prune", "digits.onnx", "-n")
    assert code == 2 and "spa.toml [prune.budget]" in err and "did you mean 'max_drift'?" in err


def test_no_recipe_is_said(place: Path) -> None:
    code, _, err = call("prune", "--recipe", "missing.toml", "-n")
    assert code == 2 and "missing.toml" in err


# Pipelines -------------------------------------------------------------------------------------------------------


def test_a_pipeline_is_the_whole_run(place: Path) -> None:
    text = "fold,slice{ratio=0.5},rearrange{pattern=2:4}"
    document = json.loads(ok("prune", "digits.onnx", "-o", "run", "--pipeline", text, "--json"))
    same = spa.Pipeline.parse(text).run(spa.load("digits.onnx")).model
    spa.Model(same.ir, None).save(place / "same.onnx")
    assert spa.verify(spa.load("same.onnx"), spa.load("run/model.onnx")).ok
    assert [row["exact"] for row in document["passes"]] == [True] * 3 and document["verified"]["ok"]
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["pipeline"] == text and plan["removed"]
    ok("verify", "digits.onnx", "run/model.onnx", "--plan", "run/plan.json")  # the plan speaks of the input model


def test_what_passes_change_is_told(place: Path) -> None:
    document = json.loads(ok("prune", "digits.onnx", "-o", "run", "--ratio", "0.25", "--pipeline", "halve", "--json"))
    (row,) = document["passes"]
    assert not row["exact"] and 0 < row["error"] < 0.01
    assert json.loads(Path("run/plan.json").read_text())["pipeline"] == "slice,fold,halve"
    assert "halve: outputs change by" in ok("prune", "digits.onnx", "-n", "--ratio", "0.25", "--pipeline", "halve")


def test_two_cuts_have_no_plan_of_the_input(place: Path) -> None:
    code, _, err = call("prune", "digits.onnx", "-o", "run", "--pipeline", "slice{ratio=0.25},slice{ratio=0.25}")
    assert code == 0 and "no plan is written" in err
    assert "plan.json" not in state(place / "run")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--pipeline", "slise{ratio=0.5}"], "did you mean 'slice'?"),
        (["--pipeline", ""], "empty"),
        (["--macs", "0.5", "--pipeline", "slice{ratio=0.5}"], "both choose channels"),
        (["--pipeline", "slice{ratio=0.5"], "cannot read the pipeline"),
    ],
)
def test_wrong_pipelines(place: Path, args: list[str], words: str) -> None:
    code, _, err = call("prune", "digits.onnx", "-o", "o.onnx", *args)
    assert code == 2 and words in err and not Path("o.onnx").exists()


def test_an_exact_pass_that_is_not_is_caught(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spa.passes.sparsify import Sparsify

    monkeypatch.setattr(Sparsify, "exact", True, raising=False)
    text = "sparsify{pattern=unstructured:0.5}"
    code, _, err = call("prune", "digits.onnx", "-o", "o.onnx", "--pipeline", text)
    assert code == 1 and f"the pass {text} changes the network" in err and not Path("o.onnx").exists()


# The table behind it ---------------------------------------------------------------------------------------------

NOT_SETTINGS = {"out", "plan_out", "dry_run", "force", "as_json", "recipe", "workers", "cluster"}


def test_every_option_is_a_setting_and_every_setting_an_option() -> None:
    options = {p.name for p in prune.params} - NOT_SETTINGS
    assert options == {k.option for k in recipe.KEYS}
    flags = {word for p in prune.params for word in p.opts}
    assert {k.word for k in recipe.KEYS if k.option != "model"} <= flags
    assert "slice" in PASSES


def test_the_published_schema_is_that_of_the_table(place: Path) -> None:
    published = json.loads((ROOT / "docs" / "schemas" / "recipe.json").read_text("utf-8"))
    assert published == json.loads(json.dumps(recipe_text.schema()))
    jsonschema.Draft202012Validator.check_schema(published)
    ok("prune", "digits.onnx", "-o", "run", "--ratio", "0.5", "--shape", "x:1,1,8,8", "--keep", "stem*")
    jsonschema.validate(tomllib.loads(Path("run/recipe.toml").read_text()), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": 1, "budget": {"mac": 0.5}}, published)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.booleans(), st.floats(0.1, 1))
def test_what_is_written_is_read_again(texts: list[str], switch: bool, number: float) -> None:
    options = {"keep": tuple(texts), "no_fold": switch, "macs": number, "criterion": texts[0]}
    text = recipe_text.written(options, Path("/a"), {"versions": {texts[0]: texts[-1]}})
    table = tomllib.loads(text)
    del table["schema"]
    found = recipe.read(table, Path("/a"), "r.toml")
    assert {**found.options} == options
    assert found.notes["versions"] == {texts[0]: texts[-1]}


def test_paths_are_of_the_recipes_folder() -> None:
    table = {"model": "../m.onnx", "calibration": {"inputs": "pictures{mean=0.5}"}, "verify": {"inputs": "x.npz"}}
    found = recipe.read(table, Path("some/where"), "r.toml").options
    assert Path(found["model"]) == Path("some/where/../m.onnx")
    assert found["calib"] == f"{Path('some/where/pictures')}{{mean=0.5}}"
    for plain in ("synthetic", "weights", "package.module:function", "synthetic{samples=3}"):
        assert recipe.read({"calibration": {"inputs": plain}}, Path("x"), "").options["calib"] == plain
    with pytest.raises(UsageError, match="not a path"):
        recipe.read({"model": 3}, Path(), "")


# Completion ------------------------------------------------------------------------------------------------------


def complete(place: Path, shell: str, words: str) -> list[str]:
    """What a shell would be offered behind `words`, through the protocol of its script."""
    last = "" if words.endswith(" ") else words.split()[-1]
    index = len(words.split()) - (1 if last else 0)
    environment = {**os.environ, "_SPA_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
    environment["COMP_CWORD"] = last if shell == "fish" else str(index)
    code = "import sys; sys.argv[0] = 'spa'; from spa.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=place, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split("\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("spa pr", "prune"),
        ("spa prune d", "digits.onnx"),
        ("spa prune --target w", "wasm"),
        ("spa prune --criterion tay", "taylor"),
        ("spa prune --recipe r", "r.toml"),
        ("spa config show --or", "--origin"),
    ],
)
def test_bash_is_offered_commands_and_values(place: Path, words: str, offered: str) -> None:
    (place / "r.toml").write_text("schema = 1\n")
    assert f"plain,{offered}" in complete(place, "bash", words)


SYNTAX = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}


@pytest.mark.parametrize("shell", SYNTAX)
def test_the_script_is_one_of_its_shell(place: Path, shell: str) -> None:
    script = ok("completion", shell)
    assert f"_SPA_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (place / "script").write_text(script)
    done = subprocess.run([*SYNTAX[shell], str(place / "script")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bash_itself_completes(place: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    program = place / "spa"
    program.write_text(f"#!{sys.executable}\nimport sys; sys.argv[0] = 'spa'\nfrom spa.cli import main\nmain()\n")
    program.chmod(0o755)
    script = f"""
{ok("completion", "bash").replace("compopt", ": compopt")}
COMP_WORDS=(spa explain di) COMP_CWORD=2
_spa_completion ./spa explain
COMP_WORDS=({program} prune --target wa) COMP_CWORD=3
COMPREPLY=()
_spa_completion {program} prune
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=place, capture_output=True, text=True)
    assert done.stdout.split() == ["wasm"], done.stderr
