"""Constants follow: what rules use to repair attributes, shape constants and indices once channels are gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling.analysis import Coupling, Mask
from spa.coupling.axes import Index, Op, Slot
from spa.errors import SpaError

Size = int | Fraction | None  # static; a factor by which a dynamic size shrinks; a dynamic size that stays


@dataclass(eq=False)
class Edit:
    """Indices that go, per dim, and the changes that rules make to the graph on that account."""

    coupling: Coupling
    gone: dict[int, Mask]
    constants: dict[str, list[Any]] = field(default_factory=dict)  # name -> [before, after]
    names: set[str] = field(default_factory=set)
    rewired: bool = False  # did any node change?

    # -- what is left

    def kept(self, slot: Slot) -> Mask | None:
        """Which indices of a slot stay; None where all do."""
        gone = self.gone.get(self.coupling.dims.of.get(slot, -1))
        return None if gone is None else ~gone

    def kept_or_all(self, slot: Slot) -> Mask:
        kept = self.kept(slot)
        return np.ones(self.coupling.axes.add(slot), bool) if kept is None else kept

    def count(self, slot: Slot) -> int:
        """The size that is left of a slot (of the analysed instance, where it is dynamic)."""
        return int(self.kept_or_all(slot).sum())

    def count_virtual(self, op: Op, key: object, default: int) -> int:
        slot: Slot = ((id(op.node), key), None)
        kept = self.kept(slot)
        return default if kept is None else int(kept.sum())

    def size(self, slot: Slot) -> Size:
        value, axis = slot
        dynamic = self.coupling.shapes.dynamic.get(value, ()) if isinstance(value, ir.Value) else ()
        if axis is not None and axis < len(dynamic) and dynamic[axis]:
            kept = self.kept(slot)
            return None if kept is None else Fraction(int(kept.sum()), len(kept))
        return self.count(slot)

    def positions(self, slot: Slot) -> Index:
        """Old index -> new index, -1 where it is gone."""
        kept = self.kept_or_all(slot)
        return np.where(kept, np.cumsum(kept) - 1, -1)

    def changed(self, op: Op) -> bool:
        """Does any axis of what the node reads or writes lose indices?"""
        for v in [*op.inputs, *op.outputs]:
            if v is not None and any(
                self.coupling.dims.of.get((v, a), -1) in self.gone for a in range(len(op.shape(v)))
            ):
                return True
        return False

    def require(self, holds: bool, op: Op, what: str) -> None:
        if not holds:
            raise SpaError(
                f"the coupling is inconsistent: {what}",
                f"node '{op.node.name}' ({op.kind})",
                "spa explain, and report this model",
            )

    # -- changes

    def set_attr(self, op: Op, name: str, value: Any) -> None:
        if value == op.attr(name):
            return
        self.rewired = True
        if value is None:
            op.node.attributes.pop(name, None)
        else:
            op.node.attributes[name] = ir.convenience.convert_attribute(name, value)

    def set_input(self, op: Op, i: int, array: npt.NDArray[Any]) -> None:
        """Input i becomes a new constant; whole numbers of the type that stood there."""
        old, known = op.input(i), op.known(i)
        if array.dtype.kind == "i":
            array = array.astype(self.whole(op, i))
        if old is not None and known is not None:
            if known.shape == array.shape and np.array_equal(known, array):
                if old.producer() is None or old.producer().op_type == "Constant":  # type: ignore[union-attr]
                    return
            else:
                self.constants[old.name or ""] = [known.tolist(), array.tolist()]
        self.connect(op, i, self.constant(op.node, f"{op.out.name}_{i}", array))

    def whole(self, op: Op, i: int) -> Any:
        """The integer type of input i; where there is none, of the first operand beside it (Slice wants one for all)."""
        for value in (op.input(i), op.input(1)):
            dtype = (
                ir.DataType(self.coupling.shapes.dtype.get(value, 0)) if value is not None else ir.DataType.UNDEFINED
            )
            if dtype in (ir.DataType.INT32, ir.DataType.INT64):
                return dtype.numpy()
        return np.dtype(np.int64)

    def connect(self, op: Op, i: int, value: ir.Value) -> None:
        self.rewired = True
        if i >= len(op.node.inputs):
            op.node.resize_inputs(i + 1)
        op.node.replace_input_with(i, value)

    def set_sizes(self, op: Op, i: int, sizes: list[Size] | list[int | None], *, inferred: bool = False) -> None:
        """Input i, a vector of sizes: static ones are written, dynamic ones keep the element that computes them.
        `inferred`: one element may be -1 (Reshape)."""
        if all(isinstance(n, int) for n in sizes):
            return self.set_input(op, i, np.array(sizes, np.int64))
        if inferred and sum(not isinstance(n, int) for n in sizes) == 1:
            return self.set_input(op, i, np.array([n if isinstance(n, int) else -1 for n in sizes], np.int64))
        old = op.input(i)
        assert old is not None
        known, varies = self.coupling.shapes.known.get(old), self.coupling.shapes.varies.get(old)
        parts: list[ir.Value] = []
        for k, n in enumerate(sizes):
            fixed = n if isinstance(n, int) else None
            if (
                fixed is None
                and inferred
                and known is not None
                and varies is not None
                and not varies[k]
                and known[k] <= 0
            ):
                fixed = int(known[k])
            if fixed is not None:
                parts.append(self.constant(op.node, f"{op.out.name}_{i}_{k}", np.array([fixed], self.whole(op, i))))
                continue
            element = self.insert(
                op.node, "Gather", [old, self.constant(op.node, f"{op.out.name}_{i}_at{k}", np.array([k], np.int64))]
            )
            if isinstance(n, Fraction):
                for kind, number in (("Mul", n.numerator), ("Div", n.denominator)):
                    element = self.insert(
                        op.node,
                        kind,
                        [
                            element,
                            self.constant(
                                op.node, f"{op.out.name}_{i}_{kind}{k}", np.array([number], self.whole(op, i))
                            ),
                        ],
                    )
            parts.append(element)
        self.connect(op, i, self.insert(op.node, "Concat", parts, axis=0))
        return None

    def scale_input(self, op: Op, i: int, factor: float) -> None:
        """Multiply constant input i (already sliced) by a number, through a node of its own: the constant may be shared."""
        value = op.node.inputs[i]
        assert value is not None
        dtype = self.coupling.shapes.dtype[op.inputs[i]]  # type: ignore[index]
        number = self.constant(op.node, f"{op.out.name}_scale", np.array(factor, ir.DataType(dtype).numpy()))
        self.connect(op, i, self.insert(op.node, "Mul", [value, number]))

    def scale_output(self, op: Op, factor: float) -> None:
        """Multiply output 0 by a number."""
        out = op.out
        dtype = ir.DataType(self.coupling.shapes.dtype[out])
        number = self.constant(op.node, f"{out.name}_rescale", np.array(factor, dtype.numpy()))
        node = ir.Node("", "Mul", [out, number], name=self.fresh(f"{op.node.name or out.name}_rescaled"))
        self.take_over(op.node, out, node, keep=node)

    def replace_by_gather(self, op: Op, axis: int, index: Index) -> None:
        """Put a Gather of `index` along `axis` before input 0: for a selection that is no longer a regular range."""
        x = op.node.inputs[0]
        assert x is not None
        at = self.constant(op.node, f"{op.out.name}_index{axis}", index.astype(np.int64))
        self.connect(op, 0, self.insert(op.node, "Gather", [x, at], axis=axis))

    def take_over(self, after: ir.Node, value: ir.Value, node: ir.Node, *, keep: ir.Node) -> None:
        """`node` goes in behind `after`, and its output takes the name and the readers of `value`."""
        self.rewired = True
        name, out = value.name, node.outputs[0]
        value.replace_all_uses_with(out, replace_graph_outputs=True)
        keep.replace_input_with(0, value)
        out.type, out.shape, out.name = value.type, value.shape, name
        value.name = self.fresh(f"{name}_part")
        after.append(node)

    def insert(self, before: ir.Node, kind: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(kind, inputs, attributes)
        node.name = self.fresh(f"{before.name or before.outputs[0].name}_{kind}")
        node.outputs[0].name = self.fresh(f"{node.name}_out")
        before.prepend(node)
        return node.outputs[0]

    def constant(self, near: ir.Node, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A new constant in the graph of a node."""
        name = self.fresh(name)
        graph = near.graph
        tensor = ir.tensor(array, name=name)
        if isinstance(graph, ir.Graph):
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            graph.register_initializer(value)
            return value
        node = ir.node("Constant", [], {"value": tensor})
        node.outputs[0].name = name
        near.prepend(node)
        return node.outputs[0]

    def fresh(self, name: str) -> str:
        if not self.names:
            self.names = {v.name or "" for v in self.coupling.shapes.shape} | {
                o.node.name or "" for o in self.coupling.ops
            }
        base, n = f"{name}/spa", 1
        while base in self.names:
            n += 1
            base = f"{name}/spa{n}"
        self.names.add(base)
        return base
