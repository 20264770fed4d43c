// A bundle of spa, from a server or from files of this machine, and the workers that run it.

/** A worker that is asked questions (worker.mjs); `ask` resolves with its answer. */
export class Runner {
  #worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  #waiting = new Map();
  #last = 0;

  constructor() {
    this.#worker.onmessage = ({ data }) => {
      const { resolve, reject } = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      if (data.error) reject(new Error(data.error)); else resolve(data);
    };
    this.#worker.onerror = (event) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(event.message || "the worker failed"));
      this.#waiting.clear();
    };
  }

  ask(question) {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, ...question });
    });
  }

  close() { this.#worker.terminate(); }
}

/** What a bundle holds: its name, the ES module's text, the bytes of its .wasm and, where there is one, of its .onnx file.
 *  `read(path)` gives a Blob or Response, or null. */
export async function open(read) {
  const manifest = await (await must(read, "manifest.json")).text().then(JSON.parse);
  const target = manifest.targets?.wasm;
  if (!target) throw new Error("this bundle has no wasm target: spa compile MODEL --target wasm -o DIR");
  const library = `${target.path}/${target.library}`;
  const wasm = await (await must(read, library)).arrayBuffer();
  const module = await (await must(read, library.replace(/\.wasm$/, ".mjs"))).text();
  return { name: manifest.name, module, wasm, bytes: wasm.byteLength + module.length, network: () => read("model.onnx") };
}

/** A bundle without its manifest: a .wasm and the .mjs of the same name, among loose files. */
export async function loose(files) {
  const wasm = files.find((f) => f.name.endsWith(".wasm"));
  const module = files.find((f) => wasm && f.name === wasm.name.replace(/\.wasm$/, ".mjs"));
  if (!module) throw new Error("needed are NAME.wasm and NAME.mjs, or the folder of a bundle with its manifest.json");
  const [bytes, text] = [await wasm.arrayBuffer(), await module.text()];
  const onnx = files.find((f) => f.name.endsWith(".onnx")) ?? null;
  return { name: wasm.name.replace(/\.wasm$/, ""), module: text, wasm: bytes, bytes: bytes.byteLength + text.length, network: async () => onnx };
}

async function must(read, path) {
  const found = await read(path);
  if (!found) throw new Error(`the bundle has no ${path}`);
  return found;
}

/** Files of a folder that was chosen or dropped -> a bundle. */
export function fromFiles(files) {
  const manifest = files.find((f) => f.path.split("/").pop() === "manifest.json");
  if (!manifest) return loose(files.map((f) => f.file));
  const root = manifest.path.slice(0, -"manifest.json".length);
  return open(async (path) => files.find((f) => f.path === root + path)?.file ?? null);
}

/** A folder of a server -> a bundle. */
export function fromServer(url) {
  return open(async (path) => {
    const answer = await fetch(new URL(path, url));
    return answer.ok ? answer : null;
  });
}

/** Everything that was dropped, folders too: [{ path, file }]. */
export async function dropped(items) {
  const found = [];
  const walk = async (entry, path) => {
    if (entry.isFile) {
      found.push({ path: path + entry.name, file: await new Promise((yes, no) => entry.file(yes, no)) });
      return;
    }
    const reader = entry.createReader();
    for (let part; (part = await new Promise((yes, no) => reader.readEntries(yes, no))).length;)
      for (const inner of part) await walk(inner, `${path}${entry.name}/`);
  };
  for (const entry of [...items].map((i) => i.webkitGetAsEntry()).filter(Boolean)) await walk(entry, "");
  return found;
}
