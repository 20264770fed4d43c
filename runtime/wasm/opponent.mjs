// onnxruntime-web for spa: node opponent.mjs PACKAGE_URL MODEL FOLDER THREADS, then one run per line on stdin, each
// answered by one line of JSON with its milliseconds. FOLDER/feeds.json lists the inputs, FOLDER/feeds holds them.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [url, model, folder, threads] = process.argv.slice(2);
const ort = await import(url);
ort.env.wasm.numThreads = Number(threads);
ort.env.logLevel = "error";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};
const data = readFileSync(folder + "/feeds");
const feeds = {};
let at = 0;
for (const { name, dtype, shape, bytes } of JSON.parse(readFileSync(folder + "/feeds.json"))) {
  const copy = data.buffer.slice(data.byteOffset + at, data.byteOffset + at + bytes);
  feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](copy), shape);
  at += bytes;
}
const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"], graphOptimizationLevel: "all" });

for await (const _ of createInterface({ input: process.stdin })) {
  const begin = performance.now();
  await session.run(feeds);
  process.stdout.write(JSON.stringify({ ms: performance.now() - begin }) + "\n");
}
