"""New weights of a network whose weights lie in a file: they go to a file of their own, so that memory holds one at a time.

They are `onnx_ir.ExternalTensor`s like those that were read, hence written out as those are: streaming, beside the model.
"""

from __future__ import annotations

import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

LEAST = 1 << 16  # bytes: smaller ones stay in memory


def spilled(array: npt.NDArray[Any], name: str | None = None) -> ir.ExternalTensor:
    """The array in a temporary file, which goes when nobody holds the tensor any more."""
    with tempfile.NamedTemporaryFile(prefix="spa.", suffix=".weight", delete=False) as file:
        array.tofile(file)
    path = Path(file.name)
    tensor = ir.ExternalTensor(
        path.name,
        0,
        array.nbytes,
        ir.DataType.from_numpy(array.dtype),
        shape=ir.Shape(array.shape),
        name=name or "",
        base_dir=path.parent,
    )
    weakref.finalize(tensor, path.unlink, missing_ok=True)
    return tensor


def release(tensor: ir.TensorProtocol | None) -> None:
    """Close the file that a tensor was read from; it is opened again when it is read again."""
    if isinstance(tensor, ir.ExternalTensor):
        with suppress(BufferError):  # somebody still looks at it, and keeps it open
            tensor.release()
