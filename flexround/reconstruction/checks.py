"""Checks of what a reconstruction is given, before any work."""

from __future__ import annotations

from flexround.activations.quantizers import Activation
from flexround.models.base import ModelAdapter


def check_sites(activation: Activation, adapter: ModelAdapter) -> None:
    """Check that adapter's model has what activation quantizes.

    Raises:
        ValueError: when it has not, or tokens are asked for where there are none.
    """
    if activation.per_token and adapter.channel_dim != -1:
        raise ValueError(
            f"{type(activation).__name__} is for transformers, whose activations are tokens; "
            "give activation=static_per_tensor"
        )
    sites = [site for block in adapter.blocks() for site in block.sites]
    if not any(site.role != "kv" for site in sites):
        raise ValueError("the model names no activation to quantize; give activation=none")
    if activation.kv_bits is not None and not any(site.role == "kv" for site in sites):
        raise ValueError(
            f"kv_bits={activation.kv_bits}: the model has no key and value layers of their own"
        )
