"""The bundle: its files, its manifest, the same bytes every time, whole or not there."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zoo

from spa.codegen import cache
from spa.codegen.bundle import Bundle, compile
from spa.codegen.link import c_name
from spa.errors import ModelError, UsageError
from spa.runtime.toolchain import cache_dir, run_zig

pytestmark = pytest.mark.codegen
TARGETS = ["host", "arm", "wasm"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "own net.spa"
    return compile(zoo.network(zoo.CNN), TARGETS, path, name="own net-1", extra_files={"plan.json": b"{}"})


def test_layout_and_digests(bundle: Bundle) -> None:
    files = {str(p.relative_to(bundle.path)) for p in bundle.path.rglob("*") if p.is_file()}
    assert files == {
        *("model.onnx", "plan.json", "manifest.json", "host/libown_net_1.so", "host/own_net_1.h"),
        *("arm/libown_net_1.so", "arm/libown_net_1.a", "arm/own_net_1.h"),
        *("wasm/own_net_1.wasm", "wasm/own_net_1.mjs", "wasm/own_net_1.d.ts"),
    }
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest == bundle.manifest
    assert manifest["schema"] == 1
    assert set(manifest["files"]) == files - {"manifest.json"}
    for path, digest in manifest["files"].items():
        assert hashlib.sha256((bundle.path / path).read_bytes()).hexdigest() == digest
    assert manifest["source_sha256"] == manifest["files"]["model.onnx"]
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 3, 16, 16]}]
    for facts in manifest["targets"].values():
        assert facts["arena_bytes"] > 0 and facts["weight_bytes"] > 0 and facts["code_bytes"] > 0
        assert all(
            set(row) == {"layer", "kernel", "family", "format", "tile", "macs", "why"} for row in facts["kernels"]
        )
    assert manifest["targets"]["arm"]["features"] == ["+neon"]
    assert Bundle.load(bundle.path).targets == tuple(TARGETS)


def test_artifacts_stand_alone(bundle: Bundle) -> None:
    for path in bundle.path.rglob("*own_net_1.*"):
        data = path.read_bytes()
        assert not any(symbol in data for symbol in (b"TVMBackend", b"TVMFFI", b"__tvm")), path
        assert os.fsencode(str(Path.cwd())) not in data and b"/tmp/" not in data, path


def test_exported_symbols(bundle: Bundle) -> None:
    """Exactly the functions of the header, and no undefined ones but libc's."""
    module = pytest.importorskip("wasmtime")
    wasm = module.Module.from_file(module.Engine(), str(bundle.path / "wasm" / "own_net_1.wasm"))
    functions = {"instance_bytes", "arena_bytes", "input_bytes", "output_bytes", "init", "run", "steps", "run_step"}
    names = {f"own_net_1_{f}" for f in functions}
    assert wasm.imports == []
    assert {e.name for e in wasm.exports} == {"memory", "__heap_base", *names}
    text = (bundle.path / "host" / "own_net_1.h").read_text()
    assert all(f"{name}(" in text for name in names)
    library = ctypes.CDLL(str(bundle.path / "host" / "libown_net_1.so"))
    assert not hasattr(library, "own_net_1__weights")


def test_same_bytes_in_another_process(bundle: Bundle, tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import zoo
from spa.codegen.bundle import compile
extra = {{"plan.json": b"{{}}"}}
compile(zoo.network(zoo.CNN), {TARGETS}, {str(tmp_path / "b")!r}, name="own net-1", extra_files=extra)
"""
    environment = {**os.environ, "SPA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, env=environment, cwd=tmp_path)
    for path in bundle.manifest["files"]:
        assert (tmp_path / "b" / path).read_bytes() == (bundle.path / path).read_bytes(), path
    assert (tmp_path / "b" / "manifest.json").read_bytes() == (bundle.path / "manifest.json").read_bytes()


def test_a_second_compilation_imports_no_compiler(bundle: Bundle, tmp_path: Path) -> None:
    zoo.onnx.save(zoo.network(zoo.CNN), tmp_path / "own net-1.onnx")
    script = """
import sys
from spa.codegen.bundle import compile
compile(sys.argv[1], ["host", "arm", "wasm"], sys.argv[2])
assert not {"tvm", "onnxruntime", "onnx_ir"} & set(sys.modules), "imported a compiler"
"""
    compile(tmp_path / "own net-1.onnx", TARGETS)
    out = tmp_path / "b"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "own net-1.onnx"), str(out)], check=True)
    assert (out / "host" / "libown_net_1.so").read_bytes() == (bundle.path / "host" / "libown_net_1.so").read_bytes()


def test_a_damaged_cache_entry_is_compiled_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPA_CACHE_DIR", str(tmp_path))
    model = zoo.network(zoo.NETWORKS["celu"])
    good = compile(model, "wasm").manifest
    (entry,) = (cache_dir() / "artifacts").iterdir()
    library = next(entry.glob("*.wasm"))
    library.write_bytes(library.read_bytes()[:-1])
    assert cache.read(entry.name) is None
    assert compile(model, "wasm").manifest == good
    assert cache.read(entry.name) is not None
    assert [p.name for p in (cache_dir() / "artifacts").iterdir()] == [entry.name]  # no remains of staging


def test_an_existing_output_needs_force(bundle: Bundle, tmp_path: Path) -> None:
    model, out = zoo.network(zoo.NETWORKS["celu"]), tmp_path / "b"
    compile(model, "wasm", out)
    with pytest.raises(UsageError, match="--force"):
        compile(model, "wasm", out)
    (out / "remains").touch()
    compile(model, "wasm", out, force=True)
    assert not (out / "remains").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not a bundle"):
        compile(model, "wasm", tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_c_interface_errors(bundle: Bundle) -> None:
    library = ctypes.CDLL(str(bundle.path / "host" / "libown_net_1.so"))
    size, init, run = (getattr(library, f"own_net_1_{n}") for n in ("instance_bytes", "init", "run"))
    size.restype = ctypes.c_size_t
    memory = ctypes.create_string_buffer(size() + 128)
    start = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64
    instance = ctypes.c_void_p()
    place = ctypes.byref(instance)
    arguments = [ctypes.c_void_p(start), ctypes.c_size_t(size()), place]
    assert init(None, arguments[1], place) == 1
    assert init(ctypes.c_void_p(start + 8), arguments[1], place) == 2
    assert init(arguments[0], ctypes.c_size_t(size() - 1), place) == 3
    tables = (ctypes.c_void_p * 1)(), (ctypes.c_void_p * 1)()
    assert run(ctypes.c_void_p(start), *tables) == 4
    assert init(*arguments) == 0
    assert run(instance, *tables) == 1  # null tensors
    assert library.own_net_1_input_bytes(0) == 3 * 16 * 16 * 4
    assert library.own_net_1_input_bytes(1) == library.own_net_1_input_bytes(-1) == 0


def test_header_is_c99_and_cpp(bundle: Bundle, tmp_path: Path) -> None:
    target = ["-target", "aarch64-linux-gnu.2.17"]
    (tmp_path / "own_net_1.h").write_bytes((bundle.path / "host" / "own_net_1.h").read_bytes())
    for name, flags in (("a.c", ["-x", "c", "-std=c99"]), ("b.cpp", ["-x", "c++", "-std=c++11"])):
        (tmp_path / name).write_text(
            '#include "own_net_1.h"\nint main(void) { return own_net_1_init(0, 0, 0) == OWN_NET_1_OK; }\n'
        )
        flags += ["-pedantic", "-Wall", "-Wextra", "-Werror"]
        done = run_zig(["cc", *target, *flags, "-c", name, "-o", "a.o"], tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["", "3d", "int", "a b/c:d", "ünïcode", "x" * 200, "*/ evil(); /*", '"', "_"])
def test_any_name_compiles(name: str) -> None:
    assert c_name(name).isidentifier()
    model = zoo.network(zoo.NETWORKS["celu"])
    model.graph.name = name
    bundle = compile(model, "host")
    values = zoo.feeds(model)
    zoo.assert_same(bundle.run(values), zoo.reference(model, values))


def test_names_of_tensors_cannot_break_out() -> None:
    evil = '*/ int x; /* " \\ ${name} $x é \n'
    model = zoo.network("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.graph.input[0].name = model.graph.node[0].input[0] = evil
    values = {evil: zoo.feeds(zoo.network("g (float[2] x) => (float[2] y) { y = Relu(x) }"))["x"]}
    bundle = compile(model, ["host", "wasm"])
    for target in bundle.targets:
        zoo.assert_same(bundle.run(values, target), {"y": values[evil].clip(0)})


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for path in (tmp_path / "no.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(ModelError):
            compile(path, "host")
