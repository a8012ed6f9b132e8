"""Protocols of perplexity: how a text becomes windows of tokens. Their numbers do not compare.

run_clm is the FlexRound paper's (the Hugging Face example script, validation split, blocks of
1024); gptq is GPTQ's (test split, windows of 2048); file takes a file as one string. A calibration
on a text's own train split cuts it in the same way, so that it has the same special tokens.

How gptq joins rows, and how many windows it reads, is each corpus's own, as in IST-DASLab/gptq at
2d65066, datautils.py: get_wikitext2, and of --new-eval, which its README says that the paper's
last numbers are by, get_ptb_new and get_c4_new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tasks.bounds import Count, Split
from tasks.language.corpora import Corpus

RUN_CLM_ROWS = 1000  # datasets.map's batch: its remainder is dropped
MOST_MADE = 8  # windows kept; of WikiText2's train split they are 20 MB
_MADE: dict[str | None, Tensor] = {}


ProtocolName = Literal["run_clm", "gptq", "file"]


@dataclass(frozen=True)
class Protocol:
    """How perplexity is measured.

    Attributes:
        name: run_clm, gptq or file.
        split: the split it is measured on.
        window: tokens a window.
        max_windows: only the first so many, or None for all.
    """

    name: ProtocolName
    split: Split
    window: int
    max_windows: Count | None

    def __post_init__(self) -> None:
        if self.name not in get_args(ProtocolName):
            raise ValueError(f"protocol.name={self.name}: give run_clm, gptq or file")
        if self.window < 2:
            raise ValueError(f"protocol.window={self.window}: give at least 2 tokens")

    def windows(self, corpus: Corpus, tokenizer: Any) -> Tensor:
        """Return the windows [windows, tokens] of the corpus.

        Raises:
            ValueError: when the text is shorter than one window.
        """
        found = windows_of(corpus, self.split, self.name, self.window, tokenizer)
        if not len(found):
            raise ValueError(
                f"the split {self.split} is shorter than one window of {self.window} tokens; "
                "lower protocol.window or give a longer text"
            )
        most = corpus.most_windows if self.name == "gptq" else None
        return found[:most][: self.max_windows]


def windows_of(corpus: Corpus, split: str, name: str, window: int, tokenizer: Any) -> Tensor:
    """Return a split's windows [windows, window] as the protocol of that name cuts them.

    run_clm tokenizes each row with the tokenizer's special tokens (LLaMA's <s>, OPT's </s>) and
    joins the rows of a thousand; gptq has them once, before all rows joined by the corpus's
    separator; file has none. A process's later runs find the windows that an earlier one has made.
    """
    if name == "run_clm":
        rows = corpus.rows(split)
        batches = [rows[i : i + RUN_CLM_ROWS] for i in range(0, len(rows), RUN_CLM_ROWS)]
    elif name == "gptq":
        batches = [[corpus.separator.join(corpus.rows(split))]]
    else:
        batches = [[corpus.text(split)]]
    key = _key(tokenizer, batches, name, window)
    if key in _MADE:
        return _MADE[key].clone()
    pieces = [
        cut(chain.from_iterable(encode(tokenizer, batch, name != "file")), window)
        for batch in batches
    ]
    found = torch.cat(pieces) if pieces else torch.empty(0, window, dtype=torch.long)
    if key is not None:
        _MADE[key] = found.clone()
        if len(_MADE) > MOST_MADE:
            del _MADE[next(iter(_MADE))]
    return found


def begun(windows: Tensor, tokenizer: Any) -> Tensor:
    """Return windows with <bos> for their first token; the others, which are predicted, stay.

    Raises:
        ValueError: when the tokenizer has no <bos>.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError("task.begin_with_bos=true: this tokenizer has no <bos>; leave it out")
    windows = windows.clone()
    windows[:, 0] = tokenizer.bos_token_id
    return windows


def _key(tokenizer: Any, batches: Sequence[Sequence[str]], name: str, window: int) -> str | None:
    """Return what windows depend on, as a digest; None of a tokenizer that does not tell its own.

    A tokenizer of the tokenizers library does: its vocabulary, merges, normalization and template
    of special tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    digest = hashlib.sha256(f"{tokenizer!r} {name} {window} ".encode())
    digest.update(backend.to_str().encode())
    for batch in batches:
        for text in (str(len(batch)), *batch):
            digest.update(f"{len(text)} {text}".encode(errors="surrogatepass"))
    return digest.hexdigest()


def encode(tokenizer: Any, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Return the token ids of each text, with the tokenizer's special tokens or without."""
    out = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False)
    ids: list[list[int]] = out["input_ids"]
    return ids


def cut(tokens: Any, window: int) -> Tensor:
    """Return consecutive windows [windows, window] of a stream of ids; the rest is dropped."""
    ids = torch.tensor(list(tokens), dtype=torch.long)
    return ids[: len(ids) // window * window].view(-1, window)
