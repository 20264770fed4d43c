"""The GitHub Action's steps as the runner would run them, the pre-commit hook, the GitLab job, the Dockerfile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_check import WIDTHS, network

import spa

yaml = pytest.importorskip("yaml")
bash = shutil.which("bash")
pytestmark = pytest.mark.skipif(bash is None, reason="needs bash")

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
PYTHON3 = """#!/bin/bash
# python3 -m venv FOLDER: a folder whose python tells what it was asked to install, and whose spa is this checkout's
[ "$1 $2" = "-m venv" ] || exit 9
mkdir -p "$3/bin"
printf '#!/bin/bash\\nprintf "%%s\\\\n" "$@" > "$LOG/installed"\\n' > "$3/bin/python"
printf '#!/bin/bash\\nexec {python} -c "from spa.cli import main; main()" "$@"\\n' > "$3/bin/spa"
chmod +x "$3/bin/python" "$3/bin/spa"
"""
GH = """#!/bin/bash
# tells what it was asked, and answers the question for comments
printf '%s\\n' "$@" > "$LOG/gh.$(ls "$LOG" | grep -c '^gh')"
case "$*" in *--paginate*) printf '%s' "$COMMENTS";; esac
"""


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A repository with one network and its baseline, a temporary folder, and stand-ins for python3 and gh."""
    repository = tmp_path / "repository"
    network(repository / "nets" / "a b.onnx", WIDTHS)
    (repository / "spa.toml").write_text('[check]\nmodels = ["nets/*.onnx"]\n')
    spa.check(config=repository / "spa.toml", update=True)
    for folder in ("bin", "temp", "log"):
        (tmp_path / folder).mkdir()
    for name, text in (("python3", PYTHON3.replace("{python}", sys.executable)), ("gh", GH)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def resolve(text: str, context: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: context[found[1]], text)


def steps(runner: Path, inputs: dict[str, str] | None = None, comments: str = "") -> list[int]:
    """Exit codes of the action's steps, run in turn until one fails; the last runs in any case (`always()`)."""
    given = {name: str(row.get("default", "")) for name, row in ACTION["inputs"].items()} | (inputs or {})
    context = {f"inputs.{name}": value for name, value in given.items()} | {
        "github.action_path": str(ROOT),
        "github.token": "t0ken",
        "github.repository": "me/nets",
        "github.event.pull_request.number": "7",
        "runner.temp": str(runner / "temp"),
    }
    context = {k: resolve(v, context) for k, v in context.items()}
    codes: list[int] = []
    for step in ACTION["runs"]["steps"]:
        if any(codes) and "always()" not in step.get("if", ""):
            continue
        environment = {
            **os.environ,
            **{k: resolve(str(v), context) for k, v in step["env"].items()},
            "PATH": f"{runner / 'bin'}:{os.environ['PATH']}",
            "LOG": str(runner / "log"),
            "COMMENTS": comments,
            "GITHUB_OUTPUT": str(runner / "log" / "output"),
            "GITHUB_STEP_SUMMARY": str(runner / "log" / "summary.md"),
            "GITHUB_WORKSPACE": str(runner / "repository"),
        }
        folder = runner / "repository" / resolve(step.get("working-directory", "."), context)
        script = runner / "step.sh"
        script.write_text(step["run"])
        command = [str(bash), "--noprofile", "--norc", "-eo", "pipefail", str(script)]  # what `shell: bash` stands for
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        (runner / "log" / f"{step['name']}.out").write_text(done.stdout + done.stderr)
        codes.append(done.returncode)
    return codes


def asked(runner: Path) -> list[list[str]]:
    """The calls of gh."""
    return [path.read_text().splitlines() for path in sorted((runner / "log").glob("gh.*"))]


def test_inputs_never_become_part_of_a_script() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"], step["name"]
        assert step["shell"] == "bash"


def test_a_model_within_its_limits_passes(runner: Path) -> None:
    assert steps(runner) == [0, 0, 0]
    assert (runner / "log" / "installed").read_text().splitlines()[-1] == str(ROOT)
    output = (runner / "log" / "output").read_text()
    assert "exit-code=0" in output
    report = json.loads(Path(re.findall("report=(.*)", output)[0]).read_text())
    assert report["ok"] and report["models"][0]["model"] == "nets/a b.onnx"


def test_a_larger_model_fails_with_annotations_summary_and_comment(runner: Path) -> None:
    network(runner / "repository" / "nets" / "a b.onnx", {**WIDTHS, "head": 64})
    assert steps(runner) == [0, 1, 0]
    out = (runner / "log" / "Check.out").read_text()
    assert "::error file=nets/a b.onnx,title=spa check%3A params of nets/a b.onnx::" in out and "head grew" in out
    assert "exit-code=1" in (runner / "log" / "output").read_text()
    assert "head" in (runner / "log" / "summary.md").read_text()
    first, second = asked(runner)
    assert "repos/me/nets/issues/7/comments" in first and "--jq" in first
    assert "POST" in second and f"body=@{runner / 'temp' / 'spa-check' / 'report.md'}" in second


def test_the_comment_that_is_there_is_changed(runner: Path) -> None:
    steps(runner, comments="41\n42\n")
    _, second = asked(runner)
    assert "PATCH" in second and "repos/me/nets/issues/comments/41" in second


def test_names_with_shell_signs_are_names(runner: Path) -> None:
    name = "$(touch pwned) `x` ;.onnx"
    network(runner / "repository" / "nets" / name, {"head": 4})
    codes = steps(runner, {"models": f"nets/a b.onnx\nnets/{name}\n", "sarif": "out/x.sarif", "extras": "codegen"})
    assert codes[:2] == [0, 1], "the second has no baseline"
    assert (runner / "log" / "installed").read_text().splitlines()[-1] == f"{ROOT}[codegen]"
    assert not (runner / "repository" / "pwned").exists()
    document = json.loads((runner / "repository" / "out" / "x.sarif").read_text())
    uris = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in document["runs"][0]["results"]}
    assert uris == {"nets/%24%28touch%20pwned%29%20%60x%60%20%3B.onnx"}


def test_a_corrupt_baseline_fails_without_a_comment(runner: Path) -> None:
    (runner / "repository" / "spa-baseline.json").write_text("{")
    assert steps(runner) == [0, 2, 0]
    assert "corrupt" in (runner / "log" / "Check.out").read_text() and not asked(runner)


def test_only_a_bots_comment_with_the_mark_is_ours() -> None:
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    (step,) = [s for s in ACTION["runs"]["steps"] if s["name"] == "Comment"]
    question = re.findall("mine='(.*)'", step["run"])[0]
    mark = "<!-- spa-check -->"
    rows = [(1, "User", f"{mark} not mine"), (2, "Bot", "other"), (3, "Bot", f"{mark}\n### spa"), (4, "Bot", mark)]
    page = json.dumps([{"id": i, "user": {"type": kind}, "body": body} for i, kind, body in rows])
    for text, wanted in ((page, "3\n"), ("[]", "")):
        done = subprocess.run(["jq", "-r", question], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, wanted), done.stderr


# Others ----------------------------------------------------------------------------------------------------------


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """With a `spa` first on the path that is this checkout's."""
    (folder / ".bin").mkdir(exist_ok=True)
    program = folder / ".bin" / "spa"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -c "from spa.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_pre_commit_hook_checks_what_is_configured(runner: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert {"id", "name", "entry", "language"} <= set(hook) and hook["pass_filenames"] is False
    for name, wanted in {
        "nets/a.onnx": True,
        "nets/a.onnx.data": True,
        "spa.toml": True,
        "sub/spa-baseline.json": True,
        "my-spa.toml": False,
        "a.py": False,
        "onnx": False,
    }.items():
        assert bool(re.search(hook["files"], name)) is wanted, name
    command = [str(bash), "-c", hook["entry"]]
    assert run(command, runner / "repository").returncode == 0
    network(runner / "repository" / "nets" / "a b.onnx", {**WIDTHS, "head": 64})
    done = run(command, runner / "repository")
    assert done.returncode == 1 and "head grew" in done.stdout
    example = yaml.safe_load((ROOT / "examples" / "ci" / "pre-commit-config.yaml").read_text("utf-8"))
    assert example["repos"][0]["hooks"] == [{"id": hook["id"]}]


def test_the_gitlab_job_writes_the_reports_it_names(runner: Path) -> None:
    job = yaml.safe_load((ROOT / "examples" / "ci" / "gitlab-ci.yml").read_text("utf-8"))["models"]
    network(runner / "repository" / "nets" / "a b.onnx", {**WIDTHS, "head": 64})
    done = run([str(bash), "-e", "-c", "\n".join(job["script"])], runner / "repository")
    assert done.returncode == 1
    for name in [job["artifacts"]["reports"]["junit"], *job["artifacts"]["paths"]]:
        assert "head" in (runner / "repository" / name).read_text()
    assert job["artifacts"]["when"] == "always", "reports are for runs that fail"


def test_the_workflow_and_its_configuration_fit_the_action(runner: Path) -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "ci" / "github.yml").read_text("utf-8"))
    used = workflow["jobs"]["check"]["steps"][-1]
    assert set(used["with"]) <= set(ACTION["inputs"])
    assert workflow["permissions"]["pull-requests"] == "write" or used["with"]["comment"] != "true"
    network(runner / "models" / "a.onnx", WIDTHS)
    shutil.copy(ROOT / "examples" / "ci" / "spa.toml", runner / "spa.toml")
    assert spa.check(config=runner / "spa.toml", update=True).ok


def dockerfile() -> list[list[str]]:
    """Instructions, lines continued."""
    text = re.sub(r"\\\n", " ", (ROOT / "docker" / "Dockerfile").read_text("utf-8"))
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_dockerfile_names_what_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    rows = dockerfile()
    entry = [json.loads(" ".join(row[1:])) for row in rows if row[0] == "ENTRYPOINT"]
    assert [e[0] for e in entry] == list(project["project"]["scripts"])
    copied = [name for row in rows if row[0] == "COPY" and not row[1].startswith("--") for name in row[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    users = [i for i, row in enumerate(rows) if row[0] == "USER"]
    assert users and users[-1] > max(i for i, row in enumerate(rows) if row[0] == "FROM"), "not as root"


@pytest.mark.slow
def test_what_the_dockerfile_copies_builds_a_whole_wheel(tmp_path: Path) -> None:
    """Its COPY lines, then the build that its RUN line asks pip for."""
    pytest.importorskip("setuptools", "77")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("needs pip")
    source = tmp_path / "source"
    for row in dockerfile():
        if row[0] != "COPY" or row[1].startswith("--"):
            continue
        *names, place = row[1:]
        for name in names:
            into = source / place / ("" if (ROOT / name).is_dir() else name)
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, into, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, into)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "-w", str(tmp_path), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / "spa" / "checking").glob("*.py")}
    assert wanted <= names and "spa/codegen/bundle.py" in names and "spa/passes/slice.py" in names
    scripts = next(n for n in names if n.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert "spa.pytest_plugin" in archive.read(scripts).decode()
