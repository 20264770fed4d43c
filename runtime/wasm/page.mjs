// What a page of spa runs: `subjects`, opened by number, each with the commands of driver.mjs or ort.mjs.
import { open } from "./driver.mjs";
import * as ort from "./ort.mjs";

const fetched = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());

const subjects = [];
globalThis.spa = {
  subjects,
  async ours(number, url, threads) {
    const read = () => fetched("/" + number + "/inputs");
    const write = (parts) => fetch("/" + number + "/outputs", { method: "POST", body: new Blob(parts) });
    subjects[number] = await open(url, threads, read, write);
  },
  async theirs(number, url, threads) {
    const [model, rows, data] = await Promise.all(["model", "feeds.json", "feeds"].map((f) => fetched("/" + number + "/" + f)));
    subjects[number] = await ort.open(url, model, JSON.parse(new TextDecoder().decode(rows)), data, threads);
  },
};
