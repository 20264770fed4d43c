"""A pass: a frozen dataclass whose fields are its options, and `run`, which never changes the model it is given."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from spa.model import Model
from spa.pipeline import Result
from spa.shapes import constants, tensor_of


@dataclass(frozen=True)
class Squash:
    """Set weights that are next to nothing to zero: below a share of the largest of their tensor."""

    name: ClassVar[str] = "squash"
    exact: ClassVar[bool] = False  # True promises the same numbers, and spa prune --pipeline holds it to that

    below: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.below < 1:
            raise ValueError(f"below={self.below} is no share")

    def run(self, model: Model) -> Result:
        copy = model.clone()
        gone = 0
        for value in constants(copy.ir):
            tensor = tensor_of(value)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.producer() is not None or not tensor.size:
                continue
            array = tensor.numpy()
            small = (np.abs(array) < self.below * np.abs(array).max()) & (array != 0)
            if small.any():
                gone += int(small.sum())
                value.const_value = ir.Tensor(np.where(small, np.float32(0), array), name=tensor.name)
        return Result(copy, facts={"squashed": gone})
