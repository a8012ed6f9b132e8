"""Views of a folder of records: tables, pictures and a page, `python -m results --help`."""

from __future__ import annotations

from flexround.utils import leaving

if __name__ == "__main__":
    leaving.listen()  # before the imports, which take seconds

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flexround.utils.arguments import check_words
from flexround.utils.file_errors import storage_errors
from results.command_lines import BOARD, COMMANDS, PAPER, add_format, selection
from results.moved import MOVED, SHIFT, by_experiment
from results.records.reading import (
    DEFAULT,
    OUTPUTS,
    chosen_of,
    outcomes_in,
    read,
    rows_in,
    with_units,
)
from results.records.record import Record
from results.records.selection import nearest
from results.tables.leaderboard import FORMATS, leaderboard, render


def main(argv: Sequence[str] | None = None) -> int:
    """Print the leaderboard; return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in MOVED:
        return by_experiment(args[0], args[1:])
    if tuple(args[:2]) == SHIFT:
        return by_experiment("shift", args[2:])
    try:
        check_words(args)
        views = {
            "ablation": _ablation, "claims": _claims, "clean": _clean, "compare": _compare,
            "html": _html, "leaderboard": _ranking, "plot": _plot, "search": _search,
            "wandb": _wandb,
        }  # fmt: skip
        view = views[args.pop(0)] if args and args[0] in views else _table
        if args and not args[0].startswith("-") and view is _table:
            view = _published
        with storage_errors():
            text = view(args)
    except ValueError as error:  # a record's own text may have several lines
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; give another folder", file=sys.stderr)
        return 1
    return leaving.said(text)


def _wandb(argv: Sequence[str]) -> str:
    from results.wandb_table import push

    parser = selection("wandb")
    parser.add_argument("--project", default="flexround", help="of wandb; flexround by default")
    parser.add_argument(
        "--mode", choices=("offline", "online"), default="offline",
        help="offline writes files for `wandb sync`, online needs a login",
    )  # fmt: skip
    parser.add_argument(
        "--dir", default=str(OUTPUTS), metavar="PATH", help="where offline runs are written"
    )
    args = parser.parse_args(argv)
    return push(leaderboard(_chosen(args), args.by), args.project, args.mode, args.dir)


def _compare(argv: Sequence[str]) -> str:
    from results.tables.compare import compare, render

    parser = selection("compare")
    parser.add_argument("first", help="a method, such as flexround")
    parser.add_argument("second", help="the method that it is compared with")
    add_format(parser)
    args = parser.parse_args(argv)
    outcomes = outcomes_in(args.results_dir)
    return render(compare(_chosen(args), outcomes, args.first, args.second, args.by), args.format)


def _ablation(argv: Sequence[str]) -> str:
    from results.tables.ablation import ablation, render

    parser = selection("ablation")
    parser.add_argument("setting", help="by its dotted name, such as recon.iters, quant")
    add_format(parser)
    args = parser.parse_args(argv)
    return render(ablation(_chosen(args), args.setting, args.by), args.setting, args.format)


def _ranking(argv: Sequence[str]) -> str:
    from results.tables.ranking import ranking
    from results.tables.ranking_text import render

    parser = selection("leaderboard")
    add_format(parser)
    args = parser.parse_args(argv)
    return render(ranking(_chosen(args), args.by), args.format)


def _claims(argv: Sequence[str]) -> str:
    from results.ledger.command import command

    return command(argv)


def _search(argv: Sequence[str]) -> str:
    from results.search import add_options, view

    parser = selection("search")
    add_options(parser)
    add_format(parser)
    args = parser.parse_args(argv)
    return view(args, _where(args))


def _html(argv: Sequence[str]) -> str:
    from results.page.gathering import gathered
    from results.page.page import write

    parser = selection("html")
    parser.add_argument(
        "--out", type=Path, default=OUTPUTS / "page.html", metavar="PATH",
        help="the page's file; outputs/page.html by default",
    )  # fmt: skip
    args = parser.parse_args(argv)
    where = _where(args)
    rows = rows_in(args.results_dir)  # once, for the table and for what stands beside it
    chosen = chosen_of(rows, where)
    beside, remarks = gathered(args.results_dir, rows, chosen)
    return "\n".join([write(chosen, args.by, args.results_dir, args.out, beside), *remarks])


def _plot(argv: Sequence[str]) -> str:
    try:
        from results.plots import KINDS, OF_UNITS, figures, write
    except ModuleNotFoundError as error:
        from flexround.utils.packages import missing_package

        raise ValueError(missing_package(error)) from error

    parser = selection("plot")
    kinds = f"one of {', '.join(KINDS)}; shift, which has a --help of its own"
    parser.add_argument("kind", nargs="?", default="", help=kinds)
    parser.add_argument(
        "--out", type=Path, default=OUTPUTS / "plots", metavar="PATH",
        help="folder of the pictures, or the .svg, .png or .pdf file of one; outputs/plots by "
        "default",
    )  # fmt: skip
    args = parser.parse_args(argv)
    chosen = _chosen(args)
    if args.kind in OF_UNITS:
        chosen = with_units(args.results_dir, chosen)
    drawn = figures(args.kind, chosen, args.by)
    return "\n".join(str(path) for path in write(drawn, args.out))


def _clean(argv: Sequence[str]) -> str:
    from results.clean import command

    return command(argv, DEFAULT, OUTPUTS / "cache", OUTPUTS / "checkpoints", COMMANDS["clean"][1])


def _table(argv: Sequence[str]) -> str:
    parser = selection(BOARD)
    add_format(parser, FORMATS)
    args = parser.parse_args(argv)
    return render(leaderboard(_chosen(args), args.by), args.format)


def _published(argv: Sequence[str]) -> str:
    from results.tables.formats import latex
    from results.tables.other_papers import PAPERS, compare_with_others, left_out, of_paper
    from results.tables.paper_comparison import as_text, compare_with_paper, frame, text
    from results.tables.published_numbers import published

    parser = selection(PAPER)
    parser.add_argument("table", metavar=PAPER, help="such as table02 or figure07")
    add_format(parser)
    args = parser.parse_args(argv)
    if args.by:
        raise ValueError(f"--by {args.by[0]} does nothing with a table of the paper; leave it out")
    # A name that is none is told before records are looked for.
    left: Sequence[str] = ()
    if args.table.partition("/")[0] in PAPERS:
        cells = of_paper(args.table)
        left = left_out(cells)
        joined = frame(compare_with_others(cells, _chosen(args)))
    else:
        try:
            published(args.table)
        except ValueError as error:
            if near := nearest(args.table, COMMANDS.keys() - {BOARD, PAPER}):
                raise ValueError(f"no command {args.table}{near}") from None
            others = f"other papers are {', '.join(PAPERS)}"
            raise ValueError(f"{error}; {others}") from None
        joined = frame(compare_with_paper(args.table, _chosen(args)))
    for column, name in (("model", args.model), ("task", args.task)):
        if name is None:
            continue
        if name not in (known := list(dict.fromkeys(joined[column]))):
            raise ValueError(f"{args.table} has no {column} {name}; it has {', '.join(known)}")
        joined = joined[joined[column] == name]
    if args.format == "csv":
        return joined.to_csv(index=False).rstrip("\n")
    if args.format == "latex":
        return latex(as_text(joined))
    return "\n".join([text(joined), *left])


def _chosen(args: argparse.Namespace) -> list[Record]:
    return read(args.results_dir, _where(args))


def _where(args: argparse.Namespace) -> dict[str, str]:
    """Return the settings by which a command line chooses records.

    Raises:
        ValueError: for one that is no NAME=VALUE.
    """
    where: dict[str, str] = {}
    for text in args.where:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--where {text}: give NAME=VALUE")
        if where.setdefault(key, value) != value:
            raise ValueError(f"--where {key}={where[key]} and {key}={value}: give {key} once")
    for key in ("task", "model"):
        value = getattr(args, key)
        if value and where.setdefault(key, value) != value:
            raise ValueError(f"--{key} {value} and --where {key}={where[key]}: give {key} once")
    return where


if __name__ == "__main__":
    with leaving.door():
        sys.exit(main())
