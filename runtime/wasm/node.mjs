// Drives a network's ES module for spa: node node.mjs MODULE_URL FOLDER THREADS, then one command of driver.mjs per line on
// stdin ("run", "step", "part 3", "parts"), each answered by a line of JSON. Inputs and outputs are files of FOLDER.
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { open } from "./driver.mjs";

const [url, folder, threads] = process.argv.slice(2);
const read = () => readFileSync(folder + "/inputs");
const write = (parts) => writeFileSync(folder + "/outputs", Buffer.concat(parts));
const net = await open(url, Number(threads), read, write);

for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...more] = line.split(" ");
  process.stdout.write(JSON.stringify(await net[command](...more.map(Number))) + "\n");
}
