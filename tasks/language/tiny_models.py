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

    vocabulary: int = 1024
    steps: int = 150
    batch: int = 16
    window: int = 64
    lr: float = 3e-3
    version: int = 2


RECIPE = Recipe()
SIZE: dict[str, Any] = {"vocab_size": RECIPE.vocabulary, "max_position_embeddings": 256}
WIDTH: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def config_of(family: str) -> Any:
    """Return the configuration of the tiny model of a family.

    Raises:
        ValueError: for an unknown family.
    """
    import transformers as hf

    makers: dict[str, Callable[[], Any]] = {
        "bert": lambda: hf.BertConfig(**SIZE, **WIDTH, intermediate_size=128),
        "gpt2": lambda: hf.GPT2Config(
            vocab_size=SIZE["vocab_size"], n_positions=256, n_embd=64, n_layer=2, n_head=4
        ),
        "gpt_neo": lambda: hf.GPTNeoConfig(
            **SIZE, hidden_size=64, num_heads=4, num_layers=2, intermediate_size=128,
            attention_types=[[["global", "local"], 1]], window_size=32,
        ),
        "opt": lambda: hf.OPTConfig(**SIZE, **WIDTH, ffn_dim=128, word_embed_proj_dim=64),
        "llama": lambda: hf.LlamaConfig(
            **SIZE, **WIDTH, intermediate_size=128, num_key_value_heads=2
        ),
    }  # fmt: skip
    if family not in makers:
        raise ValueError(f"model.source=tiny:{family}: give one of {', '.join(makers)}")
    config = makers[family]()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    # Dropout would only slow so short a training down.
    for name in vars(config):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config


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
        model_max_length=SIZE["max_position_embeddings"],
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
    key = json.dumps([config_of(family).to_dict(), asdict(RECIPE)], sort_keys=True, default=str)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = cache_dir / "checkpoints" / f"tiny-{family}-{digest}"
    return pretrained.read_or_make(
        folder,
        lambda: read(str(folder)),
        _encoder if family == "bert" else lambda: _train(family),
    )


def _encoder() -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForMaskedLM.from_config(config_of("bert")), tokenizer(pairs=True)


def _train(family: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    log.info("training a tiny %s on Python's documentation (first use)", family)
    tokens = tokenizer(pairs=False)
    text = tokens(PythonDocs().text("train"))["input_ids"]
    windows = cut(text, RECIPE.window)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config_of(family)).train()
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
