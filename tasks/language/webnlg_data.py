"""Triples of the WebNLG 2017 challenge and sentences that say them: read, stacked, scored.

Gardent et al., "The WebNLG Challenge: Generating Text from RDF Data" (INLG 2017).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, zip_longest
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flexround.utils.file_errors import files_below

SPLITS = ("train", "dev", "test")
IGNORED = -100  # the label that transformers' loss leaves out
LAYOUT = f"the WebNLG 2017 challenge's XML with {', '.join(f'{s}/' for s in SPLITS)}"

Triple = tuple[str, str, str]  # subject, property, object


@dataclass(frozen=True)
class Entry:
    """Triples of a category and the sentences that say them."""

    category: str
    triples: tuple[Triple, ...]
    references: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The triples on one line, as microsoft/LoRA's NLG example writes them."""
        return " | ".join(" : ".join(triple) for triple in self.triples)


def read(folder: Path, split: str) -> list[Entry]:
    """Return each entry of a split once, with all its good references, where it has any.

    The test folder holds the same entries in several files, one of them without references.

    Raises:
        ValueError: when folder is not there, lacks the split, or a file is something else.
    """
    if not folder.is_dir():
        raise ValueError(f"data_dir={folder}: no such folder; give {LAYOUT}")
    files = [file for file in files_below(folder / split) if file.suffix == ".xml"]
    if not files:
        raise ValueError(f"data_dir={folder}: no XML file in {split}/; give {LAYOUT}")
    found: dict[tuple[str, tuple[Triple, ...]], tuple[str, ...]] = {}
    for file in files:
        for entry in _parse(file):
            key = (entry.category, entry.triples)
            known = found.get(key, ())
            found[key] = known + tuple(r for r in entry.references if r not in known)
    return [Entry(*key, references) for key, references in found.items() if references]


def _parse(file: Path) -> Iterator[Entry]:
    try:
        for node in ElementTree.parse(file).getroot().iter("entry"):
            yield _entry(node)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(
            f"{file} is not XML of the WebNLG 2017 challenge ({error}); get it again or remove it"
        ) from error


def _entry(node: ElementTree.Element) -> Entry:
    triples = [_triple(triple.text or "") for triple in node.iterfind("modifiedtripleset/mtriple")]
    if not triples:
        raise ValueError(f"no mtriple in entry {node.get('eid')}")
    good = [lex.text or "" for lex in node.iterfind("lex") if lex.get("comment") == "good"]
    return Entry(node.attrib["category"], tuple(triples), tuple(text for text in good if text))


def _triple(text: str) -> Triple:
    parts = text.split(" | ")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is no triple")
    return parts[0], parts[1], parts[2]


def stack(rows: Sequence[dict[str, Any]], pad_id: int, side: str) -> dict[str, Tensor]:
    """Return rows of tokens as one batch [rows, longest], padded on side (left or right)."""
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    return {
        name: pad_sequence(
            [torch.tensor(row[name]) for row in rows],
            batch_first=True,
            padding_value=fill[name],
            padding_side=side,
        )
        for name in rows[0]
    }


def scorer(tokenize: str, lowercase: bool) -> Any:
    """Return sacrebleu's BLEU.

    Raises:
        ValueError: when sacrebleu has no such tokenization.
    """
    from sacrebleu.metrics.bleu import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"task.tokenize={tokenize}: give one of {', '.join(BLEU.TOKENIZERS)}")
    return BLEU(tokenize=tokenize, lowercase=lowercase)


def scores(
    metric: Any, sentences: Sequence[str], entries: Sequence[Entry], seen: Collection[str]
) -> dict[str, float]:
    """Return BLEU in percent on all entries, and on those of seen and of unseen categories.

    A part without entries is left out.
    """
    old = [entry.category in seen for entry in entries]
    parts = {"all": [True] * len(old), "seen": old, "unseen": [not is_old for is_old in old]}
    found = {}
    for name, part in parts.items():
        if any(part):
            references = [entry.references for entry in compress(entries, part)]
            streams = list(zip_longest(*references))  # None where an entry has fewer
            score = metric.corpus_score(list(compress(sentences, part)), streams)
            found[f"bleu_{name}"] = float(score.score)
    return found
