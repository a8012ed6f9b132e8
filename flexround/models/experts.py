"""Mixtures of experts as single layers: each expert's matrices become Linear layers of their own.

transformers 5 holds all experts of a layer in two three-dimensional parameters
(transformers/integrations/moe.py). Quantizers, solvers and artifacts work on matrices, and a solver
needs the tokens that are sent to each expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexround.structure import Layer, counted


class Expert(nn.Module):
    """One expert: down(gate(up(x))).

    Attributes:
        tokens: which of the tokens [tokens, hidden] its latest inputs were, [rows].
    """

    tokens: Tensor

    def __init__(self, up: nn.Linear, down: nn.Linear, names: tuple[str, str]) -> None:
        super().__init__()
        self._names = names
        self.add_module(names[0], up)
        self.add_module(names[1], down)

    def forward(self, x: Tensor, gate: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the expert's output [rows, hidden] for x [rows, hidden]."""
        up, down = (self.get_submodule(name) for name in self._names)
        out: Tensor = down(gate(up(x)))
        return out


class Experts(nn.ModuleList):
    """All experts of one layer, called as the fused module that they were made from.

    Attributes:
        every: whether experts that no token is sent to are called, too, with no rows.
    """

    _gate: Callable[[Tensor], Tensor]

    def __init__(self, experts: Sequence[Expert], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__(experts)
        self.every = False
        object.__setattr__(self, "_gate", gate)  # no entry of the list, where it is a module

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return sum over k of weights[:, k] * expert index[:, k] of hidden, [tokens, hidden].

        index and weights are [tokens, k].
        """
        out = torch.zeros_like(hidden)
        # All rows in the order of their experts; a GPU is waited for once, not for each expert.
        chosen = index.T.flatten()
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=len(self)).cpu().tolist()
        rows = order.split(counts)
        for expert, own in zip(cast("Iterator[Expert]", iter(self)), rows, strict=False):
            if not (len(own) or self.every):
                continue
            place, tokens = own // len(index), own % len(index)
            expert.tokens = tokens
            part = expert(hidden[tokens], self._gate) * weights[tokens, place, None]
            out.index_add_(0, tokens, part.to(out.dtype))
        return out


def is_fused(module: nn.Module) -> bool:
    """Return whether module holds all experts of a layer in parameters of three dimensions."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate")


def split_experts(model: nn.Module) -> nn.Module:
    """Replace every fused mixture of model by its single experts, in place, and return model.

    Raises:
        ValueError: when the single experts do not compute what the mixture does.
    """
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if is_fused(child):
                try:
                    setattr(parent, name, _split(child))
                except (AttributeError, RuntimeError) as error:
                    raise ValueError(_refusal(f"{parent_name}.{name}", child)) from error
    return model


@contextmanager
def every_expert(module: nn.Module) -> Iterator[None]:
    """Have every expert in module called in each pass while in the context."""
    mixtures = [m for m in module.modules() if isinstance(m, Experts)]
    for mixture in mixtures:
        mixture.every = True
    try:
        yield
    finally:
        for mixture in mixtures:
            mixture.every = False


@contextmanager
def reached(layers: Sequence[Layer], mask: Tensor | None) -> Iterator[set[str]]:
    """Yield the names of experts' layers that tokens have reached, filled while in the context.

    mask tells which positions of the one pass inside count, [samples, tokens], or None for all.
    """
    names: set[str] = set()

    def hook(layer: Layer) -> Callable[..., None]:
        def count(_: nn.Module, args: tuple[Any, ...]) -> None:
            if len(counted(layer, args[0], mask)):
                names.add(layer.name)

        return count

    handles = [
        layer.module.register_forward_pre_hook(hook(layer))
        for layer in layers if layer.expert is not None
    ]  # fmt: skip
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _split(fused: Any) -> Experts:
    names = ("gate_up_proj" if fused.has_gate else "up_proj", "down_proj")
    if getattr(fused, "has_post_expert_norm", False):  # not in all versions of transformers
        raise AttributeError("a norm behind each expert")
    experts = [
        Expert(_linear(fused, names[0], number), _linear(fused, names[1], number), names)
        for number in range(fused.num_experts)
    ]
    gate = fused._apply_gate if fused.has_gate else fused.act_fn
    single = Experts(experts, gate)
    _check_equal(fused, single, names[0])
    for name in list(fused._parameters):
        delattr(fused, name)  # gate holds on to fused
    return single


def _linear(fused: Any, name: str, number: int) -> nn.Linear:
    """Return the matrix called name of one expert as a layer; [out, in] as it computes."""
    weight = getattr(fused, name)[number]
    if fused.is_transposed:
        weight = weight.T
    bias = getattr(fused, f"{name}_bias")[number] if fused.has_bias else None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), False)
    return layer


def _check_equal(fused: Any, single: Experts, name: str) -> None:
    layer = cast(nn.Linear, single[0].get_submodule(name))
    draws = torch.Generator().manual_seed(0)
    tokens, count = 4 * len(single), min(2, len(single))
    hidden = torch.randn(tokens, layer.in_features, generator=draws).to(layer.weight)
    index = torch.rand(tokens, len(single), generator=draws).topk(count).indices
    weights = torch.rand(tokens, count, generator=draws).to(layer.weight)
    index = index.to(hidden.device)
    with _plainly_computed(fused):
        expected = fused(hidden, index, weights)
    found = single(hidden, index, weights)
    close = 1e-4 if layer.weight.dtype == torch.float32 else 5e-2
    if not (expected - found).norm() <= close * expected.norm():
        raise RuntimeError("the single experts give something else")


@contextmanager
def _plainly_computed(fused: Any) -> Iterator[None]:
    """Have fused loop over its experts; transformers' other ways do not take every type."""
    before = fused.config._experts_implementation
    fused.config._experts_implementation = "eager"
    try:
        yield
    finally:
        fused.config._experts_implementation = before


def _refusal(name: str, fused: nn.Module) -> str:
    return (
        f"{name}: a mixture of experts of the class {type(fused).__name__} can't be taken apart "
        "into its experts; this architecture is not supported"
    )
