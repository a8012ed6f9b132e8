"""Door of an artifact, what save=true leaves: `python artifact.py eval PATH`, and its like."""

from __future__ import annotations

from flexround.utils import leaving

if __name__ == "__main__":
    leaving.listen()  # before the imports, which take seconds

import sys
from collections.abc import Sequence
from pathlib import Path

from experiment.artifacts.push import push
from experiment.artifacts.rebuild import FORMATS, evaluate, export, inspect
from flexround.utils.arguments import ArgumentParser, check_words
from flexround.utils.file_errors import storage_errors
from flexround.utils.memory import is_shortage
from flexround.utils.packages import missing_package

# What each command does, and an example of it.
COMMANDS = {
    "eval": (
        "Measure it again; the record's own metric, or an error.",
        "python artifact.py eval outputs/results/artifacts/RUN_ID",
    ),
    "inspect": (
        "List its layers, bits and bytes.",
        "python artifact.py inspect outputs/results/artifacts/RUN_ID",
    ),
    "export": (
        "Write it for another program.",
        "python artifact.py export outputs/results/artifacts/RUN_ID --to onnx --out model_onnx",
    ),
    "push": (
        "Send it to the Hugging Face hub, with its card.",
        "python artifact.py push outputs/results/artifacts/RUN_ID --to ORG/NAME --dry-run",
    ),
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python artifact.py",
        description="Commands on an artifact, the folder that save=true leaves of a run.",
        examples=[example for _, example in COMMANDS.values()],
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="each has a --help of its own:"
    )
    parsers = {}
    for name, (line, example) in COMMANDS.items():
        command = commands.add_parser(name, help=line, description=line, examples=[example])
        command.add_argument("path", metavar="PATH", help="the artifact's folder")
        parsers[name] = command
    for name in ("eval", "export"):
        parsers[name].add_argument(
            "overrides", nargs="*", metavar="OPTION=VALUE",
            help="run.py's, such as data_dir=PATH on another machine",
        )  # fmt: skip
    export = parsers["export"]
    export.add_argument(
        "--to", choices=FORMATS, required=True, dest="format", help="the other program's format"
    )
    export.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="folder to write, not there yet"
    )
    push = parsers["push"]
    push.add_argument("--to", required=True, metavar="ORG/NAME", help="the hub's repository")
    push.add_argument("--dry-run", action="store_true", help="print what would go, send nothing")
    push.add_argument("--private", action="store_true", help="where the repository is new")
    push.add_argument(
        "--license", metavar="NAME", help="for the card, as the hub names it, such as apache-2.0"
    )
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
            elif args.command == "push":
                print(
                    push(
                        args.path, args.to, private=args.private, license=args.license,
                        dry_run=args.dry_run,
                    )
                )  # fmt: skip
            else:
                print(export(args.path, args.format, args.out, [*args.overrides, *more]))
    except ModuleNotFoundError as error:
        print(f"error: {missing_package(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read it has gone: the door's
        raise
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        measured = "lower task.eval_batch_size, or give device=cpu"
        way = measured if args.command == "eval" else "use a machine with more"
        print(f"error: out of memory; {way}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with leaving.door("nothing is written"):
        sys.exit(main())
