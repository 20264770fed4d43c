// A network in a worker: either our artifact (an ES module and its .wasm) or onnxruntime-web on the .onnx file. Both answer
//   { open } -> { inputs, outputs, ms }     load it
//   { feeds } -> { outputs, ms }            run it once
//   { feeds, runs } -> { ms: [..] }         so many runs, each timed over as many calls as the clock needs
// by the number of the question.

let step; // (feeds) => outputs, or a promise of them

/** module: address or text of the ES module; wasm: its bytes. */
async function artifact({ module, wasm }) {
  const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
  const { load, inputs, outputs } = await import(url);
  URL.revokeObjectURL(url);
  const net = await load(wasm);
  step = (feeds) => net.run(feeds);
  return { inputs, outputs };
}

async function onnxruntime({ ort, model, inputs }) {
  const { InferenceSession, Tensor, env } = await import(new URL("ort.wasm.bundle.min.mjs", ort));
  env.wasm.wasmPaths = ort;
  env.wasm.numThreads = 1;
  const session = await InferenceSession.create(model, { graphOptimizationLevel: "all" });
  step = async (feeds) => {
    const given = Object.fromEntries(inputs.map((t) => [t.name, new Tensor(t.dtype, feeds[t.name], t.shape)]));
    const found = await session.run(given);
    return Object.fromEntries(session.outputNames.map((name) => [name, found[name].data]));
  };
  return {};
}

async function timed(feeds, runs) {
  const once = async (calls) => {
    const begin = performance.now();
    for (let i = 0; i < calls; i++) { const found = step(feeds); if (found instanceof Promise) await found; }
    return performance.now() - begin;
  };
  let calls = 1;
  while ((await once(calls)) < 4 && calls < 1 << 16) calls *= 2; // browsers blur their clocks to a tenth of a millisecond
  const found = [];
  for (let i = 0; i < runs; i++) found.push((await once(calls)) / calls);
  return found;
}

onmessage = async ({ data }) => {
  const { id, open, feeds, runs } = data;
  try {
    const begin = performance.now();
    if (open) postMessage({ id, ...(await (open.module ? artifact : onnxruntime)(open)), ms: performance.now() - begin });
    else if (runs) postMessage({ id, ms: await timed(feeds, runs) });
    else { const outputs = await step(feeds); postMessage({ id, outputs, ms: performance.now() - begin }); }
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};
