"""Transformers as chains of their layers (FlexRound, arXiv 2306.00317, sec. 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.calls import RecordedCalls, layers_sharing_input, record_calls
from flexround.models.base import ModelAdapter
from flexround.structure import Block, Layer, Site, is_quantizable

# Layers whose outputs a key-value cache would hold.
KEYS_AND_VALUES = ("k_proj", "v_proj")


Tokens = Mapping[str, Tensor]  # input_ids, attention_mask, ...: [batch, tokens]


def chain_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the transformer layers of model by name, in order.

    Raises:
        ValueError: when there is no list of like layers.
    """
    lists = [
        (name, module) for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(layer) for layer in module}) == 1
        and any(is_quantizable(sub) for sub in module.modules())
    ]  # fmt: skip
    if not lists:
        raise ValueError(f"{type(model).__name__} holds no list of like transformer layers")
    # Several lists only where layers hold lists themselves; the outermost comes first.
    name, layers = lists[0]
    return {f"{name}.{index}": layer for index, layer in layers.named_children()}


class LanguageAdapter(ModelAdapter):
    """A causal language model or an encoder; only the block at work lies on the device."""

    channel_dim = -1

    def __init__(self, model: nn.Module, example: Tokens, device: torch.device) -> None:
        """Find the layers of model by its structure and their order by running example.

        Raises:
            ValueError: when there is no list of like layers.
        """
        self.device, self.storage_device = device, torch.device("cpu")
        self.model = model.eval().requires_grad_(False)
        config: Any = model.config
        config.use_cache = False  # a cache would grow each time that a call is replayed
        self._blocks = self._find_blocks(example)

    def blocks(self) -> list[Block]:
        """Return the transformer layers in order."""
        return self._blocks

    def forward(self, batch: Tokens) -> Tensor:
        """Return the logits of one batch.

        [batch, tokens, vocabulary], [batch, classes], or for answers in a text [batch, tokens, 2].
        """
        if not torch.compiler.is_exporting():  # a tracer can't follow it
            self.model.to(self.device)
        return self._logits(batch)

    def _logits(self, batch: Tokens) -> Tensor:
        out = self.model(**{name: values.to(self.device) for name, values in batch.items()})
        if "start_logits" in out:
            return torch.stack([out.start_logits, out.end_logits], dim=-1)
        logits: Tensor = out.logits
        return logits

    def record_calls(
        self, batches: Sequence[Tokens], cache: ActivationCache | None = None
    ) -> RecordedCalls:
        """Return the calls of the first layer over the calibration batches, in float32."""
        self.model.to(self.storage_device)
        return self._record_calls(batches, cache)

    def _record_calls(
        self, batches: Sequence[Tokens], cache: ActivationCache | None
    ) -> RecordedCalls:
        first, device = self.blocks()[0].module, self.device
        self.device = self.storage_device
        try:
            return record_calls(first, self._logits, batches, cache).to_float()
        finally:
            self.device = device

    def num_samples(self, batch: Tokens) -> int:
        """Return how many sequences a batch holds."""
        return len(batch["input_ids"])

    def loss_mask(self, batches: Sequence[Tokens]) -> Tensor | None:
        """Return which tokens are no padding, [samples, tokens], or None where all are."""
        if any("attention_mask" not in batch for batch in batches):
            return None
        mask = torch.cat([batch["attention_mask"] for batch in batches]).bool()
        return None if mask.all() else mask

    def _try(self, example: Tokens) -> None:
        """Call every layer once."""
        self.model(**example)

    def _find_blocks(self, example: Tokens) -> list[Block]:
        names = {module: name for name, module in self.model.named_modules()}
        chain = chain_of(self.model)
        order, sites = self._layers_and_sites(example, names)
        blocks = []
        for name, module in chain.items():
            inside = {id(sub) for sub in module.modules()}
            layers = [Layer(names[m], m) for m in order if id(m) in inside]
            own = [site for site in sites if id(site.modules[0]) in inside]
            blocks.append(Block(name, module, layers, sites=own))
        return blocks

    def _layers_and_sites(
        self, example: Tokens, names: Mapping[nn.Module, str]
    ) -> tuple[list[nn.Module], list[Site]]:
        """Return the layers in the order they run, and the activations that they take.

        Layers that take the same tensor (query, key and value) share a site. Softmax and norms
        are left alone (FlexRound, sec. 4.3).
        """
        layers = [module for module in self.model.modules() if is_quantizable(module)]
        order, together = layers_sharing_input(layers, lambda: self._try(example))
        sites = [Site(f"{names[ms[0]]}.input", ms, "input") for ms in together]
        cached = [m for m in order if names[m].endswith(KEYS_AND_VALUES)]
        sites += [Site(f"{names[m]}.output", [m], "output", role="kv") for m in cached]
        return order, sites
