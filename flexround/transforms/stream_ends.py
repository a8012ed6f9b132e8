"""Ends of the residual stream: the embeddings that it begins with, the norm and heads behind it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flexround.models.language_adapter import LanguageAdapter
from flexround.structure import Layer, is_quantizable
from flexround.transforms.places import Place, is_norm, weight_of
from flexround.transforms.turning import absorb, turn_inputs


@dataclass(frozen=True)
class Ends:
    """What lies outside of the blocks.

    Attributes:
        embeddings: of words and positions.
        norm: the last one, with the heads that read it.
        takes_mean: whether it takes the mean from its input, as LayerNorm does.
    """

    embeddings: Sequence[nn.Embedding]
    norm: Place
    takes_mean: bool

    @classmethod
    def of(cls, adapter: LanguageAdapter, sample: Any, width: int) -> Ends:
        """Return the ends of adapter's model; sample is a batch, the stream width wide.

        Raises:
            ValueError: when there is no norm at the end that heads alone read.
        """
        blocks = {id(m) for block in adapter.blocks() for m in block.module.modules()}
        outside = {n: m for n, m in adapter.model.named_modules() if id(m) not in blocks}
        embeddings = [
            m for m in outside.values()
            if isinstance(m, nn.Embedding) and m.embedding_dim == width
        ]  # fmt: skip
        given, taken = _looked(adapter, outside, sample)
        found = [
            (name, [head for head, tensor in taken.items() if _same(tensor, output)])
            for name, output in given.items()
        ]
        read = [(name, heads) for name, heads in found if heads]
        if len(read) != 1 or not embeddings:
            where = ", ".join(taken) or type(adapter.model).__name__
            raise ValueError(
                f"layer {where}: transform=hadamard finds no norm behind the last block that this "
                "alone reads, so it is not exact there; give transform=none"
            )
        ((name, heads),) = read
        norm = outside[name]
        channels = torch.arange(weight_of(norm).numel())
        layers = [Layer(head, outside[head]) for head in heads]
        place = Place(name, norm, channels, layers, channels, norm=True)
        return cls(embeddings, place, _takes_mean(norm))


def rotate_ends(adapter: LanguageAdapter, ends: Ends, rotation: Tensor) -> int:
    """Turn the ends' weights in place; return the bytes of heads that were the embedding before."""
    adapter.model.to(adapter.storage_device)
    untied = sum(_untie(adapter, layer.module, ends.embeddings) for layer in ends.norm.layers)
    own = rotation.to(weight_of(ends.norm.source).device)
    with _in_float64([ends.norm.source, *(layer.module for layer in ends.norm.layers)]):
        absorb(ends.norm, ends.norm.name)
        bias = getattr(ends.norm.source, "bias", None)
        if bias is not None:
            bias.data.copy_(bias.data @ own)
        for layer in ends.norm.layers:
            turn_inputs(layer.module, own)
    for embedding in ends.embeddings:
        weight = embedding.weight.data
        weight.copy_((weight.double() @ own).to(weight))
    return untied


@contextmanager
def _in_float64(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Hold the parameters of modules in float64, so that in the end they are rounded once."""
    stored = [(param, param.data) for module in modules for param in module.parameters()]
    for param, values in stored:
        param.data = values.double()
    try:
        yield
    finally:
        for param, values in stored:
            param.data = values.copy_(param.data)


def _untie(adapter: LanguageAdapter, head: nn.Module, embeddings: Sequence[nn.Embedding]) -> int:
    """Give head a weight of its own where it is an embedding's; return its bytes.

    The head takes the last norm's weight, which the embedding must not.
    """
    shared = weight_of(head)
    if all(embedding.weight.data_ptr() != shared.data_ptr() for embedding in embeddings):
        return 0
    head.weight = nn.Parameter(shared.clone(), requires_grad=False)
    config: Any = adapter.model.config
    config.tie_word_embeddings = False
    return shared.nbytes


def _looked(
    adapter: LanguageAdapter, outside: dict[str, nn.Module], sample: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what norms outside of the blocks give and what linear layers there take, by name."""
    given: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}
    handles = []
    for name, module in outside.items():
        if is_norm(module):
            handles.append(
                module.register_forward_hook(
                    lambda _, __, output, name=name: given.__setitem__(name, output)
                )
            )
        elif is_quantizable(module):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: taken.__setitem__(name, args[0])
                )
            )
    try:
        with torch.no_grad():
            adapter.forward(sample)
    finally:
        for handle in handles:
            handle.remove()
    adapter.model.to(adapter.storage_device)
    return given, taken


def _same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape


def _takes_mean(norm: nn.Module) -> bool:
    """Return whether what is added to all channels alike is lost in norm, but for rounding."""
    norm = copy.deepcopy(norm).float()  # half precision rounds by more than is looked for
    weight = weight_of(norm)
    probe = torch.linspace(-1, 1, weight.numel(), device=weight.device)
    with torch.no_grad():
        change = (norm(probe + 3) - norm(probe)).abs().max()
    return bool(change < 1e-2 * weight.abs().max())
