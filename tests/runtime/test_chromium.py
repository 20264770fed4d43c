"""Bundles in a page of headless Chromium: with the headers for shared memory, without them, and beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_threads import network, same

from spa.codegen.bundle import compile
from spa.errors import MissingTool, SpaError
from spa.runtime.browser import Chromium, Tab
from spa.runtime.load import target_of
from spa.runtime.run import open_engine, run
from spa.runtime.toolchain import find, need

pytestmark = [
    pytest.mark.codegen,
    pytest.mark.skipif(find("chromium") is None, reason="no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(network(), "wasm", tmp_path_factory.mktemp("b") / "net", wasm_threads=True).path


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 24, 40, 40)).astype(np.float32)}


@pytest.fixture(scope="module")
def isolated() -> Iterator[Tab]:
    tab = Tab()
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Tab]:
    tab = Tab({})
    yield tab
    tab.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_in_a_page(isolated: Tab, bundle: Path, feeds: dict[str, np.ndarray], threads: int) -> None:
    """The page's main thread runs it: it may not sleep."""
    one = run(bundle, feeds, "wasm", "wasmtime")
    engine = Chromium(target_of(bundle), threads, isolated)
    try:
        for _ in range(5):
            assert same(engine.run(feeds), one)
        assert engine.step() > 0
        assert all(engine.part(i) >= 0 for i in range(engine.parts()))
    finally:
        engine.close()
    assert isolated.page.errors == []


def test_two_in_one_page(isolated: Tab, bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    target, other = target_of(bundle), {"x": feeds["x"] * 2}
    first = Chromium(target, 2, isolated)
    second = open_engine(target, "chromium", 1, beside=first)
    one, two = run(bundle, feeds), run(bundle, other)
    for _ in range(2):
        assert same(first.run(feeds), one)
        assert same(second.run(other), two)
    first.close()
    assert same(second.run(feeds), one)
    with pytest.raises(SpaError, match="load it again"):
        first.step()


def test_in_a_worker_too(isolated: Tab, bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    """Where a page keeps the network off its main thread, every thread may sleep."""
    engine = Chromium(target_of(bundle), 2, isolated)  # serves the files
    module = f"{isolated.site.address}/{engine._number}/chain.mjs"
    isolated.site.files["/in_worker.mjs"] = f"""
        import {{ load }} from "{module}";
        const net = await load(undefined, {{ threads: 2 }});
        net.run({{ x: new Float32Array(await (await fetch("/x")).arrayBuffer()) }});
        await new Promise((resolve) => setTimeout(resolve, 50)); // long enough for the other thread to fall asleep
        postMessage([...net.run({{ x: new Float32Array(await (await fetch("/x")).arrayBuffer()) }}).y]);
    """.encode()
    isolated.site.files["/x"] = feeds["x"].tobytes()
    script = """new Promise((resolve, reject) => {
        const worker = new Worker("/in_worker.mjs", { type: "module" });
        worker.onmessage = (e) => resolve(e.data);
        worker.onerror = (e) => reject(new Error(e.message));
    })"""
    found = np.array(isolated.page.js(script), np.float32)
    engine.close()
    assert (found == run(bundle, feeds)["y"].ravel()).all()


def test_without_the_headers(ordinary: Tab, bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    """The same module in one thread; more are refused, or with `fallback` one."""
    engine = Chromium(target_of(bundle), 1, ordinary)
    assert same(engine.run(feeds), run(bundle, feeds))
    with pytest.raises(SpaError, match="Cross-Origin-Opener-Policy: same-origin"):
        Chromium(target_of(bundle), 2, ordinary)
    url = f"{ordinary.site.address}/{engine._number}/chain.mjs"
    load = f"import({url!r}).then((module) => module.load(undefined, {{ threads: 2, fallback: true }}))"
    assert ordinary.page.js(f"{load}.then((net) => net.threads)") == 1


def test_a_page_that_fails_says_why(isolated: Tab, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="is not"):
        isolated.page.js("nobody.knows()")
    with pytest.raises(RuntimeError):
        isolated.open("ours", {}, "missing.mjs", 1)


def test_without_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(MissingTool, match="in a page") as caught:
        need("chromium")
    assert "install" in caught.value.hint
