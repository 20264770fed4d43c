"""The report in a real browser: its script, its contrast, its names for those who do not see it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium, executable
from test_report import HOSTILE, everything, network, spa_

from spa.report.gather import gather
from spa.report.page import html
from spa.report.run import find

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium: apt-get install chromium")

# Every text that is seen, with the contrast to what lies behind it (WCAG 2.2, "contrast ratio" of relative luminances).
# Behind the text of a picture lie the boxes of its group, else the page.
CONTRASTS = r"""
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (css) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = ([r, g, b]) => { const f = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const behind = (e) => { if (!e) return [255, 255, 255, 1];
    const own = rgba(getComputedStyle(e).backgroundColor); return own[3] === 1 ? own : over(own, behind(e.parentElement)); };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "title"].includes(e.tagName) || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    const ink = rgba(svg ? style.fill : style.color), page = behind(svg ? svg.parentElement : e);
    const boxes = svg ? [...e.parentElement.children].filter((c) => c.tagName === "rect") : [];
    const grounds = boxes.map((box) => { const s = getComputedStyle(box), c = rgba(s.fill); c[3] *= Number(s.opacity); return over(c, page); });
    for (const ground of grounds.length ? grounds : [page]) found.push([node.data.trim().slice(0, 40), ratio(over(ink, ground), ground)]);
  }
  return found;
})()
"""

# What can be operated, with its accessible name as far as this page gives names: label, aria-label, or text.
NAMES = r"""
[...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")].map((e) => [e.outerHTML.slice(0, 80),
  e.getAttribute("aria-label") || (e.labels && [...e.labels].map((l) => l.textContent).join(" ")) || e.textContent.trim()])
"""
COLUMN = "[...document.querySelectorAll('#layers-table tbody tr')].map(r => Number(r.cells[3].dataset.v))"
SORTED = "[...document.querySelectorAll('#layers-table th[aria-sort]')].map(h => h.textContent + ' ' + h.ariaSort)"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that has everything, and hostile names."""
    folder = tmp_path_factory.mktemp("report")
    spa_("prune", network(folder / "dense.onnx", HOSTILE), "-o", folder / "run", "--ratio", "0.5")
    everything(folder / "run")
    text = html(gather(find(folder / "run", dense=folder / "dense.onnx")))
    (folder / "report.html").write_text(text, encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, report: Path) -> Iterator[Page]:
    """Freshly opened, in light; whatever a test does, nothing may be complained of in the console."""
    browser.errors.clear()
    browser.size(1280, 900)
    browser.scheme("light")
    browser.open(report.as_uri())
    yield browser
    assert browser.errors == []
    assert browser.js("window.pwned") is None


def press(page: Page, selector: str) -> None:
    page.js(f"document.querySelector({selector!r}).focus()")
    page.key("Enter", 13, "\r")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str, page: Page) -> None:
    page.scheme(scheme)
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.js(CONTRASTS)
    assert len(found) > 100
    assert not [(text, round(ratio, 2)) for text, ratio in found if ratio < 4.5]


def test_everything_that_can_be_operated_has_a_name(page: Page) -> None:
    found = page.js(NAMES)
    assert len(found) > 20
    assert not [element for element, label in found if not label.strip()]
    assert page.js("[...document.querySelectorAll('svg[role=img], [role=region]')].every(e => e.ariaLabel)")
    assert page.js("document.documentElement.lang") == "en"
    levels = page.js("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_tables_sort_by_number_from_the_keyboard(page: Page) -> None:
    before = page.js(COLUMN)
    button = "#layers-table th:nth-child(4) button"
    press(page, button)
    assert page.js(COLUMN) == sorted(before, reverse=True) != before
    assert page.js(SORTED) == ["parameters descending"]
    press(page, button)
    assert page.js(COLUMN) == sorted(before)
    press(page, "#layers-table th:nth-child(1) button")
    assert page.js(SORTED) == ["layer ascending"]


def test_rows_are_filtered(page: Page) -> None:
    page.js("document.querySelector('#layers-filter').focus()")
    page.call("Input.insertText", text="gemm")
    shown = "[...document.querySelectorAll('#layers-table tbody tr')].filter(r => !r.hidden).map(r => r.cells[1].textContent)"
    assert page.js(shown) == ["Gemm"]
    assert page.js("document.querySelector('#layers-table-count').textContent") == "1 of 3"


def test_pictures_zoom_from_the_keyboard(page: Page) -> None:
    press(page, "summary:has(+ .coupling)")
    box = "document.querySelector('details[open] .coupling svg').viewBox.baseVal"
    page.js("new Promise(requestAnimationFrame)")
    page.js("document.querySelector('details[open] .view').focus()")
    width, left = page.js(f"{box}.width"), page.js(f"{box}.x")
    page.key("+")
    assert page.js(f"{box}.width") == pytest.approx(0.7 * width)
    page.key("0")
    page.key("ArrowRight", 39)
    assert page.js(f"{box}.x") > left
    press(page, "details[open] [data-act=all]")
    whole = page.js(f"[{box}.x, {box}.y]")
    assert whole == [0, 0]


def test_light_and_dark_by_system_and_by_hand(page: Page) -> None:
    def ground() -> Any:
        return page.js("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.scheme("dark")
    dark = ground()
    assert dark != light
    press(page, "#theme")
    assert ground() == light
    press(page, "#theme")
    assert ground() == dark


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_nothing_is_wider_than_the_window(width: int, page: Page) -> None:
    page.size(width, 800)
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.js("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_labels_stay_in_their_tiles(page: Page) -> None:
    inside = page.js(
        "[...document.querySelectorAll('.treemap text')].map(t => { const a = t.getBBox(), "
        "boxes = [...t.parentElement.querySelectorAll('rect')].map(r => r.getBBox()); "
        "return a.x + a.width <= Math.max(...boxes.map(b => b.x + b.width)) + 1; })"
    )
    assert inside and all(inside)


def test_paper_shows_whole_tables_and_no_buttons(page: Page) -> None:
    page.scheme("dark", media="print")
    assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown = "[...document.querySelectorAll('nav, #theme, .tools')].filter(e => e.checkVisibility()).length"
    assert page.js(shown) == 0
    assert page.js("[...document.querySelectorAll('.scroll')].every(e => e.scrollHeight <= e.clientHeight + 1)")
    assert len(page.call("Page.printToPDF")["data"]) > 10_000


def test_without_its_script_the_page_is_whole(page: Page) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(page.js("location.href"))
        assert page.js("document.querySelectorAll('#layers-table tbody tr').length") == 3
        assert page.js("document.querySelector('#theme').checkVisibility()") is False
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
