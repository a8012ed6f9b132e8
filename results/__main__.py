"""`python -m results`: the leaderboard of a folder of records; `status`: the state of a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from results.leaderboard import FORMATS, leaderboard, render, select
from results.store import Store

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
DEFAULT, SWEEPS = OUTPUTS / "results", OUTPUTS / "sweeps"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the leaderboard; return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        print(_status(args[1:]) if args[:1] == ["status"] else _table(_options(args)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m results", description=__doc__)
    parser.add_argument("--results-dir", type=Path, default=DEFAULT, help="folder of the records")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--model", help="only this model")
    parser.add_argument(
        "--where", action="append", default=[], metavar="NAME=VALUE",
        help="only runs with this setting, such as recon.iters=200",
    )  # fmt: skip
    parser.add_argument(
        "--by", action="append", default=[], metavar="NAME",
        help="one row for each value of this setting, such as recon.lr",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    return parser.parse_args(argv)


def _status(argv: Sequence[str]) -> str:
    from conf.schema import register
    from results.status import Sweep, newest, report

    parser = argparse.ArgumentParser(
        prog="python -m results status",
        description="What has become of each run of a sweep, and the command that finishes it.",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="the sweep's; the newest by default")
    folder = parser.parse_args(argv).folder
    register()
    return report(Sweep(folder or newest(SWEEPS)))


def _table(args: argparse.Namespace) -> str:
    where = {}
    for text in args.where:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--where {text}: give NAME=VALUE")
        where[key] = value
    where |= {k: v for k in ("task", "model") if (v := getattr(args, k))}
    records = Store(args.results_dir).load()
    if not records:
        raise ValueError(f"no records in {args.results_dir}; python run.py writes them")
    chosen = select(records, where)
    if not chosen:
        raise ValueError(f"none of the {len(records)} records has {where}")
    return render(leaderboard(chosen, args.by), args.format)


if __name__ == "__main__":
    sys.exit(main())
