"""One HTML file that needs nothing else: data in, text out.

Names come from networks that may be hostile. Everything is escaped by the templates, and a content policy lets the page
run its own script alone, known by its hash, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from unicodedata import category

from markupsafe import Markup, escape

from spa.report import charts, treemap

if TYPE_CHECKING:
    import jinja2

    from spa.report.gather import Report

COLOURS = 6  # operators with a colour of their own; 0 is for the others
WIDTH, HEIGHT = 960.0, 300.0  # of a treemap's view box
LONGEST = 110  # letters of a name that is shown whole
CURVES = 120
THIN = 0.99  # dense weights have a few zeros too


@cache
def environment() -> jinja2.Environment:
    import jinja2

    loader = jinja2.PackageLoader("spa.report", "templates")
    made = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    made.filters |= {"si": si, "count": count, "share": share, "short": short, "name": name, "visible": visible}
    return made


def html(report: Report) -> str:
    """The page."""
    data = report.data
    script = static("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    colours = kinds(data["layers"])
    return (
        environment()
        .get_template("report.html")
        .render(
            data=data,
            css=Markup(static("report.css")),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            colours=colours,
            treemaps=[
                (title, treemap.tiles(data["layers"], key, colours, WIDTH, HEIGHT))
                for key, title in (("bytes", "Bytes of weights"), ("macs", "Multiply-accumulates"))
                if any(row[side] and row[side][key] for row in data["layers"] for side in ("before", "after"))
            ],
            width=WIDTH,
            height=HEIGHT,
            compared=any(row["before"] for row in data["layers"]),
            thin=[row for row in data["layers"] if row["density"] is not None and row["density"] < THIN],
            curves=[(c, charts.curve(c)) for c in data["curves"][:CURVES]],
            front=charts.front(data["pareto"]) if data["pareto"] else None,
            pictures={group: picture(svg) for group, svg in report.pictures.items()},
            reasons=Counter(b["reason"] for b in data["blocked"]),
        )
    )


def static(file: str) -> str:
    return (files("spa.report") / "templates" / file).read_text("utf-8")


def picture(svg: str) -> Markup:
    """A group's picture without the style that would hold for the whole page; the page has its own (`spa.coupling.picture`
    escapes the names in it)."""
    from spa.coupling.picture import STYLE

    return Markup(
        svg.replace(f"<style>{STYLE}</style>", "").replace(' style="fill:#f8f9fb;stroke:none"', ' class="ground"')
    )


def kinds(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Operator -> number of its colour: those with the most bytes first."""
    weight: Counter[str] = Counter()
    for row in rows:
        weight[row["op"]] += max(1, *((row[s] or {"bytes": 0})["bytes"] for s in ("before", "after")))
    return {op: i + 1 for i, (op, _) in enumerate(weight.most_common(COLOURS))}


def si(n: float | None, unit: str = "") -> str:
    """Three digits and a prefix.

    >>> si(41162), si(999.9e3, "B"), si(7)
    ('41.2 k', '1 MB', '7')
    """
    if n is None:
        return "–"
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= 0.9995 * limit:
            digits = max(0, 3 - len(f"{abs(n) / limit:.0f}"))
            return f"{n / limit:.{digits}f}".removesuffix(".00") + f" {prefix}{unit}"
    return f"{n:.0f}" + (f" {unit}" if unit else "")


def count(n: float | None) -> str:
    return "–" if n is None else f"{n:,.0f}"


def share(part: float | None, whole: float | None = 1.0) -> str:
    """Of a whole, in percent.

    >>> share(1, 3)
    '33.3%'
    """
    return f"{part / whole:.1%}" if part is not None and whole else "–"


def short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def name(value: Any) -> Markup:
    """A name from the network: isolated from the direction of the text around it, control characters made visible, breakable
    where names have joints."""
    text = visible(str(value))
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST // 3]}…{text[-LONGEST // 3 * 2 :]}"
    for joint in "/.:_":
        cut = cut.replace(joint, f"{joint}\N{ZERO WIDTH SPACE}")
    body = escape(cut).replace("\N{ZERO WIDTH SPACE}", Markup("<wbr>"))
    title = Markup(' title="{}"').format(text) if len(text) > LONGEST else ""
    return Markup('<bdi class="name"{}>{}</bdi>').format(title, body)


def visible(text: str) -> str:
    """Control characters as their pictures; those that would turn or hide text, and halves of pairs, as the sign for none.

    >>> visible("a\\tb\\u202ec")
    'a␉b�c'
    """
    return "".join(c if c.isprintable() or category(c) not in ("Cc", "Cf", "Cs") else HIDDEN.get(c, LOST) for c in text)


LOST = "\N{REPLACEMENT CHARACTER}"
HIDDEN = {chr(c): chr(0x2400 + c) for c in range(32)} | {"\x7f": "\N{SYMBOL FOR DELETE}"}
