"""Command lines of `python -m results`: what each command does, and the options they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flexround.utils.arguments import ArgumentParser
from results.records.reading import DEFAULT

TEXTS = ("markdown", "csv", "latex")
BOARD, PAPER = "", "TABLE"  # what is asked for without a command, and by a table's name
# What each command does, and an example of it.
COMMANDS = {
    BOARD: (
        "Print the leaderboard: a row a model and method, a column a width.",
        "python -m results --task digits --where recon.iters=5000",
    ),
    "ablation": (
        "Set the values of one setting side by side, all others held.",
        "python -m results ablation recon.iters --model resnet18",
    ),
    "compare": (
        "Set one method against another on the same seeds and samples.",
        "python -m results compare flexround adaround --task wikitext2",
    ),
    "leaderboard": (
        "Rank methods by order in each setting, never by a mean over settings.",
        "python -m results leaderboard --task scattered_digits",
    ),
    "search": (
        "Show the searches over methods' settings and what they were chosen by.",
        "python -m results search --trials",
    ),
    "claims": (
        "Say which of the papers' claims the records decide.",
        "python -m results claims mobilenet_w2 --records",
    ),
    "plot": (
        "Draw the records; each picture is written as SVG and as PNG.",
        "python -m results plot bits --model resnet18 --out pictures",
    ),
    "html": (
        "Write the leaderboard as one page, with the runs behind it.",
        "python -m results html --out page.html",
    ),
    PAPER: (
        "Set ours beside a paper's: table02, figure07 of FlexRound; signround, lrq, cdquant, gptq.",
        "python -m results table02 --model resnet18",
    ),
    "wandb": (
        "Log the leaderboard as a table of wandb.",
        "python -m results wandb --mode online --project flexround",
    ),
    "clean": (
        "List what killed runs have left, and with --yes remove it.",
        "python -m results clean --yes",
    ),
    "rekey": (
        "Rename records of an older version; python -m experiment has it.",
        "python -m results rekey --results-dir outputs/results",
    ),
}


def selection(command: str) -> ArgumentParser:
    """Return the parser of a command with the options that choose records."""
    line, example = COMMANDS[command]
    if command == BOARD:
        listed = [f"  {name:<12}{told}" for name, (told, _) in COMMANDS.items() if name]
        line = "\n".join([line, "", "commands (each has a --help of its own):", *listed])
    name = "" if command == PAPER else command  # whose name is an argument
    parser = ArgumentParser(
        prog=f"python -m results {name}".strip(), description=line, examples=[example]
    )
    parser.add_argument(
        "--results-dir", type=Path, default=DEFAULT, metavar="PATH",
        help="folder of the records, or a .jsonl file of them; outputs/results by default",
    )  # fmt: skip
    parser.add_argument("--task", metavar="NAME", help="only this task")
    parser.add_argument("--model", metavar="NAME", help="only this model")
    parser.add_argument(
        "--where", action="append", default=[], metavar="NAME=VALUE",
        help="only runs with this setting, such as recon.iters=200",
    )  # fmt: skip
    parser.add_argument(
        "--by", action="append", default=[], metavar="NAME",
        help="one row for each value of this setting, such as recon.lr",
    )  # fmt: skip
    return parser


def add_format(parser: ArgumentParser, formats: Sequence[str] = TEXTS) -> None:
    """Add the option that says how a table is written."""
    line = "how it is written, csv unrounded; markdown by default"
    parser.add_argument("--format", choices=formats, default="markdown", help=line)
