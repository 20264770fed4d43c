"""`halve`: float32 weights stored as float16, with a Cast in front of who reads them; computation stays float32.

Left alone: constants below `smallest` elements (biases, scales), and those with entries beyond float16's range.
Entries below 6e-8 become zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from spa.model import Model
from spa.passes import edit
from spa.passes.constants import lift_constants
from spa.pipeline import Result


@dataclass(frozen=True)
class Halve:
    """Store float32 weights as float16."""

    name: ClassVar[str] = "halve"

    smallest: int = 256  # elements

    def run(self, model: Model) -> Result:
        graph = model.ir.clone()
        lift_constants(graph)
        halved = saved = 0
        for value in list(graph.graph.initializers.values()):
            tensor = edit.constant(value)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < self.smallest or not value.uses():
                continue
            array = tensor.numpy()
            if not (np.abs(array) <= np.finfo(np.float16).max).all() or value.is_graph_output():
                continue
            halve(graph, value, array.astype(np.float16))
            halved, saved = halved + 1, saved + 2 * array.size
        facts = {"weights": halved, "bytes_saved": saved}
        return Result(Model(graph, model.source, list(model.notes)), facts={"halve": facts})


def halve(model: ir.Model, value: ir.Value, array: edit.Array) -> None:
    """The Cast takes over the name of the weight."""
    name, taken, first = value.name or "", edit.taken_names(model), next(iter(model.graph))
    stored = edit.add_constant(model, first, ir.tensor(array, name=edit.unique_name(taken, f"{name}/half")))
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=edit.unique_name(taken, f"{name}/Cast"))
    model.graph.insert_before(first, cast)
    out = cast.outputs[0]
    value.replace_all_uses_with(out)
    model.graph.initializers.pop(name)
    out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
