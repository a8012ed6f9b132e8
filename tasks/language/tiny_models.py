"""Tiny language models, one of each family, made on first use.

The causal ones are trained on Python's own documentation. The encoder is as initialised: its tasks
fine-tune all of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from tasks.language import pretrained
from tasks.language.corpora import PythonDocs
from tasks.language.protocols import cut
from tasks.language.tiny_families import POSITIONS, VOCABULARY, config_of

log = logging.getLogger(__name__)

T = TypeVar("T")

PREFIX = "tiny:"


@dataclass(frozen=True)
class Recipe:
    """How the causal models are trained; part of the name of the folder that keeps them.

    Attributes:
        vocabulary: tokens of the byte-level BPE.
        batch: windows a step.
        window: tokens a window.
        version: raised whenever the same settings would give another network.
    """

    vocabulary: int = VOCABULARY
    steps: int = 150
    batch: int = 16
    window: int = 64
    lr: float = 3e-3
    version: int = 2


RECIPE = Recipe()


def tokenizer(pairs: bool) -> Any:
    """Return a byte-level BPE of 1,024 tokens trained on the train split of Python's docs.

    With pairs, one or two texts become <s> A </s> B </s> as BERT takes them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=RECIPE.vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(PythonDocs().rows("train"), trainer)
    if pairs:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"][:: 1 if pairs else 2],
        model_max_length=POSITIONS,
    )


def load(
    source: str, cache_dir: Path, auto: Any, head: dict[str, Any] | None = None
) -> tuple[nn.Module, Any]:
    """Return (network, tokenizer) of tiny:FAMILY, made now or read from the cache.

    auto and head are those of `pretrained.load`.
    """
    return read_or_make(source, cache_dir, lambda folder: pretrained.load(auto, folder, head))


def read_or_make(source: str, cache_dir: Path, read: Callable[[str], T]) -> T:
    """Return what read finds in the folder of tiny:FAMILY, which is made on first use."""
    family = source.removeprefix(PREFIX)
    folder = folder_of(source, cache_dir)
    return pretrained.read_or_make(
        folder,
        lambda place: read(str(place)),
        _encoder if family == "bert" else lambda: _train(family),
    )


def folder_of(source: str, cache_dir: Path) -> Path:
    """Return where tiny:FAMILY is kept, or will be."""
    family = source.removeprefix(PREFIX)
    key = json.dumps([config_of(family).to_dict(), asdict(RECIPE)], sort_keys=True, default=str)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_dir / "checkpoints" / f"tiny-{family}-{digest}"


def describe(source: str, folder: Path, head: dict[str, Any]) -> None:
    """Write the configuration of tiny:FAMILY with a head, and its tokenizer, into folder."""
    family = source.removeprefix(PREFIX)
    config = config_of(family)
    config.update(head)
    config.save_pretrained(folder)
    tokenizer(pairs=family == "bert").save_pretrained(folder)


def _encoder() -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForMaskedLM.from_config(config_of("bert"), trust_remote_code=False)
        return network, tokenizer(pairs=True)


def _train(family: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    log.info("training a tiny %s on Python's documentation (first use)", family)
    tokens = tokenizer(pairs=False)
    text = tokens(PythonDocs().text("train"))["input_ids"]
    windows = cut(text, RECIPE.window)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = config_of(family)
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=False).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=RECIPE.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE.lr, RECIPE.steps)
        for _ in range(RECIPE.steps):
            batch = windows[torch.randint(len(windows), (RECIPE.batch,))]
            loss = network(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval(), tokens
