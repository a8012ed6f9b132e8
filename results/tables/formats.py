"""A table of text as Markdown that GitHub shows as it stands, and as LaTeX that compiles."""

from __future__ import annotations

import re

import pandas as pd

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MARK = "\N{DAGGER}"  # behind a number that a remark below the table is about
# What Markdown would read as markup; an underscore inside a word is none.
MARKUP = re.compile(r"[\\`*<>\[\]|&]|(?<![^\W_])_|_(?![^\W_])")


def markdown(table: pd.DataFrame) -> str:
    """Return table in Markdown; it needs a renderer that knows tables."""
    escaped = table.astype(str).map(_escape).rename(columns=_escape)
    # Numbers are text already; tabulate would strip their zeros.
    return escaped.to_markdown(index=False, disable_numparse=True)


def latex(table: pd.DataFrame) -> str:
    """Return table in LaTeX, for a document that uses the package booktabs."""
    style = table.style.hide(axis="index").format(escape="latex")
    style = style.format_index(escape="latex", axis=1)
    text = style.to_latex(hrules=True).replace(PLUS_MINUS, r"$\pm$").replace(MARK, r"$\dagger$")
    return text.rstrip("\n")


def _escape(text: str) -> str:
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
