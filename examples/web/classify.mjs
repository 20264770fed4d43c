// Reads an input of raw float32 numbers, runs the network, prints the best class.
//
//     node classify.mjs net.spa/wasm/net.mjs picture.f32
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [module, picture] = process.argv.slice(2);
const { load, inputs, outputs } = await import(pathToFileURL(resolve(module)));
const net = await load();

const bytes = await readFile(picture);
const scores = net.run({ [inputs[0].name]: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4) });
const output = scores[outputs[0].name];
const best = output.indexOf(Math.max(...output));
console.log(best, output[best]);
