"""Column of text of any data set: of the Hugging Face hub, or of local files of a common kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flexround.utils.file_errors import files_below
from tasks.language.corpora import BLANK_LINE
from tasks.language.hub_data import loaded

# What `datasets` calls the reader of files that end so; .gz may follow.
KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
READABLE = "a file, or a folder of files, that end in .jsonl, .json, .parquet or .csv (and .gz)"


@dataclass(frozen=True)
class Column:
    """Rows of text of a data set.

    Attributes:
        path: the data set's hub id; config: its configuration; revision: its commit or branch;
            split: the split that is read, whichever is asked for.
        column: the column that holds the text.
        local: a file or folder that stands in for the hub, or None.
    """

    path: str
    config: str | None
    revision: str | None
    split: str
    column: str
    local: str | None
    separator: ClassVar[str] = BLANK_LINE
    most_windows: ClassVar[int | None] = None

    def text(self, split: str) -> str:
        """Return the rows as one string."""
        return self.separator.join(self.rows(split))

    def rows(self, split: str) -> list[str]:
        """Return the rows in order.

        Raises:
            ValueError: when they can't be had, or hold no text; says the way out.
        """
        data = self._hub() if self.local is None else self._files(Path(self.local).expanduser())
        name = self.path if self.local is None else f"calibration_dir={self.local}"
        if self.column not in data.column_names:
            raise ValueError(
                f"calibration.corpus.column={self.column}: {name} has "
                f"{', '.join(data.column_names)}"
            )
        rows = list(data[self.column])
        wrong = next((i for i, row in enumerate(rows) if not isinstance(row, str)), None)
        if wrong is not None:
            raise ValueError(
                f"calibration.corpus.column={self.column}: row {wrong} of {name} holds "
                f"{type(rows[wrong]).__name__}, not text; name a column of text"
            )
        return rows

    def _hub(self) -> Any:
        way_out = (
            f"; without a network give calibration_dir=PATH, {READABLE}, or calibration=own, the "
            "task's own text"
        )
        return loaded(
            f"{self.path} can't be loaded", way_out, self.path, self.config,
            split=self.split, revision=self.revision,
        )  # fmt: skip

    def _files(self, path: Path) -> Any:
        files = files_below(path) if path.is_dir() else [path]
        by_kind = {kind: [str(f) for f in files if _kind(f) == kind] for kind in KINDS.values()}
        there = {kind: names for kind, names in by_kind.items() if names}
        if len(there) != 1:
            found = " and ".join(there) or "none of these"
            raise ValueError(
                f"calibration_dir={self.local}: has {found}; give {READABLE}, one kind"
            )
        ((kind, names),) = there.items()
        failed = f"calibration_dir={self.local}: can't be read as {kind}"
        return loaded(failed, "", kind, data_files=names, split="train")


def _kind(path: Path) -> str | None:
    """Return the reader of a file by the end of its name, None where there is none."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return KINDS.get(suffixes[-1]) if suffixes else None
