"""`sparse_initializer`: weights written as their nonzero values and where these stand, where that takes fewer bytes.

ONNX has indices of 64 bits, so that a float32 entry takes 12 bytes instead of 4: it pays below a third of all entries.
onnxruntime makes such weights dense when it reads them, and so does `spa.model.load`; ONNX's own shape inference does not
know what to do with them.
"""

from __future__ import annotations

import numpy as np
import onnx

LEAST_IR = 6  # the ir_version that has sparse tensors
LEAST = 1024  # bytes: smaller tensors stay
INDEX = 8  # bytes


def thin_out(proto: onnx.ModelProto) -> int:
    """Turn initializers of the main graph into sparse ones, in place, where that is smaller; how many."""
    if proto.ir_version < LEAST_IR:
        return 0
    graph = proto.graph
    outside = {v.name for v in (*graph.input, *graph.output)}
    dense, sparse = [], []
    for tensor in graph.initializer:
        small = tensor.name in outside or len(tensor.raw_data) < LEAST or tensor.data_type != onnx.TensorProto.FLOAT
        array = np.empty(0) if small else onnx.numpy_helper.to_array(tensor).reshape(-1)
        at = np.flatnonzero(array)
        if small or not len(at) or len(at) * (array.itemsize + INDEX) >= array.nbytes:
            dense.append(tensor)
            continue
        values = onnx.numpy_helper.from_array(array[at], tensor.name)
        indices = onnx.numpy_helper.from_array(at.astype(np.int64), f"{tensor.name}/indices")
        sparse.append(onnx.helper.make_sparse_tensor(values, indices, list(tensor.dims)))
    del graph.initializer[:]
    graph.initializer.extend(dense)
    graph.sparse_initializer.extend(sparse)
    return len(sparse)
