"""Commands on configurations: `python -m experiment plan`, `status` and `rekey`."""

from __future__ import annotations

from flexround.utils import leaving

if __name__ == "__main__":
    leaving.listen()  # before the imports, which take seconds

import sys
from collections.abc import Sequence
from pathlib import Path

from experiment import ROOT
from flexround.utils.arguments import ArgumentParser, check_words
from flexround.utils.file_errors import storage_errors

OUTPUTS = ROOT / "outputs"
# What each command does, and an example of it.
COMMANDS = {
    "plan": (
        "What a sweep would run, what it needs, how long it may take.",
        "python -m experiment plan experiment=paper/table02 bits=4",
    ),
    "status": (
        "What has become of each run of a sweep, and the command that finishes it.",
        "python -m experiment status outputs/sweeps/2026-01-31/12-00-00-000000",
    ),
    "rekey": (
        "Give the records of an older version the names that runs have now.",
        "python -m experiment rekey --results-dir outputs/results",
    ),
    "shift": (
        "Draw how many codes weights of saved runs have moved from round-to-nearest.",
        "python -m results plot shift --run 0a1b2c3d --layer 'blocks.0.*' --out shift.svg",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    listed = [f"  {name:<8}{line}" for name, (line, _) in COMMANDS.items()]
    parser = ArgumentParser(
        prog="python -m experiment",
        description="\n".join(["Commands on sweeps, each with a --help of its own:", *listed]),
        examples=[example for _, example in COMMANDS.values()],
    )
    parser.add_argument("command", choices=COMMANDS, help="what to do")
    commands = {"plan": _plan, "status": _status, "rekey": _rekey, "shift": _shift}
    try:
        check_words(args)
        with storage_errors():
            text = commands[parser.parse_args(args[:1]).command](args[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return leaving.said(text)


def _parser(command: str) -> ArgumentParser:
    line, example = COMMANDS[command]
    return ArgumentParser(
        prog=f"python -m experiment {command}", description=line, examples=[example]
    )


def _plan(argv: Sequence[str]) -> str:
    from experiment.errors import value_errors
    from experiment.overrides import check_overrides
    from experiment.sweeps.plan import experiments, report

    parser = _parser("plan")
    parser.add_argument(
        "overrides", nargs="*", help="run.py's, such as experiment=paper/table02 bits=4"
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="as run.py has it; no effect")
    overrides = parser.parse_intermixed_args(argv).overrides
    with value_errors():
        check_overrides(overrides)
    return report(overrides) if overrides else experiments()


def _status(argv: Sequence[str]) -> str:
    from experiment.config import register
    from experiment.sweeps.status import Sweep, newest, report

    parser = _parser("status")
    parser.add_argument("folder", type=Path, nargs="?", help="the sweep's; the newest by default")
    folder = parser.parse_args(argv).folder
    register()
    return report(Sweep(folder or newest(OUTPUTS / "sweeps")))


def _rekey(argv: Sequence[str]) -> str:
    from experiment.rekey import rekey

    parser = _parser("rekey")
    parser.add_argument(
        "--results-dir", type=Path, default=OUTPUTS / "results", metavar="PATH",
        help="folder of the records; outputs/results by default",
    )  # fmt: skip
    return rekey(parser.parse_args(argv).results_dir)


def _shift(argv: Sequence[str]) -> str:
    parser = _parser("shift")
    parser.prog = "python -m results plot shift"
    parser.add_argument(
        "--run", action="append", required=True, metavar="ID",
        help="a run with save=true by its id, or how that begins; given again, one beside it",
    )  # fmt: skip
    parser.add_argument(
        "--layer", action="append", default=[], metavar="NAME",
        help="a layer, or a pattern such as '*.q_proj'; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--results-dir", type=Path, default=OUTPUTS / "results", metavar="PATH",
        help="folder of the records; outputs/results by default",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=OUTPUTS / "plots", metavar="FILE",
        help="an .svg, .png or .pdf, or a folder for shift.svg and .png; outputs/plots by default",
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="OPTION=VALUE",
        help="run.py's, such as cache_dir=PATH where the runs had another than this machine's",
    )  # fmt: skip
    args = parser.parse_intermixed_args(argv)
    try:
        from experiment.shift import draw
    except ModuleNotFoundError as error:
        from flexround.utils.packages import missing_package

        raise ValueError(missing_package(error)) from error
    paths = draw(args.results_dir, args.run, args.layer, args.overrides, args.out)
    return "\n".join(map(str, paths))


if __name__ == "__main__":
    with leaving.door():
        sys.exit(main())
