"""Command line of the doors that Hydra composes: run.py and finetune.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from hydra._internal.utils import get_args_parser

from experiment import help
from experiment.config import renamed
from experiment.errors import one_line_errors
from experiment.overrides import check_overrides
from flexround.utils.leaving import door


def command_line(main: Callable[[], object], way_on: str = "", name: str = "run.py") -> None:
    """Run the Hydra application main on this process's arguments, as a user typed them.

    way_on says what is true where a signal has ended it; name is the door's.
    """
    with door(way_on), one_line_errors():
        flags, overrides = separated(sys.argv[1:])
        if {"--help", "-h"} & set(flags):
            print(help.text(name, overrides))
            return
        overrides = renamed(overrides)
        check_overrides(overrides)
        if "--hydra-help" in flags:  # Hydra composes none of ours for it
            overrides = []
        sys.argv[1:] = [*flags, *overrides]
        main()


def separated(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (Hydra's flags with their values, overrides), each in the order they were given.

    Hydra takes overrides in one piece only; here a flag such as -m may stand between two of them.

    Raises:
        ValueError: for a flag that there is not, or one without its value.
    """
    parser = get_args_parser()
    parser.exit_on_error = False  # it would print all of its usage
    try:
        known, unknown = parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; --hydra-help lists what there is") from error
    if unknown:
        plain = unknown[0].lstrip("-")
        way = f"an option has no dashes: {plain}; " if "=" in plain else ""
        raise ValueError(f"{unknown[0]}: no such flag; {way}--hydra-help lists the flags")
    overrides: list[str] = known.overrides
    flags = list(words)
    for override in reversed(overrides):  # the last of equal words: a flag's value stands earlier
        del flags[len(flags) - 1 - flags[::-1].index(override)]
    return flags, overrides
