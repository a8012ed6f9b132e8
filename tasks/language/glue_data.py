"""Labelled sentences and pairs of them: GLUE (arXiv 1804.07461) and passages of Python's docs."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tasks.bounds import Count
from tasks.language.hub_data import load_hub
from tasks.language.text_files import read_text

log = logging.getLogger(__name__)

# A split, or the part of it from one example to before another, as `datasets` has it for the hub.
SPLIT = re.compile(r"(\w+)(?:\[(-?\d+)?:(-?\d+)?\])?")


class Example(NamedTuple):
    """One or two texts with a label: a class, or a score."""

    texts: tuple[str, ...]
    label: float


class Sentences(Protocol):
    """Labelled texts in splits."""

    @property
    def names(self) -> Sequence[str] | None:
        """What the classes are in the order of their labels, or None for a score."""
        ...

    def examples(self, split: str) -> list[Example]:
        """Return the split's examples in order.

        Raises:
            ValueError: when they can't be had.
        """
        ...


@dataclass(frozen=True)
class Glue:
    """A subset of GLUE from the hub, or from its own tab-separated files.

    Attributes:
        subset: its name on the hub.
        local: the folder of the subset's files, or the folder of all of GLUE; None for the hub.
        folder: what the subset's folder is called there.
        files: by split, the names its file goes by; the first that exists is read.
        columns: names of the text columns on the hub; text_columns and label_column say where the
            files have them, by their header's name, or by number where the file has no header.
        classes: the labels in the hub's order, or None for a score.
        names: what the classes are, in the same order, where the labels are numbers.
    """

    subset: str
    local: str | None
    folder: str
    files: dict[str, list[str]]
    columns: list[str]
    text_columns: list[str | int]
    label_column: str | int
    classes: list[str] | None
    names: list[str] | None

    def check_split(self, split: str) -> None:
        """Check that split, or the part of one that it names, can be asked for.

        Raises:
            ValueError: when there is none of that name, or no part of a file is named so.
        """
        name = split.partition("[")[0]
        if name not in self.files:
            raise ValueError(f"task.splits: {split} is none of {', '.join(self.files)}")
        if self.local is not None and SPLIT.fullmatch(split) is None:
            raise ValueError(
                f"task.splits: {split} can't be cut from a file of data_dir={self.local}; give "
                f"{name}, or a part of it by whole numbers such as {name}[:100] or {name}[100:200]"
            )

    def examples(self, split: str) -> list[Example]:
        """Return the examples of a split, or of the part of it that is named as in NAME[:100]."""
        if self.local is not None:
            return self._part(split, Path(self.local).expanduser())
        names = [f"{self.folder}/{names[0]}" for names in self.files.values()]
        rows = load_hub("nyu-mll/glue", self.subset, split, None, names)
        found = [Example(tuple(row[c] for c in self.columns), row["label"]) for row in rows]
        if self.classes is not None and any(e.label not in range(len(self.classes)) for e in found):
            raise ValueError(
                f"{split} of nyu-mll/glue's {self.subset} has no labels; give another split"
            )
        return found

    def _part(self, split: str, root: Path) -> list[Example]:
        """Return the examples of split, whole or a part, of a file in root."""
        match = SPLIT.fullmatch(split)
        assert match is not None, "check_split has been called"
        name, *ends = match.groups()
        found = self._read(path := self._path(name, root))
        first, last = (None if end is None else int(end) for end in ends)
        part = found[first:last]
        if not part or any(end is not None and abs(end) > len(found) for end in (first, last)):
            raise ValueError(f"task.splits: {path} has {len(found)} examples, no {split} of them")
        return part

    def _path(self, split: str, root: Path) -> Path:
        names = self.files[split]
        for folder in (root, root / self.folder):
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        raise ValueError(
            f"data_dir={self.local}: neither it nor {self.folder} in it has {' or '.join(names)}"
        )

    def _read(self, path: Path) -> list[Example]:
        lines = _lines(path)
        wanted = [*self.text_columns, self.label_column]
        first = 0 if all(isinstance(w, int) for w in wanted) else 1
        header = lines[0] if first and lines else []
        missing = [w for w in wanted if isinstance(w, str) and w not in header]
        if missing:
            raise ValueError(
                f"{path}: no column {', '.join(map(str, missing))} in its header "
                f"({', '.join(header)})"
            )
        places = [w if isinstance(w, int) else header.index(w) for w in wanted]
        found, short = [], 0
        for number, line in enumerate(lines[first:], first + 1):
            if len(line) <= max(places):
                short += 1  # QQP's published file has a few
                continue
            *texts, label = (line[place] for place in places)
            try:
                found.append(Example(tuple(texts), self._label(label)))
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: {label!r} is no label of {self.subset}"
                ) from error
        if short:
            log.warning("%s: left out %d lines with too few columns", path, short)
        if not found:
            raise ValueError(f"{path}: no examples in it; get it again")
        return found

    def _label(self, text: str) -> float:
        if self.classes is not None:
            return self.classes.index(text)
        if not math.isfinite(score := float(text)):
            raise ValueError("a score is a number")
        return score


def _lines(path: Path) -> list[list[str]]:
    """Return the fields of each line of a tab-separated file.

    Raises:
        ValueError: when it is something else; names the line.
    """
    text = io.StringIO(read_text(path, "utf-8-sig", newline=""), newline="")
    reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        return list(reader)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: no line of tab-separated fields ({error})"
        ) from error


@dataclass(frozen=True)
class PythonTopics:
    """Which topic of Python's help() a passage is from: shipped with every interpreter.

    Attributes:
        topics: the topics, which are the classes.
        words: words a passage.
    """

    topics: Sequence[str]
    words: Count

    def __post_init__(self) -> None:
        from pydoc_data import topics

        unknown = [topic for topic in self.topics if topic not in topics.topics]
        if unknown:
            raise ValueError(f"task.data.topics: Python's help() has no topic {unknown[0]}")

    @property
    def names(self) -> Sequence[str]:
        """The topics."""
        return self.topics

    def examples(self, split: str) -> list[Example]:
        """Return the split's passages: of every ten 8 train, 1 validation, 1 test."""
        from pydoc_data import topics

        text: dict[str, Any] = topics.topics
        parts = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
        if split not in parts:
            raise ValueError(f"task.splits={split}: give {', '.join(parts)}")
        part = parts[split]
        found = []
        for label, topic in enumerate(self.topics):
            words = re.findall(r"\S+", text[topic])
            passages = [words[i : i + self.words] for i in range(0, len(words), self.words)]
            found += [
                Example((" ".join(passage),), label)
                for i, passage in enumerate(passages)
                if i % 10 in part
            ]
        if not found:
            raise ValueError(
                f"task.data.words={self.words}: passages so long leave the split {split} empty; "
                "lower task.data.words"
            )
        return found
