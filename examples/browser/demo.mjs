// The page: draws, asks the workers, shows what they say.
import { Runner, dropped, fromFiles, fromServer } from "./bundle.mjs";
import { pixels, softmax } from "./digits.mjs";

const $ = (id) => document.getElementById(id);
const ORT = new URL("ort/", location.href).href;
const ROUNDS = 15, STEP = 3; // pairs of timings, ours and theirs in turn; runs in each

/** The bundle that is open: { bundle, ours, theirs, inputs, outputs }. `ready` resolves when it can run. */
let now = null;
let strokes = [];
let given = null; // the image that is shown, 64 numbers
let asked = 0;

function fault(error) {
  $("fault").textContent = error?.message ?? String(error);
  $("fault").hidden = false;
}

const ms = (value) => (value < 10 ? value.toFixed(3) : value.toFixed(1));
const size = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const middle = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const element = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });

// The networks -------------------------------------------------------------------------------------------------------

async function use(bundle) {
  now?.ours.close();
  now?.theirs?.close();
  now = null;
  $("fault").hidden = true;
  for (const cell of document.querySelectorAll("#times td")) cell.textContent = "–";
  $("compared").textContent = "";
  $("time").disabled = true;
  const ours = new Runner();
  const { inputs, outputs, ms: loaded } = await ours.ask({ open: { module: bundle.module, wasm: bundle.wasm } });
  now = { bundle, ours, theirs: null, inputs, outputs };
  $("ours-bytes").textContent = size(bundle.bytes);
  $("ours-load").textContent = ms(loaded);
  return now;
}

/** onnxruntime-web on the bundle's own network, where both are there. */
async function beside() {
  const network = await now.bundle.network();
  if (!network) return void ($("compared").textContent = "The bundle has no .onnx file to compare with.");
  const library = await fetch(`${ORT}ort.json`, { cache: "no-store" });
  if (!library.ok || !library.headers.get("content-type")?.includes("json")) return void missing();
  const { version, bytes } = await library.json();
  if (!version) return void missing();
  const theirs = new Runner();
  try {
    const model = new Uint8Array(await network.arrayBuffer());
    const { ms: loaded } = await theirs.ask({ open: { ort: ORT, model, inputs: now.inputs } });
    now.theirs = theirs;
    $("theirs-bytes").textContent = size(bytes + model.byteLength);
    $("theirs-load").textContent = ms(loaded);
  } catch (error) {
    theirs.close();
    $("compared").textContent = `onnxruntime-web does not run this network: ${error.message}`;
  }
}

function missing() {
  $("compared").textContent = "onnxruntime-web is not here: npm install in examples/browser, and serve again.";
}

/** Both on the same input; the largest difference per output, of its largest number. */
async function infer(feeds) {
  const mine = now;
  const { outputs, ms: first } = await mine.ours.ask({ feeds });
  if ($("ours-first").textContent === "–") $("ours-first").textContent = ms(first);
  $("time").disabled = false;
  if (!mine.theirs) return { outputs, differences: {} };
  const other = await mine.theirs.ask({ feeds });
  if ($("theirs-first").textContent === "–") $("theirs-first").textContent = ms(other.ms);
  const differences = Object.fromEntries(mine.outputs.map((t) => [t.name, difference(outputs[t.name], other.outputs[t.name])]));
  return { outputs, differences };
}

function difference(a, b) {
  let most = 0, largest = 0;
  for (let i = 0; i < a.length; i++) {
    most = Math.max(most, Math.abs(Number(a[i]) - Number(b[i])));
    largest = Math.max(largest, Math.abs(Number(b[i])));
  }
  return largest ? most / largest : most;
}

async function time() {
  const mine = now, feeds = feedsNow();
  $("time").disabled = true;
  $("compared").textContent = "timing …";
  const ours = [], theirs = [];
  for (let i = 0; i < ROUNDS; i++) {
    ours.push(middle((await mine.ours.ask({ feeds, runs: STEP })).ms));
    if (mine.theirs) theirs.push(middle((await mine.theirs.ask({ feeds, runs: STEP })).ms));
  }
  if (mine !== now) return;
  $("ours-median").textContent = ms(middle(ours));
  if (theirs.length) {
    $("theirs-median").textContent = ms(middle(theirs));
    const ratio = middle(theirs.map((t, i) => t / ours[i]));
    $("compared").textContent = `In turn, on the same input: onnxruntime-web takes ${ratio.toFixed(2)} times as long.`;
  } else missing();
  $("time").disabled = false;
}

// Digits --------------------------------------------------------------------------------------------------------------

const ink = $("pad").getContext("2d");

function draw() {
  ink.clearRect(0, 0, 280, 280);
  Object.assign(ink, { lineWidth: 18, lineCap: "round", lineJoin: "round", strokeStyle: "#111" });
  for (const stroke of strokes) {
    ink.beginPath();
    ink.moveTo(...stroke[0]);
    for (const point of stroke.length > 1 ? stroke.slice(1) : stroke) ink.lineTo(...point);
    ink.stroke();
  }
}

function see(image) {
  given = image;
  const seen = $("seen").getContext("2d");
  const data = seen.createImageData(8, 8);
  image.forEach((v, i) => data.data.set([v * 255, v * 255, v * 255, 255], 4 * i));
  seen.putImageData(data, 0, 0);
}

async function answer() {
  const number = ++asked, mine = now;
  if (!mine || mine.feeds) return; // not the digits
  if (!given.some((v) => v > 0)) return show(null);
  const { outputs, differences } = await infer(feedsNow());
  if (number !== asked || mine !== now) return; // another was drawn or opened meanwhile
  show(softmax(outputs[now.outputs[0].name]), differences[now.outputs[0].name]);
}

function show(shares, apart) {
  const best = shares ? shares.indexOf(Math.max(...shares)) : -1;
  $("answer").textContent = shares ? `This is a ${best}: ${(100 * shares[best]).toFixed(1)} % sure.` : "Nothing is drawn yet.";
  $("answer").dataset.digit = best;
  [...document.querySelectorAll("#scores tbody tr")].forEach((row, digit) => {
    const share = shares ? shares[digit] : 0;
    row.className = digit === best ? "best" : "";
    row.querySelector("i").style.width = `${100 * share}%`;
    row.querySelector(".number").textContent = shares ? `${(100 * share).toFixed(1)} %` : "";
  });
  if (apart !== undefined) $("compared").textContent = `onnxruntime-web gives the same, up to ${apart.toExponential(1)} of the largest number.`;
}

function point(event) {
  const box = $("pad").getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * 280, ((event.clientY - box.top) / box.height) * 280];
}

function setUpDigits(examples) {
  for (let digit = 0; digit < 10; digit++) {
    const row = element("tr"), bar = Object.assign(element("div"), { className: "bar" }), room = element("span");
    room.append(element("i"));
    bar.append(room, Object.assign(element("span"), { className: "number" }));
    const cell = element("td");
    cell.append(bar);
    row.append(Object.assign(element("th", digit), { scope: "row" }), cell);
    document.querySelector("#scores tbody").append(row);
  }
  examples.forEach(({ label }, i) => $("example").append(Object.assign(element("option", `a ${label}`), { value: i })));
  $("example").onchange = () => {
    if ($("example").value === "") return;
    strokes = [];
    draw();
    see(Float32Array.from(examples[$("example").value].pixels, (v) => v / 16));
    answer().catch(fault);
  };
  $("clear").onclick = () => {
    strokes = [];
    $("example").value = "";
    changed();
  };
  $("pad").onpointerdown = (event) => {
    $("pad").setPointerCapture(event.pointerId);
    $("example").value = "";
    strokes.push([point(event)]);
    changed();
  };
  $("pad").onpointermove = (event) => {
    if (!$("pad").hasPointerCapture(event.pointerId)) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) strokes.at(-1).push(point(each));
    if (!event.getCoalescedEvents?.().length) strokes.at(-1).push(point(event));
    changed();
  };
}

let due = false;
function changed() { // at most once a frame
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
    see(pixels(strokes));
    answer().catch(fault);
  });
}

// Bundles of one's own ---------------------------------------------------------------------------------------------------

const DRAW = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, int16: Int16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array };

/** Random inputs; whole numbers are zeros, which index any table. */
function drawn(tensor) {
  const Type = DRAW[tensor.dtype];
  if (!Type) throw new Error(`inputs of type ${tensor.dtype} cannot be drawn here`);
  const found = new Type(tensor.shape.reduce((a, b) => a * b, 1));
  return tensor.dtype.startsWith("float") ? found.map(() => Math.random() * 2 - 1) : found;
}

function feedsNow() {
  if (now.feeds) return now.feeds;
  return { [now.inputs[0].name]: given ?? new Float32Array(64) };
}

async function own(files) {
  const bundle = await fromFiles(files);
  await use(bundle);
  const mine = now;
  mine.feeds = Object.fromEntries(mine.inputs.map((t) => [t.name, drawn(t)]));
  digitsShown(false);
  $("bundle-name").textContent = bundle.name;
  const { outputs } = await infer(mine.feeds);
  table(mine, outputs, {});
  await beside();
  if (mine.theirs) table(mine, ...Object.values(await infer(mine.feeds)));
}

function table(mine, outputs, differences) {
  const range = (a) => { let low = Infinity, high = -Infinity; for (const v of a) { low = Math.min(low, Number(v)); high = Math.max(high, Number(v)); } return [low, high]; };
  const rows = [...mine.inputs.map((t) => [t, mine.feeds[t.name]]), ...mine.outputs.map((t) => [t, outputs[t.name]])].map(([t, values]) => {
    const row = element("tr");
    const apart = differences[t.name];
    row.append(Object.assign(element("th", t.name), { scope: "row" }), element("td", t.dtype), element("td", t.shape.join("×")));
    row.append(...range(values).map((v) => element("td", v.toPrecision(4))), element("td", apart === undefined ? "" : apart.toExponential(1)));
    return row;
  });
  document.querySelector("#tensors tbody").replaceChildren(...rows);
}

function setUpBundles() {
  const take = (list) => own(list).catch(fault);
  for (const id of ["folder", "files"])
    $(id).onchange = () => take([...$(id).files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
  const place = document.body;
  place.ondragover = (event) => { event.preventDefault(); $("own").classList.add("over"); };
  place.ondragleave = () => $("own").classList.remove("over");
  place.ondrop = async (event) => {
    event.preventDefault();
    $("own").classList.remove("over");
    try { take(await dropped(event.dataTransfer.items)); } catch (error) { fault(error); }
  };
  $("back").onclick = () => {
    digitsShown(true);
    digits().catch(fault);
  };
}

/** Drawing is for the digits; what was drawn waits for them. */
function digitsShown(yes) {
  for (const section of document.querySelectorAll(".digits")) section.hidden = !yes;
  $("bundle").hidden = $("back").hidden = yes;
  $("tensors").tBodies[0].replaceChildren();
}

async function digits() {
  await use(await fromServer(new URL("bundle/", location.href)));
  if (given) await answer();
  await beside();
}

async function start() {
  const examples = await fetch("examples.json").then((r) => (r.ok ? r.json() : []));
  setUpDigits(examples);
  setUpBundles();
  $("time").onclick = () => time().catch(fault);
  await digits();
}

/** For tests: what is shown, and a promise of the page being ready. */
export const page = { ready: start().catch(fault), get input() { return given && [...given]; }, get state() { return now; }, own };
globalThis.page = page;
