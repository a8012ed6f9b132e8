"""Resolvers of the configuration: ${by_bits:} and the like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig


def _by_scale(scale: str, full: Any, smoke: Any) -> Any:
    """Return full, or smoke under scale=smoke."""
    return smoke if scale == "smoke" else full


def _if_finetuned(checkpoint: str | None, yes: Any, no: Any) -> Any:
    """Return yes for the network that finetune.py makes, no for any other."""
    return yes if checkpoint == "finetuned" else no


def _if_quantized(activation: DictConfig | None, yes: Any, no: Any) -> Any:
    """Return yes where activations are quantized, no where they are not."""
    return yes if activation else no


def _candidates(clipping: bool, candidates: int) -> int:
    """Return how many ranges are tried: 1, that of min-max, without clipping."""
    return candidates if clipping else 1


def _idle_rank(rule: str) -> list[str]:
    """Return the options of LRQ that do nothing under a rule for its ranks."""
    return ["quant.rank"] if rule == "code" else []


def _brecq(scale: str, folder: str, model: str) -> str | None:
    """Return where BRECQ's checkpoint of model is looked for; None under scale=smoke."""
    return None if scale == "smoke" else f"{folder}/brecq/{model}.pth"


def _source_name(source: str) -> str:
    """Return what a network is called by its source: ORG/NAME, a folder's or file's own name."""
    if source.startswith((".", "/", "~", "package:")):
        return source.rstrip("/").rpartition("/")[2]
    return source.partition("@")[0]


def _by_bits(bits: int, table: DictConfig) -> Any:
    """Return table's entry for bits or its default: ${by_bits:${bits},{2: 1e-3, default: 4e-4}}."""
    return table[bits] if bits in table else table["default"]


def _only_for(needed: str, chosen: str, *options: str) -> list[str]:
    """Return the options that do nothing unless needed is chosen, for idle: none where it is."""
    return [] if chosen == needed else list(options)


def _signround_lr(iters: int, bits: int) -> float:
    """Return auto-round's rate: 1 / iters, doubled from 1000 iterations on at 3 bits and fewer."""
    return (2 if iters >= 1000 and bits <= 3 else 1) / max(1, iters)


BY_NAME: dict[str, Callable[..., Any]] = {
    "brecq": _brecq,
    "by_bits": _by_bits,
    "by_scale": _by_scale,
    "candidates": _candidates,
    "idle_rank": _idle_rank,
    "if_finetuned": _if_finetuned,
    "if_quantized": _if_quantized,
    "only_for": _only_for,
    "signround_lr": _signround_lr,
    "source_name": _source_name,
}
