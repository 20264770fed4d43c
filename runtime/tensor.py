"""What goes into a network and comes out of it: name, dtype and static shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.errors import UsageError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tensor:
    """An input or output; `dtype` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tensor:
        return cls(data["name"], data["dtype"], tuple(data["shape"]))


def ordered(feeds: Mapping[str, Array], inputs: Sequence[Tensor]) -> list[Array]:
    """Dense arrays in the order of the inputs. Raises `UsageError` for a missing, unknown or ill-fitting array."""
    names = [t.name for t in inputs]
    unknown = [n for n in feeds if n not in names]
    if unknown:
        raise UsageError(f"no such input: {', '.join(unknown)}", hint="inputs: " + ", ".join(names))
    arrays = []
    for tensor in inputs:
        if tensor.name not in feeds:
            raise UsageError(
                "an input is missing", f"input '{tensor.name}'", f"give {tensor.dtype} {list(tensor.shape)}"
            )
        array = np.asarray(feeds[tensor.name])
        if array.dtype != np.dtype(tensor.dtype) or array.shape != tensor.shape:
            given = f"{array.dtype} {list(array.shape)}"
            raise UsageError(f"input '{tensor.name}' is {tensor.dtype} {list(tensor.shape)}, given {given}")
        arrays.append(np.ascontiguousarray(array).reshape(tensor.shape))
    return arrays
