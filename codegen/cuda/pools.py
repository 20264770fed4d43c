"""Importers for pools of NHWC pictures, which `channels_last` makes of ONNX's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spa.codegen.tvm_api import Converter, relax


def _window(attributes: dict[str, Any]) -> dict[str, Any]:
    kernel = [int(n) for n in attributes["kernel_shape"]]
    return {
        "pool_size": kernel,
        "strides": [int(n) for n in attributes.get("strides", [1, 1])],
        "padding": [int(n) for n in attributes.get("pads", [0, 0, 0, 0])],
        "dilation": [int(n) for n in attributes.get("dilations", [1, 1])],
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
        "layout": "NHWC",
    }


def max_pool(bb: Any, inputs: Sequence[Any], attributes: dict[str, Any], params: Any) -> Any:
    return relax.op.nn.max_pool2d(inputs[0], **_window(attributes))


def average_pool(bb: Any, inputs: Sequence[Any], attributes: dict[str, Any], params: Any) -> Any:
    padded = bool(attributes.get("count_include_pad", 0))
    return relax.op.nn.avg_pool2d(inputs[0], **_window(attributes), count_include_pad=padded)


POOLS: dict[str, Converter] = {"MaxPoolChannelsLast": max_pool, "AveragePoolChannelsLast": average_pool}
