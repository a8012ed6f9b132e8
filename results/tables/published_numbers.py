"""Numbers that others have published, for tables that set them beside our own.

paper.csv holds Tables 1 to 24 and Figure 7 of FlexRound (arXiv 2306.00317v2), others.csv what the
authors of other methods, or their code, have published: by paper (a method's name) and table, which
a preset experiment=PAPER/TABLE is called by where there is one. Names are the command line's: of
models, tasks (a part of zero_shot is the metric), methods (fp is no quantization) and metrics; a
metric with a dot is a setting that a table lists, not a result. bits is 32 or 16 for fp, else
W4A16, W4 where the activations are not mentioned, - where nothing is. setting is words: B
(recon=brecq) or Q (recon=qdrop), then what tells a number from its neighbours: torchvision's
checkpoints (BRECQ's without the word), finetuned or lora where the task was trained on before (GLUE
and SQuAD always are), tuned_lr where a rate for each task is not given (Table 16), options of the
command line.

ImageNet is the median of five trials, symmetric per tensor; language models are asymmetric per
tensor, LLaMA's weights per channel. Zero-shot numbers look like acc_norm where a task has it.
Times and memory in others.csv have the task none.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
BITS = re.compile(r"-|16|32|W\d(A\d+)?")


@dataclass(frozen=True)
class Cell:
    """One published number.

    Attributes:
        table: table02 or figure07 of the FlexRound paper, or opt of another.
        printed: the value with the digits that it was published with.
        note: an oddity of the number, or what it was taken from.
        paper: the method that the paper is of, empty for FlexRound's.
        source: the paper or file that it stands in, empty for FlexRound's.
    """

    table: str
    model: str
    task: str
    method: str
    setting: str
    bits: str
    metric: str
    printed: str
    note: str
    paper: str = ""
    source: str = ""

    @property
    def value(self) -> float:
        """Return the number."""
        return float(self.printed)


COLUMNS = ("table", "model", "task", "method", "setting", "bits", "metric", "value", "note")
OTHERS = ("paper", "table", "source", *COLUMNS[1:])


def published(table: str | None = None) -> list[Cell]:
    """Return the FlexRound paper's numbers, all or those of one table.

    Raises:
        ValueError: when there is no such table; names the nearest ones.
    """
    return _of("table", table, read(FOLDER / "paper.csv", COLUMNS))


def others(source: str | None = None) -> list[Cell]:
    """Return the other methods' numbers, all or those of one paper or file.

    Raises:
        ValueError: when there is no such source; names the nearest ones.
    """
    cells = read(FOLDER / "others.csv", OTHERS)
    if source is None or any(cell.source == source for cell in cells):
        return [cell for cell in cells if source in (None, cell.source)]
    raise ValueError(_no("source", source, {cell.source for cell in cells}))


def read(path: Path, columns: Sequence[str]) -> list[Cell]:
    """Return the cells of a file, each checked.

    Raises:
        ValueError: names the file, the line and what is wrong with it.
    """
    cells: dict[tuple[str, ...], Cell] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if (header := next(rows, [])) != list(columns):
            raise ValueError(f"{path}:1: columns {','.join(header)}, not {','.join(columns)}")
        for row in rows:
            if problem := _problem(row, columns):
                raise ValueError(f"{path}:{rows.line_num}: {problem}")
            named = dict(zip(columns, row, strict=True))
            cell = Cell(printed=named.pop("value"), **named)
            if cells.setdefault(tuple(row[:-2]), cell) is not cell:
                raise ValueError(f"{path}:{rows.line_num}: a second value of {' '.join(row[:-2])}")
    return list(cells.values())


def _problem(row: Sequence[str], columns: Sequence[str]) -> str | None:
    if len(row) != len(columns):
        return f"{len(row)} fields, not {len(columns)}"
    cell = dict(zip(columns, row, strict=True))
    if empty := {name for name in columns if not cell[name]} - {"setting", "note"}:
        return f"no {min(empty)}"
    if not BITS.fullmatch(cell["bits"]):
        return f"bits {cell['bits']}: give 32, 16, W4A16, W4 or -"
    with suppress(ValueError):
        if math.isfinite(float(cell["value"])):
            return None
    return f"value {cell['value']} is no finite number"


def _of(kind: str, table: str | None, cells: list[Cell]) -> list[Cell]:
    if table is None or any(cell.table == table for cell in cells):
        return [cell for cell in cells if table in (None, cell.table)]
    raise ValueError(_no(kind, table, {cell.table for cell in cells}))


def _no(kind: str, name: str, known: set[str]) -> str:
    """Return that there is no such name, and the nearest that there are."""
    plain = re.sub(r"\W*0*(\d+)$", lambda m: m[1].zfill(2), name.lower())  # Table 2 is table02
    near = [plain] if plain in known else difflib.get_close_matches(name, sorted(known), n=3)
    told = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
    return f"no {kind} {name}; {told}"
