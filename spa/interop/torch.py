"""Plans applied to PyTorch: the same channels leave a module, or a state dict, before, during or after training.

    names = spa.interop.torch.names(model, module)      # while the export and the module hold the same numbers
    small = spa.interop.torch.apply(plan, module, model=model)

A plan speaks of tensors by their names in the ONNX file; `spa.interop.torch_names` finds the module's tensors among
them. What a plan removes and the module does not have is an error, never skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling import Coupling, analyze
from spa.coupling.analysis import Mask
from spa.coupling.prepare import COPY
from spa.errors import MissingTool, Unsupported, UsageError
from spa.interop.torch_names import Array, Cut, Names, match, root, uniform
from spa.planning import Plan, gone_from
from spa.shapes import tensor_of

try:
    import torch
    from torch import nn
except ImportError:
    raise MissingTool("PyTorch is not installed", hint="pip install 'spa-onnx[torch]'") from None

from spa.interop.torch_cut import cut_module, prove, sliced

if TYPE_CHECKING:
    from spa.model import Model

Target = TypeVar("Target", nn.Module, dict[str, torch.Tensor])
Gradients = dict[str, npt.NDArray[np.float32]]

UNFOLDED = (
    "export without folding: torch.onnx.export(..., optimize=False), "
    "or (..., dynamo=False, do_constant_folding=False, training=TrainingMode.PRESERVE)"
)


def names(model: Model, target: nn.Module | Mapping[str, torch.Tensor]) -> Names:
    """Which value of the export each tensor is. Tensors without a counterpart are left out.

    Names are enough for most; those that the exporter changed are found by their numbers, so do this while the export
    and `target` hold the same ones, and give the result to `apply` once the module was trained further."""
    return matched(analyze(model), tensors(target))


def apply(
    plan: Plan,
    target: Target,
    *,
    model: Model | None = None,
    names: Names | None = None,
    example: tuple[Any, ...] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    inplace: bool = False,
    check: bool = True,
) -> Target:
    """`target` without the plan's channels: a copy, or itself with `inplace`.

    model: the network the plan was made for. Without it, tensors must bear the names the plan gives them.
    names: what `names` found, where `target` no longer holds the numbers of `model`.
    example: arguments for the module. The result is held against the module with the removed slices at zero, on these, or
    on inputs drawn as `model` declares them; with neither, or without `check`, it is not.
    optimizer: of this module (`inplace` only): its parameters and what it remembers of each are cut too.

    Attributes such as `out_channels`, `groups`, `num_heads` follow; a state dict has none, and no proof. Raises `Unsupported` where the plan removes slices of
    a tensor that `target` does not have, and `CheckFailed` where the result does not run or differs."""
    if optimizer is not None and not inplace:
        raise UsageError("an optimizer belongs to one module: it cannot follow a copy", hint="inplace=True")
    cuts = find_cuts(plan, tensors(target), model, names)
    if not isinstance(target, nn.Module):
        short = {n: sliced(t, cuts[n]) if n in cuts else t for n, t in target.items()}
        if inplace:
            target.update(short)
            return target
        return type(target)(short)
    trials = examples(model, target, example) if check else []
    small = prove(cut_module(copy.deepcopy(target), cuts), target, cuts, trials)
    return cast("Target", cut_module(target, cuts, optimizer) if inplace else small)


def examples(model: Model | None, module: nn.Module, given: tuple[Any, ...] | None) -> list[tuple[Any, ...]]:
    """Arguments to try the module with: those given, else drawn from what the network says of its inputs."""
    if given is not None or model is None:
        return [] if given is None else [given]
    from spa.inputs import attempts

    device = next((t.device for t in tensors(module).values()), torch.device("cpu"))
    return [tuple(torch.from_numpy(a).to(device) for a in feeds.values()) for feeds in attempts(model, seed=0)]


def gradients(
    module: nn.Module,
    loss: Callable[..., torch.Tensor],
    batches: Iterable[tuple[Any, ...]],
    *,
    model: Model,
    names: Names | None = None,
    products: bool = False,
) -> Gradients:
    """Gradients of `loss(module, *batch)` by initializer name of `model`: [batches, *shape of the initializer].

    products: the products H g of the Hessian and the gradient instead, which the criterion "grasp" needs. The module is
    run in the mode it is in; parameters and their `.grad` stay as they are. Raises `Unsupported` where a weight of the
    network is no parameter of the module."""
    coupling = analyze(model)
    found = names if names is not None else matched(coupling, tensors(module))
    weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
    used = {n: t for n, t in found.items() if n in weights and t.own}
    values = {v.name: v for v in [*coupling.constants, *(op.out for op in coupling.ops if op.kind == "Identity")]}
    slots = {v for slots in coupling.parameters.values() for v, _ in slots}
    known = {root(values[t.value]) for t in found.values() if t.value in values}
    if missing := sorted(v.name or "" for v in slots if v not in known and not filler(v)):
        raise Unsupported(f"no parameter of the module is {listed(missing)}", hint=UNFOLDED)
    rows: dict[str, list[npt.NDArray[np.float32]]] = {}
    for batch in batches:
        value = loss(module, *batch)
        grads = torch.autograd.grad(value, list(weights.values()), create_graph=products, allow_unused=True)
        if products:
            norm = sum((g**2).sum() for g in grads if g is not None) / 2
            assert isinstance(norm, torch.Tensor)  # d/dw |g|^2 / 2 = H g
            grads = torch.autograd.grad(norm, list(weights.values()), allow_unused=True)
        found_here: Gradients = {}
        for (name, _), grad in zip(weights.items(), grads, strict=True):
            if name in used and grad is not None:
                value_of = root(values[used[name].value])
                if COPY in value_of.meta:
                    continue  # a filler: no score reads it
                shape = coupling.shapes.shape[value_of]
                into = found_here.setdefault(value_of.name or "", np.zeros(shape or (), np.float32))
                used[name].add_to(into, grad.detach().float().cpu().numpy())
        for key, array in found_here.items():
            rows.setdefault(key, []).append(array)
    if not rows:
        raise UsageError("no batch, or no parameter that the loss depends on")
    return {name: np.stack(list_) for name, list_ in rows.items()}


# Tensors ---------------------------------------------------------------------------------------------------------


def tensors(target: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters and buffers, those outside the state dict too; a tied one under each of its names."""
    if not isinstance(target, nn.Module):
        return {n: t for n, t in target.items() if isinstance(t, torch.Tensor)}
    return {
        **dict(target.named_parameters(remove_duplicate=False)),
        **dict(target.named_buffers(remove_duplicate=False)),
    }


def arrays(given: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Views of the numbers; of 16-bit ones a copy in float32."""
    found = {}
    for name, tensor in given.items():
        tensor = tensor.detach().cpu()
        found[name] = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    return found


# What goes where -------------------------------------------------------------------------------------------------


def matched(coupling: Coupling, state: Mapping[str, torch.Tensor]) -> Names:
    """`match`; a tied tensor goes with the name that has a twin."""
    found = match(coupling, arrays(state))
    twins = {memory(state[n]): t for n, t in found.items()}
    return found | {n: twins[memory(t)] for n, t in state.items() if n not in found and memory(t) in twins}


def memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two names of the same numbers."""
    return tensor.device, tensor.data_ptr() if tensor.numel() else id(tensor), tuple(tensor.shape), tensor.stride()


def find_cuts(
    plan: Plan, state: Mapping[str, torch.Tensor], model: Model | None, names: Names | None
) -> dict[str, Cut]:
    """Tensor name -> axis -> mask of what goes. Raises `Unsupported` where any of the plan's slices has no tensor."""
    if model is None:
        return cuts_by_name(plan, state)
    from spa.planning import approximate

    coupling = analyze(model, allow_approximate=approximate(plan))
    gone = gone_from(coupling, plan.removed)
    found = names if names is not None else matched(coupling, state)
    values = {v.name: v for v in [*coupling.constants, *(op.out for op in coupling.ops)]}
    claimed = {values[t.value] for t in found.values() if t.value in values}
    claimed |= {root(v) for v in claimed}
    missing = [plan_name for v, plan_name in coupling.constants.items()
               if plan_name in plan.removed and v not in claimed and not filler(v)]  # fmt: skip
    vanished = [n for n in state if n not in found and normalises(n, state)]
    if missing or vanished:
        what = f"the plan cuts {listed(missing)}, which no tensor of the module is" if missing else (
            f"the network has no counterpart of {listed(vanished)}: was the normalisation folded into a convolution?"
        )  # fmt: skip
        raise Unsupported(what, hint=f"{UNFOLDED}; or names= of the time of the export")
    cuts = {}
    for name, twin in found.items():
        if name in state and twin.value in values:
            lost = axis_masks(coupling, values[twin.value], gone)
            if cut := twin.cut(lost):
                fit(name, state[name], cut)
                cuts[name] = cut
    require_ties(state, cuts)
    return cuts


def require_ties(state: Mapping[str, torch.Tensor], cuts: Mapping[str, Cut]) -> None:
    first: dict[Any, str] = {}
    for name, tensor in state.items():
        twin = first.setdefault(memory(tensor), name)
        a, b = cuts.get(twin, {}), cuts.get(name, {})
        if a.keys() != b.keys() or any(not np.array_equal(a[k], b[k]) for k in a):
            raise Unsupported(
                f"'{twin}' and '{name}' are one tensor, the network's are two and lose different channels",
                name,
                UNFOLDED,
            )


def axis_masks(coupling: Coupling, value: ir.Value, gone: Mapping[int, Mask]) -> Cut:
    rank = len(coupling.shapes.shape.get(value) or ())
    dims = {a: coupling.dims.of.get((value, a), -1) for a in range(rank)}
    return {a: gone[d] for a, d in dims.items() if d in gone}


def cuts_by_name(plan: Plan, state: Mapping[str, torch.Tensor]) -> dict[str, Cut]:
    if missing := [n for n in plan.removed if n not in state]:
        raise Unsupported(
            f"the plan cuts {listed(missing)}, which no tensor of the module is called",
            hint="model= the network the plan was made for, to find tensors that the exporter renamed",
        )
    cuts: dict[str, Cut] = {}
    tied = {memory(state[n]): n for n in plan.removed}
    for name, axes in plan.removed.items():
        shape = state[name].shape
        for axis, index in axes.items():
            if int(axis) >= len(shape) or max(index, default=0) >= shape[int(axis)]:
                raise Unsupported(f"the plan cuts '{name}' along axis {axis}, its shape here is {tuple(shape)}", name)
            mask = np.zeros(shape[int(axis)], bool)
            mask[index] = True
            cuts.setdefault(name, {})[int(axis)] = mask
    for name, tensor in state.items():
        if name not in cuts and memory(tensor) in tied:
            cuts[name] = cuts[tied[memory(tensor)]]
    for name in state:  # vectors of a normalisation that the exporter stored once for several
        prefix = name.rpartition(".")[0]
        twin = next((c for n, c in cuts.items() if n.rpartition(".")[0] == prefix and len(c) == 1), None)
        if name not in cuts and twin is not None and normalises(name, state):
            cuts[name] = twin
    return cuts


def normalises(name: str, state: Mapping[str, Any]) -> bool:
    """Is it a vector of a batch normalisation?"""
    prefix, dot, _ = name.rpartition(".")
    return f"{prefix}{dot}running_mean" in state and len(state[name].shape) == 1


def filler(value: ir.Value) -> bool:
    """One number throughout, such as a first state of zeros: the module makes it from sizes."""
    tensor = tensor_of(value)
    return tensor is None or uniform(tensor.numpy())


def fit(name: str, tensor: torch.Tensor, cut: Cut) -> None:
    for axis, mask in cut.items():
        if axis >= tensor.ndim or len(mask) != tensor.shape[axis]:
            raise Unsupported(
                f"'{name}' has the shape {tuple(tensor.shape)}, the network's tensor has {len(mask)} along axis {axis}",
                name,
                "a plan for this architecture; after another plan was applied, export again",
            )


def listed(found: list[str], limit: int = 8) -> str:
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(f"'{n}'" for n in found[:limit]) + more
