"""Refusals of tables and plots in Python's words: by=["recon.lr"] in the place of --by recon.lr."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# What the command line calls it, and what a call of results does.
WORDS = (
    (
        re.compile(r"keep one with --where ([\w.]+)=VALUE"),
        r'keep one with runs[runs["\1"] == VALUE]',
    ),
    (re.compile(r"--by ([\w.]+)"), r'by=["\1"]'),
    (re.compile(r"^plot (\w*): "), r'plot("\1"): '),
    (re.compile(r"^plot: "), 'plot(""): '),
)


@contextmanager
def in_words_of_python() -> Iterator[None]:
    """Have a ValueError name arguments as Python has them, where it names options."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for option, argument in WORDS:
            text = option.sub(argument, text)
        if text == str(error):
            raise
        raise ValueError(text) from error
