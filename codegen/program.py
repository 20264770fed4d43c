"""A network as planned calls: straight-line kernel calls over inputs, constants and values. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spa.runtime.tensor import Tensor as Tensor

# ONNX element type -> (name in manifests and numpy, C type, bytes)
DTYPES: dict[int, tuple[str, str, int]] = {
    1: ("float32", "float", 4),
    2: ("uint8", "uint8_t", 1),
    3: ("int8", "int8_t", 1),
    4: ("uint16", "uint16_t", 2),
    5: ("int16", "int16_t", 2),
    6: ("int32", "int32_t", 4),
    7: ("int64", "int64_t", 8),
    9: ("bool", "uint8_t", 1),
    10: ("float16", "uint16_t", 2),
    11: ("float64", "double", 8),
    12: ("uint32", "uint32_t", 4),
    13: ("uint64", "uint64_t", 8),
}
C_TYPE = {name: c for name, c, _ in DTYPES.values()}


@dataclass(frozen=True)
class Ref:
    """What a kernel argument points to: an `input`, a constant (`const`), a `value` of the arena, or its `scratch`."""

    kind: Literal["input", "const", "value"]
    index: int


@dataclass(frozen=True)
class Call:
    """One kernel call; `args` in the order of the kernel's pointers, inputs first."""

    kernel: str
    args: tuple[Ref, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """Calls in order. `values`: bytes of each intermediate. `results`: what each output holds at the end."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    values: tuple[int, ...]
    consts: tuple[np.ndarray[Any, Any], ...]
    calls: tuple[Call, ...]
    results: tuple[Ref, ...]
