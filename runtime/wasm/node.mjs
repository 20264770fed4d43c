// Drives a network's ES module for spa: node node.mjs MODULE_URL FOLDER THREADS, then one command per line on stdin.
//   run    read FOLDER/inputs (dense, one behind the other), run, write FOLDER/outputs
//   step   run once more on the same inputs
//   part I  run the I-th step alone; parts  how many there are
// Each is answered by one line of JSON with the milliseconds of the run itself.
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [url, folder, threads] = process.argv.slice(2);
const { load, inputs, outputs } = await import(url);
const net = await load(undefined, { threads: Number(threads) });

function timed(run) {
  const begin = performance.now();
  run();
  return performance.now() - begin;
}

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

for await (const line of createInterface({ input: process.stdin })) {
  if (line === "run") {
    const given = readFileSync(folder + "/inputs");
    let at = 0;
    for (const t of inputs) {
      bytes(net.input(t.name)).set(given.subarray(at, at + t.bytes));
      at += t.bytes;
    }
  }
  const [, part] = line.split(" ");
  if (line === "parts") {
    process.stdout.write(JSON.stringify({ parts: net.steps }) + "\n");
    continue;
  }
  const ms = timed(part === undefined ? () => net.step() : () => net.runStep(Number(part)));
  if (line === "run") writeFileSync(folder + "/outputs", Buffer.concat(outputs.map((t) => bytes(net.output(t.name)))));
  process.stdout.write(JSON.stringify({ ms }) + "\n");
}
