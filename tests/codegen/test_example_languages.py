"""The C++, Rust and Go examples against the host library, and statically on ARM under qemu, as examples/README.md says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoo

from spa.codegen.bundle import compile
from spa.runtime.toolchain import find

pytestmark = pytest.mark.codegen
EXAMPLES = Path(__file__).parents[2] / "examples"
ZIG = [sys.executable, "-m", "ziglang"]
ARM = "aarch64-linux-musl"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("languages") / "net.spa"
    compile(zoo.network(zoo.CNN), ["host", "arm"], out, name="net")
    return out


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, float]:
    """A file with an input, and the class and score that onnxruntime gives it."""
    model = zoo.network(zoo.CNN)
    values = zoo.feeds(model)
    path = tmp_path_factory.mktemp("picture") / "picture.f32"
    values["x"].tofile(path)
    scores = zoo.reference(model, values)["y"][0]
    return path, int(scores.argmax()), float(scores.max())


def program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"{' or '.join(names)} is not installed")


def must(command: list[Any], **how: Any) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr  # no warnings either
    return done.stdout


def cpp(folder: Path, out: Path) -> None:
    command = [
        program("g++", "c++", "clang++"),
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        EXAMPLES / "cpp" / "classify.cpp",
    ]
    must([*command, "-I", folder, "-L", folder, "-lnet", f"-Wl,-rpath,{folder}", "-pthread", "-o", out])


def rust(folder: Path, out: Path) -> None:
    command = [program("rustc"), "-O", "--edition", "2021", "-D", "warnings", EXAMPLES / "rust" / "classify.rs"]
    must([*command, "-L", folder, "-l", "net", "-C", f"link-arg=-Wl,-rpath,{folder}", "-o", out])


def golang(folder: Path, out: Path) -> None:
    flags = {"CGO_ENABLED": "1", "CGO_CFLAGS": f"-I{folder}", "CGO_LDFLAGS": f"-L{folder} -lnet -Wl,-rpath,{folder}"}
    place = {"GOCACHE": str(out.parent / "go-cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    must([program("go"), "build", "-o", out, EXAMPLES / "go" / "classify.go"], env={**os.environ, **flags, **place})


@pytest.mark.parametrize("build", [cpp, rust, golang])
def test_on_the_host(
    build: Callable[[Path, Path], None], bundle: Path, picture: tuple[Path, int, float], tmp_path: Path
) -> None:
    build(bundle / "host", tmp_path / "classify")
    best, score = must([tmp_path / "classify", picture[0]]).split()
    assert int(best) == picture[1] and float(score) == pytest.approx(picture[2], abs=1e-4)
    (tmp_path / "short.f32").write_bytes(b"1234")
    wrong = subprocess.run([tmp_path / "classify", tmp_path / "short.f32"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "not 4" in wrong.stderr


def cpp_on_arm(folder: Path, out: Path) -> None:
    """zig could do it too, but builds its C++ library first: more than a minute of one core."""
    compiler = program("aarch64-linux-gnu-g++", "aarch64-linux-musl-g++")
    must(
        [
            compiler,
            "-static",
            "-std=c++17",
            EXAMPLES / "cpp" / "classify.cpp",
            "-I",
            folder,
            folder / "libnet.a",
            "-o",
            out,
        ]
    )


def rust_on_arm(folder: Path, out: Path) -> None:
    target = "aarch64-unknown-linux-musl"
    where = subprocess.run(
        [program("rustc"), "--print", "target-libdir", "--target", target], capture_output=True, text=True
    )
    if where.returncode or not Path(where.stdout.strip()).is_dir():
        pytest.skip(f"rustc has no {target}: rustup target add {target}")
    linker = out.parent / "linker"
    linker.write_text(f'#!/bin/sh\nexec {" ".join(ZIG)} cc -target {ARM} "$@"\n')
    linker.chmod(0o755)
    options = ["-C", f"linker={linker}", "-C", "target-feature=+crt-static", "-C", "link-self-contained=no"]
    source = EXAMPLES / "rust" / "classify.rs"
    must(
        [
            program("rustc"),
            "-O",
            "--edition",
            "2021",
            "--target",
            target,
            *options,
            source,
            "-L",
            folder,
            "-l",
            "static=net",
            "-o",
            out,
        ]
    )


def golang_on_arm(folder: Path, out: Path) -> None:
    compiler = f"{' '.join(ZIG)} cc -target {ARM}"
    flags = {
        "CGO_ENABLED": "1",
        "GOARCH": "arm64",
        "CC": compiler,
        "CGO_CFLAGS": f"-I{folder}",
        "CGO_LDFLAGS": f"{folder}/libnet.a",
    }
    place = {"GOCACHE": str(out.parent / "go-cache"), "GO111MODULE": "off"}
    static = ["-ldflags", '-linkmode external -extldflags "-static"']
    must(
        [program("go"), "build", *static, "-o", out, EXAMPLES / "go" / "classify.go"],
        env={**os.environ, **flags, **place},
    )


@pytest.mark.slow
@pytest.mark.parametrize("build", [cpp_on_arm, rust_on_arm, golang_on_arm])
def test_on_arm(
    build: Callable[[Path, Path], None], bundle: Path, picture: tuple[Path, int, float], tmp_path: Path
) -> None:
    emulator = find("qemu-aarch64")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed: apt-get install qemu-user-static")
    build(bundle / "arm", tmp_path / "classify")
    best, score = must([emulator, tmp_path / "classify", picture[0]]).split()
    assert int(best) == picture[1] and float(score) == pytest.approx(picture[2], abs=1e-4)
