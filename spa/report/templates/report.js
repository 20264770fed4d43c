"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Light, dark, or as the system has it.
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; });

  // Tables sort by the cells' data-v, else by their text; a second click turns the order round.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v;
  };
  const compare = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    const numbers = a !== "" && b !== "" && !Number.isNaN(Number(a)) && !Number.isNaN(Number(b));
    return numbers ? x - y : a.localeCompare(b, undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("n");
        const now = head.getAttribute("aria-sort");
        const next = now ? (now === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        rows.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b))); // nothing goes last
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // Rows whose text holds what is typed.
  for (const input of document.querySelectorAll("input[data-filter]")) {
    const body = document.getElementById(input.dataset.filter).tBodies[0];
    const told = document.getElementById(input.dataset.filter + "-count");
    const texts = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let shown = 0;
      for (const [row, text] of texts) { row.hidden = !text.includes(wanted); shown += !row.hidden; }
      told.textContent = wanted ? `${shown} of ${texts.size}` : "";
    });
  }

  // Pictures: drag, wheel with Ctrl, buttons, and the keys + - 0 and arrows once the picture has the focus.
  const live = (box) => {
    if (box.classList.contains("live")) return;
    const view = box.querySelector(".view"), svg = view.querySelector("svg");
    const whole = svg.viewBox.baseVal, home = [whole.x, whole.y, whole.width, whole.height];
    let now = [...home];
    box.classList.add("live");
    const scale = Math.min(view.clientWidth / home[2], view.clientHeight / home[3]);
    if (scale < 0.8) { // too small to read as a whole: its beginning
      const width = view.clientWidth / 0.85;
      now = [home[0] + (home[2] - width) / 2, home[1], width, view.clientHeight / 0.85];
    }
    const show = () => svg.setAttribute("viewBox", now.join(" "));
    const zoom = (factor) => {
      const [x, y, w, h] = now;
      const width = Math.min(home[2] * 2, Math.max(home[2] / 40, w * factor)), height = (width / w) * h;
      now = [x + (w - width) / 2, y + (h - height) / 2, width, height];
      show();
    };
    const move = (x, y) => { now[0] += x; now[1] += y; show(); };
    show();
    const tools = box.querySelector(".zoom");
    tools.addEventListener("click", (event) => {
      const act = event.target.closest("button")?.dataset.act;
      if (act === "in") zoom(0.7); else if (act === "out") zoom(1 / 0.7); else if (act === "all") { now = [...home]; show(); }
    });
    view.addEventListener("keydown", (event) => {
      const step = now[2] / 8;
      const acts = { "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), 0: () => { now = [...home]; show(); },
        ArrowLeft: () => move(-step, 0), ArrowRight: () => move(step, 0), ArrowUp: () => move(0, -step), ArrowDown: () => move(0, step) };
      if (acts[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); acts[event.key](); }
    });
    view.addEventListener("wheel", (event) => {
      if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15); }
    }, { passive: false });
    let from = null;
    view.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; view.setPointerCapture(event.pointerId); });
    view.addEventListener("pointerup", () => { from = null; });
    view.addEventListener("pointermove", (event) => {
      if (!from) return;
      const scale = 1 / svg.getScreenCTM().a;
      move((from[0] - event.clientX) * scale, (from[1] - event.clientY) * scale);
      from = [event.clientX, event.clientY];
    });
  };
  for (const details of document.querySelectorAll("details")) {
    const box = details.querySelector(".coupling");
    if (box) details.addEventListener("toggle", () => { if (details.open) live(box); });
  }
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();

  // Paper shows everything.
  let closed = [];
  addEventListener("beforeprint", () => { closed = [...document.querySelectorAll("details.on-paper:not([open])")]; closed.forEach((d) => { d.open = true; }); });
  addEventListener("afterprint", () => closed.forEach((d) => { d.open = false; }));
})();
