"""Train the small digit classifier that ships with spa, and write digits.onnx and digits.npz beside this file.

    pip install torch scikit-learn onnx onnxscript onnxruntime
    python models/train_digits.py

The data are scikit-learn's digits: 1797 images of 8x8 pixels, values 0 to 16, ten classes. The network has one of
everything that makes channel pruning interesting: batch normalisation, two residual sums (the channels on both sides
live and die together), a depthwise convolution (group = channels), global pooling and a linear layer.
BatchNormalization is exported as it is, so that folding it is something to see.

Seeded, one thread, deterministic kernels: the same versions on the same kind of machine write the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from train_common import accuracy, export

HERE = Path(__file__).parent
SEED, EPOCHS, BATCH = 7, 60, 64
CALIBRATION = 256  # images, drawn from the training set
SLIMMING = 3e-3  # L1 penalty on the scales of the normalisations (Liu et al., arXiv:1708.06519): it parts channels that
# matter from those that do not


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation; 'same' padding."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x))))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Separable(nn.Module):
    """Depthwise 3x3 (stride 2), then pointwise 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise, self.pointwise = conv(inputs, inputs, stride=2, groups=inputs), conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.pointwise(torch.relu(self.depthwise(x))))


class Digits(nn.Module):
    """x [N,1,8,8] with values 0 to 1 -> logits [N,10]"""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = conv(1, width)
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.down = Separable(width, 2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.blocks(torch.relu(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


def shifted(x: Tensor) -> Tensor:
    """Each image moved by up to one pixel in each direction: the only augmentation."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    dy, dx = torch.randint(0, 3, (2, len(x)))
    rows, columns = dy[:, None] + torch.arange(8), dx[:, None] + torch.arange(8)
    return padded[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    scales = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train()
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            penalty = SLIMMING * sum(s.abs().sum() for s in scales)
            loss = loss_of(model(shifted(x[batch])), y[batch]) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}  loss {loss.item():.3f}")
    model.eval()


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    x, test_x, y, test_y = train_test_split(
        images, digits.target, test_size=450, stratify=digits.target, random_state=SEED
    )
    model = Digits()
    train(model, torch.from_numpy(x), torch.from_numpy(y))
    export(model, torch.from_numpy(test_x[:2]), HERE / "digits.onnx", "digits")
    arrays = {"x": x[:CALIBRATION], "calib_x": x[:CALIBRATION], "test_x": test_x, "test_y": test_y.astype(np.int64)}
    np.savez_compressed(HERE / "digits.npz", **arrays)
    print(f"test accuracy {accuracy(HERE / 'digits.onnx', test_x, test_y):.2%} of {len(test_y)} images")


if __name__ == "__main__":
    main()
