"""Cutting a module's tensors, and the proof that the rest computes what the masked module does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from spa.errors import CheckFailed, UsageError
from spa.interop.torch_modules import follow
from spa.interop.torch_names import Cut

TOLERANCE = 1e-3  # of an output's largest number: where the cut module and the masked one may part by rounding


def sliced(tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
    for axis, mask in cut.items():
        tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(~mask)).to(tensor.device))
    return tensor.clone()


def masked(tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
    tensor = tensor.clone()
    for axis, mask in cut.items():
        tensor.index_fill_(axis, torch.from_numpy(np.flatnonzero(mask)).to(tensor.device), 0)
    return tensor


def places(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, bool]]:
    """(full name, owner, name there, is it a parameter?) of every tensor."""
    for where, owner in module.named_modules(remove_duplicate=True):
        prefix = f"{where}." if where else ""
        for kind in (owner._parameters, owner._buffers):
            for leaf, tensor in kind.items():
                if tensor is not None:
                    yield prefix + leaf, owner, leaf, kind is owner._parameters


def cut_module(module: nn.Module, cuts: Mapping[str, Cut], optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """In place. Tied parameters stay tied; a `.grad` is cut with its parameter."""
    new: dict[torch.Tensor, torch.Tensor] = {}
    for name, owner, leaf, is_parameter in places(module):
        old = getattr(owner, leaf)
        if name not in cuts:
            continue
        if old not in new:
            short = sliced(old.detach(), cuts[name])
            if is_parameter:
                short = nn.Parameter(short, requires_grad=old.requires_grad)
                if old.grad is not None:
                    short.grad = sliced(old.grad, cuts[name])
            new[old] = short
            if optimizer is not None and is_parameter:
                hand_over(optimizer, old, new[old], cuts[name])
        setattr(owner, leaf, new[old])
    follow(module, cuts)
    return module


def hand_over(optimizer: torch.optim.Optimizer, old: torch.Tensor, new: torch.Tensor, cut: Cut) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        remembered = optimizer.state.pop(old)
        optimizer.state[new] = {
            k: sliced(v, cut) if isinstance(v, torch.Tensor) and v.shape == old.shape else v
            for k, v in remembered.items()
        }


def prove(
    small: nn.Module, dense: nn.Module, cuts: Mapping[str, Cut], examples: Sequence[tuple[Any, ...]]
) -> nn.Module:
    """`small`, once it is known to compute what `dense` does with the removed slices at zero, on the first example that
    `dense` runs on. Without examples nothing is known."""
    if not examples:
        return small
    full = copy.deepcopy(dense)
    for name, owner, leaf, _ in places(full):
        if name in cuts:
            getattr(owner, leaf).data = masked(getattr(owner, leaf).detach(), cuts[name])
    example, expected = first_that_runs(full, examples)
    try:
        got = outputs(small, example)
    except Exception as error:  # whatever a module's own forward raises
        raise CheckFailed(
            f"the cut module does not run: {first_line(error)}",
            hint="a size written into forward()? Take it from the tensors there",
        ) from error
    for a, b in zip(expected, got, strict=True):
        scale = float(a.abs().max()) if a.numel() else 0.0
        apart = float((a - b).abs().max()) if a.shape == b.shape and a.numel() else float(a.shape != b.shape)
        if not apart <= TOLERANCE * max(scale, 1e-6):
            raise CheckFailed(
                f"the cut module differs from the masked one by {apart:.2g} of {scale:.2g}",
                hint="does forward() take a factor or a mean from a size that changed? --keep that group, or keep the factor",
            )
    return small


def first_that_runs(
    module: nn.Module, examples: Sequence[tuple[Any, ...]]
) -> tuple[tuple[Any, ...], list[torch.Tensor]]:
    problem = ""
    for example in examples:
        try:
            return example, outputs(module, example)
        except Exception as error:
            problem = first_line(error)
    raise UsageError(
        f"the module does not run on inputs as its export declares them: {problem}",
        hint="example=(...), the arguments of the module; or check=False",
    )


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def outputs(module: nn.Module, example: tuple[Any, ...]) -> list[torch.Tensor]:
    """Floating-point outputs in evaluation mode; every module keeps the mode it was in."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return list(flat(module(*example)))
    finally:
        for m, mode in training.items():
            m.training = mode


def flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value.float()
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from flat(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from flat(v)
