"""Language models by the source of their weights, and the adapters that they become.

A transformer layer, attention and feed-forward together, is one block. Embeddings, norms, `lm_head`
and classification heads stay full precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from flexround.calibration.activation_cache import ActivationCache
from flexround.models.base import check_kind
from flexround.models.checkpoint_shards import Shards
from flexround.models.language_adapter import LanguageAdapter, Tokens


class LanguageSource(Protocol):
    """What a language task provides to build an adapter."""

    kinds: Sequence[str]

    def load(self, model: LanguageModel, checkpoint: str | None) -> nn.Module:
        """Return model's full-precision network for the task."""
        ...

    def outline(self, model: LanguageModel, checkpoint: str | None) -> tuple[nn.Module, Shards]:
        """Return the same network without its weights, and the files that they are in."""
        ...

    def bare(self, model: LanguageModel, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the same network, its weights without meaning, from what folder describes."""
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
        kind: causal or encoder; None is what the task is for first.
        leave: names of weights in the layers that stay in full precision, see `without_left`.
    """

    name: str
    source: str
    kind: str | None
    leave: Sequence[str]

    def adapter(
        self,
        source: LanguageSource,
        checkpoint: str | None,
        device: torch.device,
        offload: ActivationCache | None = None,
    ) -> LanguageAdapter:
        """Return the adapter of this model with source's full-precision weights.

        With offload one block at a time is in memory; what changes lies where offload spills to.

        Raises:
            ValueError: when the task is for another kind of model.
        """
        check_kind(self.kind, source.kinds)
        if offload is None:
            network = source.load(self, checkpoint)
            return LanguageAdapter(network, source.example(), device, self.leave)
        from flexround.models.offloaded_adapter import OffloadedAdapter

        network, shards = source.outline(self, checkpoint)
        return OffloadedAdapter(
            network, source.example(), device, shards, offload, self.leave
        )  # fmt: skip

    def bare_adapter(
        self, source: LanguageSource, checkpoint: str | None, folder: Path, device: torch.device
    ) -> LanguageAdapter:
        """Return the adapter that an artifact in folder is restored to."""
        check_kind(self.kind, source.kinds)
        network = source.bare(self, checkpoint, folder)
        return LanguageAdapter(network, source.example(), device, self.leave)
