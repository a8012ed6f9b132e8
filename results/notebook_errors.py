"""Refusals of tables and plots in Python's words: by=["recon.lr"] in the place of --by recon.lr."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _by(match: re.Match[str]) -> str:
    names = re.findall(r"--by ([\w.]+)", match[0])
    return "by=[" + ", ".join(f'"{name}"' for name in names) + "]"


# What the command line calls it, and what a call of results does.
WORDS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"keep one with --where ([\w.]+)=VALUE"),
        r'keep one with runs[runs["\1"] == VALUE]',
    ),
    (re.compile(r"--by [\w.]+(?: --by [\w.]+)*"), _by),
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
