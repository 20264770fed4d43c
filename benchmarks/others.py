"""Other pruning tools on the same networks, each in an environment of its own; `benchmarks/accuracy.py` starts this.

    PYTHON benchmarks/others.py torch-pruning|onnxsim MODEL.onnx

Needs there: onnx, and onnxsim, or torch, torch-pruning and onnx2torch. First line out: {"version"}. Then a line in
{"ratio", "global", "out"}, a line out {} or {"error"}: the network with that share of its channels removed by l2.

Torch-Pruning takes PyTorch modules: onnx2torch makes one of the network, torch.onnx writes what is left of it.
onnxsim fuses normalisations first, since its pruning asks for that.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import resource
import sys
import types
from importlib import metadata
from typing import Any

import onnx
import onnx.version_converter

MEMORY = (
    10 * 2**30
)  # bytes of address space: Torch-Pruning's dependency graph of a detector takes more than any machine has
OPSET = 13  # that onnx2torch reads where it does not know a newer or older operator


def torch_network(path: str) -> Any:
    """The module that onnx2torch makes. Its torchvision is for two operators of detectors, and not needed here."""
    vision, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    vision.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
    vision.ops, vision.__version__, ops.roi_align, ops.nms = ops, "0", None, None  # type: ignore[attr-defined]
    with contextlib.suppress(ImportError):
        import torchvision  # type: ignore[import-not-found]

        vision, ops = torchvision, torchvision.ops
    sys.modules.update({"torchvision": vision, "torchvision.ops": ops})
    import onnx2torch  # type: ignore[import-not-found]

    proto = onnx.load(path)
    try:
        return onnx2torch.convert(proto).eval()
    except NotImplementedError as missing:
        try:
            return onnx2torch.convert(onnx.version_converter.convert_version(proto, OPSET)).eval()
        except (RuntimeError, NotImplementedError):
            raise missing from None


def heads(module: Any) -> list[Any]:
    """The layers that make the outputs: their channels have to stay."""
    import torch

    layers = dict(module.named_modules())
    found, seen = [], set()
    todo = [n for n in module.graph.nodes if n.op == "output"]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, torch.nn.Linear | torch.nn.modules.conv._ConvNd):
            found.append(layer)
        else:
            todo += node.all_input_nodes
    return found


def torch_pruning(path: str, ratio: float, everywhere: bool, out: str) -> None:
    import torch
    import torch_pruning as tp  # type: ignore[import-not-found]

    class Outputs(torch.nn.Module):  # type: ignore[misc]
        """Several outputs as a tuple, which the exporter understands; a list would become one."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> Any:
            y = self.inner(x)
            return tuple(y) if isinstance(y, list) else y

    module = torch_network(path)
    graph = onnx.load(path).graph
    weights = {w.name for w in graph.initializer}
    (given,) = (v for v in graph.input if v.name not in weights)
    shape = [d.dim_value or 2 for d in given.type.tensor_type.shape.dim]
    kind = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    example = torch.zeros(shape, dtype=getattr(torch, kind.name))
    pruner = tp.pruner.BasePruner(
        module,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        global_pruning=everywhere,
        ignored_layers=heads(module),
    )
    pruner.step()
    traced = torch.jit.trace(
        Outputs(module), example
    )  # onnx2torch's own way to export does not work with current torch
    batch = {given.name: {0: "N"}} if not graph.input[0].type.tensor_type.shape.dim[0].dim_value else None
    options = {"dynamo": False, "input_names": [given.name], "opset_version": 17, "dynamic_axes": batch}
    torch.onnx.export(traced, (example,), out, **options)


def onnxsim(path: str, ratio: float, everywhere: bool, out: str) -> None:
    import onnxsim as tool  # type: ignore[import-not-found]
    from onnxsim.pruning import apply_structured_pruning  # type: ignore[import-not-found]

    plain, _ = tool.simplify(onnx.load(path))
    onnx.save(apply_structured_pruning(plain, sparsity=ratio, global_sparsity=everywhere), out)


def main() -> int:
    tool, path = sys.argv[1:3]
    answers = sys.stdout
    sys.stdout = sys.stderr  # tools print
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(json.dumps({"version": f"{tool} {metadata.version(tool)}"}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        try:
            {"torch-pruning": torch_pruning, "onnxsim": onnxsim}[tool](
                path, request["ratio"], request["global"], request["out"]
            )
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
