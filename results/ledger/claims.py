"""Claims of papers, as claims.yaml has them: what is said, where, and the runs that would show it.

A claim is a contrast of cells. A cell is what the command line of run.py gives: `under` and a part
of its own. The contrast is the sum of the cells of `more` less that of `less`, so that two and two
make a difference of differences. Several of `under` are settings over which it is averaged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from results.records.given import spelled
from results.tables.published_numbers import Cell, others, published

FOLDER = Path(__file__).resolve().parents[1]
CLAIMS, CONF = FOLDER / "claims.yaml", FOLDER.parent / "conf"
GROUPS = ("model", "task", "quant")  # whose values are names of files in conf/

Overrides = frozenset[str]


class Published(BaseModel):
    """Which published numbers the paper's own effect is the contrast of.

    `source` is a table of paper.csv or a source of others.csv. Each entry of `more` and
    `less` gives columns of it that, with `of`, choose one number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    of: dict[str, str] = Field(default_factory=dict)
    more: tuple[dict[str, str], ...]
    less: tuple[dict[str, str], ...]


class Claim(BaseModel):
    """One claim.

    No option is given the value that it has by itself: the run has a record under fewer words then.

    Attributes:
        id: its name.
        says: the claim in a sentence.
        source: the paper and the place in it.
        under: arguments of run.py that all cells have, a string for each setting.
        more: of the cells that are added.
        less: of the cells that are taken away.
        expect: better, that the contrast is for the better; same, that it is within the margin.
        margin: what a difference must exceed to count, in points of a percentage, or in percent of
            a perplexity, divergence or error.
        metric: one of the record's, or error, the geometric mean of the units' errors; the record's
            main metric where it is absent.
        seeds: as many as the sweep has.
        published: the paper's numbers, where there are any that compare.
        needs: what stands in the way of testing it here; such a claim has no cells.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    says: str = Field(min_length=1)
    source: str = Field(min_length=1)
    under: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    expect: Literal["better", "same"] = "better"
    margin: float = Field(ge=0)
    metric: str | None = None
    seeds: int = Field(default=3, ge=1)
    published: Published | None = None
    needs: str | None = None

    @cached_property
    def settings(self) -> list[tuple[list[Overrides], list[Overrides]]]:
        """The cells of `more` and of `less`, for each of `under`."""

        def cells(shared: str, parts: Sequence[str]) -> list[Overrides]:
            return [frozenset(map(_plain, f"{shared} {part}".split())) for part in parts]

        return [(cells(text, self.more), cells(text, self.less)) for text in self.under]

    @property
    def cells(self) -> Iterator[Overrides]:
        """All cells."""
        for more, less in self.settings:
            yield from more
            yield from less

    def published_cells(self) -> tuple[list[Cell], list[Cell]]:
        """Return the published numbers of `more` and of `less`, none where there are none."""
        found = self.published
        if found is None:
            return [], []
        known = _numbers(found.source)
        return (
            [_one(known, found.of | own, self.id) for own in found.more],
            [_one(known, found.of | own, self.id) for own in found.less],
        )


def read(path: Path = CLAIMS) -> list[Claim]:
    """Return the claims of a file, each checked.

    Raises:
        ValueError: names the claim and what is wrong with it: a field, a model, task or method that
            there is not, a published number that there is not.
    """
    data = yaml.safe_load(path.read_text())
    words = data["settings"]
    claims: dict[str, Claim] = {}
    for entry in data["claims"]:
        name = entry.get("id", "without an id")
        try:
            claim = Claim(
                **(entry | {"under": [_spelled(text, words) for text in entry.get("under", [])]})
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path.name}: claim {name}: {where}: {first['msg']}") from error
        except ValueError as error:
            raise ValueError(f"{path.name}: claim {name}: {error}") from error
        if problem := _problem(claim, claims):
            raise ValueError(f"{path.name}: claim {name}: {problem}")
        claims[claim.id] = claim
    return list(claims.values())


def chosen(claims: Sequence[Claim], names: Sequence[str]) -> list[Claim]:
    """Return the claims whose ids hold one of names, all without any.

    Raises:
        ValueError: when a name is in none; names the nearest.
    """
    for name in names:
        if not any(name in claim.id for claim in claims):
            near = difflib.get_close_matches(name, [claim.id for claim in claims], n=3, cutoff=0.3)
            raise ValueError(f"no claim {name}; did you mean {' or '.join(near) or 'another'}?")
    return [c for c in claims if not names or any(name in c.id for name in names)]


def _plain(override: str) -> str:
    """Return NAME=VALUE with the value as records are read."""
    name, equals, value = override.partition("=")
    return f"{name}{equals}{spelled(value)}"


def _spelled(text: str, words: dict[str, str]) -> str:
    """Return text with the words of the file's settings written out."""
    found = []
    for word in text.split():
        if "=" not in word and word not in words:
            raise ValueError(f"under: {word} is neither NAME=VALUE nor one of {', '.join(words)}")
        found.append(word if "=" in word else words[word])
    return " ".join(found)


def _problem(claim: Claim, before: dict[str, Claim]) -> str | None:
    if claim.id in before:
        return "a second one of this id"
    if bool(claim.needs) == bool(claim.under):
        return "give either under, more and less, or needs"
    if claim.under and not (claim.more and claim.less):
        return "give the cells of more and of less"
    if claim.expect == "same" and not claim.margin:
        return "expect: same needs a margin"
    for cell in claim.cells:
        if problem := _unknown(cell):
            return problem
    try:
        claim.published_cells()
    except ValueError as error:
        return str(error)
    return None


def _unknown(cell: Iterable[str]) -> str | None:
    """Return what a cell names that conf/ has not."""
    given: dict[str, str] = {}
    for text in cell:
        name, equals, value = text.partition("=")
        if not equals or name in given:
            return f"{text}: give each NAME=VALUE once"
        given[name] = value
        if name in GROUPS and not (CONF / name / f"{value}.yaml").exists():
            known = [
                str(path.relative_to(CONF / name).with_suffix(""))
                for path in (CONF / name).rglob("*.yaml")
            ]
            near = difflib.get_close_matches(value, known, n=3) or sorted(known)
            return f"no {name} {value}; there is {' or '.join(near)}"
    return None


def _numbers(source: str) -> list[Cell]:
    try:
        return published(source)
    except ValueError as error:
        try:
            return others(source)
        except ValueError:
            raise error from None


def _one(known: Sequence[Cell], columns: dict[str, str], claim: str) -> Cell:
    wanted = " ".join(f"{name}={value}" for name, value in columns.items())
    try:
        found = [c for c in known if all(getattr(c, n) == v for n, v in columns.items())]
    except AttributeError as error:
        raise ValueError(f"published: {wanted}: {error}") from error
    if len(found) != 1:
        raise ValueError(f"published: {len(found)} numbers of {known[0].table} have {wanted}")
    return found[0]
