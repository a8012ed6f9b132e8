"""Text corpora: rows of a split, from the hub, from local files, or from the standard library."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, cast

from flexround.utils.file_errors import files_below
from tasks.bounds import Count
from tasks.language.hub_data import load_hub
from tasks.language.text_files import gzipped_texts, read_text

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
BLANK_LINE = "\n\n"
UNKNOWN = "<unk>"  # a rare word, in what is published for models of whole words


class Corpus(Protocol):
    """A text in splits."""

    @property
    def separator(self) -> str:
        """What stands between rows where GPTQ's protocol joins them."""
        ...

    @property
    def most_windows(self) -> int | None:
        """How many windows GPTQ's protocol evaluates at most, or None for all."""
        ...

    def rows(self, split: str) -> list[str]:
        """Return the split's rows of text in order.

        Raises:
            ValueError: when they can't be had.
        """
        ...

    def text(self, split: str) -> str:
        """Return the split as one string, the same from the hub as from local files."""
        ...


@dataclass(frozen=True)
class HubCorpus:
    """A data set of the Hugging Face hub, or a local copy in its published layout.

    Attributes:
        path: the data set's hub id; config: its configuration.
        column: the column that holds the text.
        strip: whether the hub's rows are lines without their surrounding blanks; of local files
            rows and text are then without them too, and without blank lines.
        joined_by: what stands between rows where GPTQ's protocol joins them.
        local: a folder with the files named in files, or None for the hub.
        files: file name of each split in such a folder; first one that exists of a list.
        revision: the data set's commit or branch on the hub, None for its main one.
    """

    path: str
    config: str | None
    column: str
    strip: bool
    joined_by: Literal["blank_line", "space"]
    local: str | None
    files: dict[str, list[str]]
    revision: str | None = None
    most_windows: ClassVar[int | None] = None

    @property
    def separator(self) -> str:
        """What joined_by names."""
        return {"blank_line": BLANK_LINE, "space": " "}[self.joined_by]

    def rows(self, split: str) -> list[str]:
        """Return the split's rows."""
        if self.local is None:
            return self._hub_rows(split)
        lines = self._file(split).split("\n")
        if self.strip:
            return [line.strip() for line in lines if line.strip()]
        # The hub's rows: blank lines are empty, others keep their line break.
        return [
            f"{line}\n" if line.strip() else "" for line in lines[: -1 if not lines[-1] else None]
        ]

    def text(self, split: str) -> str:
        """Return the split as one string, a local file as it stands where rows are not stripped."""
        if self.strip:
            return "\n".join(self.rows(split))
        if self.local is not None:
            return self._file(split)
        # Of rows with their line breaks, an empty one is a line with a blank in the file.
        return "".join(row or " \n" for row in self._hub_rows(split))

    def _file(self, split: str) -> str:
        """Return a local file as it stands; tell where it is another text than the split's own."""
        path = self._path(split)
        text = read_text(path)
        if self.stand_in(split) is not None:
            log.warning(
                "%s is read, since %s is not there: another text, %d of whose words are %s; "
                "perplexities on the two do not compare",
                path, self.files[split][0], text.count(UNKNOWN), UNKNOWN,
            )  # fmt: skip
        return text

    def stand_in(self, split: str) -> str | None:
        """Return the file that is read for the split's own; None where it is the own, or the hub's.

        WikiText-2 is published twice, raw and with its rare words as <unk>.
        """
        if self.local is None:
            return None
        name = self._path(split).name
        return None if name == self.files[split][0] else name

    def _path(self, split: str) -> Path:
        for name in self.files[split]:
            path = Path(str(self.local)).expanduser() / name
            if path.is_file():
                return path
        raise ValueError(
            f"data_dir={self.local}: none of {', '.join(self.files[split])} for the split {split}"
        )

    def _hub_rows(self, split: str) -> list[str]:
        names = [names[0] for names in self.files.values()]
        found = load_hub(self.path, self.config, split, None, names, self.revision)
        return list(found[self.column])


@dataclass(frozen=True)
class C4:
    """C4's English part, a shard of train and one of validation.

    Attributes:
        local: a folder that holds those files of allenai/c4, or None for the hub.
        files: the shard of each split; the first of a list is read.
        documents: how many documents of validation are read; GPTQ's protocol takes 1,100.
    """

    local: str | None
    files: dict[str, list[str]]
    documents: Count
    separator: ClassVar[str] = " "
    most_windows: ClassVar[int | None] = 256

    def text(self, split: str) -> str:
        """Return the split's documents as one string."""
        return self.separator.join(self.rows(split))

    def rows(self, split: str) -> list[str]:
        """Return the split's documents."""
        name = self.files["train" if split == "train" else "validation"][0]
        if self.local is None:
            try:
                rows = load_hub("allenai/c4", None, "train", {"train": name}, [name])["text"]
            except ValueError as error:
                hint = "; calibration=own takes the task's own text" if split == "train" else ""
                raise ValueError(f"{error}{hint}") from error
        else:
            path = Path(self.local).expanduser() / name
            if not path.is_file():
                raise ValueError(
                    f"{self.local}: {name} of allenai/c4 is not there; give the folder that has it "
                    "as calibration_dir= of calibration=c4, as data_dir= of task=c4"
                )
            rows = gzipped_texts(path)
        return list(rows if split == "train" else rows[: self.documents])


@dataclass(frozen=True)
class TextFiles:
    """Any UTF-8 file, or all files of a folder; the last tenths are validation and test.

    Attributes:
        local: the file or folder.
    """

    local: str | None
    separator: ClassVar[str] = BLANK_LINE
    most_windows: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if self.local is None:
            raise ValueError(
                "task=text needs data_dir=PATH, and calibration=text calibration_dir=PATH: a UTF-8 "
                "file or a folder of them"
            )
        if not Path(self.local).expanduser().exists():
            raise ValueError(
                f"{self.local}: no such file or folder; give data_dir= of task=text, or "
                "calibration_dir= of calibration=text, as one that is there"
            )

    def text(self, split: str) -> str:
        """Return the split as one string."""
        return "".join(self.rows(split))

    def rows(self, split: str) -> list[str]:
        """Return the split's lines."""
        path = Path(cast(str, self.local)).expanduser()
        files = files_below(path) if path.is_dir() else [path]
        lines = []
        for file in files:
            lines += read_text(file).splitlines(keepends=True)
        rows = _tenths(lines, split)
        if not rows:
            raise ValueError(
                f"{path}: {len(lines)} lines are too few for a split {split}; give 10 or more"
            )
        return rows


@dataclass(frozen=True)
class PythonDocs:
    """The topics of Python's own help(), shipped with every interpreter: 0.5 MB of English."""

    separator: ClassVar[str] = BLANK_LINE
    most_windows: ClassVar[int | None] = None

    def text(self, split: str) -> str:
        """Return the split as one string."""
        return "".join(self.rows(split))

    def rows(self, split: str) -> list[str]:
        """Return the split's lines."""
        from pydoc_data import topics

        text: dict[str, str] = topics.topics
        lines = [line for key in sorted(text) for line in text[key].splitlines(keepends=True)]
        return _tenths(lines, split)


def _tenths(rows: Sequence[str], split: str) -> list[str]:
    """Return 8 of 10 consecutive blocks for train, then one each for validation and test.

    Blocks are spread over the text, so that the splits are alike: block i of every ten.
    """
    block = max(1, len(rows) // 200)
    part = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}[split]
    return [row for i, row in enumerate(rows) if i // block % 10 in part]
