"""Prune a PyTorch network through its ONNX export, fine-tune it, and do it again: at once, or little by little.

    pip install 'spa-onnx[torch]' scikit-learn
    python examples/finetune/finetune.py [--macs 0.3] [--steps 3] [-o FOLDER]

A small convolutional network is trained on scikit-learn's digits (1797 images of 8x8), exported, planned by the Taylor
criterion on its own gradients, cut, trained on for an epoch, exported and compared with the module. Seconds on one core.
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import spa
import spa.interop.torch as interop
from spa.model import Model
from spa.passes.soup import greedy
from spa.planning import Plan
from spa.schedule import cubic, gradual

SEED, BATCH, RATE = 7, 64, 3e-3


def network(width: int = 24) -> nn.Sequential:
    """x [N,1,8,8] -> logits [N,10]"""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    body = [*block(1, width, 1), *block(width, 2 * width, 2), *block(2 * width, 2 * width, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels."""
    data = load_digits()
    images = torch.from_numpy((data.images[:, None] / 16).astype(np.float32))
    x, tx, y, ty = train_test_split(images, torch.from_numpy(data.target), test_size=450, random_state=SEED)
    return x, y, tx, ty


def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(module(x), y)


def train(module: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float, seed: int = SEED) -> nn.Module:
    """In place; afterwards in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss(module, x[batch], y[batch]).backward()
            optimizer.step()
    return module.eval()


def export(module: nn.Module, x: Tensor) -> Model:
    """Normalisations unfolded and weights under their own names, so that plans speak of the module's tensors."""
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the older exporter's age
        torch.onnx.export(
            module.eval(), (x[:2],), file, input_names=["x"], output_names=["logits"],
            dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}}, dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    return spa.load(onnx.load_from_string(file.getvalue()))


def accuracy(model: Model, x: Tensor, y: Tensor) -> float:
    session = ort.InferenceSession(model.to_proto().SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": x.numpy()})
    return float(np.mean(np.asarray(logits).argmax(1) == y.numpy()))


def gradients(module: nn.Module, model: Model, x: Tensor, y: Tensor) -> interop.Gradients:
    """Of 8 batches: what the Taylor criterion reads."""
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))[:8]
    return interop.gradients(module, loss, batches, model=model)


def prune(module: nn.Module, x: Tensor, y: Tensor, macs: float) -> tuple[nn.Module, Plan]:
    """The module without the channels its loss feels least, at `macs` of its multiply-accumulates."""
    model = export(module, x)
    plan = spa.plan(model, macs=macs, criterion="taylor", gradients=gradients(module, model, x, y))
    return interop.apply(plan, module, model=model), plan


def check(module: nn.Module, model: Model, x: Tensor) -> None:
    """The file computes what the module does."""
    session = ort.InferenceSession(model.to_proto().SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x).numpy(), rtol=1e-3, atol=1e-4)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macs", type=float, default=0.3, help="share of the multiply-accumulates to keep")
    parser.add_argument(
        "--steps", type=int, default=3, help="epochs of fine-tuning; the gradual version cuts before each"
    )
    parser.add_argument("-o", "--output", type=Path, default=None, help="folder for the models")
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    out = options.output or Path(tempfile.mkdtemp(prefix="finetune."))
    out.mkdir(parents=True, exist_ok=True)
    x, y, tx, ty = digits()
    rows: dict[str, float] = {}

    def report(name: str, module: nn.Module) -> Model:
        model = export(module, x)
        check(module, model, tx)
        model.save(out / f"{name}.onnx", force=True)
        rows[name] = accuracy(model, tx, ty)
        print(f"{name:22} {model.inspect().macs:>10,} MACs  {rows[name]:.2%}")
        return model

    dense = train(network(), x, y, epochs=4, rate=3e-3)
    first = report("dense", dense)

    small, plan = prune(dense, x, y, options.macs)  # all at once
    report("pruned", small)
    tuned = train(small, x, y, epochs=options.steps, rate=RATE)
    report("fine-tuned", tuned)
    (out / "plan.json").write_text(plan.to_json(), encoding="utf-8")

    module = dense  # the same budget in steps, an epoch after each

    def step(number: int, model: Model, decided: Plan) -> Model:
        nonlocal module
        module = train(interop.apply(decided, module, model=model), x, y, epochs=1, rate=RATE, seed=number)
        return export(module, x)

    def fresh(model: Model) -> dict[str, interop.Gradients]:
        return {"gradients": gradients(module, model, x, y)}

    for _, so_far in gradual(first, cubic(1.0, options.macs, options.steps), step, fresh=fresh, criterion="taylor"):
        total = so_far
    report("gradual", module)
    (out / "gradual.json").write_text(total.to_json(), encoding="utf-8")  # all steps as one plan for dense.onnx

    held, rest = slice(0, 300), slice(300, None)  # a soup of three, its ingredients chosen on images set apart
    trials = [
        train(interop.apply(plan, dense, model=first), x[rest], y[rest], options.steps, RATE, seed) for seed in range(3)
    ]
    soup, kept = greedy([export(m, x) for m in trials], lambda model: accuracy(model, x[held], y[held]))
    soup.save(out / "soup.onnx", force=True)
    rows["soup"] = accuracy(soup, tx, ty)
    print(f"{'soup of ' + str(len(kept)):22} {soup.inspect().macs:>10,} MACs  {rows['soup']:.2%}")
    return rows


if __name__ == "__main__":
    main()
