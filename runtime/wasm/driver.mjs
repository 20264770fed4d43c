// A network's ES module as spa drives it, in Node and in a page: open(MODULE_URL, THREADS, read, write), where read() gives the
// inputs (bytes, one tensor behind the other) and write(list of bytes) takes the outputs. Every command answers { ms } of
// the run itself, or { parts }.

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function timed(run) {
  const begin = performance.now();
  run();
  return { ms: performance.now() - begin };
}

export async function open(url, threads, read, write) {
  const { load, inputs, outputs } = await import(url);
  const net = await load(undefined, { threads });
  return {
    /** Read the inputs, run, write the outputs. */
    async run() {
      const given = await read();
      let at = 0;
      for (const t of inputs) {
        bytes(net.input(t.name)).set(given.subarray(at, at + t.bytes));
        at += t.bytes;
      }
      const taken = timed(() => net.step());
      await write(outputs.map((t) => bytes(net.output(t.name)).slice())); // a copy: the memory may be shared
      return taken;
    },
    /** Run once more on the same inputs. */
    step: () => timed(() => net.step()),
    /** Run the i-th step alone. */
    part: (i) => timed(() => net.runStep(i)),
    parts: () => ({ parts: net.steps }),
    close: () => net.close(),
  };
}
