// onnxruntime-web for spa: node opponent.mjs PACKAGE_URL MODEL FOLDER THREADS, then one run per line on stdin, each
// answered by one line of JSON with its milliseconds. FOLDER/feeds.json lists the inputs, FOLDER/feeds holds them.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { open } from "./ort.mjs";

const [url, model, folder, threads] = process.argv.slice(2);
const rows = JSON.parse(readFileSync(folder + "/feeds.json"));
const session = await open(url, readFileSync(model), rows, readFileSync(folder + "/feeds"), Number(threads));

for await (const _ of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await session.step()) + "\n");
}
process.exit(); // its threads would keep the process alive
