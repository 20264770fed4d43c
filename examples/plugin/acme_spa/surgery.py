"""A pass written against onnx-graphsurgeon; parameters after the graph are its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spa.interop.graphsurgeon import surgery

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@surgery(exact=True)
def bypass(graph: gs.Graph, *, op: str = "Dropout") -> dict[str, int]:
    """Take nodes of one operator, which pass their first input on, out of the way."""
    gone = [n for n in graph.nodes if n.op == op and n.outputs[0] not in graph.outputs]
    for node in gone:
        for reader in list(node.outputs[0].outputs):
            reader.inputs = [node.inputs[0] if t is node.outputs[0] else t for t in reader.inputs]
    graph.cleanup()
    return {"bypassed": len(gone)}
