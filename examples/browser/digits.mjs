// From strokes to what the network was trained on: the digit fills a grid of 32 x 32 points, ink or no ink, and every
// 4 x 4 of them count as one of 8 x 8 pixels, 0 to 1 (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998).

const GRID = 32, CELL = 4, PEN = 5.2; // points; the pen is as wide as theirs was: a third of the pixels is ink on average

/** strokes: lists of points [x, y] in any unit -> Float32Array of 64, rows from the top. */
export function pixels(strokes) {
  const points = strokes.flat();
  const found = new Float32Array((GRID / CELL) ** 2);
  if (!points.length) return found;
  const low = [0, 1].map((k) => Math.min(...points.map((p) => p[k])));
  const high = [0, 1].map((k) => Math.max(...points.map((p) => p[k])));
  const extent = Math.max(high[0] - low[0], high[1] - low[1], 1e-9);
  const scale = (GRID - PEN) / extent; // the longer side fills the grid, the other keeps its proportion
  const place = (p) => [0, 1].map((k) => GRID / 2 + (p[k] - (low[k] + high[k]) / 2) * scale);
  const lines = strokes.filter((s) => s.length).map((s) => s.map(place));
  for (let y = 0; y < GRID; y++)
    for (let x = 0; x < GRID; x++)
      if (lines.some((line) => distance(line, x + 0.5, y + 0.5) <= PEN / 2))
        found[Math.floor(y / CELL) * (GRID / CELL) + Math.floor(x / CELL)] += 1 / CELL ** 2;
  return found;
}

/** Of a point to a line of points. */
function distance(line, x, y) {
  let least = Math.hypot(line[0][0] - x, line[0][1] - y);
  for (let i = 1; i < line.length; i++) {
    const [ax, ay] = line[i - 1], [bx, by] = line[i];
    const square = (bx - ax) ** 2 + (by - ay) ** 2;
    const t = square ? Math.min(1, Math.max(0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / square)) : 0;
    least = Math.min(least, Math.hypot(ax + t * (bx - ax) - x, ay + t * (by - ay) - y));
  }
  return least;
}

export function softmax(logits) {
  const high = Math.max(...logits);
  const parts = Array.from(logits, (v) => Math.exp(v - high));
  const sum = parts.reduce((a, b) => a + b, 0);
  return parts.map((v) => v / sum);
}
