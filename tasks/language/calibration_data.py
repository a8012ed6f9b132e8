"""Sequences of tokens to calibrate on, drawn from a corpus by seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tasks.language.corpora import C4, Corpus
from tasks.language.protocols import ProtocolName, encode, windows_of


@runtime_checkable
class Calibration(Protocol):
    """Where a language model's calibration samples come from."""

    def sequences(self, tokenizer: Any, seq_len: int, num_samples: int, seed: int) -> Tensor:
        """Return sequences of token ids [num_samples, seq_len] of the train split.

        Raises:
            ValueError: when there are fewer.
        """
        ...


@dataclass(frozen=True)
class Stream:
    """Consecutive windows of the text, all different, cut as a protocol's evaluation cuts its own.

    Attributes:
        corpus: the text.
        protocol: run_clm, gptq or file: where the tokenizer's special tokens stand.
    """

    corpus: Corpus
    protocol: ProtocolName

    def sequences(self, tokenizer: Any, seq_len: int, num_samples: int, seed: int) -> Tensor:
        """Return num_samples windows in an order drawn by seed.

        Raises:
            ValueError: when there are fewer, or the text is too long to be one string.
        """
        if isinstance(self.corpus, C4) and self.protocol != "run_clm":
            # 800 MB of text, whose tokens with their places take a hundred times that at once.
            raise ValueError(
                f"calibration=own under protocol={self.protocol} would tokenize the whole of C4's "
                "train shard as one text, which takes about 100 GB of memory; give calibration=c4, "
                "which draws documents of that shard"
            )
        windows = windows_of(self.corpus, "train", self.protocol, seq_len, tokenizer)
        _check(num_samples, len(windows), seq_len)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
        return windows[order[:num_samples]]


@dataclass(frozen=True)
class Documents:
    """A random window of each of num_samples random documents that are long enough (GPTQ's way)."""

    corpus: Corpus

    def sequences(self, tokenizer: Any, seq_len: int, num_samples: int, seed: int) -> Tensor:
        """Return one window of each drawn document."""
        generator = torch.Generator().manual_seed(seed)
        windows: list[Tensor] = []
        for ids in _long_enough(self.corpus, tokenizer, seq_len, generator):
            if len(windows) == num_samples:
                break
            start = int(torch.randint(len(ids) - seq_len + 1, (), generator=generator))
            windows.append(ids[start : start + seq_len])
        _check(num_samples, len(windows), seq_len)
        return torch.stack(windows)


@dataclass(frozen=True)
class Openings:
    """The first tokens of num_samples random documents that are long enough (auto-round's way)."""

    corpus: Corpus

    def sequences(self, tokenizer: Any, seq_len: int, num_samples: int, seed: int) -> Tensor:
        """Return the first seq_len tokens of each drawn document."""
        generator = torch.Generator().manual_seed(seed)
        drawn = _long_enough(self.corpus, tokenizer, seq_len, generator)
        windows = [ids[:seq_len] for ids in islice(drawn, num_samples)]
        _check(num_samples, len(windows), seq_len)
        return torch.stack(windows)


def _long_enough(
    corpus: Corpus, tokenizer: Any, seq_len: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the token ids of documents of seq_len tokens and more, in an order drawn."""
    rows = corpus.rows("train")
    for index in torch.randperm(len(rows), generator=generator).tolist():
        ids = torch.tensor(encode(tokenizer, [rows[index]])[0])
        if len(ids) >= seq_len:
            yield ids


def _check(num_samples: int, there: int, seq_len: int) -> None:
    if num_samples > there:
        raise ValueError(
            f"num_samples={num_samples}: train has {there} sequences of {seq_len} tokens; "
            "lower num_samples or task.seq_len"
        )
