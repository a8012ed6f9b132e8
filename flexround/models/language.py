"""Transformers of the Hugging Face library as chains of their layers (FlexRound, sec. 4.3).

A transformer layer, attention and feed-forward together, is one block. Embeddings, norms, `lm_head`
and classification heads stay full precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flexround.attach import Layer, is_quantizable
from flexround.blocks import Block, Calls, takers
from flexround.models.base import ModelAdapter, check_kind
from flexround.sites import Site

# Layers whose outputs a key-value cache would hold.
KEYS_AND_VALUES = ("k_proj", "v_proj")

Tokens = Mapping[str, Tensor]  # input_ids, attention_mask, ...: [batch, tokens]


class LanguageSource(Protocol):
    """What a language task provides to build an adapter."""

    kinds: Sequence[str]

    def load(self, model: LanguageModel, checkpoint: str | None) -> nn.Module:
        """Return model's full-precision network for the task."""
        ...

    def example(self) -> Tokens:
        """Return a small batch as the network takes it."""
        ...


@dataclass(frozen=True)
class LanguageModel:
    """A transformer by the source of its weights.

    Attributes:
        name: what the command line calls it.
        source: a hub id, a local folder, a .gguf file, package:NAME/FILE, or tiny:FAMILY.
        kind: causal or encoder.
    """

    name: str
    source: str
    kind: str

    def adapter(
        self, source: LanguageSource, checkpoint: str | None, device: torch.device
    ) -> LanguageAdapter:
        """Return the adapter of this model with source's full-precision weights.

        Raises:
            ValueError: when the task is for another kind of model.
        """
        check_kind(self.kind, source.kinds)
        return LanguageAdapter(source.load(self, checkpoint), source.example(), device)


class LanguageAdapter(ModelAdapter):
    """A causal language model or an encoder; only the block at work lies on the device."""

    channel_dim = -1

    def __init__(self, model: nn.Module, example: Tokens, device: torch.device) -> None:
        """Find the layers of model by its structure and their order by running example.

        Raises:
            ValueError: when there is no list of like layers.
        """
        self.device, self.home = device, torch.device("cpu")
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
        out = self.model(**{name: values.to(self.device) for name, values in batch.items()})
        if "start_logits" in out:
            return torch.stack([out.start_logits, out.end_logits], dim=-1)
        logits: Tensor = out.logits
        return logits

    def capture(self, batches: Sequence[Tokens]) -> Calls:
        """Return the calls of the first layer over the calibration batches, in float32."""
        self.model.to(self.home)
        device, self.device = self.device, self.home
        try:
            return super().capture(batches).to_float()
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

    def _find_blocks(self, example: Tokens) -> list[Block]:
        names = {module: name for name, module in self.model.named_modules()}
        lists = [
            m for m in names if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1
        ]
        lists = [m for m in lists if any(is_quantizable(sub) for sub in m.modules())]
        if not lists:
            raise ValueError(
                f"{type(self.model).__name__} holds no list of like transformer layers"
            )
        order, sites = self._layers_and_sites(example, names)
        # Several lists only where layers hold lists themselves; the outermost comes first.
        blocks = []
        for module in lists[0]:
            inside = {id(sub) for sub in module.modules()}
            layers = [Layer(names[m], m) for m in order if id(m) in inside]
            own = [site for site in sites if id(site.modules[0]) in inside]
            blocks.append(Block(names[module], module, layers, sites=own))
        return blocks

    def _layers_and_sites(
        self, example: Tokens, names: Mapping[nn.Module, str]
    ) -> tuple[list[nn.Module], list[Site]]:
        """Return the layers in the order they run, and the activations that they take.

        Layers that take the same tensor (query, key and value) share a site. Softmax and norms
        are left alone (FlexRound, sec. 4.3).
        """
        layers = [module for module in self.model.modules() if is_quantizable(module)]
        order, together = takers(layers, lambda: self.model(**example))
        sites = [Site(f"{names[ms[0]]}.input", ms, "input") for ms in together]
        cached = [m for m in order if names[m].endswith(KEYS_AND_VALUES)]
        sites += [Site(f"{names[m]}.output", [m], "output", role="kv") for m in cached]
        return order, sites
