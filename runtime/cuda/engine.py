"""An artifact for GPUs as an engine: its launch table read, its code and weights on the card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spa.errors import MissingTool, ModelError
from spa.runtime.cuda.driver import Driver, Handle, choose_image
from spa.runtime.load import Target
from spa.runtime.tensor import Array, ordered

SCHEMA = 1


class Cuda:
    """The launches of a network on a stream of their own. After the first run they are replayed as a CUDA graph."""

    def __init__(self, target: Target, device: int = 0) -> None:
        self.target = target
        self.table: dict[str, Any] = json.loads(target.file(f"{target.prefix}.launch.json").read_text())
        if self.table.get("schema") != SCHEMA:
            raise ModelError("the launch table has another schema", str(target.folder), "compile it again")
        if not self.table["images"] and self.table["launches"]:
            raise MissingTool("the bundle holds CUDA C only", str(target.folder), "compile it where nvcc is")
        weights = np.frombuffer(target.file(self.table["weights"]).read_bytes(), np.uint8)
        self.driver = Driver(device)
        d = self.driver
        self._module = None
        self._functions: list[Handle] = []
        if self.table["launches"]:
            _, file = choose_image(self.table["images"], d.compute)
            self._module = d.load(target.file(file).read_bytes())
            self._functions = [d.function(self._module, e["symbol"], e["shared_bytes"]) for e in self.table["launches"]]
        self._stream = d.stream()
        sizes = {"weights": weights.nbytes, "arena": self.table["arena_bytes"]}
        self._at = {space: [d.allocate(size)] for space, size in sizes.items()}
        self._at["input"] = [d.allocate(t.nbytes) for t in target.inputs]
        self._at["output"] = [d.allocate(t.nbytes) for t in target.outputs]
        if weights.nbytes:
            d.upload(self._at["weights"][0], weights, self._stream)
        self._outputs = [np.empty(t.shape, t.dtype) for t in target.outputs]
        self._graph: Handle | None = None
        self._events = d.event(), d.event()
        self._pointers = [[self._pointer(a) for a in e["arguments"]] for e in self.table["launches"]]
        d.synchronize(self._stream)

    def _pointer(self, argument: Mapping[str, Any]) -> int:
        space, at = argument["space"], argument["at"]
        return int(self._at[space][at] if space in ("input", "output") else self._at[space][0] + at)

    def launch(self, call: int | None = None) -> None:
        """Set out all launches, or those of one kernel call."""
        d = self.driver
        for e, function, pointers in zip(self.table["launches"], self._functions, self._pointers, strict=True):
            if call is None or e["call"] == call:
                d.launch(function, e["grid"], e["block"], e["shared_bytes"], self._stream, pointers)
        for copy in self.table["copies"] if call is None else ():
            d.copy(self._at["output"][copy["output"]], self._pointer(copy["from"]), copy["bytes"], self._stream)

    def capture(self) -> None:
        """Record the launches as a graph."""
        if self._graph is None:
            self.driver.begin_capture(self._stream)
            self.launch()
            self._graph = self.driver.end_capture(self._stream)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        d = self.driver
        arrays = ordered(feeds, self.target.inputs)
        for pointer, array in zip(self._at["input"], arrays, strict=True):
            d.upload(pointer, array, self._stream)
        self.launch()
        for array, pointer in zip(self._outputs, self._at["output"], strict=True):
            d.download(array, pointer, self._stream)
        d.synchronize(self._stream)
        return {t.name: a.copy() for t, a in zip(self.target.outputs, self._outputs, strict=True)}

    def step(self) -> float:
        """Once more on the same inputs, as a graph; seconds on the card, without copies from and to the host."""
        self.capture()
        assert self._graph is not None
        return self.timed(lambda: self.driver.replay(self._graph or Handle(), self._stream))

    def parts(self) -> int:
        return 1 + max((e["call"] for e in self.table["launches"]), default=-1)

    def part(self, index: int) -> float:
        return self.timed(lambda: self.launch(index))

    def timed(self, work: Callable[[], None]) -> float:
        """Seconds on the card that what `work` sets out takes."""
        begin, end = self._events
        self.driver.record(begin, self._stream)
        work()
        self.driver.record(end, self._stream)
        self.driver.synchronize(self._stream)
        return self.driver.seconds(begin, end)

    def close(self) -> None:
        d = self.driver
        for pointers in self._at.values():
            for pointer in pointers:
                d.free(pointer)
        self._at = {}
        if self._graph is not None:
            d.call("cuGraphExecDestroy", self._graph)
        if self._module is not None:
            d.unload(self._module)
        d.call("cuStreamDestroy_v2", self._stream)
        d.close()
