"""Resolvers of the configuration: ${by_bits:} and the like, and the rules of the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from flexround.api.rules import BITS, RULES


def _folder(name: str) -> str:
    """Return the folder of a task, glue of glue/mrpc; one that lies in none is its own."""
    return name.partition("/")[0]


def _if_finetuned(checkpoint: str | None, yes: Any, no: Any) -> Any:
    """Return yes for the network that finetune.py makes, no for any other."""
    return yes if checkpoint == "finetuned" else no


def _if_c4(calibration: DictConfig | None, folder: str | None) -> str | None:
    """Return folder, which holds C4, where that is what is drawn from, else None.

    Another corpus's samples are never C4's, nor is its evaluation shard among them.
    """
    corpus = None if calibration is None else calibration.get("corpus")
    is_c4 = corpus is not None and str(corpus.get("_target_")).endswith(".C4")
    return folder if is_c4 else None


def _brecq(scale: str, folder: str, model: str) -> str | None:
    """Return where BRECQ's checkpoint of model is looked for; None under scale=smoke."""
    return None if scale == "smoke" else f"{folder}/brecq/{model}.pth"


def _brecq_head(act_steps: str, model: str, act_bits: int) -> int:
    """Return the bits of the classifier's input in BRECQ's and QDrop's code.

    BRECQ's gives 8 to what the layer before the last puts out, and on a ResNet nothing reads that
    (quant_model.py, set_first_last_layer_to_8bit): its classifier takes the others' bits.
    """
    return act_bits if act_steps == "after" and model.startswith("resnet") else 8


def _source_name(source: str) -> str:
    """Return what a network is called by its source: ORG/NAME, a folder's or file's own name."""
    if source.startswith((".", "/", "~", "package:")):
        return source.rstrip("/").rpartition("/")[2]
    return source.partition("@")[0]


def _by_bits(bits: int, table: DictConfig) -> Any:
    """Return table's entry for bits or its default: ${by_bits:${bits},{2: 1e-3, default: 4e-4}}."""
    return table[bits] if bits in table else table["default"]


def _nearest_bits(average: Any) -> int:
    """Return the number of bits next to an average, of two the larger one.

    What is no average of bits is told by its own check.
    """
    known = isinstance(average, int | float) and BITS[0] <= average <= BITS[1]
    return math.floor(average + 0.5) if known else BITS[0]


BY_NAME: dict[str, Callable[..., Any]] = {
    **RULES,
    "brecq": _brecq,
    "brecq_head": _brecq_head,
    "by_bits": _by_bits,
    "folder": _folder,
    "if_c4": _if_c4,
    "if_finetuned": _if_finetuned,
    "nearest_bits": _nearest_bits,
    "source_name": _source_name,
}
