"""Write the drawings of docs/explanation: python docs/make_pictures.py

Plain SVG on a light card, so that they read the same in a light and a dark theme and on paper. The curve in repair.svg is
measured when this runs (models/digits.onnx on its test images, some minutes).
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
INK, SOFT, FAINT, MARK, GOOD = "#1d2433", "#5b6475", "#dfe3ea", "#d6421f", "#1f6fd6"
STYLE = "font-family: system-ui, sans-serif; font-size: 13px"


class Drawing:
    """Shapes in order; the size grows by hand."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-labelledby="t d" style="{STYLE}">',
            f'<title id="t">{title}</title><desc id="d">{description}</desc>',
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="10" fill="#fbfcfe" stroke="{FAINT}"/>',
        ]

    def text(self, x: float, y: float, words: str, colour: str = INK, anchor: str = "middle", size: int = 13) -> None:
        self.parts.append(
            f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{words}</text>'
        )

    def box(self, x: float, y: float, w: float, h: float, fill: str = "#fff", edge: str = SOFT, rx: float = 0) -> None:
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{rx}" fill="{fill}" stroke="{edge}"/>')

    def arrow(self, *points: tuple[float, float], colour: str = SOFT) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#a)"/>'
        )

    def line(self, points: list[tuple[float, float]], colour: str, width: float = 2, dashes: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'
        )

    def matrix(self, x: float, y: float, rows: int, columns: int, cell: float, marked: set[tuple[int, int]]) -> None:
        for r in range(rows):
            for c in range(columns):
                fill = MARK if (r, c) in marked else "#fff"
                self.box(x + c * cell, y + r * cell, cell, cell, fill, SOFT if fill != "#fff" else "#aab2c0")

    def save(self, name: str) -> None:
        (HERE / "pictures" / name).write_text("\n".join([*self.parts, "</svg>", ""]), "utf-8")


def coupling() -> None:
    d = Drawing(
        900,
        330,
        "One channel of a residual block",
        "Removing channel 2 of the trunk takes a row of the two weights that produce it and a column of the two that read it.",
    )
    cell, n, channel, top = 15, 6, 2, 150
    row = {(channel, c) for c in range(n)}
    column = {(r, channel) for r in range(n)}
    strip = {(channel, 0)}
    d.text(75, 30, "channel 2 of the trunk", MARK, "start", 15)
    d.text(75, 50, "red: what leaves together", SOFT, "start")
    places = {"stem": (60, 3, {(channel, c) for c in range(3)}, "makes it: a row")}
    for name, (x, width, marked, note) in places.items():
        d.matrix(x, top, n, width, cell, marked)
        d.text(x + width * cell / 2, top + n * cell + 20, f"weight of {name}")
        d.text(x + width * cell / 2, top + n * cell + 38, note, SOFT, size=12)
    d.arrow((110, top + 45), (158, top + 45))
    d.matrix(165, top, n, 1, cell, strip)
    d.text(172, top - 12, "trunk", SOFT)
    d.arrow((185, top + 45), (236, top + 45))
    d.matrix(245, top, n, n, cell, column)
    d.text(290, top + 110, "weight of conv a")
    d.text(290, top + 128, "reads it: a column", SOFT, size=12)
    d.arrow((340, top + 45), (366, top + 45))
    d.box(370, top + 30, 56, 30, rx=6)
    d.text(398, top + 50, "ReLU")
    d.arrow((428, top + 45), (462, top + 45))
    d.matrix(470, top, n, n, cell, row)
    d.text(515, top + 110, "weight of conv b")
    d.text(515, top + 128, "adds to it: a row", SOFT, size=12)
    d.arrow((565, top + 45), (606, top + 45))
    d.parts.append(f'<circle cx="622" cy="{top + 45}" r="14" fill="#fff" stroke="{INK}"/>')
    d.text(622, top + 50, "+", INK, size=18)
    d.arrow((172, top - 28), (172, 90), (622, 90), (622, top + 27))
    d.text(400, 82, "the shortcut: index i of one side is index i of the other", SOFT)
    d.arrow((638, top + 45), (672, top + 45))
    d.matrix(680, top, n, 1, cell, strip)
    d.text(687, top - 12, "trunk", SOFT)
    d.arrow((700, top + 45), (742, top + 45))
    d.matrix(750, top, n, n, cell, column)
    d.text(795, top + 110, "weight of the next")
    d.text(795, top + 128, "reads it: a column", SOFT, size=12)
    d.save("coupling.svg")


def verification() -> None:
    d = Drawing(
        900,
        300,
        "Masked equals pruned",
        "The plan alone makes the masked network; the pruned one comes from the coupling. Both run on the same inputs.",
    )

    def stage(x: float, y: float, w: float, first: str, second: str = "", edge: str = SOFT) -> None:
        d.box(x, y, w, 54, "#fff", edge, 8)
        d.text(x + w / 2, y + (24 if second else 32), first)
        if second:
            d.text(x + w / 2, y + 42, second, SOFT, size=12)

    stage(30, 120, 120, "dense.onnx")
    stage(220, 40, 230, "pruned network", "axes cut by the coupling groups", GOOD)
    stage(220, 200, 230, "masked network", "slices in plan.removed set to 0", MARK)
    d.arrow((150, 140), (185, 140), (185, 67), (216, 67))
    d.arrow((150, 155), (185, 155), (185, 227), (216, 227))
    d.text(335, 150, "knows nothing of the other", SOFT, size=12)
    stage(520, 40, 150, "onnxruntime", "optimisations off")
    stage(520, 200, 150, "onnxruntime", "optimisations off")
    d.arrow((450, 67), (516, 67))
    d.arrow((450, 227), (516, 227))
    d.text(595, 150, "the same inputs", SOFT, size=12)
    d.arrow((595, 136), (595, 98))
    d.arrow((595, 158), (595, 196))
    stage(740, 120, 130, "equal?", "to rounding", INK)
    d.arrow((670, 67), (805, 67), (805, 116))
    d.arrow((670, 227), (805, 227), (805, 178))
    d.text(735, 280, "no: exit 1, nothing is written", SOFT, size=12)
    d.save("verification.svg")


def kernels() -> None:
    d = Drawing(
        900,
        300,
        "From a sparse weight to registers",
        "Blocks of four outputs by one input that are not zero are packed one after the other, with the number of their input; "
        "a kernel holds four times sixteen sums in registers while it runs over them.",
    )
    cell, kept = 14, {0: (1, 4, 7), 1: (0, 2, 7)}
    marked = {(4 * band + r, c) for band, columns in kept.items() for c in columns for r in range(4)}
    d.text(110, 40, "weight, block4x1")
    d.matrix(54, 60, 8, 8, cell, marked)
    d.text(110, 195, "outputs down, inputs across", SOFT, size=12)
    d.arrow((175, 116), (232, 116))
    d.text(204, 106, "pack", SOFT, size=12)
    d.text(330, 40, "values and input numbers")
    for band, columns in kept.items():
        for at, c in enumerate(columns):
            x, y = 245 + at * 30 + band * 100, 70
            d.matrix(x, y, 4, 1, cell, {(r, 0) for r in range(4)})
            d.text(x + 7, y + 76, str(c), INK, size=12)
    d.text(335, 172, "only what is not zero is stored and read", SOFT, size=12)
    d.arrow((440, 98), (502, 98))
    d.text(470, 88, "run", SOFT, size=12)
    d.text(690, 40, "a tile of 4 × 16 sums, in vector registers")
    d.matrix(530, 70, 4, 1, cell, {(r, 0) for r in range(4)})
    d.text(537, 145, "block", SOFT, size=12)
    d.parts += [
        f'<rect x="{590 + 15 * i}" y="190" width="15" height="14" fill="#cfe0f8" stroke="{SOFT}"/>' for i in range(16)
    ]
    d.text(710, 226, "16 pixels of input 4, loaded once", SOFT, size=12)
    for r in range(4):
        for i in range(16):
            d.box(590 + 15 * i, 70 + 14 * r, 15, 14, "#eef4fd", "#9fb3d1")
    d.arrow((710, 186), (710, 132))
    d.text(722, 165, "block × pixels is added", SOFT, "start", 12)
    d.text(450, 270, "bias, activation and residual sum are applied while the sums are still in registers", SOFT)
    d.save("kernels.svg")


def repair(points: dict[str, list[tuple[float, float]]]) -> None:
    """`points`: method -> (share of the multiply-accumulates left, test accuracy)."""
    d = Drawing(
        900,
        330,
        "Repair",
        "A removed channel is predicted from those that stay, and its weight handed on to them; accuracy with and without.",
    )
    d.text(200, 34, "a reader loses channel 3", INK, size=15)
    for i, (name, y) in enumerate([("x₁", 90), ("x₂", 150), ("x₃", 210)]):
        gone = i == 2
        d.box(60, y - 16, 44, 30, "#fff", MARK if gone else SOFT, 6)
        d.text(82, y + 4, name, MARK if gone else INK)
        if not gone:
            d.arrow((106, y), (292, 145))
    d.line([(106, 210), (292, 155)], MARK, 1.6, "5 4")
    d.text(200, 100, "w₁ + a·w₃", GOOD)
    d.text(176, 140, "w₂ + b·w₃", GOOD)
    d.text(210, 208, "w₃", MARK)
    d.box(296, 130, 50, 36, "#fff", INK, 6)
    d.text(321, 153, "y")
    d.arrow((60, 220), (28, 220), (28, 120), (56, 95), colour=SOFT)
    d.text(200, 262, "x₃ ≈ a·x₁ + b·x₂ + c, by least squares over calibration inputs", SOFT, size=12)
    d.text(200, 282, "c goes into the bias; what x₃ alone knew is lost", SOFT, size=12)
    left, right, top, bottom = 480, 860, 60, 270

    def at(share: float, accuracy: float) -> tuple[float, float]:
        return right - (1 - share) / 0.9 * (right - left), bottom - accuracy * (bottom - top)

    d.text((left + right) / 2, 34, "models/digits, 450 test images, nothing trained", INK, size=15)
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = at(1, value)[1]
        d.line([(left, y), (right, y)], FAINT, 1)
        d.text(left - 8, y + 4, f"{value:.0%}", SOFT, "end", 12)
    for share in (0.1, 0.4, 0.7, 1):
        d.text(at(share, 0)[0], bottom + 18, f"{share:.0%}", SOFT, size=12)
    d.text((left + right) / 2, bottom + 38, "multiply-accumulates left", SOFT, size=12)
    for (name, curve), colour in zip(points.items(), (GOOD, MARK), strict=True):
        places = [at(*point) for point in sorted(curve)]
        d.line(places, colour)
        d.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[1]
        d.text(x + 12, y + 18, name, colour, "start", 12)
    d.save("repair.svg")


def measured() -> dict[str, list[tuple[float, float]]]:
    import numpy as np
    import onnxruntime

    import spa

    model = spa.load(HERE.parent / "models" / "digits.onnx")
    data = np.load(HERE.parent / "models" / "digits.npz")
    dense = model.inspect().macs

    def accuracy(network: spa.Model) -> float:
        session = onnxruntime.InferenceSession(network.to_proto().SerializeToString())
        logits = np.asarray(session.run(None, {"x": data["test_x"]})[0])
        return float((logits.argmax(1) == data["test_y"]).mean())

    found: dict[str, list[tuple[float, float]]] = {}
    for name, mend in (("mended", True), ("the same choice, not mended", False)):
        found[name] = [(1.0, accuracy(model))]
        for share in (0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15):
            result = spa.prune(model, macs=share, calib=str(HERE.parent / "models" / "digits.npz"), compensate=mend)
            found[name].append((result.model.inspect().macs / dense, accuracy(result.model)))
    return found


if __name__ == "__main__":
    coupling()
    verification()
    kernels()
    repair(measured())
