"""WebAssembly in several threads: the bits of one thread in every engine, and nothing that waits for ever."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser
from test_threads import ATTENTION, network, same

from spa.codegen.bundle import compile
from spa.errors import SpaError, Unsupported, UsageError
from spa.runtime.load import target_of
from spa.runtime.run import open_engine, run
from spa.runtime.toolchain import find

pytestmark = pytest.mark.codegen
needs_node = pytest.mark.skipif(find("node") is None, reason="node is not installed")
ENGINES = ["wasmtime", pytest.param("node", marks=needs_node)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(network(), "wasm", tmp_path_factory.mktemp("b") / "net", wasm_threads=True).path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(network(), "wasm", tmp_path_factory.mktemp("b") / "net").path


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 24, 40, 40)).astype(np.float32)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_bits_of_the_plain_module(
    bundle: Path, plain: Path, feeds: dict[str, np.ndarray], engine: str, threads: int
) -> None:
    one = run(plain, feeds, "wasm", "wasmtime")
    loaded = open_engine(target_of(bundle), engine, threads)
    try:
        for _ in range(10):
            assert same(loaded.run(feeds), one)
        assert loaded.parts() > 8
        assert all(loaded.part(i) >= 0 for i in range(loaded.parts()))
    finally:
        loaded.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_two_networks_at_once(bundle: Path, feeds: dict[str, np.ndarray], engine: str) -> None:
    target, other = target_of(bundle), {"x": feeds["x"] * 2}
    first, second = open_engine(target, engine, 2), open_engine(target, engine, 3)
    try:
        one, two = run(bundle, feeds), run(bundle, other)
        for _ in range(3):
            assert same(first.run(feeds), one)
            assert same(second.run(other), two)
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_products_rows_and_chains(engine: str) -> None:
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        ATTENTION.replace("HEADS", "12").replace("r = Relu(m)", "f = Sin(m) a = Abs(f) r = Pow(a, f)")
    )
    for name, shape in (("scale", (96,)), ("shift", (96,)), ("w", (96, 128)), ("bias", (64, 128))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    built = compile(model, "wasm", name="attention", wasm_threads=True)
    sizes = {t["name"]: t["shape"] for t in built.manifest["inputs"]}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    plain = compile(model, "wasm", name="attention")
    one = run(plain.path, given)
    for threads in (1, 2, 5):
        assert same(run(built.path, given, None, engine, threads), one)


GATHER = """<ir_version: 8, opset_import: ["" : 18]>
g (float[64,64] x, int64[2] i) => (float[2,64] y) { m = MatMul(x, w) r = Relu(m) y = Gather<axis=0>(r, i) }"""


@pytest.fixture(scope="module")
def gather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = parser.parse_model(GATHER)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    return compile(model, "wasm", tmp_path_factory.mktemp("b") / "gather", name="gather", wasm_threads=True).path


BEHIND = 1 << 23  # a row 2 GB behind the table


def test_a_kernel_that_fails_ends_the_threads(gather: Path) -> None:
    """The others wait for it in the middle of a run."""
    loaded = open_engine(target_of(gather), "wasmtime", 3)
    x = np.random.default_rng(0).random((64, 64), np.float32)
    try:
        assert (loaded.run({"x": x, "i": np.array([3, 5])})["y"] == x[[3, 5]]).all()
        with pytest.raises(Exception, match="out of bounds"):  # wasmtime's own error
            loaded.run({"x": x, "i": np.array([3, BEHIND])})
        with pytest.raises(SpaError, match="error 6"):
            loaded.run({"x": x, "i": np.array([3, 5])})
    finally:
        loaded.close()


@needs_node
def test_a_kernel_that_fails_in_node(gather: Path) -> None:
    script = f"""
        const net = await module.load(undefined, {{ threads: 3 }}), said = [];
        for (const last of [5n, {BEHIND}n, 5n]) {{
            const feeds = {{ x: x.slice(0, 64 * 64), i: BigInt64Array.of(3n, last) }};
            try {{ said.push(net.run(feeds).y[64] === Math.max(0, x[5 * 64]) ? "right" : "wrong"); }} catch (e) {{ said.push(e.message); }}
        }}
        console.log(JSON.stringify(said));"""
    found = javascript(gather, script)
    assert found[0] == "right" and "out of bounds" in found[1] and "load it again" in found[2]


def test_numbers_that_cannot_be_had(bundle: Path, plain: Path) -> None:
    with pytest.raises(UsageError, match="cannot be had"):
        open_engine(target_of(bundle), threads=65)
    with pytest.raises(Unsupported, match="one thread") as caught:
        open_engine(target_of(plain), threads=2)
    assert "--wasm-threads" in caught.value.hint


def test_the_plain_module_imports_nothing(bundle: Path, plain: Path) -> None:
    wasmtime = pytest.importorskip("wasmtime")
    modules = [wasmtime.Module.from_file(wasmtime.Engine(), str(next(p.glob("wasm/*.wasm")))) for p in (plain, bundle)]
    assert [len(m.imports) for m in modules] == [0, 1]
    assert modules[1].imports[0].type.is_shared
    assert not list(plain.glob("wasm/*.worker.mjs"))


def test_ended_threads_are_said(bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    loaded = open_engine(target_of(bundle), "wasmtime", 2)
    loaded.close()
    with pytest.raises(SpaError, match="error 6"):
        loaded.run(feeds)


def javascript(folder: Path, script: str) -> Any:
    """What a script in Node prints: `module` is the loader's, `x` the input of `network()`."""
    name = target_of(folder).prefix + ".mjs"
    data = "new Float32Array(2 * 24 * 1600).map((_, i) => Math.sin(i))"
    source = f"const x = {data}; const module = await import({target_of(folder).file(name).resolve().as_uri()!r});"
    command = [find("node") or "", "--input-type=module", "-e", source + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_the_loader(bundle: Path) -> None:
    """Also: workers keep no process alive."""
    script = """
        const one = await module.load(), two = await module.load(undefined, { threads: 2 });
        const sum = (net) => [...net.run({ x }).y];
        const same = JSON.stringify(sum(one)) === JSON.stringify(sum(two));
        const fresh = two.run({ x }).y.buffer instanceof ArrayBuffer;
        const ended = await module.load(undefined, { threads: 3 });
        ended.close();
        let said = "";
        try { ended.step(); } catch (e) { said = e.message; }
        let number = "";
        try { await module.load(undefined, { threads: 0 }); } catch (e) { number = e.message; }
        console.log(JSON.stringify({ same, fresh, said, number, threads: [one.threads, two.threads] }));"""
    found = javascript(bundle, script)
    assert found["same"] and found["fresh"] and found["threads"] == [1, 2]
    assert "load it again" in found["said"] and "1 to 64" in found["number"]


@needs_node
def test_workers_that_do_not_start(bundle: Path, tmp_path: Path) -> None:
    """The script of the worker is missing: that is said, or one thread does."""
    for name in ("chain.mjs", "chain.wasm"):
        shutil.copy(bundle / "wasm" / name, tmp_path)
    script = f"""
        const {{ load }} = await import({(tmp_path / "chain.mjs").as_uri()!r});
        let said = "";
        try {{ await load(undefined, {{ threads: 2 }}); }} catch (e) {{ said = e.message; }}
        const net = await load(undefined, {{ threads: 2, fallback: true }});
        const same = JSON.stringify([...net.run({{ x }}).y]) === JSON.stringify([...(await module.load()).run({{ x }}).y]);
        console.log(JSON.stringify({{ said, same, threads: net.threads }}));"""
    found = javascript(bundle, script)
    assert "a worker does not start" in found["said"] and found["same"] and found["threads"] == 1


def test_the_same_bytes_again(bundle: Path) -> None:
    again = compile(network(), "wasm", wasm_threads=True, use_cache=False)
    for file in sorted((bundle / "wasm").iterdir()):
        assert file.read_bytes() == (again.path / "wasm" / file.name).read_bytes()


@needs_node
def test_without_shared_memory_it_says_why_or_falls_back(bundle: Path, plain: Path) -> None:
    script = """
        const want = (await module.load()).run({ x }).y;
        REMOVE
        let said = "";
        try { await module.load(undefined, { threads: 2 }); } catch (e) { said = e.message; }
        const net = await module.load(undefined, { threads: 2, fallback: true });
        const same = JSON.stringify([...net.run({ x }).y]) === JSON.stringify([...want]);
        console.log(JSON.stringify({ said, same, threads: net.threads }));"""
    for folder, remove, why in (
        (bundle, "delete globalThis.SharedArrayBuffer;", "Cross-Origin-Opener-Policy"),
        (bundle, "globalThis.crossOriginIsolated = false;", "Cross-Origin-Embedder-Policy"),
        (plain, "", "--wasm-threads"),
    ):
        found = javascript(folder, script.replace("REMOVE", remove))
        assert why in found["said"] and found["same"] and found["threads"] == 1
