"""Door of an artifact, what save=true leaves: `python artifact.py eval | inspect | export PATH`."""

from __future__ import annotations

from flexround.utils import leaving

if __name__ == "__main__":
    leaving.listen()  # before the imports, which take seconds

import sys
from collections.abc import Sequence
from pathlib import Path

from experiment.artifacts.rebuild import FORMATS, evaluate, export, inspect
from flexround.utils.arguments import ArgumentParser, check_words
from flexround.utils.file_errors import storage_errors
from flexround.utils.packages import missing_package


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python artifact.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "eval": "measure it again; the record's own metric, or an error",
        "inspect": "its layers, bits and bytes",
        "export": "write it for another program",
    }
    for name, help in helps.items():
        command = commands.add_parser(name, help=help)
        command.add_argument("path", help="the artifact's folder")
        if name != "inspect":
            command.add_argument(
                "overrides", nargs="*", help="run.py's, such as data_dir=PATH on another machine"
            )
    command.add_argument("--to", choices=FORMATS, required=True, dest="format")
    command.add_argument("--out", type=Path, required=True, help="folder to write, not there yet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)  # overrides may stand on both sides of an option
    if any(word.startswith("-") or "overrides" not in args for word in more):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        check_words(sys.argv[1:] if argv is None else argv)
        with storage_errors():
            if args.command == "eval":
                print(evaluate(args.path, [*args.overrides, *more]))
            elif args.command == "inspect":
                print(inspect(args.path))
            else:
                print(export(args.path, args.format, args.out, [*args.overrides, *more]))
    except ModuleNotFoundError as error:
        print(f"error: {missing_package(error)}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with leaving.door("nothing is written"):
        sys.exit(main())
