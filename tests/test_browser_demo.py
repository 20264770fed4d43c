"""examples/browser in a real browser, served as plain files: draw, classify, compare with onnxruntime; bundles of one's own."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from chromium import Page, chromium, executable
from test_report_browser import CONTRASTS, NAMES

pytestmark = [
    pytest.mark.codegen,
    pytest.mark.skipif(executable() is None, reason="no Chromium: apt-get install chromium"),
]
EXAMPLE = Path(__file__).parent.parent / "examples" / "browser"
PICTURES = os.environ.get("SPA_PICTURES")  # a folder for screenshots to look at

# how a hand draws them, on a square of 1: strokes of points
STROKES = {
    0: [[(0.5 + 0.22 * np.sin(a), 0.5 - 0.4 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 25)]],
    1: [[(0.38, 0.28), (0.52, 0.12), (0.52, 0.88)]],
    2: [[(0.3, 0.28), (0.36, 0.16), (0.5, 0.1), (0.64, 0.17), (0.68, 0.3), (0.55, 0.55), (0.3, 0.88), (0.72, 0.88)]],
    3: [
        [
            (0.3, 0.16),
            (0.5, 0.1),
            (0.66, 0.2),
            (0.64, 0.38),
            (0.48, 0.47),
            (0.66, 0.56),
            (0.7, 0.74),
            (0.52, 0.9),
            (0.3, 0.82),
        ]
    ],
    4: [[(0.48, 0.1), (0.26, 0.6), (0.74, 0.6)], [(0.6, 0.36), (0.58, 0.9)]],
    5: [[(0.68, 0.12), (0.36, 0.12), (0.33, 0.46), (0.55, 0.42), (0.68, 0.56), (0.66, 0.78), (0.5, 0.9), (0.3, 0.84)]],
    6: [
        [
            (0.6, 0.1),
            (0.4, 0.36),
            (0.32, 0.64),
            (0.38, 0.84),
            (0.54, 0.9),
            (0.67, 0.78),
            (0.64, 0.6),
            (0.5, 0.54),
            (0.34, 0.66),
        ]
    ],
    7: [[(0.28, 0.12), (0.7, 0.12), (0.56, 0.46), (0.44, 0.9)], [(0.36, 0.5), (0.68, 0.5)]],
}


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser_serve", EXAMPLE / "serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def onnxruntime_web() -> Path | None:
    given = os.environ.get("SPA_ORT_WEB")
    try:
        found: Path | None = example().runtime(Path(given) if given else None)
    except SystemExit:
        found = None
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    module = example()
    assert module.build(folder, onnxruntime_web()) < module.LIMIT == 300_000
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(example().Handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """Freshly opened and ready, in light; nothing may be complained of in the console."""
    browser.errors.clear()
    browser.size(1200, 900)
    browser.scheme("light")
    browser.open(address)
    browser.js("page.ready")
    yield browser
    assert browser.errors == []


def draw(page: Page, strokes: list[list[tuple[float, float]]]) -> None:
    """With the mouse."""
    box = page.js("(b => [b.x, b.y, b.width])(document.querySelector('#pad').getBoundingClientRect())")
    page.js("document.querySelector('#clear').click()")
    for stroke in strokes:
        places = [(box[0] + x * box[2], box[1] + y * box[2]) for x, y in stroke]
        for kind, (x, y) in [("mousePressed", places[0]), *(("mouseMoved", p) for p in places[1:])]:
            page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = places[-1]
        page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)


def wait(page: Page, condition: str) -> Any:
    until = time.monotonic() + 60
    while not (found := page.js(condition)):
        assert time.monotonic() < until, page.js("document.body.innerText")
        page.js("new Promise(requestAnimationFrame)")
    return found


def settled(page: Page) -> int:
    """The answer that is shown once the page has caught up with its input."""
    page.js("new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")
    previous = ""
    while (text := page.js("document.querySelector('#scores').textContent")) != previous:
        previous = text
        page.js("new Promise(f => setTimeout(f, 60))")
    return int(page.js("document.querySelector('#answer').dataset.digit"))


def reference(site: Path, image: list[float]) -> Any:
    session = onnxruntime.InferenceSession(str(site / "bundle" / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": np.asarray(image, np.float32).reshape(1, 1, 8, 8)})
    shares = np.exp(logits[0] - logits[0].max())
    return shares / shares.sum()


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(Path(PICTURES) / f"{name}.png", whole=True)


def test_drawn_digits_are_read_as_onnxruntime_reads_them(page: Page, site: Path) -> None:
    right = 0
    for digit, strokes in STROKES.items():
        draw(page, strokes)
        found = settled(page)
        expected = reference(site, page.js("page.input"))
        shown = page.js("[...document.querySelectorAll('#scores .number')].map(e => parseFloat(e.textContent))")
        np.testing.assert_allclose(shown, 100 * expected, atol=0.051)
        assert found == int(expected.argmax())
        assert f"This is a {found}" in page.js("document.querySelector('#answer').textContent")
        right += found == digit
    picture(page, "demo-light")
    assert right >= len(STROKES) - 1


def test_the_pixels_are_those_of_the_data(page: Page) -> None:
    """A drawing is to the network what the data were: the same share of ink, margins free, none beyond its range."""
    found = []
    for strokes in STROKES.values():
        draw(page, strokes)
        settled(page)
        found.append(page.js("page.input"))
    images = np.array(found)
    assert images.min() == 0 and images.max() == 1
    data = np.load(EXAMPLE.parents[1] / "models" / "digits.npz")["test_x"]
    assert abs(images.mean() - data.mean()) < 0.1 * data.mean() + 0.03


def test_the_first_run_and_what_was_loaded_are_told(page: Page) -> None:
    draw(page, STROKES[1])
    assert settled(page) == 1
    assert float(page.js("document.querySelector('#ours-first').textContent")) >= 0  # clocks are blurred
    assert float(page.js("document.querySelector('#ours-load').textContent")) > 0
    assert 0 < page.js("parseFloat(document.querySelector('#ours-bytes').textContent)") < 300  # kB


def test_examples_are_for_those_who_do_not_draw(page: Page, site: Path) -> None:
    examples = json.loads((site / "examples.json").read_text())
    assert [e["label"] for e in examples] == list(range(10))
    right = 0
    for number, each in enumerate(examples):
        page.js(
            f"(s => {{ s.value = '{number}'; s.dispatchEvent(new Event('change')); }})(document.querySelector('#example'))"
        )
        found = settled(page)
        assert found == int(reference(site, [p / 16 for p in each["pixels"]]).argmax())
        right += found == each["label"]
    assert right >= 9


def test_nothing_drawn_is_no_answer(page: Page) -> None:
    draw(page, STROKES[0])
    assert settled(page) == 0
    page.js("document.querySelector('#clear').focus()")
    page.key("Enter", 13, "\r")
    assert settled(page) == -1
    assert page.js("document.querySelector('#answer').textContent") == "Nothing is drawn yet."


def test_without_onnxruntime_web_the_page_works_and_says_so(browser: Page, address: str, site: Path) -> None:
    about = site / "ort" / "ort.json"
    before = about.read_text()
    about.write_text(json.dumps({"version": None, "bytes": 0}))
    try:
        browser.errors.clear()
        browser.open(address)
        browser.js("page.ready")
        assert "onnxruntime-web is not here" in browser.js("document.querySelector('#compared').textContent")
        draw(browser, STROKES[7])
        assert settled(browser) == 7
        browser.js("document.querySelector('#time').click()")
        wait(browser, "!document.querySelector('#time').disabled")
        assert float(browser.js("document.querySelector('#ours-median').textContent")) > 0
        assert browser.errors == []
    finally:
        about.write_text(before)


@pytest.mark.skipif(
    onnxruntime_web() is None, reason="no onnxruntime-web: npm install in examples/browser, or SPA_ORT_WEB"
)
def test_beside_onnxruntime_web(page: Page) -> None:
    wait(page, "page.state.theirs !== null")
    draw(page, STROKES[3])
    settled(page)
    said = wait(page, "(t => t.includes('same') && t)(document.querySelector('#compared').textContent)")
    assert float(said.split("up to ")[1].split()[0]) < 1e-5
    page.js("document.querySelector('#time').click()")
    said = wait(page, "(t => t.includes('times as long') && t)(document.querySelector('#compared').textContent)")
    assert float(page.js("document.querySelector('#theirs-median').textContent")) > 0
    picture(page, "demo-ort")
    print(said, page.js("document.querySelector('#times').innerText"))


# Bundles of one's own --------------------------------------------------------------------------------------------------

OTHER = """
<ir_version: 8, opset_import: ["" : 17]>
other (float[2,3] a, int64[2] i) => (float[2,4] y, float[2,3] g)
<float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[2,3] t = {1,2,3,4,5,6}>
{ y = MatMul(a, w)  g = Gather<axis=0>(t, i) }
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with several inputs and outputs."""
    import spa

    folder = tmp_path_factory.mktemp("own")
    onnx.save(onnx.parser.parse_model(OTHER), folder / "other.onnx")
    spa.compile(folder / "other.onnx", "wasm", folder / "bundle")
    return folder / "bundle"


def drop(page: Page, *paths: Path) -> None:
    data = {"items": [], "files": [str(p) for p in paths], "dragOperationsMask": 1}
    box = page.js(
        "(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector('#own').getBoundingClientRect())"
    )
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)


def shown(page: Page) -> list[list[str]]:
    rows = "[...document.querySelectorAll('#tensors tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    return list(wait(page, f"(r => r.length && r)({rows})"))


def test_a_folder_that_is_dropped_runs(page: Page, other: Path) -> None:
    page.js("document.querySelector('#own').scrollIntoView()")
    drop(page, other)
    assert [row[:3] for row in shown(page)] == [
        ["a", "float32", "2×3"],
        ["i", "int64", "2"],
        ["y", "float32", "2×4"],
        ["g", "float32", "2×3"],
    ]
    assert shown(page)[3][3:5] == ["1.000", "3.000"]  # row 0 of the table, twice
    wait(page, "!document.querySelector('#time').disabled")
    if onnxruntime_web() is not None:
        wait(page, "document.querySelector('#theirs-first').textContent !== '–'")
        apart = [float(row[5]) for row in shown(page)[2:]]
        assert max(apart) < 1e-5
    picture(page, "demo-own")
    assert not page.js("document.querySelector('#pad').checkVisibility()")  # it draws for the digits alone
    page.js("document.querySelector('#back').click()")
    wait(page, "page.state && page.state.bundle.name === 'digits' && !page.state.feeds")
    draw(page, STROKES[1])
    assert settled(page) == 1


def test_files_that_are_chosen_run_without_a_manifest(page: Page, other: Path) -> None:
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#files")["nodeId"]
    files = [str(other / "wasm" / name) for name in ("other.wasm", "other.mjs")]
    page.call("DOM.setFileInputFiles", nodeId=node, files=files)
    assert [row[0] for row in shown(page)] == ["a", "i", "y", "g"]


def test_what_is_no_bundle_is_said(page: Page, other: Path, tmp_path: Path) -> None:
    (tmp_path / "host.spa").mkdir()
    manifest = json.loads((other / "manifest.json").read_text())
    (tmp_path / "host.spa" / "manifest.json").write_text(json.dumps({**manifest, "targets": {}}))
    drop(page, tmp_path / "host.spa")
    wait(page, "document.querySelector('#fault').textContent.includes('no wasm target')")
    drop(page, other / "wasm" / "other.wasm")
    wait(page, "document.querySelector('#fault').textContent.includes('NAME.mjs')")


# For everyone ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_can_be_read(page: Page, scheme: str, other: Path) -> None:
    page.scheme(scheme)
    draw(page, STROKES[1])
    settled(page)
    found = page.js(CONTRASTS)
    picture(page, f"demo-{scheme}-all")
    drop(page, other)
    shown(page)
    found += page.js(CONTRASTS)
    assert len(found) > 60
    assert not [(text, round(ratio, 2)) for text, ratio in found if ratio < 4.5]
    picture(page, f"demo-{scheme}-own")


def test_everything_has_a_name_and_a_place(page: Page) -> None:
    assert not [element for element, label in page.js(NAMES) if not label.strip()]
    assert page.js("[...document.querySelectorAll('[role=img]')].every(e => e.ariaLabel)")
    assert page.js("[...document.querySelectorAll('table')].every(t => t.caption)")


@pytest.mark.parametrize("width", [320, 700])
def test_it_fits_narrow_windows(page: Page, width: int) -> None:
    page.size(width, 800)
    assert page.js("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    draw(page, STROKES[7])
    assert settled(page) == 7
    picture(page, f"demo-{width}")


def test_fingers_draw_too(page: Page) -> None:
    box = page.js("(b => [b.x, b.y, b.width])(document.querySelector('#pad').getBoundingClientRect())")
    places = [{"x": box[0] + x * box[2], "y": box[1] + y * box[2]} for x, y in STROKES[1][0]]
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=places[:1])
    for place in places[1:]:
        page.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[place])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert settled(page) == 1
