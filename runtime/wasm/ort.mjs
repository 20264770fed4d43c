// onnxruntime-web as spa drives it, in Node and in a page: WebAssembly with SIMD, so many threads.
// `rows`: name, dtype, shape and bytes of each input, which `data` holds one behind the other.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

export async function open(url, model, rows, data, threads) {
  const ort = await import(url);
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const feeds = {};
  let at = 0;
  for (const { name, dtype, shape, bytes } of rows) {
    const copy = data.buffer.slice(data.byteOffset + at, data.byteOffset + at + bytes);
    feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](copy), shape);
    at += bytes;
  }
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
  const session = await ort.InferenceSession.create(model, options);
  return {
    async step() {
      const begin = performance.now();
      await session.run(feeds);
      return { ms: performance.now() - begin };
    },
  };
}
