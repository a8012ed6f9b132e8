"""Arguments of a command: argparse with errors of one line, and words that hold something."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, NoReturn

# Categories of characters: control, half of a pair, separators of lines and paragraphs.
STEERING = ("Cc", "Cs", "Zl", "Zp")


class ArgumentParser(argparse.ArgumentParser):
    """A parser that tells what it refuses in one line, without its usage, and exits with 2.

    Its help ends with examples of the command, one a line.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if examples:
            head = "example:" if len(examples) == 1 else "examples:"
            kwargs["epilog"] = "\n  ".join([head, *examples])
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print message with the way to the usage, and exit."""
        print(
            f"error: {shown(' '.join(message.split()))}; {self.prog} --help tells more",
            file=sys.stderr,
        )
        sys.exit(2)


def shown(text: str) -> str:
    """Return text with what steers a terminal, or is no character, written as an escape."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in STEERING else c for c in text)


def check_words(words: Sequence[str]) -> None:
    """Check that every argument of a command line holds something that can be printed.

    Raises:
        ValueError: names the first that does not, or where it stands.
    """
    for place, word in enumerate(words):
        after = f" after {words[place - 1]}" if place else ""
        value = word.partition("=")[2] if word.startswith("--") and "=" in word else word
        if not value.strip():
            raise ValueError(f"{word!r}{after} is empty; give it a value, or leave it out")
        if shown(word) != word:
            raise ValueError(f"{word!r}{after} holds a character that can't be printed")
