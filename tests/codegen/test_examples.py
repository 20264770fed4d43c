"""The example programs, built and run as their README says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import zoo

from spa.codegen.bundle import compile
from spa.runtime.toolchain import find, need, run_zig

pytestmark = pytest.mark.codegen
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def picture(tmp_path: Path) -> tuple[Path, int, float]:
    """A file with an input, and the class and score that onnxruntime gives it."""
    model = zoo.network(zoo.CNN)
    values = zoo.feeds(model)
    path = tmp_path / "picture.f32"
    values["x"].tofile(path)
    scores = zoo.reference(model, values)["y"][0]
    return path, int(scores.argmax()), float(scores.max())


def check(printed: str, picture: tuple[Path, int, float]) -> None:
    best, score = printed.split()
    assert int(best) == picture[1]
    assert float(score) == pytest.approx(picture[2], abs=1e-4)


def test_c_on_the_host(tmp_path: Path, picture: tuple[Path, int, float]) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    compile(zoo.network(zoo.CNN), "host", tmp_path / "net.spa", name="net")
    host = tmp_path / "net.spa" / "host"
    command = [compiler, "-Wall", "-Werror", str(EXAMPLES / "c" / "classify.c"), "-I", str(host), "-L", str(host)]
    command += ["-lnet", f"-Wl,-rpath,{host}", "-o", str(tmp_path / "classify")]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "classify", picture[0]], capture_output=True, text=True, check=True)
    check(done.stdout, picture)


def test_c_on_arm(tmp_path: Path, picture: tuple[Path, int, float]) -> None:
    if find("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    compile(zoo.network(zoo.CNN), "arm", tmp_path / "net.spa", name="net")
    shutil.copytree(tmp_path / "net.spa" / "arm", tmp_path / "work")
    shutil.copy(EXAMPLES / "c" / "classify.c", tmp_path / "work")
    command = ["cc", "-target", "aarch64-linux-musl", "-static", "classify.c", "libnet.a", "-lm", "-o", "classify"]
    assert run_zig(command, tmp_path / "work").returncode == 0
    program = [need("qemu-aarch64"), str(tmp_path / "work" / "classify"), str(picture[0])]
    check(subprocess.run(program, capture_output=True, text=True, check=True).stdout, picture)


def test_es_module(tmp_path: Path, picture: tuple[Path, int, float]) -> None:
    node = find("node")
    if node is None:
        pytest.skip("node is not installed")
    compile(zoo.network(zoo.CNN), "wasm", tmp_path / "net.spa", name="net")
    program = [node, str(EXAMPLES / "web" / "classify.mjs"), str(tmp_path / "net.spa" / "wasm" / "net.mjs")]
    check(subprocess.run([*program, str(picture[0])], capture_output=True, text=True, check=True).stdout, picture)
