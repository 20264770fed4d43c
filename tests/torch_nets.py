"""Small PyTorch networks, one of everything that a plan may touch, and their exports."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import spa
from spa.model import Model

FOLDED: dict[str, dict[str, Any]] = {"dynamo": {"dynamo": True}, "script": {"dynamo": False}}
UNFOLDED: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True, "optimize": False},
    "script": {
        "dynamo": False,
        "do_constant_folding": False,
        "training": torch.onnx.TrainingMode.PRESERVE,
    },
}


def export(module: nn.Module, example: tuple[Tensor, ...], **options: Any) -> Model:
    """Without a word about deprecations and packages that are not there."""
    file = io.BytesIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if options.get("dynamo"):
                program = torch.onnx.export(module, example, verbose=False, **options)
                assert program is not None
                program.save(file)
            else:
                torch.onnx.export(module, example, file, **options)
    finally:
        logging.disable(logging.NOTSET)
    return spa.load(onnx.load_from_string(file.getvalue()))


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """No two tensors alike, as after some training; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data + 0.3 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    return module.eval()


class Convolutions(nn.Module):
    """Depthwise, grouped and transposed convolutions, three kinds of normalisation, a slope and a buffer per channel."""

    example = (torch.linspace(-2, 2, 216).reshape(2, 3, 6, 6),)

    def __init__(self, *, persistent: bool = False) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.pointwise, self.slope = nn.Conv2d(8, 12, 1), nn.PReLU(12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.grouped, self.norm = nn.Conv2d(6, 8, 1, groups=2), nn.GroupNorm(4, 8)
        self.last = nn.Conv2d(8, 2, 1)
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.register_buffer("factor", torch.linspace(0.5, 1.5, 12)[:, None, None], persistent=persistent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.bn2(self.depthwise(x)))
        x = self.slope(self.pointwise(x)) * self.factor
        picture = self.last(self.norm(self.grouped(torch.relu(self.up(x)))))
        tokens = self.head(torch.relu(self.hidden(x.flatten(2).transpose(1, 2))))
        return picture, tokens


class Recurrent(nn.Module):
    example = (torch.arange(8).reshape(2, 4),)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 5)
        self.lstm = nn.LSTM(5, 7, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(14, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(self.lstm(self.table(x))[0])[0]
        return self.head(y[:, -1])


class PackedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        packed = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, -1))


class GroupedQueries(nn.Module):
    def __init__(self, width: int, heads: int, shared: int, size: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim, self.scale = heads, shared, size, size**-0.5
        self.q, self.o = nn.Linear(width, heads * size, bias=False), nn.Linear(heads * size, width, bias=False)
        self.k, self.v = nn.Linear(width, shared * size, bias=False), nn.Linear(width, shared * size, bias=False)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        times = self.n_heads // self.n_kv_heads
        q = self.split(self.q(x), self.n_heads)
        k, v = (self.split(m(x), self.n_kv_heads).repeat_interleave(times, 1) for m in (self.k, self.v))
        mixed = (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).reshape(*x.shape[:2], self.n_heads * self.head_dim))


class Transformer(nn.Module):
    example = (torch.linspace(-1, 1, 60).reshape(2, 5, 6),)

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.queries = PackedAttention(width, 4), GroupedQueries(width, 4, 2, 8)
        self.up, self.down = nn.Linear(width, 40), nn.Linear(40, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        x = x + self.attention(self.norm(x))
        x = x + self.down(torch.relu(self.up(self.norm2(x))))
        x = x + self.queries(x)
        return self.head(x.mean(1))


class RootMeanSquare(nn.Module):
    example = (torch.linspace(-1, 1, 60).reshape(2, 5, 6),)

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.inlet, self.norm, self.head = nn.Linear(6, 16, bias=False), norm or nn.RMSNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.inlet(x)))


class HandWritten(nn.Module):
    """A mean over a size that no attribute tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


class Tied(nn.Module):
    example = (torch.arange(8).reshape(2, 4),)

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.table(x))))
