"""What is installed is what is in the repository; who may import whom; what a call of `spa --help` costs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"spa": "spa", "passes": "spa/passes", "codegen": "spa/codegen", "runtime": "spa/runtime"}  # folder -> place
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "tvm", "scipy", "networkx", "rich"}


# The wheel -------------------------------------------------------------------------------------------------------


def tracked() -> list[Path]:
    """The repository's files, as git knows them."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


def installed_major(package: str) -> int:
    """First number of the version of a package; 0 where it is not installed."""
    try:
        return int(version(package).split(".")[0])
    except PackageNotFoundError:
        return 0


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that comes out of the sdist that comes out of a clean checkout."""
    needed = {"build": 1, "setuptools": 77}  # the second as in pyproject.toml; older ones do not read our licence field
    if missing := [name for name, major in needed.items() if installed_major(name) < major]:
        pytest.skip(f"needs {' and '.join(missing)}: pip install --upgrade {' '.join(missing)}")
    clean = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (clean / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (clean / name).symlink_to((ROOT / name).readlink())
        else:
            shutil.copy2(ROOT / name, clean / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(clean / "dist"), str(clean)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = (clean / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("needs pip")
    assert done.returncode == 0, done.stderr
    return target


def outside(command: list[str], installed: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run away from the checkout, with the installed folder first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_packages(wheel: Path) -> None:
    expected = set()
    for name in tracked():
        top, *rest = name.parts
        if top in PACKAGES and not (ROOT / name).is_symlink():
            expected.add("/".join([PACKAGES[top], *rest]))
    with zipfile.ZipFile(wheel) as archive:
        found = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert found == expected


@pytest.mark.slow
def test_the_installed_package_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import spa, spa.passes, spa.codegen, spa.runtime\n"
        "from spa.pipeline import PASSES, pass_class\n"
        "assert all(pass_class(name) for name in PASSES)\n"
        "print(spa.__file__)"
    )
    done = outside([sys.executable, "-c", code], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed)
    helped = outside([sys.executable, str(installed / "bin" / "spa"), "--help"], installed, tmp_path)
    assert helped.returncode == 0, helped.stderr
    assert "prune" in helped.stdout and "passes" in helped.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["passes", "codegen", "runtime"])
def test_generic_names_are_not_installed(name: str, installed: Path) -> None:
    assert not (installed / name).exists()
    assert (installed / "spa" / name / "__init__.py").is_file()


@pytest.mark.slow
def test_a_checkout_without_links_installs_whole(tmp_path: Path) -> None:
    """As on Windows, where git writes a small text file in place of a link: an editable install maps every package."""
    if missing := [name for name in ("setuptools",) if installed_major(name) < 77]:
        pytest.skip(f"needs {missing[0]} 77: pip install --upgrade {missing[0]}")
    for name in tracked():
        if name.parts[0] not in PACKAGES and name.name not in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            continue
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (tmp_path / name).write_text((ROOT / name).readlink().as_posix())
        else:
            shutil.copy2(ROOT / name, tmp_path / name)
    build = "from setuptools.build_meta import build_editable as b; b('wheel')"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path / "site")
    load = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n"
        "import spa.passes.fold, spa.codegen.target, spa.runtime.load\n"
        "print(spa.__file__, spa.passes.__file__, spa.codegen.__file__, spa.runtime.__file__)"
    )
    code = (  # the interpreter of the tests may know the real checkout in the same way
        "import sys\nsys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        f"for name in [n for n in sys.modules if 'editable' in n]: del sys.modules[name]\n{load}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(Path(place).is_relative_to(tmp_path) for place in done.stdout.split()), done.stdout


@pytest.mark.parametrize("name", ["passes", "codegen", "runtime"])
def test_a_bare_import_of_a_folder_is_refused(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"ImportError: import spa.{name}: the folder '{name}' is a part of the package 'spa'" in done.stderr


@pytest.mark.parametrize("name", ["passes", "codegen", "runtime"])
def test_the_links_for_static_tools_are_relative(name: str) -> None:
    link = ROOT / "spa" / name
    if not link.is_symlink():
        pytest.skip("this file system has no links")
    assert link.readlink() == Path("..") / name


# Who may import whom ---------------------------------------------------------------------------------------------


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the project."""
    for folder, place in PACKAGES.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT / folder)
            if folder == "spa" and inside.parts[0] in PACKAGES:
                continue  # through the link
            parts = [*place.split("/"), *inside.with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(file: Path) -> set[str]:
    """Every module a file imports, inside functions too; not those for type checking alone."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(file.read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return found


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in packages)


PRUNING = (
    "spa.coupling",
    "spa.importance",
    "spa.allocate",
    "spa.planning",
    "spa.pruning",
    "spa.calibration",
    "spa.passes.slice",
)

# package -> what it must not know: nothing flows backwards (docs/design.md)
FORBIDDEN = {
    "spa.coupling": (*PRUNING[1:], "spa.passes", "spa.codegen", "spa.runtime", "spa.cli"),
    "spa.importance": ("spa.passes", "spa.codegen", "spa.runtime", "spa.cli"),
    "spa.planning": ("spa.codegen", "spa.runtime", "spa.cli"),
    "spa.passes": ("spa.codegen", "spa.runtime", "spa.cli"),
    "spa.codegen": (*PRUNING, "spa.cli"),
    "spa.model": ("spa.coupling", "spa.passes", "spa.codegen", "spa.runtime", "spa.cli"),
    "spa.checking": (*PRUNING[1:5], "spa.passes", "spa.report", "spa.cli"),
    "spa.report": (*PRUNING[1:], "spa.passes", "spa.codegen", "spa.runtime", "spa.checking", "spa.cli"),
    "spa.pipeline": ("spa.coupling", "spa.codegen", "spa.runtime", "spa.cli"),
}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_flows_backwards(package: str) -> None:
    wrong = {
        f"{name} imports {module}"
        for name, file in modules()
        if within(name, (package,))
        for module in imports(file)
        if within(module, FORBIDDEN[package])
    }
    assert not wrong


def test_the_runtime_knows_only_itself_and_the_errors() -> None:
    """It reads the manifest; a bundle runs where no compiler, no ONNX and no pruning is installed."""
    allowed = ("spa.runtime", "spa.errors", "spa._version")
    wrong = {
        f"{name} imports {module}"
        for name, file in modules()
        if within(name, ("spa.runtime",))
        for module in imports(file)
        if (module.split(".")[0] == "spa" and module != "spa" and not within(module, allowed))
        or module.split(".")[0] in ("onnx", "onnx_ir", "tvm", "tvm_ffi", "networkx")
    }
    assert not wrong


def test_tvm_is_imported_in_one_package() -> None:
    users = {name for name, file in modules() if any(within(m, ("tvm", "tvm_ffi")) for m in imports(file))}
    assert users
    assert all(within(name, ("spa.codegen.tvm_api",)) for name in users), users


def test_only_the_command_line_imports_the_command_line() -> None:
    users = {name for name, file in modules() if any(within(m, ("spa.cli",)) for m in imports(file))}
    assert all(within(name, ("spa.cli",)) for name in users), users


# What it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["prune", "--help"], ["compile", "--help"], ["check", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from spa.cli import main\n"
        f"try: main({arguments!r})\n"
        f"finally: print('loaded:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_import_spa_imports_nothing_heavy() -> None:
    code = f"import sys, spa; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
