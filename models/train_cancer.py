"""Train a small classifier of tabular data, and write cancer.onnx and cancer.npz beside this file.

    pip install torch scikit-learn onnx onnxscript onnxruntime
    python models/train_cancer.py

The data are scikit-learn's breast cancer set: 569 samples of 30 measurements, two classes. The network is an MLP with
batch normalisation after its Gemms and one residual sum; the standardisation of the inputs is part of the graph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from train_common import accuracy, export

HERE = Path(__file__).parent
SEED, EPOCHS = 2, 60


class Tabular(nn.Module):
    """x [N,30] -> logits [N,2]"""

    def __init__(self, mean: Tensor, std: Tensor, width: int = 48) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", 1 / std)
        self.first, self.norm1 = nn.Linear(30, width), nn.BatchNorm1d(width)
        self.second, self.norm2 = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first((x - self.mean) * self.scale)))
        return self.head(torch.relu(x + self.norm2(self.second(x))))


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=5e-2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(64):
            if len(batch) == 1:
                continue  # one sample has no variance to normalise by
            optimizer.zero_grad()
            loss_of(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_breast_cancer()
    x, test_x, y, test_y = train_test_split(
        data.data.astype(np.float32), data.target, test_size=143, stratify=data.target, random_state=SEED
    )
    model = Tabular(torch.from_numpy(x.mean(0)), torch.from_numpy(x.std(0)))
    train(model, torch.from_numpy(x), torch.from_numpy(y))
    export(model, torch.from_numpy(test_x[:2]), HERE / "cancer.onnx", "cancer")
    np.savez_compressed(HERE / "cancer.npz", x=x[:256], calib_x=x[:256], test_x=test_x, test_y=test_y.astype(np.int64))
    print(f"test accuracy {accuracy(HERE / 'cancer.onnx', test_x, test_y):.2%} of {len(test_y)} samples")


if __name__ == "__main__":
    main()
