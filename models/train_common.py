"""What the training scripts share: export to a clean ONNX file, and the accuracy of such a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray


def export(model: torch.nn.Module, example: torch.Tensor, path: Path, name: str) -> None:
    """Write `model` with input "x" (symbolic batch "N") and output "logits", batch normalisation unfolded.

    The older exporter is used because it keeps readable names (`/stem/stem.0/Conv`). Notes are dropped: they name
    folders of the machine the export ran on.
    """
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
        opset_version=18,
        training=torch.onnx.TrainingMode.PRESERVE,  # any other mode folds the batch normalisation
        do_constant_folding=False,
        dynamo=False,
    )
    proto = onnx.load(path)
    proto.graph.name, proto.doc_string = name, ""
    for item in [*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        del item.metadata_props[:]
        item.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def accuracy(path: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    """Share of the samples whose largest logit is the right class, by onnxruntime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": x})
    return float(np.mean(np.argmax(np.asarray(logits), axis=1) == y))
